"""What a dispatcher needs for 500 pods in flight that no node takes, while nothing changes."""

import time

from tests.bench.figure import Figure, NotMeasured, progress
from tests.bench.pods import cluster
from tests.bench.stage import Stage, memory_mb, publish_all
from tests.cluster.hub import api_relay, cpu_s, payload, relayed_kubeconfig
from tests.waiting import eventually

PODS = 500
QUIET_S = 60.0
SETTLED_S = 5.0
MB_EACH, SHARE = 1.0, 0.1
PATIENCE_S = 600.0


def measure(stage: Stage) -> list[Figure]:
    with cluster(stage, "cluster-in-flight") as setting, api_relay(setting.namespace) as api:
        # the storage is a folder: what is stored is never fetched
        rclone_config = setting.hub.directory / "rclone.conf"
        rclone_config.write_text("[greengrader-app]\ntype = local\n")
        with setting.dispatcher(
            max_pods=str(PODS),
            kube_node_selector='{"nowhere": "true"}',
            kube_unschedulable_s="3600",
            rclone_config=str(rclone_config),
            rclone_remote=f"greengrader-app:{setting.hub.directory / 'storage'}",
            KUBECONFIG=str(relayed_kubeconfig(setting.namespace, setting.hub.directory, api)),
        ) as dispatcher:
            time.sleep(SETTLED_S)
            alone_mb = memory_mb(dispatcher, "VmRSS")
            publish_all(setting.hub, (payload(100 + number) for number in range(PODS)))
            progress(f"cluster-in-flight: {PODS} submissions are there")
            eventually(lambda: setting.hub.count("placed") == PODS, PATIENCE_S, f"{PODS} pods in flight")
            time.sleep(SETTLED_S)
            api.cut()  # only what is needed is connected again
            time.sleep(SETTLED_S)
            began, began_cpu_s = time.monotonic(), cpu_s(dispatcher.process.pid)
            time.sleep(QUIET_S)
            share = (cpu_s(dispatcher.process.pid) - began_cpu_s) / (time.monotonic() - began)
            each_mb = (memory_mb(dispatcher, "VmRSS") - alone_mb) / PODS
            connections = api.connections
            if setting.hub.count("placed") != PODS:
                raise NotMeasured(f"{setting.hub.count('placed')} of {PODS} runs are in flight")
    what = f"dispatcher.py with {PODS} pods in flight"
    return [
        Figure(f"{what}: memory of each", f"{each_mb:.3f} MB", "", "", f"<= {MB_EACH:g} MB", each_mb <= MB_EACH),
        Figure(f"{what}: of a core, idle", f"{share:.1%}", "", "", f"< {SHARE:.0%}", share < SHARE),
        Figure(f"{what}: connections, idle", f"{connections}", "", "", "<= 2: a watch, a list", connections <= 2),
    ]
