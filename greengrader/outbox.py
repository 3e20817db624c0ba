"""Finished results on disk, until the broker has them: a worker that is killed sends them again when it is back."""

import os
from collections.abc import Iterator
from pathlib import Path


class Outbox:
    """A folder with one file a result, named RUN-ATTEMPT."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        for half_written in directory.glob("*.part"):
            half_written.unlink()

    def put(self, run_id: int, attempt: int, message: bytes) -> None:
        """Keeps the message so that it survives a crash of this machine."""
        part = self._directory / f"{run_id}-{attempt}.part"
        with part.open("wb") as file:
            file.write(message)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._directory / f"{run_id}-{attempt}")
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name
        finally:
            os.close(descriptor)

    def remove(self, run_id: int, attempt: int) -> None:
        (self._directory / f"{run_id}-{attempt}").unlink(missing_ok=True)

    def waiting(self) -> Iterator[tuple[int, int, bytes]]:
        """(run id, attempt, message) of all that was not confirmed, oldest first."""
        for path in sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime):
            run_id, attempt = path.name.split("-")
            yield int(run_id), int(attempt), path.read_bytes()
