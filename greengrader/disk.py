"""Keeps the files of one run within their limit where the engine has no disk quotas (overlay2 on anything but xfs).

A limit for each single file holds at any time (ulimit fsize, set by sandbox.py). Their sum is measured once a second,
or less often where that takes long, and at the end; what is written between two looks comes on top. Files that were
removed but are still open escape the measurement. For those, and for everything else, there is a floor: below it the
machine itself is in danger, and the run ends as a fault of ours.
"""

import os
import subprocess
import time
from pathlib import Path

from greengrader.engine import Engine
from greengrader.errors import SandboxError
from greengrader.layer import Layer
from greengrader.limits import MEBIBYTE

FLOOR_BYTES = 1024 * MEBIBYTE
PAUSE_FACTOR, PAUSE_MAX_S = 5, 10.0  # a measurement that took long is not repeated at once
FEW_FILES = 1000  # are measured right here, in a fraction of a millisecond for most runs


class DiskWatch:
    """Looks after one container; made before its start."""

    def __init__(self, engine: Engine, container_id: str, layer: Layer | None, limit_bytes: int) -> None:
        self._engine, self._container_id, self._layer, self._limit_bytes = engine, container_id, layer, limit_bytes
        self._next_look = 0.0

    def raise_if_disk_is_full(self) -> None:
        """SandboxError where the machine itself is in danger."""
        free_bytes = self._free_bytes()
        if free_bytes is not None and free_bytes < FLOOR_BYTES:
            raise SandboxError(f"only {free_bytes // MEBIBYTE} MiB are free on the container engine's disk")

    def exceeded(self) -> bool:
        """True where the run's files have outgrown the limit."""
        began = time.monotonic()
        if began < self._next_look:
            return False
        used_bytes = self._used_bytes()
        ended = time.monotonic()
        pause_s = PAUSE_MAX_S if self._layer is None else min(PAUSE_FACTOR * (ended - began), PAUSE_MAX_S)
        self._next_look = ended + pause_s
        return used_bytes > self._limit_bytes

    def _free_bytes(self) -> int | None:
        if not self._engine.facts.local:
            return None
        status = os.statvfs(self._engine.facts.root_dir)
        return status.f_bavail * status.f_frsize

    def _used_bytes(self) -> int:
        if self._layer is not None:
            used_bytes = _occupied_bytes(self._layer.upper, FEW_FILES)
            if used_bytes is not None:
                return used_bytes
            # In a process of its own, so that a million files do not hold up our other threads; errors are files that
            # went meanwhile.
            command = ["du", "--summarize", "--block-size=1", "--one-file-system", "--", str(self._layer.upper)]
            printed = subprocess.run(command, capture_output=True, check=False).stdout.split()
            return int(printed[0]) if printed else 0
        query = {"all": "true", "size": "true", "filters": f'{{"id":["{self._container_id}"]}}'}
        found = self._engine.ask("measure the container", "GET", "/containers/json", params=query)
        return int(found[0].get("SizeRw", 0)) if found else 0


def _occupied_bytes(folder: Path, most_files: int) -> int | None:
    """What the files below a folder occupy: many tiny ones take more than they hold, one with holes takes less. None
    where there are more than so many files and folders, or where they are nested too deep to be named."""
    folders, count, occupied_bytes = [folder], 0, 0
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > most_files:
                        return None
                    status = entry.stat(follow_symlinks=False)
                    occupied_bytes += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
    except OSError:  # it went in this moment, or its path is too long
        return None
    return occupied_bytes
