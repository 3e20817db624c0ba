"""pod.yaml on a real cluster: whatever an autograder does to itself, what it left is in the storage at once.

All pods of `ends` run at the same time, under the Role of deploy/kubernetes; each test then looks at one of them. The
autograder's image runs submission/run.sh, so each submission is an autograder of its own.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from greengrader import config
from greengrader.kube.cluster import Cluster
from greengrader.kube.collect import Left, unpack
from greengrader.kube.podspec import PodTemplate, RunPod, pod_name, render
from greengrader.kube.podstate import ContainerState, PodState
from greengrader.kube.refused import PodInvalid
from greengrader.kube.transport import FILES, RESULTS, Remote, prefix_of
from greengrader.kube.watch import PodWatch
from greengrader.limits import MEBIBYTE, Limits
from tests.cluster import services
from tests.cluster.conftest import namespace_for, settings_of
from tests.cluster.services import S3, Namespace
from tests.sandbox.conftest import tar_gz

TEMPLATE = PodTemplate.read(Path(__file__).parents[2] / "pod.yaml")
RESULTS_BYTES = 64 * 1024
LIMIT_S = 240  # nodes pull their images first; those of the local cluster lose sight of this machine now and then

DOCKERFILE = """\
FROM {base}
ENTRYPOINT []
WORKDIR /autograder
ENV GREENGRADER=1
RUN mkdir submission results && chmod 755 results && useradd --create-home student \\
 && printf '#!/bin/sh\\nexec bash submission/run.sh\\n' > run_autograder && chmod 755 run_autograder
"""

GOOD = "echo '{\"score\": 1}' > results/results.json\n"
SCRIPTS = {
    "good": GOOD,
    "exit status": f"{GOOD} exit 7",
    "out of memory": f"{GOOD} python3 -c 'x = bytearray(10**9)'",
    "parent killed": f"{GOOD} kill -9 $PPID; sleep 100",
    "everything killed": f"{GOOD} kill -9 -1",
    "timeout": f"{GOOD} sleep 100 & setsid sleep 100 & sleep 100",
    "files closed": f"for fd in $(seq 3 255); do eval \"exec $fd>&-\"; done; {GOOD}",
    "left behind": f"{GOOD} setsid sh -c 'sleep 4; echo late > results/results.json; sleep 100' > /dev/null 2>&1 &",
    "no results": "echo nothing to see",
    "link": "ln -s /greengrader/rclone/rclone.conf results/results.json",
    "pipe": "mkfifo results/results.json",
    "folder": "mkdir results/results.json; touch results/results.json/inside",
    "sparse": "truncate -s 10G results/results.json || truncate -s 100M results/results.json",
    "too long": f"head -c {RESULTS_BYTES + 1} /dev/zero > results/results.json",
    "just fits": f"head -c {RESULTS_BYTES} /dev/zero > results/results.json",
    "results removed": f"rm -rf results; rm -f /greengrader/run/alive; mkdir -p results; {GOOD}",
    "commands removed": f"{GOOD} rm -rf /usr/bin/* /usr/sbin/*",
    "usage forged": f"""{GOOD}
        line="began_s=1 ended_s=2 cpu_ns=3 cpu_us=4 peak_bytes=5"
        (while :; do echo "$line"; done) > /greengrader/run/alive & sleep 1; echo "$line" > /greengrader/run/alive""",
    "private results": """
        echo mine > /tmp/mine; chmod 600 /tmp/mine; chown student /tmp/mine; mv /tmp/mine results/results.json""",
    "student": """
        { su student -c 'echo > results/results.json; cat /greengrader/run/alive; echo > /greengrader/run/alive'
          ls results; } > /tmp/said 2>&1
        mv /tmp/said results/results.json""",
    "surroundings": """
        { env; ls -R /greengrader; cat /proc/self/status; ulimit -Hn; ulimit -c; hostname; id
          stat -c '%n %a %Y' submission/*; ls -d /var/run/secrets/* /run/secrets/*; } > /tmp/said 2>&1
        mv /tmp/said results/results.json""",
}  # fmt: skip
LIMITS = {"timeout": {"timeout_s": 3.0}}


@dataclass(frozen=True)
class Seen:
    """How one pod ended, and what it left in the storage."""

    status: dict[str, Any]
    left: Left

    def state(self, container: str) -> dict[str, Any]:
        states = {one["name"]: one["state"] for one in self.status["containerStatuses"]}
        ended: dict[str, Any] = states[container]["terminated"]
        return ended

    @property
    def exit_status(self) -> int:
        return int(self.state("autograder")["exitCode"])

    def upload_s(self) -> float:
        """From the autograder's end to that of the upload; both are known to the second."""
        ends = [datetime.fromisoformat(self.state(name)["finishedAt"]) for name in ("autograder", "upload")]
        return (ends[1] - ends[0]).total_seconds()


class Stage:
    """Runs scripts as autograders."""

    def __init__(self, namespace: Namespace, cluster: Cluster, settings: config.Settings, image: str) -> None:
        self.namespace, self.cluster, self.settings, self.image = namespace, cluster, settings, image
        self.remote = Remote(settings.rclone_remote, settings.rclone_config)
        self._changed = threading.Condition()
        self.watch = PodWatch(cluster, listener=self._note)

    def _note(self, pod: PodState, deleted: bool) -> None:
        with self._changed:
            self._changed.notify_all()

    def start(self, run_id: int, script: str, **limits: Any) -> None:
        """Makes the pod of a run, with the script in its submission."""
        allowed = {"timeout_s": 60.0, "memory_bytes": 256 * MEBIBYTE, "results_bytes": RESULTS_BYTES, **limits}
        files = {"submission/run.sh": f"cd /autograder\n{script}\n", "submission/a b/é.txt": "text"}
        packed = tar_gz({**files, "submission_metadata.json": "{}"}, mode=0o640)
        self.remote.put(prefix_of(run_id, 1), FILES, packed)
        self.create(run_id, TEMPLATE, Limits(**allowed))

    def create(self, run_id: int, template: PodTemplate, limits: Limits) -> None:
        command = ("/autograder/run_autograder",)
        pod = RunPod(run_id, 1, self.image, command, limits, prefix_of(run_id, 1), "test")
        self.cluster.create_pod(render(template, pod, self.settings))

    def wait(self, run_id: int, what: str, condition: Callable[[PodState], bool], limit_s: float = LIMIT_S) -> None:
        """Until the run's pod is as it should be."""
        name = pod_name(run_id, 1)

        def is_so() -> bool:
            pod = self.watch.pods().get(name)
            return pod is not None and condition(pod)

        with self._changed:
            assert self._changed.wait_for(is_so, limit_s), f"{name}: {what} did not come: {self.watch.pods().get(name)}"

    def wait_for_end(self, run_id: int) -> None:
        self.wait(run_id, "the end", lambda pod: pod.phase in ("Succeeded", "Failed"))

    def left(self, run_id: int) -> Left:
        packed = self.remote.get(prefix_of(run_id, 1), RESULTS, RESULTS_BYTES + MEBIBYTE)
        assert packed is not None, f"run {run_id}: nothing in the storage"
        return unpack(packed, RESULTS_BYTES)

    def status(self, run_id: int) -> dict[str, Any]:
        status: dict[str, Any] = self.namespace.pod(pod_name(run_id, 1))["status"]
        return status


@pytest.fixture(scope="module")
def stage(
    cluster_version: str,
    s3: S3,
    registry: str,
    rclone_image: str,
    base_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    """A namespace for this file, and an autograder's image on its nodes."""
    image = "greengrader/test-autograder:rendered"
    services.build(image, DOCKERFILE.format(base=base_image))
    with namespace_for(s3, tmp_path_factory.mktemp("rendered")) as namespace:
        environment = settings_of(namespace, s3, registry, rclone_image)
        settings = config.load({**environment, "GREENGRADER_KUBE_CPU_REQUEST": "0.05"}, Path("/nonexistent"))
        with Cluster.connect(namespace.name, kubeconfig=namespace.kubeconfig) as cluster:
            stage = Stage(namespace, cluster, settings, services.push(image, registry))
            with stage.watch:
                yield stage
            for prefix in stage.remote.prefixes():
                stage.remote.purge(prefix)


@pytest.fixture(scope="module")
def ends(stage: Stage) -> dict[str, Seen]:
    """{name of the script: how its pod ended}"""
    for run_id, (name, script) in enumerate(SCRIPTS.items(), 1):
        stage.start(run_id, script, **LIMITS.get(name, {}))
    seen = {}
    for run_id, name in enumerate(SCRIPTS, 1):
        stage.wait_for_end(run_id)
        seen[name] = Seen(stage.status(run_id), stage.left(run_id))
    return seen


@pytest.mark.parametrize(
    ("name", "exit_status"),
    [
        ("good", 0),
        ("exit status", 7),
        ("parent killed", 137),
        ("everything killed", 137),
        ("timeout", 137),
        ("files closed", 0),
        ("left behind", 0),
        ("results removed", 0),
        ("commands removed", 0),
        ("usage forged", 0),
    ],
)
def test_results_arrive_however_the_autograder_ends(ends: dict[str, Seen], name: str, exit_status: int) -> None:
    seen = ends[name]
    assert seen.left.results == b'{"score": 1}\n' and seen.left.problem is None
    assert seen.exit_status == exit_status


def test_results_arrive_after_out_of_memory(ends: dict[str, Seen]) -> None:
    seen = ends["out of memory"]
    assert seen.left.results == b'{"score": 1}\n'
    assert seen.state("autograder")["reason"] == "OOMKilled"


def test_results_arrive_at_once(ends: dict[str, Seen]) -> None:
    """All at once they compete for the machine, and a connection may be lost; most are there in the same second."""
    delays_s = sorted(seen.upload_s() for seen in ends.values())
    assert delays_s[len(delays_s) // 2] <= 2


def test_without_results_there_are_none(ends: dict[str, Seen]) -> None:
    seen = ends["no results"]
    assert (seen.left.results, seen.left.problem, seen.exit_status) == (None, None, 0)


@pytest.mark.parametrize("name", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_followed(ends: dict[str, Seen], name: str) -> None:
    assert ends[name].left.results is None
    assert ends[name].left.problem is not None


@pytest.mark.parametrize(("name", "said"), [("sparse", "104,857,600 bytes"), ("too long", "65,537 bytes")])
def test_too_long_results_say_how_long(ends: dict[str, Seen], name: str, said: str) -> None:
    assert ends[name].left.results is None
    assert said in (ends[name].left.problem or "")


def test_the_longest_results_come_whole(ends: dict[str, Seen]) -> None:
    assert ends["just fits"].left.results == bytes(RESULTS_BYTES)


def test_results_that_only_another_user_may_read_come_too(ends: dict[str, Seen]) -> None:
    assert ends["private results"].left.results == b"mine\n"


def test_the_timeout_counts_from_the_autograders_start(ends: dict[str, Seen]) -> None:
    wall_s = ends["timeout"].left.wall_s
    assert wall_s is not None and 3.0 <= wall_s < 4.0


def test_what_a_run_used_is_measured(ends: dict[str, Seen]) -> None:
    left = ends["good"].left
    assert left.cpu_s is not None and 0.005 < left.cpu_s < 2
    assert left.wall_s is not None and left.wall_s < 10
    assert left.peak_memory_bytes is not None and MEBIBYTE < left.peak_memory_bytes < 256 * MEBIBYTE
    assert ends["out of memory"].left.peak_memory_bytes == 256 * MEBIBYTE


def test_usage_that_was_written_before_is_not_believed(ends: dict[str, Seen]) -> None:
    left = ends["usage forged"].left
    assert left.wall_s is not None and left.wall_s > 1
    assert left.cpu_s is not None and left.cpu_s > 0.005 and left.peak_memory_bytes != 5


def test_a_user_without_rights_can_neither_write_results_nor_speak_to_the_upload(ends: dict[str, Seen]) -> None:
    said = (ends["student"].left.results or b"").decode().splitlines()
    assert len(said) == 3 and all("Permission denied" in line for line in said), said


def test_the_surroundings_are_those_of_the_sandbox(ends: dict[str, Seen]) -> None:
    text = (ends["surroundings"].left.results or b"").decode()
    lines = text.splitlines()
    assert "GREENGRADER=1" in lines and "LANG=C.UTF-8" in lines and "PWD=/autograder" in lines
    for secret in ("KUBERNETES", "RCLONE", "rclone", "GREENGRADER_", "serviceaccount"):
        assert secret not in text
    for fact in ("CapEff:\t00000000000004fb", "CapBnd:\t00000000000004fb", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert fact in lines
    assert {"4096", "0", "autograder", "uid=0(root) gid=0(root) groups=0(root)"} <= set(lines)
    assert "submission/run.sh 640 0" in lines


def test_a_submission_that_is_not_there_fails_before_the_autograder(stage: Stage) -> None:
    stage.create(900, TEMPLATE, Limits())
    stage.wait_for_end(900)
    status = stage.status(900)
    assert status["phase"] == "Failed"
    assert status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] != 0
    assert all("waiting" in one["state"] for one in status["containerStatuses"])


def test_results_outlast_a_storage_that_is_away(stage: Stage, s3: S3) -> None:
    def autograder(pod: PodState) -> ContainerState:
        return next((one for one in pod.containers if one.name == "autograder"), ContainerState("autograder", False))

    stage.start(901, f"{GOOD} sleep 3")
    stage.wait(901, "the autograder's start", lambda pod: autograder(pod).started_at is not None)
    with s3.away():
        stage.wait(901, "the autograder's end", lambda pod: autograder(pod).has_ended)
        with pytest.raises(AssertionError, match="the end did not come"):
            stage.wait(901, "the end", lambda pod: pod.phase in ("Succeeded", "Failed"), limit_s=10)
    stage.wait_for_end(901)
    assert stage.left(901).results == b'{"score": 1}\n'


def test_what_the_api_says_of_a_broken_podspec_gets_its_line(stage: Stage) -> None:
    text = (Path(__file__).parents[2] / "pod.yaml").read_text()
    broken = PodTemplate.parse(text.replace("hostname: autograder", "hostname: Auto_grader"))
    with pytest.raises(PodInvalid) as refused:
        stage.create(902, broken, Limits())
    line = text[: text.index("hostname: autograder")].count("\n") + 1
    assert broken.explain(str(refused.value)).startswith(f"pod.yaml, line {line}: ")
