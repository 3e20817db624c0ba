"""`up` and `down` of the whole embedded stack, in a state directory of the test's own."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from services import Broker, Postgres

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ["postgres", "mosquitto"]
DAEMONS = ["ingest", "dispatcher", "scheduler", "receiver", "execute"]

pytestmark = pytest.mark.docker


class Stack:
    def __init__(self, state: Path, base_image: str) -> None:
        self.state = state
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("GREENGRADER_")}
        self.environment |= {"GREENGRADER_STATE_DIR": str(state), "GREENGRADER_BASE_IMAGE": base_image}
        self.environment["PYTHONPATH"] = str(ROOT)  # the package need not be installed

    def __call__(self, command: str) -> str:
        words = [sys.executable, str(ROOT / "deploy/stack.py"), command]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pids(self) -> dict[str, int]:
        """{name: pid} of what runs."""
        return {name: int(pid) for name, pid in re.findall(r"^(\w+) +pid (\d+)", self("status"), re.MULTILINE)}

    def source(self) -> None:
        """As `. .greengrader/env` in the shell that calls the next command."""
        script = f". {shlex.quote(str(self.state / 'env'))} && env -0"
        printed = subprocess.run(
            ["bash", "-c", script], env=self.environment, capture_output=True, text=True, check=True
        )
        self.environment = dict(line.split("=", 1) for line in printed.stdout.split("\0") if line)


def is_running(pid: int) -> bool:
    """A process that has ended keeps its number until its parent asks for it, but no command line."""
    command_line = Path(f"/proc/{pid}/cmdline")
    return command_line.exists() and command_line.read_bytes() != b""


@pytest.fixture
def stack(tmp_path: Path, base_image: str) -> Iterator[Stack]:
    stack = Stack(tmp_path / "state", base_image)
    yield stack
    stack("down")
    Postgres(stack.state / "postgres").remove()
    Broker(stack.state / "mosquitto").remove()


def test_up_and_down_and_up_again(stack: Stack) -> None:
    printed = stack("up")
    assert "ready." in printed
    for name in ("HOST", "PORT", "USER", "PASSWORD"):
        assert re.search(rf"^ +{name}=\S+$", printed, re.MULTILINE), "how to submit"
    first = stack.pids()
    assert sorted(first) == sorted(SERVICES + DAEMONS)

    # Again, from a shell that has sourced the settings: those are no addresses of somebody else's.
    stack.source()
    stack("up")
    assert stack.pids() == first

    os.kill(first["ingest"], signal.SIGKILL)
    stack("up")
    second = stack.pids()
    assert {name for name in first if second[name] != first[name]} == {"ingest"}

    assert stack("down").startswith("stopped: execute, receiver, scheduler, dispatcher, ingest, mosquitto, postgres;")
    assert stack.pids() == {}
    assert not [name for name, pid in second.items() if is_running(pid)]
    assert stack("down") == "nothing was running\n"

    stack("up")
    connection = psycopg2.connect(stack.environment["GREENGRADER_DATABASE_URL"])
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT worker FROM workers")
        assert cursor.fetchall() == [("worker-1",)]
    connection.close()


def test_the_worker_knows_no_database_and_the_env_file_is_private(stack: Stack) -> None:
    stack("up")
    stack.source()
    known = Path(f"/proc/{stack.pids()['execute']}/environ").read_text()
    assert "GREENGRADER_MQTT_URL=mqtt://worker-1:" in known
    assert "GREENGRADER_DATABASE_URL" not in known
    assert stack.environment["GREENGRADER_SUBMIT_PASSWORD"] not in known
    assert (stack.state / "env").stat().st_mode & 0o077 == 0
