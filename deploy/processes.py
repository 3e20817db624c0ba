"""Processes of the embedded stack: started detached, found again by their pid file, stopped by pid.

Everything here waits for a condition with a deadline; what fails says so with the last lines of the log.
"""

import contextlib
import os
import pwd
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from greengrader.errors import ServiceUnavailable

POLL_S = 0.02
TAIL_LINES = 15

# Children that this very process started: they stay zombies until somebody asks for their exit status.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Detached:
    """A process that outlives the one that starts it.

    `marker` stands in its command line and in no other's: a pid in a file may be somebody else's by now.
    """

    name: str
    pid_file: Path
    log: Path
    marker: str

    @property
    def pid(self) -> int | None:
        """Its pid while it runs, else None."""
        try:
            pid = int(self.pid_file.read_text())
            if pid in _children and _children[pid].poll() is not None:
                return None
            command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if self.marker.encode() in command_line else None

    def launch(
        self,
        command: Sequence[str | Path],
        *,
        user: pwd.struct_passwd | None = None,
        environment: Mapping[str, str] | None = None,
        directory: Path = Path("/"),
    ) -> None:
        """Starts it in a session of its own, output appended to its log; `wait_until` tells when it is up."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [os.fspath(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env=environment,
                start_new_session=True,
                **as_user(user),
            )
        _children[child.pid] = child
        write_private(self.pid_file, f"{child.pid}\n")

    def wait_until(self, ready: Callable[[], bool], limit_s: float) -> None:
        """Returns as soon as `ready()`; ServiceUnavailable with the log's end when it dies first or takes too long."""
        deadline = time.monotonic() + limit_s
        while not ready():
            if not self._is_alive():
                raise ServiceUnavailable(f"{self.name} ended at once; the end of {self.log}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"{self.name} is not up after {limit_s:g} s; {self.log} ends:\n{self.tail()}")
            time.sleep(POLL_S)

    def _is_alive(self) -> bool:
        """Whether the process of this very launch exists; an exec under way has no command line yet."""
        pid = int(self.pid_file.read_text())
        return _children[pid].poll() is None if pid in _children else Path(f"/proc/{pid}").exists()

    def stop(self, *signals: signal.Signals, limit_s: float = 20) -> bool:
        """Ends it: each signal in turn until it is gone, SIGTERM and SIGKILL by default. False if it did not run."""
        pid = self.pid
        if pid is not None:
            for number in signals or (signal.SIGTERM, signal.SIGKILL):
                _send(pid, number)
                if _is_gone(pid, limit_s):
                    break
            else:
                raise ServiceUnavailable(f"{self.name} (pid {pid}) cannot be stopped")
            _reap(pid)
        self.pid_file.unlink(missing_ok=True)
        return pid is not None

    def tail(self) -> str:
        """The last lines of its log, indented."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            lines = []
        return "\n".join(f"    {line}" for line in lines) or "    (empty)"


class UserArguments(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def as_user(user: pwd.struct_passwd | None) -> UserArguments:
    """Arguments for subprocess that give up root for good; none where `user` is None."""
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def as_root() -> list[str]:
    """What to put before a command that needs root."""
    return [] if os.geteuid() == 0 else ["sudo"]


def write_private(path: Path, text: str) -> None:
    """Replaces the file in one step; nobody else can ever read it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.replace(path)


def kill_at_once(pid: int) -> None:
    """SIGKILL to a process and its children, whom it can then tell nothing; returns when all are gone."""
    family = [pid, *_children_of(pid)]
    for member in family:
        _send(member, signal.SIGKILL)
    for member in family:
        _is_gone(member, 10)
        _reap(member)


def _reap(pid: int) -> None:
    if pid in _children:
        _children.pop(pid).wait()


def _children_of(pid: int) -> list[int]:
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # pid (name) state parent …; a name may hold blanks and parentheses
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(stat.parent.name))
    return children


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:  # started through sudo
        subprocess.run([*as_root(), "sh", "-c", f"kill -{number.value} {pid}"], check=False)


def _is_gone(pid: int, limit_s: float) -> bool:
    """True as soon as the process has ended, be it our child or not; False after the time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with contextlib.closing(os.fdopen(descriptor)):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(limit_s * 1000))
