"""What the database gives and takes, a class a kind of row; db.py fills them."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from greengrader.limits import Limits


@dataclass(frozen=True)
class NewSubmission:
    """What ingest stores: `columns` as the function receive_submissions reads them, and the zip."""

    columns: dict[str, Any]
    payload: bytes | Path


@dataclass(frozen=True)
class Received:
    submission_key: int
    run_id: int


@dataclass(frozen=True)
class Run:
    """A run with what the daemons need to know of its submission and assignment."""

    run_id: int
    submission_key: int
    submission_id: int
    assignment_id: int
    state: str
    backend: str
    attempt: int
    failures: int
    autograder_digest: str | None
    worker: str | None
    error: str | None


@dataclass(frozen=True)
class Queued:
    """A dispatched run that waits for a place."""

    run_id: int
    autograder_digest: str


@dataclass(frozen=True)
class Placed:
    run_id: int
    attempt: int
    worker: str
    submission_id: int
    autograder_digest: str
    base_image: str
    cpus: float | None
    memory_bytes: int | None
    timeout_s: float | None
    network: bool | None
    archive_bytes: int
    worker_has_autograder: bool


@dataclass(frozen=True)
class Worker:
    """A row of worker_status."""

    worker: str
    node_ip: str | None
    cpu_model_name: str | None
    cpu_cores: int | None
    memory_size: int | None
    region: str
    zone: str
    watts_min: float | None
    watts_max: float | None
    slots: int
    held: int
    draining: bool
    accepting: bool
    last_seen_at: datetime | None
    silent_s: float | None

    @property
    def free(self) -> int:
        return max(self.slots - self.held, 0)


@dataclass(frozen=True)
class PodJob:
    """What a run's pod is made from; None in a limit: the setting decides."""

    autograder_digest: str
    base_image: str
    cpus: float | None
    memory_bytes: int | None
    timeout_s: float | None
    network: bool | None
    files: bytes  # tar.gz of submission/ and submission_metadata.json

    def limits(self, default: Limits) -> Limits:
        """The settings' limits, with those that the assignment overrides."""
        return default.overridden(cpus=self.cpus, memory_bytes=self.memory_bytes, timeout_s=self.timeout_s,
                                  network=self.network)  # fmt: skip


@dataclass(frozen=True)
class ResultContext:
    """What the receiver needs beside the message: Gradescope's score, and the machine's place and watts."""

    submission_id: int
    gradescope_score: float | None
    autograder_warnings: list[str]
    node_ip: str | None
    region: str | None
    zone: str | None
    watts_min: float | None
    watts_max: float | None

    def at(self, *, node_ip: str | None, region: str | None, zone: str | None) -> "ResultContext":
        """The same, for a run on a node of a cluster: its place is the node's, its watts are unknown."""
        return replace(self, node_ip=node_ip, region=region, zone=zone)
