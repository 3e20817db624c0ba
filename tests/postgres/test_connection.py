"""The connection: who waits is woken, who was away listens again, and every fault has its name."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from greengrader.daemon import Stop
from greengrader.db import RUNS_CHANNEL, WORKERS_CHANNEL, NewSubmission, Store
from greengrader.errors import GreenGraderError, ServiceUnavailable, SettingsError
from services import Postgres, start_postgres
from tests import rows
from tests.postgres.conftest import Session
from tests.waiting import eventually


# ---------------------------------------------------------------------------------------------------------- notices
def test_a_listener_is_woken(store: Store, second_store: Store, stop: Stop) -> None:
    store.listen(RUNS_CHANNEL, WORKERS_CHANNEL)
    run = rows.received(second_store)
    assert store.wait(stop, 30) == [(RUNS_CHANNEL, f"received {run.run_id}")]
    assert store.wait(stop, 0) == [], "each notice is told once"
    rows.worker(second_store)
    assert store.wait(stop, 30) == [(WORKERS_CHANNEL, "worker-1")]


def test_a_listener_is_woken_while_it_waits(store: Store, second_store: Store, stop: Stop) -> None:
    store.listen(RUNS_CHANNEL)
    heard: list[list[tuple[str, str]]] = []
    listener = threading.Thread(target=lambda: heard.append(store.wait(stop, 30)))
    listener.start()
    run = rows.received(second_store)
    listener.join(10)
    assert heard == [[(RUNS_CHANNEL, f"received {run.run_id}")]]


def test_stop_wakes_it_too(store: Store, stop: Stop) -> None:
    store.listen(RUNS_CHANNEL)
    heard: list[list[tuple[str, str]]] = []
    listener = threading.Thread(target=lambda: heard.append(store.wait(stop, 30)))
    listener.start()
    stop.set()
    listener.join(10)
    assert heard == [[]]


def test_what_came_along_with_an_answer_is_not_waited_for(store: Store, second_store: Store, stop: Stop) -> None:
    """A notice may arrive while a query is answered; then the socket stays silent."""
    store.listen(RUNS_CHANNEL)
    run = rows.received(second_store)
    eventually(lambda: store.table("submissions"))
    assert store.wait(stop, 30) == [(RUNS_CHANNEL, f"received {run.run_id}")]


def test_a_rolled_back_change_is_not_notified(store: Store, second_store: Store, stop: Stop) -> None:
    store.listen(RUNS_CHANNEL)
    with pytest.raises(GreenGraderError):
        second_store.receive_submissions([rows.new_submission(1), rows.new_submission(2, gradescope_score="x")])
    assert store.wait(stop, 0.05) == []


@pytest.mark.parametrize(
    ("slots", "accepting", "told"), [(2, True, False), (3, True, True), (2, False, False)], ids=["same", "more", "full"]
)
def test_a_heartbeat_wakes_the_scheduler_only_for_news(
    store: Store, second_store: Store, stop: Stop, slots: int, accepting: bool, told: bool
) -> None:
    """With a thousand workers it would never sleep otherwise."""
    rows.worker(second_store, slots=2)
    store.listen(WORKERS_CHANNEL)
    second_store.see_worker("worker-1", slots, accepting, [])
    assert bool(store.wait(stop, 5 if told else 0.05)) is told


def test_a_worker_that_comes_back_or_is_resumed_wakes_the_scheduler(
    store: Store, second_store: Store, stop: Stop
) -> None:
    rows.worker(second_store)
    store.listen(WORKERS_CHANNEL)
    second_store.lose_worker("worker-1")
    second_store.see_worker("worker-1", 2, True, [])
    assert store.wait(stop, 5) == [(WORKERS_CHANNEL, "worker-1")]
    second_store.drain_worker("worker-1", False)
    assert store.wait(stop, 5) == [(WORKERS_CHANNEL, "worker-1")]


# ------------------------------------------------------------------------------------------------------- interrupted
@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A server that the test may stop."""
    server = start_postgres(tmp_path / "postgres", durable=False)
    yield server
    server.stop()
    server.remove()


def test_a_restarted_server_is_found_again_and_listened_to(own_postgres: Postgres, stop: Stop) -> None:
    with (
        Store.connect(own_postgres.url, check_schema=False) as store,
        Store.connect(own_postgres.url, check_schema=False) as other,
    ):
        store.apply_schema()
        store.listen(RUNS_CHANNEL)
        stored = rows.received(other)
        assert store.wait(stop, 10)
        waiting: list[BaseException] = []

        def wait() -> None:
            try:
                store.wait(stop, 60)
            except ServiceUnavailable as error:
                waiting.append(error)

        listener = threading.Thread(target=wait)
        listener.start()
        own_postgres.stop()
        listener.join(10)
        assert len(waiting) == 1, "who waits for a notice learns that nobody can send one"
        for call in (store.workers, lambda: store.wait(stop, 0), lambda: store.start_run(1, 1, "w")):
            with pytest.raises(ServiceUnavailable):
                call()
        with pytest.raises(ServiceUnavailable):
            other.receive_submissions([rows.new_submission(2)])

        own_postgres.start()
        run = rows.received(other, 2)
        assert store.newest_received() is not None, "the first call connects"
        assert rows.prepare(other, run)
        assert store.wait(stop, 10) == [(RUNS_CHANNEL, f"dispatched {run.run_id}")]
        assert other.table("submissions", "submission_key = %s", stored.submission_key), "nothing was lost"


def test_waiting_alone_connects_again(database: str, session: Session, stop: Stop) -> None:
    with Store.connect(database, application="listener") as store:
        store.listen(RUNS_CHANNEL)
        end_sessions_of(session, "listener")
        with pytest.raises(ServiceUnavailable):
            store.wait(stop, 10)
        assert store.wait(stop, 0) == []
        with Store.connect(database) as other:
            run = rows.received(other)
        assert store.wait(stop, 10) == [(RUNS_CHANNEL, f"received {run.run_id}")]


def test_a_connection_that_is_cut_between_calls_costs_one_call(database: str, session: Session) -> None:
    with Store.connect(database, application="cut") as store:
        end_sessions_of(session, "cut")
        with pytest.raises(ServiceUnavailable, match="went away"):
            store.workers()
        assert store.workers() == []


def test_a_connection_that_is_cut_within_a_transaction_leaves_nothing(
    database: str, session: Session, tmp_path: Path
) -> None:
    """Cut between the rows and the bytes of a payload: neither is there, and the same batch goes through later."""
    ended: list[bool] = []

    class CutWhenRead(type(tmp_path)):  # type: ignore[misc]  # pathlib's class depends on the system
        def open(self, *arguments: Any, **options: Any) -> Any:
            end_sessions_of(session, "ingest")
            ended.append(True)
            return super().open(*arguments, **options)

    file = tmp_path / "payload"
    file.write_bytes(b"x" * 20_000_000)
    columns = rows.new_submission(payload_bytes=20_000_000).columns
    with Store.connect(database, application="ingest") as store:
        with pytest.raises(ServiceUnavailable):
            store.receive_submissions([NewSubmission(columns, CutWhenRead(file))])
        assert ended
        assert store.table("submissions") == []
        assert None not in store.receive_submissions([NewSubmission(columns, file)])


def end_sessions_of(session: Session, application: str) -> None:
    assert session(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        " AND datname = current_database()",
        application,
    )
    eventually(
        lambda: not session("SELECT 1 FROM pg_stat_activity WHERE application_name = %s", application),
        what="the end of the session",
    )


# ------------------------------------------------------------------------------------------------------ at the start
def replaced(url: str, **parts: str) -> str:
    """The address with another user, password, or path."""
    split = urlsplit(url)
    user, password = parts.get("user", split.username), parts.get("password", split.password)
    netloc = f"{user}:{password}@{split.hostname}:{parts.get('port', split.port)}"
    return urlunsplit(split._replace(netloc=netloc, path=parts.get("path", split.path)))


@pytest.mark.parametrize(
    "wrong",
    [{"password": "wrong-secret"}, {"user": "nobody"}, {"path": "/no_such_database"}],
    ids=["password", "user", "database"],
)
def test_a_refused_account_is_a_matter_of_settings(database: str, wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="GREENGRADER_DATABASE_URL") as refused:
        Store.connect(replaced(database, **wrong))
    assert refused.value.exit_code == 2
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["postgres:/user:my-secret@host/db", "my-secret", "postgresql://user:my-secret@host:port/db",
     "postgresql://u:my-secret@h/d?colour=green"],
)  # fmt: skip
def test_a_malformed_address_is_named_but_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="GREENGRADER_DATABASE_URL") as refused:
        Store.connect(url)
    assert "secret" not in str(refused.value)


def test_nobody_at_the_address_is_an_outage() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceUnavailable, match="does not answer") as refused:
            Store.connect(f"postgresql://u:my-secret@127.0.0.1:{unused.getsockname()[1]}/d")
    assert refused.value.exit_code == 3
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


def test_no_secret_is_told_of_a_session_that_ends(store: Store, database: str) -> None:
    password = database.split(":")[2].split("@")[0]
    store._query("SELECT 1")
    with pytest.raises(GreenGraderError) as refused:
        store._query("SELECT * FROM no_such_function()")
    assert password not in str(refused.value)


def test_a_closed_store_connects_again_when_asked(store: Store) -> None:
    store.close()
    store.close()
    assert store.workers() == []


def test_an_operator_sees_who_is_connected(database: str, session: Session) -> None:
    with Store.connect(database, application="dispatcher"):
        assert session("SELECT 1 FROM pg_stat_activity WHERE application_name = 'dispatcher'")
