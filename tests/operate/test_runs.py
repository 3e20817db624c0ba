"""`rerun` and `cancel`."""

import pytest

from greengrader.db import Store
from tests import rows
from tests.operate.conftest import Command


def states(store: Store) -> dict[int, list[str]]:
    """{submission id: states of its runs, oldest first}"""
    found: dict[int, list[str]] = {}
    for run in store.table("run_status", order="run_id"):
        found.setdefault(run["submission_id"], []).append(run["state"])
    return found


def test_rerun_queues_a_new_run(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    answer = greengrader("rerun", "1001")
    assert (answer.code, answer.out) == (0, "1 run queued\n")
    assert states(store) == {1001: ["graded", "received"]}


def test_rerun_of_what_is_being_graded_is_refused(greengrader: Command, store: Store) -> None:
    rows.running(store, 1001)
    answer = greengrader("rerun", "1001")
    assert answer.code == 1 and "submission 1001 is running" in answer.err
    assert states(store) == {1001: ["running"]}


def test_rerun_takes_the_newest_payload(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    later = rows.abandoned(store, 1001, payload=b"later")
    greengrader("rerun", "1001")
    newest = store.newest_run(1001)
    assert newest is not None
    assert (newest.submission_key, newest.state) == (later.submission_key, "received")


def test_rerun_of_an_assignment_leaves_alone_what_is_open(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    rows.abandoned(store, 1002)
    rows.running(store, 1003)
    rows.graded(store, 1004, assignment_id=8)
    answer = greengrader("rerun", "--assignment", "7")
    assert (answer.code, answer.out) == (0, "2 runs queued; 1 submission left alone: being graded\n")
    assert states(store) == {
        1001: ["graded", "received"], 1002: ["abandoned", "received"], 1003: ["running"], 1004: ["graded"],
    }  # fmt: skip


def test_rerun_of_what_failed(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    rows.abandoned(store, 1002)
    rows.graded(store, 1003, outcome="timed_out", score=0.0)
    rows.running(store, 1004)
    assert greengrader("rerun", "--assignment", "7", "--failed").out == "2 runs queued\n"
    assert {key for key, found in states(store).items() if len(found) == 2} == {1002, 1003}
    assert greengrader("rerun", "--assignment", "7", "--failed").out == "0 runs queued\n"
    assert greengrader("rerun", "1001", "--failed").out == "0 runs queued\n"


@pytest.mark.parametrize("state", ["received", "dispatched"])
def test_cancel_takes_a_run_out_of_the_queue(greengrader: Command, store: Store, state: str) -> None:
    getattr(rows, state)(store, 1001)
    assert greengrader("cancel", "1001").out == "1 run cancelled\n"
    assert states(store) == {1001: ["cancelled"]}
    assert "cancelled by staff" in greengrader("status", "1001").out


def test_cancel_of_what_a_worker_has_is_refused(greengrader: Command, store: Store) -> None:
    rows.running(store, 1001)
    answer = greengrader("cancel", "1001")
    assert answer.code == 1 and "submission 1001 is running on worker-1" in answer.err
    assert states(store) == {1001: ["running"]}


def test_cancel_takes_every_payload_of_a_submission(greengrader: Command, store: Store) -> None:
    rows.received(store, 1001)
    rows.received(store, 1001, payload=b"later")
    assert greengrader("cancel", "1001").out == "2 runs cancelled\n"


def test_cancel_of_an_assignment(greengrader: Command, store: Store) -> None:
    rows.received(store, 1001)
    rows.dispatched(store, 1002)
    rows.running(store, 1003)
    rows.received(store, 1004, assignment_id=8)
    assert greengrader("cancel", "--assignment", "7").out == "2 runs cancelled\n"
    assert states(store) == {1001: ["cancelled"], 1002: ["cancelled"], 1003: ["running"], 1004: ["received"]}
    assert greengrader("cancel", "--assignment", "7").out == "0 runs cancelled\n"


@pytest.mark.parametrize("words", [["rerun", "1001"], ["cancel", "1001"], ["rerun", "--assignment", "7"]])
def test_what_is_not_here_is_code_1(greengrader: Command, words: list[str]) -> None:
    answer = greengrader(*words)
    assert (answer.code, answer.out) == (1, "") and "here" in answer.err


@pytest.mark.parametrize("words", [["rerun"], ["cancel"], ["cancel", "1001", "--assignment", "7"]])
def test_one_of_both_must_be_named(greengrader: Command, words: list[str]) -> None:
    assert greengrader(*words).code == 2
