"""The most memory that ingest ever takes, with payloads of 20 and of 200 MB in hand."""

from tests.bench.figure import MEGABYTE, Figure, progress
from tests.bench.ingest_large import sample
from tests.bench.stage import Stage, Transitions, memory_mb, open_session, publish_all

SIZES_BYTES = (20 * MEGABYTE, 200 * MEGABYTE)
PAYLOADS = 3  # one on its way in, one that waits, one in hand
BASE_MB = 120
PAYLOADS_IN_MEMORY = 3


def measure(stage: Stage) -> list[Figure]:
    figures = []
    with stage.world("ingest-memory") as world, Transitions(world.database_url) as transitions:
        open_session(world)
        for number, size_bytes in enumerate(SIZES_BYTES):
            progress(f"ingest-memory: {PAYLOADS} payloads of {size_bytes // MEGABYTE} MB")
            publish_all(world, sample(number, PAYLOADS, size_bytes))
            daemon = world.start("ingest").ready()
            transitions.await_runs(PAYLOADS, "received")
            peak_mb = memory_mb(daemon, "VmHWM")
            daemon.terminate()
            most_mb = BASE_MB + PAYLOADS_IN_MEMORY * size_bytes / MEGABYTE
            what = f"ingest, peak memory with payloads of {size_bytes // MEGABYTE} MB"
            figures.append(Figure(what, f"{peak_mb:.0f} MB", "", "", f"<= {most_mb:.0f} MB", peak_mb <= most_mb))
    return figures
