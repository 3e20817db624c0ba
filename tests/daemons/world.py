"""The daemons as real processes against real services: start them, kill them, publish to them, wait for what must
come."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2

from greengrader.db import Store
from services import Broker
from tests.builders import build_payload

ROOT = Path(__file__).resolve().parents[2]
WORKER = "worker-1"


class Daemon:
    """A script as a process of its own; its standard error goes to a file."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )

    def said(self) -> str:
        """What this process has written so far."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode("utf-8", "replace")

    def ready(self, timeout_s: float = 30) -> "Daemon":
        wait_until(
            lambda: " ready" in self.said() or self.process.poll() is not None,
            timeout_s,
            lambda: f"{self.log.name} ready",
        )
        assert self.process.poll() is None, self.said()
        return self

    def says(self, text: str, timeout_s: float = 30) -> None:
        wait_until(
            lambda: text in self.said(), timeout_s, lambda: f"{text!r} in {self.log.name}: {self.said()[-2000:]}"
        )

    def terminate(self, timeout_s: float = 30) -> int:
        """Exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class World:
    """One database, one broker, and the daemons of a test."""

    def __init__(self, directory: Path, database_url: str, broker: Broker, base_image: str = "none:local") -> None:
        self.directory, self.database_url, self.broker, self.base_image = directory, database_url, broker, base_image
        self.daemons: list[Daemon] = []
        self.store = Store.connect(database_url)
        self.submit_host, self.submit_port = "127.0.0.1", broker.port
        self.submit_user, self.submit_password = "submit", broker.password("submit")

    def environment(self, *, worker: str | None = None, **settings: str) -> dict[str, str]:
        """The settings of the hub's daemons, or of one worker: which knows no database."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("GREENGRADER_")}
        own |= {
            "GREENGRADER_MQTT_URL": self.broker.url_for(worker or "hub"),
            "GREENGRADER_STATE_DIR": str(self.directory / "state"),
            "GREENGRADER_BASE_IMAGE": self.base_image,
            "GREENGRADER_MIN_FREE_DISK_BYTES": "0",
        }
        if worker:
            own["GREENGRADER_WORKER_NAME"] = worker
        else:
            own["GREENGRADER_DATABASE_URL"] = self.database_url
        return own | {f"GREENGRADER_{name.upper()}": value for name, value in settings.items()}

    def start(self, script: str, *arguments: str, worker: str | None = None, **settings: str) -> Daemon:
        name = f"{script}-{worker}" if worker else script
        daemon = Daemon(
            [str(ROOT / f"{script}.py"), *arguments],
            self.environment(worker=worker, **settings),
            self.directory / f"{name}.log",
        )
        self.daemons.append(daemon)
        return daemon

    def run(
        self, script: str, *arguments: str, worker: str | None = None, timeout_s: float = 60, **settings: str
    ) -> Any:
        """A command that ends by itself: its CompletedProcess."""
        path = ["-m", script] if script == "greengrader" else [str(ROOT / f"{script}.py")]
        return subprocess.run(
            [sys.executable, *path, *arguments], env=self.environment(worker=worker, **settings), cwd=ROOT,
            capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def start_hub(self, **settings: str) -> dict[str, Daemon]:
        """The four daemons of the hub, ready."""
        hub = {
            "ingest": self.start("ingest", **settings),
            "dispatcher": self.start("dispatcher", "--watch", **settings),
            "scheduler": self.start("scheduler", **settings),
            "receiver": self.start("receiver", **settings),
        }
        for daemon in hub.values():
            daemon.ready()
        return hub

    def start_worker(self, name: str = WORKER, slots: int = 2, **settings: str) -> Daemon:
        """A registered worker, ready and known to the hub as alive; needs the receiver."""
        registered = self.run("register", worker=name)
        assert registered.returncode == 0, registered.stderr
        worker = self.start("execute", "--slots", str(slots), worker=name, **settings).ready()
        wait_until(
            lambda: any(w.worker == name and w.accepting for w in self.store.workers()),
            30,
            lambda: f"{name} to be seen",
        )
        return worker

    def publish(self, payload: bytes, *options: str) -> None:
        """By the real mosquitto_pub, at QoS 0 and MQTT 3.1.1 as the plain snippet does."""
        path = self.directory / "gradescope_data.zip"
        path.write_bytes(payload)
        subprocess.run(
            ["mosquitto_pub", "-h", self.submit_host, "-p", str(self.submit_port), "-u", self.submit_user,
             "-P", self.submit_password, "-t", "submissions", "-f", str(path), *options],
            check=True, timeout=60,
        )  # fmt: skip

    def administer(self, command: str) -> None:
        """A command for the server itself, on a connection of its own."""
        connection = psycopg2.connect(self.database_url.rsplit("/", 1)[0] + "/postgres")
        connection.autocommit = True
        try:
            connection.cursor().execute(command)
        finally:
            connection.close()

    def status(self, submission_id: int) -> dict[str, Any] | None:
        rows = self.store.table("submission_status", "submission_id = %s", submission_id)
        return rows[0] if rows else None

    def wait_state(self, submission_id: int, *states: str, timeout_s: float = 60) -> dict[str, Any]:
        """The submission's row in submission_status, as soon as it is in one of the states."""

        def arrived() -> bool:
            row = self.status(submission_id)
            return row is not None and row["state"] in states

        wait_until(
            arrived,
            timeout_s,
            lambda: f"submission {submission_id} to be {states}: {self.status(submission_id)}\n{self.logs()}",
        )
        row = self.status(submission_id)
        assert row is not None
        return row

    def wait_graded(self, submission_id: int, timeout_s: float = 60) -> dict[str, Any]:
        return self.wait_state(submission_id, "graded", "abandoned", timeout_s=timeout_s)

    def count(self, state: str) -> int:
        return int(self.store._scalar("SELECT count(*) FROM runs WHERE state = %s", state))

    def logs(self) -> str:
        """The tail of every log, for the message of a failing test."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.directory.glob("*.log"))
        )

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.process.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        self.store.close()


def wait_until(condition: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
    """Returns when the condition holds; fails the test after the time, saying what it waited for and how things are."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what()}"
        time.sleep(0.02)


def payload(submission_id: int, score: float = 1.0, *, assignment_id: int = 7, script: str | None = None) -> bytes:
    """A submission of the smallest autograder: a shell script that writes the score."""
    results = json.dumps({"score": score})
    return build_payload(
        {"hello.txt": f"submission {submission_id}\n".encode()},
        run_autograder=script or f"#!/bin/sh\necho '{results}' > /autograder/results/results.json\n",
        metadata={"id": submission_id, "assignment": {"id": assignment_id}},
        results={"score": score},
        without=["gradescope_data/autograder/source/setup.sh"],  # nothing to install
    )
