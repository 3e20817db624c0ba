"""./pod.sh as staff call it: what it says, its exit codes, what it takes from the calling folder, what it refuses."""

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from greengrader.config import Settings
from tests.builders import build_payload
from tests.cluster import services
from tests.cluster.scripted import RUN_AUTOGRADER, WRITE, ScriptedHub
from tests.daemons.world import ROOT
from tests.waiting import eventually

DOCKER = 9  # an assignment that is graded by docker
UNKNOWN = 999_999


def test_it_is_short_and_plain_sh() -> None:
    lines = (ROOT / "pod.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/sh" and len(lines) <= 40


@pytest.mark.parametrize(
    "words", [(), ("7",), ("7", "x1"), ("a", "1"), ("7", "1", "2"), ("", "7"), ("-1", "7"), ("7", "1 2"), ("7", "1\n2")]
)
def test_usage(hub: ScriptedHub, words: tuple[str, ...]) -> None:
    said = hub.pod_sh(*words)
    assert said.code == 2 and said.one_line.startswith("usage: pod.sh <assignment id> <submission id>")


def test_help(hub: ScriptedHub) -> None:
    said = hub.pod_sh("--help")
    assert (said.code, said.err) == (0, "")
    assert "Exit codes: 0 graded" in said.out and "6 the autograder" in said.out


@pytest.mark.parametrize("words", [(7, UNKNOWN), (UNKNOWN, 1), ("9" * 18, "1")])
def test_ids_that_nobody_knows(hub: ScriptedHub, words: tuple[object, object]) -> None:
    said = hub.pod_sh(*words)
    assert said.code == 1 and f"submission {words[1]} of assignment {words[0]} is not here" in said.one_line


def test_ids_longer_than_any(hub: ScriptedHub) -> None:
    assert hub.pod_sh(7, "9" * 30).code == 1


def test_an_assignment_of_docker(hub: ScriptedHub) -> None:
    number = hub.submit(assignment_id=DOCKER)
    said = hub.pod_sh(DOCKER, number)
    assert said.code == 1
    assert (
        "assignment 9 is graded by docker: `python3 -m greengrader assignment set 9 --backend kubernetes`"
        in said.one_line
    )
    assert hub.events(number) == [("received", None)]


# ------------------------------------------------------------------------------------------ a run that is graded


def test_graded_with_each_step(hub: ScriptedHub) -> None:
    number = hub.submit("sleep 1.2\n" + WRITE)
    said = hub.pod_sh(7, number)
    assert (said.code, said.err) == (0, ""), said
    *steps, end = said.out.splitlines()
    assert [line.split()[1] for line in steps] == ["received", "dispatched", "placed", "running", "graded"]
    assert "us-west.ucsc (112) is the greenest of 2 places" in steps[2]
    assert end == f"submission {number}: completed, score 1, in {hub.result(number)['region']}"
    assert hub.left() == []

    again = hub.pod_sh(7, number)
    assert again.code == 0 and f"submission {number} is graded already" in again.out
    assert hub.run_of(number)["attempt"] == 1


def test_a_students_failure_has_an_exit_code(hub: ScriptedHub) -> None:
    number = hub.submit("exit 1\n")
    said = hub.pod_sh(7, number)
    assert (said.code, said.err) == (5, ""), said
    assert f"submission {number}: no_results, score 0" in said.out
    assert hub.left() == []
    assert hub.pod_sh(7, number).code == 5


def test_an_autograder_that_cannot_be_built(hub: ScriptedHub) -> None:
    number = hub.submit(source={"setup.sh": "#!/bin/sh\necho no such package >&2\nexit 9\n"})
    said = hub.pod_sh(7, number)
    assert said.code == 6 and said.one_line.startswith(f"submission {number} is abandoned: ")
    assert hub.run_of(number)["state"] == "abandoned"
    assert "no such package" in (hub.store.build_log(hub.run_of(number)["run_id"]) or "")
    assert hub.left() == []


def test_files_and_podspec_of_the_calling_folder(hub: ScriptedHub, tmp_path: Path) -> None:
    """The stored submission scores 1; that in the folder scores 3, and its podspec says so in a label."""
    number = hub.submit()
    changed = build_payload(
        {"do.sh": 'echo "{\\"score\\": 3.0, \\"output\\": \\"$OWN\\"}" > /autograder/results/results.json\n'},
        {"id": number, "assignment": {"id": 7}}, run_autograder=RUN_AUTOGRADER,
        without=("gradescope_data/autograder/source/setup.sh",),
    )  # fmt: skip
    with zipfile.ZipFile(io.BytesIO(changed)) as packed:
        packed.extractall(tmp_path)
    podspec = (ROOT / "pod.yaml").read_text()
    own = podspec.replace(
        "        - name: LANG\n", "        - name: OWN\n          value: my own\n        - name: LANG\n"
    )
    assert own != podspec
    (tmp_path / "pod.yaml").write_text(own)
    said = hub.pod_sh(7, number, folder=tmp_path)
    assert said.code == 0, said
    assert f"using {tmp_path}/gradescope_data instead of the stored payload" in said.out
    assert (hub.result(number)["score"], hub.result(number)["results"]["output"]) == (3.0, "my own")
    assert hub.left() == []


# --------------------------------------------------------------- what is refused, and can be dispatched again


@pytest.fixture
def waiting(hub: ScriptedHub) -> Iterator[int]:
    """A submission that waits; after whatever kept it from a pod it is as good as new."""
    number = hub.submit()
    yield number
    run = hub.run_of(number)
    assert run["state"] in ("received", "dispatched") and run["failures"] == 0
    assert hub.left() == []


def test_no_kubeconfig(hub: ScriptedHub, waiting: int, tmp_path: Path) -> None:
    said = hub.pod_sh(7, waiting, environment={"KUBECONFIG": str(tmp_path / "none")})
    assert said.code == 2 and f"there is no kubeconfig at {tmp_path}/none; set KUBECONFIG" in said.one_line


def test_no_cluster(hub: ScriptedHub, waiting: int, tmp_path: Path) -> None:
    config = json.loads(hub.namespace.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{services.free_port()}"
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    said = hub.pod_sh(7, waiting, environment={"KUBECONFIG": str(tmp_path / "kubeconfig")})
    assert said.code == 3 and "does not answer" in said.one_line


@contextlib.contextmanager
def without_create(hub: ScriptedHub) -> Iterator[None]:
    """The Role lacks a verb."""
    patch = ["patch", "role", "greengrader", "--type=json", "--patch"]
    where = '"path": "/rules/0/verbs/0"'
    hub.namespace.kubectl(
        *patch, f'[{{"op": "test", {where}, "value": "create"}}, {{"op": "remove", {where}}}]', as_admin=True
    )
    try:
        yield
    finally:
        hub.namespace.kubectl(*patch, f'[{{"op": "add", {where}, "value": "create"}}]', as_admin=True)


def test_forbidden_by_the_role(hub: ScriptedHub, waiting: int) -> None:
    with without_create(hub):
        said = hub.pod_sh(7, waiting)
    assert said.code == 3
    account = f"system:serviceaccount:{hub.namespace.name}:greengrader"
    assert f"account {account} may not `create` `pods` in namespace {hub.namespace.name}" in said.one_line


def test_a_full_quota(hub: ScriptedHub) -> None:
    """Then the run waits, without a pod, and goes when there is room."""

    def allow(pods: str) -> None:
        patch = json.dumps({"spec": {"hard": {"pods": pods}}})
        hub.namespace.kubectl("patch", "resourcequota", "greengrader", f"--patch={patch}", as_admin=True)
        ask = ["get", "resourcequota", "greengrader", "--output=jsonpath={.status.hard.pods}"]
        eventually(lambda: hub.namespace.kubectl(*ask, as_admin=True) == pods, 20, "the quota's controller")

    number = hub.submit()
    allow("0")
    try:
        said = hub.pod_sh(7, number)
    finally:
        allow("110")
    assert said.code == 3 and f"the quota of namespace {hub.namespace.name} is full: exceeded quota" in said.one_line
    run = hub.run_of(number)
    assert (run["state"], run["failures"]) == ("dispatched", 0) and "quota" in run["error"]
    assert hub.left() == []

    assert hub.pod_sh(7, number).code == 0
    assert hub.left() == []


def test_no_such_remote(hub: ScriptedHub, waiting: int) -> None:
    said = hub.pod_sh(7, waiting, rclone_remote="elsewhere:bucket")
    assert said.code == 2 and "has no remote elsewhere:" in said.one_line


def test_the_storage_is_away(hub: ScriptedHub, waiting: int) -> None:
    with hub.s3.away():
        said = hub.pod_sh(7, waiting)
    assert said.code == 3 and "did not store runs/" in said.one_line


def test_no_registry(hub: ScriptedHub, waiting: int) -> None:
    said = hub.pod_sh(7, waiting, registry="")
    assert said.code == 2 and "GREENGRADER_REGISTRY is not set" in said.one_line


def test_the_registry_is_away(hub: ScriptedHub, waiting: int) -> None:
    said = hub.pod_sh(7, waiting, registry=f"127.0.0.1:{services.free_port()}")
    assert said.code == 3 and "no image of the autograder for the cluster" in said.one_line


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("  restartPolicy: Never", "  restartPolicy: Always", "spec.restartPolicy has to be Never"),
        ("apiVersion: v1", "apiVersion: [", "no YAML"),
        ("      image: ${image}", "      image: ${imagf}", "has the unknown placeholder ${imagf}; is ${image} meant?"),
        ("          cpu: ${cpus_requested}", "          cpu: much", "quantities must match"),
        ("  tolerations: ${tolerations}", "  tolerations: any", "olerations"),
        ("    - name: autograder\n", "    - name: Autograder_\n", "has no container autograder"),
        ("  hostname: autograder", "  hostname: Auto_Grader", "spec.hostname"),
    ],
)
def test_a_broken_podspec(hub: ScriptedHub, waiting: int, tmp_path: Path, was: str, becomes: str, says: str) -> None:
    podspec = (ROOT / "pod.yaml").read_text()
    assert podspec.count(was) == 1
    (tmp_path / "pod.yaml").write_text(podspec.replace(was, becomes))
    said = hub.pod_sh(7, waiting, folder=tmp_path)
    assert said.code == 2 and "pod.yaml, line" in said.one_line and says in said.one_line


def test_an_impossible_setting(hub: ScriptedHub, waiting: int) -> None:
    said = hub.pod_sh(7, waiting, kube_affinity="wished")
    assert said.code == 2 and "GREENGRADER_KUBE_AFFINITY='wished'" in said.one_line
    assert Settings.model_fields["kube_affinity"].default == "preferred"


def test_a_gradescope_data_that_is_none(hub: ScriptedHub, waiting: int, tmp_path: Path) -> None:
    (tmp_path / "gradescope_data" / "autograder").mkdir(parents=True)
    (tmp_path / "gradescope_data" / "autograder" / "run_autograder").write_text("#!/bin/sh\n")
    said = hub.pod_sh(7, waiting, folder=tmp_path)
    assert said.code == 1 and "submission_metadata.json" in said.one_line
