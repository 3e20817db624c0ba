"""What operators read."""

from greengrader.db import Received, Store
from tests import rows
from tests.postgres.conftest import Session


def test_the_columns_that_operators_were_promised(session: Session) -> None:
    columns = session(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'submission_status'"
        " AND table_schema = 'public' ORDER BY ordinal_position"
    )
    assert [name for (name,) in columns] == [
        "submission_id", "assignment_id", "state", "outcome", "score", "gradescope_score", "attempt", "backend",
        "worker", "region", "energy_kwh", "received_at", "graded_at", "error",
    ]  # fmt: skip


def test_a_graded_submission(store: Store) -> None:
    rows.graded(store, 1001, score=7.5, energy_usage=2e-6, region="us-west")
    (row,) = store.table("submission_status")
    times = (row.pop("received_at"), row.pop("graded_at"))
    assert times[0] <= times[1]
    assert row == {
        "submission_id": 1001, "assignment_id": rows.ASSIGNMENT, "state": "graded", "outcome": "completed",
        "score": 7.5, "gradescope_score": 8.0, "attempt": 1, "backend": "docker", "worker": "worker-1",
        "region": "us-west", "energy_kwh": 2e-6, "error": None,
    }  # fmt: skip


def test_one_that_waits_has_no_result_yet(store: Store) -> None:
    rows.received(store, 1001)
    (row,) = store.table("submission_status")
    assert (row["state"], row["outcome"], row["score"], row["worker"], row["graded_at"]) == ("received", *[None] * 4)


def test_one_that_runs_stands_in_its_workers_region(store: Store) -> None:
    rows.worker(store, region="eu-north")
    rows.running(store)
    assert store.table("submission_status")[0]["region"] == "eu-north"


def test_a_submission_is_one_row_its_newest_payload_and_its_newest_run(store: Store) -> None:
    rows.graded(store, 1001, score=1.0)
    newer = rows.received(store, 1001, payload=b"handed in again")
    (row,) = store.table("submission_status")
    assert row["state"] == "received", "the newer payload, though it has no score yet"
    rows.worker(store, slots=100)
    rows.finish(store, rows.place(store, rows.prepare(store, newer)), score=2.0)
    again = store.rerun_submission(newer.submission_key)
    assert again is not None
    assert [(row["state"], row["score"]) for row in store.table("submission_status")] == [("received", None)]
    rows.finish(store, rows.place(store, rows.prepare(store, Received(newer.submission_key, again))), score=3.0)
    assert [row["score"] for row in store.table("submission_status")] == [3.0]


def test_a_worker_and_what_it_holds(store: Store) -> None:
    rows.worker(store, "worker-1", slots=3)
    rows.worker(store, "worker-2", slots=1)
    rows.running(store, 1)
    rows.placed(store, 2)
    rows.graded(store, 3)
    assert [(worker.worker, worker.held, worker.free) for worker in store.workers()] == [
        ("worker-1", 2, 1),
        ("worker-2", 0, 1),
    ]
