"""`worker list`, `drain` and `resume`."""

import pytest

from greengrader.db import Store
from tests import rows
from tests.operate.conftest import Command


def condition(greengrader: Command, name: str = rows.WORKER) -> str:
    (row,) = [row for row in greengrader("worker", "list", "--json").json_lines if row["worker"] == name]
    return str(row["condition"])


def test_without_workers_the_list_says_what_to_do(greengrader: Command) -> None:
    assert "register.py" in greengrader("worker", "list").out


def test_the_list_shows_place_and_size(greengrader: Command, store: Store) -> None:
    rows.placed(store, 1001)
    head, line = greengrader("worker", "list").lines
    assert head.split()[:4] == ["worker", "condition", "held", "slots"]
    assert line.split()[:4] == ["worker-1", "ready", "1", "100"]
    assert "16 GiB" in line and "1-4 a core" in line and line.endswith("Example CPU")


def test_a_worker_that_says_good_bye_is_gone(greengrader: Command, store: Store) -> None:
    rows.worker(store)
    store.lose_worker(rows.WORKER)
    assert condition(greengrader) == "gone"


def test_a_worker_that_was_never_seen_is_gone(greengrader: Command, store: Store) -> None:
    rows.worker(store, alive=False)
    assert condition(greengrader) == "gone"


def test_a_worker_without_room_is_full(greengrader: Command, store: Store) -> None:
    rows.worker(store)
    store.see_worker(rows.WORKER, 2, False, [])
    assert condition(greengrader) == "full"


def test_a_worker_that_is_not_heard_of_is_silent(
    greengrader: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.worker(store)
    monkeypatch.setenv("GREENGRADER_WORKER_SILENT_S", "1e-9")
    assert condition(greengrader) == "silent"


def test_a_drained_worker_gets_nothing_until_it_is_resumed(greengrader: Command, store: Store) -> None:
    rows.placed(store, 1001)
    waiting = rows.dispatched(store, 1002)
    answer = greengrader("worker", "drain", "worker-1")
    assert (answer.code, answer.out) == (0, "worker-1 gets no new runs; it finishes the 1 it has\n")
    assert condition(greengrader) == "draining"
    assert store.place_runs([(waiting.run_id, "worker-1", "test")], 30) == []
    assert greengrader("worker", "resume", "worker-1").out == "worker-1 gets runs again\n"
    assert len(store.place_runs([(waiting.run_id, "worker-1", "test")], 30)) == 1


@pytest.mark.parametrize("action", ["drain", "resume"])
def test_an_unknown_worker_is_code_1(greengrader: Command, action: str) -> None:
    answer = greengrader("worker", action, "nobody")
    assert answer.code == 1 and "no worker is called nobody" in answer.err


def test_an_action_must_be_named(greengrader: Command) -> None:
    assert greengrader("worker").code == 2
