"""A worker's folder: what it keeps on disk between two lives."""

import fcntl
import secrets
from pathlib import Path

from greengrader.errors import SettingsError
from greengrader.outbox import Outbox


class Workplace:
    """The folder of the worker `name` below the state folder; held by one process at a time."""

    def __init__(self, state_dir: Path, name: str) -> None:
        self.folder = state_dir / f"worker-{name}"
        self._sources = self.folder / "autograders"
        self._sources.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (self.folder / "lock").open("a")
        try:
            # two workers of one name would end each other's broker sessions for ever
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"worker {name} runs on this machine already: stop it first") from error
        self.engine_name = self._engine_name(name)
        self.outbox = Outbox(self.folder / "outbox")

    def source(self, digest: str) -> Path:
        """Where the staff's code lies, from its arrival until the image is built from it."""
        return self._sources / digest

    def keep_source(self, digest: str, archive: bytes) -> None:
        part = self._sources / f".{digest}"
        part.write_bytes(archive)
        part.rename(self.source(digest))

    def sources(self) -> set[str]:
        """Digests of the autograders whose source is here."""
        return {path.name for path in self._sources.glob("[0-9a-f]*")}

    def _engine_name(self, name: str) -> str:
        """The worker's name among all that use this engine: a stack under test has a worker-1 as well, and must never
        take our containers for its own orphans. Made once."""
        path = self.folder / "engine-name"
        if not path.exists():
            path.write_text(f"{name}-{secrets.token_hex(4)}", encoding="utf-8")
        return path.read_text(encoding="utf-8")
