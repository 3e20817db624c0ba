"""What the service account of deploy/kubernetes may do: all that the pipeline needs, and nothing beyond it."""

import json
import subprocess

import pytest

from greengrader.config import Settings
from greengrader.kube.cluster import Cluster, Forbidden, QuotaExceeded
from greengrader.kube.podspec import PodTemplate, RunPod, render
from greengrader.limits import Limits
from tests.cluster.services import ROOT, Namespace

NOBODYS = "192.0.2.1:9/none"  # an image that need not exist, for pods that need not start


# verb, resource and namespace, None for all of them at once
Right = tuple[str, str, str | None]


def allowed_of(namespace: Namespace, rights: set[Right]) -> set[Right]:
    """Those of the rights that the account has, by the cluster's own word."""
    asked = sorted(rights, key=str)
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "verb": verb,
                    "resource": resource.partition("/")[0],
                    "subresource": resource.partition("/")[2],
                    "namespace": where or "",
                }
            },
        }
        for verb, resource, where in asked
    ]
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    shown = "--output=jsonpath={.status.allowed} "
    answers = namespace.kubectl("create", "--filename=-", shown, stdin=everything).split()
    return {right for right, answer in zip(asked, answers, strict=True) if answer == "true"}


def test_the_account_may_what_the_pipeline_needs_and_nothing_else(cluster_namespace: Namespace) -> None:
    here = cluster_namespace.name
    needed: set[Right] = {
        *((verb, "pods", here) for verb in ("create", "get", "list", "watch", "delete")),
        ("get", "pods/log", here),
        ("list", "nodes", None),
        ("list", "pods", None),
    }
    verbs = ("create", "get", "list", "watch", "delete", "update", "patch", "deletecollection")
    resources = ("pods", "pods/log", "pods/exec", "pods/status", "secrets", "serviceaccounts", "nodes", "configmaps")
    asked: set[Right] = {(verb, resource, where) for verb in verbs for resource in resources for where in (here, None)}
    # What is allowed in all namespaces is allowed in this one.
    assert allowed_of(cluster_namespace, asked) == needed | {("list", "nodes", here)}


def test_a_full_quota_is_told_from_a_refusal(cluster_namespace: Namespace) -> None:
    hard = json.dumps({"spec": {"hard": {"pods": "1"}}})
    cluster_namespace.kubectl("patch", "resourcequota", "greengrader", "--type=merge", f"--patch={hard}", as_admin=True)
    template, settings = PodTemplate.read(ROOT / "pod.yaml"), Settings(kube_namespace=cluster_namespace.name)

    def pod(run_id: int) -> RunPod:
        return RunPod(run_id, 1, NOBODYS, ("true",), Limits(), f"runs/{run_id}-1", "test")

    with Cluster.connect(cluster_namespace.name, kubeconfig=cluster_namespace.kubeconfig) as cluster:
        cluster.create_pod(render(template, pod(1), settings))
        with pytest.raises(QuotaExceeded, match="exceeded quota: greengrader"):
            cluster.create_pod(render(template, pod(2), settings))


def test_another_namespace_is_closed(cluster_namespace: Namespace) -> None:
    with (
        Cluster.connect("default", kubeconfig=cluster_namespace.kubeconfig) as cluster,
        pytest.raises(Forbidden, match="pods"),
    ):
        cluster.pod("any")


def test_the_folder_applies_as_a_whole_and_in_its_order(cluster_version: str) -> None:
    folder = ROOT / "deploy" / "kubernetes"
    command = ["kubectl", "apply", "--dry-run=client", "--validate=true", f"--filename={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("namespace/greengrader ")
    assert "greengrader-rclone" not in done.stdout, "the example of a Secret would replace the real one"
