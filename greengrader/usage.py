"""CPU time and peak memory of one run.

A container's own cgroup vanishes in the moment of its exit, and its totals with it. So each run gets a parent cgroup of
its own (`cgroup_parent`), which the engine creates, which outlives the container and adds up everything that ran below
it: exact for a run of any length, and two runs at once do not mix. The engine's own start of the container (runc, some
20 ms of CPU time and 4 MB) happens in the same group and is counted. Peak memory includes the page cache, as the
limit does.

That needs an engine on this machine that manages cgroups itself (driver `cgroupfs`). Elsewhere the engine's statistics
are sampled while the container runs, and what it used after the last sample is missing from the totals.
"""

import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from greengrader.engine import Engine

log = logging.getLogger("greengrader")

ROOT = "greengrader"
"""Our folder in each cgroup hierarchy. It stays; the groups below it come and go with the runs."""


@dataclass(frozen=True)
class Usage:
    """What a run used. `method`: "cgroup" (exact) or "stats" (sampled, may miss the end)."""

    cpu_s: float
    peak_memory_bytes: int | None
    method: str


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup file system: version 1 has one for each set of controllers, version 2 has one for all."""

    folder: Path
    version: int
    controllers: frozenset[str]


class Meter:
    """Reads what one container used; `key` names the run among all runs of this machine."""

    def __init__(self, engine: Engine, key: str) -> None:
        self._engine, self._key = engine, key
        self.cgroup_parent = f"/{ROOT}/{key}" if engine.facts.has_readable_cgroups else None
        self._sampled = Usage(0.0, None, "stats")

    @property
    def is_exact(self) -> bool:
        """True once the run's own cgroup is there; the engine creates it when the container starts."""
        return self.cgroup_parent is not None and any((one.folder / ROOT / self._key).is_dir() for one in hierarchies())

    def sample(self, container_id: str) -> None:
        """Notes what the engine's statistics say now; for engines whose cgroups we cannot read."""
        params = {"stream": "false", "one-shot": "true"}
        stats = self._engine.ask("give statistics", "GET", f"/containers/{container_id}/stats", params=params)
        cpu_s = stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0) / 1e9
        memory: dict[str, Any] = stats.get("memory_stats") or {}
        now_bytes = memory.get("max_usage") or memory.get("usage") or 0
        if cpu_s >= self._sampled.cpu_s:  # zeros once it has stopped
            self._sampled = Usage(cpu_s, max(now_bytes, self._sampled.peak_memory_bytes or 0) or None, "stats")

    def read(self) -> Usage:
        """What the run used, after its exit."""
        return self._sampled if self.cgroup_parent is None else read_cgroup(self._key) or self._sampled

    def forget(self) -> None:
        """Removes the run's cgroups, after its container."""
        if self.cgroup_parent is not None:
            remove_cgroup(self._key)


def read_cgroup(key: str, among: tuple[Hierarchy, ...] | None = None) -> Usage | None:
    """The totals of the run's cgroup; None where it is not there or does not account CPU time."""
    cpu_s = peak_memory_bytes = None
    for one in hierarchies() if among is None else among:
        folder = one.folder / ROOT / key
        if one.version == 1 and "cpuacct" in one.controllers:
            nanoseconds = _number(folder / "cpuacct.usage")
            cpu_s = None if nanoseconds is None else nanoseconds / 1e9
        elif one.version == 2 and cpu_s is None:
            microseconds = _number(folder / "cpu.stat", "usage_usec")
            cpu_s = None if microseconds is None else microseconds / 1e6
        if one.version == 1 and "memory" in one.controllers:
            peak_memory_bytes = _number(folder / "memory.max_usage_in_bytes")
        elif one.version == 2 and peak_memory_bytes is None:
            peak_memory_bytes = _number(folder / "memory.peak")  # Linux 5.19 and later
    return None if cpu_s is None else Usage(cpu_s, peak_memory_bytes, "cgroup")


def remove_cgroup(key: str, among: tuple[Hierarchy, ...] | None = None) -> None:
    """Removes the run's cgroup, and what a crash left below it, from all hierarchies; none there is no fault."""
    for one in hierarchies() if among is None else among:
        for folder, _, _ in os.walk(one.folder / ROOT / key, topdown=False):
            try:
                Path(folder).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:  # a process is still in it: the reaper comes again
                log.warning("cgroup stays key=%s reason=%s", key, error.strerror)
                return


def cgroup_keys(among: tuple[Hierarchy, ...] | None = None) -> set[str]:
    """The keys of all runs that have a cgroup on this machine."""
    keys: set[str] = set()
    for one in hierarchies() if among is None else among:
        folder = one.folder / ROOT
        if folder.is_dir():
            keys.update(entry.name for entry in folder.iterdir() if entry.is_dir())
    return keys


@cache
def hierarchies() -> tuple[Hierarchy, ...]:
    """The cgroup file systems of this machine, version 1 first."""
    return parse_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))


def parse_mounts(mountinfo: str) -> tuple[Hierarchy, ...]:
    """The cgroup file systems in the text of /proc/self/mountinfo, version 1 first."""
    found = []
    for line in mountinfo.splitlines():
        place, _, kind = line.partition(" - ")
        folder = Path(place.split()[4])
        file_system, _, options = kind.split(maxsplit=2)
        if file_system == "cgroup":
            found.append(Hierarchy(folder, 1, frozenset(options.split(","))))
        elif file_system == "cgroup2":
            found.append(Hierarchy(folder, 2, frozenset()))
    return tuple(sorted(found, key=lambda one: one.version))


def _number(file: Path, key: str | None = None) -> int | None:
    """The number in a cgroup's file, or the one behind `key` in a file of lines "key number"."""
    try:
        text = file.read_text(encoding="ascii")
    except OSError:
        return None
    if key is None:
        return int(text)
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key} ")), None)
