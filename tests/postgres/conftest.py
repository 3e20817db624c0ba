"""Sessions of the tests' own beside the Store under test: statements as anybody could type them into psql."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg2
import psycopg2.extensions
import pytest

from greengrader.daemon import Stop
from greengrader.db import Store
from services import Postgres
from tests.conftest import fresh_database
from tests.waiting import eventually

Answer = TypeVar("Answer")


class Session:
    """A session with the database; each statement is a transaction unless `begin` was called."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def __call__(self, statement: str, *values: Any, **named: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or named or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *values: Any) -> Any:
        return self(statement, *values)[0][0]

    def refusal(self, statement: str, *values: Any) -> psycopg2.Error:
        """The error that refuses the statement; everything stays as it was."""
        self("BEGIN")
        try:
            self(statement, *values)
        except psycopg2.Error as error:
            return error
        finally:
            self("ROLLBACK")
        raise AssertionError(f"not refused: {statement}")

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="package")
def shared_database(postgres: Postgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
def database(shared_database: str) -> Iterator[str]:
    """URL of a database with the schema and no rows; emptying one is ten times faster than making one."""
    yield shared_database
    session = Session(shared_database)
    for table in ("runs", "rejected", "submissions", "assignments", "workers", "autograders", "receiver_progress"):
        session(f"DELETE FROM {table}")
    session.close()


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    opened = Session(database)
    yield opened
    opened.close()


@pytest.fixture
def second_store(database: str) -> Iterator[Store]:
    """Another process's connection."""
    with Store.connect(database, application="second") as connected:
        yield connected


@pytest.fixture
def stop() -> Stop:
    """Nobody stops anything unless the test does."""
    return Stop()


class Overtaking:
    """Runs `late` in a second session that comes while a first one has not committed yet."""

    def __init__(self, database: str, late_store: Store) -> None:
        self._database, self._store = database, late_store
        self._watch = Session(database)

    def __call__(self, first: str, *values: Any, late: Callable[[Store], Answer]) -> Answer:
        """What `late` returns; it is made sure that it had to wait for the first statement's commit."""
        answers: list[Answer | BaseException] = []

        def run() -> None:
            try:
                answers.append(late(self._store))
            except BaseException as error:
                answers.append(error)

        ahead = Session(self._database)
        thread = threading.Thread(target=run)
        try:
            ahead("BEGIN")
            ahead(first, *values)
            thread.start()
            eventually(self._is_blocked, what="that the second session waits for the first")
            ahead("COMMIT")
            thread.join(10)
        finally:
            ahead.close()
        (answer,) = answers
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _is_blocked(self) -> bool:
        return bool(
            self._watch.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'second' AND wait_event_type = 'Lock'"
            )
        )

    def close(self) -> None:
        self._watch.close()


@pytest.fixture
def overtaken(database: str, second_store: Store) -> Iterator[Overtaking]:
    overtaking = Overtaking(database, second_store)
    yield overtaking
    overtaking.close()
