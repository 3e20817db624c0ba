"""Two sessions at once: whoever commits first has it, and the other learns that it has not."""

import json
import threading
from collections.abc import Callable

from greengrader.db import Placed, Store
from tests import rows
from tests.postgres.conftest import Overtaking, Session

RESULT = rows.result(score=8.0)


def placed_by(run_id: int, worker: str) -> Callable[[Store], list[Placed]]:
    return lambda store: store.place_runs([(run_id, worker, "late")], 60)


def test_two_dispatchers_prepare_one_run(store: Store, overtaken: Overtaking) -> None:
    rows.dispatched(store, 2)  # its autograder is there
    run = rows.received(store, 1)
    assert not overtaken(
        "SELECT dispatch_run(%s, %s)",
        run.run_id,
        rows.DIGEST,
        late=lambda late: late.dispatch_run(run.run_id, rows.DIGEST),
    )


def test_two_schedulers_place_one_run(store: Store, overtaken: Overtaking) -> None:
    run = rows.dispatched(store)
    rows.worker(store, "worker-1")
    rows.worker(store, "worker-2")
    first = "SELECT place_runs(ARRAY[%s]::bigint[], '{worker-1}', '{first}', 60)"
    assert overtaken(first, run.run_id, late=placed_by(run.run_id, "worker-2")) == []
    assert [worker.held for worker in store.workers()] == [1, 0]


def test_two_schedulers_fill_the_last_slot_once(store: Store, overtaken: Overtaking) -> None:
    runs = [rows.dispatched(store, number).run_id for number in (1, 2)]
    rows.worker(store, slots=1)
    first = "SELECT place_runs(ARRAY[%s]::bigint[], '{worker-1}', '{first}', 60)"
    assert overtaken(first, runs[0], late=placed_by(runs[1], "worker-1")) == []
    assert store.workers()[0].held == 1


def test_staff_cancel_what_a_scheduler_is_about_to_place(store: Store, overtaken: Overtaking) -> None:
    run = rows.dispatched(store)
    rows.worker(store)
    assert overtaken("SELECT cancel_run(%s, 'by staff')", run.run_id, late=placed_by(run.run_id, "worker-1")) == []
    assert store.table("runs")[0]["state"] == "cancelled"


def test_staff_come_too_late_to_cancel(store: Store, overtaken: Overtaking) -> None:
    run = rows.dispatched(store)
    rows.worker(store)
    first = "SELECT place_runs(ARRAY[%s]::bigint[], '{worker-1}', '{first}', 60)"
    assert not overtaken(first, run.run_id, late=lambda late: late.cancel_run(run.run_id, "by staff"))
    assert store.table("runs")[0]["state"] == "placed"


def test_two_receivers_record_one_result(store: Store, overtaken: Overtaking) -> None:
    run = rows.running(store)
    first = "SELECT finish_run(%s, 1, 'worker-1', %s)"
    assert not overtaken(
        first, run.run_id, json.dumps(RESULT), late=lambda late: late.finish_run(run.run_id, 1, "worker-1", RESULT)
    )
    assert len(store.table("results")) == 1


def test_a_result_comes_while_the_lease_is_taken_back(store: Store, overtaken: Overtaking, session: Session) -> None:
    run = rows.running(store)
    session("UPDATE runs SET lease_expires_at = now() - interval '1 second'")
    store.receiver_caught_up(store.now())
    assert not overtaken(
        "SELECT expire_leases(3)", late=lambda late: late.finish_run(run.run_id, 1, "worker-1", RESULT)
    )
    assert store.table("runs")[0]["state"] == "dispatched" and store.table("results") == []


def test_a_lease_is_not_taken_back_while_its_result_is_stored(
    store: Store, second_store: Store, session: Session, database: str
) -> None:
    run = rows.running(store)
    session("UPDATE runs SET lease_expires_at = now() - interval '1 second'")
    store.receiver_caught_up(store.now())
    recording = Session(database)
    recording("BEGIN")
    recording("SELECT finish_run(%s, 1, 'worker-1', %s)", run.run_id, json.dumps(RESULT))
    assert second_store.expire_leases(3) == [], "it does not even wait"
    recording("COMMIT")
    recording.close()
    assert second_store.expire_leases(3) == []
    assert store.table("runs")[0]["state"] == "graded"


def test_a_double_click_on_rerun_grades_once(store: Store, overtaken: Overtaking) -> None:
    rows.graded(store)
    key = store.table("submissions")[0]["submission_key"]
    assert overtaken("SELECT rerun_submission(%s)", key, late=lambda late: late.rerun_submission(key)) is None
    assert len(store.table("runs")) == 2


def test_two_copies_of_one_payload_are_stored_once(store: Store, overtaken: Overtaking) -> None:
    """The broker sends it again to a second ingest while the first has not committed."""
    first = json.dumps([rows.new_submission().columns])
    assert overtaken(
        "SELECT receive_submissions(%s)", first, late=lambda late: late.receive_submissions([rows.new_submission()])
    ) == [None]
    assert len(store.table("submissions")) == 1


def test_two_first_submissions_of_an_assignment(store: Store, overtaken: Overtaking) -> None:
    first = json.dumps([rows.new_submission(1).columns])
    (stored,) = overtaken(
        "SELECT receive_submissions(%s)", first, late=lambda late: late.receive_submissions([rows.new_submission(2)])
    )
    assert stored is not None
    assert len(store.table("assignments")) == 1


def test_a_worker_says_good_bye_while_it_is_given_a_run(store: Store, overtaken: Overtaking) -> None:
    run = rows.dispatched(store)
    rows.worker(store)
    assert overtaken("SELECT lose_worker('worker-1')", late=placed_by(run.run_id, "worker-1")) == []


def test_many_schedulers_at_once_place_each_run_once(store: Store, database: str) -> None:
    sessions = 4
    for number in range(4):
        rows.worker(store, f"worker-{number}", slots=10)
    runs = [rows.dispatched(store, number).run_id for number in range(1, 31)]
    together = threading.Barrier(sessions)
    placed: list[Placed] = []
    faults: list[BaseException] = []

    def schedule(number: int) -> None:
        try:
            with Store.connect(database) as own:
                together.wait(10)
                for run_id in runs[number:] + runs[:number]:
                    placed.extend(own.place_runs([(run_id, f"worker-{(run_id + number) % 4}", "")], 60))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=schedule, args=(number,)) for number in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert faults == []
    assert sorted(run.run_id for run in placed) == runs
    assert {run.attempt for run in placed} == {1}
    assert all(worker.held <= worker.slots for worker in store.workers())
