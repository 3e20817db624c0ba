"""What the benchmarks run against: one Postgres that really writes to disk, a broker with the real configuration for
each of them, and the daemons as processes.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg2
import psycopg2.extensions

from greengrader.daemon import Stop
from greengrader.db import RUNS_CHANNEL, Store
from greengrader.mqtt import Link
from services import start_mosquitto, start_postgres
from tests.bench.figure import MEGABYTE, NotMeasured
from tests.daemons.world import WORKER, Daemon, World

PATIENCE_S = 300.0
IN_FLIGHT = 100
"""Payloads published at a time by one client."""


class Stage:
    """The Postgres of all benchmarks, with the schema in its template; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres = start_postgres(directory / "postgres", durable=True)
        with Store.connect(self.postgres.url, check_schema=False) as store:
            store.apply_schema()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.postgres.stop()
        self.postgres.remove()

    @contextmanager
    def world(self, name: str, base_image: str = "none:local") -> Iterator[World]:
        """A database and a broker of the benchmark's own, both gone at the end; no daemon yet."""
        directory = self.directory / name
        broker = start_mosquitto(directory / "mosquitto", ("submit", "hub", WORKER))
        try:
            world = World(directory, self._database(name), broker, base_image)
            try:
                yield world
            finally:
                world.close()
        finally:
            broker.stop()
            broker.remove()

    def _database(self, name: str) -> str:
        """URL of a clone of the template, which goes with the server."""
        server, template = self.postgres.url.rsplit("/", 1)
        with bare_cursor(f"{server}/postgres") as cursor:
            cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return f"{server}/{name}"


class Transitions:
    """Hears of the runs' transitions in the moment of their commit; a context manager."""

    def __init__(self, database_url: str) -> None:
        self._store = Store.connect(database_url, application="bench")
        self._store.listen(RUNS_CHANNEL)
        self._stop = Stop()
        self.seen: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def await_runs(self, count: int, state: str, patience_s: float = PATIENCE_S) -> float:
        """Moment (monotonic) at which `count` more runs than when last asked have come to `state`."""
        deadline = time.monotonic() + patience_s
        self.seen.setdefault(state, 0)
        while self.seen[state] < count:
            for _, text in self._store.wait(self._stop, max(deadline - time.monotonic(), 0)):
                arrived, run_id = text.split()
                if arrived == "abandoned":
                    given_up = self._store.run(int(run_id))
                    raise NotMeasured(f"run {run_id} was given up: {given_up and given_up.error}")
                self.seen[arrived] = self.seen.get(arrived, 0) + 1
            if time.monotonic() >= deadline:
                raise NotMeasured(f"after {patience_s:.0f} s {self.seen[state]} of {count} runs are {state}")
        self.seen[state] -= count
        return time.monotonic()


def publish_all(world: World, payloads: Iterable[bytes]) -> None:
    """Publishes by one client at QoS 1; returns when the broker has taken them all."""
    url = world.broker.url_for("submit")
    with Link(url, client_id=f"bench-publisher-{os.getpid()}", keep_session=False) as link:
        receipts = []
        for payload in payloads:
            receipts.append(link.publish("submissions", payload))
            if len(receipts) >= IN_FLIGHT:
                link.confirm(receipts.pop(0))
        for receipt in receipts:
            link.confirm(receipt, PATIENCE_S)


def open_session(world: World) -> None:
    """Has ingest's session made, so that the broker keeps for it what comes while it is stopped."""
    world.start("ingest").ready().terminate()


def ready_at(daemon: Daemon) -> float:
    """Moment (monotonic) at which the daemon logged that it was ready, to the millisecond."""
    line = next(line for line in daemon.said().splitlines() if " INFO " in line and " ready" in line)
    since_s = time.time() - datetime.fromisoformat(line.split()[0]).timestamp()
    return time.monotonic() - since_s


@contextmanager
def bare_cursor(database_url: str) -> Iterator[psycopg2.extensions.cursor]:
    """A cursor of the driver itself, each statement a transaction of its own."""
    try:
        connection = psycopg2.connect(database_url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()
    except psycopg2.Error as error:
        raise NotMeasured(f"Postgres: {error}") from error


def memory_mb(daemon: Daemon, line: str) -> float:
    """A figure of /proc/PID/status: VmRSS is what the process takes now, VmHWM the most that it ever took."""
    for text in Path(f"/proc/{daemon.process.pid}/status").read_text(encoding="utf-8").splitlines():
        if text.startswith(f"{line}:"):
            return int(text.split()[1]) * 1024 / MEGABYTE
    raise NotMeasured(f"{line} of {daemon.log.stem} cannot be read")
