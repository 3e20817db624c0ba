"""Every daemon ends with the code that DESIGN §7 names, and with one clear line."""

import signal
import socket
from pathlib import Path

import psycopg2
import pytest

from tests.daemons.world import World

HUB = [("ingest", ()), ("dispatcher", ("--watch",)), ("scheduler", ()), ("receiver", ())]
LINKED = ["ingest", "scheduler", "receiver"]
hub_daemons = pytest.mark.parametrize(("script", "arguments"), HUB, ids=[name for name, _ in HUB])


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def only_line(text: str) -> str:
    lines = [line for line in text.splitlines() if " ERROR " in line]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


@hub_daemons
def test_sigterm_when_idle_is_exit_0(world: World, script: str, arguments: tuple[str, ...]) -> None:
    daemon = world.start(script, *arguments).ready()
    assert daemon.terminate(10) == 0
    assert " ERROR " not in daemon.said()


@hub_daemons
def test_a_missing_setting_is_exit_2(world: World, script: str, arguments: tuple[str, ...]) -> None:
    ended = world.run(script, *arguments, database_url="")
    assert ended.returncode == 2
    assert "GREENGRADER_DATABASE_URL is not set" in only_line(ended.stderr)


@hub_daemons
def test_all_bad_settings_are_named_at_once(world: World, script: str, arguments: tuple[str, ...]) -> None:
    ended = world.run(script, *arguments, lease_seconds="3", max_attempts="none")
    assert ended.returncode == 2
    line = only_line(ended.stderr)
    assert "GREENGRADER_LEASE_SECONDS" in line and "GREENGRADER_LEASE_S" in line and "GREENGRADER_MAX_ATTEMPTS" in line


@hub_daemons
def test_an_unknown_option_is_exit_2(world: World, script: str, arguments: tuple[str, ...]) -> None:
    ended = world.run(script, *arguments, "--no-such-option")
    assert ended.returncode == 2
    assert "--no-such-option" in ended.stderr


@hub_daemons
def test_help_tells_how_to_run_it(world: World, script: str, arguments: tuple[str, ...]) -> None:
    ended = world.run(script, "--help")
    assert ended.returncode == 0
    assert f"python3 {script}.py" in ended.stdout and "Exit codes" in ended.stdout


@hub_daemons
def test_postgres_away_at_start_is_exit_3(world: World, script: str, arguments: tuple[str, ...]) -> None:
    ended = world.run(script, *arguments, database_url=f"postgresql://a:b@127.0.0.1:{unused_port()}/x")
    assert ended.returncode == 3
    assert "Postgres does not answer" in only_line(ended.stderr)


@hub_daemons
def test_a_wrong_database_password_is_exit_2(world: World, script: str, arguments: tuple[str, ...]) -> None:
    user = world.database_url.split("//")[1].split(":")[0]
    address = world.database_url.split("@")[1]
    ended = world.run(script, *arguments, database_url=f"postgresql://{user}:wrong-secret@{address}")
    assert ended.returncode == 2
    line = only_line(ended.stderr)
    assert "GREENGRADER_DATABASE_URL" in line and "wrong-secret" not in line


@hub_daemons
def test_another_schema_is_exit_4(world: World, script: str, arguments: tuple[str, ...]) -> None:
    connection = psycopg2.connect(world.database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE schema_version SET version = 0")
    connection.close()
    ended = world.run(script, *arguments)
    assert ended.returncode == 4
    assert "schema version 0" in only_line(ended.stderr)


@pytest.mark.parametrize("script", LINKED)
def test_broker_away_at_start_is_exit_3(world: World, script: str) -> None:
    ended = world.run(script, mqtt_url=f"mqtt://hub:x@127.0.0.1:{unused_port()}")
    assert ended.returncode == 3
    assert "does not answer" in only_line(ended.stderr)


@pytest.mark.parametrize("script", LINKED)
def test_a_wrong_broker_password_is_exit_2(world: World, script: str) -> None:
    ended = world.run(script, mqtt_url=f"mqtt://hub:wrong-secret@127.0.0.1:{world.broker.port}")
    assert ended.returncode == 2
    line = only_line(ended.stderr)
    assert "refuses account 'hub'" in line and "wrong-secret" not in line


def test_register_and_execute_without_a_broker(world: World) -> None:
    away = f"mqtt://worker-1:x@127.0.0.1:{unused_port()}"
    ended = world.run("register", worker="worker-1", mqtt_url=away)
    assert ended.returncode == 3
    assert "does not answer" in only_line(ended.stderr)


@pytest.mark.docker
def test_execute_without_a_broker_and_without_an_engine(world: World, docker_engine: str, tmp_path: Path) -> None:
    ended = world.run("execute", worker="worker-1", mqtt_url=f"mqtt://worker-1:x@127.0.0.1:{unused_port()}")
    assert ended.returncode == 3
    assert "does not answer" in only_line(ended.stderr)


@hub_daemons
def test_a_service_away_beyond_the_limit_is_exit_3(world: World, script: str, arguments: tuple[str, ...]) -> None:
    """The database is renamed away under a running daemon, which has a second of patience."""
    daemon = world.start(script, *arguments, outage_limit_s="1", worker_silent_s="0.1").ready()
    world.store.close()
    base, name = world.database_url.rsplit("/", 1)
    connection = psycopg2.connect(f"{base}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    if script == "ingest":  # it asks the database only when something comes
        world.publish(b"anything")
    assert daemon.process.wait(30) == 3, daemon.said()
    assert "Traceback" not in daemon.said()
    connection.close()


def test_a_second_signal_ends_at_once(world: World) -> None:
    daemon = world.start("dispatcher", "--watch").ready()
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(10) in (0, 128 + signal.SIGINT)


@pytest.mark.parametrize("script", LINKED)
def test_a_second_one_of_the_same_daemon_is_refused(world: World, script: str) -> None:
    """Two would throw each other off the broker for ever."""
    world.start(script).ready()
    ended = world.run(script)
    assert ended.returncode == 2
    assert f"{script} runs already" in only_line(ended.stderr)


@pytest.mark.docker
def test_a_second_worker_of_the_same_name_is_refused(world: World, docker_engine: str) -> None:
    world.start("execute", worker="worker-1").ready()
    ended = world.run("execute", worker="worker-1")
    assert ended.returncode == 2
    assert "worker-1 runs on this machine already" in only_line(ended.stderr)
