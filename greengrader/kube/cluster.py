"""The connection to a Kubernetes cluster: pods, their logs and the nodes, in the API's own JSON.

The one importer of the Kubernetes client. The client reads the kubeconfig, knows all its kinds of credentials and sets
up TLS and proxies. The calls are those of the documented REST interface, the same from 1.20 on: the client's own
methods turn every answer into objects, and change from one release to the next.

Threads may share a Cluster. A call that is refused or not answered raises one of the errors of `refused`; nothing is
tried again here but what the end of an idle connection has spoilt.
"""

import contextlib
import json
import logging
import os
import socket
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import urllib3
import yaml
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException, list_kube_config_contexts, load_incluster_config, load_kube_config
from urllib3.exceptions import HTTPError, InsecureRequestWarning, MaxRetryError, ProtocolError

from greengrader.errors import SettingsError
from greengrader.kube.node import NOTHING, Node, Resources, pod_requests
from greengrader.kube.podspec import SELECTOR
from greengrader.kube.podstate import PodState
from greengrader.kube.refused import (
    AlreadyExists,
    ClusterRefused,
    ClusterUnavailable,
    Forbidden,
    NotThere,
    PodInvalid,
    QuotaExceeded,
    Unauthorized,
    VersionGone,
    refusal,
)
from greengrader.limits import MEBIBYTE
from greengrader.output import Output

__all__ = [
    "AlreadyExists",
    "Cluster",
    "ClusterRefused",
    "ClusterUnavailable",
    "Forbidden",
    "NotThere",
    "PodInvalid",
    "QuotaExceeded",
    "Unauthorized",
    "VersionGone",
]

log = logging.getLogger("greengrader")

CONNECT_S = 10.0
SILENCE_S = 15.0  # a server that is so long behind the time at which it should have ended a watch is dead
CONNECTIONS = 32  # kept open; more threads than that open and close theirs
PAGE = 100  # pods or nodes in one answer: some MiB of JSON
LOG_TRANSFER_BYTES = 32 * MEBIBYTE  # of a log that is longer, its head and the last of these are kept
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# A peer that is gone without a word is noticed after 15 + 3 x 5 s.
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class PodEvents:
    """What happens to pods from now on, until the server ends it. `close` may be called from any thread."""

    def __init__(self, cluster: "Cluster", response: urllib3.BaseHTTPResponse) -> None:
        self._cluster, self._response = cluster, response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._response.close()

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(ADDED, MODIFIED, DELETED, BOOKMARK or ERROR, the object), as they come."""
        rest = b""
        with self._cluster.answering():
            for chunk in self._response.stream(64 * 1024):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    yield event["type"], event["object"]

    def close(self) -> None:
        """Ends the iteration, in whichever thread it waits."""
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # it has ended by itself in this moment
            self._response.shutdown()


class Cluster:
    """One namespace of a cluster that has answered."""

    def __init__(self, configuration: Configuration, namespace: str, timeout_s: float) -> None:
        self._configuration, self.namespace = configuration, namespace
        self._timeout = urllib3.Timeout(connect=CONNECT_S, read=timeout_s)
        configuration.retries = False
        configuration.connection_pool_maxsize = CONNECTIONS
        if not configuration.verify_ssl:  # the kubeconfig says so; once is enough
            warnings.simplefilter("ignore", InsecureRequestWarning)
        self._pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
        self._pool.connection_pool_kw["socket_options"] = [
            *urllib3.connection.HTTPConnection.default_socket_options,
            *KEEPALIVE,
        ]
        self._where = f"namespace {namespace}"
        self.version = "unknown"

    @classmethod
    def connect(
        cls,
        namespace: str = "",
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        timeout_s: float = 30.0,
    ) -> Self:
        """The cluster that the kubeconfig means: the given one, KUBECONFIG, ~/.kube/config, or that around this pod.

        `namespace` is the context's where none is given. SettingsError where there is no usable kubeconfig,
        ClusterUnavailable where nothing answers, Unauthorized where we are not known.
        """
        configuration = Configuration()
        own_namespace = _read_credentials(configuration, kubeconfig, context)
        cluster = cls(configuration, namespace or own_namespace, timeout_s)
        with contextlib.suppress(Forbidden):  # even this may be closed to us; it answers, though
            cluster.version = str(cluster._ask("get", "version", "GET", "/version")["gitVersion"])
        return cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._pool.clear()

    # ------------------------------------------------------------------------------------------------ pods
    def create_pod(self, manifest: Mapping[str, Any]) -> PodState:
        """The new pod; raises QuotaExceeded, AlreadyExists, PodInvalid, or ClusterRefused for what admission says.

        An answer may get lost: after ClusterUnavailable the pod may exist, and AlreadyExists may mean this very one.
        """
        return PodState.from_json(self._ask("create", "pods", "POST", self._pods_path(), body=manifest))

    def delete_pod(self, name: str, grace_s: int = 0, uid: str | None = None) -> bool:
        """False where there is no pod of that name, or only one of another uid.

        Without grace the pod is gone from the cluster at once, and its containers a moment later.
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace_s}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self._ask("delete", "pods", "DELETE", self._pods_path(name), body=options)
        except NotThere:
            return False
        except ClusterRefused as refused:
            if refused.status != 409:
                raise
            return False
        return True

    def pod(self, name: str) -> PodState | None:
        """The pod as it is now, None where there is none."""
        try:
            return PodState.from_json(self._ask("get", "pods", "GET", self._pods_path(name)))
        except NotThere:
            return None

    def pods(self, selector: str = SELECTOR) -> list[PodState]:
        """The pods that have the labels, as they are now."""
        return self.pods_and_version(selector)[0]

    def pods_and_version(self, selector: str = SELECTOR) -> tuple[list[PodState], str]:
        """The pods that have the labels, and the resourceVersion from which a watch goes on."""
        found: list[PodState] = []
        version = ""
        for page in self._pages("pods", self._pods_path(), {"labelSelector": selector}):
            found += [PodState.from_json(item) for item in page["items"]]
            version = str(page["metadata"]["resourceVersion"])
        return found, version

    def pod_events(self, selector: str, version: str, timeout_s: int) -> PodEvents:
        """What happens to such pods after `version`, for so long; VersionGone where the server has forgotten it."""
        query = {
            "watch": "true",
            "labelSelector": selector,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timeout_s),
        }
        timeout = urllib3.Timeout(connect=CONNECT_S, read=timeout_s + SILENCE_S)
        with self.answering():
            response = self._send("GET", self._pods_path(), query, timeout=timeout, headers={"Connection": "close"})
            self._check(response, "watch", "pods", self._where)
        return PodEvents(self, response)

    def pod_log(self, name: str, container: str, max_bytes: int) -> bytes:
        """What a container has printed, head and tail where that is more than `max_bytes`; b"" where it never ran.

        The API has a limit for the head alone: of a log beyond LOG_TRANSFER_BYTES the tail is that of its beginning.
        """
        kept = Output(max_bytes)
        query = {"container": container, "limitBytes": str(max(LOG_TRANSFER_BYTES, max_bytes))}
        with self.answering():
            response = self._send("GET", f"{self._pods_path(name)}/log", query)
            try:
                self._check(response, "get", "pods/log", self._where)
                for chunk in response.stream(256 * 1024):
                    kept.keep(chunk)
            except ClusterRefused as refused:
                if refused.status not in (400, 404):  # it waits for its start, or is gone
                    raise
            finally:
                response.close()
        return bytes(kept)

    # ------------------------------------------------------------------------------------------------ nodes
    def nodes(self) -> list[Node]:
        """All nodes with what is requested of them: of a large cluster many megabytes, so not for every pod.

        Where the account may not list the pods of all namespaces, those of this one have to do, and the nodes say so.
        Forbidden where it may not even list the nodes.
        """
        requested, are_all = self._requests()
        return [
            Node.from_json(item, requested.get(item["metadata"]["name"], NOTHING), knows_all_requests=are_all)
            for page in self._pages("nodes", "/api/v1/nodes", {}, "the cluster")
            for item in page["items"]
        ]

    def _requests(self) -> tuple[dict[str, Resources], bool]:
        """{node: what the pods on it have requested}, and whether these are the pods of all namespaces."""
        try:
            return self._requests_of("/api/v1/pods", "the cluster"), True
        except Forbidden as forbidden:
            log.debug("room on nodes is a guess: %s", forbidden)
        try:
            return self._requests_of(self._pods_path(), self._where), False
        except Forbidden:
            return {}, False

    def _requests_of(self, path: str, where: str) -> dict[str, Resources]:
        requested: dict[str, Resources] = defaultdict(Resources)
        going_on = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
        for page in self._pages("pods", path, going_on, where):
            for pod in page["items"]:
                requested[pod["spec"].get("nodeName", "")] += pod_requests(pod)
        return requested

    # ------------------------------------------------------------------------------------------------ calls
    def _pods_path(self, name: str | None = None) -> str:
        path = f"/api/v1/namespaces/{quote(self.namespace, safe='')}/pods"
        return path if name is None else f"{path}/{quote(name, safe='')}"

    def _pages(
        self, resource: str, path: str, query: Mapping[str, str], where: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """A list page by page."""
        token = ""
        while True:
            asked = {**query, "limit": str(PAGE), **({"continue": token} if token else {})}
            try:
                page = self._ask("list", resource, "GET", path, query=asked, where=where)
            except VersionGone as error:
                raise ClusterUnavailable(f"the cluster has forgotten a list of {resource} half way: {error}") from error
            yield page
            token = page["metadata"].get("continue") or ""
            if not token:
                return

    def _ask(
        self,
        verb: str,
        resource: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        where: str | None = None,
    ) -> dict[str, Any]:
        """The answer decoded from JSON; `verb`, `resource` and `where` are for the message where it is refused."""

        def asked_once() -> bytes:
            response = self._send(method, path, query, body)
            self._check(response, verb, resource, where or self._where)
            return response.data

        with self.answering():
            try:
                content = asked_once()
            except ProtocolError:
                # Most likely an idle connection that the server was closing just then. Nothing here does harm twice.
                content = asked_once()
            answer: dict[str, Any] = json.loads(content)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: urllib3.Timeout | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        sent = {"Accept": "application/json", "User-Agent": "greengrader", **(headers or {})}
        for setting in self._configuration.auth_settings().values():  # renews them where they are too old
            if setting["value"]:
                sent[setting["key"]] = setting["value"]
        if body is not None:
            sent["Content-Type"] = "application/json"
        return self._pool.request(
            method,
            url,
            body=None if body is None else json.dumps(body).encode(),
            headers=sent,
            timeout=timeout or self._timeout,
            preload_content=False,
            redirect=False,
        )

    def _check(self, response: urllib3.BaseHTTPResponse, verb: str, resource: str, where: str) -> None:
        if response.status >= 300:
            raise refusal(response.status, response.data, verb, resource, where)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Turns the driver's errors, and an answer that is none, into ClusterUnavailable."""
        try:
            yield
        except (HTTPError, OSError, ValueError, ConfigException) as error:
            text = f"the cluster at {self._configuration.host} does not answer: {_reason(error)}"
            raise ClusterUnavailable(text) from error


def _read_credentials(configuration: Configuration, path: Path | None, context: str | None) -> str:
    """Fills in address and credentials; returns the namespace that goes with them."""
    source = str(path) if path else os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and not path and not os.environ.get("KUBECONFIG")
    try:
        if any(Path(part).is_file() for part in source.split(os.pathsep)):
            load_kube_config(source, context, configuration)
            contexts, current = list_kube_config_contexts(source)
            chosen = next((one for one in contexts if one["name"] == context), current)
            return str(chosen["context"].get("namespace") or "default")
        if in_cluster:
            load_incluster_config(configuration)
            return (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except (ConfigException, yaml.YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())  # errors of YAML have several lines
        raise SettingsError(f"the kubeconfig {source} cannot be used: {said}") from error
    raise SettingsError(f"there is no kubeconfig at {source}; set KUBECONFIG to that of your cluster")


def _reason(error: BaseException) -> str:
    """The innermost of what urllib3 wraps into each other, without the names of its classes."""
    while isinstance(error, MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, ProtocolError) and len(error.args) == 2:
        error = error.args[1]
    return str(error).rpartition("): ")[2] or type(error).__name__
