"""The connection to the container engine: what it can do, one client per thread, its errors in our words.

The one importer of the Docker SDK. The SDK carries the bytes and knows the registries' passwords; the calls are those
of the engine's documented REST interface, because the SDK's own methods ask twice for what one request answers.
"""

import contextlib
import json
import os
import select
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker
import docker.errors
import docker.types
import docker.utils

from greengrader.errors import SandboxError, ServiceUnavailable

CHUNK_BYTES = 256 * 1024


class EngineRefused(SandboxError):
    """The engine answered with an error; `status` is HTTP's (404 no such thing, 409 name taken or wrong state)."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class EngineFacts:
    """What the engine says about itself at the first contact, and whether it runs on this machine."""

    version: str
    local: bool  # its files are ours to see: a Unix socket, its root folder is here, we are root
    root_dir: Path  # of its images and containers
    storage_driver: str
    backing_file_system: str
    cgroup_driver: str
    plain_owners: bool  # root in a container is root here, and no SELinux label has to be right

    @property
    def has_readable_cgroups(self) -> bool:
        """True where a parent cgroup of our own choice keeps the totals of a container that is gone."""
        return self.local and self.cgroup_driver == "cgroupfs"

    @property
    def has_readable_layers(self) -> bool:
        """True where a container's writable layer is a folder on this machine that holds plain files."""
        return self.local and self.storage_driver == "overlay2"

    @property
    def may_have_quotas(self) -> bool:
        """False where the engine can certainly not limit the size of a writable layer."""
        if self.storage_driver == "overlay2":
            return self.backing_file_system == "xfs"
        return self.storage_driver in ("btrfs", "zfs", "devicemapper")


class Engine:
    """A container engine that has answered; ServiceUnavailable at the start where none does.

    `url`: unix:///… or tcp://…; None: what DOCKER_HOST and its relatives say, else the usual socket.
    Threads may share it: each gets a client of its own, which lives until `close`.
    """

    def __init__(self, url: str | None = None, *, timeout_s: float = 120.0) -> None:
        self._address = {"base_url": url} if url else docker.utils.kwargs_from_env()
        self._timeout_s = timeout_s
        self._clients: list[docker.APIClient] = []
        self._mine = threading.local()
        self._version = "auto"
        try:
            self._version = self.client.api_version
            self.facts = self._read_facts()
            self.has_quotas = self.facts.may_have_quotas  # until it refuses to set one
        except (docker.errors.DockerException, SandboxError, OSError) as error:
            self.close()
            where = self._address.get("base_url") or "its usual socket"
            raise ServiceUnavailable(f"no container engine answers at {where}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections of all threads."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    @property
    def client(self) -> docker.APIClient:
        """The calling thread's own client: the SDK's session is not made for two at once."""
        client: docker.APIClient | None = getattr(self._mine, "client", None)
        if client is None:
            client = docker.APIClient(version=self._version, timeout=int(self._timeout_s), **self._address)
            # Proxies and .netrc are for registries, which the engine asks itself; looking for them costs every call.
            client.trust_env = False
            self._mine.client = client
            self._clients.append(client)
        return client

    @contextlib.contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Turns the driver's errors into EngineRefused or SandboxError; `what` completes "the engine could not …"."""
        try:
            yield
        except docker.errors.APIError as error:
            reason = error.explanation or str(error)
            raise EngineRefused(f"the engine could not {what}: {reason}", error.status_code or 0) from error
        except (docker.errors.DockerException, OSError) as error:  # the errors of `requests` are OSErrors
            raise SandboxError(f"the engine did not {what}: {error or type(error).__name__}") from error

    def ask(
        self,
        what: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        data: bytes | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The engine's answer decoded from JSON, None where it has nothing to say."""
        headers = {"Content-Type": "application/x-tar"} if data is not None else None
        with self.asked(what):
            response = self.client.request(
                method,
                self._url(path),
                params=params,
                json=body,
                data=data,
                headers=headers,
                timeout=timeout_s or self._timeout_s,
            )
            _check(what, response)
            return response.json() if response.content else None

    def stream(
        self,
        what: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        data: Iterable[bytes] | None = None,
        timeout_s: float | None = None,
    ) -> "Answer":
        """The engine's answer while it arrives; after `timeout_s` it is cut off, and the engine stops its work."""
        headers = {"Accept-Encoding": "identity"}
        if data is not None:
            headers["Content-Type"] = "application/x-tar"
        with self.asked(what):
            response = self.client.request(
                method,
                self._url(path),
                params=params,
                data=data,
                headers=headers,
                stream=True,
                timeout=(self._timeout_s, timeout_s or self._timeout_s),
            )
            _check(what, response)
        return Answer(self, what, response, timeout_s)

    def attach(self, container_id: str) -> "Attached":
        """What the container prints from now on."""
        with self.asked("attach to the container"):
            params = {"stdout": 1, "stderr": 1, "stream": 1}
            return Attached(self, self.client.attach_socket(container_id, params=params))

    def _url(self, path: str) -> str:
        return f"{self.client.base_url}/v{self._version}{path}"

    def _read_facts(self) -> EngineFacts:
        info = self.ask("describe itself", "GET", "/info")
        root_dir = Path(info["DockerRootDir"])
        options = {option.split(",")[0].removeprefix("name=") for option in info.get("SecurityOptions") or ()}
        # The SDK shows a Unix socket under this name, whatever its path.
        on_a_socket = self.client.base_url == "http+docker://localhost"
        return EngineFacts(
            version=str(info["ServerVersion"]),
            local=on_a_socket and os.geteuid() == 0 and root_dir.is_dir() and "rootless" not in options,
            root_dir=root_dir,
            storage_driver=str(info["Driver"]),
            backing_file_system=str(dict(info.get("DriverStatus") or ()).get("Backing Filesystem", "")),
            cgroup_driver=str(info.get("CgroupDriver", "")),
            plain_owners=not options & {"userns", "rootless", "selinux"},
        )


class Answer:
    """An answer that is read while it arrives. Left unread or too late, it is cut off: the engine stops its work."""

    def __init__(self, engine: Engine, what: str, response: Any, timeout_s: float | None) -> None:
        self._engine, self._what, self._response = engine, what, response
        self.headers: Mapping[str, str] = response.headers
        self.timed_out = False
        self._timer: threading.Timer | None = None
        if timeout_s is not None:
            self._timer = threading.Timer(timeout_s, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._response.close()

    def chunks(self, size: int | None = CHUNK_BYTES) -> Iterator[bytes]:
        """The body's pieces, of that size or as they come; SandboxError where the engine breaks off."""
        with self._engine.asked(self._what):
            try:
                yield from self._response.iter_content(size)
            except (OSError, AttributeError, ValueError):
                # Cut off by our own timer: what was read so far is all there is, and `timed_out` says so.
                if not self.timed_out:
                    raise

    def json_lines(self) -> Iterator[dict[str, Any]]:
        """The body's JSON objects, one a line, as builds report; an unfinished last line is dropped."""
        rest = b""
        for chunk in self.chunks(None):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    yield json.loads(line)

    def _expire(self) -> None:
        self.timed_out = True
        # Closing alone would not wake the thread that reads: the SDK's stream shuts the socket down first.
        stream: docker.types.CancellableStream[bytes] = docker.types.CancellableStream(iter(()), self._response)
        try:
            stream.close()
        except (AttributeError, OSError):
            return  # it had come to its end in this moment


class Attached:
    """The bytes that a container prints, while it prints them. Unread, they make the program wait."""

    def __init__(self, engine: Engine, stream: Any) -> None:
        self._engine, self._stream, self._closed = engine, stream, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Takes nothing more: what the program prints from here on is thrown away, and it need not wait."""
        if not self._closed:
            self._closed = True
            # The SDK's response holds the same socket; closing our end of it alone would not hang up.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._stream.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)
            self._stream.close()

    def read(self, timeout_s: float) -> bytes | None:
        """The next bytes; None where none come within the time, b"" when the container has stopped."""
        with self._engine.asked("pass on the output"):
            if isinstance(self._stream, ssl.SSLSocket):  # it may hold bytes that `select` does not know of
                self._stream.settimeout(timeout_s)
                try:
                    return self._stream.recv(CHUNK_BYTES)
                except TimeoutError:
                    return None
            if not select.select([self._stream], [], [], timeout_s)[0]:
                return None
            return os.read(self._stream.fileno(), CHUNK_BYTES)


def _check(what: str, response: Any) -> None:
    if response.status_code < 400:
        return
    try:
        reason = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        reason = response.text.strip() or f"status {response.status_code}"
    raise EngineRefused(f"the engine could not {what}: {reason}", response.status_code)
