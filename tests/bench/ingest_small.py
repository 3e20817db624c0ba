"""Ingest of 2,000 payloads of 12 KB that wait in the broker, against bare inserts of the same bytes, a commit each."""

import random
import time
from collections.abc import Sequence

import psycopg2

from tests.bench.figure import Figure, interleaved, progress, rate_figure
from tests.bench.stage import Stage, Transitions, bare_cursor, open_session, publish_all, ready_at
from tests.builders import build_payload
from tests.daemons.world import World

PAYLOADS = 2000
PAYLOAD_BYTES = 12_000
ROUNDS = 4
BAR = 0.4


def measure(stage: Stage) -> list[Figure]:
    with stage.world("ingest-small") as world, Transitions(world.database_url) as transitions:
        open_session(world)
        from_start: list[float] = []

        def ingest(number: int) -> float:
            progress(f"ingest-small: publishing {PAYLOADS} payloads to a stopped ingest")
            publish_all(world, sample(number))
            began = time.monotonic()
            daemon = world.start("ingest")
            ended = transitions.await_runs(PAYLOADS, "received")
            from_start.append(PAYLOADS / (ended - began))
            rate = PAYLOADS / (ended - ready_at(daemon))
            daemon.terminate()
            return rate

        measured, reference = interleaved(
            "ingest-small", ROUNDS, ingest, lambda number: bare_inserts(world, sample(number))
        )
    what = f"ingest, {PAYLOADS:,} queued payloads of {PAYLOAD_BYTES // 1000} KB"
    return [
        rate_figure(f"{what}, once it is ready", "/s", measured, reference, BAR),
        rate_figure(f"{what}, with the process's start", "/s", from_start, reference, BAR),
    ]


def sample(number: int) -> list[bytes]:
    """The payloads of a round, all different."""
    chance = random.Random(number)
    frame = len(payload(1, b""))
    first = 1 + number * PAYLOADS
    return [payload(first + place, chance.randbytes(PAYLOAD_BYTES - frame)) for place in range(PAYLOADS)]


def payload(submission_id: int, content: bytes) -> bytes:
    return build_payload({"hello.dat": content}, {"id": submission_id})


def bare_inserts(world: World, payloads: Sequence[bytes]) -> float:
    """Rows a second, each committed by itself, in a table of the shape of `payloads`."""
    with bare_cursor(world.database_url) as cursor:
        cursor.execute("CREATE TABLE bare (LIKE payloads INCLUDING ALL)")
        began = time.monotonic()
        for number, payload in enumerate(payloads):
            cursor.execute("INSERT INTO bare (submission_key, zip) VALUES (%s, %s)", [number, psycopg2.Binary(payload)])
        rate = len(payloads) / (time.monotonic() - began)
        cursor.execute("DROP TABLE bare")
    return rate
