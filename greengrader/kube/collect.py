"""What a pod left, made the same Result that a worker would have sent: results.tar, usage, container times."""

import io
import re
import signal
import tarfile
from dataclasses import dataclass

from greengrader.kube.pod import End, Ended
from greengrader.limits import Limits
from greengrader.messages import Result

USAGE_LINE = re.compile(r"began_s=(\S*) ended_s=(\S*) cpu_ns=(\S*) cpu_us=(\S*) peak_bytes=(\S*)")
# What a kubelet sends as the log, without an error, where the file is gone.
LOG_LOST = re.compile(
    rb'failed to try resolving symlinks in path "/var/log/[^"\n]*": lstat [^\n]*: no such file or directory\n?'
)
SIGNALLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)
CLOCK_SLACK_S = 2.0  # container times are whole seconds
LOG_LOST_WARNING = "the node has lost what the autograder printed"


@dataclass(frozen=True)
class Left:
    """The content of results.tar. `results` and `problem` are both None where there was no results.json."""

    results: bytes | None = None
    problem: str | None = None
    wall_s: float | None = None
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    not_begun: bool = False  # the container says that our own preparations failed
    ended_in_order: bool = False  # its first process, which no program inside can kill, said its last word


def unpack(packed: bytes, max_bytes: int) -> Left:
    """Reads results.tar, which may be cut off: then results.json was too long. Trusts nothing in it.

    Usage was read by the first process of the autograder's container from its own cgroup: exact, but a program that
    took over that process could have forged it. usage_method `container` says so.
    """
    results, problem, usage = None, None, ""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            for member in tar:
                if member.name == "usage" and member.isreg():
                    usage = _content(tar, member, 1000).decode("ascii", "replace")
                elif member.name == "results.json" and not member.isreg():
                    problem = "results.json is no regular file"
                elif member.name == "results.json" and member.size > max_bytes:
                    problem = f"results.json has {member.size:,} bytes; at most {max_bytes:,} are read"
                elif member.name == "results.json":
                    results = _content(tar, member, max_bytes)
    except (tarfile.TarError, EOFError, OSError):
        results, problem = None, problem or "results.json could not be read from what the pod sent"
    return Left(results, problem, *_usage(usage), usage.startswith("not begun:"), USAGE_LINE.search(usage) is not None)


def fault(ended: Ended, left: Left | None) -> str | None:
    """Why what came back cannot be graded by fault of ours, None where it can. `left`: None where nothing came."""
    if ended.end in (End.TIMED_OUT, End.TOO_MUCH_DISK):  # then results count for nothing
        return None
    if left is None:
        return "the pod has ended, but its results are not in the storage"
    if left.not_begun:
        return "the submission could not be copied into the autograder's container"
    if ended.exit_status in SIGNALLED and not left.ended_in_order and ended.end is not End.OUT_OF_MEMORY:
        return f"somebody outside ended the autograder's container (exit status {ended.exit_status})"
    return None


def result_of(run_id: int, attempt: int, ended: Ended, left: Left, output: bytes, limits: Limits) -> Result:
    """The pod's end as a Result. Times are the container's, by the kubelet; where they are unknown, its end alone."""
    finished_at = ended.finished_at or ended.started_at
    assert finished_at is not None, "an outcome has a time"
    started_at = ended.started_at or finished_at
    by_kubelet_s = max((finished_at - started_at).total_seconds(), 0.0)
    # the kubelet's times are whole seconds; the container's own are finer, and believed where they agree
    exact = left.wall_s is not None and abs(left.wall_s - by_kubelet_s) <= CLOCK_SLACK_S
    problem = ended.sentence if ended.end is End.TOO_MUCH_DISK else left.problem
    log_lost = LOG_LOST.fullmatch(output) is not None
    parts = {"output": b"" if log_lost else output}
    if left.results is not None and problem is None:
        parts["results"] = left.results
    return Result(
        run_id=run_id,
        attempt=attempt,
        exit_status=ended.exit_status,
        timed_out=ended.end is End.TIMED_OUT,
        oom_killed=ended.end is End.OUT_OF_MEMORY,
        results_problem=problem,
        started_at=started_at,
        finished_at=max(finished_at, started_at),
        wall_s=left.wall_s if exact and left.wall_s is not None else by_kubelet_s,
        cpu_s=left.cpu_s,
        peak_memory_bytes=left.peak_memory_bytes,
        usage_method="container" if left.cpu_s is not None else "none",
        timeout_s=limits.timeout_s,
        cpus=limits.cpus,
        memory_bytes=limits.memory_bytes,
        warnings=[LOG_LOST_WARNING] if log_lost else [],
        parts=parts,
    )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes:
    file = tar.extractfile(member)
    content = file.read(max_bytes) if file else b""
    if len(content) < min(member.size, max_bytes):
        raise EOFError(member.name)
    return content


def _usage(text: str) -> tuple[float | None, float | None, int | None]:
    """(wall s, CPU s, peak bytes) of the line that the container wrote last; None for each that makes no sense."""
    found = USAGE_LINE.search(text)
    if found is None:
        return None, None, None
    began_s, ended_s, cpu_ns, cpu_us, peak = (_number(value) for value in found.groups())
    wall_s = ended_s - began_s if began_s is not None and ended_s is not None and ended_s >= began_s else None
    cpu_s = cpu_ns / 1e9 if cpu_ns is not None else cpu_us / 1e6 if cpu_us is not None else None
    return wall_s, cpu_s, int(peak) if peak is not None else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,18}(\.\d{1,9})?", text) else None
