"""Where a service of the embedded stack lives: its user, directory, port and passwords, its program."""

import contextlib
import hashlib
import json
import os
import pwd
import random
import secrets
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from greengrader.errors import ServiceUnavailable
from processes import write_private

OUTSIDE = Path("/var/lib/greengrader-embedded")
LOOPBACK = "127.0.0.1"
# Below Linux's range for outgoing connections, so that none of those takes a port that we keep while we are down.
PORTS = range(15_000, 32_000)


class Kept:
    """Port and passwords of a service: chosen at random once, kept in a private file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def port(self) -> int:
        return int(self._read().get("port", 0))

    def choose_port(self) -> None:
        """Keeps the port that it has unless somebody else took it meanwhile."""
        candidates = [self.port, *random.sample(PORTS, 100)]
        port = next((port for port in candidates if port and _is_free(port)), None)
        if port is None:
            raise ServiceUnavailable(f"no free port on {LOOPBACK} between {PORTS.start} and {PORTS.stop}")
        self._write({**self._read(), "port": str(port)})

    def password(self, account: str) -> str:
        kept = self._read()
        name = f"password of {account}"
        if name not in kept:
            self._write(kept | {name: secrets.token_hex(16)})
        return self._read()[name]

    def _read(self) -> dict[str, str]:
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}

    def _write(self, kept: dict[str, str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_private(self._path, json.dumps(kept, indent=2) + "\n")


def service_user(name: str) -> pwd.struct_passwd | None:
    """The system's user of that name, made if missing; None where we are not root, and run everything as ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(name)
    except KeyError:
        shell = ["--shell", "/usr/sbin/nologin", "--home-dir", "/nonexistent", "--no-create-home"]
        done = subprocess.run(["useradd", "--system", *shell, name], capture_output=True, text=True)
        if done.returncode not in (0, 9):  # 9: somebody else was faster
            raise ServiceUnavailable(f"cannot make the user {name}: {done.stderr.strip()}") from None
        return pwd.getpwnam(name)


def place(path: Path, user: pwd.struct_passwd | None) -> Path:
    """The directory behind `path`, made if missing, private to `user`.

    Where a parent is closed to that user, it lies under OUTSIDE and `path` links there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = OUTSIDE / key_of(path)
    if path.is_symlink() and path.readlink() != outside:
        raise ServiceUnavailable(f"{path} belongs to another checkout ({path.readlink()}): remove {path.parent}")
    if not path.is_symlink() and (path.exists() or user is None or others_may_enter(path.parent)):
        real = path
    else:
        real = outside
        OUTSIDE.mkdir(parents=True, exist_ok=True)
    if real == outside and not path.is_symlink():
        _clear(real)
        path.symlink_to(real)
    real.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        os.chown(real, user.pw_uid, user.pw_gid)
    return real


def _clear(real: Path) -> None:
    """Deletes what is left of a state directory that somebody removed, link and passwords with it."""
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if os.fsencode(real) in command_line.read_bytes():
                pid = command_line.parent.name
                raise ServiceUnavailable(f"pid {pid} still works in {real}, whose state directory is gone: kill {pid}")
    shutil.rmtree(real, ignore_errors=True)


def others_may_enter(directory: Path) -> bool:
    """Whether every user may pass through to what lies in it."""
    real = directory.resolve()
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (real, *real.parents))


def remove(directory: Path, link: Path) -> None:
    """Deletes a service's directory, and what `place` put outside of it."""
    if link.is_symlink() and link.readlink() == OUTSIDE / key_of(link):
        shutil.rmtree(link.readlink(), ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def key_of(path: Path) -> str:
    """A short name for a path, to tell this service from those of other checkouts."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def program(name: str) -> str:
    """Its path; a daemon's is often in no ordinary user's PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ServiceUnavailable(f"{name} is not installed: run deploy/install.sh")
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
