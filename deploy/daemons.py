"""GreenGrader's own daemons as processes of the embedded stack."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from greengrader.config import PREFIX, Settings
from processes import Detached

PROJECT = Path(__file__).resolve().parent.parent
READY = re.compile(rb"^\S+ INFO \S+ ready\b", re.MULTILINE)
READY_LIMIT_S = 60
# Who knows which of these is the stack's decision: a worker has no database.
ADDRESSES = frozenset({"database_url", "mqtt_url", "submit_host", "submit_port", "submit_user", "submit_password"})


@dataclass(frozen=True)
class Daemon:
    """A script that runs for as long as the stack does; `environment` is all that it knows."""

    command: tuple[str, ...]  # script and arguments
    state: Path
    environment: Mapping[str, str]
    stop_limit_s: float = 60

    @property
    def name(self) -> str:
        return self.command[0].removesuffix(".py")

    @property
    def process(self) -> Detached:
        """Its process, which is told from the same script's of another checkout by the script's full path."""
        log = self.state / "log" / f"{self.name}.log"
        return Detached(self.name, self.state / f"{self.name}.pid", log, str(PROJECT / self.command[0]))

    def stop(self) -> bool:
        """SIGTERM: it finishes or hands back what it has in hand. False if it did not run."""
        return self.process.stop(limit_s=self.stop_limit_s)


def start(daemons: Iterable[Daemon]) -> list[str]:
    """Names of those that were started, all at once; returns when each has logged `ready`."""
    begins = {}
    waiting = [daemon for daemon in daemons if daemon.process.pid is None]
    for daemon in waiting:
        log = daemon.process.log
        begins[daemon.name] = log.stat().st_size if log.exists() else 0
        # Not in the checkout: a `.env` there may hold what a worker must not know.
        words = [sys.executable, str(PROJECT / daemon.command[0]), *daemon.command[1:]]
        daemon.process.launch(words, environment=daemon.environment, directory=daemon.state)
    for daemon in waiting:
        ready = partial(_says_ready, daemon.process.log, begins[daemon.name])
        daemon.process.wait_until(ready, READY_LIMIT_S)
    return [daemon.name for daemon in waiting]


def environment(settings: Settings, **values: str) -> dict[str, str]:
    """What a daemon's process is started with: the settings in force but for all addresses, then `values`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    chosen = {field: str(getattr(settings, field)) for field in settings.model_fields_set - ADDRESSES}
    return inherited | {PREFIX + field.upper(): value for field, value in (chosen | values).items()}


def _says_ready(log: Path, begin: int) -> bool:
    with log.open("rb") as file:
        file.seek(begin)
        return READY.search(file.read()) is not None
