"""Leases: this database's clock alone, and only silence that somebody could have heard."""

from datetime import timedelta

import pytest

from greengrader.db import Received, Store
from tests import rows
from tests.postgres.conftest import Session

END = "UPDATE runs SET lease_expires_at = now() - %s * interval '1 second'"


def test_a_lease_that_runs_is_left_alone(store: Store) -> None:
    rows.running(store)
    store.receiver_caught_up(store.now())
    assert store.expire_leases(3) == []


@pytest.mark.parametrize("state", ["placed", "running"])
def test_a_lease_that_ended_is_taken_back_once(store: Store, session: Session, state: str) -> None:
    run = getattr(rows, state)(store)
    session(END, 1)
    store.receiver_caught_up(store.now())
    (taken,) = store.expire_leases(3)
    assert (taken.run_id, taken.state, taken.worker, taken.failures) == (run.run_id, "dispatched", "worker-1", 1)
    assert taken.error is not None and "worker-1" in taken.error
    assert store.expire_leases(3) == []
    assert rows.place(store, Received(0, run.run_id)).attempt == 2


def test_attempts_are_used_up(store: Store, session: Session) -> None:
    run = rows.dispatched(store)
    rows.worker(store)
    states = []
    for _ in range(3):
        rows.place(store, run)
        session(END, 1)
        store.receiver_caught_up(store.now())
        states += [taken.state for taken in store.expire_leases(3)]
    assert states == ["dispatched", "dispatched", "abandoned"]
    assert store.table("runs")[0]["finished_at"] is not None


def test_no_lease_ends_before_the_receiver_has_ever_caught_up(store: Store, session: Session) -> None:
    rows.running(store)
    session(END, 3600)
    assert store.expire_leases(3) == []


def test_no_lease_ends_while_the_receiver_is_behind(store: Store, session: Session) -> None:
    """Broker or receiver were away: heartbeats may be under way that extend it."""
    rows.running(store)
    session(END, 10)
    store.receiver_caught_up(store.now() - timedelta(seconds=11))
    assert store.expire_leases(3) == [], "it had read everything, but only until before the lease's end"
    store.receiver_caught_up(store.now() - timedelta(seconds=9))
    assert len(store.expire_leases(3)) == 1


def test_what_was_read_once_stays_read(store: Store, session: Session) -> None:
    """Marks that come twice or late do not turn the clock back."""
    rows.running(store)
    store.receiver_caught_up(store.now())
    store.receiver_caught_up(store.now() - timedelta(hours=1))
    session(END, 60)
    assert len(store.expire_leases(3)) == 1


def test_a_heartbeat_extends_the_leases_that_it_names(store: Store, session: Session) -> None:
    named, forgotten = rows.running(store, 1), rows.placed(store, 2)
    session(END, 1)
    store.receiver_caught_up(store.now())
    assert store.extend_leases("worker-1", [(named.run_id, 1)], 60) == {named.run_id}
    assert [run.run_id for run in store.expire_leases(3)] == [forgotten.run_id]
    ends = store.table("runs", "run_id = %s", named.run_id)[0]["lease_expires_at"]
    assert timedelta(seconds=50) < ends - store.now() <= timedelta(seconds=60)


def test_nobody_extends_what_is_not_his(store: Store) -> None:
    held, done = rows.running(store, 1), rows.graded(store, 2)
    waiting = rows.dispatched(store, 3)
    assert store.extend_leases("worker-2", [(held.run_id, 1)], 60) == set()
    assert store.extend_leases("worker-1", [(held.run_id, 2), (held.run_id, 0)], 60) == set()
    assert store.extend_leases("worker-1", [(done.run_id, 1), (waiting.run_id, 0), (404, 1)], 60) == set()
    assert store.extend_leases("worker-1", [], 60) == set()


def test_a_lease_that_was_taken_back_is_not_extended(store: Store, session: Session) -> None:
    run = rows.running(store)
    session(END, 1)
    store.receiver_caught_up(store.now())
    store.expire_leases(3)
    assert store.extend_leases("worker-1", [(run.run_id, 1)], 60) == set()


def test_a_worker_that_was_only_late_keeps_its_run(store: Store, session: Session) -> None:
    """Nobody took the lease back meanwhile: the heartbeat revives it, and the result counts."""
    run = rows.running(store)
    session(END, 10)
    assert store.extend_leases("worker-1", [(run.run_id, 1)], 60) == {run.run_id}
    rows.finish(store, run)


def test_the_clock_is_the_databases(store: Store, session: Session) -> None:
    assert store.now().utcoffset() == timedelta(0)
    assert abs(store.now() - session.value("SELECT clock_timestamp()")) < timedelta(seconds=5)
