"""usage.py on cgroup folders made by hand: both versions of cgroups, and what is missing."""

from pathlib import Path

from greengrader.usage import (
    ROOT,
    Hierarchy,
    Usage,
    cgroup_keys,
    hierarchies,
    parse_mounts,
    read_cgroup,
    remove_cgroup,
)

HYBRID = """\
25 30 0:23 / /proc rw,nosuid shared:14 - proc proc rw
35 24 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
36 24 0:32 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
37 24 0:33 / /sys/fs/cgroup/memory rw,nosuid shared:11 master:2 - cgroup cgroup rw,memory
"""


def test_mounts_of_both_versions() -> None:
    found = parse_mounts(HYBRID)
    assert [(str(one.folder), one.version) for one in found] == [
        ("/sys/fs/cgroup/cpu,cpuacct", 1),
        ("/sys/fs/cgroup/memory", 1),
        ("/sys/fs/cgroup/unified", 2),
    ]
    assert "cpuacct" in found[0].controllers and "memory" in found[1].controllers


def _folder(hierarchy: Path, files: dict[str, str]) -> None:
    folder = hierarchy / ROOT / "worker.1-1"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_version_1(tmp_path: Path) -> None:
    cpu, memory = tmp_path / "cpu", tmp_path / "memory"
    _folder(cpu, {"cpuacct.usage": "204500000\n"})
    _folder(memory, {"memory.max_usage_in_bytes": "1048576\n"})
    among = (Hierarchy(cpu, 1, frozenset({"cpuacct"})), Hierarchy(memory, 1, frozenset({"memory"})))
    assert read_cgroup("worker.1-1", among) == Usage(0.2045, 1048576, "cgroup")
    assert read_cgroup("worker.1-2", among) is None
    assert cgroup_keys(among) == {"worker.1-1"}


def test_version_2_with_and_without_a_peak(tmp_path: Path) -> None:
    _folder(tmp_path, {"cpu.stat": "usage_usec 204500\nuser_usec 1\nsystem_usec 2\n", "memory.peak": "4096\n"})
    among = (Hierarchy(tmp_path, 2, frozenset()),)
    assert read_cgroup("worker.1-1", among) == Usage(0.2045, 4096, "cgroup")
    (tmp_path / ROOT / "worker.1-1" / "memory.peak").unlink()
    assert read_cgroup("worker.1-1", among) == Usage(0.2045, None, "cgroup")


def test_version_1_counts_where_both_are_mounted(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    _folder(old, {"cpuacct.usage": "1000000000", "memory.max_usage_in_bytes": "5"})
    _folder(new, {"cpu.stat": "usage_usec 9\n", "memory.peak": "9\n"})
    among = (Hierarchy(old, 1, frozenset({"cpuacct", "memory"})), Hierarchy(new, 2, frozenset()))
    assert read_cgroup("worker.1-1", among) == Usage(1.0, 5, "cgroup")


def test_groups_below_go_too(tmp_path: Path) -> None:
    (tmp_path / ROOT / "worker.1-1" / "container" / "inner").mkdir(parents=True)
    among = (Hierarchy(tmp_path, 2, frozenset()),)
    remove_cgroup("worker.1-1", among)
    assert cgroup_keys(among) == set()
    remove_cgroup("worker.1-1", among)


def test_this_machine_has_cgroups() -> None:
    assert all(one.folder.is_dir() for one in hierarchies())
    assert hierarchies()
