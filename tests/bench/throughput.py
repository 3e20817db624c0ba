"""200 trivial runs on two slots, against `xargs -P2 docker run` of the same image and command.

Ours are clocked from the first publish (by mosquitto_pub, one process each, as 200 students would) to the last
committed result, all daemons running.
"""

import subprocess
import threading
import time

from tests.bench.containers import SLOTS, base_image, graders, trivial_payload
from tests.bench.figure import Figure, NotMeasured, interleaved, progress, rate_figure
from tests.bench.stage import Stage
from tests.daemons.world import World

ROUNDS = 2
RUNS = 100  # a round
BAR = 0.8
REPORT_EVERY = 25


def measure(stage: Stage) -> list[Figure]:
    with graders(stage, "throughput", base_image()) as setting:

        def ours_per_s(number: int) -> float:
            payloads = [trivial_payload(1_000 + number * RUNS + place) for place in range(RUNS)]
            students = threading.Thread(target=publish_each, args=(setting.world, payloads))
            began = time.monotonic()
            students.start()
            for done in range(REPORT_EVERY, RUNS + 1, REPORT_EVERY):
                ended = setting.transitions.await_runs(REPORT_EVERY, "graded")
                progress(f"throughput: {done} of {RUNS} runs graded")
            students.join()
            return RUNS / (ended - began)

        def bare_per_s(_: int) -> float:
            progress(f"throughput: {RUNS} bare runs")
            command = ["xargs", f"-P{SLOTS}", "-I{}", *setting.bare_run()]
            numbers = "\n".join(map(str, range(RUNS)))
            began = time.monotonic()
            done = subprocess.run(command, input=numbers, text=True, capture_output=True, check=False)
            if done.returncode != 0:
                raise NotMeasured(f"a bare docker run failed: {done.stderr.strip()[-500:]}")
            return RUNS / (time.monotonic() - began)

        measured, reference = interleaved("throughput", ROUNDS, ours_per_s, bare_per_s)
    what = f"{ROUNDS * RUNS} trivial runs on {SLOTS} slots, {ROUNDS} x {RUNS}"
    return [rate_figure(what, "/s", measured, reference, BAR)]


def publish_each(world: World, payloads: list[bytes]) -> None:
    for payload in payloads:
        world.publish(payload)
