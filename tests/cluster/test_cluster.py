"""The connection to a cluster, and the watch of its pods, against the real thing at KUBECONFIG.

Pods are minimal ones of the test's own, in a namespace of its own. CLUSTER_TEST_IMAGE names an image with a shell that
the nodes have or can pull; the default is the one that the project's test cluster has anyway.
"""

import contextlib
import gc
import itertools
import json
import os
import queue
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from greengrader.errors import SettingsError
from greengrader.kube import cluster as cluster_module
from greengrader.kube import watch as watch_module
from greengrader.kube.cluster import (
    AlreadyExists,
    Cluster,
    ClusterUnavailable,
    Forbidden,
    NotThere,
    PodEvents,
    PodInvalid,
    QuotaExceeded,
    Unauthorized,
    VersionGone,
)
from greengrader.kube.pod import End, Ended, Pending, PodState, Running, Stuck, classify
from greengrader.kube.podspec import SELECTOR
from greengrader.kube.watch import PodWatch
from tests.cluster.relay import Relay
from tests.waiting import eventually

IMAGE = os.environ.get("CLUSTER_TEST_IMAGE", "pause:local")
SHELL = ["/busybox", "sh", "-c"] if IMAGE == "pause:local" else ["/bin/sh", "-c"]
BUSYBOX = "/busybox " if IMAGE == "pause:local" else ""
NAMESPACE = f"greengrader-test-cluster-{os.getpid()}"
NOWHERE = {"topology.kubernetes.io/region": "nowhere"}
_names = itertools.count(1)


def kubectl(*words: str, stdin: str | None = None) -> str:
    done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def namespace(cluster_version: str) -> Iterator[str]:
    kubectl("create", "namespace", NAMESPACE)
    eventually(
        lambda: kubectl("-n", NAMESPACE, "get", "serviceaccounts", "-o", "name"), 30, "the namespace's service account"
    )
    yield NAMESPACE
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture
def cluster(namespace: str) -> Iterator[Cluster]:
    with Cluster.connect(namespace) as connected:
        yield connected
        for state in connected.pods():
            connected.delete_pod(state.name)


def manifest(script: str = "exit 0", *, upload: str = "exit 0", fetch: str = "exit 0", **spec: Any) -> dict[str, Any]:
    """A pod shaped like a run's, of three tiny containers; `autograder` changes the one in the middle."""
    number = next(_names)
    autograder = spec.pop("autograder", {})
    labels = {"app.kubernetes.io/managed-by": "greengrader", "greengrader/run": str(number), "greengrader/attempt": "1"}

    def container(name: str, what: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "image": IMAGE, "command": [*SHELL, what], **more}

    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"greengrader-{number}-1", "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "initContainers": [container("fetch", fetch)],
            "containers": [container("upload", upload), container("autograder", script, **autograder)],
            **spec,
        },
    }


class Heard:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[tuple[PodState, bool]] = queue.SimpleQueue()

    def __call__(self, pod: PodState, deleted: bool) -> None:
        self.told.put((pod, deleted))

    def until(self, wanted: Callable[[PodState, bool], bool], limit_s: float = 60.0) -> PodState:
        """The first state told from now on for which that is true."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                pod, deleted = self.told.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                raise AssertionError(f"nothing of the kind was told within {limit_s:g} s") from None
            if wanted(pod, deleted):
                return pod

    def until_gone(self, name: str, limit_s: float = 60.0) -> PodState:
        return self.until(lambda pod, deleted: deleted and pod.name == name, limit_s)

    def until_there(self, name: str, limit_s: float = 60.0) -> PodState:
        return self.until(lambda pod, deleted: not deleted and pod.name == name, limit_s)

    def until_ended(self, name: str, limit_s: float = 60.0) -> Ended:
        pod = self.until(lambda pod, gone: pod.name == name and isinstance(classify(pod, deleted=gone), Ended), limit_s)
        ended = classify(pod)
        assert isinstance(ended, Ended)
        return ended


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def watch(cluster: Cluster, heard: Heard) -> Iterator[PodWatch]:
    with PodWatch(cluster, SELECTOR, heard) as open_watch:
        yield open_watch


# --- pods


def test_a_pod_from_its_creation_to_its_log_and_its_deletion(cluster: Cluster, watch: PodWatch, heard: Heard) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    created = cluster.create_pod(manifest(f"echo one; {BUSYBOX}sleep 2; echo two"))
    assert isinstance(classify(created), Pending)
    assert (created.attempt, created.run_id is not None) == (1, True)
    runs = heard.until(lambda pod, _: isinstance(classify(pod), Running))
    assert runs.node is not None and runs.host_ip is not None
    ended = heard.until_ended(created.name)
    assert (ended.end, ended.exit_status) == (End.COMPLETED, 0)
    assert ended.started_at is not None and ended.finished_at is not None
    assert before <= ended.started_at <= ended.finished_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert 1 <= (ended.finished_at - ended.started_at).total_seconds() <= 6
    assert cluster.pod_log(created.name, "autograder", 1000) == b"one\ntwo\n"
    assert cluster.delete_pod(created.name) is True
    assert heard.until_gone(created.name).uid == created.uid
    assert (cluster.delete_pod(created.name), cluster.pod(created.name)) == (False, None)
    assert created.name not in watch.pods()


def test_a_long_log_keeps_head_and_tail(cluster: Cluster, watch: PodWatch, heard: Heard) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i + 1)); done"
    pod = cluster.create_pod(manifest(script))
    heard.until_ended(pod.name)
    log = cluster.pod_log(pod.name, "autograder", 2000)
    assert log.startswith(b"line 0\nline 1\n") and log.endswith(b"line 19999\n")
    assert b" bytes left out ...]" in log and len(log) < 2100
    assert len(cluster.pod_log(pod.name, "autograder", 1024**2)) == sum(len(f"line {i}\n") for i in range(20000))


def test_what_never_ran_has_no_log(cluster: Cluster) -> None:
    waiting = cluster.create_pod(manifest(nodeSelector=NOWHERE))
    assert cluster.pod_log(waiting.name, "autograder", 1000) == b""
    assert cluster.pod_log("there-is-none", "autograder", 1000) == b""


def test_a_name_is_taken_once(cluster: Cluster) -> None:
    pod = manifest(nodeSelector=NOWHERE)
    created = cluster.create_pod(pod)
    with pytest.raises(AlreadyExists, match=f'"{created.name}" already exists'):
        cluster.create_pod(pod)


def test_another_pod_of_the_same_name_is_not_deleted(cluster: Cluster) -> None:
    created = cluster.create_pod(manifest(nodeSelector=NOWHERE))
    assert cluster.delete_pod(created.name, uid="6e1a0a62-0000-0000-0000-000000000000") is False
    assert cluster.pod(created.name) is not None
    assert cluster.delete_pod(created.name, uid=created.uid) is True


def test_an_invalid_pod_names_its_fields(cluster: Cluster) -> None:
    broken = manifest()
    broken["spec"]["containers"][1]["image"] = ""
    with pytest.raises(PodInvalid) as invalid:
        cluster.create_pod(broken)
    assert invalid.value.fields == ("spec.containers[1].image",)
    undecodable = manifest(volumes={"not": "a list"})
    with pytest.raises(PodInvalid, match="olumes"):
        cluster.create_pod(undecodable)


def test_pods_are_found_by_their_labels_page_by_page(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "PAGE", 2)
    names = {cluster.create_pod(manifest(nodeSelector=NOWHERE)).name for _ in range(5)}
    other = manifest(nodeSelector=NOWHERE)
    other["metadata"]["labels"] = {"somebody": "else"}
    stranger = cluster.create_pod(other)
    assert {pod.name for pod in cluster.pods()} == names
    assert cluster.delete_pod(stranger.name)


# --- every end, as this cluster tells it

ENDS: dict[str, tuple[dict[str, Any], type, End]] = {
    "completed": (manifest(), Ended, End.COMPLETED),
    "non-zero exit": (manifest("exit 3"), Ended, End.EXITED),
    "out of memory": (
        manifest(
            f"{BUSYBOX}dd if=/dev/zero of=/dev/null bs=200M count=1",
            autograder={"resources": {"limits": {"memory": "32Mi"}}},
        ),
        Ended,
        End.OUT_OF_MEMORY,
    ),
    "deadline": (
        manifest(f"{BUSYBOX}sleep 300", upload=f"{BUSYBOX}sleep 300", activeDeadlineSeconds=10),
        Ended,
        End.TIMED_OUT,
    ),
    "deadline before the start": (
        manifest(fetch=f"{BUSYBOX}sleep 300", activeDeadlineSeconds=4),
        Ended,
        End.STARTED_TOO_LATE,
    ),
    "fetch failed": (manifest(fetch="exit 5"), Ended, End.FETCH_FAILED),
    "upload failed": (manifest(upload="exit 6"), Ended, End.UPLOAD_FAILED),
    "not startable": (manifest(autograder={"command": ["/nothing"]}), Ended, End.CANNOT_START),
    "no such image": (manifest(autograder={"image": "127.0.0.1:1/nothing:1"}), Stuck, End.IMAGE_UNAVAILABLE),
    "no image name": (manifest(autograder={"image": "Not A:::Name"}), Stuck, End.IMAGE_UNAVAILABLE),
    "secret missing": (manifest(autograder={"envFrom": [{"secretRef": {"name": "no"}}]}), Stuck, End.CANNOT_START),
    "no node": (manifest(nodeSelector=NOWHERE), Stuck, End.UNSCHEDULABLE),
}


@pytest.fixture(scope="session")
def verdicts(namespace: str) -> dict[str, Any]:
    """{case: what became of its pod}; all of them at once, since most of it is waiting."""
    wanted = {pod["metadata"]["name"]: (case, kind, end) for case, (pod, kind, end) in ENDS.items()}
    found: dict[str, Any] = {}
    told = Heard()
    with Cluster.connect(namespace) as connected, PodWatch(connected, SELECTOR, told):
        for pod, _, _ in ENDS.values():
            connected.create_pod(pod)
        with contextlib.suppress(AssertionError):
            while len(found) < len(ENDS):
                pod_state = told.until(lambda pod, _: pod.name in wanted, limit_s=60.0)
                case, kind, end = wanted[pod_state.name]
                verdict = classify(pod_state)
                if isinstance(verdict, Ended) or (isinstance(verdict, Stuck) and kind is Stuck and verdict.end is end):
                    found.setdefault(case, verdict)
        for name in wanted:
            connected.delete_pod(name)
    return found


@pytest.mark.parametrize("case", ENDS)
def test_every_end_is_told_apart(verdicts: dict[str, Any], case: str) -> None:
    _, kind, end = ENDS[case]
    verdict = verdicts.get(case)
    assert isinstance(verdict, kind), f"{case}: {verdict}"
    assert isinstance(verdict, Ended | Stuck)
    assert verdict.end is end, verdict.sentence
    assert verdict.sentence


@pytest.mark.parametrize("grace_s", [0, 1])
def test_a_pod_deleted_by_hand(cluster: Cluster, watch: PodWatch, heard: Heard, grace_s: int) -> None:
    pod = cluster.create_pod(manifest(f"{BUSYBOX}sleep 300", upload=f"{BUSYBOX}sleep 300"))
    heard.until(lambda state, _: state.name == pod.name and isinstance(classify(state), Running))
    cluster.delete_pod(pod.name, grace_s=grace_s)
    last = heard.until(lambda state, gone: state.name == pod.name and isinstance(classify(state, deleted=gone), Ended))
    verdict = classify(last, deleted=True)
    assert isinstance(verdict, Ended) and verdict.end is End.DELETED


# --- who may not, and what is full


def write_kubeconfig(path: Path, *, token: str | None = None, port: int | None = None) -> Path:
    """The kubeconfig in use, with another token or by way of a relay's port."""
    raw = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    described = raw["clusters"][0]["cluster"]
    if port is not None:
        if not described.get("insecure-skip-tls-verify"):
            described["tls-server-name"] = urlsplit(described["server"]).hostname
        described["server"] = f"https://127.0.0.1:{port}"
    if token is not None:
        raw["users"][0]["user"] = {"token": token}
    path.write_text(json.dumps(raw))
    path.chmod(0o600)
    return path


def account(namespace: str, path: Path, *rules: str) -> Path:
    """A kubeconfig of a new service account; `rules` are its role's, as `kubectl create role` takes them."""
    name, scope = f"account-{next(_names)}", ("-n", namespace)
    kubectl(*scope, "create", "serviceaccount", name)
    if rules:
        kubectl(*scope, "create", "role", name, *rules)
        kubectl(*scope, "create", "rolebinding", name, f"--role={name}", f"--serviceaccount={namespace}:{name}")
    return write_kubeconfig(path / f"{name}.json", token=kubectl(*scope, "create", "token", name).strip())


def test_an_account_without_rights_is_told_verb_and_resource(namespace: str, tmp_path: Path) -> None:
    with Cluster.connect(namespace, kubeconfig=account(namespace, tmp_path)) as nobody:
        calls: list[tuple[str, str, Callable[[], object]]] = [
            ("create", "pods", lambda: nobody.create_pod(manifest())),
            ("delete", "pods", lambda: nobody.delete_pod("some")),
            ("get", "pods", lambda: nobody.pod("some")),
            ("list", "pods", lambda: nobody.pods()),
            ("watch", "pods", lambda: nobody.pod_events(SELECTOR, "0", 5)),
            ("get", "pods/log", lambda: nobody.pod_log("some", "autograder", 100)),
            ("list", "nodes", lambda: nobody.nodes()),
            ("list", "pods", PodWatch(nobody).start),
        ]
        for verb, resource, call in calls:
            with pytest.raises(
                Forbidden, match=rf"system:serviceaccount:{namespace}:account-\d+ may not `{verb}` `{resource}`"
            ):
                call()


def test_rights_in_the_namespace_alone_are_enough(namespace: str, tmp_path: Path) -> None:
    """The rule of deploy/kubernetes/, as far as this module needs it; nodes are the one thing beyond."""
    rules = "--verb=create,delete,get,list,watch", "--resource=pods,pods/log"
    with Cluster.connect(namespace, kubeconfig=account(namespace, tmp_path, *rules)) as limited:
        told = Heard()
        with PodWatch(limited, SELECTOR, told):
            pod = limited.create_pod(manifest("echo hello"))
            told.until_ended(pod.name)
            assert limited.pod_log(pod.name, "autograder", 100) == b"hello\n"
            assert limited.delete_pod(pod.name)
            told.until_gone(pod.name)


def test_nodes_whose_other_pods_may_not_be_seen_say_so(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    rules = "--verb=create,delete,get,list,watch", "--resource=pods"
    path = account(namespace, tmp_path, *rules)
    name = path.stem
    kubectl("create", "clusterrole", f"{namespace}-nodes", "--verb=list", "--resource=nodes")
    binding = f"{namespace}-nodes"
    kubectl("create", "clusterrolebinding", binding, f"--clusterrole={binding}", f"--serviceaccount={namespace}:{name}")
    try:
        with Cluster.connect(namespace, kubeconfig=path) as limited:
            assert {node.name for node in limited.nodes()} == {node.name for node in cluster.nodes()}
            assert not any(node.knows_all_requests for node in limited.nodes())
            assert all(node.knows_all_requests for node in cluster.nodes())
    finally:
        kubectl("delete", "clusterrolebinding", binding)
        kubectl("delete", "clusterrole", binding)


def test_unknown_credentials(namespace: str, tmp_path: Path) -> None:
    with pytest.raises(Unauthorized, match="does not accept our credentials"):
        Cluster.connect(namespace, kubeconfig=write_kubeconfig(tmp_path / "wrong", token="wrong"))


def test_a_namespace_that_does_not_exist(cluster_version: str) -> None:
    with (
        Cluster.connect("greengrader-there-is-none") as lost,
        pytest.raises(NotThere, match="greengrader-there-is-none"),
    ):
        lost.create_pod(manifest())


def test_a_full_quota(cluster_version: str) -> None:
    name = f"{NAMESPACE}-quota"
    kubectl("create", "namespace", name)
    try:
        eventually(lambda: kubectl("-n", name, "get", "serviceaccounts", "-o", "name"), 30, "the service account")
        kubectl("-n", name, "create", "quota", "few", "--hard=pods=1")
        eventually(lambda: "pods" in kubectl("-n", name, "get", "quota", "few", "-o", "jsonpath={.status.used}"), 30)
        with Cluster.connect(name) as cramped:
            first = cramped.create_pod(manifest(nodeSelector=NOWHERE))
            with pytest.raises(QuotaExceeded, match=f"the quota of namespace {name} is full: exceeded quota: few"):
                cramped.create_pod(manifest(nodeSelector=NOWHERE))
            cramped.delete_pod(first.name)
            # The quota's controller notices a little later.
            eventually(lambda: _created(cramped), 30, "room in the quota")
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def _created(cluster: Cluster) -> bool:
    try:
        cluster.create_pod(manifest(nodeSelector=NOWHERE))
    except (QuotaExceeded, ClusterUnavailable):
        return False
    return True


def test_without_a_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=r"no kubeconfig at .*/\.kube/config; set KUBECONFIG"):
        Cluster.connect()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "elsewhere"))
    with pytest.raises(SettingsError, match=r"no kubeconfig at .*/elsewhere"):
        Cluster.connect()
    for text in ("a: [b", "apiVersion: v1", "- 1", "\0", ""):
        (tmp_path / "elsewhere").write_text(text)
        with pytest.raises(SettingsError, match="cannot be used") as unusable:
            Cluster.connect()
        assert "\n" not in str(unusable.value)


# --- nodes


def test_nodes_and_what_pods_request_of_them(cluster: Cluster, watch: PodWatch, heard: Heard) -> None:
    before = {node.name: node for node in cluster.nodes()}
    assert before and all(node.allocatable.pods > 0 and node.ip for node in before.values())
    asked = {"resources": {"requests": {"cpu": "50m", "memory": "24Mi"}}}
    pod = cluster.create_pod(manifest(f"{BUSYBOX}sleep 300", upload=f"{BUSYBOX}sleep 300", autograder=asked))
    runs = heard.until(lambda state, _: state.name == pod.name and isinstance(classify(state), Running))
    after = {node.name: node for node in cluster.nodes()}
    assert runs.node is not None
    more = after[runs.node].requested - before[runs.node].requested
    # Others use this cluster, too.
    assert more.millicores >= 50 or more.memory_bytes >= 24 * 1024**2
    assert after[runs.node].ip == runs.host_ip


# --- the watch


def test_listeners_share_one_watch(cluster: Cluster, watch: PodWatch) -> None:
    all_pods, one_pod = Heard(), Heard()
    first = cluster.create_pod(manifest(nodeSelector=NOWHERE))
    eventually(lambda: first.name in watch.pods())
    second = manifest(nodeSelector=NOWHERE)
    stop = watch.listen(all_pods)
    watch.listen(one_pod, pod=second["metadata"]["name"])
    assert all_pods.until_there(first.name, 1).uid == first.uid  # what is known is told at once
    name = cluster.create_pod(second).name
    assert one_pod.until(lambda *_: True).name == name
    all_pods.until_there(name)
    stop()
    cluster.delete_pod(name)
    one_pod.until_gone(name)
    assert all(pod.name != name or not deleted for pod, deleted in _drain(all_pods))


def _drain(heard: Heard) -> Iterator[tuple[PodState, bool]]:
    while not heard.told.empty():
        yield heard.told.get()


def test_the_server_ends_every_watch_and_it_goes_on(
    cluster: Cluster, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "WATCH_S", 2)
    opened: list[str] = []

    class Counting(Cluster):
        def pod_events(self, selector: str, version: str, timeout_s: int) -> PodEvents:
            opened.append(version)
            return super().pod_events(selector, version, timeout_s)

    with Counting.connect(cluster.namespace) as counting, PodWatch(counting, SELECTOR, heard) as watch:
        eventually(lambda: len(opened) >= 3, 20, "a third watch")
        assert watch.is_current
        pod = cluster.create_pod(manifest(nodeSelector=NOWHERE))
        heard.until_there(pod.name, 10)


def test_a_version_that_the_server_has_forgotten(cluster: Cluster) -> None:
    """Version 1 was gone before the API server started; it says so by its status or by an event."""
    try:
        with cluster.pod_events(SELECTOR, "1", 10) as events:
            kind, said = next(iter(events))
    except VersionGone as gone:
        assert gone.status == 410
    else:
        assert (kind, said["code"]) == ("ERROR", 410)


def test_a_watch_that_is_too_old_lists_again(cluster: Cluster, heard: Heard) -> None:
    old: list[str] = []

    class Forgetful(Cluster):
        def pod_events(self, selector: str, version: str, timeout_s: int) -> PodEvents:
            first = not old
            old.append(version)
            return super().pod_events(selector, "1" if first else version, timeout_s)

    with Forgetful.connect(cluster.namespace) as forgetful, PodWatch(forgetful, SELECTOR, heard) as watch:
        eventually(lambda: len(old) == 2 and watch.is_current, 20, "a second watch")
        pod = cluster.create_pod(manifest(nodeSelector=NOWHERE))
        heard.until_there(pod.name, 10)


def test_a_quiet_watch_is_closed_at_once(cluster: Cluster) -> None:
    watch = PodWatch(cluster)
    watch.start()
    eventually(lambda: watch._events, 10, "an open watch")
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 2
    watch.close()


def test_a_fault_of_the_watch_is_not_hidden(cluster: Cluster) -> None:
    faults: list[BaseException] = []

    def broken(_pod: PodState, _deleted: bool) -> None:
        raise ZeroDivisionError("a bug of a listener")

    with PodWatch(cluster, on_fault=faults.append) as watch:
        watch.listen(broken)
        cluster.create_pod(manifest(nodeSelector=NOWHERE))
        eventually(lambda: faults, 10, "the fault")
        assert not watch.is_current
        with pytest.raises(ZeroDivisionError):
            watch.check(limit_s=600)


# --- connections that break


@pytest.fixture
def relay(namespace: str) -> Iterator[Relay]:
    server = urlsplit(kubectl("config", "view", "--raw", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
    assert server.hostname is not None
    with Relay(server.hostname, server.port or 443) as running:
        yield running


@pytest.fixture
def relayed(namespace: str, relay: Relay, tmp_path: Path) -> Iterator[Cluster]:
    """The same cluster by way of the relay."""
    with Cluster.connect(namespace, kubeconfig=write_kubeconfig(tmp_path / "relayed", port=relay.port)) as connected:
        yield connected


def test_a_server_that_is_away(namespace: str, relay: Relay, relayed: Cluster) -> None:
    relay.refuse()
    relay.cut()
    calls: list[Callable[[], object]] = [
        relayed.pods,
        relayed.nodes,
        lambda: relayed.create_pod(manifest()),
        lambda: relayed.delete_pod("some"),
        lambda: relayed.pod_log("some", "autograder", 100),
        PodWatch(relayed).start,
    ]
    for call in calls:
        with pytest.raises(
            ClusterUnavailable, match=f"the cluster at https://127.0.0.1:{relay.port} does not answer: "
        ):
            call()
    relay.refuse(False)
    assert relayed.pods() == []


def test_an_idle_connection_that_was_closed_is_replaced(cluster: Cluster, relay: Relay, relayed: Cluster) -> None:
    for _ in range(5):
        assert relayed.pods() == []
        relay.cut()
    relayed.create_pod(manifest(nodeSelector=NOWHERE))


def test_the_watch_uses_one_connection(relay: Relay, relayed: Cluster) -> None:
    with PodWatch(relayed) as watch:
        eventually(lambda: watch._events, 10, "an open watch")
        for _ in range(50):
            watch.listen(Heard())
        relayed.pods()
        assert relay.connections == 2  # the watch's, and the one for everything else
    eventually(lambda: relay.connections == 1, 10, "the end of the watch's connection")


def test_a_watch_survives_an_outage(cluster: Cluster, relay: Relay, relayed: Cluster, heard: Heard) -> None:
    with PodWatch(relayed, SELECTOR, heard) as watch:
        stays, goes = (cluster.create_pod(manifest(nodeSelector=NOWHERE)) for _ in range(2))
        heard.until_there(goes.name)
        relay.refuse()
        relay.cut()
        eventually(lambda: watch.away_s > 0, 10, "the loss")
        assert not watch.is_current
        with pytest.raises(ClusterUnavailable):
            watch.check(limit_s=0.0)
        watch.check(limit_s=60.0)
        cluster.delete_pod(goes.name)
        comes = cluster.create_pod(manifest(nodeSelector=NOWHERE))
        eventually(lambda: watch.away_s > 1, 10, "a longer outage")
        relay.refuse(False)
        assert heard.until_gone(goes.name, 15).uid == goes.uid
        heard.until_there(comes.name, 15)
        eventually(lambda: watch.is_current, 10, "the watch's return")
        assert set(watch.pods()) == {stays.name, comes.name}
        watch.check(limit_s=0.0)


def test_a_pod_that_was_replaced_unseen_is_told_as_two(
    cluster: Cluster, relay: Relay, relayed: Cluster, heard: Heard
) -> None:
    with PodWatch(relayed, SELECTOR, heard) as watch:
        described = manifest(nodeSelector=NOWHERE)
        first = cluster.create_pod(described)
        heard.until_there(first.name)
        relay.refuse()
        relay.cut()
        eventually(lambda: not watch.is_current, 10, "the loss")
        cluster.delete_pod(first.name)
        second = cluster.create_pod(described)
        relay.refuse(False)
        assert heard.until_gone(first.name, 15).uid == first.uid
        assert heard.until_there(second.name, 15).uid == second.uid


def test_a_connection_that_is_only_half_alive_is_noticed(
    cluster: Cluster, relay: Relay, relayed: Cluster, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing comes, and nobody says that the other end is gone: only the server's own limit tells."""
    monkeypatch.setattr(watch_module, "WATCH_S", 1)
    monkeypatch.setattr(cluster_module, "SILENCE_S", 1)
    with PodWatch(relayed, SELECTOR, heard) as watch:
        eventually(lambda: watch._events, 10, "an open watch")
        relay.freeze()
        eventually(lambda: watch.away_s > 0, 10, "the loss")
        pod = cluster.create_pod(manifest(nodeSelector=NOWHERE))
        relay.freeze(False)
        relay.cut()
        heard.until_there(pod.name, 20)
        eventually(lambda: watch.is_current, 20, "the watch's return")


# --- many


def test_what_three_hundred_waiting_pods_cost(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory that is kept for each, and the CPU time of a watch in which nothing happens."""
    count, idle_s = 300, 5.0
    for _ in range(count):
        cluster.create_pod(manifest(nodeSelector=NOWHERE))
    eventually(lambda: sum(isinstance(classify(pod), Stuck) for pod in cluster.pods()) == count, 120, "the scheduler")
    gc.collect()
    tracemalloc.start()
    try:
        watch = PodWatch(cluster)
        began = time.process_time()
        watch.start()
        listed_s = time.process_time() - began
        eventually(lambda: watch._events, 10, "an open watch")
        gc.collect()
        kept_bytes = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert len(watch.pods()) == count
    began_cpu, began = time.process_time(), time.monotonic()
    watch._closing.wait(idle_s)
    share = (time.process_time() - began_cpu) / (time.monotonic() - began)
    watch.close()
    kubectl("-n", cluster.namespace, "delete", "pods", "--all", "--wait=false", "--grace-period=0", "--force")
    with capsys.disabled():
        print(
            f"\n{count} waiting pods: {kept_bytes / 1024:.1f} KiB kept for each, listed in {listed_s * 1000:.0f} ms "
            f"of CPU time (traced), {share:.2%} of a core while nothing changes"
        )
    assert kept_bytes < 4096
    assert share < 0.02
