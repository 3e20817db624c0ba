"""The greenest place whose nodes can take a pod now: taints, readiness, and what the nodes' pods have requested."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greengrader.kube.node import Node, Resources, Taint, pod_requests, quantity
from greengrader.kube.region import Preference, choose, obstacle, obstacles

GIBIBYTE = 1024**3
NEED = Resources.of(0.5, 768 * 1024**2)
SCORES = {"us-west.ucsc": 300.0, "us-east.mghpcc": 200.0, "us-central.unl": 100.0}


def node(name: str = "node1", place: str = "us-west.ucsc", **changes: Any) -> Node:
    """A node that can take nearly everything."""
    region, _, zone = place.partition(".")
    known: dict[str, Any] = {
        "name": name,
        "region": region or None,
        "zone": zone or None,
        "ip": "10.0.0.1",
        "is_ready": True,
        "is_unschedulable": False,
        "allocatable": Resources(2000, 4 * GIBIBYTE, 100 * GIBIBYTE, 110),
    }
    return Node(**(known | changes))


WEST, EAST = node("west", "us-west.ucsc"), node("east", "us-east.mghpcc")
RESERVED = Taint("nautilus.io/reservation", "other", "NoSchedule")
CENTRAL = node("central", "us-central.unl", taints=(RESERVED,))


# --- the choice


def test_the_greenest_place_with_a_node() -> None:
    found = choose(SCORES, [WEST, EAST], NEED)
    assert found == Preference(
        "us-east",
        "mghpcc",
        "us-east.mghpcc (200) is the greenest of 2 places that can take it now, before us-west.ucsc (300)",
    )


def test_the_greenest_may_be_closed_to_the_pod() -> None:
    found = choose(SCORES, [WEST, EAST, CENTRAL], NEED)
    assert found is not None
    assert (found.region, found.zone) == ("us-east", "mghpcc")
    assert found.why.endswith("; no room in the greener us-central.unl (100)")
    tolerated = choose(SCORES, [WEST, EAST, CENTRAL], NEED, [{"key": RESERVED.key, "operator": "Exists"}])
    assert tolerated is not None and tolerated.region == "us-central"


def test_one_node_of_a_place_is_enough() -> None:
    full = node("full", "us-east.mghpcc", requested=Resources(2000))
    found = choose(SCORES, [full, EAST, WEST], NEED)
    assert found is not None and found.zone == "mghpcc"
    assert choose(SCORES, [full], NEED) is None


def test_no_node_at_all() -> None:
    assert choose(SCORES, [], NEED) is None
    assert choose(SCORES, [CENTRAL], NEED) is None


def test_a_score_may_be_a_whole_regions() -> None:
    found = choose({"us-west": 10.0, "us-east.mghpcc": 200.0}, [WEST, EAST], NEED)
    assert found is not None and (found.region, found.zone) == ("us-west", "ucsc")
    both = choose({"us-west": 10.0, "us-west.ucsc": 900.0, "us-east.mghpcc": 200.0}, [WEST, EAST], NEED)
    assert both is not None and both.region == "us-east"  # the zone's own score counts


def test_nodes_of_unknown_place_are_never_preferred() -> None:
    nowhere = node("nowhere", "")
    assert nowhere.place is None
    found = choose(SCORES, [nowhere, WEST], NEED)
    assert found is not None and found.region == "us-west"
    alone = choose(SCORES, [nowhere], NEED)
    assert alone is not None
    assert (alone.region, alone.zone) == (None, None)
    assert alone.why == "anywhere: nobody knows how green it is in an unnamed place"


def test_places_without_a_score_are_taken_only_where_there_is_no_other() -> None:
    mars = node("mars", "mars.olympus")
    found = choose(SCORES, [mars, WEST], NEED)
    assert found is not None and found.region == "us-west"
    alone = choose(SCORES, [mars], NEED)
    assert alone == Preference(None, None, "anywhere: nobody knows how green it is in mars.olympus")


def test_a_region_without_zones() -> None:
    found = choose({"eu": 5.0}, [node("n", "eu"), WEST], NEED)
    assert found is not None and (found.region, found.zone) == ("eu", None)


def test_equally_green_places_go_by_free_nodes_then_by_name() -> None:
    same = {"a.1": 5.0, "b.1": 5.0}
    nodes = [node("n1", "a.1"), node("n2", "b.1"), node("n3", "b.1")]
    found = choose(same, nodes, NEED)
    assert found is not None and found.region == "b"
    found = choose(same, nodes[1::-1], NEED)
    assert found is not None and found.region == "a"


def test_what_is_a_guess_says_so() -> None:
    found = choose(SCORES, [node(knows_all_requests=False)], NEED)
    assert found is not None and "pods of other namespaces may not be listed" in found.why


@given(
    st.lists(st.sampled_from(["a.1", "a.2", "b.1", "c.1", ""]), max_size=8),
    st.dictionaries(st.sampled_from(["a.1", "a.2", "b.1", "c.1"]), st.floats(0, 1000)),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_never_a_place_that_cannot_take_it_nor_one_that_is_less_green(
    places: list[str], scores: dict[str, float], ready: list[bool]
) -> None:
    nodes = [node(f"n{i}", place, is_ready=ready[i]) for i, place in enumerate(places)]
    found = choose(scores, nodes, NEED)
    open_places = {one.place for one in nodes if one.is_ready}
    if found is None:
        assert not open_places
    elif found.region is None:
        assert open_places and not open_places & set(scores)
    else:
        chosen = f"{found.region}.{found.zone}"
        assert chosen in open_places
        assert scores[chosen] == min(scores[place] for place in open_places & set(scores) if place)


# --- what keeps a pod from a node


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"is_ready": False}, "not ready"),
        ({"is_unschedulable": True}, "cordoned"),
        ({"taints": (RESERVED,)}, "taint nautilus.io/reservation=other:NoSchedule not tolerated"),
        ({"taints": (Taint("down", "", "NoExecute"),)}, "taint down:NoExecute not tolerated"),
        ({"taints": (Taint("rather-not", "", "PreferNoSchedule"),)}, None),
        ({"requested": Resources(1501)}, "less than 0.5 cores free"),
        ({"requested": Resources(1500)}, None),
        ({"requested": Resources(memory_bytes=4 * GIBIBYTE - 1)}, "less than 768 MiB of memory free"),
        ({"requested": Resources(pods=110)}, "full of pods"),
        ({"requested": Resources(pods=109)}, None),
        ({"allocatable": Resources()}, "full of pods"),
    ],
)
def test_obstacles_of_one_node(changes: dict[str, Any], what: str | None) -> None:
    assert obstacle(node(**changes), NEED) == what


def test_disk_counts_where_the_pod_asks_for_it() -> None:
    full = node(requested=Resources(disk_bytes=99 * GIBIBYTE))
    assert obstacle(full, NEED) is None
    assert obstacle(full, Resources(disk_bytes=2 * GIBIBYTE)) == "less than 2,048 MiB of disk free"


def test_the_node_selector_has_to_match() -> None:
    fast = node(labels={"disk": "fast", "gpu": "no"})
    assert obstacle(fast, NEED, (), {"disk": "fast"}) is None
    assert obstacle(fast, NEED, (), {"disk": "fast", "gpu": "yes"}) == "not selected by the pod's node selector"
    assert choose(SCORES, [fast], NEED, (), {"disk": "slow"}) is None


def test_all_obstacles_in_one_sentence() -> None:
    nodes = [node(is_ready=False), CENTRAL, CENTRAL]
    assert obstacles(nodes, NEED) == (
        "none of 3 nodes can take it now: 2 taint nautilus.io/reservation=other:NoSchedule not tolerated, 1 not ready"
    )
    assert obstacles([], NEED) == "the cluster has no nodes"


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "value": "v", "effect": "NoSchedule"}, True),  # Equal is the default
        ({"key": "k", "value": "v"}, True),  # every effect
        ({"key": "k", "operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists", "effect": "NoSchedule"}, True),
        ({"operator": "Exists"}, True),  # every key
        ({"operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "k", "operator": "Equal", "value": "other"}, False),
        ({"key": "k"}, False),  # the empty value
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "k", "operator": "Gt", "value": "v"}, False),  # newer than what is known here
        ({"value": "v"}, False),
        ({}, False),
        ({"key": "k", "operator": "Exists", "effect": None, "tolerationSeconds": 5}, True),
    ],
)
def test_tolerations(toleration: dict[str, Any], tolerated: bool) -> None:
    assert Taint("k", "v", "NoSchedule").is_tolerated([toleration]) is tolerated
    assert Taint("k", "v", "NoSchedule").is_tolerated([{"key": "unrelated"}, toleration]) is tolerated


def test_every_taint_needs_a_toleration() -> None:
    two = node(taints=(Taint("a", "", "NoSchedule"), Taint("b", "", "NoExecute")))
    assert obstacle(two, NEED, [{"key": "a", "operator": "Exists"}]) == "taint b:NoExecute not tolerated"
    assert obstacle(two, NEED, [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]) is None


# --- nodes and pods as the API describes them


def test_a_node_from_json() -> None:
    raw = {
        "metadata": {"name": "n", "labels": {"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"}},
        "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoExecute", "timeAdded": "now"}]},
        "status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.9"}],
            "allocatable": {"cpu": "1930m", "memory": "2Gi", "pods": "110", "ephemeral-storage": "1G"},
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "Unknown"}],
        },
    }
    found = Node.from_json(raw, Resources(930, pods=10))
    assert (found.name, found.place, found.ip, found.is_ready, found.is_unschedulable) == (
        "n",
        "r.z",
        "10.0.0.9",
        False,
        True,
    )
    assert found.taints == (Taint("k", "", "NoExecute"),)
    assert found.free == Resources(1000, 2 * GIBIBYTE, 10**9, 100)


def test_a_node_of_which_nothing_is_known() -> None:
    for raw in ({}, {"metadata": None, "spec": None, "status": None}):
        found = Node.from_json(raw)
        assert (found.place, found.ip, found.is_ready, found.taints) == (None, None, False, ())
        assert obstacle(found, Resources()) == "not ready"


def needs(cpu: str, memory: str = "0", **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu, "memory": memory}}, **more}


def test_a_pod_requests_what_its_containers_do() -> None:
    pod = {"spec": {"containers": [needs("500m", "1Gi"), needs("100m", "1Mi"), {"name": "asks for nothing"}]}}
    assert pod_requests(pod) == Resources(600, GIBIBYTE + 1024**2, 0, 1)
    assert pod_requests({}) == Resources(pods=1)


def test_init_containers_count_where_they_need_more() -> None:
    containers = [needs("200m"), needs("200m")]
    for init, millicores in (([needs("100m")], 400), ([needs("1"), needs("700m")], 1000)):
        assert pod_requests({"spec": {"initContainers": init, "containers": containers}}).millicores == millicores


def test_native_sidecars_count_with_all_that_follows() -> None:
    """The rule of 1.28 and later, where an init container with restartPolicy Always goes on beside the others."""
    sidecar = needs("300m", restartPolicy="Always")
    assert pod_requests({"spec": {"initContainers": [sidecar], "containers": [needs("200m")]}}).millicores == 500
    after = {"initContainers": [sidecar, needs("400m")], "containers": [needs("200m")]}
    assert pod_requests({"spec": after}).millicores == 700
    before = {"initContainers": [needs("400m"), sidecar], "containers": [needs("200m")]}
    assert pod_requests({"spec": before}).millicores == 500


def test_overhead_and_requests_of_the_pod_as_a_whole() -> None:
    spec = {"containers": [needs("200m", "1Gi")], "overhead": {"cpu": "50m", "memory": "64Mi"}}
    assert pod_requests({"spec": spec}) == Resources(250, GIBIBYTE + 64 * 1024**2, 0, 1)
    whole = spec | {"resources": {"requests": {"cpu": "2"}}}
    assert pod_requests({"spec": whole}) == Resources(2050, GIBIBYTE + 64 * 1024**2, 0, 1)


def test_cores_of_a_setting() -> None:
    assert [Resources.of(cpus, 5).millicores for cpus in (0.5, 0.1 * 3, 0.0001, 2)] == [500, 300, 1, 2000]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("500m", "0.5"),
        ("1500m", "1.5"),
        ("2", "2"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("100n", "1e-7"),
        ("3u", "3e-6"),
        ("1k", "1000"),
        ("24632892Ki", "25224081408"),
        ("1.5Gi", "1610612736"),
        ("2G", "2000000000"),
        ("1e3", "1000"),
        ("12E6", "12000000"),
        ("1E", "1000000000000000000"),
        ("1Ei", "1152921504606846976"),
        ("-1", "-1"),
        (3, "3"),
        (0.25, "0.25"),
    ],
)
def test_quantities(text: str | int | float, number: str) -> None:
    assert quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "m", "1 Gi", "1gi", "1mi", "1.2.3", "e3", "１", "0x10", "nan"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity(text)
