"""Each SQL function through the Store's method: legal, illegal, twice, and late."""

from typing import Any

import pytest

from greengrader.db import Placed, Received, Store
from greengrader.errors import GreenGraderError
from tests import rows
from tests.postgres.conftest import Session


def row_of(store: Store, run_id: int) -> dict[str, Any]:
    return store.table("runs", "run_id = %s", run_id)[0]


def taken_over(store: Store) -> tuple[Placed, Placed]:
    """(the first attempt, whose worker was not heard of; the second one, at another worker)."""
    first = rows.running(store)
    assert store.fail_run(first.run_id, 1, "worker-1", "not heard of", for_good=False, max_attempts=3) == "dispatched"
    rows.worker(store, "worker-2")
    return first, rows.place(store, Received(0, first.run_id), "worker-2")


# -------------------------------------------------------------------------------------------------------- received
def test_a_submission_is_stored_with_a_run_that_waits(store: Store) -> None:
    stored = rows.received(store, 1001, student_ids=[5, 6], student_names=["A", "B"], gradescope_score=None)
    (row,) = store.table("submissions")
    assert (row["submission_key"], row["submission_id"], row["student_ids"]) == (stored.submission_key, 1001, [5, 6])
    assert row["gradescope_results"] == {"score": 8.0} and row["gradescope_score"] is None
    (run,) = store.table("runs")
    assert (run["run_id"], run["state"], run["attempt"], run["backend"]) == (stored.run_id, "received", 0, "docker")


def test_json_null_is_no_document(store: Store) -> None:
    """What the queries ask is IS NULL."""
    rows.received(store, gradescope_results=None, assignment_outline=None)
    assert store.table("submissions", "gradescope_results IS NULL")
    assert store.table("assignments", "assignment_outline IS NULL")


def test_an_exact_duplicate_is_no_new_row(store: Store) -> None:
    first = rows.received(store)
    assert store.receive_submissions([rows.new_submission()]) == [None]
    assert [run["run_id"] for run in store.table("runs")] == [first.run_id]


def test_the_same_submission_with_other_content_is_a_new_row(store: Store) -> None:
    first = rows.received(store)
    second = rows.received(store, payload=b"another zip")
    assert second.submission_key != first.submission_key
    assert len(store.table("submissions", "submission_id = %s", rows.SUBMISSION)) == 2


def test_the_same_payload_of_another_submission_is_a_new_row(store: Store) -> None:
    """Two students may hand in the same bytes."""
    stored = store.receive_submissions(
        [rows.new_submission(1, payload=b"same"), rows.new_submission(2, payload=b"same")]
    )
    assert None not in stored


def test_a_duplicate_within_one_batch_is_told_by_its_place(store: Store) -> None:
    batch = [rows.new_submission(1), rows.new_submission(2), rows.new_submission(1), rows.new_submission(3)]
    first, second, duplicate, third = store.receive_submissions(batch)
    assert first and second and third and duplicate is None
    stored = {row["submission_key"]: row["submission_id"] for row in store.table("submissions")}
    assert [stored[answer.submission_key] for answer in (first, second, third)] == [1, 2, 3]


def test_an_assignment_keeps_what_staff_decided(store: Store) -> None:
    store.set_assignment(7, {"priority": 5, "backend": "kubernetes", "deadline": "2030-01-01T00:00:00Z"})
    rows.received(store, assignment_id=7)
    (run,) = store.table("runs")
    assert (run["priority"], run["backend"], run["deadline"].year) == (5, "kubernetes", 2030)


# ------------------------------------------------------------------------------------------------------ dispatched
def test_dispatch_takes_a_received_run_once(store: Store) -> None:
    run = rows.received(store)
    rows.prepare(store, run)
    assert row_of(store, run.run_id)["dispatched_at"] is not None
    assert not store.dispatch_run(run.run_id, rows.DIGEST)


def test_dispatch_needs_a_known_autograder(store: Store) -> None:
    run = rows.received(store)
    with pytest.raises(GreenGraderError, match="autograder"):
        store.dispatch_run(run.run_id, "b" * 64)
    assert row_of(store, run.run_id)["state"] == "received"


@pytest.mark.parametrize("state", ["placed", "running", "graded", "abandoned"])
def test_dispatch_takes_no_other_state(store: Store, state: str) -> None:
    run = getattr(rows, state)(store)
    assert not store.dispatch_run(run.run_id, rows.DIGEST)
    assert row_of(store, run.run_id)["state"] == state


def test_the_queue_goes_by_priority_deadline_and_age(store: Store) -> None:
    decided: dict[int, dict[str, Any]] = {
        1: {},
        2: {"deadline": "2030-01-02T00:00:00Z"},
        3: {"deadline": "2030-01-01T00:00:00Z"},
        4: {"priority": 1},
        5: {"backend": "kubernetes", "priority": 9},
    }
    for assignment_id, changes in decided.items():
        store.set_assignment(assignment_id, changes)
    ids = {number: rows.received(store, number, number).run_id for number in (5, 1, 2, 3, 4)}
    later = rows.received(store, 11, 1).run_id
    expected = [ids[4], ids[3], ids[2], ids[1], later]
    assert [run.run_id for run in store.next_received(10, "docker")] == expected
    assert [run.run_id for run in store.next_received(2, "docker")] == expected[:2]
    assert [run.run_id for run in store.next_received(10, "kubernetes")] == [ids[5]]
    for number in (5, 1, 2, 3, 4):
        rows.prepare(store, Received(store.table("runs", "run_id = %s", ids[number])[0]["submission_key"], ids[number]))
    assert [run.run_id for run in store.next_dispatched(10)] == expected[:4], "the scheduler places docker's runs alone"


# ---------------------------------------------------------------------------------------------------------- placed
def test_place_leases_the_run(store: Store) -> None:
    store.set_assignment(7, {"cpus": 2.0, "memory_bytes": 2**30, "timeout_s": 30.0, "network": True})
    run = rows.placed(store, lease_s=60)
    assert run == Placed(
        run_id=run.run_id, attempt=1, worker="worker-1", submission_id=rows.SUBMISSION, autograder_digest=rows.DIGEST,
        base_image=rows.BASE_IMAGE, cpus=2.0, memory_bytes=2**30, timeout_s=30.0, network=True,
        archive_bytes=len(b"tar.gz of the submission"), worker_has_autograder=False,
    )  # fmt: skip
    row = row_of(store, run.run_id)
    assert row["placement_reason"] == "it was free" and row["placed_at"] is not None
    assert 59 < (row["lease_expires_at"] - row["placed_at"]).total_seconds() < 61
    assert not store.place_runs([(run.run_id, "worker-1", "again")], 60), "twice"


@pytest.mark.parametrize("state", ["received", "running", "graded", "abandoned"])
def test_place_takes_no_other_state(store: Store, state: str) -> None:
    run = getattr(rows, state)(store)
    rows.worker(store, "worker-2")
    assert store.place_runs([(run.run_id, "worker-2", "")], 60) == []
    assert row_of(store, run.run_id)["state"] == state


def test_place_stays_within_the_slots(store: Store) -> None:
    rows.worker(store, slots=2)
    rows.placed(store, 1)
    queued = [rows.dispatched(store, number).run_id for number in (2, 3, 4)]
    placed = store.place_runs([(run_id, "worker-1", "") for run_id in queued], 60)
    assert [run.run_id for run in placed] == queued[:1]
    (worker,) = store.workers()
    assert (worker.held, worker.free) == (2, 0)


def test_a_worker_that_may_have_nothing_gets_nothing(store: Store) -> None:
    run = rows.dispatched(store)
    for name in ("drained", "full-disk", "gone"):
        rows.worker(store, name)
    assert store.drain_worker("drained", True)
    store.see_worker("full-disk", 2, False, [])
    store.lose_worker("gone")
    assert store.place_runs([(run.run_id, worker.worker, "") for worker in store.workers()], 60) == []
    assert store.place_runs([(run.run_id, "never registered", "")], 60) == []
    assert store.drain_worker("drained", False)
    assert len(store.place_runs([(run.run_id, "drained", "")], 60)) == 1


def test_a_run_offered_to_two_workers_goes_to_one(store: Store) -> None:
    run = rows.dispatched(store)
    rows.worker(store, "worker-1")
    rows.worker(store, "worker-2")
    assert len(store.place_runs([(run.run_id, "worker-1", ""), (run.run_id, "worker-2", "")], 60)) == 1


def test_a_job_carries_the_files_and_tells_who_has_the_autograder(store: Store) -> None:
    run = rows.dispatched(store)
    rows.worker(store)
    store.note_autograder_sent("worker-1", rows.DIGEST)
    store.note_autograder_sent("worker-1", rows.DIGEST)
    assert rows.place(store, run).worker_has_autograder
    assert store.submission_archives([run.run_id, -1]) == {run.run_id: b"tar.gz of the submission"}
    assert store.autograder_archive(rows.DIGEST) == b"tar.gz of the autograder"
    store.forget_worker_autograder("worker-1", run.run_id)
    assert store.table("worker_autograders") == []


# --------------------------------------------------------------------------------------------------------- running
def test_start_takes_the_attempt_that_was_placed_once(store: Store) -> None:
    run = rows.placed(store)
    assert not store.start_run(run.run_id, 2, "worker-1"), "another attempt"
    assert not store.start_run(run.run_id, 1, "worker-2"), "another worker"
    assert store.start_run(run.run_id, 1, "worker-1")
    assert not store.start_run(run.run_id, 1, "worker-1"), "twice"
    assert row_of(store, run.run_id)["started_at"] is not None


@pytest.mark.parametrize("state", ["received", "dispatched", "graded", "abandoned"])
def test_start_takes_no_other_state(store: Store, state: str) -> None:
    run = getattr(rows, state)(store)
    assert not store.start_run(run.run_id, row_of(store, run.run_id)["attempt"], "worker-1")


# ---------------------------------------------------------------------------------------------------------- graded
@pytest.mark.parametrize("state", ["placed", "running"])
def test_finish_stores_the_result_once(store: Store, state: str) -> None:
    run = getattr(rows, state)(store)
    assert store.finish_run(run.run_id, 1, "worker-1", rows.result(score=3.5, warnings=["odd", "odder"]))
    (row,) = store.table("results")
    assert (row["run_id"], row["attempt"], row["score"], row["warnings"]) == (run.run_id, 1, 3.5, ["odd", "odder"])
    assert not store.finish_run(run.run_id, 1, "worker-1", rows.result(score=9.0)), "twice"
    assert store.table("results")[0]["score"] == 3.5
    row = row_of(store, run.run_id)
    assert row["state"] == "graded" and row["finished_at"] is not None and row["lease_expires_at"] is None


def test_a_late_result_of_a_lease_that_was_taken_away_changes_nothing(store: Store) -> None:
    first, second = taken_over(store)
    assert not store.finish_run(first.run_id, 1, "worker-1", rows.result(score=1.0))
    assert not store.finish_run(first.run_id, 2, "worker-1", rows.result(score=1.0)), "the number alone is no lease"
    assert not store.finish_run(first.run_id, 1, "worker-2", rows.result(score=1.0)), "nor is the name alone"
    assert store.table("results") == []
    assert store.finish_run(second.run_id, 2, "worker-2", rows.result(score=8.0))
    assert not store.finish_run(first.run_id, 1, "worker-1", rows.result(score=1.0)), "later still"
    assert store.table("submission_status")[0]["score"] == 8.0


@pytest.mark.parametrize("state", ["received", "dispatched", "abandoned"])
def test_finish_takes_no_other_state(store: Store, state: str) -> None:
    run = getattr(rows, state)(store)
    for worker in ("worker-1", None):
        assert not store.finish_run(run.run_id, 0, worker, rows.result())
    assert store.table("results") == []


@pytest.mark.parametrize(
    "columns",
    [{"outcome": "perfect"}, {"outcome": None}, {"score": "many"}, {"score": float("nan")}, {"cpu_s": float("inf")},
     {"output": "a\0b"}, {"exit_status": 2**40}, {"results": None}],
    ids=lambda columns: "-".join(columns),
)  # fmt: skip
def test_a_result_that_cannot_be_stored_leaves_the_run_as_it_was(store: Store, columns: dict[str, Any]) -> None:
    run = rows.running(store)
    with pytest.raises(GreenGraderError):
        store.finish_run(run.run_id, 1, "worker-1", rows.result(**columns))
    assert row_of(store, run.run_id)["state"] == "running"
    assert store.table("results") == []
    rows.finish(store, run)


def test_a_result_needs_no_more_than_is_known(store: Store) -> None:
    """CPU time, peak memory, and what follows from them, may be unknown; the score may be, too."""
    run = rows.running(store)
    unknown = ("cpu_s", "peak_memory_bytes", "energy_usage", "carbon_emission", "score", "max_score", "exit_status")
    rows.finish(store, run, **dict.fromkeys(unknown))
    (row,) = store.table("results")
    assert [row[name] for name in unknown] == [None] * len(unknown)
    assert row["recorded_at"] is not None and row["oom_killed"] is False


# ---------------------------------------------------------------------------------------- failed, released, given up
def test_a_failed_attempt_is_followed_by_another_until_they_are_used_up(store: Store) -> None:
    run = rows.dispatched(store)
    rows.worker(store)
    for attempt in (1, 2, 3):
        assert rows.place(store, run).attempt == attempt
        state = store.fail_run(run.run_id, attempt, "worker-1", f"fault {attempt}", for_good=False, max_attempts=3)
        assert state == ("dispatched" if attempt < 3 else "abandoned")
        assert row_of(store, run.run_id)["error"] == f"fault {attempt}"
        assert not store.fail_run(run.run_id, attempt, "worker-1", "again", for_good=False, max_attempts=3), "twice"
    assert row_of(store, run.run_id)["finished_at"] is not None
    assert store.next_dispatched(1) == []


def test_what_fails_for_good_is_given_up_at_once(store: Store) -> None:
    run = rows.running(store)
    assert store.fail_run(run.run_id, 1, "worker-1", "setup.sh fails", for_good=True, max_attempts=3) == "abandoned"
    assert store.table("submission_status")[0]["error"] == "setup.sh fails"


def test_a_late_failure_changes_nothing(store: Store) -> None:
    first, _second = taken_over(store)
    assert store.fail_run(first.run_id, 1, "worker-1", "late", for_good=True, max_attempts=3) is None
    assert row_of(store, first.run_id)["state"] == "placed"


@pytest.mark.parametrize("state", ["placed", "running"])
def test_handing_back_costs_no_attempt(store: Store, state: str) -> None:
    run = getattr(rows, state)(store)
    assert store.release_run(run.run_id, 1, "worker-1", "the worker stops")
    assert not store.release_run(run.run_id, 1, "worker-1", "twice")
    row = row_of(store, run.run_id)
    assert (row["state"], row["failures"], row["error"]) == ("dispatched", 0, "the worker stops")
    assert rows.place(store, Received(0, run.run_id)).attempt == 2, "but is another lease"


def test_a_late_return_changes_nothing(store: Store) -> None:
    first, second = taken_over(store)
    assert not store.release_run(first.run_id, 1, "worker-1", "late")
    assert store.start_run(second.run_id, 2, "worker-2")


@pytest.mark.parametrize("change", ["cancel_run", "abandon_run"])
def test_what_waits_can_be_taken_out_of_the_queue_once(store: Store, change: str) -> None:
    for number, run in enumerate([rows.received(store, 1), rows.dispatched(store, 2)]):
        assert getattr(store, change)(run.run_id, "by staff"), number
        assert not getattr(store, change)(run.run_id, "twice")
        row = row_of(store, run.run_id)
        assert row["error"] == "by staff" and row["finished_at"] is not None
    assert store.next_received(9, "docker") == [] and store.next_dispatched(9) == []


@pytest.mark.parametrize("change", ["cancel_run", "abandon_run"])
@pytest.mark.parametrize("state", ["placed", "running", "graded"])
def test_what_a_worker_has_cannot(store: Store, state: str, change: str) -> None:
    run = getattr(rows, state)(store)
    assert not getattr(store, change)(run.run_id, "by staff")
    assert row_of(store, run.run_id)["state"] == state


# ---------------------------------------------------------------------------------------------------------- re-runs
@pytest.mark.parametrize("state", ["graded", "abandoned"])
def test_a_rerun_is_a_new_run_and_keeps_the_old_one(store: Store, state: str) -> None:
    old = getattr(rows, state)(store)
    key = row_of(store, old.run_id)["submission_key"]
    new = store.rerun_submission(key)
    assert new is not None and new != old.run_id
    assert store.rerun_submission(key) is None, "one is open"
    assert row_of(store, old.run_id)["state"] == state
    newest = store.newest_run(rows.SUBMISSION)
    assert newest is not None and (newest.run_id, newest.state, newest.attempt) == (new, "received", 0)


@pytest.mark.parametrize("state", ["received", "dispatched", "placed", "running"])
def test_a_submission_has_one_open_run(store: Store, state: str) -> None:
    run = getattr(rows, state)(store)
    assert store.rerun_submission(row_of(store, run.run_id)["submission_key"]) is None
    assert len(store.table("runs")) == 1


def test_there_is_no_rerun_of_nothing(store: Store) -> None:
    assert store.rerun_submission(404) is None


# ---------------------------------------------------------------------------------------------------------- workers
def test_registering_again_updates_and_keeps_what_staff_said(store: Store) -> None:
    rows.worker(store, slots=2)
    store.drain_worker("worker-1", True)
    rows.worker(store, slots=4, region="us-west", watts_max=9.0, alive=False)
    (worker,) = store.workers()
    assert (worker.slots, worker.region, worker.watts_max, worker.draining) == (4, "us-west", 9.0, True)
    assert worker.accepting, "a worker that lives goes on"


def test_a_stranger_is_not_seen(store: Store) -> None:
    assert not store.see_worker("stranger", 1, True, [])
    assert store.workers() == []


def test_a_heartbeat_says_what_the_worker_has(store: Store, session: Session) -> None:
    for digest in (rows.DIGEST, "b" * 64, "c" * 64):
        store.add_autograder(digest, "derived", rows.BASE_IMAGE, [], b"")
    rows.worker(store)
    assert store.see_worker("worker-1", 3, True, [rows.DIGEST, "b" * 64, "f" * 64])

    def known() -> set[str]:
        return {row["digest"][0] for row in store.table("worker_autograders")}

    assert known() == {"a", "b"}, "an image whose autograder the hub does not know is none of its business"
    store.note_autograder_sent("worker-1", "c" * 64)
    assert store.see_worker("worker-1", 3, True, [rows.DIGEST])
    assert known() == {"a", "b", "c"}, "what was sent a moment ago may not be in the heartbeat yet"
    session("UPDATE worker_autograders SET sent_at = now() - interval '2 minutes'")
    assert store.see_worker("worker-1", 3, True, [rows.DIGEST])
    assert known() == {"a"}
    (worker,) = store.workers()
    assert worker.slots == 3 and worker.silent_s is not None and worker.silent_s < 5


def test_who_says_good_bye_takes_nothing_until_it_is_seen_again(store: Store) -> None:
    rows.worker(store)
    store.lose_worker("worker-1")
    (worker,) = store.workers()
    assert (worker.last_seen_at, worker.silent_s, worker.accepting) == (None, None, False)
    assert store.see_worker("worker-1", 2, True, [])
    assert store.workers()[0].accepting


def test_nobody_drains_a_worker_that_does_not_exist(store: Store) -> None:
    assert not store.drain_worker("stranger", True)


# ------------------------------------------------------------------------------------------------------ assignments
def test_a_change_reaches_what_waits(store: Store) -> None:
    waiting, prepared = rows.received(store, 1), rows.dispatched(store, 2)
    held = rows.running(store, 3)
    other = rows.received(store, 4, assignment_id=8)
    store.set_assignment(7, {"priority": 9, "backend": "kubernetes", "deadline": "2031-01-01T00:00:00Z"})
    found = {run["run_id"]: (run["priority"], run["backend"]) for run in store.table("runs")}
    assert found == {
        waiting.run_id: (9, "kubernetes"),
        prepared.run_id: (9, "docker"),  # prepared for this backend
        held.run_id: (0, "docker"),
        other.run_id: (0, "docker"),
    }


def test_a_change_leaves_the_rest_and_null_is_a_value(store: Store) -> None:
    store.set_assignment(7, {"cpus": 2.0, "timeout_s": 60.0})
    store.set_assignment(7, {"cpus": None, "priority": 1})
    (row,) = store.table("assignments")
    assert (row["cpus"], row["timeout_s"], row["priority"], row["backend"]) == (None, 60.0, 1, "docker")


@pytest.mark.parametrize("changes", [{"memory": 1}, {"cpus": 1.0, "assignment_id": 8}, {"max_delay": 3}])
def test_a_setting_that_does_not_exist_is_named(store: Store, changes: dict[str, Any]) -> None:
    unknown = list(changes)[-1]
    with pytest.raises(GreenGraderError, match=rf"no setting {unknown}\b"):
        store.set_assignment(7, changes)
    assert store.table("assignments") == []


def test_the_staffs_autograder_has_to_be_stored_first(store: Store) -> None:
    with pytest.raises(GreenGraderError, match="autograder"):
        store.set_assignment(7, {"autograder_digest": rows.DIGEST})
    store.add_autograder(rows.DIGEST, "staff", rows.BASE_IMAGE, [], b"")
    store.set_assignment(7, {"autograder_digest": rows.DIGEST})
    assert store.staff_autograder(7) == rows.DIGEST
