"""`config`, `schema`, the help, and the command as a process with its exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg2
import pytest

from greengrader.config import Settings
from greengrader.db import Store
from tests import rows
from tests.operate.conftest import Command

ROOT = Path(__file__).parents[2]
COMMANDS = ("status", "results", "assignment", "rerun", "cancel", "worker", "rejected", "config", "schema")


def process(*words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GREENGRADER_")}
    environment |= {f"GREENGRADER_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "greengrader", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def empty_database(database: str) -> str:
    """The test's database without anything in it."""
    connection = psycopg2.connect(database)
    connection.autocommit = True
    connection.cursor().execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    connection.close()
    return database


def test_config_shows_what_is_in_force(greengrader: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENGRADER_CPUS", "3")
    monkeypatch.setenv("GREENGRADER_NETWORK", "yes")
    monkeypatch.setenv("GREENGRADER_MQTT_URL", "mqtt://hub:secret@broker")
    lines = greengrader("config").lines
    assert len(lines) == len(Settings.model_fields)
    for line in ("GREENGRADER_CPUS=3", "GREENGRADER_NETWORK=true", "GREENGRADER_MQTT_URL=mqtt://hub:***@broker",
                 "GREENGRADER_WORKER_NAME=", "GREENGRADER_DEFAULT_WATTS_MIN=0.74"):  # fmt: skip
        assert line in lines
    assert "secret" not in "".join(lines)


def test_config_needs_no_database(greengrader: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GREENGRADER_DATABASE_URL")
    assert greengrader("config").code == 0


def test_the_example_needs_no_good_settings(greengrader: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENGRADER_NONSENSE", "1")
    assert greengrader("config", "--example").out == (ROOT / ".env.example").read_text()


def test_schema_fills_an_empty_database(
    greengrader: Command, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = greengrader("schema")
    assert (answer.code, answer.out) == (0, "schema version 1 is in the database now, which had none\n")
    with Store.connect(empty_database) as store:
        rows.graded(store)


def test_schema_a_second_time_harms_nothing(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    answer = greengrader("schema")
    assert answer.code == 0 and "held schema version 1 already" in answer.out
    assert greengrader("status", "--json").json_lines[0]["state"] == "graded"


def test_help_is_there_for_every_command(greengrader: Command) -> None:
    whole = greengrader("--help")
    assert whole.code == 0 and "Exit codes" in whole.out
    for command in COMMANDS:
        answer = greengrader(command, "--help")
        assert answer.code == 0 and answer.out.startswith(f"usage: python3 -m greengrader {command}"), command
        assert f"\n    {command}" in whole.out


@pytest.mark.parametrize("words", [[], ["grade"], ["assignment"], ["rejected"], ["worker", "fire", "x"]])
def test_an_unknown_command_is_a_usage_error(greengrader: Command, words: list[str]) -> None:
    assert greengrader(*words).code == 2


# --------------------------------------------------------------------------------------------------------- as a process
def test_exit_code_0(database: str) -> None:
    done = process("status", database_url=database)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no submissions\n", "")


def test_a_terminal_without_unicode_is_served(database: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.abandoned(store, 1001, "über")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = process("status", "1001", "--identities", database_url=database)
    assert (done.returncode, done.stderr) == (0, "") and "\\xfcber" in done.stdout


def test_exit_code_1_where_it_is_not_found(database: str) -> None:
    done = process("results", "1001", database_url=database)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("greengrader: submission 1001 is not here") and done.stderr.count("\n") == 1


def test_exit_code_2_without_a_database_or_with_an_unknown_setting() -> None:
    for settings in ({}, {"timout_s": "5"}):
        done = process("status", **settings)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_exit_code_2_for_a_wrong_password(database: str) -> None:
    wrong = database.replace("@", "x@")
    done = process("status", database_url=wrong)
    assert done.returncode == 2 and "GREENGRADER_DATABASE_URL" in done.stderr
    assert wrong not in done.stderr


def test_exit_code_3_where_postgres_is_away() -> None:
    done = process("status", database_url="postgresql://hub:x@127.0.0.1:1/db")
    assert done.returncode == 3 and done.stderr.count("\n") == 1, done.stderr


def test_exit_code_4_without_tables_or_with_others(empty_database: str) -> None:
    assert process("status", database_url=empty_database).returncode == 4
    assert process("schema", database_url=empty_database).returncode == 0
    connection = psycopg2.connect(empty_database)
    connection.autocommit = True
    connection.cursor().execute("UPDATE schema_version SET version = 99")
    connection.close()
    for command in ("status", "schema"):
        done = process(command, database_url=empty_database)
        assert done.returncode == 4 and "99" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_reader_that_leaves_is_no_fault(database: str, store: Store) -> None:
    """`greengrader results … | head -1`"""
    for submission_id in range(1, 400):
        rows.received(store, submission_id)
    command = f"{sys.executable} -m greengrader results --assignment 7 --csv | head -1; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"GREENGRADER_DATABASE_URL": database}
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("submission_id,")
