"""What a pod's state means for its run. Pure: facts in, a judgement with a sentence for people out.

Theory of operation. A pod is one of four things: pending, stuck (the cluster keeps trying what will hardly succeed: the
caller decides for how long), running, or ended. Every end has a kind, and each kind is either the student's outcome or
our error. In doubt it is our error: a run that is tried again costs minutes, a wrong outcome a score.

Kubelets differ in what they leave behind. A pod that ran into its deadline or was deleted may still say "running" or
even "waiting" of its containers (1.20), or have lost all of them (an evicted pod, up to 1.21); so what is said of the
pod as a whole comes first. A node that is not heard of changes nothing by itself: it may come back with the results.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from greengrader.kube.podstate import ContainerState, PodState
from greengrader.kube.template import AUTOGRADER, UPLOAD

__all__ = ["End", "Ended", "Pending", "PodState", "Running", "Stuck", "classify"]

NO_MORE = "no more is said"
KILLED = 128 + 9  # exit status of what SIGKILL has ended
PRECISION = timedelta(seconds=1)  # containers' times are cut to whole seconds

# Why a container waits, by kubelets.
HOPELESS = frozenset(("InvalidImageName", "ErrImageNeverPull"))
IMAGE_TROUBLE = HOPELESS | {
    "ErrImagePull",
    "ImagePullBackOff",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
START_TROUBLE = frozenset(
    ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PostStartHookError")
)
NEVER_STARTED = frozenset(("ContainerCannotRun", "StartError"))  # of a termination, by dockershim and by containerd
# Kubelets' own words, the same in 1.20 and now.
OWN_FILES = re.compile(r"exceeds the limit|exceeded its local ephemeral storage|exceeds the total limit of containers")
NODE_ENDS = frozenset(("NodeLost", "NodeShutdown", "Shutdown", "Terminated"))  # reasons of a whole pod
EVICTIONS = frozenset(("Evicted", "Preempting"))
# https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
DISRUPTIONS_OF_NODES = frozenset(("DeletionByTaintManager", "DeletionByPodGC"))


class End(StrEnum):
    # outcomes: what the student's program did
    COMPLETED = "completed"  # exit status 0
    EXITED = "exited"  # another one; results.json may be there all the same
    OUT_OF_MEMORY = "out of memory"  # some process was killed for it; valid results count all the same
    TIMED_OUT = "timed out"
    TOO_MUCH_DISK = "too much disk"
    # errors: ours, to be tried again
    FETCH_FAILED = "fetch failed"  # the submission did not come from storage
    UPLOAD_FAILED = "upload failed"  # the results did not get to storage
    IMAGE_UNAVAILABLE = "image unavailable"
    CANNOT_START = "cannot start"
    UNSCHEDULABLE = "unschedulable"
    STARTED_TOO_LATE = "started too late"  # the pod's deadline left the autograder less time than it has
    REFUSED = "refused"  # by the node that it had been given to
    EVICTED = "evicted"  # for the node's or another pod's sake
    NODE_LOST = "node lost"
    DELETED = "deleted"  # by somebody else
    UNKNOWN = "unknown"

    @property
    def is_outcome(self) -> bool:
        """True where the run is graded by what it left, False where the fault is ours."""
        return self in (End.COMPLETED, End.EXITED, End.OUT_OF_MEMORY, End.TIMED_OUT, End.TOO_MUCH_DISK)


@dataclass(frozen=True, slots=True)
class Pending:
    """On its way to its start; nothing is wrong yet."""

    sentence: str
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Stuck:
    """It has not started, and the cluster says why; it keeps trying. `end` is what it is when the caller gives up."""

    end: End
    sentence: str
    since: datetime | None  # at the earliest
    is_hopeless: bool = False  # no patience will help this pod


@dataclass(frozen=True, slots=True)
class Running:
    """The autograder has started; where `finished_at` is set it has ended, and its results are being stored."""

    sentence: str
    node: str | None
    started_at: datetime | None
    finished_at: datetime | None = None
    node_silent_since: datetime | None = None  # nobody knows whether it still runs


@dataclass(frozen=True, slots=True)
class Ended:
    """It will not change any more, or not for the better. Times and status are the autograder's, None where unknown."""

    end: End
    sentence: str
    exit_status: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


def classify(
    pod: PodState, *, deleted: bool = False, timeout_s: float | None = None
) -> Pending | Stuck | Running | Ended:
    """What `pod` means for its run; `deleted`: it was last seen so, and is gone now.

    `timeout_s` is the limit of run_autograder. It tells an autograder that was killed for its time from one that was
    killed by something else; where it is not given, only the pod's deadline means that.
    """
    if pod.phase in ("Succeeded", "Failed") or _own_containers_ended(pod):
        return _ended(pod, timeout_s)
    if deleted or pod.deletion_timestamp is not None or pod.reason in NODE_ENDS:
        return _taken_away(pod)
    autograder, upload = pod.container(AUTOGRADER), pod.container(UPLOAD)
    if autograder is not None and autograder.reason in NEVER_STARTED:
        return _ended(pod, timeout_s)  # its sidecar waits in vain
    if upload is not None and upload.has_failed:
        return _upload_failed(pod, upload)
    if autograder is not None and autograder.started_at is not None:
        return _running(pod, autograder)
    return _not_started(pod)


def _running(pod: PodState, autograder: ContainerState) -> Running:
    if autograder.has_ended:
        what = f"on {_node(pod)}: the autograder has ended, its results are being stored"
    elif pod.node_silent_since is not None:
        what = f"on {_node(pod)}, which has not been heard of since {pod.node_silent_since:%H:%M:%S} UTC"
    else:
        what = f"on {_node(pod)}: the autograder runs"
    return Running(what, pod.node, autograder.started_at, autograder.finished_at, pod.node_silent_since)


def _not_started(pod: PodState) -> Pending | Stuck:
    if pod.unscheduled_reason == "Unschedulable":
        why = f"no node can take it now: {pod.unscheduled_message or 'the scheduler does not say why'}"
        return Stuck(End.UNSCHEDULABLE, why, pod.unscheduled_since or pod.created_at)
    if pod.unscheduled_reason is not None:  # SchedulingGated: Kueue lets it in when its turn has come
        return Pending(f"it is held back: {pod.unscheduled_message or pod.unscheduled_reason}")
    if pod.node is None:
        return Pending("it waits for a node")
    since = pod.scheduled_at or pod.created_at
    for container in pod.containers:
        reason = container.waiting_reason or ""
        why = f"{reason}: {container.waiting_message or NO_MORE}"
        if reason in IMAGE_TROUBLE:
            sentence = f"{_node(pod)} cannot get the image of container {container.name}: {why}"
            return Stuck(End.IMAGE_UNAVAILABLE, sentence, since, reason in HOPELESS)
        if reason in START_TROUBLE:
            return Stuck(End.CANNOT_START, f"{_node(pod)} cannot start container {container.name}: {why}", since)
    if any(container.is_init and container.is_running for container in pod.containers):
        return Pending(f"on {_node(pod)}: the submission is fetched", pod.node)
    return Pending(f"on {_node(pod)}: images are pulled and containers created", pod.node)


def _own_containers_ended(pod: PodState) -> bool:
    own = [container for container in pod.containers if not container.is_init]
    return bool(own) and all(container.has_ended for container in own)


def _ended(pod: PodState, timeout_s: float | None) -> Ended:
    autograder, upload = pod.container(AUTOGRADER), pod.container(UPLOAD)
    if _taken_before_its_end(pod, autograder):
        return _taken_away(pod)
    if pod.reason == "DeadlineExceeded":
        return _deadline(pod, autograder, timeout_s)
    if autograder is None or not autograder.has_ended:
        return _never_ended(pod, autograder)
    if autograder.reason in NEVER_STARTED:
        return _of(
            autograder,
            End.CANNOT_START,
            f"{_node(pod)} could not start the autograder: {autograder.message or NO_MORE}",
        )
    if _used_its_time(autograder, autograder.finished_at, timeout_s):
        return _of(autograder, End.TIMED_OUT, f"the autograder was stopped after {timeout_s:g} s")
    if upload is not None and upload.has_failed:
        return _upload_failed(pod, upload)
    if autograder.reason == "OOMKilled":
        return _of(autograder, End.OUT_OF_MEMORY, "the autograder used more memory than it may, and was killed for it")
    kind = End.EXITED if autograder.exit_code else End.COMPLETED
    return _of(autograder, kind, f"the autograder ended with exit status {autograder.exit_code}")


def _never_ended(pod: PodState, autograder: ContainerState | None) -> Ended:
    """The pod has ended, its autograder has not: it never began, or nobody knows."""
    if autograder is None or autograder.started_at is None:
        for container in pod.containers:
            if container.is_init and container.has_failed:
                return Ended(End.FETCH_FAILED, f"the submission could not be fetched: {_how(container)}")
    if pod.reason is not None:
        return Ended(End.REFUSED, f"{_node(pod)} did not run it: {pod.reason}: {pod.message or NO_MORE}")
    said = pod.message or (autograder.message if autograder else None) or "the cluster does not say"
    return Ended(End.UNKNOWN, f"nobody knows how the autograder ended: {said}")


def _deadline(pod: PodState, autograder: ContainerState | None, timeout_s: float | None) -> Ended:
    """The pod as a whole took too long; its containers were killed, whatever is still said of them."""
    if autograder is None or autograder.started_at is None:
        return Ended(End.STARTED_TOO_LATE, f"on {_node(pod)} the autograder had not started when the pod's time was up")
    if _used_its_time(autograder, autograder.finished_at or pod.deadline_at, timeout_s):
        return _of(autograder, End.TIMED_OUT, f"the autograder was stopped after {timeout_s:g} s")
    finished_at, deadline_at = autograder.finished_at, pod.deadline_at
    ended_early = finished_at is not None and deadline_at is not None and finished_at < deadline_at - PRECISION
    if ended_early or autograder.exit_code not in (None, KILLED):
        return _of(autograder, End.UPLOAD_FAILED, "the results were not stored when the pod's time was up")
    if timeout_s is not None:
        sentence = "the pod's time was up before the autograder's, because it had started late"
        return _of(autograder, End.STARTED_TOO_LATE, sentence)
    return _of(autograder, End.TIMED_OUT, "the autograder was still running when the pod's time was up")


def _used_its_time(autograder: ContainerState, killed_at: datetime | None, timeout_s: float | None) -> bool:
    """True where the autograder was killed, and as late as its limit."""
    if timeout_s is None or autograder.exit_code not in (None, KILLED) or autograder.reason == "OOMKilled":
        return False
    if autograder.started_at is None or killed_at is None:
        return False
    return killed_at - autograder.started_at > timedelta(seconds=timeout_s) - PRECISION


def _upload_failed(pod: PodState, upload: ContainerState) -> Ended:
    sentence = f"the results could not be stored: {_how(upload)}"
    autograder = pod.container(AUTOGRADER)
    return _of(autograder, End.UPLOAD_FAILED, sentence) if autograder else Ended(End.UPLOAD_FAILED, sentence)


def _taken_before_its_end(pod: PodState, autograder: ContainerState | None) -> bool:
    """True where somebody ended the pod, and its autograder did not end before by itself."""
    if pod.reason in EVICTIONS or pod.reason in NODE_ENDS:
        return True
    if autograder is None or autograder.finished_at is None:
        return pod.disruption is not None or pod.deletion_requested_at is not None
    if pod.deletion_requested_at is not None:
        return autograder.finished_at >= pod.deletion_requested_at
    return pod.disruption is not None and autograder.exit_code in (None, KILLED, 128 + 15)


def _taken_away(pod: PodState) -> Ended:
    """The end of a pod that somebody removed or is removing."""
    said = pod.message or pod.disruption_message
    why = f": {said}" if said else ""
    if pod.reason == "Evicted" and OWN_FILES.search(said or ""):
        kind, sentence = End.TOO_MUCH_DISK, f"the run was stopped because its files grew too large{why}"
    elif pod.reason in EVICTIONS:
        kind, sentence = End.EVICTED, f"{_node(pod)} put it out{why}"
    elif pod.reason in NODE_ENDS or pod.disruption in DISRUPTIONS_OF_NODES:
        kind, sentence = End.NODE_LOST, f"{_node(pod)} was lost or shut down{why}"
    elif pod.disruption is not None:
        kind, sentence = End.EVICTED, f"the cluster put it out ({pod.disruption}){why}"
    elif pod.node_silent_since is not None:
        since = f"{pod.node_silent_since:%H:%M:%S} UTC"
        kind, sentence = (
            End.NODE_LOST,
            f"{_node(pod)} has not been heard of since {since}, and its pod was deleted",
        )
    else:
        kind, sentence = End.DELETED, "somebody deleted the pod before its end"
    autograder = pod.container(AUTOGRADER)
    return _of(autograder, kind, sentence) if autograder else Ended(kind, sentence)


def _node(pod: PodState) -> str:
    return pod.node or "its node"


def _of(autograder: ContainerState, kind: End, sentence: str) -> Ended:
    return Ended(kind, sentence, autograder.exit_code, autograder.started_at, autograder.finished_at)


def _how(container: ContainerState) -> str:
    """How a container ended, in words."""
    words = f"container {container.name} ended with exit status {container.exit_code}"
    if container.reason not in (None, "Error", "Completed"):
        words += f" ({container.reason})"
    return f"{words}: {container.message}" if container.message else words
