"""The scheduler with 1,000 workers and 10,000 queued runs, and the same with 100,000 queued.

The workers have 10,000 slots together, so as many runs are placed in each round. All jobs reach a subscriber, which
stands for the workers. The queue is made by SQL.
"""

import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from places import program
from tests.bench.figure import Figure, NotMeasured, interleaved, spread
from tests.bench.stage import Stage, Transitions, bare_cursor, ready_at
from tests.daemons.world import World, wait_until

WORKERS, SLOTS = 1_000, 10
SHORT_QUEUE, LONG_QUEUE = 10_000, 100_000
ROUNDS = 3
BAR_PER_S = 500
LEAST_SHARE = 0.8
ARCHIVE_BYTES = 1_500  # tar.gz of a small program and its metadata

EMPTY = """
TRUNCATE submissions, workers, autograders, assignments RESTART IDENTITY CASCADE;
"""
FILL = """
INSERT INTO autograders (digest, origin, base_image, archive) VALUES (repeat('a', 64), 'staff', 'none:local', '\\x00');
INSERT INTO assignments (assignment_id) VALUES (1);
INSERT INTO workers (worker, slots, accepting, last_seen_at)
    SELECT 'worker-' || n, %(slots)s, true, now() + interval '1 day' FROM generate_series(1, %(workers)s) n;
INSERT INTO worker_autograders (worker, digest) SELECT worker, repeat('a', 64) FROM workers;
INSERT INTO submissions (submission_id, payload_digest, assignment_id, metadata, payload_bytes)
    SELECT n, md5(n::text) || md5(n::text), 1, '{}', 1 FROM generate_series(1, %(queued)s) n;
INSERT INTO submission_archives (submission_key, archive)
    SELECT submission_key, decode(repeat(md5(submission_key::text), %(archive)s / 16), 'hex') FROM submissions;
ALTER TABLE runs DISABLE TRIGGER USER;
INSERT INTO runs (submission_key, state, backend, priority, autograder_digest, dispatched_at)
    SELECT submission_key, 'dispatched', 'docker', 0, repeat('a', 64), now() FROM submissions ORDER BY submission_key;
ALTER TABLE runs ENABLE TRIGGER USER;
"""
SETTLE = "VACUUM (ANALYZE) runs, submissions, submission_archives, workers, run_events"


def measure(stage: Stage) -> list[Figure]:
    with stage.world("placements") as world, Transitions(world.database_url) as transitions:

        def per_s(queued: int) -> float:
            queue_up(world, queued)
            return placements_per_s(world, transitions)

        long, short = interleaved("placements", ROUNDS, lambda _: per_s(LONG_QUEUE), lambda _: per_s(SHORT_QUEUE))
    rate = statistics.median(short)
    share = statistics.median(ours / theirs for ours, theirs in zip(long, short, strict=True))
    measured, reference = (f"{statistics.median(rates):,.0f} /s ({spread(rates)})" for rates in (long, short))
    what = f"scheduler, {WORKERS:,} workers, {SHORT_QUEUE:,} runs queued: placements"
    return [
        Figure(what, reference, "", "", f">= {BAR_PER_S} /s", rate >= BAR_PER_S),
        Figure(
            f"the same with {LONG_QUEUE:,} queued", measured, reference, f"{share:.0%}", f"> {LEAST_SHARE:.0%}",
            share > LEAST_SHARE,
        ),
    ]  # fmt: skip


def queue_up(world: World, queued: int) -> None:
    """Workers with free slots, and so many runs that wait for them."""
    values = {"workers": WORKERS, "slots": SLOTS, "queued": queued, "archive": ARCHIVE_BYTES}
    with bare_cursor(world.database_url) as cursor:
        cursor.execute(EMPTY)
        cursor.execute(FILL, values)
        cursor.execute(SETTLE)


def placements_per_s(world: World, transitions: Transitions) -> float:
    """From the scheduler's start-up to the last commit; NotMeasured where a job did not reach the workers."""
    expected = WORKERS * SLOTS
    received = world.directory / "jobs"
    with all_workers(world, received):
        daemon = world.start("scheduler")
        ended = transitions.await_runs(expected, "placed")
        rate = expected / (ended - ready_at(daemon))
        wait_until(lambda: received.read_bytes().count(b"\n") >= expected, 60, lambda: "all jobs to reach the workers")
        daemon.terminate()
    if received.read_bytes().count(b"\n") != expected:
        raise NotMeasured("more jobs were sent than runs placed")
    return rate


@contextmanager
def all_workers(world: World, received: Path) -> Iterator[None]:
    """One subscriber in the workers' place; writes the topic of each job on a line."""
    broker = world.broker
    command = [
        program("mosquitto_sub"),
        "-V",
        "5",
        "-q",
        "1",
        "-p",
        str(broker.port),
        "-u",
        "hub",
        "-P",
        broker.password("hub"),
    ]
    with received.open("wb") as file:
        process = subprocess.Popen([*command, "-i", "bench-workers", "-t", "jobs/#", "-F", "%t"], stdout=file)
        try:
            time.sleep(
                0.5
            )  # it does not say when it has subscribed; were it late, jobs would be missing and the round fail
            yield
        finally:
            process.terminate()
            process.wait()
