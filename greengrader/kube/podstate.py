"""What is kept of a pod: the facts that its run depends on, read from the API's JSON. Pure.

A pod's JSON is some kilobytes, and any field of it may be missing. Two states that are equal mean the same to a run.
Times of containers are whole seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from greengrader.kube.podspec import LABEL_ATTEMPT, LABEL_RUN

MAX_MESSAGE_CHARS = 500
# A kubelet that has lost a container says so, and makes up an exit status.
LOST = frozenset(("ContainerStatusUnknown",))


@dataclass(frozen=True, slots=True)
class ContainerState:
    """One container of a pod; all None while nothing is known of it."""

    name: str
    is_init: bool
    waiting_reason: str | None = None
    waiting_message: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None  # None: it has not ended, or nobody knows how
    reason: str | None = None  # of its end
    message: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.exit_code is not None

    @property
    def is_running(self) -> bool:
        return self.started_at is not None and self.exit_code is None

    @property
    def has_failed(self) -> bool:
        return self.exit_code is not None and self.exit_code != 0

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], is_init: bool) -> Self:
        state = raw.get("state") or {}
        waiting, running, ended = (state.get(kind) or {} for kind in ("waiting", "running", "terminated"))
        return cls(
            name=str(raw.get("name", "")),
            is_init=is_init,
            waiting_reason=_text(waiting.get("reason")),
            waiting_message=_text(waiting.get("message")),
            started_at=_time(running.get("startedAt") or ended.get("startedAt")),
            finished_at=_time(ended.get("finishedAt")),
            exit_code=None if ended.get("reason") in LOST else ended.get("exitCode"),
            reason=_text(ended.get("reason")),
            message=_text(ended.get("message")),
        )


@dataclass(frozen=True, slots=True)
class PodState:
    """What is kept of a pod; `phase` is "" where none is given."""

    name: str
    uid: str
    run_id: int | None  # None: not one of ours, or its labels were changed
    attempt: int | None
    phase: str
    reason: str | None = None
    message: str | None = None
    node: str | None = None
    host_ip: str | None = None
    created_at: datetime | None = None
    scheduled_at: datetime | None = None
    unscheduled_since: datetime | None = None
    unscheduled_reason: str | None = None
    unscheduled_message: str | None = None
    node_silent_since: datetime | None = None  # the node is not heard of; its containers may run on
    disruption: str | None = None  # why the control plane ends it, from 1.26 on
    disruption_message: str | None = None
    deletion_requested_at: datetime | None = None
    deletion_timestamp: datetime | None = None  # the end of the grace that deletion gives
    deadline_at: datetime | None = None  # of the pod as a whole; None before a kubelet has taken it
    containers: tuple[ContainerState, ...] = ()

    def container(self, name: str) -> ContainerState | None:
        return next((container for container in self.containers if container.name == name), None)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """The state of a pod from the API's JSON, in which any field may be missing."""
        metadata, spec, status = (raw.get(part) or {} for part in ("metadata", "spec", "status"))
        labels = metadata.get("labels") or {}
        conditions = {condition.get("type"): condition for condition in status.get("conditions") or ()}
        scheduled = conditions.get("PodScheduled") or {}
        unscheduled = scheduled if scheduled.get("status") == "False" else {}
        disruption = conditions.get("DisruptionTarget") or {}
        disruption = disruption if disruption.get("status") == "True" else {}
        containers = tuple(
            ContainerState.from_json(container, is_init)
            for key, is_init in (("initContainerStatuses", True), ("containerStatuses", False))
            for container in status.get(key) or ()
        )
        deletion_timestamp = _time(metadata.get("deletionTimestamp"))
        grace = timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
        started_at, active_s = _time(status.get("startTime")), spec.get("activeDeadlineSeconds")
        return cls(
            name=str(metadata.get("name", "")),
            uid=str(metadata.get("uid", "")),
            run_id=_number(labels.get(LABEL_RUN)),
            attempt=_number(labels.get(LABEL_ATTEMPT)),
            phase=status.get("phase") or "",
            reason=_text(status.get("reason")),
            message=_text(status.get("message")),
            node=spec.get("nodeName") or None,
            host_ip=status.get("hostIP") or None,
            created_at=_time(metadata.get("creationTimestamp")),
            scheduled_at=_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
            unscheduled_since=_time(unscheduled.get("lastTransitionTime")),
            unscheduled_reason=_text(unscheduled.get("reason")),
            unscheduled_message=_text(unscheduled.get("message")),
            node_silent_since=_silent_since(conditions.get("Ready") or {}, containers),
            disruption=_text(disruption.get("reason")),
            disruption_message=_text(disruption.get("message")),
            deletion_requested_at=deletion_timestamp - grace if deletion_timestamp else None,
            deletion_timestamp=deletion_timestamp,
            deadline_at=started_at + timedelta(seconds=active_s) if started_at and active_s else None,
            containers=containers,
        )


def _silent_since(ready: Mapping[str, Any], containers: tuple[ContainerState, ...]) -> datetime | None:
    """Since when the node has not been heard of: its controller withdraws Ready then, and nothing else.

    A kubelet that withdraws it gives a reason (ContainersNotReady, PodCompleted).
    """
    withdrawn = ready.get("status") == "False" and not ready.get("reason")
    if withdrawn and any(container.is_running for container in containers):
        return _time(ready.get("lastTransitionTime"))
    return None


def _text(value: object) -> str | None:
    if not value:
        return None
    text = str(value).strip()
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def _time(value: object) -> datetime | None:
    """Aware, UTC; None where there is none or it cannot be read (kubelets write null for times that they lost)."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _number(label: object) -> int | None:
    return int(label) if isinstance(label, str) and label.isascii() and label.isdigit() else None
