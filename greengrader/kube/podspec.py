"""The pod of one attempt at one run: pod.yaml filled in with its limits, its place and the settings. Pure.

The podspec may be the user's own. Then all is theirs but what makes a run findable: name, namespace, labels and owner
are set here, whatever stands there.
"""

import math
from dataclasses import dataclass
from typing import Any

from greengrader.config import Settings
from greengrader.kube.template import PodspecInvalid, PodTemplate
from greengrader.kube.transport import remote_path
from greengrader.limits import MEBIBYTE, Limits

__all__ = ["PodTemplate", "PodspecInvalid", "RunPod", "pod_name", "render", "values"]

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_RUN = "greengrader/run"
LABEL_ATTEMPT = "greengrader/attempt"
ANNOTATION_OWNER = "greengrader/owner"
MANAGED_BY = "greengrader"
SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"

RETURN_EXTRA_BYTES = 64 * 1024  # of results.tar beside results.json: headers, usage, padding
DISK_REQUESTED_BYTES = 256 * MEBIBYTE  # most runs write next to nothing


@dataclass(frozen=True)
class RunPod:
    """What one attempt at one run needs of its pod."""

    run_id: int
    attempt: int
    image: str
    command: tuple[str, ...]
    limits: Limits
    prefix: str  # of its files in the storage
    owner: str  # who waits for it
    region: str | None = None  # None: any
    zone: str | None = None  # within the region


def pod_name(run_id: int, attempt: int) -> str:
    """The name of an attempt's pod: a second one of the same attempt cannot be created."""
    return f"greengrader-{run_id}-{attempt}"


def render(template: PodTemplate, pod: RunPod, settings: Settings) -> dict[str, Any]:
    """The pod of one attempt as the API takes it."""
    filled = template.filled(values(pod, settings))
    metadata = filled.get("metadata") or {}
    identity = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_RUN: str(pod.run_id), LABEL_ATTEMPT: str(pod.attempt)}
    filled["metadata"] = metadata | {
        "name": pod_name(pod.run_id, pod.attempt),
        "namespace": settings.kube_namespace,
        "labels": (metadata.get("labels") or {}) | identity,
        "annotations": (metadata.get("annotations") or {}) | {ANNOTATION_OWNER: pod.owner},
    }
    return filled


def values(pod: RunPod, settings: Settings) -> dict[str, Any]:
    """{placeholder: its value for this run}, None where it has none."""
    limits, millicores = pod.limits, max(round(pod.limits.cpus * 1000), 1)
    secret = settings.kube_image_pull_secret
    return {
        "image": pod.image,
        "command": list(pod.command),
        "timeout_s": _seconds(limits.timeout_s),
        "deadline_s": math.ceil(limits.timeout_s) + settings.kube_grace_s,
        "cpus": f"{millicores}m",
        "cpus_requested": f"{max(round(millicores * settings.kube_cpu_request), 1)}m",
        "memory_bytes": str(limits.memory_bytes),
        "disk_bytes": str(limits.disk_bytes),
        "disk_requested": str(min(limits.disk_bytes, DISK_REQUESTED_BYTES)),
        "open_files": str(limits.open_files),
        "file_blocks": str(limits.disk_bytes // 512),
        "network": "true" if limits.network else "false",
        "runtime_class": limits.runtime,
        "storage": remote_path(settings.rclone_remote, pod.prefix),
        "files_bytes": str(settings.max_unpacked_bytes),
        "return_bytes": str(limits.results_bytes + RETURN_EXTRA_BYTES),
        "rclone_image": settings.rclone_image,
        "rclone_secret": settings.rclone_secret,
        "service_account": settings.kube_service_account or None,
        "image_pull_secrets": [{"name": secret}] if secret else None,
        "priority_class": settings.kube_priority_class or None,
        "tolerations": [dict(one) for one in settings.kube_tolerations] or None,
        "node_selector": dict(settings.kube_node_selector) or None,
        "affinity": _affinity(pod, required=settings.kube_affinity == "required"),
        "queue": settings.kube_queue or None,
    }


def _affinity(pod: RunPod, *, required: bool) -> dict[str, Any] | None:
    if pod.region is None:
        return None
    place = [_node_label(REGION, pod.region), *([_node_label(ZONE, pod.zone)] if pod.zone else [])]
    if required:
        must = {"nodeSelectorTerms": [{"matchExpressions": place}]}
        return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": must}}
    wishes = [{"weight": 100, "preference": {"matchExpressions": place}}]
    if pod.zone:  # another zone of the region is still better than another region
        wishes.append({"weight": 50, "preference": {"matchExpressions": place[:1]}})
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": wishes}}


def _node_label(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": [value]}


def _seconds(duration_s: float) -> str:
    """For `timeout`, of which busybox has one that takes whole numbers alone."""
    return str(int(duration_s)) if duration_s == int(duration_s) else f"{duration_s:.3f}"
