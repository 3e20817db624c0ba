"""The state machine: the database refuses every arrow that the diagram does not show, and tells of every one taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import psycopg2
import pytest

from greengrader.daemon import Stop
from greengrader.db import RUNS_CHANNEL, Received, Store
from services import Postgres
from tests import rows
from tests.conftest import fresh_database
from tests.postgres.conftest import Session

STATES = ("received", "dispatched", "placed", "running", "graded", "abandoned", "cancelled")
LEGAL = {
    ("received", "dispatched"),
    ("received", "cancelled"),
    ("received", "abandoned"),
    ("dispatched", "placed"),
    ("dispatched", "cancelled"),
    ("dispatched", "abandoned"),
    ("placed", "running"),
    ("placed", "graded"),
    ("placed", "dispatched"),
    ("placed", "abandoned"),
    ("running", "graded"),
    ("running", "dispatched"),
    ("running", "abandoned"),
}
# Everything that the columns of the target state need, so that nothing but the arrow itself can be refused.
MOVE = """UPDATE runs SET state = %(to)s, attempt = attempt + (%(to)s = 'placed')::int, worker = 'worker-1',
    autograder_digest = %(digest)s,
    lease_expires_at = CASE WHEN %(to)s IN ('placed', 'running') THEN now() + interval '1 minute' END,
    finished_at = CASE WHEN %(to)s IN ('graded', 'abandoned', 'cancelled') THEN now() END
    WHERE run_id = %(run)s"""
RESULT = """INSERT INTO results SELECT filled.* FROM runs r,
    jsonb_populate_record((SELECT g FROM results g LIMIT 1),
        jsonb_build_object('run_id', r.run_id, 'attempt', r.attempt)) AS filled
    WHERE r.run_id = %s ON CONFLICT DO NOTHING"""


@dataclass
class Specimens:
    """One run in each state."""

    session: Session
    run_ids: dict[str, int]


@pytest.fixture(scope="module")
def specimens(postgres: Postgres) -> Iterator[Specimens]:
    with fresh_database(postgres) as url, Store.connect(url) as store:
        ids = {
            "received": rows.received(store, 1).run_id,
            "dispatched": rows.dispatched(store, 2).run_id,
            "placed": rows.placed(store, 3).run_id,
            "running": rows.running(store, 4).run_id,
            "graded": rows.graded(store, 5).run_id,
            "abandoned": rows.abandoned(store, 6).run_id,
            "cancelled": rows.received(store, 7).run_id,
        }
        assert store.cancel_run(ids["cancelled"], "by staff")
        session = Session(url)
        yield Specimens(session, ids)
        session.close()


@pytest.mark.parametrize(("before", "after"), sorted(product(STATES, STATES)))
def test_exactly_the_arrows_of_the_diagram_are_taken(specimens: Specimens, before: str, after: str) -> None:
    session, run_id = specimens.session, specimens.run_ids[before]
    session("BEGIN")
    try:
        session(RESULT, run_id)
        moved = {"to": after, "digest": rows.DIGEST, "run": run_id}
        if (before, after) in LEGAL:
            session(MOVE, **moved)
            assert session.value("SELECT state::text FROM runs WHERE run_id = %s", run_id) == after
        else:
            with pytest.raises(psycopg2.errors.CheckViolation, match=f"cannot go from {before} to {after}"):
                session(MOVE, **moved)
    finally:
        session("ROLLBACK")


def test_the_states_are_those_of_the_type(session: Session) -> None:
    assert tuple(state for (state,) in session("SELECT unnest(enum_range(NULL::run_state))::text")) == STATES


@pytest.mark.parametrize("state", STATES[1:])
def test_a_run_begins_as_received(specimens: Specimens, state: str) -> None:
    refused = specimens.session.refusal(
        "INSERT INTO runs (submission_key, backend, priority, state) SELECT submission_key, backend, priority, %s"
        " FROM runs WHERE state = 'graded'",
        state,
    )
    assert "begins as received" in str(refused)


@pytest.mark.parametrize(("state", "wrong"), [("dispatched", 0), ("dispatched", 2), ("placed", 1)])
def test_each_lease_is_an_attempt_of_its_own(specimens: Specimens, state: str, wrong: int) -> None:
    """The attempt is half of the fence: it grows by one with each lease, and never otherwise."""
    refused = specimens.session.refusal(
        "UPDATE runs SET state = %s, attempt = attempt + %s, worker = 'worker-1',"
        " lease_expires_at = now() + interval '1 minute' WHERE run_id = %s",
        "placed" if state == "dispatched" else "running",
        wrong,
        specimens.run_ids[state],
    )
    assert "every lease is an attempt of its own" in str(refused)


@pytest.mark.parametrize("state", ["placed", "running"])
def test_nothing_is_graded_without_a_result(specimens: Specimens, state: str) -> None:
    refused = specimens.session.refusal(
        "UPDATE runs SET state = 'graded', lease_expires_at = NULL, finished_at = now() WHERE run_id = %s",
        specimens.run_ids[state],
    )
    assert "cannot be graded without a result" in str(refused)


def test_every_arrow_is_an_event_with_its_reason(store: Store) -> None:
    run = rows.placed(store)
    assert store.fail_run(run.run_id, 1, "worker-1", "the engine hung", for_good=False, max_attempts=3) == "dispatched"
    again = rows.place(store, Received(0, run.run_id), reason="the only one left")
    assert store.start_run(run.run_id, 2, "worker-1")
    rows.finish(store, again)
    told = [
        (event["from_state"], event["to_state"], event["attempt"], event["worker"], event["reason"])
        for event in store.run_events(run.run_id)
    ]
    assert told == [
        (None, "received", 0, None, None),
        ("received", "dispatched", 0, None, None),
        ("dispatched", "placed", 1, "worker-1", "it was free"),
        ("placed", "dispatched", 1, "worker-1", "the engine hung"),
        ("dispatched", "placed", 2, "worker-1", "the only one left"),
        ("placed", "running", 2, "worker-1", None),
        ("running", "graded", 2, "worker-1", None),
    ]
    times = [event["at"] for event in store.run_events(run.run_id)]
    assert times == sorted(times)


def test_a_refused_arrow_leaves_no_event(store: Store, session: Session) -> None:
    run = rows.received(store)
    session.refusal("UPDATE runs SET state = 'graded', finished_at = now() WHERE run_id = %s", run.run_id)
    assert [event["to_state"] for event in store.run_events(run.run_id)] == ["received"]


def test_every_arrow_is_notified(store: Store, second_store: Store, stop: Stop) -> None:
    second_store.listen(RUNS_CHANNEL)
    run = rows.graded(store)
    heard = [text for channel, text in second_store.wait(stop, 5) if channel == RUNS_CHANNEL]
    while not heard[-1].startswith("graded"):
        heard += [text for _, text in second_store.wait(stop, 5)]
    assert heard == [f"{state} {run.run_id}" for state in ("received", "dispatched", "placed", "running", "graded")]
