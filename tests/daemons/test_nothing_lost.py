"""Nothing lost, nothing twice: real processes are stopped and killed in the middle, services restarted, messages
doubled."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from greengrader.daemon import Stop
from greengrader.db import Store
from greengrader.mqtt import Link
from services import Broker, Postgres, start_mosquitto, start_postgres
from tests.conftest import fresh_database
from tests.daemons.world import Daemon, World, payload, wait_until

pytestmark = pytest.mark.docker

# Short leases, so that a killed worker's runs come back within seconds; many attempts, since the tests kill a lot.
HASTY = {"lease_s": "3", "heartbeat_s": "0.5", "worker_silent_s": "2", "max_attempts": "20", "stop_grace_s": "1"}
SCRIPTS = {
    "ingest": ("ingest", ()),
    "dispatcher": ("dispatcher", ("--watch",)),
    "scheduler": ("scheduler", ()),
    "receiver": ("receiver", ()),
    "execute": ("execute", ("--slots", "2")),
}
WORKER = "worker-1"


class Hasty(World):
    """A world whose daemons are restarted by name."""

    def begin(self) -> None:
        self.running = self.start_hub(**HASTY)
        self.running["execute"] = self.start_worker(**HASTY)

    def restart(self, name: str) -> Daemon:
        script, arguments = SCRIPTS[name]
        self.running[name] = self.start(script, *arguments, worker=WORKER if name == "execute" else None, **HASTY)
        return self.running[name].ready()

    def check_each_graded_once(self, submission_ids: range, score: float = 1.0) -> None:
        for submission_id in submission_ids:
            row = self.wait_state(submission_id, "graded", "abandoned", timeout_s=120)
            assert (row["state"], row["score"]) == ("graded", score), row
            run = self.store.newest_run(submission_id)
            ends = [event for event in self.store.run_events(run.run_id) if event["to_state"] == "graded"]
            assert len(ends) == 1
        ids = list(submission_ids)
        counted = self.store._query(
            "SELECT count(*), count(DISTINCT submission_id) FROM submissions JOIN runs USING (submission_key)"
            " JOIN results USING (run_id) WHERE submission_id = ANY (%s)",
            [ids],
        )
        assert counted == [(len(ids), len(ids))]
        assert self.store.table("rejected") == []


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, base_image: str) -> Iterator[Hasty]:
    directory = tmp_path_factory.mktemp("hasty")
    broker = start_mosquitto(directory / "mosquitto", ("submit", "hub", "worker-1", "worker-2"))
    with fresh_database(postgres) as url:
        world = Hasty(directory, url, broker, base_image)
        world.begin()
        yield world
        world.close()
    broker.stop()
    broker.remove()


_next_id = iter(range(1000, 10**9, 1000))

STEPS = [
    ("ingest", "received submission"),
    ("dispatcher", "dispatched run"),
    ("scheduler", "placed run"),
    ("execute", "running run"),
    ("execute", "finished run"),
    ("receiver", "running run"),
    ("receiver", "graded run"),
]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill-9", "SIGTERM"])
@pytest.mark.parametrize(("name", "step"), STEPS, ids=[f"{name} after {step}" for name, step in STEPS])
def test_a_daemon_ended_at_a_step_loses_nothing(hasty: Hasty, name: str, step: str, number: signal.Signals) -> None:
    first = next(_next_id)
    daemon = hasty.running[name]
    already = daemon.said().count(step)
    for submission_id in range(first, first + 4):
        hasty.publish(payload(submission_id))
    wait_until(lambda: daemon.said().count(step) > already, 30, lambda: f"{name} to say {step!r}\n{hasty.logs()}")
    daemon.process.send_signal(number)
    code = daemon.process.wait(30)
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 0), daemon.said()[-2000:]
    hasty.restart(name)
    hasty.check_each_graded_once(range(first, first + 4))


def test_every_message_twice_counts_once(hasty: Hasty) -> None:
    """A bystander with the hub's account publishes each message that it sees once more."""
    first = next(_next_id)
    stop, seen = Stop(), set()
    link = Link(
        hasty.broker.url_for("hub"), client_id="doubler", keep_session=False,
        subscribe=["submissions", "jobs/+", "results/+"],
    )  # fmt: skip

    def double() -> None:
        for message in link.messages(stop):
            if (message.topic, message.digest) not in seen:
                seen.add((message.topic, message.digest))
                link.publish(message.topic, message.raw)
            message.acknowledge()

    with link:
        doubler = threading.Thread(target=double)
        doubler.start()
        for submission_id in range(first, first + 5):
            hasty.publish(payload(submission_id))
        hasty.check_each_graded_once(range(first, first + 5))
        stop.set()
        doubler.join(10)
    assert len(seen) >= 5 * 4  # submission, job, accepted, result of each


def test_a_late_result_counts_for_nothing(hasty: Hasty) -> None:
    """A worker that stands still loses its lease; the other one grades; what the first sends later is dropped."""
    first = next(_next_id)
    other = hasty.start_worker("worker-2", **HASTY)
    slow = "#!/bin/sh\nsleep 4\necho '{\"score\": 1}' > /autograder/results/results.json\n"
    receiver = hasty.running["receiver"]
    before = receiver.said().count("late result dropped")
    hasty.publish(payload(first, script=slow))
    hasty.wait_state(first, "running")
    holder = hasty.store.newest_run(first).worker
    frozen = hasty.running["execute"] if holder == WORKER else other
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        row = hasty.wait_state(first, "graded", timeout_s=60)
        assert row["worker"] != holder and row["attempt"] == 2
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    wait_until(
        lambda: receiver.said().count("late result dropped") > before, 30, lambda: f"the late result\n{hasty.logs()}"
    )
    hasty.check_each_graded_once(range(first, first + 1))
    assert other.terminate() == 0


@pytest.mark.parametrize("name", ["Mosquitto", "Postgres"])
def test_a_service_restarted_in_the_middle_loses_nothing(tmp_path: Path, base_image: str, name: str) -> None:
    """100 submissions in, 100 results out, each once, while a service is restarted three times."""
    database = start_postgres(tmp_path / "postgres")
    broker = start_mosquitto(tmp_path / "mosquitto", ("submit", "hub", "worker-1"))
    with Store.connect(database.url, check_schema=False) as store:
        store.apply_schema()
    world = Hasty(tmp_path, database.url, broker, base_image)
    try:
        world.begin()
        submissions = range(1, 101)
        restarts = iter((20, 45, 70))
        next_restart = next(restarts)
        for submission_id in submissions:
            # the last one before a restart waits for the broker: at QoS 0 it might still be on its way to it
            world.publish(payload(submission_id), *(["-q", "1"] if submission_id == next_restart else []))
            if submission_id == next_restart:
                (broker if name == "Mosquitto" else database).restart()
                next_restart = next(restarts, 0)
        world.store.close()  # its connection may be a dead one
        world.check_each_graded_once(submissions)
        assert all(daemon.process.poll() is None for daemon in world.running.values()), world.logs()
    finally:
        world.close()
        for server in (broker, database):
            server.stop()
            server.remove()


def test_100_in_100_out_while_everything_is_killed_in_turn(hasty: Hasty) -> None:
    first = next(_next_id)
    victims = ["ingest", "dispatcher", "scheduler", "receiver", "execute"] * 2
    for number in range(100):
        hasty.publish(payload(first + number))
        if number % 10 == 9:
            victim = victims.pop()
            hasty.running[victim].kill()
            hasty.restart(victim)
    hasty.check_each_graded_once(range(first, first + 100))


def test_the_acknowledged_publish_of_a_killed_broker_is_noticed(tmp_path: Path, postgres: Postgres) -> None:
    """Answered only after the commit: whatever was answered is stored, even if the broker is killed right then."""
    broker: Broker = start_mosquitto(tmp_path / "mosquitto", ("submit", "hub"))
    with fresh_database(postgres) as url:
        world = World(tmp_path, url, broker)
        try:
            world.start("ingest").ready()
            client = "fork-test"
            with Link(
                broker.url_for("submit"), client_id=client, subscribe=[f"replies/{client}"], keep_session=False
            ) as link:
                link.publish("submissions", payload(1), response_topic=f"replies/{client}")
                answer = next(iter(link.messages(Stop())))
                broker.kill()
            assert b'"accepted"' in answer.raw
            assert world.status(1)["state"] == "received"
        finally:
            world.close()
            broker.stop()
            broker.remove()
