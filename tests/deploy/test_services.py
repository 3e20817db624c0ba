"""The embedded Postgres and Mosquitto: found again, restarted, killed, copied, and nothing lost meanwhile."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from greengrader.daemon import Stop
from greengrader.errors import ServiceUnavailable
from places import OUTSIDE, key_of
from processes import Detached
from services import Broker, Postgres, start_mosquitto, start_postgres
from tests.conftest import LinkOf


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that this module may stop; it runs again after each test."""
    server = start_postgres(tmp_path_factory.mktemp("own") / "postgres", durable=False)
    yield server
    server.remove()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    server = start_mosquitto(tmp_path / "mosquitto")
    yield server
    server.remove()


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def mosquitto(program: str, broker: Broker, account: str, *words: str) -> subprocess.CompletedProcess[str]:
    address = ["-h", "127.0.0.1", "-p", str(broker.port), "-u", account, "-P", broker.password(account)]
    return subprocess.run([program, *address, *words], capture_output=True, text=True, timeout=30, check=False)


class TestPostgres:
    def test_a_second_start_finds_the_running_server(self, own_postgres: Postgres) -> None:
        again = start_postgres(own_postgres.directory)
        assert (again.pid, again.url) == (own_postgres.pid, own_postgres.url)

    @pytest.mark.parametrize("end", ["restart", "kill"])
    def test_what_is_committed_survives(self, own_postgres: Postgres, end: str) -> None:
        url, pid = own_postgres.url, own_postgres.pid
        query(url, f"CREATE TABLE kept_{end} AS SELECT 1 AS a")
        open_session = psycopg2.connect(url)
        open_session.cursor().execute(f"INSERT INTO kept_{end} VALUES (2)")
        getattr(own_postgres, end)()
        own_postgres.start()
        assert own_postgres.url == url, "the address changed"
        assert own_postgres.pid != pid
        assert query(url, f"SELECT a FROM kept_{end}") == [(1,)]

    def test_it_is_set_up_as_the_design_says(self, own_postgres: Postgres) -> None:
        names = ("listen_addresses", "shared_buffers", "max_connections", "TimeZone", "server_encoding")
        row = query(own_postgres.url, f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}")[0]
        assert row == ("127.0.0.1", "128MB", "100", "UTC", "UTF8")
        assert query(own_postgres.url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]

    def test_another_password_is_refused(self, own_postgres: Postgres) -> None:
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(own_postgres.url.replace(own_postgres.password, "guessed"))


class TestBroker:
    def test_a_second_start_finds_the_running_broker(self, own_broker: Broker) -> None:
        again = start_mosquitto(own_broker.directory)
        assert (again.pid, again.url_for("hub")) == (own_broker.pid, own_broker.url_for("hub"))

    def test_a_queued_message_survives_a_restart(self, own_broker: Broker) -> None:
        session = ("-i", "reader", "-c", "-q", "1", "-t", "submissions")
        assert mosquitto("mosquitto_sub", own_broker, "hub", *session, "-E").returncode == 0
        mosquitto("mosquitto_pub", own_broker, "submit", "-t", "submissions", "-m", "published at QoS 0")
        # The publisher is gone before the broker has read a word of it; the next one's answer proves that it has.
        mosquitto("mosquitto_pub", own_broker, "hub", "-t", "elsewhere", "-m", "x", "-q", "1")
        own_broker.restart()
        read = mosquitto("mosquitto_sub", own_broker, "hub", *session, "-C", "1", "-W", "10")
        assert read.stdout == "published at QoS 0\n"

    def test_nobody_gets_in_without_an_account(self, own_broker: Broker) -> None:
        words = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(own_broker.port), "-t", "submissions", "-m", "x"]
        assert "not authorised" in subprocess.run(words, capture_output=True, text=True, check=False).stderr

    def test_passwords_are_stored_as_hashes_only_the_broker_may_read(self, own_broker: Broker) -> None:
        stored = own_broker.directory / "home/passwd"
        assert own_broker.password("submit") not in stored.read_text()
        assert stored.stat().st_mode & 0o077 == 0
        assert (own_broker.directory / "accounts.json").stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize(
        ("account", "topic", "may"),
        [
            ("submit", "submissions", True),
            ("submit", "jobs/submit", False),
            ("submit", "results/submit", False),
            ("submit", "workers/submit/registration", False),
            ("submit", "replies/anybody", False),
            ("worker-1", "results/worker-1", True),
            ("worker-1", "workers/worker-1/heartbeat", True),
            ("worker-1", "results/worker-2", False),
            ("worker-1", "jobs/worker-1", False),
            ("worker-1", "submissions", False),
            ("hub", "jobs/worker-1", True),
            ("hub", "replies/anybody", True),
        ],
    )
    def test_who_may_publish_what(self, broker: Broker, account: str, topic: str, may: bool) -> None:
        published = mosquitto("mosquitto_pub", broker, account, "-V", "5", "-q", "1", "-t", topic, "-m", "x")
        assert ("Not authorized" not in published.stderr) is may, published.stderr

    def test_the_snippets_account_reads_nobody_elses_messages(self, link_of: LinkOf) -> None:
        spy = link_of("submit", client_id="spy", subscribe=["#", "jobs/submit", "replies/spy"])
        hub = link_of("hub")
        for topic in ("submissions", "jobs/worker-1", "jobs/submit", "replies/you", "replies/spy"):
            hub.confirm(hub.publish(topic, b"told"))
        (heard,) = next(spy.batches(Stop(), idle_s=10))
        assert heard.topic == "replies/spy", "the last one published, and the only one it may read"


class TestDetached:
    def test_a_pid_that_is_somebody_elses_by_now_is_not_touched(self, tmp_path: Path) -> None:
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        pid_file = tmp_path / "pid"
        pid_file.write_text(str(other.pid))
        process = Detached("ours", pid_file, tmp_path / "log", marker="of-our-process")
        assert process.pid is None
        assert process.stop() is False
        assert other.poll() is None
        other.communicate(b"\n")

    def test_what_dies_at_once_is_reported_with_its_last_words(self, tmp_path: Path) -> None:
        process = Detached("ours", tmp_path / "pid", tmp_path / "log", marker="no port left")
        process.launch([sys.executable, "-c", "raise SystemExit('no port left')"])
        with pytest.raises(ServiceUnavailable, match="no port left"):
            process.wait_until(lambda: False, limit_s=10)

    def test_what_ignores_sigterm_is_killed(self, tmp_path: Path) -> None:
        process = Detached("ours", tmp_path / "pid", tmp_path / "log", marker="deaf")
        deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
        process.launch([sys.executable, "-c", deaf])
        process.wait_until(lambda: b"deaf" in process.log.read_bytes(), limit_s=10)
        assert process.stop(limit_s=0.2) is True
        assert process.pid is None


def test_a_copied_state_directory_is_refused(own_postgres: Postgres, tmp_path: Path) -> None:
    if not (own_postgres.directory / "data").is_symlink():
        pytest.skip("the data lies in the directory itself: not root, or no parent is closed to others")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", own_postgres.directory, copy], check=True)
    with pytest.raises(ServiceUnavailable, match="belongs to another checkout"):
        start_postgres(copy)


def test_a_removed_state_directory_starts_afresh_and_remove_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    left_over = OUTSIDE / key_of(directory / "data")
    if os.geteuid() == 0:  # whose services may live outside of their directory
        left_over.mkdir(parents=True)
        (left_over / "PG_VERSION").write_text("of a cluster whose password nobody knows")
    server = start_postgres(directory, durable=False)
    assert query(server.url, "SELECT 1") == [(1,)]
    pid, data = server.pid, (directory / "data").resolve()
    server.remove()
    assert not directory.exists()
    assert not data.exists()
    assert not Path(f"/proc/{pid}").exists()
    shutil.rmtree(left_over, ignore_errors=True)
