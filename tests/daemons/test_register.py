"""register.py: eight values or none, success or the reason."""

from pathlib import Path

import pytest

from tests.daemons.world import World

MACHINE = ["10.0.0.7", "worker-1", "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", "2100.5", "2", "32", "22528", "191488"]


@pytest.fixture(autouse=True)
def receiver(world: World) -> None:
    world.start("receiver").ready()


def test_the_eight_values_and_the_options_are_stored(world: World) -> None:
    done = world.run("register", *MACHINE, "--region", "us-west", "--zone", "ucsc", "--watts-min", "0.6", "--watts-max",
                     "4", "--slots", "16", worker="worker-1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("registered worker-1: Intel(R) Xeon(R)")
    (row,) = world.store.table("workers")
    columns = "node_ip worker cpu_model_name cpu_clock_rate cpu_sockets cpu_cores cache_size memory_size"
    stored = [row[name] for name in columns.split()]
    assert [str(value) for value in stored] == MACHINE
    assert (row["region"], row["zone"], row["watts_min"], row["watts_max"], row["slots"]) == (
        "us-west",
        "ucsc",
        0.6,
        4,
        16,
    )
    assert row["last_seen_at"] is None  # registered is not alive


def test_without_values_it_reads_them_off_this_machine(world: World) -> None:
    done = world.run("register", worker="worker-1")
    assert done.returncode == 0, done.stderr
    (row,) = world.store.table("workers")
    total_mib = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    assert row["memory_size"] == total_mib and row["cpu_cores"] >= 1 and row["cpu_clock_rate"] > 0
    assert row["cpu_model_name"] and row["node_ip"] == "127.0.0.1"


def test_registering_again_updates(world: World) -> None:
    world.run("register", *MACHINE, worker="worker-1")
    again = world.run("register", *MACHINE[:5], "64", *MACHINE[6:], worker="worker-1")
    assert again.returncode == 0
    assert [row["cpu_cores"] for row in world.store.table("workers")] == [64]


def test_a_number_of_values_that_is_neither_is_usage(world: World) -> None:
    done = world.run("register", *MACHINE[:7], worker="worker-1")
    assert done.returncode == 2 and "<memory_size>" in done.stderr


@pytest.mark.parametrize(("place", "value"), [(3, "fast"), (5, "0"), (7, "-1"), (1, "bad/name"), (4, "2.5")])
def test_a_bad_value_is_named(world: World, place: int, value: str) -> None:
    done = world.run("register", *MACHINE[:place], value, *MACHINE[place + 1 :], worker="worker-1")
    assert done.returncode == 2 and repr(value) in done.stderr and "Traceback" not in done.stderr


def test_another_workers_name_is_refused(world: World) -> None:
    done = world.run("register", "10.0.0.7", "worker-2", *MACHINE[2:], worker="worker-1")
    assert done.returncode != 0 and "worker-1" in done.stderr
    assert world.store.table("workers") == []


def test_watts_the_wrong_way_round_are_refused_with_the_reason(world: World) -> None:
    done = world.run("register", *MACHINE, "--watts-min", "5", "--watts-max", "1", worker="worker-1")
    assert done.returncode == 1 and "not registered" in done.stderr
    assert world.run("register", *MACHINE, worker="worker-1").returncode == 0  # the receiver lives
