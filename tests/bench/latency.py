"""One trivial run, its image at hand: publish to committed result, minus a bare `docker run` of the same.

A bare run also makes a network, which ours has not; what it takes without one is shown for information.
"""

import statistics
import subprocess
import time

from tests.bench.containers import base_image, graders, trivial_payload
from tests.bench.figure import Figure, NotMeasured, interleaved, spread
from tests.bench.stage import Stage

ROUNDS = 15
BAR_S = 0.25
SETTLED_S = 0.3
"""The engine still clears up after a run when its result is there; the next round shall not pay for that."""


def measure(stage: Stage) -> list[Figure]:
    without_network: list[float] = []
    with graders(stage, "latency", base_image()) as setting:

        def ours_s(number: int) -> float:
            payload = trivial_payload(1_000 + number)
            began = time.monotonic()
            setting.world.publish(payload)
            took_s = setting.transitions.await_runs(1, "graded") - began
            time.sleep(SETTLED_S)
            return took_s

        def bare_s(_: int) -> float:
            without_network.append(seconds_of(setting.bare_run("--network=none")))
            return seconds_of(setting.bare_run())

        measured, reference = interleaved("latency", ROUNDS, ours_s, bare_s)
    what = "trivial run, image at hand: publish to committed result"
    return [difference(what, measured, reference, BAR_S), difference(f"{what}, no network", measured, without_network)]


def seconds_of(command: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took_s = time.monotonic() - began
    if done.returncode != 0:
        raise NotMeasured(f"the bare docker run failed: {done.stderr.strip()[-500:]}")
    time.sleep(SETTLED_S)
    return took_s


def difference(what: str, measured: list[float], reference: list[float], bar_s: float | None = None) -> Figure:
    """Medians and what ours takes longer; without a bar for information."""
    ours, theirs = statistics.median(measured), statistics.median(reference)
    return Figure(
        what,
        f"{ours:.3f} s ({spread(measured)})",
        f"{theirs:.3f} s ({spread(reference)})",
        f"{ours - theirs:+.3f} s",
        "" if bar_s is None else f"<= +{bar_s} s",
        None if bar_s is None else ours - theirs <= bar_s,
    )
