"""pod.sh on a trivial autograder, its image on the node: start of the process to committed result, minus a bare pod.

The bare pod has one container of the same image with the same limits: from `kubectl apply` to Succeeded.
"""

import time

from tests.bench.figure import Figure, NotMeasured, interleaved
from tests.bench.latency import difference
from tests.bench.pods import Cluster, bare_pods_s, cluster
from tests.bench.stage import Stage

ROUNDS = 5
BAR_S = 4.0


def measure(stage: Stage) -> list[Figure]:
    with cluster(stage, "cluster-latency") as setting:
        setting.learn_image()
        measured, reference = interleaved(
            "cluster-latency",
            ROUNDS,
            lambda number: pod_sh_s(setting, 100 + number),
            lambda _: bare_pods_s(setting.namespace, setting.image, 1),
        )
    return [difference("pod.sh, trivial run, image on the node", measured, reference, BAR_S)]


def pod_sh_s(setting: Cluster, submission_id: int) -> float:
    """Seconds from the start of pod.sh to the moment of its result's commit."""
    setting.hub.submit(submission_id)
    began = time.monotonic()
    script = setting.hub.pod_sh(submission_id)
    ended = setting.transitions.await_runs(1, "graded")
    if script.process.wait(60) != 0:
        raise NotMeasured(f"pod.sh failed: {script.said()[-500:]}")
    return ended - began
