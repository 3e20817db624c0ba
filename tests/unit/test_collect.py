"""What a pod left: results.tar, in which a student's program may have had a hand, and the kubelet's times."""

import io
import json
import tarfile
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greengrader.kube.collect import LOG_LOST_WARNING, Left, fault, result_of, unpack
from greengrader.kube.pod import End, Ended
from greengrader.limits import Limits
from greengrader.results import grade

AT = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
LIMITS = Limits(timeout_s=30, cpus=0.5, memory_bytes=64 << 20)
USAGE = b"\nbegan_s=100.25 ended_s=103.75 cpu_ns=1500000000 cpu_us= peak_bytes=4096\n"
MOST = 1000


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    """A member of a tar: header and content, padded."""
    described = tarfile.TarInfo(name)
    described.type, described.size, described.linkname = kind, len(content), target
    return described.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def packed(results: bytes | None = b'{"score": 1}', usage: bytes | None = USAGE, *more: bytes) -> bytes:
    """results.tar as `upload` makes it."""
    parts = [member("usage", usage)] if usage is not None else []
    parts += [member("results.json", results)] if results is not None else []
    return b"".join([*parts, *more]) + bytes(2 * tarfile.BLOCKSIZE)


# ------------------------------------------------------------------------------------------------ results.tar
def test_results_and_usage() -> None:
    assert unpack(packed(), MOST) == Left(b'{"score": 1}', None, 3.5, 1.5, 4096, ended_in_order=True)


@pytest.mark.parametrize(
    ("end", "exit_status", "left", "reason"),
    [
        (End.COMPLETED, 0, Left(b"{}", ended_in_order=True), None),
        (End.COMPLETED, 0, None, "not in the storage"),
        (End.OUT_OF_MEMORY, 137, None, "not in the storage"),
        (End.OUT_OF_MEMORY, 137, Left(), None),
        (End.EXITED, 125, Left(not_begun=True), "could not be copied"),
        (End.EXITED, 137, Left(), "somebody outside"),
        (End.EXITED, 137, Left(ended_in_order=True), None),  # the program killed itself
        (End.TIMED_OUT, 137, None, None),
        (End.TOO_MUCH_DISK, None, None, None),
    ],
)
def test_what_cannot_be_graded_by_fault_of_ours(
    end: End, exit_status: int | None, left: Left | None, reason: str | None
) -> None:
    said = fault(Ended(end, "it ended", exit_status, AT, AT), left)
    assert (said is None) == (reason is None) and (reason or "") in (said or "")


def test_as_tar_itself_writes_it() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (("usage", USAGE), ("results.json", b"[]")):
            described = tarfile.TarInfo(name)
            described.size = len(content)
            tar.addfile(described, io.BytesIO(content))
    assert unpack(file.getvalue(), MOST).results == b"[]"


def test_no_results() -> None:
    left = unpack(packed(None), MOST)
    assert (left.results, left.problem, left.cpu_s) == (None, None, 1.5)


def test_empty_results_are_no_missing_ones() -> None:
    assert unpack(packed(b""), MOST).results == b""


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_what_is_no_regular_file(kind: bytes) -> None:
    left = unpack(packed(None, USAGE, member("results.json", b"", kind, "/etc/passwd")), MOST)
    assert (left.results, left.problem) == (None, "results.json is no regular file")


@pytest.mark.parametrize("kept", [10_000, 1500, 600])  # bytes of the tar that came
def test_too_large_results_even_where_they_are_cut_off(kept: int) -> None:
    left = unpack(packed(b"x" * 5000)[: 2 * tarfile.BLOCKSIZE + kept], MOST)
    assert (left.results, left.problem) == (None, "results.json has 5,000 bytes; at most 1,000 are read")
    assert left.cpu_s == 1.5


def test_just_not_too_large() -> None:
    assert unpack(packed(b"x" * MOST), MOST).results == b"x" * MOST


def test_results_that_end_in_the_middle() -> None:
    left = unpack(packed(b"x" * 900)[: 3 * tarfile.BLOCKSIZE + 100], MOST)
    assert (left.results, left.problem) == (None, "results.json could not be read from what the pod sent")


@pytest.mark.parametrize("rubbish", [b"no tar", b"x" * 2000, b"\x1f\x8b\x08" + b"\0" * 600])
def test_rubbish(rubbish: bytes) -> None:
    left = unpack(rubbish, MOST)
    assert left.results is None and left.problem == "results.json could not be read from what the pod sent"


def test_other_members_are_not_looked_at() -> None:
    more = member("../results.json", b"evil"), member("a/results.json", b"evil"), member("/results.json", b"evil")
    assert unpack(packed(None, USAGE, *more), MOST).results is None


def test_a_compressed_tar_is_none() -> None:
    """A small one could unpack to much."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("results.json"))
    assert unpack(file.getvalue(), MOST).problem is not None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (b"began_s=1.00 ended_s=2.50 cpu_ns= cpu_us=250000 peak_bytes=10\n", (1.5, 0.25, 10)),  # cgroup v2
        (b"began_s=1.00 ended_s=2.50 cpu_ns= cpu_us= peak_bytes=\n", (1.5, None, None)),
        (b"began_s=5 ended_s=2 cpu_ns=0 cpu_us= peak_bytes=0\n", (None, 0.0, 0)),  # backwards
        (b"began_s=-1 ended_s=nan cpu_ns=1e400 cpu_us=inf peak_bytes=0x10\n", (None, None, None)),
        (b"began_s=1 ended_s=2 cpu_ns=" + b"9" * 40 + b" cpu_us= peak_bytes=1\n", (1.0, None, 1)),
        (b"", (None, None, None)),
        (b"\xff\xfe\0", (None, None, None)),
        (b"a student's words\n", (None, None, None)),
    ],
)
def test_usage(usage: bytes, expected: tuple[float | None, float | None, int | None]) -> None:
    left = unpack(packed(b"{}", usage), MOST)
    assert (left.wall_s, left.cpu_s, left.peak_memory_bytes) == expected
    assert left.results == b"{}"


def test_a_fraction_of_a_byte_is_a_number_of_bytes() -> None:
    assert unpack(packed(b"{}", USAGE.replace(b"4096", b"4096.5")), MOST).peak_memory_bytes == 4096


@given(st.binary(max_size=3000))
def test_no_bytes_break_it(content: bytes) -> None:
    left = unpack(content, MOST)
    assert left.results is None or len(left.results) <= MOST


@given(st.integers(0, 2500), st.binary(min_size=1, max_size=40))
def test_no_damage_breaks_it(place: int, damage: bytes) -> None:
    sound = packed(b"x" * 900)
    left = unpack(sound[:place] + damage + sound[place + len(damage) :], MOST)
    assert left.results is None or len(left.results) <= MOST


# ------------------------------------------------------------------------------------------------ the result
def ended(end: End = End.COMPLETED, exit_status: int | None = 0, lasted_s: float | None = 4) -> Ended:
    finished_at = AT + timedelta(seconds=lasted_s) if lasted_s is not None else None
    return Ended(end, "a sentence", exit_status, AT, finished_at)


def result(end: Ended, left: Left | None = None, output: bytes = b"said\n") -> Any:
    left = left if left is not None else Left(b'{"score": 1}', None, 3.5, 1.5, 4096)
    return result_of(7, 2, end, left, output, LIMITS)


def test_a_result_has_what_a_workers_has() -> None:
    made = result(ended())
    assert (made.run_id, made.attempt, made.exit_status) == (7, 2, 0)
    assert (made.started_at, made.finished_at) == (AT, AT + timedelta(seconds=4))
    assert (made.wall_s, made.cpu_s, made.peak_memory_bytes, made.usage_method) == (3.5, 1.5, 4096, "container")
    assert (made.timeout_s, made.cpus, made.memory_bytes) == (30, 0.5, 64 << 20)
    assert made.parts == {"results": b'{"score": 1}', "output": b"said\n"}
    assert made.warnings == []


@pytest.mark.parametrize("wall_s", [0.1, 1000.0, None])
def test_a_wall_time_that_the_kubelet_does_not_confirm_is_not_believed(wall_s: float | None) -> None:
    assert result(ended(), Left(b"{}", None, wall_s, 1.0, 1)).wall_s == 4


def test_without_usage_nothing_is_made_up() -> None:
    made = result(ended(), Left(b"{}"))
    assert (made.wall_s, made.cpu_s, made.peak_memory_bytes, made.usage_method) == (4, None, None, "none")


@pytest.mark.parametrize(
    ("end", "timed_out", "oom_killed"),
    [
        (End.COMPLETED, False, False),
        (End.EXITED, False, False),
        (End.TIMED_OUT, True, False),
        (End.OUT_OF_MEMORY, False, True),
        (End.TOO_MUCH_DISK, False, False),
    ],
)
def test_what_kind_of_end(end: End, timed_out: bool, oom_killed: bool) -> None:
    made = result(ended(end, 137))
    assert (made.timed_out, made.oom_killed) == (timed_out, oom_killed)


def test_too_much_disk_is_told_and_not_graded_by_what_was_left() -> None:
    made = result(ended(End.TOO_MUCH_DISK, 137))
    assert made.results_problem == "a sentence" and "results" not in made.parts


def test_a_problem_with_the_file_is_the_results_problem() -> None:
    made = result(ended(), Left(None, "results.json is no regular file"))
    assert made.results_problem == "results.json is no regular file" and "results" not in made.parts
    given = grade(None, timed_out=False, oom_killed=False, timeout_s=30, problem=made.results_problem)
    assert (given.outcome, given.problem) == ("invalid_results", "results.json is no regular file")


@pytest.mark.parametrize("moments", [(None, AT), (AT, None), (AT, AT - timedelta(seconds=5))])
def test_times_that_are_missing_or_make_no_sense(moments: tuple[datetime | None, datetime | None]) -> None:
    made = result(Ended(End.TIMED_OUT, "a sentence", None, *moments))
    assert made.finished_at >= made.started_at and made.wall_s >= 0


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_log_that_the_node_has_lost(end: str) -> None:
    path = "/var/log/pods/greengrader_greengrader-1-1_5386487e/autograder/0.log"
    words = f'failed to try resolving symlinks in path "{path}": lstat {path}: no such file or directory{end}'
    made = result(ended(), output=words.encode())
    assert (made.parts["output"], made.warnings) == (b"", [LOG_LOST_WARNING])
    quoted = f"{words}\nwas what it said\n".encode()
    assert result(ended(), output=quoted).parts["output"] == quoted


def test_a_result_can_be_sent_like_a_workers() -> None:
    assert json.loads(result(ended()).model_dump_json(exclude={"parts"}))["run_id"] == 7
