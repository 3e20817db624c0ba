"""schema.sql: applied any number of times, by whom- and however; another version is refused."""

import os
import subprocess
import threading
from collections.abc import Iterator

import psycopg2
import pytest

from greengrader.db import SCHEMA, SCHEMA_VERSION, Store
from greengrader.errors import SchemaMismatch
from places import program
from services import Postgres
from tests import rows
from tests.conftest import fresh_database
from tests.postgres.conftest import Session

SHAPE = """
    SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || coalesce(column_default, '')
        FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT enumtypid::regtype || ' ' || enumlabel FROM pg_enum
    ORDER BY 1
"""


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """URL of a database that nobody else uses."""
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[str]:
    """URL of a database without any table."""
    with fresh_database(postgres, template="template0") as url:
        yield url


def psql(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file={SCHEMA}", url],
        capture_output=True,
        text=True,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        check=False,
    )


def shape_of(url: str) -> list[str]:
    session = Session(url)
    try:
        return [line for (line,) in session(SHAPE)]
    finally:
        session.close()


def apply(url: str) -> None:
    with Store.connect(url, check_schema=False) as store:
        store.apply_schema()


def test_a_second_time_changes_nothing(store: Store, database: str) -> None:
    rows.graded(store)
    before = shape_of(database)
    store.apply_schema()
    assert shape_of(database) == before
    assert store.table("submission_status")[0]["state"] == "graded"


def test_psql_and_program_make_the_same_database(empty_database: str, database: str) -> None:
    for _ in range(2):
        applied = psql(empty_database)
        assert applied.returncode == 0
        assert applied.stderr == "", "a second time is no reason for a warning"
    assert shape_of(empty_database) == shape_of(database)
    apply(empty_database)
    assert shape_of(empty_database) == shape_of(database)


def test_it_can_be_applied_from_several_sides_at_once(empty_database: str, database: str) -> None:
    faults: list[BaseException] = []
    together = threading.Barrier(4)

    def apply_at_once() -> None:
        try:
            together.wait(10)
            apply(empty_database)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=apply_at_once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert faults == []
    assert shape_of(empty_database) == shape_of(database)


def test_it_waits_for_who_works_with_the_tables(store: Store, database: str) -> None:
    """An operator may apply it while the daemons run."""
    run = rows.received(store)
    apply(database)
    assert rows.prepare(store, run) == run


def test_another_version_is_refused_and_nothing_is_changed(store: Store, session: Session, database: str) -> None:
    session("UPDATE schema_version SET version = %s", SCHEMA_VERSION + 1)
    before = shape_of(database)
    with pytest.raises(SchemaMismatch, match=f"version {SCHEMA_VERSION + 1}") as refused:
        store.apply_schema()
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 4
    assert psql(database).returncode != 0
    assert shape_of(database) == before
    assert store.table("schema_version")[0]["version"] == SCHEMA_VERSION + 1, "the same connection goes on"


def test_a_daemon_refuses_another_version(session: Session, database: str) -> None:
    session("UPDATE schema_version SET version = 0")
    with pytest.raises(SchemaMismatch, match=f"version 0, this program needs {SCHEMA_VERSION}"):
        Store.connect(database)


def test_a_daemon_refuses_an_empty_database(empty_database: str) -> None:
    with pytest.raises(SchemaMismatch, match=r"psql -f schema\.sql"):
        Store.connect(empty_database)


def test_tables_that_vanish_later_are_a_mismatch_too(store: Store, session: Session) -> None:
    session("DROP TABLE results CASCADE")
    with pytest.raises(SchemaMismatch):
        store.table("results")


def test_a_version_stands_there_once(session: Session) -> None:
    assert isinstance(
        session.refusal("INSERT INTO schema_version (version) VALUES (1)"), psycopg2.errors.UniqueViolation
    )
