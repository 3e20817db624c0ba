"""One run of an autograder in a container: hostile code in, a report out.

Theory of operation. The container is root inside, because autograders are, and nothing outside: no network unless asked
for, the few capabilities that real autograders use, no new privileges, memory without swap, a share of the CPU, and
limits on processes, open files and the size of its files. Entry point and command of the image are never used
(Gradescope's harness is one of them). The submission goes in before the start; results.json comes out when every
process is dead; the container itself is removed after the report has been used, off the critical path.

Two ways to fail. What the program inside does is a fact in the RunReport: its exit status, a timeout, out of memory, a
results.json that cannot be used. What the engine fails to do is a SandboxError: no report, no score, try again.
"""

import json
import logging
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from typing import Any

from greengrader import layer
from greengrader.disk import DiskWatch
from greengrader.engine import Attached, Engine, EngineRefused
from greengrader.errors import SandboxError
from greengrader.limits import MEBIBYTE, Limits
from greengrader.output import Output
from greengrader.usage import Meter, cgroup_keys, remove_cgroup

log = logging.getLogger("greengrader")

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID")
"""What adduser, chmod, su, runuser, sudo and `service mysql|ssh|apache2 start` need; found by leaving out others."""

LABEL_WORKER = "greengrader.worker"
LABEL_RUN = "greengrader.run"
LABEL_ATTEMPT = "greengrader.attempt"

SHM_BYTES = 64 * MEBIBYTE  # of /dev/shm; counts as memory
TICK_S = 1.0  # how often a run is looked at while it runs
OUTPUT_BYTES_PER_TICK = 64 * MEBIBYTE  # a program that prints faster has to wait, or it would keep our cores busy
SIGNALLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)  # exit statuses that need a second look
STOP_S = 30.0  # a killed container that is still there after this is the engine's fault


class RunCancelled(SandboxError):
    """The run was stopped because the worker was told to; it says nothing about the submission."""


@dataclass(frozen=True)
class RunReport:
    """What one run did. `results` and `results_problem` are both None where it left no results.json."""

    exit_status: int | None  # None: it was stopped, or went beyond a limit
    timed_out: bool
    oom_killed: bool
    results: bytes | None
    results_problem: str | None  # a sentence: why results.json cannot be used
    output: bytes  # stdout and stderr as they came, head and tail where long
    started_at: datetime  # by the engine's clock, UTC
    finished_at: datetime
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int | None
    usage_method: str  # "cgroup" or "stats", see usage.py
    warnings: tuple[str, ...] = ()


@contextmanager
def run(
    engine: Engine,
    image: str,
    command: list[str],
    limits: Limits,
    files: bytes,
    *,
    run_id: int,
    attempt: int,
    worker: str,
    cancelled: Event | None = None,
) -> Iterator[RunReport]:
    """The report of one run of `command` in a new container, which is removed when the `with` block is left.

    `files` is a tar.gz for /autograder. Blocks until the program has ended or used up its time. Raises SandboxError
    when the engine fails, and RunCancelled within about a second after `cancelled` is set.
    """
    meter = Meter(engine, _key(worker, run_id, attempt))
    config = _container(engine, image, command, limits, meter.cgroup_parent)
    config["Labels"] = {LABEL_WORKER: worker, LABEL_RUN: str(run_id), LABEL_ATTEMPT: str(attempt)}
    container_id = _create(engine, f"greengrader-{_key(worker, run_id, attempt)}", config)
    try:
        yield _execute(engine, container_id, limits, files, meter, cancelled or Event())
    finally:
        _remove(engine, container_id)
        meter.forget()


def reap_orphans(engine: Engine, worker: str, keep: set[tuple[int, int]]) -> int:
    """Number of this worker's containers removed because their (run, attempt) is not in `keep`; a crash left them."""
    query = {"all": "true", "filters": f'{{"label":["{LABEL_WORKER}={worker}"]}}'}
    reaped = 0
    for container in engine.ask("list containers", "GET", "/containers/json", params=query):
        labels = container["Labels"]
        if (int(labels.get(LABEL_RUN, -1)), int(labels.get(LABEL_ATTEMPT, -1))) not in keep:
            _remove(engine, container["Id"])
            log.info("orphan removed run=%s attempt=%s", labels.get(LABEL_RUN), labels.get(LABEL_ATTEMPT))
            reaped += 1
    kept = {_key(worker, run_id, attempt) for run_id, attempt in keep}
    for key in cgroup_keys() - kept:
        if key.rpartition(".")[0] == worker:
            remove_cgroup(key)
    return reaped


def _key(worker: str, run_id: int, attempt: int) -> str:
    """Names the run among all on this engine, which several workers, each with a hub of its own, may share."""
    return f"{worker}.{run_id}-{attempt}"


def _container(
    engine: Engine, image: str, command: list[str], limits: Limits, cgroup_parent: str | None
) -> dict[str, Any]:
    """The container as the engine's REST interface describes one."""
    # Without CAP_SYS_RESOURCE nobody may raise a hard limit; the engine was most likely started like us.
    open_files = limits.open_files
    if engine.facts.local:
        open_files = min(open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    host: dict[str, Any] = {
        "NetworkMode": "default" if limits.network else "none",
        "Init": True,
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
        "SecurityOpt": ["no-new-privileges"],
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,  # of both together
        "NanoCpus": round(limits.cpus * 1e9),
        "PidsLimit": limits.pids,
        "ShmSize": min(SHM_BYTES, limits.memory_bytes),
        "OomScoreAdj": 500,  # when the machine itself runs out of memory, a run goes first
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": open_files, "Hard": open_files},
            {"Name": "fsize", "Soft": limits.disk_bytes, "Hard": limits.disk_bytes},
        ],
        "LogConfig": {"Type": "none"},  # nothing on disk: the output is taken as it comes
    }
    if cgroup_parent is not None:
        host["CgroupParent"] = cgroup_parent
    if limits.runtime is not None:
        host["Runtime"] = limits.runtime
    if engine.has_quotas:
        host["StorageOpt"] = {"size": str(limits.disk_bytes)}
    return {
        "Image": image,
        "Entrypoint": command,
        "Cmd": [],
        "User": "0",
        "WorkingDir": layer.AUTOGRADER,
        "Env": ["LANG=C.UTF-8"],
        "Hostname": "autograder",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def _create(engine: Engine, name: str, config: dict[str, Any]) -> str:
    """The id of the new container. What stands in its way is cleared: a leftover of a crash, a refused quota."""
    for _ in range(3):
        try:
            created = engine.ask("create a container", "POST", "/containers/create", params={"name": name}, body=config)
            return str(created["Id"])
        except EngineRefused as refused:
            if refused.status == 409:
                log.warning("leftover container removed name=%s", name)
                _remove(engine, name)
            elif "storage-opt" in str(refused).lower() and config["HostConfig"].pop("StorageOpt", None):
                engine.has_quotas = False
                log.warning("the engine has no disk quotas; the size of a run's files is watched instead")
            else:
                raise
    raise SandboxError(f"the name {name} is taken by a container that cannot be removed")


def _execute(
    engine: Engine, container_id: str, limits: Limits, files: bytes, meter: Meter, cancelled: Event
) -> RunReport:
    path = f"/containers/{container_id}"
    files_in_sight = layer.layer_of(engine.facts, engine.ask("describe the container", "GET", f"{path}/json"))
    layer.put(engine, container_id, files_in_sight, files)
    watch = _Watch(limits, meter, DiskWatch(engine, container_id, files_in_sight, limits.disk_bytes), cancelled)
    output = Output(limits.log_bytes)
    with engine.attach(container_id) as attached:
        watch.raise_if_cancelled()
        engine.ask("start the container", "POST", f"{path}/start")
        stopped_for = _follow(engine, container_id, attached, output, watch)
    usage = meter.read()
    state = engine.ask("describe the container", "GET", f"{path}/json")["State"]
    if state["Error"]:
        raise SandboxError(f"the engine lost the container: {state['Error']}")
    if stopped_for is None and state["ExitCode"] in SIGNALLED and not state["OOMKilled"]:
        _raise_if_killed_from_outside(engine, container_id, state["StartedAt"])
    started_at = datetime.fromisoformat(state["StartedAt"])
    # The engine notes the start after it, so that the end of a run of a few milliseconds may seem to come first.
    finished_at = max(datetime.fromisoformat(state["FinishedAt"]), started_at)
    if stopped_for == _TOO_MUCH_DISK:
        problem = f"The files of the run grew beyond {limits.disk_bytes // MEBIBYTE:,} MiB, which is its limit"
        results = layer.Found(problem=problem)
    else:
        results = layer.take_results(engine, container_id, files_in_sight, limits.results_bytes)
    return RunReport(
        exit_status=state["ExitCode"] if stopped_for is None else None,
        timed_out=stopped_for == _TIMED_OUT,
        oom_killed=state["OOMKilled"],
        results=results.content,
        results_problem=results.problem,
        output=bytes(output),
        started_at=started_at,
        finished_at=finished_at,
        wall_s=(finished_at - started_at).total_seconds(),
        cpu_s=usage.cpu_s,
        peak_memory_bytes=usage.peak_memory_bytes,
        usage_method=usage.method,
        warnings=() if usage.method == "cgroup" else ("CPU time and memory are samples of the engine's statistics",),
    )


_TIMED_OUT = "timed out"
_TOO_MUCH_DISK = "too much disk"


class _Watch:
    """Looks after one run while it runs."""

    def __init__(self, limits: Limits, meter: Meter, disk: DiskWatch, cancelled: Event) -> None:
        self._limits, self._meter, self._disk, self._cancelled = limits, meter, disk, cancelled

    def begin(self) -> None:
        """The program has started: its time runs."""
        self._deadline = time.monotonic() + self._limits.timeout_s
        # Where samples are all there will be, short runs want to be seen, too.
        self._samples, self._pause_s = not self._meter.is_exact, TICK_S if self._meter.is_exact else 0.05
        self._next_tick = min(time.monotonic() + self._pause_s, self._deadline)

    def seconds_to_tick(self) -> float:
        return max(self._next_tick - time.monotonic(), 0.0)

    def tick(self, container_id: str) -> str | None:
        """Why the run has to end, None while it may go on; RunCancelled where the worker itself has to stop."""
        if self._samples:
            self._meter.sample(container_id)
            self._pause_s = min(2 * self._pause_s, TICK_S)
        now = time.monotonic()
        self._next_tick = min(now + self._pause_s, self._deadline)
        self.raise_if_cancelled()
        if now >= self._deadline:
            return _TIMED_OUT
        self._disk.raise_if_disk_is_full()
        return self.verdict()

    def verdict(self) -> str | None:
        """Why the run does not count, whether it still runs or not."""
        return _TOO_MUCH_DISK if self._disk.exceeded() else None

    def raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise RunCancelled("the worker was told to stop")

    def pause(self) -> None:
        """Waits for the next tick."""
        self._cancelled.wait(self.seconds_to_tick())


def _follow(engine: Engine, container_id: str, attached: Attached, output: Output, watch: _Watch) -> str | None:
    """Takes the output until every process is dead: None where the run ended by itself, else why it was stopped."""
    watch.begin()
    stopped_for, prints = None, True
    taken_bytes = 0  # since the last tick
    while stopped_for is None:
        if watch.seconds_to_tick() == 0.0:
            stopped_for, taken_bytes = watch.tick(container_id), 0
        elif not prints:
            if _exits_within(engine, container_id, watch.seconds_to_tick()):
                return watch.verdict()
        elif taken_bytes >= OUTPUT_BYTES_PER_TICK:
            watch.pause()
        elif piece := attached.read(watch.seconds_to_tick()):
            output.feed(piece)
            taken_bytes += len(piece)
        elif piece == b"":
            prints = False  # the last process has ended, or all have closed what they print to
    while taken_bytes < OUTPUT_BYTES_PER_TICK and (piece := attached.read(0.0)):
        output.feed(piece)
        taken_bytes += len(piece)
    # The engine handles no exit while it has output to pass on and nobody takes it.
    attached.close()
    _kill(engine, container_id)
    if not _exits_within(engine, container_id, STOP_S):
        raise SandboxError(f"a killed container is still there after {STOP_S:.0f} s")
    return stopped_for


def _raise_if_killed_from_outside(engine: Engine, container_id: str, started_at: str) -> None:
    """SandboxError where somebody had the engine kill the container (`docker kill`, `docker stop`, an engine that
    stops): only then is the missing result not the program's own doing."""
    query = {
        "since": f"{datetime.fromisoformat(started_at).timestamp():.6f}",
        "until": f"{time.time():.6f}",
        "filters": json.dumps({"container": [container_id], "event": ["kill"]}),
    }
    with engine.stream("tell its events", "GET", "/events", params=query, timeout_s=10.0) as answer:
        for event in answer.json_lines():
            sent = event.get("Actor", {}).get("Attributes", {}).get("signal", "?")
            raise SandboxError(f"somebody else had the engine end the container (signal {sent})")


def _exits_within(engine: Engine, container_id: str, seconds: float) -> bool:
    """True as soon as the container has stopped, False after the time."""
    until = time.monotonic() + seconds
    try:
        engine.ask("wait for the container", "POST", f"/containers/{container_id}/wait", timeout_s=max(seconds, 0.01))
    except EngineRefused:
        raise
    except SandboxError:
        if time.monotonic() < until:
            raise
        return False
    return True


def _kill(engine: Engine, container_id: str) -> None:
    try:
        engine.ask("kill the container", "POST", f"/containers/{container_id}/kill")
    except EngineRefused as refused:
        if refused.status != 409:  # 409: it ended in this moment
            raise


def _remove(engine: Engine, container: str) -> None:
    """Kills and removes a container with its volumes; one that stays is logged and left to the reaper."""
    try:
        engine.ask("remove the container", "DELETE", f"/containers/{container}", params={"force": "true", "v": "true"})
    except EngineRefused as refused:
        if refused.status not in (404, 409):  # gone, or going
            log.warning("container stays id=%s reason=%s", container[:12], refused)
    except SandboxError as error:
        log.warning("container stays id=%s reason=%s", container[:12], error)
