"""Runs in pods: held by a lease and no worker; whoever watches the pod keeps it, and another takes it over in time."""

import json
from datetime import timedelta

import pytest

from greengrader.db import Received, Store
from tests import rows
from tests.postgres.conftest import Overtaking, Session

EXPIRED = "UPDATE runs SET lease_expires_at = now() - interval '1 second' WHERE state IN ('placed', 'running')"
RESULT = rows.result(score=8.0)


def waiting(store: Store, submission_id: int = 1001) -> Received:
    """A dispatched run of an assignment that is graded by kubernetes."""
    store.set_assignment(rows.ASSIGNMENT, {"backend": "kubernetes"})
    return rows.dispatched(store, submission_id)


def in_a_pod(store: Store, submission_id: int = 1001, lease_s: float = 60) -> tuple[int, int]:
    """(run id, attempt) of a placed run."""
    run = waiting(store, submission_id)
    attempt = store.place_pod(run.run_id, "greenest", "us-west", "ucsc", lease_s)
    assert attempt is not None
    return run.run_id, attempt


def state_of(store: Store, run_id: int) -> str:
    run = store.run(run_id)
    assert run is not None
    return run.state


# -------------------------------------------------------------------------------------------------- placing
def test_a_run_is_placed_for_a_place(store: Store) -> None:
    run_id, attempt = in_a_pod(store, lease_s=60)
    (row,) = store.table("runs")
    assert (attempt, row["state"], row["worker"]) == (1, "placed", None)
    assert (row["expected_region"], row["expected_zone"], row["placement_reason"]) == ("us-west", "ucsc", "greenest")
    assert timedelta(seconds=59) < row["lease_expires_at"] - row["placed_at"] <= timedelta(seconds=60)
    assert store.held_pods() == {(run_id, 1)}
    assert store.run_events(run_id)[-1]["reason"] == "greenest"


def test_a_run_is_placed_for_anywhere(store: Store) -> None:
    run_id, _ = in_a_pod(store)
    assert store.release_run(run_id, 1, None, "its region is full")
    assert store.place_pod(run_id, "anywhere", None, None, 60) == 2
    (row,) = store.table("runs")
    assert (row["expected_region"], row["expected_zone"], row["failures"]) == (None, None, 0)


def test_a_run_is_placed_once(store: Store) -> None:
    run_id, _ = in_a_pod(store)
    assert store.place_pod(run_id, "again", None, None, 60) is None
    assert store.start_run(run_id, 1, None)
    assert store.place_pod(run_id, "again", None, None, 60) is None
    assert store.finish_run(run_id, 1, None, RESULT)
    assert store.place_pod(run_id, "again", None, None, 60) is None
    assert store.table("runs")[0]["placement_reason"] == "greenest"


def test_what_is_not_prepared_or_of_docker_gets_no_pod(store: Store) -> None:
    docker = rows.dispatched(store, 1)
    assert store.place_pod(docker.run_id, "no", None, None, 60) is None
    store.set_assignment(rows.ASSIGNMENT, {"backend": "kubernetes"})
    assert store.place_pod(rows.received(store, 2).run_id, "no", None, None, 60) is None
    assert store.place_pod(999_999, "no", None, None, 60) is None
    assert state_of(store, docker.run_id) == "dispatched"


def test_what_staff_cancelled_gets_no_pod(store: Store) -> None:
    run = waiting(store)
    assert store.cancel_run(run.run_id, "by staff")
    assert store.place_pod(run.run_id, "no", None, None, 60) is None


def test_two_processes_place_one_run(store: Store, overtaken: Overtaking) -> None:
    run = waiting(store)
    first = "SELECT place_pod(%s, 'first', 'us-west', 'ucsc', 60)"
    assert overtaken(first, run.run_id, late=lambda late: late.place_pod(run.run_id, "late", None, None, 60)) is None
    (row,) = store.table("runs")
    assert (row["attempt"], row["placement_reason"]) == (1, "first")


def test_docker_schedulers_leave_it_alone(store: Store) -> None:
    waiting(store)
    assert store.next_received(10, "docker") == []
    assert [run.state for run in store.next_for_cluster(10)] == ["dispatched"]


# --------------------------------------------------------------------------------------------------- leases
def test_a_lease_is_kept_of_what_is_held(store: Store, session: Session) -> None:
    held, other = in_a_pod(store, 1), in_a_pod(store, 2)
    assert store.start_run(*other, None)
    session(EXPIRED)
    assert store.extend_pod_leases([held, other], 60) == {held[0], other[0]}
    assert all(row["lease_expires_at"] > store.now() for row in store.table("runs"))
    assert store.extend_pod_leases([], 60) == set()


def test_a_lease_of_another_attempt_or_of_what_has_ended_is_not_kept(store: Store) -> None:
    run_id, _ = in_a_pod(store)
    assert store.extend_pod_leases([(run_id, 2), (999_999, 1)], 60) == set()
    assert store.fail_run(run_id, 1, None, "the node is lost", for_good=False, max_attempts=3) == "dispatched"
    assert store.extend_pod_leases([(run_id, 1)], 60) == set()
    assert store.place_pod(run_id, "again", None, None, 60) == 2
    assert store.extend_pod_leases([(run_id, 1)], 60) == set()
    assert store.extend_pod_leases([(run_id, 2)], 60) == {run_id}


def test_a_workers_lease_is_not_kept(store: Store) -> None:
    run = rows.running(store)
    assert store.extend_pod_leases([(run.run_id, run.attempt)], 60) == set()


def test_leases_of_pods_do_not_expire_like_workers(store: Store, session: Session) -> None:
    """A pod runs on without its watcher: the run is adopted, not placed again."""
    run_id, _ = in_a_pod(store)
    session(EXPIRED)
    store.receiver_caught_up(store.now())
    assert store.expire_leases(3) == []
    assert state_of(store, run_id) == "placed"


# -------------------------------------------------------------------------------------------------- adoption
def test_what_nobody_watches_is_adopted_once(store: Store, second_store: Store, session: Session) -> None:
    run_id, _ = in_a_pod(store)
    assert store.adopt_pods(10, 60) == []
    session(EXPIRED)
    (run,) = store.adopt_pods(10, 60)
    assert (run.run_id, run.attempt, run.state) == (run_id, 1, "placed")
    assert second_store.adopt_pods(10, 60) == []
    assert store.held_pods() == {(run_id, 1)}


def test_as_many_are_adopted_as_there_is_room_for(store: Store, session: Session) -> None:
    ids = [in_a_pod(store, number)[0] for number in (1, 2, 3)]
    session(EXPIRED)
    assert {run.run_id for run in store.adopt_pods(2, 60)} == set(ids[:2])
    assert {run.run_id for run in store.adopt_pods(2, 60)} == set(ids[2:])


def test_one_may_be_adopted_alone(store: Store, session: Session) -> None:
    ids = [in_a_pod(store, number)[0] for number in (1, 2)]
    session(EXPIRED)
    assert [run.run_id for run in store.adopt_pods(10, 60, ids[1])] == [ids[1]]
    assert [run.run_id for run in store.adopt_pods(10, 60)] == [ids[0]]


def test_two_processes_adopt_different_runs(store: Store, second_store: Store, session: Session) -> None:
    ids = [in_a_pod(store, number)[0] for number in (1, 2)]
    session(EXPIRED)
    session("BEGIN")
    assert session.value("SELECT run_id FROM adopt_pods(1, 60)") == ids[0]
    assert [run.run_id for run in second_store.adopt_pods(10, 60)] == ids[1:]  # and does not wait for the first
    session("COMMIT")


def test_docker_runs_are_not_adopted(store: Store, session: Session) -> None:
    rows.running(store)
    session(EXPIRED)
    assert store.adopt_pods(10, 60) == [] and store.held_pods() == set()


def test_the_former_holder_and_the_new_one_record_one_result(
    store: Store, overtaken: Overtaking, session: Session
) -> None:
    run_id, attempt = in_a_pod(store)
    session(EXPIRED)
    store.adopt_pods(1, 60)
    first = "SELECT finish_run(%s, %s, NULL, %s::jsonb)"
    assert not overtaken(
        first, run_id, attempt, json.dumps(RESULT), late=lambda late: late.finish_run(run_id, attempt, None, RESULT)
    )
    assert len(store.table("results")) == 1 and store.held_pods() == set()


# ---------------------------------------------------------------------------------------------- on to the end
def test_a_pods_way(store: Store) -> None:
    run_id, attempt = in_a_pod(store)
    assert store.start_run(run_id, attempt, None)
    assert not store.start_run(run_id, attempt, None)
    assert store.finish_run(run_id, attempt, None, RESULT)
    assert [event["to_state"] for event in store.run_events(run_id)] == [
        "received", "dispatched", "placed", "running", "graded",
    ]  # fmt: skip
    assert store.held_pods() == set()


@pytest.mark.parametrize("worker", ["worker-1", ""])
def test_a_worker_has_no_say(store: Store, worker: str) -> None:
    run_id, attempt = in_a_pod(store)
    rows.worker(store, "worker-1")
    assert not store.start_run(run_id, attempt, worker)
    assert not store.finish_run(run_id, attempt, worker, RESULT)
    assert not store.release_run(run_id, attempt, worker, "no")
    assert store.fail_run(run_id, attempt, worker, "no", for_good=False, max_attempts=3) is None
    assert state_of(store, run_id) == "placed"


def test_what_keeps_a_run_waiting_is_noted(store: Store) -> None:
    run = waiting(store)
    store.note_trouble(run.run_id, "the quota is full")
    assert store.table("runs")[0]["error"] == "the quota is full"
    assert store.place_pod(run.run_id, "greenest", None, None, 60) == 1
    store.note_trouble(run.run_id, "too late")
    assert store.table("runs")[0]["error"] == "the quota is full"


def test_runs_of_the_cluster_by_priority_deadline_and_age(store: Store) -> None:
    first, second = waiting(store, 1), waiting(store, 2)
    store.set_assignment(8, {"backend": "kubernetes", "priority": 5})
    urgent = rows.received(store, 3, 8)
    assert [run.run_id for run in store.next_for_cluster(10)] == [urgent.run_id, first.run_id, second.run_id]
    assert [run.run_id for run in store.next_for_cluster(1)] == [urgent.run_id]
