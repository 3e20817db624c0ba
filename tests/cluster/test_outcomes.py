"""Every end of a run on a real cluster: what the student's program did becomes an outcome, what we did a new attempt.

One dispatcher grades all submissions of `graded` at the same time; each test looks at its own.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greengrader.daemon import Stop
from greengrader.kube import __main__ as pod_sh
from greengrader.kube import runner
from greengrader.kube.collect import LOG_LOST_WARNING
from tests.cluster.scripted import WRITE, ScriptedHub
from tests.daemons.world import ROOT
from tests.waiting import eventually

SHORT, SHORT_S = 8, 2  # an assignment, and its timeout_s
HOG = "dd if=/dev/zero of=/dev/null bs=200M count=1\n"  # of the 64 MiB that it has
SCRIPTS = {
    "completed": "sleep 1.2\n" + WRITE,
    "failed with results": WRITE + "exit 3\n",
    "failed without": "exit 4\n",
    "no results": "true\n",
    "no JSON": "echo 'not JSON' > /autograder/results/results.json\n",
    "a link": "ln -s /etc/passwd /autograder/results/results.json\n",
    "a pipe": "mkfifo /autograder/results/results.json\n",
    "too large": "head -c 3000000 /dev/zero > /autograder/results/results.json\n",
    "out of memory": HOG,
    "out of memory with results": WRITE + HOG,
    "timed out": WRITE + "sleep 60\n",
    "leaves a process": WRITE + "setsid sleep 600 > /dev/null 2>&1 &\n",
    "talkative": "yes 0123456789 | head -c 3300000\n" + WRITE,
    "stops the pipe": WRITE + "rm -rf /greengrader/run/* /greengrader/files/* 2> /dev/null\n",
}


class Graded:
    """The submissions of SCRIPTS after a dispatcher has graded them."""

    def __init__(self, hub: ScriptedHub, ids: dict[str, int]) -> None:
        self.hub, self.ids = hub, ids

    def __getitem__(self, name: str) -> dict[str, Any]:
        """The result of a script."""
        return self.hub.result(self.ids[name])


@pytest.fixture(scope="module")
def graded(hub: ScriptedHub) -> Iterator[Graded]:
    hub.store.set_assignment(SHORT, {"backend": "kubernetes", "timeout_s": SHORT_S})
    ids = {
        name: hub.submit(f"echo to be seen\n{do}", assignment_id=SHORT if name == "timed out" else 7)
        for name, do in SCRIPTS.items()
    }
    dispatcher = hub.start("dispatcher", "--watch", results_bytes="2000000", log_bytes="100000").ready()
    for number in ids.values():
        hub.wait_graded(number, 120)
    eventually(lambda: not hub.left(), 20, f"that nothing is left\n{hub.logs()}")
    assert dispatcher.terminate() == 0
    yield Graded(hub, ids)


@pytest.mark.parametrize(
    ("name", "outcome", "exit_status", "problem"),
    [
        ("completed", "completed", 0, None),
        ("failed with results", "completed", 3, None),
        ("failed without", "no_results", 4, "without writing results"),
        ("no results", "no_results", 0, "without writing results"),
        ("no JSON", "invalid_results", 0, "JSON"),
        ("a link", "invalid_results", 0, "no regular file"),
        ("a pipe", "invalid_results", 0, "no regular file"),
        ("too large", "invalid_results", 0, "3,000,000 bytes"),
        ("out of memory", "out_of_memory", None, "more memory"),
        ("out of memory with results", "completed", None, None),
        ("timed out", "timed_out", 137, "longer than 2 seconds"),
        ("leaves a process", "completed", 0, None),
        ("talkative", "completed", 0, None),
        ("stops the pipe", "completed", None, None),
    ],
)
def test_outcome(graded: Graded, name: str, outcome: str, exit_status: int | None, problem: str | None) -> None:
    row = graded[name]
    assert (row["outcome"], row["attempt"]) == (outcome, 1)
    assert exit_status is None or row["exit_status"] == exit_status
    assert row["problem"] is None if problem is None else problem in row["problem"]
    assert row["score"] == (1.0 if outcome == "completed" else 0.0)


def test_memory_is_told_where_the_results_count_all_the_same(graded: Graded) -> None:
    assert graded["out of memory with results"]["oom_killed"] and graded["out of memory"]["oom_killed"]
    assert not graded["completed"]["oom_killed"]


def test_a_link_shows_nothing_of_what_it_points_to(graded: Graded) -> None:
    row = graded["a link"]
    assert row["raw_results"] is None and "root:" not in json.dumps(row["results"])


def test_the_log_is_kept_and_cut(graded: Graded) -> None:
    """Kubelets on one machine clean up each other's logs: some may be lost, and then it is said."""
    kept = {name: graded[name]["output"] for name in SCRIPTS if LOG_LOST_WARNING not in graded[name]["warnings"]}
    assert kept and all(text.startswith("to be seen\n") for text in kept.values())
    assert all(graded[name]["output"] == "" for name in SCRIPTS.keys() - kept)
    talk = kept.get("talkative")
    assert talk is None or (50_000 < len(talk) < 101_000 and talk.endswith("0123456789\n"))


def test_times_and_usage_are_the_containers(graded: Graded) -> None:
    row = graded["completed"]
    assert row["usage_method"] == "container" and 0 < row["cpu_s"] < 2
    assert 1.2 <= row["wall_s"] < 4 and 100_000 < row["peak_memory_bytes"] <= 64 * 1024 * 1024
    assert row["finished_at"] >= row["started_at"]
    assert row["energy_usage"] > 0
    assert SHORT_S <= graded["timed out"]["wall_s"] < SHORT_S + 2


def test_expected_and_actual_place_are_stored(graded: Graded) -> None:
    run = graded.hub.run_of(graded.ids["completed"])
    assert (run["expected_region"], run["expected_zone"]) == ("us-west", "ucsc")
    assert run["placement_reason"].startswith("us-west.ucsc (112) is the greenest of 2 places")
    nodes = json.loads(graded.hub.namespace.kubectl("get", "nodes", "--output=json", as_admin=True))["items"]
    addresses = {
        node["metadata"]["name"]: next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
        for node in nodes
    }
    places = {
        node["metadata"]["name"]: tuple(
            node["metadata"]["labels"][f"topology.kubernetes.io/{part}"] for part in ("region", "zone")
        )
        for node in nodes
    }
    for name in SCRIPTS:
        row = graded[name]
        assert row["node_ip"] == addresses[row["node"]]
        assert (row["region"], row["zone"]) == places[row["node"]]


def test_each_step_is_an_event(graded: Graded) -> None:
    for number in graded.ids.values():
        assert [state for state, _ in graded.hub.events(number)] in (
            ["received", "dispatched", "placed", "running", "graded"],
            ["received", "dispatched", "placed", "graded"],  # it had ended when the watch first showed it
        )


# ------------------------------------------------------------------------------------------- faults that are ours


def test_a_pod_deleted_by_hand_is_graded_by_another_attempt(hub: ScriptedHub) -> None:
    number = hub.submit("sleep 3\n" + WRITE)
    dispatcher = hub.start("dispatcher", "--watch").ready()
    hub.wait_state(number, "running")
    (pod,) = hub.pods()
    hub.namespace.kubectl("delete", pod, "--wait=false")
    row = hub.wait_graded(number)
    assert (row["state"], row["outcome"], row["attempt"]) == ("graded", "completed", 2)
    assert ("dispatched", "somebody deleted the pod before its end") in hub.events(number)
    assert hub.run_of(number)["failures"] == 1
    eventually(lambda: not hub.left(), 20, f"that nothing is left\n{hub.logs()}")
    assert dispatcher.terminate() == 0


Call = Callable[..., int]


@pytest.fixture
def impatient(hub: ScriptedHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Call]:
    """pod.sh in this process, which gives a pod that does not start one second; `changes` are those of pod.yaml."""
    monkeypatch.setattr(runner, "STUCK_S", 1.0)
    monkeypatch.chdir(tmp_path)
    root, pods = logging.getLogger(), logging.getLogger("greengrader.pods")
    before = root.handlers[:], root.level

    def call(number: int, changes: dict[str, str] | None = None, **settings: str) -> int:
        for name, value in hub.environment(lease_s="4", **settings).items():
            monkeypatch.setenv(name, value)
        podspec = (ROOT / "pod.yaml").read_text()
        for was, becomes in (changes or {}).items():
            assert podspec.count(was) == 1
            podspec = podspec.replace(was, becomes)
        (tmp_path / "pod.yaml").write_text(podspec)
        return pod_sh.main(["7", str(number)], Stop())

    yield call
    root.handlers[:], pods.disabled = before[0], False
    root.setLevel(before[1])
    assert hub.left() == []


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("image: ${image}", "image: 127.0.0.1:1/no/such:image", "cannot get the image of container autograder: "),
        ("image: ${image}", "image: No:Image:At:All", "cannot get the image of container autograder: InvalidImageName"),
        (
            "        - name: LANG\n          value: C.UTF-8\n",
            "        - name: KEY\n          valueFrom: {secretKeyRef: {name: nowhere, key: key}}\n",
            'cannot start container autograder: CreateContainerConfigError: secret "nowhere" not found',
        ),
    ],
)
def test_a_pod_that_cannot_start(
    hub: ScriptedHub, impatient: Call, capsys: pytest.CaptureFixture[str], was: str, becomes: str, says: str
) -> None:
    number = hub.submit()
    assert impatient(number, {was: becomes}, max_attempts="1") == 3
    run = hub.run_of(number)
    assert (run["state"], run["attempt"]) == ("abandoned", 1) and says in run["error"]
    assert says in capsys.readouterr().err


def test_a_submission_that_cannot_be_fetched(hub: ScriptedHub, impatient: Call) -> None:
    number = hub.submit()
    assert impatient(number, {"mkfifo -m 600": "exit 9; mkfifo -m 600"}, max_attempts="2") == 3
    run = hub.run_of(number)
    assert (run["state"], run["attempt"], run["failures"]) == ("abandoned", 2, 2)
    assert run["error"] == "the submission could not be fetched: container fetch ended with exit status 9"


def test_results_that_cannot_be_stored(hub: ScriptedHub, impatient: Call) -> None:
    number = hub.submit()
    assert impatient(number, {'"$GREENGRADER_RETURN_BYTES" >': "1 > /dev/null; exit 8 >"}, max_attempts="1") == 3
    error = hub.run_of(number)["error"]
    assert error == "the results could not be stored: container upload ended with exit status 8"
