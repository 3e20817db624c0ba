"""Nodes of the cluster as facts: where they are, whom they take, how much is left of them. Pure.

What is left of a node is what it offers less what the pods on it have requested, whether they use it or not: that is
what the scheduler goes by.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, Self

from greengrader.kube.podspec import REGION, ZONE

_QUANTITY = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:([eE][+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = "KMGTPE"


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of what a node has; of several pods together, or what one needs."""

    millicores: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0  # ephemeral storage
    pods: int = 0

    def __add__(self, other: "Resources") -> "Resources":
        return self._with(other, lambda mine, its: mine + its)

    def __sub__(self, other: "Resources") -> "Resources":
        return self._with(other, lambda mine, its: mine - its)

    def at_least(self, other: "Resources") -> "Resources":
        """The larger of both, resource by resource."""
        return self._with(other, max)

    def _with(self, other: "Resources", combine: Callable[[Any, Any], Any]) -> "Resources":
        return Resources(
            combine(self.millicores, other.millicores),
            combine(self.memory_bytes, other.memory_bytes),
            combine(self.disk_bytes, other.disk_bytes),
            combine(self.pods, other.pods),
        )

    @classmethod
    def of(cls, cpus: float, memory_bytes: int) -> Self:
        """What one pod needs of a node, given in cores."""
        return cls(millicores=math.ceil(round(cpus * 1000, 3)), memory_bytes=memory_bytes, pods=1)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            millicores=math.ceil(quantity(raw.get("cpu", 0)) * 1000),
            memory_bytes=int(quantity(raw.get("memory", 0))),
            disk_bytes=int(quantity(raw.get("ephemeral-storage", 0))),
            pods=int(quantity(raw.get("pods", 0))),
        )


NOTHING = Resources()


@dataclass(frozen=True, slots=True)
class Taint:
    """Keeps away pods that do not tolerate it."""

    key: str
    value: str
    effect: str  # NoSchedule, PreferNoSchedule or NoExecute

    def is_tolerated(self, tolerations: Iterable[Mapping[str, Any]]) -> bool:
        """True where a toleration, as a podspec writes one, matches."""
        return any(self._matches(toleration) for toleration in tolerations)

    def _matches(self, toleration: Mapping[str, Any]) -> bool:
        if (toleration.get("effect") or self.effect) != self.effect:
            return False
        key, operator = toleration.get("key") or "", toleration.get("operator") or "Equal"
        if operator == "Exists":
            return key in ("", self.key)  # no key: every taint
        return operator == "Equal" and key == self.key and (toleration.get("value") or "") == self.value

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True, slots=True)
class Node:
    """A node, and what the pods on it have requested."""

    name: str
    region: str | None
    zone: str | None
    ip: str | None
    is_ready: bool
    is_unschedulable: bool
    taints: tuple[Taint, ...] = ()
    allocatable: Resources = NOTHING
    requested: Resources = NOTHING
    knows_all_requests: bool = True  # False: pods of other namespaces may not be seen, and are missing in `requested`
    labels: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> str | None:
        """region.zone, the region alone where it has no zone, None where nobody has said where the node is."""
        if self.region is None:
            return None
        return f"{self.region}.{self.zone}" if self.zone else self.region

    @property
    def free(self) -> Resources:
        return self.allocatable - self.requested

    @classmethod
    def from_json(
        cls, raw: Mapping[str, Any], requested: Resources = NOTHING, *, knows_all_requests: bool = True
    ) -> Self:
        """A node from the API's JSON, in which any field may be missing."""
        metadata, spec, status = (raw.get(part) or {} for part in ("metadata", "spec", "status"))
        labels = metadata.get("labels") or {}
        conditions = {condition.get("type"): condition.get("status") for condition in status.get("conditions") or ()}
        addresses = {address.get("type"): address.get("address") for address in status.get("addresses") or ()}
        return cls(
            name=str(metadata.get("name", "")),
            region=labels.get(REGION) or None,
            zone=labels.get(ZONE) or None,
            ip=addresses.get("InternalIP"),
            is_ready=conditions.get("Ready") == "True",
            is_unschedulable=bool(spec.get("unschedulable")),
            taints=tuple(
                Taint(str(taint.get("key", "")), taint.get("value") or "", str(taint.get("effect", "")))
                for taint in spec.get("taints") or ()
            ),
            allocatable=Resources.from_json(status.get("allocatable") or {}),
            requested=requested,
            knows_all_requests=knows_all_requests,
            labels=labels,
        )


@lru_cache(maxsize=1024)  # a cluster writes few different ones, thousands of times
def quantity(text: str | int | float) -> Decimal:
    """The number that Kubernetes writes as 500m, 1.5Gi or 2e3; ValueError where it is none."""
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    number, exponent, suffix = Decimal(match[1]), match[2], match[3] or ""
    if exponent:
        return number * Decimal(10) ** int(exponent[1:])
    if suffix.endswith("i"):
        return number * Decimal(1024) ** (_BINARY.index(suffix[0]) + 1)
    return number * Decimal(10) ** _DECIMAL[suffix]


def pod_requests(pod: Mapping[str, Any]) -> Resources:
    """What the scheduler holds for a pod, from the API's JSON.

    The sum of its containers, or what its init containers need on the way where that is more; sidecars among these
    (restartPolicy Always) stay, and count with everything that comes after them.
    """
    spec = pod.get("spec") or {}
    containers, sidecars, on_the_way = NOTHING, NOTHING, NOTHING
    for container in spec.get("initContainers") or ():
        needs = _requests(container)
        if container.get("restartPolicy") == "Always":
            sidecars += needs
            on_the_way = on_the_way.at_least(sidecars)
        else:
            on_the_way = on_the_way.at_least(sidecars + needs)
    for container in spec.get("containers") or ():
        containers += _requests(container)
    needed = (containers + sidecars).at_least(on_the_way)
    whole = (spec.get("resources") or {}).get("requests")  # of the pod as a whole, from 1.32 on
    if whole:
        needed = Resources.from_json({**_as_json(needed), **whole})
    return needed + Resources.from_json(spec.get("overhead") or {}) + Resources(pods=1)


def _requests(container: Mapping[str, Any]) -> Resources:
    resources = container.get("resources") or {}
    return Resources.from_json(resources.get("requests") or {})


def _as_json(resources: Resources) -> dict[str, Any]:
    return {
        "cpu": f"{resources.millicores}m",
        "memory": resources.memory_bytes,
        "ephemeral-storage": resources.disk_bytes,
    }
