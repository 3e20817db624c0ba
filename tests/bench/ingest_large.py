"""Ingest of 20 MB payloads that wait in the broker, against a bare binary COPY of the same bytes, a commit each."""

import io
import random
import struct
import time
import zlib
from collections.abc import Sequence

from greengrader.copystream import COPY_HEADER, COPY_TRAILER
from tests.bench.figure import MEGABYTE, Figure, interleaved, progress, rate_figure
from tests.bench.stage import Stage, Transitions, bare_cursor, open_session, publish_all, ready_at
from tests.builders import SUBMITTED_S, Member, build_payload
from tests.daemons.world import World

PAYLOADS = 16
PAYLOAD_BYTES = 20 * MEGABYTE
ROUNDS = 5
BAR = 0.8


def measure(stage: Stage) -> list[Figure]:
    with stage.world("ingest-large") as world, Transitions(world.database_url) as transitions:
        open_session(world)

        def ingest(number: int) -> float:
            payloads = sample(number)
            progress(f"ingest-large: publishing {PAYLOADS} payloads to a stopped ingest")
            publish_all(world, payloads)
            daemon = world.start("ingest")
            ended = transitions.await_runs(PAYLOADS, "received")
            rate = megabytes(payloads) / (ended - ready_at(daemon))
            daemon.terminate()
            return rate

        measured, reference = interleaved(
            "ingest-large", ROUNDS, ingest, lambda number: bare_copy(world, sample(number))
        )
    what = f"ingest, {PAYLOADS} queued payloads of {PAYLOAD_BYTES // MEGABYTE} MB"
    return [rate_figure(what, "MB/s", measured, reference, BAR)]


def sample(number: int, count: int = PAYLOADS, size_bytes: int = PAYLOAD_BYTES) -> list[bytes]:
    """The payloads of a round, all different, with a file that cannot be packed any smaller."""
    content = random.Random(number).randbytes(size_bytes)
    return [large_payload(1 + number * count + place, content) for place in range(count)]


def large_payload(submission_id: int, content: bytes) -> bytes:
    file = Member(
        "gradescope_data/autograder/submission/data.bin", packed=content, method=0, size=len(content),
        crc=zlib.crc32(content), modified_s=SUBMITTED_S,
    )  # fmt: skip
    return build_payload({}, {"id": submission_id}, extra=[file])


def megabytes(payloads: Sequence[bytes]) -> float:
    return sum(map(len, payloads)) / MEGABYTE


def bare_copy(world: World, payloads: Sequence[bytes]) -> float:
    """MB/s into a table of the shape of `payloads`, out of memory."""
    with bare_cursor(world.database_url) as cursor:
        cursor.execute("CREATE TABLE bare (LIKE payloads INCLUDING ALL)")
        began = time.monotonic()
        for number, payload in enumerate(payloads):
            row = struct.pack("!hiqi", 2, 8, number, len(payload))
            stream = io.BytesIO(b"".join((COPY_HEADER, row, payload, COPY_TRAILER)))
            cursor.copy_expert("COPY bare (submission_key, zip) FROM STDIN (FORMAT binary)", stream, size=1 << 18)
        rate = megabytes(payloads) / (time.monotonic() - began)
        cursor.execute("DROP TABLE bare")
    return rate
