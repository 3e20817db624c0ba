"""Every CHECK and unique index forbids the bug that it was written for, and there is none without such a test."""

from collections.abc import Iterator

import psycopg2
import pytest

from greengrader.db import Store
from services import Postgres
from tests import rows
from tests.conftest import fresh_database
from tests.postgres.conftest import Session

# {constraint: statements that only this constraint refuses}; there is a run in each of five states
CHECKS = {
    "assignments_cpus_check": ["UPDATE assignments SET cpus = 0"],
    "assignments_max_delay_s_check": ["UPDATE assignments SET max_delay_s = -1"],
    "assignments_memory_bytes_check": ["UPDATE assignments SET memory_bytes = 512"],
    "assignments_timeout_s_check": ["UPDATE assignments SET timeout_s = 0", "UPDATE assignments SET timeout_s = -5"],
    "autograders_digest_check": [
        "INSERT INTO autograders (digest, origin, base_image, archive) VALUES ('latest', 'staff', 'b', '')",
        "INSERT INTO autograders (digest, origin, base_image, archive) VALUES (repeat('A', 64), 'staff', 'b', '')",
    ],
    "receiver_progress_only_row_check": ["INSERT INTO receiver_progress VALUES (false, now())"],
    "results_carbon_intensity_check": ["UPDATE results SET carbon_intensity = -1"],
    "results_check": ["UPDATE results SET finished_at = started_at - interval '1 microsecond'"],
    "results_cpu_s_check": ["UPDATE results SET cpu_s = -0.1"],
    "results_energy_usage_check": ["UPDATE results SET energy_usage = -1e-9"],
    "results_max_score_check": [f"UPDATE results SET max_score = '{bad}'" for bad in ("NaN", "Infinity", "-Infinity")],
    "results_peak_memory_bytes_check": ["UPDATE results SET peak_memory_bytes = -1"],
    "results_pue_check": ["UPDATE results SET pue = 0.9"],
    "results_score_check": [f"UPDATE results SET score = '{bad}'" for bad in ("NaN", "Infinity", "-Infinity")],
    "results_wall_s_check": ["UPDATE results SET wall_s = -1"],
    "a_lease_while_held_only": [
        "UPDATE runs SET lease_expires_at = NULL WHERE state = 'placed'",
        "UPDATE runs SET lease_expires_at = NULL WHERE state = 'running'",
        "UPDATE runs SET lease_expires_at = now() WHERE state = 'received'",
        "UPDATE runs SET lease_expires_at = now() WHERE state = 'graded'",
    ],
    "an_end_has_a_time": [
        "UPDATE runs SET finished_at = NULL WHERE state = 'graded'",
        "UPDATE runs SET finished_at = now() WHERE state = 'running'",
    ],
    "prepared_before_placed": [
        f"UPDATE runs SET autograder_digest = NULL WHERE state = '{state}'"
        for state in ("dispatched", "placed", "running", "graded")
    ],
    "the_holder_is_known": [
        f"UPDATE runs SET worker = NULL WHERE state = '{state}'" for state in ("placed", "running")
    ],
    "schema_version_only_row_check": ["INSERT INTO schema_version VALUES (1, false)"],
    "submissions_payload_bytes_check": ["UPDATE submissions SET payload_bytes = 0"],
    "submissions_payload_digest_check": ["UPDATE submissions SET payload_digest = 'd41d8cd98f00b204e9800998ecf8427e'"],
    "workers_check": ["UPDATE workers SET watts_min = 5, watts_max = 4"],
    "workers_slots_check": ["UPDATE workers SET slots = -1"],
    "workers_watts_min_check": ["UPDATE workers SET watts_min = -1"],
    "workers_worker_check": [
        f"INSERT INTO workers (worker) VALUES ('{name}')" for name in ("", "a/b", "#", "+", ".hidden", "a b", "x" * 64)
    ],
}
UNIQUE = {
    "a_payload_is_stored_once": "INSERT INTO submissions (submission_id, payload_digest, assignment_id, metadata,"
    " payload_bytes) SELECT submission_id, payload_digest, assignment_id, '{}', 1 FROM submissions LIMIT 1",
    "assignments_pkey": "INSERT INTO assignments (assignment_id) SELECT assignment_id FROM assignments",
    "autograders_pkey": "INSERT INTO autograders (digest, origin, base_image, archive) SELECT digest, 'staff', 'b', ''"
    " FROM autograders",
    "one_open_run_per_submission": "INSERT INTO runs (submission_key, backend, priority)"
    " SELECT submission_key, 'docker', 0 FROM runs WHERE state = 'received'",
    "payloads_pkey": "INSERT INTO payloads SELECT * FROM payloads LIMIT 1",
    "receiver_progress_pkey": "INSERT INTO receiver_progress SELECT * FROM receiver_progress",
    "rejected_payload_digest_key": "INSERT INTO rejected (payload_digest, reason, payload)"
    " SELECT payload_digest, 'r', '' FROM rejected",
    "results_pkey": "INSERT INTO results SELECT * FROM results",
    "schema_version_pkey": "INSERT INTO schema_version (version) VALUES (1)",
    "submission_archives_pkey": "INSERT INTO submission_archives SELECT * FROM submission_archives LIMIT 1",
    "worker_autograders_pkey": "INSERT INTO worker_autograders SELECT * FROM worker_autograders",
    "workers_pkey": "INSERT INTO workers (worker) SELECT worker FROM workers",
}


@pytest.fixture(scope="module")
def session(postgres: Postgres) -> Iterator[Session]:
    """A session with a database that has at least one row in every table."""
    with fresh_database(postgres) as url, Store.connect(url) as store:
        rows.received(store, 1)
        rows.dispatched(store, 2)
        rows.placed(store, 3)
        rows.running(store, 4)
        rows.graded(store, 5)
        store.note_autograder_sent("worker-1", rows.DIGEST)
        store.receiver_caught_up(store.now())
        store.reject_payload("e" * 64, "no zip", b"hello")
        opened = Session(url)
        yield opened
        opened.close()


@pytest.mark.parametrize("statement", [sql for statements in CHECKS.values() for sql in statements])
def test_nonsense_cannot_be_stored(session: Session, statement: str) -> None:
    (constraint,) = [name for name, statements in CHECKS.items() if statement in statements]
    refused = session.refusal(statement)
    assert isinstance(refused, psycopg2.errors.CheckViolation)
    assert refused.diag.constraint_name == constraint


@pytest.mark.parametrize("index", UNIQUE)
def test_what_is_there_once_stays_there_once(session: Session, index: str) -> None:
    refused = session.refusal(UNIQUE[index])
    assert isinstance(refused, psycopg2.errors.UniqueViolation)
    assert refused.diag.constraint_name == index


def test_no_rule_is_without_its_test(session: Session) -> None:
    checks = session("SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace")
    assert {name for (name,) in checks} == set(CHECKS)
    unique = session(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indisunique"
        " AND c.relnamespace = 'public'::regnamespace"
    )
    numbered = {"rejected_pkey", "runs_pkey", "submissions_pkey"}  # the database counts these itself
    assert {name for (name,) in unique} - numbered == set(UNIQUE)


@pytest.mark.parametrize("table", ["rejected", "runs", "submissions"])
def test_nobody_chooses_a_number_that_the_database_counts(session: Session, table: str) -> None:
    key = {"rejected": "rejected_id", "runs": "run_id", "submissions": "submission_key"}[table]
    refused = session.refusal(f"INSERT INTO {table} ({key}) VALUES (1)")
    assert isinstance(refused, psycopg2.errors.GeneratedAlways)


def test_a_pod_needs_no_worker(session: Session) -> None:
    session("BEGIN")
    session("UPDATE runs SET worker = NULL, backend = 'kubernetes' WHERE state = 'running'")
    session("ROLLBACK")


def test_two_finished_runs_of_one_submission_are_no_contradiction(session: Session) -> None:
    session("BEGIN")
    key = "SELECT submission_key FROM runs WHERE state = 'graded'"
    session(f"INSERT INTO runs (submission_key, backend, priority) {key.replace('key FROM', 'key, backend, 0 FROM')}")
    session("UPDATE runs SET state = 'cancelled', finished_at = now() WHERE run_id = (SELECT max(run_id) FROM runs)")
    assert session.value(f"SELECT count(*) FROM runs WHERE submission_key = ({key})") == 2
    session("ROLLBACK")


def test_large_values_are_kept_as_they_are(session: Session) -> None:
    """Zips do not compress; EXTERNAL lets `substring` read a slice without the rest."""
    external = session(
        "SELECT attrelid::regclass::text, attname FROM pg_attribute WHERE attstorage = 'e' AND attnum > 0"
        " AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)"
    )
    assert set(external) == {
        ("autograders", "archive"),
        ("payloads", "zip"),
        ("rejected", "payload"),
        ("submission_archives", "archive"),
    }
