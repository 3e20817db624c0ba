"""The cluster for the benchmarks that need one: a hub that grades on it, and bare pods of the same image beside."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from greengrader.kube.podspec import SELECTOR
from tests.bench.containers import base_image
from tests.bench.figure import LeftOut, NotMeasured, progress
from tests.bench.stage import Stage, Transitions
from tests.cluster import services
from tests.cluster.hub import Hub
from tests.cluster.services import Lacking, Namespace
from tests.daemons.world import Daemon

PATIENCE_S = 600.0
WARMING = 6
CPU_REQUEST = 0.2  # of a run's 0.5 cores: ten fit on a core, so that it is the machine that sets the pace


@dataclass
class Cluster:
    """A hub without a dispatcher, whose runs go to a namespace of its own."""

    hub: Hub
    namespace: Namespace
    transitions: Transitions
    image: str = field(default="", init=False)  # of the trivial autograder, known after the first run

    @contextlib.contextmanager
    def dispatcher(self, **settings: str) -> Iterator[Daemon]:
        daemon = self.hub.start("dispatcher", "--watch", **settings).ready()
        try:
            yield daemon
        finally:
            daemon.terminate(60)

    def learn_image(self) -> None:
        """Takes the image's name from a run's pod while that exists, and brings the images to all nodes."""
        with self.dispatcher():
            run_id = self.hub.submit(1, runs_s=1)
            pod = self.hub.pod(run_id)
            for submission_id in range(2, WARMING + 1):
                self.hub.submit(submission_id)
            names = {one["name"]: one["image"] for one in pod["spec"]["containers"]}
            self.image = names["autograder"]
            self.transitions.await_runs(WARMING, "graded")
            self.hub.await_tidiness(60)
        bare_pods_s(self.namespace, self.image, WARMING)


@contextlib.contextmanager
def cluster(stage: Stage, name: str, **settings: str) -> Iterator[Cluster]:
    """All that a run on the cluster needs, the image of the trivial autograder on the nodes that are used."""
    base = base_image()
    folder = stage.directory / name
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        try:
            services.cluster_answers()
            services.program("rclone")
            host = services.host_ip()
            s3 = stack.enter_context(services.s3_server(folder))
            registry = stack.enter_context(services.image_registry(folder))
        except Lacking as lacking:
            raise _missing(str(lacking)) from lacking
        progress(f"{name}: a namespace, the images and the daemons")
        rclone_image = services.build_rclone_image(registry, base)
        namespace = stack.enter_context(
            services.fresh_namespace(f"greengrader-{name}-{os.getpid()}", folder, s3.config_for(host))
        )
        namespace.kubectl("delete", "resourcequotas", "--all", as_admin=True)
        world = stack.enter_context(stage.world(name, base))
        given = {
            "KUBECONFIG": str(namespace.kubeconfig),
            "GREENGRADER_KUBE_NAMESPACE": namespace.name,
            "GREENGRADER_REGISTRY": registry,
            "GREENGRADER_RCLONE_CONFIG": str(s3.rclone_config),
            "GREENGRADER_RCLONE_IMAGE": rclone_image,
            "GREENGRADER_KUBE_CPU_REQUEST": str(CPU_REQUEST),
        } | {f"GREENGRADER_{key.upper()}": value for key, value in settings.items()}
        hub = Hub(world.directory, world.database_url, world.broker, base, namespace, given)
        stack.callback(hub.close)
        hub.start("ingest").ready()
        yield Cluster(hub, namespace, stack.enter_context(Transitions(world.database_url)))


def bare_pod(name: str, image: str) -> dict[str, Any]:
    """A pod of one container that runs the autograder, with the requests and limits of a run's one."""
    requests = {"cpu": f"{500 * CPU_REQUEST:g}m", "memory": "768Mi"}
    container = {
        "name": "autograder",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", "mkdir -p /autograder/submission && echo 0 > /autograder/submission/seconds && "
                    "mkdir -p /autograder/results && exec /bin/sh /autograder/run_autograder"],
        "resources": {"requests": requests, "limits": {"cpu": "500m", "memory": "768Mi"}},
    }  # fmt: skip
    spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"bench": "bare"}}, "spec": spec}


def bare_pods_s(namespace: Namespace, image: str, count: int) -> float:
    """Seconds from `kubectl apply` of so many bare pods to the moment when the last of them has succeeded."""
    pods = {"apiVersion": "v1", "kind": "List", "items": [bare_pod(f"bare-{n}", image) for n in range(count)]}
    look = ["kubectl", f"--namespace={namespace.name}", "get", "pods", "--selector=bench=bare", "--watch-only",
            "--output=jsonpath={.metadata.name} {.status.phase}{'\\n'}"]  # fmt: skip
    watch = subprocess.Popen(look, stdout=subprocess.PIPE, text=True)
    killer = threading.Timer(PATIENCE_S, watch.kill)
    killer.start()
    try:
        began = time.monotonic()
        namespace.kubectl("apply", "--filename=-", stdin=json.dumps(pods), as_admin=True)
        succeeded: set[str] = set()
        assert watch.stdout is not None
        for line in watch.stdout:
            name, _, phase = line.strip().partition(" ")
            if phase == "Failed":
                raise NotMeasured(f"the bare pod {name} failed")
            if phase == "Succeeded":
                succeeded.add(name)
            if len(succeeded) == count:
                return time.monotonic() - began
        raise NotMeasured(f"{len(succeeded)} of {count} bare pods have succeeded after {PATIENCE_S:g} s")
    finally:
        killer.cancel()
        watch.kill()
        watch.wait()
        namespace.kubectl("delete", "pods", "--selector=bench=bare", "--grace-period=0", "--force", as_admin=True)


def pods_of_runs(namespace: Namespace) -> int:
    return len(namespace.kubectl("get", "pods", f"--selector={SELECTOR}", "--output=name").split())


def _missing(reason: str) -> Exception:
    required = "cluster" in os.environ.get("GREENGRADER_REQUIRE", "").split(",")
    return NotMeasured(reason) if required else LeftOut(reason)
