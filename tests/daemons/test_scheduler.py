"""scheduler.py with workers that are rows and heartbeats alone; what it publishes is read by a worker's account."""

import pytest

from greengrader.daemon import Stop
from greengrader.messages import Autograder, Heartbeat, Job, Message, decode
from greengrader.mqtt import Link
from tests.daemons.world import World
from tests.rows import dispatched


@pytest.fixture
def jobs(world: World):
    """Messages for worker-1, as its own account reads them."""
    link = Link(world.broker.url_for("worker-1"), client_id="jobs", subscribe=["jobs/worker-1"], keep_session=False)
    with link:
        yield lambda count: received(link, count)


def received(link: Link, count: int) -> list[Message]:
    found: list[Message] = []
    for batch in link.batches(Stop(), idle_s=5):
        assert batch, f"{len(found)} of {count} messages came"
        found.append(decode(batch[0].raw))
        batch[0].acknowledge()
        if len(found) == count:
            break
    return found


def alive(world: World, worker: str = "worker-1", slots: int = 2, **heartbeat) -> None:
    world.store.register_worker({"worker": worker, "region": "home", "zone": "", "slots": slots})
    beat = Heartbeat(slots=slots, accepting=True).model_copy(update=heartbeat)
    world.store.see_worker(worker, beat.slots, beat.accepting, beat.autograders)


def test_once_places_what_fits_and_says_how_many(world: World, jobs) -> None:
    alive(world, slots=2)
    runs = [dispatched(world.store, i).run_id for i in (1, 2, 3)]
    done = world.run("scheduler", "--once")
    assert (done.returncode, done.stdout) == (0, "placed 2 runs\n")
    states = [world.store.run(run).state for run in runs]
    assert states == ["placed", "placed", "dispatched"]
    autograder, first, second = jobs(3)
    assert isinstance(autograder, Autograder) and isinstance(first, Job) and isinstance(second, Job)
    assert [first.run_id, second.run_id] == runs[:2]
    assert first.parts["files"] and first.attempt == 1


def test_the_autograder_goes_only_to_a_worker_that_lacks_it(world: World, jobs) -> None:
    run = dispatched(world.store, 1).run_id
    digest = world.store.run(run).autograder_digest
    alive(world, autograders=[digest])
    assert world.run("scheduler", "--once").returncode == 0
    (job,) = jobs(1)
    assert isinstance(job, Job) and job.autograder_digest == digest


@pytest.mark.parametrize("reason", ["draining", "silent", "not accepting", "gone"])
def test_a_worker_that_cannot_take_runs_gets_none(world: World, reason: str) -> None:
    alive(world, accepting=reason != "not accepting")
    if reason == "draining":
        world.store.drain_worker("worker-1", True)
    if reason == "gone":
        world.store.lose_worker("worker-1")
    if reason == "silent":
        world.store._query("UPDATE workers SET last_seen_at = now() - interval '1 minute'")
    run = dispatched(world.store, 1).run_id
    done = world.run("scheduler", "--once")
    assert (done.returncode, done.stdout) == (0, "placed 0 runs\n")
    assert world.store.run(run).state == "dispatched"


@pytest.mark.parametrize("policy", ["random", "round-robin", "least-loaded", "carbon"])
def test_each_policy_fills_every_slot_and_says_why(world: World, policy: str) -> None:
    alive(world, "worker-1", slots=2)
    alive(world, "worker-2", slots=3)
    runs = [dispatched(world.store, i).run_id for i in range(1, 7)]
    done = world.run("scheduler", "--once", "--policy", policy)
    assert (done.returncode, done.stdout) == (0, "placed 5 runs\n"), done.stderr
    holders = [world.store.run(run).worker for run in runs]
    assert sorted(filter(None, holders)) == ["worker-1"] * 2 + ["worker-2"] * 3
    events = [world.store.run_events(run)[-1] for run in runs if world.store.run(run).worker]
    assert all(event["reason"].startswith(f"{event['worker']}: ") for event in events)


def test_an_unknown_policy_is_exit_2(world: World) -> None:
    done = world.run("scheduler", "--once", "--policy", "cheapest")
    assert done.returncode == 2 and "cheapest" in done.stderr


def test_the_daemon_is_woken_by_a_dispatched_run_and_by_a_worker(world: World) -> None:
    scheduler = world.start("scheduler").ready()
    dispatched(world.store, 1)
    alive(world)
    scheduler.says("placed run=", timeout_s=4)  # its fallback look is 5 s away
    assert scheduler.terminate() == 0


def test_attempts_used_up_abandons_with_the_reason(world: World) -> None:
    world.start("receiver", worker_silent_s="0.1").ready()  # tells that it has caught up
    scheduler = world.start("scheduler", lease_s="0.2", max_attempts="2", worker_silent_s="60").ready()
    alive(world)
    run = dispatched(world.store, 1).run_id
    row = world.wait_state(1, "abandoned")
    assert "worker-1 was not heard of" in row["error"] and row["attempt"] == 2
    assert world.store.run(run).failures == 2
    scheduler.says("now=abandoned")
