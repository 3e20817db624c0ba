"""What one run may use (the sandbox and the podspec enforce the same numbers), and what a payload may hold."""

from dataclasses import dataclass, replace
from typing import Any, Self

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Limits of a run; the defaults are Gradescope's where it publishes one."""

    timeout_s: float = 600.0  # wall clock, from the start of run_autograder
    cpus: float = 0.5  # cores
    memory_bytes: int = 768 * MEBIBYTE  # swap included
    pids: int = 512
    open_files: int = 4096  # of one process
    disk_bytes: int = 2048 * MEBIBYTE  # written to the container's file system
    network: bool = False
    log_bytes: int = MEBIBYTE  # printed output that is kept
    results_bytes: int = 16 * MEBIBYTE  # results.json
    runtime: str | None = None  # of the container engine; None: its default

    def overridden(self, **given: Any) -> Self:
        """These limits, with the given ones that are not None in their place."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class PayloadLimits:
    """What a zip may hold; anything beyond is refused before it is unpacked."""

    entries: int = 100_000  # files and folders
    unpacked_bytes: int = 2048 * MEBIBYTE
    ratio: float = 200.0  # unpacked to packed, of the whole archive, where it unpacks to more than 10 MiB
    depth: int = 40  # folders within folders
    name_bytes: int = 1024
    metadata_bytes: int = 4 * MEBIBYTE  # submission_metadata.json; it repeats the results of the previous submission
    results_bytes: int = 16 * MEBIBYTE  # Gradescope's results.json
