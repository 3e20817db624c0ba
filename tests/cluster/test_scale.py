"""One dispatcher with many pods: as many as it may, each graded once, and what those cost that only wait.

`make bench` has the larger numbers.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import Postgres, start_mosquitto
from tests.bench.stage import memory_mb, publish_all
from tests.cluster.conftest import namespace_for, settings_of
from tests.cluster.hub import Hub, api_relay, cpu_s, payload, relayed_kubeconfig
from tests.cluster.relay import Relay
from tests.cluster.services import S3
from tests.conftest import fresh_database
from tests.waiting import eventually

RUNS, MAX_PODS = 12, 4
WAITING = 150
QUIET_S = 6.0


@pytest.fixture(scope="module")
def setting(
    tmp_path_factory: pytest.TempPathFactory,
    cluster_version: str,
    postgres: Postgres,
    base_image: str,
    s3: S3,
    registry: str,
    rclone_image: str,
) -> Iterator[tuple[Hub, Relay]]:
    folder = tmp_path_factory.mktemp("scale")
    broker = start_mosquitto(folder / "mosquitto", ("submit", "hub", "worker-1"))
    with (
        fresh_database(postgres) as url,
        namespace_for(s3, folder) as namespace,
        api_relay(namespace) as api,
    ):
        namespace.kubectl("delete", "resourcequotas", "--all", as_admin=True)
        given = settings_of(namespace, s3, registry, rclone_image)
        given |= {"KUBECONFIG": str(relayed_kubeconfig(namespace, folder, api)), "GREENGRADER_KUBE_CPU_REQUEST": "0.1"}
        hub = Hub(folder, url, broker, base_image, namespace, given)
        try:
            hub.start("ingest").ready()
            yield hub, api
        finally:
            hub.close()
    broker.stop()
    broker.remove()


def test_no_more_pods_than_it_may_and_each_graded_once(setting: tuple[Hub, Relay]) -> None:
    hub, _ = setting
    dispatcher = hub.start("dispatcher", "--watch", max_pods=str(MAX_PODS)).ready()
    publish_all(hub, (payload(1000 + number) for number in range(RUNS)))
    eventually(lambda: hub.count("graded") == RUNS, 90, f"{RUNS} graded runs, {hub.logs()}")
    hub.check_graded_once([int(run["run_id"]) for run in hub.store.table("runs")], attempts=1)
    assert most_at_a_time(hub) <= MAX_PODS
    hub.await_tidiness()
    assert dispatcher.terminate() == 0


def most_at_a_time(hub: Hub) -> int:
    """The largest number of runs that were in pods at once."""
    now = most = 0
    for event in sorted(hub.store.table("run_events"), key=lambda event: event["at"]):
        now += {"placed": 1, "graded": -1}.get(event["to_state"], 0)
        most = max(most, now)
    return most


def test_what_waiting_pods_cost(setting: tuple[Hub, Relay], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pods that no node takes. The storage is a folder: what is stored is never fetched."""
    hub, api = setting
    rclone_config = tmp_path / "rclone.conf"
    rclone_config.write_text("[greengrader-app]\ntype = local\n")
    dispatcher = hub.start(
        "dispatcher",
        "--watch",
        max_pods=str(WAITING),
        kube_node_selector='{"nowhere": "true"}',
        kube_unschedulable_s="3600",
        rclone_config=str(rclone_config),
        rclone_remote=f"greengrader-app:{tmp_path}",
    ).ready()
    eventually(lambda: api.connections, 30, "a watch")
    time.sleep(1)
    alone_mb = memory_mb(dispatcher, "VmRSS")
    publish_all(hub, (payload(5000 + number) for number in range(WAITING + 20)))
    began = time.monotonic()
    eventually(lambda: dispatcher.said().count(" placed run=") == WAITING, 120, f"{WAITING} placed runs, {hub.logs()}")
    took_s = time.monotonic() - began
    pods = hub.namespace.kubectl("get", "pods", "--output=name").split()
    eventually(lambda: hub.count("received") + hub.count("dispatched") == 20, 10, "20 runs that wait for room")
    time.sleep(2)  # the last requests
    api.cut()
    eventually(lambda: "watch back" in dispatcher.said(), 30, "the watch again")
    began, began_cpu_s = time.monotonic(), cpu_s(dispatcher.process.pid)
    time.sleep(QUIET_S)
    share = (cpu_s(dispatcher.process.pid) - began_cpu_s) / (time.monotonic() - began)
    each_mb = (memory_mb(dispatcher, "VmRSS") - alone_mb) / WAITING
    with capsys.disabled():
        print(
            f"\n{WAITING} waiting pods, placed in {took_s:.0f} s: {each_mb * 1000:.0f} kB each, {share:.1%} of a core"
        )
    assert WAITING - 10 <= len(pods) <= WAITING
    assert each_mb <= 1
    assert share < 0.1
    assert api.connections <= 2, "one watches, one has listed and is kept"
    assert dispatcher.terminate() == 0
