"""pod.yaml: the same limits as the sandbox, filled in for one run; what is wrong with a broken one, on which line."""

import copy
import json
import re
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from greengrader import sandbox
from greengrader.config import Settings
from greengrader.engine import Engine
from greengrader.kube.node import pod_requests, quantity
from greengrader.kube.podspec import PodspecInvalid, PodTemplate, RunPod, pod_name, render, values
from greengrader.kube.template import PLACEHOLDERS
from greengrader.limits import Limits

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "pod.yaml").read_text()
TEMPLATE = PodTemplate.parse(TEXT)
SETTINGS = Settings()
IMAGE = "registry:5000/greengrader/autograder:0123"

OWN = """\
apiVersion: v1
kind: Pod
metadata:
  name: mine
  labels: {team: course-staff, greengrader/run: "0"}
  annotations:
    note: "of their own"
spec:
  restartPolicy: Never
  initContainers:
    - {name: first, image: busybox}
    - {name: fetch, image: fetcher}
  containers:
    - name: autograder
      image: ${image}
      args: [begin, "${command}", end]
    - name: upload
      image: uploader
      command: ["sh", "-c", "echo ${storage} is text"]
      env:
        - {name: STORAGE, value: "${storage}"}
"""


def pod(**changes: Any) -> RunPod:
    """A minimal run; `changes` replace its fields."""
    given = {"image": IMAGE, "command": ("/autograder/run_autograder",), "limits": Limits(), "owner": "dispatcher"}
    return RunPod(**{"run_id": 7, "attempt": 2, "prefix": "runs/7-2", **given, **changes})


def settings(**changes: str) -> Settings:
    return Settings(**changes)  # type: ignore[arg-type]  # pydantic turns the texts into the fields' types


def rendered(run: RunPod | None = None, text: str = TEXT, **changes: str) -> dict[str, Any]:
    return render(PodTemplate.parse(text), run or pod(), settings(**changes))


def container(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    spec = manifest["spec"]
    found: dict[str, Any] = next(one for one in spec["initContainers"] + spec["containers"] if one["name"] == name)
    return found


def fault(text: str) -> str:
    with pytest.raises(PodspecInvalid) as refused:
        PodTemplate.parse(text)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)
    return str(refused.value)


def line_of(words: str, text: str = TEXT) -> int:
    """The line that holds these words, which stand there once."""
    assert text.count(words) == 1, words
    return text[: text.index(words)].count("\n") + 1


# ------------------------------------------------------------------------------------------------ the file itself
def test_it_is_one_document_of_plain_yaml() -> None:
    assert [document["kind"] for document in yaml.safe_load_all(TEXT)] == ["Pod"]


def test_it_reads_like_any_other_reader_of_yaml() -> None:
    assert TEMPLATE.tree == yaml.safe_load(TEXT)


def test_all_placeholders_have_a_description_a_value_and_a_use() -> None:
    assert set(PLACEHOLDERS) == set(values(pod(), SETTINGS))
    used = set(re.findall(r"^[^#\n]*[:-] +\$\{(\w+)\}$", TEXT, re.MULTILINE))
    assert used == set(PLACEHOLDERS)


def test_reading_does_not_touch_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(TEXT)
    render(PodTemplate.read(path), pod(), SETTINGS)
    assert path.read_text() == TEXT


def test_rendering_leaves_the_template_as_it_was() -> None:
    before = copy.deepcopy(TEMPLATE.tree)
    manifest = render(TEMPLATE, pod(region="us-west"), SETTINGS)
    manifest["spec"]["containers"].clear()
    assert before == TEMPLATE.tree


def test_everything_is_filled_in_and_json() -> None:
    run = pod(region="us-west", zone="ucsc", limits=Limits(runtime="runsc"))
    names = ("service_account", "image_pull_secret", "priority_class", "queue")
    everything = settings(
        kube_tolerations='[{"key": "a", "operator": "Exists"}]',
        kube_node_selector='{"kubernetes.io/arch": "amd64"}',
        **{f"kube_{name}": "given" for name in names},
    )
    for made in (render(TEMPLATE, run, everything), render(TEMPLATE, pod(), SETTINGS)):
        assert "${" not in json.dumps({**made, "spec": {**made["spec"], "containers": [], "initContainers": []}})
        for one in made["spec"]["containers"] + made["spec"]["initContainers"]:
            assert "${" not in json.dumps({**one, "command": []})


# ------------------------------------------------------------------------------------------------ limits
def sandboxed(limits: Limits) -> dict[str, Any]:
    """The same run as sandbox.py has the container engine make it."""
    engine = cast(Engine, SimpleNamespace(facts=SimpleNamespace(local=False), has_quotas=True))
    return sandbox._container(engine, IMAGE, ["/autograder/run_autograder"], limits, None)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(timeout_s=90, cpus=2, memory_bytes=1 << 30, open_files=100, disk_bytes=50 << 20, runtime="runsc"),
        Limits(timeout_s=1.5, cpus=0.125),
    ],
)
def test_limits_are_those_of_the_sandbox(limits: Limits) -> None:
    theirs = sandboxed(limits)
    host, ulimits = theirs["HostConfig"], {one["Name"]: one["Hard"] for one in theirs["HostConfig"]["Ulimits"]}
    manifest = render(TEMPLATE, pod(limits=limits), SETTINGS)
    ours = container(manifest, "autograder")
    timeout_s, open_files, file_blocks, *command = ours["args"]
    allowed = ours["resources"]["limits"]
    assert quantity(allowed["cpu"]) == Decimal(host["NanoCpus"]) / 10**9
    assert quantity(allowed["memory"]) == host["Memory"] == host["MemorySwap"]  # nodes have no swap
    assert quantity(allowed["ephemeral-storage"]) == int(host["StorageOpt"]["size"])
    assert (int(open_files), int(file_blocks) * 512) == (ulimits["nofile"], ulimits["fsize"])
    assert float(timeout_s) == limits.timeout_s
    assert command == theirs["Entrypoint"]
    assert manifest["spec"].get("runtimeClassName") == host.get("Runtime")


def test_rights_are_those_of_the_sandbox() -> None:
    theirs = sandboxed(Limits())
    manifest = render(TEMPLATE, pod(), SETTINGS)
    ours = container(manifest, "autograder")
    capabilities = ours["securityContext"]["capabilities"]
    assert capabilities == {"drop": theirs["HostConfig"]["CapDrop"], "add": theirs["HostConfig"]["CapAdd"]}
    assert "no-new-privileges" in theirs["HostConfig"]["SecurityOpt"]
    assert ours["securityContext"]["allowPrivilegeEscalation"] is False
    assert str(manifest["spec"]["securityContext"]["runAsUser"]) == theirs["User"]
    assert [f"{one['name']}={one['value']}" for one in ours["env"]] == theirs["Env"]
    assert (ours["workingDir"], manifest["spec"]["hostname"]) == (theirs["WorkingDir"], theirs["Hostname"])
    script = ours["command"][2]
    for needed in ('ulimit -n "$open_files"', 'ulimit -f "$file_blocks"', "ulimit -c 0", "timeout -s KILL"):
        assert needed in script


def test_no_container_may_become_more_than_it_is() -> None:
    manifest = render(TEMPLATE, pod(), SETTINGS)
    spec = manifest["spec"]
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(spec)
    for one in spec["containers"] + spec["initContainers"]:
        assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert "privileged" not in one["securityContext"]
        assert set(one["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}
    for volume in spec["volumes"]:
        assert set(volume) <= {"name", "emptyDir", "secret"}
        assert "secret" in volume or volume["emptyDir"]["sizeLimit"]


def test_the_autograder_sees_nothing_of_the_storage() -> None:
    manifest = render(TEMPLATE, pod(), SETTINGS)
    for name in ("fetch", "upload"):
        assert {"name": "rclone", "mountPath": "/greengrader/rclone", "readOnly": True} in container(manifest, name)[
            "volumeMounts"
        ]
    shown = json.dumps(container(manifest, "autograder"))
    assert "rclone" not in shown and "greengrader-app" not in shown


def test_a_podspec_reserves_no_more_than_it_allows() -> None:
    for limits in (Limits(), Limits(cpus=0.001, disk_bytes=1 << 20)):
        for one in render(TEMPLATE, pod(limits=limits), SETTINGS)["spec"]["containers"]:
            for kind, requested in one["resources"]["requests"].items():
                assert quantity(requested) <= quantity(one["resources"]["limits"][kind])


def test_a_share_of_the_cpus_may_be_reserved() -> None:
    made = rendered(pod(limits=Limits(cpus=2)), kube_cpu_request="0.25")
    resources = container(made, "autograder")["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]["cpu"]) == ("500m", "2000m")


def test_the_pod_has_longer_than_its_autograder() -> None:
    made = rendered(pod(limits=Limits(timeout_s=90.5)), kube_grace_s="60")
    assert made["spec"]["activeDeadlineSeconds"] == 151


def test_the_quota_has_room_for_all_pods_of_the_default_limits() -> None:
    hard = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "40-quota.yaml").read_text())["spec"]["hard"]
    made = render(TEMPLATE, pod(), SETTINGS)
    need = pod_requests(made)
    assert SETTINGS.max_pods <= int(hard["pods"])
    each: dict[str, Decimal | int] = {
        "cpu": Decimal(need.millicores) / 1000,
        "memory": need.memory_bytes,
        "ephemeral-storage": need.disk_bytes,
    }
    for kind, requested in each.items():
        assert SETTINGS.max_pods * requested <= quantity(hard[f"requests.{kind}"]), kind
    for kind in ("cpu", "memory"):
        allowed = sum(quantity(one["resources"]["limits"][kind]) for one in made["spec"]["containers"])
        assert SETTINGS.max_pods * allowed <= quantity(hard[f"limits.{kind}"]), kind


# ------------------------------------------------------------------------------------------------ a run and its place
def test_a_run_is_found_by_its_pod() -> None:
    made = rendered()
    assert made["metadata"]["name"] == pod_name(7, 2) == "greengrader-7-2"
    assert made["metadata"]["namespace"] == "greengrader"
    labels = made["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "greengrader"
    assert (labels["greengrader/run"], labels["greengrader/attempt"]) == ("7", "2")
    assert made["metadata"]["annotations"] == {"greengrader/owner": "dispatcher"}


def test_files_travel_below_the_runs_own_prefix() -> None:
    made = rendered(rclone_remote="s3:bucket/shared")
    for name in ("fetch", "upload"):
        assert {"name": "GREENGRADER_STORAGE", "value": "s3:bucket/shared/runs/7-2"} in container(made, name)["env"]


def test_a_longer_command_is_spliced_in() -> None:
    made = rendered(pod(command=("/bin/bash", "/autograder/run_autograder")))
    assert container(made, "autograder")["args"][3:] == ["/bin/bash", "/autograder/run_autograder"]


def test_settings_that_are_not_set_leave_no_trace() -> None:
    made = rendered()
    optional = {
        "serviceAccountName", "imagePullSecrets", "priorityClassName", "runtimeClassName", "nodeSelector",
        "tolerations", "affinity",
    }  # fmt: skip
    assert not optional & set(made["spec"])
    assert "kueue.x-k8s.io/queue-name" not in made["metadata"]["labels"]


def test_settings_that_are_set_are_in_the_pod() -> None:
    made = rendered(
        kube_namespace="courses", kube_service_account="runner", kube_image_pull_secret="pull",
        kube_priority_class="low", kube_queue="grading", rclone_image="mine/rclone:1", rclone_secret="drive",
        kube_tolerations='[{"key": "nautilus.io/reservation", "operator": "Exists", "effect": "NoSchedule"}]',
        kube_node_selector='{"kubernetes.io/arch": "amd64"}',
    )  # fmt: skip
    spec = made["spec"]
    assert made["metadata"]["namespace"] == "courses"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "grading"
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("runner", "low")
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["tolerations"] == [{"key": "nautilus.io/reservation", "operator": "Exists", "effect": "NoSchedule"}]
    assert spec["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert container(made, "fetch")["image"] == container(made, "upload")["image"] == "mine/rclone:1"
    assert [one["secret"]["secretName"] for one in spec["volumes"] if "secret" in one] == ["drive"]


def test_network_is_a_label_for_the_network_policy() -> None:
    policies = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "50-network-policy.yaml").read_text()))
    closed, opened = (policy["spec"]["podSelector"] for policy in policies)
    assert {"key": "greengrader/network", "operator": "NotIn", "values": ["true"]} in closed["matchExpressions"]
    for network, value in ((False, "false"), (True, "true")):
        labels = rendered(pod(limits=Limits(network=network)))["metadata"]["labels"]
        assert labels["greengrader/network"] == value
        assert (opened["matchLabels"].items() <= labels.items()) is network


def expression(key: str, value: str) -> dict[str, Any]:
    return {"key": f"topology.kubernetes.io/{key}", "operator": "In", "values": [value]}


def test_a_region_is_preferred_and_its_zone_more_so() -> None:
    both = [expression("region", "us-west"), expression("zone", "ucsc")]
    assert rendered(pod(region="us-west", zone="ucsc"))["spec"]["affinity"] == {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "preference": {"matchExpressions": both}},
                {"weight": 50, "preference": {"matchExpressions": both[:1]}},
            ]
        }
    }


def test_a_region_may_be_required() -> None:
    for zone, terms in (
        ("ucsc", [expression("region", "us-west"), expression("zone", "ucsc")]),
        (None, [expression("region", "us-west")]),
    ):
        made = rendered(pod(region="us-west", zone=zone), kube_affinity="required")
        assert made["spec"]["affinity"]["nodeAffinity"] == {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": terms}]}
        }


# ------------------------------------------------------------------------------------------------ one of their own
def test_in_a_podspec_of_ones_own_all_else_stays() -> None:
    made = rendered(text=OWN)
    assert [one["name"] for one in made["spec"]["initContainers"]] == ["first", "fetch"]
    assert set(made["spec"]) == {"restartPolicy", "initContainers", "containers"}
    autograder, upload = made["spec"]["containers"]
    assert autograder == {
        "name": "autograder",
        "image": IMAGE,
        "args": ["begin", "/autograder/run_autograder", "end"],
    }
    assert upload["command"] == ["sh", "-c", "echo ${storage} is text"]
    assert upload["env"] == [{"name": "STORAGE", "value": "greengrader-app:runs/7-2"}]


def test_a_podspec_of_ones_own_is_found_like_any_other() -> None:
    metadata = rendered(text=OWN)["metadata"]
    assert metadata["name"] == "greengrader-7-2"
    assert metadata["labels"]["greengrader/run"] == "7" and metadata["labels"]["team"] == "course-staff"
    assert metadata["annotations"] == {"note": "of their own", "greengrader/owner": "dispatcher"}


def test_a_podspec_needs_no_metadata() -> None:
    head, _, tail = OWN.partition("metadata:")
    assert rendered(text=head + tail[tail.index("spec:") :])["metadata"]["name"] == "greengrader-7-2"


def test_dates_and_the_like_are_texts_as_they_are_to_kubernetes() -> None:
    made = rendered(text=OWN.replace('"of their own"', '"2024-01-01"').replace("image: busybox", "image: 2024-01-01"))
    assert made["spec"]["initContainers"][0]["image"] == "2024-01-01"


# ------------------------------------------------------------------------------------------------ broken ones
@pytest.mark.parametrize(
    ("words", "instead", "at", "said"),
    [
        ("spec:\n", "spec:\n\t", "\t  restart", "no YAML: while scanning for the next token, found character"),
        ("kind: Pod", "kind: Job", "kind: Job", "kind has to be Pod"),
        ("apiVersion: v1", "apiVersion: v2", "apiVersion: v2", "apiVersion has to be v1"),
        ("kind: Pod", "kind: Pod\nkind: Pod", None, "kind stands there twice"),
        ("kind: Pod", "? [a, b]\n: 1\nkind: Pod", "? [a, b]", "the top has a key that is no text"),
        ("restartPolicy: Never", "restartPolicy: Always", "restartPolicy:", "spec.restartPolicy has to be Never"),
        ("- name: autograder\n", "- name: grader\n", "  containers:", "spec.containers has no container autograder"),
        ("- name: upload\n", "- name: up\n", "  containers:", "spec.containers has no container upload"),
        ("{name: fetch,", "{name: bring,", "initContainers:", "spec.initContainers has no container fetch"),
        ("- name: upload\n", "- name: autograder\n", None, "spec.containers[1].name is autograder, as that of another"),
        ("- name: upload\n", "- title: upload\n", "title: upload", "spec.containers[1] has no name"),
        ("image: uploader", "imagee: uploader", "- name: upload", "spec.containers[1] (upload) has no image"),
        ("image: ${image}", "image: ${imgae}", "${imgae}", "the unknown placeholder ${imgae}; is ${image} meant?"),
        ("image: ${image}", "image: ${xyzzy}", "${xyzzy}", "${xyzzy}; there are image, command, timeout_s"),
        ("team: course-staff", "team: 5", "team: 5", "metadata.labels.team has to be a text; put it in quotes"),
        ('note: "of their own"', "note: yes", "note: yes", "metadata.annotations.note has to be a text"),
        ("  name: mine\n", "  - mine\n", None, "no YAML"),
        ("args: [begin,", "args: *nothing\n      x: [begin,", "*nothing", "found undefined alias 'nothing'"),
        ("args: [begin,", "args: &a [*a, begin,", "&a [*a", "contains itself"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(words: str, instead: str, at: str | None, said: str) -> None:
    assert OWN.count(words) == 1
    text = OWN.replace(words, instead)
    told = fault(text)
    assert said in told
    found = re.match(r"pod\.yaml, line (\d+): ", told)
    assert found is not None
    if at is not None:
        assert int(found[1]) == line_of(at, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "pod.yaml, line 1: a podspec begins with"),
        ("# nothing\n", "pod.yaml, line 1: a podspec begins with"),
        ("just words\n", "pod.yaml, line 1: a podspec begins with"),
        ("- a\n- b\n", "pod.yaml, line 1: a podspec begins with"),
        ("a: 1\n---\nb: 2\n", "pod.yaml, line 2: no YAML: expected a single document in the stream"),
        ("[" * 1200, "pod.yaml: its fields are nested too deep"),
        ("a: \x01\n", "pod.yaml: no YAML: special characters are not allowed at character 3"),
        ("apiVersion: v1\nkind: Pod\n", "pod.yaml, line 1: spec has to be a mapping"),
        ("apiVersion: v1\nkind: Pod\nmetadata: 5\n", "pod.yaml, line 3: metadata has to be a mapping"),
        ("apiVersion: v1\nkind: Pod\nspec: [a]\n", "pod.yaml, line 3: spec has to be a mapping"),
        ("apiVersion: v1\nkind: Pod\nspec: {restartPolicy: Never}\n",
         "pod.yaml, line 3: spec.initContainers has to be a list with fetch"),
        ("apiVersion: v1\nkind: Pod\nspec:\n  restartPolicy: Never\n  initContainers: fetch\n",
         "pod.yaml, line 5: spec.initContainers has to be a list with fetch"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {labels: [a]}\n", "line 3: metadata.labels has to be a mapping"),
        ("!!python/object/apply:os.system [true]\n", "pod.yaml, line 1: "),
        ("a: !!python/object/apply:os.system x\n", "line 1: no YAML: could not determine a constructor"),
    ],
)  # fmt: skip
def test_what_is_no_podspec_is_refused(text: str, said: str) -> None:
    assert said in fault(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PodspecInvalid, match=r"none\.yaml cannot be read: No such file"):
        PodTemplate.read(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"kind: Pod # \xe9\n")
    with pytest.raises(PodspecInvalid, match=r"latin\.yaml is not UTF-8: invalid continuation byte at byte 12"):
        PodTemplate.read(tmp_path / "latin.yaml")


def test_the_file_is_called_as_its_owner_calls_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("kind: Job\n")
    with pytest.raises(PodspecInvalid, match=r"^mine\.yaml, line 1: "):
        PodTemplate.read(tmp_path / "mine.yaml")


# ------------------------------------------------------------------------------------------------ what a server says
DECODER = 'Pod in version "v1" cannot be handled as a Pod: v1.Pod.Spec: v1.PodSpec.'


@pytest.mark.parametrize(
    ("said", "at"),
    [
        ('Pod "greengrader-7-2" is invalid: spec.initContainers[0].imagePullPolicy: Unsupported value: "Sometimes": '
         'supported values: "Always"', ["imagePullPolicy: IfNotPresent"]),
        ('Pod "x" is invalid: spec.hostname: Invalid value: "Auto_grader": a lowercase RFC 1123 label', ["hostname:"]),
        ('Pod "x" is invalid: metadata.labels: Invalid value: "a b c": a valid label must be', ["  labels:"]),
        ('Pod "x" is invalid: spec.volumes[0].emptyDir.medium: Invalid', ["      emptyDir:\n        sizeLimit: ${"]),
        ("strict decoding error: unknown field \"spec.containers[1].lifecycles\"", ["    - name: autograder"]),
        (DECODER + "ActiveDeadlineSeconds: readUint64: unexpected character", ["activeDeadlineSeconds"]),
        (DECODER + "Tolerations: []v1.Toleration: decode slice: expect [ or n, but found {", ["tolerations:"]),
    ],
)  # fmt: skip
def test_what_a_server_says_gets_its_line(said: str, at: list[str]) -> None:
    numbers = [TEXT[: TEXT.index(words)].count("\n") + 1 for words in at]
    assert TEMPLATE.explain(said) == f"pod.yaml, line {numbers[0]}: {said}"


def test_a_server_that_does_not_say_which_container_gets_all_their_lines() -> None:
    said = DECODER + 'Containers: []v1.Container: v1.Container.Image: ReadString: expects "'
    lines = [number for number, line in enumerate(TEXT.splitlines(), 1) if re.match(r"      image: ", line)]
    assert TEMPLATE.explain(said).startswith(f"pod.yaml, lines {lines[1]}, {lines[2]}: Pod in version")


def test_the_decoders_own_view_of_the_bytes_is_left_out() -> None:
    said = DECODER + 'Hostname: ReadString: expects ", error found in #10 byte of ...|stname": 5|...'
    assert TEMPLATE.explain(said).endswith('v1.PodSpec.Hostname: ReadString: expects "')


def test_what_names_no_field_stays_as_it_is() -> None:
    said = "exceeded quota: greengrader, requested: pods=1, used: pods=110, limited: pods=110"
    assert TEMPLATE.explain(said) == said
