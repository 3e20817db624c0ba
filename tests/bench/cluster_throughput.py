"""100 submissions by one `dispatcher.py --watch`, against `kubectl apply` of 100 bare pods with the same requests.

Ours are clocked from the first publish to the last committed result, theirs from the command to the last success.
"""

import time

from tests.bench.figure import Figure, NotMeasured, progress, rate_figure
from tests.bench.pods import WARMING, bare_pods_s, cluster
from tests.bench.stage import Stage, publish_all
from tests.cluster.hub import payload

RUNS = 100
REPORT_EVERY = 20
PATIENCE_S = 900.0
BAR = 0.7


def measure(stage: Stage) -> list[Figure]:
    with cluster(stage, "cluster-throughput") as setting:
        setting.learn_image()
        bare_per_s = RUNS / bare_pods_s(setting.namespace, setting.image, RUNS)
        progress(f"cluster-throughput: {bare_per_s:.2f} bare pods a second")
        with setting.dispatcher():
            began = time.monotonic()
            publish_all(setting.hub, (payload(100 + number) for number in range(RUNS)))
            for done in range(REPORT_EVERY, RUNS + 1, REPORT_EVERY):
                ended = setting.transitions.await_runs(REPORT_EVERY, "graded", PATIENCE_S)
                progress(f"cluster-throughput: {done} of {RUNS} runs graded after {ended - began:.0f} s")
            setting.hub.await_tidiness(120)
        events = [event for event in setting.hub.store.table("run_events") if event["to_state"] == "graded"]
        if len(events) != RUNS + WARMING or len(setting.hub.store.table("results")) != RUNS + WARMING:
            raise NotMeasured(f"{RUNS + WARMING} runs were graded {len(events)} times")
    what = f"{RUNS} trivial runs by dispatcher.py --watch"
    return [rate_figure(what, "/s", [RUNS / (ended - began)], [bare_per_s], BAR)]
