"""What may die or be away on the way of a run through the cluster: no run is lost, none is graded twice, nothing is
left in cluster or storage.

Leases are short here (3 s), so that whoever takes over need not be waited for. Runs of one test share its processes.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from greengrader import config
from greengrader.kube.cluster import Cluster, ClusterUnavailable
from greengrader.kube.podstate import PodState
from greengrader.kube.runner import Runner, template_for
from services import Postgres, start_mosquitto
from tests.cluster.conftest import namespace_for, settings_of
from tests.cluster.hub import Hub, api_relay, away, relayed_kubeconfig, storage_relay
from tests.cluster.relay import Relay
from tests.cluster.services import S3
from tests.conftest import fresh_database

STEPS = ("dispatched", "placed", "running", "graded")
AWAY_S = 4.0
SHORT = {"GREENGRADER_LEASE_S": "3", "GREENGRADER_KUBE_CPU_REQUEST": "0.1", "GREENGRADER_KUBE_GRACE_S": "120"}


@dataclass(frozen=True)
class Setting:
    hub: Hub
    api: Relay  # between our processes and the API server
    storage: Relay  # between our processes and the storage
    s3: S3


@pytest.fixture(scope="module")
def setting(
    tmp_path_factory: pytest.TempPathFactory,
    cluster_version: str,
    postgres: Postgres,
    base_image: str,
    s3: S3,
    registry: str,
    rclone_image: str,
) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("faults")
    broker = start_mosquitto(folder / "mosquitto", ("submit", "hub", "worker-1"))
    with (
        fresh_database(postgres) as url,
        namespace_for(s3, folder) as namespace,
        api_relay(namespace) as api,
        storage_relay(s3, folder) as (storage, rclone_config),
    ):
        given = settings_of(namespace, s3, registry, rclone_image) | SHORT
        given |= {
            "KUBECONFIG": str(relayed_kubeconfig(namespace, folder, api)),
            "GREENGRADER_RCLONE_CONFIG": str(rclone_config),
        }
        hub = Hub(folder, url, broker, base_image, namespace, given)
        try:
            hub.start("ingest").ready()
            yield Setting(hub, api, storage, s3)
        finally:
            hub.close()
    broker.stop()
    broker.remove()


@pytest.fixture
def hub(setting: Setting) -> Hub:
    return setting.hub


@contextlib.contextmanager
def dispatcher_of(hub: Hub, **settings: str) -> Iterator[Any]:
    dispatcher = hub.start("dispatcher", "--watch", **settings).ready()
    try:
        yield dispatcher
    finally:
        if dispatcher.process.poll() is None:
            assert dispatcher.terminate() == 0, dispatcher.said()


def test_a_dispatcher_that_is_killed_at_every_step(hub: Hub) -> None:
    run_ids = []
    for number, step in enumerate(STEPS):
        dispatcher = hub.start("dispatcher", "--watch").ready()
        run_ids.append(hub.submit(100 + number, runs_s=1))
        dispatcher.says(f"{step} run={run_ids[-1]} ", 60)
        dispatcher.kill()
    with dispatcher_of(hub):
        for number in range(len(STEPS)):
            hub.wait_graded(100 + number)
        hub.check_graded_once(run_ids)
        hub.await_tidiness()


def test_pods_are_adopted_and_not_made_again(hub: Hub) -> None:
    """By whoever follows on a dispatcher that was killed; at once where it was told to stop, for it gives them back."""
    dispatcher = hub.start("dispatcher", "--watch").ready()
    run_id = hub.submit(120, runs_s=15)
    dispatcher.says(f"running run={run_id} ", 60)
    uid = hub.pod(run_id)["metadata"]["uid"]
    dispatcher.kill()

    second = hub.start("dispatcher", "--watch", lease_s="300").ready()
    second.says(f"adopted run={run_id} ", 60)
    assert lease_s(hub, run_id) > 200
    time.sleep(2)  # it finds the pod
    began = time.monotonic()
    assert second.terminate() == 0
    assert time.monotonic() - began < 5

    with dispatcher_of(hub) as third:
        third.says(f"adopted run={run_id} ", 15)
        assert hub.pod(run_id)["metadata"]["uid"] == uid
        hub.wait_graded(120)
        hub.check_graded_once([run_id], attempts=1)
        hub.await_tidiness()


def lease_s(hub: Hub, run_id: int) -> float:
    """For how long the run is held still."""
    row = hub.store.table("runs", "run_id = %s", run_id)[0]
    left: float = (row["lease_expires_at"] - hub.store.now()).total_seconds()
    return left


def test_pod_sh_that_is_killed_at_every_step(hub: Hub) -> None:
    submissions = range(140, 140 + len(STEPS))
    run_ids = [hub.submit(submission, runs_s=1) for submission in submissions]
    killed = [hub.pod_sh(submission) for submission in submissions]
    for script, step in zip(killed, STEPS, strict=True):
        script.says(f" {step}")
        script.kill()
    for script in [hub.pod_sh(submission, 1) for submission in submissions]:
        assert script.process.wait(60) == 0, script.said()
    hub.check_graded_once(run_ids)
    with dispatcher_of(hub):  # sweeps what the one left that was killed at its end
        hub.await_tidiness()


def test_storage_that_is_away_from_the_pods(setting: Setting) -> None:
    hub = setting.hub
    with dispatcher_of(hub) as dispatcher:
        uploads = hub.submit(150, runs_s=4)
        dispatcher.says(f"running run={uploads} ", 60)
        fetches = hub.submit(151)
        hub.pod(fetches)
        with setting.s3.away():
            time.sleep(AWAY_S)
            assert {hub.store.run(run_id).state for run_id in (uploads, fetches)} <= {"placed", "running"}  # type: ignore[union-attr]
        for submission in (150, 151):
            hub.wait_graded(submission)
        hub.check_graded_once([uploads, fetches], attempts=1)
        hub.await_tidiness()


def test_storage_that_is_away_from_the_hub(setting: Setting) -> None:
    hub = setting.hub
    with dispatcher_of(hub) as dispatcher:
        ends = hub.submit(160, runs_s=3)
        dispatcher.says(f"running run={ends} ", 60)
        with away(setting.storage):
            begins = hub.submit(161)
            dispatcher.says(f"not begun run={begins} ", 60)
            dispatcher.says(f"waits run={ends} ", 60)
            time.sleep(AWAY_S)
        for submission in (160, 161):
            hub.wait_graded(submission)
        hub.check_graded_once([ends], attempts=1)
        hub.check_graded_once([begins])
        assert hub.store.run(begins).failures == 0  # type: ignore[union-attr]
        hub.await_tidiness()


def test_an_api_server_that_is_away(setting: Setting) -> None:
    hub = setting.hub
    with dispatcher_of(hub) as dispatcher:
        ends = hub.submit(170, runs_s=3)
        dispatcher.says(f"running run={ends} ", 60)
        with away(setting.api):
            begins = hub.submit(171)
            dispatcher.says("watch lost")
            time.sleep(AWAY_S)
            assert hub.store.run(ends).state == "running"  # type: ignore[union-attr]
        for submission in (170, 171):
            hub.wait_graded(submission)
        hub.check_graded_once([ends, begins], attempts=1)
        hub.await_tidiness()


class Deaf(Cluster):
    """A cluster whose first answers to `create` are lost: what is asked for has been done, or has not."""

    is_done = True
    lost = 0

    def create_pod(self, manifest: Mapping[str, Any]) -> PodState:
        if self.lost < 2:
            self.lost += 1
            if self.is_done:
                super().create_pod(manifest)
            raise ClusterUnavailable("the answer was lost")
        return super().create_pod(manifest)


@pytest.mark.parametrize("is_done", [True, False])
def test_an_answer_that_is_lost(hub: Hub, monkeypatch: pytest.MonkeyPatch, *, is_done: bool) -> None:
    """Whether the pod was made or not: it is the only one, and of the first attempt."""
    submission = 180 + is_done
    run_id = hub.submit(submission)
    environment = hub.environment()
    settings = config.load({key: text for key, text in environment.items() if key.startswith("GREENGRADER_")})
    faults: list[BaseException] = []
    with Deaf.connect(settings.kube_namespace, kubeconfig=Path(environment["KUBECONFIG"])) as cluster:
        cluster.is_done = is_done
        with Runner(settings, cluster, template_for(settings), on_fault=faults.append) as runner:
            run = hub.store.run(run_id)
            assert run is not None
            runner.begin(run)
            hub.wait_graded(submission)
    hub.check_graded_once([run_id], attempts=1)
    assert faults == []
    hub.await_tidiness()


def test_orphans_are_swept(setting: Setting) -> None:
    """Pods and prefixes of runs that nobody holds, whoever left them."""
    hub = setting.hub
    run_id = hub.submit(190)
    with dispatcher_of(hub) as dispatcher:
        hub.wait_graded(190)
        hub.namespace.kubectl("create", "--filename=-", stdin=json.dumps(orphan_of(run_id, 9)), as_admin=True)
        setting.s3.rclone("rcat", f"greengrader-app:runs/{run_id}-9/files.tar.gz", stdin=b"left")
        dispatcher.says(f"orphan swept pod=greengrader-{run_id}-9")
        dispatcher.says(f"orphan swept prefix=runs/{run_id}-9")
        hub.await_tidiness()


def orphan_of(run_id: int, attempt: int) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/managed-by": "greengrader",
        "greengrader/run": str(run_id),
        "greengrader/attempt": str(attempt),
    }
    little = {"cpu": "10m", "memory": "16Mi", "ephemeral-storage": "1Mi"}
    container = {"name": "autograder", "image": "none", "resources": {"requests": little, "limits": little}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"greengrader-{run_id}-{attempt}", "labels": labels},
        "spec": {"nodeSelector": {"nowhere": "true"}, "containers": [container]},
    }


# ------------------------------------------------------------------------------------------------ a node
STATE = Path(os.environ.get("CLUSTER_STATE", "/var/tmp/local-kubernetes"))
NODE = 3  # nobody else's pods tolerate its taint


@pytest.fixture
def kubelet() -> int:
    """The process that keeps the last node of the project's test cluster, where that is the cluster in use."""
    ours = Path(os.environ.get("KUBECONFIG", "")) == STATE / "kubeconfig"
    file = STATE / f"kubelet{NODE}.pid"
    if not ours or not file.is_file():
        pytest.skip(f"only on the project's own test cluster a kubelet can be stopped: no {file}")
    pid = int(file.read_text())
    name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] if Path(f"/proc/{pid}").exists() else b""
    if not name.endswith(b"/kubelet"):
        pytest.skip(f"process {pid} of {file} is no kubelet")
    return pid


def test_a_kubelet_that_stands_still_in_the_middle(hub: Hub, kubelet: int) -> None:
    """Stopped for some seconds and let go on, as a node without network is."""
    tolerations = '[{"key": "nautilus.io/reservation", "operator": "Exists"}]'
    only = f'{{"kubernetes.io/hostname": "node{NODE}"}}'
    with dispatcher_of(hub, kube_tolerations=tolerations, kube_node_selector=only) as dispatcher:
        run_id = hub.submit(195, runs_s=3)
        dispatcher.says(f"running run={run_id} ", 90)
        os.kill(kubelet, signal.SIGSTOP)
        try:
            time.sleep(AWAY_S)
            assert hub.store.run(run_id).state == "running"  # type: ignore[union-attr]
        finally:
            os.kill(kubelet, signal.SIGCONT)
        hub.wait_graded(195)
        hub.check_graded_once([run_id], attempts=1)
        hub.await_tidiness()
