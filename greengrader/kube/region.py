"""Where a pod should run: the greenest place with a node that can take it now. Pure.

A place is a region with its zone, "us-west.ucsc", or a region alone. What is chosen is a preference for the scheduler,
which decides in the end: the facts are some seconds old, and it knows more of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greengrader.kube.node import Node, Resources
from greengrader.limits import MEBIBYTE

NO_LABELS: Mapping[str, str] = {}
GUESSED = "as far as is known, since pods of other namespaces may not be listed"
SHOWN = 3  # places or obstacles in a sentence


@dataclass(frozen=True, slots=True)
class Preference:
    """A region and a zone to prefer, None for any, and why; one sentence, stored with the run."""

    region: str | None
    zone: str | None
    why: str


def choose(
    scores: Mapping[str, float],
    nodes: Sequence[Node],
    need: Resources,
    tolerations: Sequence[Mapping[str, Any]] = (),
    node_selector: Mapping[str, str] = NO_LABELS,
) -> Preference | None:
    """The place with the lowest score of all that have a node for the pod now; None where no node can take it.

    `scores`: {"region.zone" or "region": score, lower is greener}. `tolerations` and `node_selector` are the pod's, as
    its spec has them. Where nodes can take it but none of their places has a score, any of them will do.
    """
    takers = [node for node in nodes if obstacle(node, need, tolerations, node_selector) is None]
    if not takers:
        return None
    known = {node.place: score for node in takers if node.place and (score := _score(scores, node)) is not None}
    if not known:
        places = sorted({node.place or "an unnamed place" for node in takers})
        return Preference(None, None, f"anywhere: nobody knows how green it is in {_listed(places)}")
    free = Counter(node.place for node in takers)
    ranked = sorted(known, key=lambda place: (known[place], -free[place], place))
    best = next(node for node in takers if node.place == ranked[0])
    why = _why(ranked, known) + _greener(scores, nodes, known[ranked[0]])
    return Preference(best.region, best.zone, why if best.knows_all_requests else f"{why}; {GUESSED}")


def obstacle(
    node: Node,
    need: Resources,
    tolerations: Iterable[Mapping[str, Any]] = (),
    node_selector: Mapping[str, str] = NO_LABELS,
) -> str | None:
    """What keeps the pod from this node now, None where nothing does."""
    if not node.is_ready:
        return "not ready"
    if node.is_unschedulable:
        return "cordoned"
    if any(node.labels.get(key) != value for key, value in node_selector.items()):
        return "not selected by the pod's node selector"
    tolerations = tuple(tolerations)
    for taint in node.taints:
        if taint.effect in ("NoSchedule", "NoExecute") and not taint.is_tolerated(tolerations):
            return f"taint {taint} not tolerated"
    free = node.free
    if free.pods < max(need.pods, 1):
        return "full of pods"
    if free.millicores < need.millicores:
        return f"less than {need.millicores / 1000:g} cores free"
    if free.memory_bytes < need.memory_bytes:
        return f"less than {need.memory_bytes // MEBIBYTE:,} MiB of memory free"
    if free.disk_bytes < need.disk_bytes:
        return f"less than {need.disk_bytes // MEBIBYTE:,} MiB of disk free"
    return None


def obstacles(
    nodes: Sequence[Node],
    need: Resources,
    tolerations: Sequence[Mapping[str, Any]] = (),
    node_selector: Mapping[str, str] = NO_LABELS,
) -> str:
    """Why none of the nodes can take the pod now, in one sentence."""
    if not nodes:
        return "the cluster has no nodes"
    found = Counter(obstacle(node, need, tolerations, node_selector) for node in nodes)
    told = [f"{count} {what}" for what, count in found.most_common() if what is not None]
    return f"none of {len(nodes)} nodes can take it now: {_listed(told)}"


def _score(scores: Mapping[str, float], node: Node) -> float | None:
    score = scores.get(node.place or "")
    return scores.get(node.region or "") if score is None else score


def _why(ranked: list[str], known: Mapping[str, float]) -> str:
    best, *others = [f"{place} ({known[place]:g})" for place in ranked]
    if not others:
        return f"{best} is the only place of known score that can take it now"
    return f"{best} is the greenest of {len(ranked)} places that can take it now, before {_listed(others)}"


def _greener(scores: Mapping[str, float], nodes: Sequence[Node], best: float) -> str:
    """Which places would have been greener, had they had a node for the pod."""
    passed = {node.place: score for node in nodes if node.place and (score := _score(scores, node)) is not None}
    greener = sorted((score, place) for place, score in passed.items() if score < best)
    if not greener:
        return ""
    names = [f"{place} ({score:g})" for score, place in greener]
    return f"; no room in the greener {_listed(names)}"


def _listed(words: Sequence[str]) -> str:
    shown = ", ".join(words[:SHOWN])
    return f"{shown} and {len(words) - SHOWN} more" if len(words) > SHOWN else shown
