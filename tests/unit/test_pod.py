"""What a pod's state means for its run: JSON of real pods (tests/cluster/observed/), each end once, and crafted ones.

The observed ones are of v1.20.2 with Docker, each really provoked there but `node-silent` and `node-lost`: theirs is a
node without a kubelet, with the node controller's real work. Nothing evicts in that cluster, nor does it know what
newer ones write; those are crafted after Kubernetes' source and documentation.
"""

import copy
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greengrader.kube.pod import End, Ended, Pending, PodState, Running, Stuck, classify

OBSERVED = Path(__file__).parents[1] / "cluster" / "observed"
AT = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def observed(name: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((OBSERVED / f"{name}.json").read_text())
    return raw


def judged(raw: dict[str, Any], *, deleted: bool = False, timeout_s: float | None = None) -> Any:
    return classify(PodState.from_json(raw), deleted=deleted, timeout_s=timeout_s)


def at(seconds: float) -> str:
    return f"{AT + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"


def crafted(status: dict[str, Any], *, deletion: float | None = None, deadline_s: int | None = None) -> dict[str, Any]:
    """A pod on node1 that its kubelet took at AT; `deletion`: asked for so many seconds later, with 30 s of grace."""
    metadata: dict[str, Any] = {"name": "greengrader-7-2", "uid": "u", "creationTimestamp": at(0)}
    metadata["labels"] = {"greengrader/run": "7", "greengrader/attempt": "2"}
    if deletion is not None:
        metadata |= {"deletionTimestamp": at(deletion + 30), "deletionGracePeriodSeconds": 30}
    spec = {"nodeName": "node1"} | ({"activeDeadlineSeconds": deadline_s} if deadline_s else {})
    return {"metadata": metadata, "spec": spec, "status": {"startTime": at(0), "hostIP": "10.0.0.1"} | status}


def ended(name: str, code: int, start: float, end: float, reason: str | None = None) -> dict[str, Any]:
    reason = reason or ("Error" if code else "Completed")
    times = {"startedAt": at(start), "finishedAt": at(end)}
    return {"name": name, "state": {"terminated": {"exitCode": code, "reason": reason, **times}}}


def running(name: str, start: float) -> dict[str, Any]:
    return {"name": name, "state": {"running": {"startedAt": at(start)}}}


def waiting(name: str, reason: str, message: str | None = None) -> dict[str, Any]:
    return {"name": name, "state": {"waiting": {"reason": reason} | ({"message": message} if message else {})}}


# --- every end that was provoked on a real cluster


@pytest.mark.parametrize(
    ("name", "end", "words"),
    [
        ("completed", End.COMPLETED, "exit status 0"),
        ("exited", End.EXITED, "exit status 3"),
        ("oom", End.OUT_OF_MEMORY, "more memory than it may"),
        ("oom-survived", End.OUT_OF_MEMORY, "more memory than it may"),  # a child was killed; its shell ended with 0
        ("deadline", End.TIMED_OUT, "the pod's time was up"),
        ("deadline-init", End.STARTED_TOO_LATE, "had not started"),
        ("deadline-upload", End.UPLOAD_FAILED, "the results were not stored"),
        ("init-failed", End.FETCH_FAILED, "container fetch ended with exit status 5"),
        ("upload-failed", End.UPLOAD_FAILED, "container upload ended with exit status 6"),
        ("cannot-run", End.CANNOT_START, 'exec: "/nothing"'),
        ("refused", End.REFUSED, "OutOfcpu"),
        ("deleted-gracefully", End.DELETED, "somebody deleted the pod"),
        ("deleted-still-running", End.DELETED, "somebody deleted the pod"),
        ("node-lost", End.NODE_LOST, "has not been heard of since 07:48:29 UTC"),
    ],
)
def test_observed_ends(name: str, end: End, words: str) -> None:
    found = judged(observed(name))
    assert isinstance(found, Ended)
    assert (found.end, words in found.sentence) == (end, True), found.sentence


@pytest.mark.parametrize(
    ("name", "end", "words", "is_hopeless"),
    [
        ("unschedulable", End.UNSCHEDULABLE, "0/3 nodes are available", False),
        ("image-pull", End.IMAGE_UNAVAILABLE, "connection refused", False),
        ("image-back-off", End.IMAGE_UNAVAILABLE, "Back-off pulling image", False),
        ("image-name", End.IMAGE_UNAVAILABLE, "InvalidImageName", True),
        ("config-error", End.CANNOT_START, 'secret "nowhere" not found', False),
        ("create-error", End.CANNOT_START, "Minimum memory limit allowed is 6MB", False),
    ],
)
def test_observed_stuck(name: str, end: End, words: str, is_hopeless: bool) -> None:
    found = judged(observed(name))
    assert isinstance(found, Stuck)
    assert (found.end, words in found.sentence, found.is_hopeless) == (end, True, is_hopeless), found.sentence
    assert found.since is not None


@pytest.mark.parametrize(
    ("name", "node", "words"),
    [("created", None, "waits for a node"), ("fetching", "node2", "is fetched"), ("starting", "node1", "are pulled")],
)
def test_observed_on_the_way(name: str, node: str | None, words: str) -> None:
    found = judged(observed(name))
    assert isinstance(found, Pending)
    assert (found.node, words in found.sentence) == (node, True), found.sentence


def test_observed_running_then_storing() -> None:
    runs, stores = judged(observed("running")), judged(observed("upload-busy"))
    assert isinstance(runs, Running) and isinstance(stores, Running)
    assert (runs.node, runs.started_at, runs.finished_at) == (
        "node2",
        datetime(2026, 11, 23, 7, 45, 12, tzinfo=UTC),
        None,
    )
    assert stores.finished_at == datetime(2026, 11, 23, 7, 50, 28, tzinfo=UTC)
    assert "being stored" in stores.sentence


def test_a_pod_that_was_deleted_by_force_leaves_its_last_state() -> None:
    """The cluster forgets it while its containers still run: only `deleted` says so."""
    raw = observed("deleted-by-force")
    assert judged(raw, deleted=True).end is End.DELETED
    raw["metadata"].pop("deletionTimestamp")
    assert isinstance(judged(raw), Running)
    assert judged(raw, deleted=True).end is End.DELETED


def test_a_finished_pod_that_is_deleted_has_still_completed() -> None:
    assert judged(observed("completed"), deleted=True).end is End.COMPLETED


def test_a_silent_node_ends_nothing_by_itself() -> None:
    found = judged(observed("node-silent"))
    assert isinstance(found, Running)
    assert found.node_silent_since == datetime(2026, 11, 23, 7, 48, 29, tzinfo=UTC)
    assert "not been heard of" in found.sentence


def test_a_kubelet_that_withdraws_readiness_is_not_silent() -> None:
    """Readiness is withdrawn with a reason when a container has ended while another runs on."""
    assert judged(observed("upload-busy")).node_silent_since is None


def test_outcomes_are_the_students_and_errors_ours() -> None:
    assert {end for end in End if end.is_outcome} == {
        End.COMPLETED,
        End.EXITED,
        End.OUT_OF_MEMORY,
        End.TIMED_OUT,
        End.TOO_MUCH_DISK,
    }


# --- times


def test_times_and_status_are_the_autograders() -> None:
    containers = [ended("upload", 0, 3, 9), ended("autograder", 4, 3, 8)]
    found = judged(crafted({"phase": "Failed", "containerStatuses": containers}))
    assert found == Ended(
        End.EXITED,
        "the autograder ended with exit status 4",
        4,
        AT + timedelta(seconds=3),
        AT + timedelta(seconds=8),
    )


@pytest.mark.parametrize(
    ("code", "reason", "wall_s", "end"),
    [
        (137, "Error", 9.0, End.EXITED),
        (137, "Error", 10.0, End.TIMED_OUT),
        (137, "Error", 11.0, End.TIMED_OUT),
        (137, "OOMKilled", 11.0, End.OUT_OF_MEMORY),
        (1, "Error", 11.0, End.EXITED),  # it had just ended by itself
    ],
)
def test_killed_for_its_time_or_for_something_else(code: int, reason: str, wall_s: float, end: End) -> None:
    status = {"phase": "Failed", "containerStatuses": [ended("autograder", code, 2, 2 + wall_s, reason)]}
    assert judged(crafted(status), timeout_s=10.0).end is end


def test_a_limit_of_half_seconds_is_met_by_whole_seconds() -> None:
    """From 0.9 to 2.4 the autograder ran 1.5 s; its status says 0 to 2. From 0.1 to 1.6 it says 0 to 1."""
    for end_s in (1, 2):
        status = {"phase": "Failed", "containerStatuses": [ended("autograder", 137, 0, end_s)]}
        assert judged(crafted(status), timeout_s=1.5).end is End.TIMED_OUT


@pytest.mark.parametrize("phase", ["Running", "Failed"])
def test_timed_out_counts_even_where_the_upload_failed(phase: str) -> None:
    containers = [ended("autograder", 137, 0, 10), ended("upload", 1, 0, 11)]
    assert judged(crafted({"phase": phase, "containerStatuses": containers}), timeout_s=10.0).end is End.TIMED_OUT


def test_out_of_memory_without_upload_is_tried_again() -> None:
    """Results that are valid would count; nobody knows whether there were any."""
    containers = [ended("autograder", 137, 0, 5, "OOMKilled"), ended("upload", 1, 0, 6)]
    assert judged(crafted({"phase": "Failed", "containerStatuses": containers})).end is End.UPLOAD_FAILED


# --- the deadline of the pod as a whole


def deadline(*containers: dict[str, Any], init: dict[str, Any] | None = None) -> dict[str, Any]:
    status = {"phase": "Failed", "reason": "DeadlineExceeded", "containerStatuses": list(containers)}
    return crafted(status | ({"initContainerStatuses": [init]} if init else {}), deadline_s=100)


def test_deadline_after_the_autograders_whole_time() -> None:
    assert judged(deadline(running("autograder", 20)), timeout_s=60.0).end is End.TIMED_OUT
    assert judged(deadline(ended("autograder", 137, 20, 101)), timeout_s=60.0).end is End.TIMED_OUT


def test_deadline_that_came_early_because_the_start_was_late_is_ours() -> None:
    found = judged(deadline(running("autograder", 70)), timeout_s=60.0)
    assert (found.end, "started late" in found.sentence) == (End.STARTED_TOO_LATE, True)
    assert judged(deadline(ended("autograder", 137, 70, 100)), timeout_s=60.0).end is End.STARTED_TOO_LATE


def test_deadline_while_the_results_were_being_stored() -> None:
    for code in (0, 1, 137):
        containers = ended("autograder", code, 20, 40), running("upload", 20)
        assert judged(deadline(*containers), timeout_s=60.0).end is End.UPLOAD_FAILED
    oom = ended("autograder", 137, 20, 40, "OOMKilled"), running("upload", 20)
    assert judged(deadline(*oom), timeout_s=60.0).end is End.UPLOAD_FAILED


def test_deadline_before_there_was_any_container() -> None:
    assert judged(deadline()).end is End.STARTED_TOO_LATE


# --- evictions and lost nodes, in the words of kubelets


@pytest.mark.parametrize(
    "message",
    [
        'Usage of EmptyDir volume "scratch" exceeds the limit "1Mi". ',
        'Container autograder exceeded its local ephemeral storage limit "2Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
    ],
)
@pytest.mark.parametrize("containers", [[], [ended("autograder", 137, 0, 5), ended("upload", 137, 0, 5)]])
def test_evicted_for_its_own_files_is_the_students_outcome(message: str, containers: list[dict[str, Any]]) -> None:
    """Up to 1.21 nothing is left of the containers' states, later all of it."""
    status = {"phase": "Failed", "reason": "Evicted", "message": message, "containerStatuses": containers}
    found = judged(crafted(status))
    assert (found.end, message.strip() in found.sentence) == (End.TOO_MUCH_DISK, True)


@pytest.mark.parametrize(
    "message",
    [
        "The node was low on resource: memory. Container autograder was using 700Mi, which exceeds its request of 0. ",
        "The node was low on resource: ephemeral-storage. ",
        "The node had condition: [DiskPressure]. ",
        None,
    ],
)
def test_evicted_for_the_nodes_sake_is_ours(message: str | None) -> None:
    assert judged(crafted({"phase": "Failed", "reason": "Evicted", "message": message})).end is End.EVICTED


def disrupted(reason: str, *containers: dict[str, Any], phase: str = "Failed") -> dict[str, Any]:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "says who"}
    return {"phase": phase, "conditions": [condition], "containerStatuses": list(containers)}


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("DeletionByTaintManager", End.NODE_LOST),
        ("DeletionByPodGC", End.NODE_LOST),
        ("PreemptionByScheduler", End.EVICTED),
        ("EvictionByEvictionAPI", End.EVICTED),
        ("TerminationByKubelet", End.EVICTED),
    ],
)
def test_disruptions_by_the_control_plane(reason: str, end: End) -> None:
    """1.26 and later say who ended a pod."""
    for containers in ([running("autograder", 2)], [ended("autograder", 137, 2, 8)], []):
        found = judged(crafted(disrupted(reason, *containers)))
        assert (found.end, "says who" in found.sentence) == (end, True)


def test_a_disruption_that_is_only_announced_ends_nothing() -> None:
    status = disrupted("PreemptionByScheduler", running("autograder", 2), phase="Running")
    assert isinstance(judged(crafted(status)), Running)
    assert judged(crafted(status, deletion=5)).end is End.EVICTED


def test_a_disruption_after_the_end_changes_nothing() -> None:
    containers = ended("autograder", 0, 2, 8), ended("upload", 0, 2, 9)
    assert judged(crafted(disrupted("DeletionByPodGC", *containers))).end is End.COMPLETED


@pytest.mark.parametrize("reason", ["NodeLost", "NodeShutdown", "Shutdown", "Terminated"])
@pytest.mark.parametrize("phase", ["Running", "Failed"])
def test_a_node_that_was_shut_down(reason: str, phase: str) -> None:
    status = {"phase": phase, "reason": reason, "containerStatuses": [running("autograder", 2)]}
    assert judged(crafted(status)).end is End.NODE_LOST


def test_a_container_that_its_kubelet_lost() -> None:
    """The kubelet makes up an exit status of 137: that is nobody's outcome."""
    said = "The container could not be located when the pod was terminated"
    state = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": said}
    lost = {"name": "autograder", "state": {"terminated": state}}
    found = judged(crafted({"phase": "Failed", "containerStatuses": [lost]}), timeout_s=10.0)
    assert (found.end, said in found.sentence) == (End.UNKNOWN, True)


# --- deletion


def test_deleted_before_its_end_or_after() -> None:
    for end_s, code, end in ((4, 1, End.EXITED), (5, 1, End.DELETED), (9, 143, End.DELETED), (9, 0, End.DELETED)):
        containers = [ended("autograder", code, 1, end_s), ended("upload", 0, 1, end_s)]
        status = {"phase": "Failed", "containerStatuses": containers}
        assert judged(crafted(status, deletion=5)).end is end, (end_s, code)


def test_deleted_while_it_waits() -> None:
    assert judged(crafted({"phase": "Pending"}, deletion=5)).end is End.DELETED
    assert judged(crafted({"phase": "Pending"}), deleted=True).end is End.DELETED


# --- on the way


def test_sidecar_trouble_is_noticed_while_the_autograder_runs() -> None:
    containers = [running("autograder", 2), ended("upload", 1, 2, 3)]
    assert judged(crafted({"phase": "Running", "containerStatuses": containers})).end is End.UPLOAD_FAILED


def test_an_autograder_that_never_started_does_not_wait_for_its_sidecar() -> None:
    containers = [ended("autograder", 128, 2, 2, "StartError"), running("upload", 2)]
    assert judged(crafted({"phase": "Running", "containerStatuses": containers})).end is End.CANNOT_START


def test_a_native_sidecar_that_is_killed_at_the_end_spoils_nothing() -> None:
    """Of 1.28 and later, or a service mesh's: an init container that runs on, and is killed when all is done."""
    status = {
        "phase": "Succeeded",
        "initContainerStatuses": [ended("mesh", 137, 0, 9)],
        "containerStatuses": [ended("autograder", 0, 2, 8), ended("upload", 0, 2, 9)],
    }
    assert judged(crafted(status)).end is End.COMPLETED


def test_held_back_by_a_queue_is_not_stuck() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    raw = crafted({"phase": "Pending", "conditions": [condition | {"message": "Scheduling is blocked"}]})
    raw["spec"] = {}
    found = judged(raw)
    assert isinstance(found, Pending) and "Scheduling is blocked" in found.sentence


def test_an_init_container_may_be_what_cannot_be_pulled() -> None:
    status = {"phase": "Pending", "initContainerStatuses": [waiting("fetch", "ErrImagePull", "denied")]}
    found = judged(crafted(status))
    assert isinstance(found, Stuck)
    assert (found.end, "container fetch: ErrImagePull: denied" in found.sentence) == (End.IMAGE_UNAVAILABLE, True)


def test_an_unscheduled_pod_waits_since_the_scheduler_said_so() -> None:
    found = judged(observed("unschedulable"))
    assert found.since == datetime(2026, 11, 23, 7, 45, 13, tzinfo=UTC)


# --- reading


def test_labels_say_whose_pod_it_is() -> None:
    raw = crafted({})
    assert (PodState.from_json(raw).run_id, PodState.from_json(raw).attempt) == (7, 2)
    for label in ("", "x", "-1", "²", "1.0", None):
        raw["metadata"]["labels"]["greengrader/run"] = label
        assert PodState.from_json(raw).run_id is None


def test_equal_where_nothing_has_changed_that_matters() -> None:
    raw = observed("running")
    other = copy.deepcopy(raw)
    other["metadata"]["resourceVersion"] = "999999"
    other["metadata"]["annotations"] = {"somebody": "was here"}
    assert PodState.from_json(raw) == PodState.from_json(other)
    other["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": at(1)}}
    assert PodState.from_json(raw) != PodState.from_json(other)


def test_long_messages_are_cut() -> None:
    state = PodState.from_json(crafted({"phase": "Failed", "message": "x" * 100_000}))
    assert state.message is not None and len(state.message) == 500


def test_a_state_is_small() -> None:
    """Some hundred of them are kept for as long as the dispatcher lives."""
    state = PodState.from_json(observed("upload-failed"))
    size = sys.getsizeof(state) + sum(sys.getsizeof(getattr(state, name)) for name in state.__slots__)
    size += sum(
        sys.getsizeof(one) + sum(sys.getsizeof(getattr(one, name)) for name in one.__slots__)
        for one in state.containers
    )
    assert size < 4096


ALL = sorted(path.stem for path in OBSERVED.glob("*.json"))


@given(st.sampled_from(ALL), st.data())
def test_any_field_may_be_missing(name: str, data: st.DataObject) -> None:
    """Whatever is cut out of a real pod, it can still be read and judged, with a sentence."""
    raw = observed(name)
    for _ in range(data.draw(st.integers(1, 4))):
        at_node: Any = raw
        while isinstance(at_node, dict | list) and at_node:
            keys = list(at_node) if isinstance(at_node, dict) else list(range(len(at_node)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(at_node[key], dict | list) or not at_node[key] or data.draw(st.booleans()):
                if isinstance(at_node, dict) and data.draw(st.booleans()):
                    at_node[key] = None
                else:
                    del at_node[key]
                break
            at_node = at_node[key]
    for deleted in (False, True):
        found = judged(raw, deleted=deleted, timeout_s=60.0)
        assert isinstance(found, Pending | Stuck | Running | Ended)
        assert found.sentence and "None" not in found.sentence
