"""sandbox.py against a real engine: what a program does is in the report, what the engine fails to do is raised."""

import dataclasses
import json
import re
import threading
import time
from datetime import UTC, datetime

import pytest

from greengrader import disk, layer, sandbox
from greengrader.engine import Engine, EngineRefused
from greengrader.errors import SandboxError, ServiceUnavailable
from greengrader.limits import MEBIBYTE, Limits
from greengrader.usage import ROOT, hierarchies
from tests.sandbox.conftest import RESULTS, WORKER, Grader, own_containers, results, tar_gz
from tests.sandbox.unreliable import Relay

pytestmark = pytest.mark.docker

WRITE_RESULTS = results(f"echo '{RESULTS.strip()}' > results.json")
BURN = """python3 - <<'END'
import time
while time.process_time() < {cpu_s}: pass
END"""


@pytest.fixture(params=["layer", "archive"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files go in and out by the container's layer where it can be seen, and by the archive calls elsewhere."""
    if request.param == "archive":
        monkeypatch.setattr(layer, "layer_of", lambda *_: None)
    return str(request.param)


# ------------------------------------------------------------------------------------------------- what comes out


def test_report_of_a_run_that_succeeds(grade: Grader, way: str) -> None:
    before = datetime.now(UTC)
    report = grade(f"echo to stdout\necho to stderr >&2\nsleep 0.2\n{WRITE_RESULTS}")
    assert report.results == RESULTS.encode()
    assert report.results_problem is None
    assert report.exit_status == 0
    assert not report.timed_out and not report.oom_killed
    assert sorted(report.output.splitlines()) == [b"to stderr", b"to stdout"]
    assert before <= report.started_at < report.finished_at <= datetime.now(UTC)
    assert 0.2 <= report.wall_s < 2
    assert report.wall_s == (report.finished_at - report.started_at).total_seconds()


def test_results_count_whatever_the_exit_status(grade: Grader) -> None:
    report = grade(f"{WRITE_RESULTS}\nexit 3")
    assert (report.exit_status, report.results) == (3, RESULTS.encode())


def test_no_results(grade: Grader, way: str) -> None:
    report = grade("exit 1")
    assert (report.exit_status, report.results, report.results_problem) == (1, None, None)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("ln -s /etc/passwd results.json", "symbolic link"),
        ("mkfifo results.json", "named pipe"),
        ("mkdir results.json", "folder"),
        ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"results.json\")'", "socket"),
        ("head -c 2000 /dev/zero > results.json", "2,000 bytes; 1,000 are allowed"),
    ],
)
def test_results_that_are_no_file_of_reasonable_size(grade: Grader, way: str, script: str, problem: str) -> None:
    report = grade(results(script), results_bytes=1000)
    assert report.results is None
    assert problem in str(report.results_problem)


def test_sparse_results_are_not_read(grade: Grader, way: str) -> None:
    began = time.monotonic()
    report = grade(results("truncate -s 10G results.json"), disk_bytes=20 * 1024 * MEBIBYTE)
    assert "10,737,418,240 bytes" in str(report.results_problem)
    assert time.monotonic() - began < 5


def test_results_folder_may_be_replaced(grade: Grader, way: str) -> None:
    script = f"rm -rf results; mkdir results; echo '{RESULTS.strip()}' > results/x; mv results/x results/results.json"
    assert grade(script, files={"results/results.json": "stale"}).results == RESULTS.encode()


def test_results_behind_a_link_stay_inside_the_container(grade: Grader, way: str) -> None:
    script = "rm -rf results; mkdir -p /etc/inside; echo mine > /etc/inside/results.json; ln -s /etc/inside results"
    assert grade(script).results == b"mine\n"


def test_results_of_the_image_that_a_run_only_touches(grade: Grader, way: str) -> None:
    report = grade("chmod 600 results/results.json", files={"results/results.json": RESULTS})
    assert report.results == RESULTS.encode()


def test_output_keeps_head_and_tail(grade: Grader) -> None:
    report = grade("echo begin; seq 1 200000; echo end", log_bytes=1000)
    assert report.output.startswith(b"begin\n1\n2\n")
    assert report.output.endswith(b"\n199999\n200000\nend\n")
    missing = re.search(rb"\n\[... ([\d,]+) bytes left out ...\]\n", report.output)
    assert missing is not None
    printed = len("begin\nend\n") + sum(len(f"{i}\n") for i in range(1, 200001))
    assert int(missing[1].replace(b",", b"")) == printed - 1000
    assert len(report.output) == 1000 + len(missing[0])


def test_output_that_fits_is_unchanged(grade: Grader) -> None:
    assert grade("printf 'a\\0b\\xff\\r\\n\\xe2\\x82'", log_bytes=10).output == b"a\0b\xff\r\n\xe2\x82"


def test_endless_output_is_bounded(grade: Grader) -> None:
    report = grade("yes 0123456789", timeout_s=2, log_bytes=5000)
    assert report.timed_out
    assert report.output.startswith(b"0123456789\n")
    assert 5000 < len(report.output) < 5100


# ------------------------------------------------------------------------------------------------- how it ends


def test_timeout_ends_a_program_that_ignores_signals(grade: Grader) -> None:
    script = f"trap '' TERM INT HUP\n{WRITE_RESULTS}\necho partial\nwhile true; do sleep 60; done"
    began = time.monotonic()
    report = grade(script, timeout_s=1)
    assert report.timed_out
    assert report.exit_status is None
    assert report.output == b"partial\n"
    assert 1 <= report.wall_s < 3
    assert time.monotonic() - began < 5


def test_program_that_closes_its_output_is_waited_for(grade: Grader) -> None:
    script = f"exec > /dev/null 2>&1 < /dev/null; sleep 1.5; {WRITE_RESULTS}"
    assert grade(script).results == RESULTS.encode()


def test_out_of_memory(grade: Grader) -> None:
    report = grade("exec python3 -c 'x = b\"1\" * (300 << 20)'", memory_bytes=64 * MEBIBYTE)
    assert report.oom_killed
    assert (report.exit_status, report.results) == (137, None)
    assert report.peak_memory_bytes is not None
    assert 60 * MEBIBYTE < report.peak_memory_bytes <= 65 * MEBIBYTE


def test_processes_left_behind_end_with_the_run(grade: Grader) -> None:
    report = grade(f"setsid nohup sleep 300 > /dev/null 2>&1 &\n{WRITE_RESULTS}")
    assert report.results == RESULTS.encode()
    assert report.wall_s < 5


def test_fork_bomb_is_bounded(grade: Grader) -> None:
    script = """python3 - <<'END'
import os, time
children = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(300)
        children += 1
except BlockingIOError:
    print(children)
END"""
    report = grade(script, pids=64)
    assert 30 < int(report.output) < 64


def test_missing_interpreter_is_the_autograders_fault(grade: Grader) -> None:
    report = grade("", archive=tar_gz({"run_autograder": "#!/usr/bin/no-such-python\n"}))
    assert report.exit_status == 127
    assert b"/autograder/run_autograder" in report.output


def test_script_without_shebang_runs_by_bash(grade: Grader) -> None:
    archive = tar_gz({"run_autograder": 'echo "${BASH_VERSION:0:1}"\n'})
    report = grade("", archive=archive, command=["/bin/bash", "/autograder/run_autograder"])
    assert report.output.strip().isdigit()


def test_cancelled_run_is_our_fault(grade: Grader, engine: Engine) -> None:
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(sandbox.RunCancelled):
        grade("sleep 60", cancelled=cancelled)
    assert time.monotonic() - began < 4
    with pytest.raises(sandbox.RunCancelled):
        grade("sleep 60", cancelled=cancelled)


# ------------------------------------------------------------------------------------------------- what it may do


def test_surroundings_of_a_run(grade: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENGRADER_MQTT_URL", "mqtt://secret")
    script = (
        "pwd; id -u; hostname; tty; wc -c; ls -d submission_metadata.json submission/a.py; env; cat /proc/1/environ"
    )
    report = grade(script, files={"submission_metadata.json": "{}", "submission/a.py": "pass"})
    lines = report.output.decode().splitlines()
    assert lines[:7] == [
        *("/autograder", "0", "autograder", "not a tty", "0"),
        *("submission/a.py", "submission_metadata.json"),
    ]
    environment = dict(line.split("=", 1) for line in lines[7:] if "\0" not in line)
    assert environment["LANG"] == "C.UTF-8"
    assert set(environment) <= {"PATH", "HOME", "HOSTNAME", "LANG", "PWD", "SHLVL", "_", "DEBIAN_FRONTEND"}
    assert b"secret" not in report.output


@pytest.mark.parametrize(
    "command",
    [
        "runuser -u student -- id -un",
        "su student -c 'id -un'",
        "su - student -c 'id -un'",
        "runuser -l student -c 'id -un'",
    ],
)
def test_autograder_may_drop_to_a_student_user(grade: Grader, command: str) -> None:
    script = "set -e\nadduser --quiet --disabled-password --gecos '' student\nchown -R student submission\n"
    script += f"chmod 700 source 2> /dev/null || true\n{command}\nsu student -c 'kill 1 2> /dev/null || echo refused'"
    report = grade(script, files={"submission/a.py": "pass"})
    assert report.output.splitlines()[0] == b"student"
    assert report.output.splitlines()[-1] == b"refused"
    assert report.exit_status == 0


def test_root_file_system_is_writable(grade: Grader) -> None:
    report = grade("echo '#!/bin/sh\necho installed' > /usr/local/bin/tool && chmod +x /usr/local/bin/tool && tool")
    assert report.output == b"installed\n"


def test_root_inside_is_nothing_outside(grade: Grader) -> None:
    script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'\n"
    for attempt in (
        "mknod /tmp/d b 1 1",
        "mount -t tmpfs none /mnt",
        "unshare --net true",
        "echo 1 > /proc/sys/vm/swappiness",
    ):
        script += f"({attempt}) 2> /dev/null && echo 'allowed: {attempt}'\n"
    lines = grade(script).output.decode().splitlines()
    numbers = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7}
    numbers["NET_BIND_SERVICE"] = 10
    mask = f"{sum(1 << numbers[name] for name in sandbox.CAPABILITIES):016x}"
    assert lines == [f"CapEff:{mask}", f"CapBnd:{mask}", "NoNewPrivs:1", "Seccomp:2"]


def test_no_network_unless_asked_for(grade: Grader) -> None:
    script = "ls /sys/class/net; grep -c 00000000 /proc/net/route"
    assert grade(script).output.split() == [b"lo", b"0"]
    assert {b"eth0", b"lo"} < set(grade(script, network=True).output.split())


def test_limits_are_in_force(grade: Grader, engine: Engine) -> None:
    report = grade("ulimit -c; ulimit -n; ulimit -Hn; ulimit -f; df /dev/shm --output=size", open_files=77)
    assert report.output.split()[:4] == [b"0", b"77", b"77", b"2097152"]
    limits = dataclasses.replace(Limits(), cpus=0.25, memory_bytes=100 * MEBIBYTE, pids=9, runtime="runc")
    host = sandbox._container(engine, "image", ["command"], limits, None)["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 100 * MEBIBYTE
    assert (host["NanoCpus"], host["PidsLimit"], host["Runtime"]) == (250_000_000, 9, "runc")


def test_cpu_share_is_in_force(grade: Grader) -> None:
    report = grade(BURN.format(cpu_s=0.3), cpus=0.25)
    assert report.wall_s > 2.5 * 0.3


@pytest.mark.parametrize("then", ["sleep 60", "exit 0"])
def test_files_beyond_the_disk_limit_end_the_run(grade: Grader, then: str) -> None:
    script = f"{WRITE_RESULTS}\nfor i in 1 2 3 4; do head -c 30M /dev/zero > /root/$i; done; {then}"
    report = grade(script, disk_bytes=64 * MEBIBYTE)
    assert (report.results, report.exit_status, report.timed_out) == (None, None, False)
    assert "beyond 64 MiB" in str(report.results_problem)
    assert report.wall_s < 20


def test_one_file_beyond_the_disk_limit_fails_to_grow(grade: Grader) -> None:
    report = grade("head -c 30M /dev/zero > /root/x; stat -c %s /root/x", disk_bytes=10 * MEBIBYTE)
    assert report.output.splitlines()[-1] == str(10 * MEBIBYTE).encode()


def test_nearly_full_disk_of_the_machine_is_our_fault(grade: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "FLOOR_BYTES", 1 << 60)
    with pytest.raises(SandboxError, match="MiB are free"):
        grade("sleep 60")


# ------------------------------------------------------------------------------------------------- what it used


def test_cpu_time_of_runs_side_by_side(grade: Grader) -> None:
    used: dict[float, float] = {}

    def run(cpu_s: float) -> None:
        report = grade(BURN.format(cpu_s=cpu_s))
        assert report.usage_method == "cgroup"
        used[cpu_s] = report.cpu_s

    threads = [threading.Thread(target=run, args=(cpu_s,)) for cpu_s in (0.2, 0.6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # On top come the start of bash and Python, and the engine's own start of the container.
    assert 0.2 <= used[0.2] < 0.35
    assert 0.6 <= used[0.6] < 0.75


def test_peak_memory(grade: Grader) -> None:
    report = grade("python3 -c 'x = b\"1\" * (100 << 20); del x'")
    assert report.peak_memory_bytes is not None
    assert 100 * MEBIBYTE <= report.peak_memory_bytes < 130 * MEBIBYTE


def test_usage_is_sampled_where_cgroups_cannot_be_read(base_image: str, grade: Grader) -> None:
    with Engine() as other:
        other.facts = dataclasses.replace(other.facts, cgroup_driver="systemd")
        report = Grader(other, base_image)("python3 -c 'x = b\"1\" * (100 << 20)'\n" + BURN.format(cpu_s=1.5))
    assert report.usage_method == "stats"
    assert 0.3 < report.cpu_s < 2
    assert report.peak_memory_bytes is not None
    assert 0 < report.peak_memory_bytes < 200 * MEBIBYTE
    assert "samples" in report.warnings[0]


# ------------------------------------------------------------------------------------------------- what is left behind


def _leave_container(engine: Engine, image: str, run_id: int) -> str:
    labels = {sandbox.LABEL_WORKER: WORKER, sandbox.LABEL_RUN: str(run_id), sandbox.LABEL_ATTEMPT: "1"}
    config = {"Image": image, "Cmd": ["sleep", "300"], "Labels": labels, "HostConfig": {"NetworkMode": "none"}}
    name = {"name": f"greengrader-{WORKER}.{run_id}-1"}
    created = engine.ask("create", "POST", "/containers/create", params=name, body=config)
    engine.ask("start", "POST", f"/containers/{created['Id']}/start")
    return str(created["Id"])


def test_orphans_are_reaped_and_others_kept(grade: Grader, engine: Engine, base_image: str) -> None:
    orphan, kept = _leave_container(engine, base_image, 900), _leave_container(engine, base_image, 901)
    stale = hierarchies()[0].folder / ROOT / f"{WORKER}.902-1" / "container"
    other = hierarchies()[0].folder / ROOT / f"{WORKER}-other.902-1"
    stale.mkdir(parents=True)
    other.mkdir()
    try:
        assert sandbox.reap_orphans(engine, WORKER, {(901, 1)}) == 1
        assert [container["Id"] for container in own_containers(engine)] == [kept]
        assert not stale.parent.exists()
        assert other.exists()
        assert sandbox.reap_orphans(engine, f"{WORKER}-other", set()) == 0
        assert not other.exists()
    finally:
        assert sandbox.reap_orphans(engine, WORKER, set()) == 1
    with pytest.raises(EngineRefused, match="No such container"):
        engine.ask("describe", "GET", f"/containers/{orphan}/json")


def test_leftover_of_the_same_attempt_is_replaced(grade: Grader, engine: Engine, base_image: str) -> None:
    _leave_container(engine, base_image, 903)
    archive = tar_gz({"run_autograder": "#!/bin/sh\necho again\n"})
    script, limits = ["/autograder/run_autograder"], Limits()
    with sandbox.run(engine, base_image, script, limits, archive, run_id=903, attempt=1, worker=WORKER) as report:
        assert report.output == b"again\n"
        assert [container["State"] for container in own_containers(engine)] == ["exited"]


# ------------------------------------------------------------------------------------------------- the engine's faults


@pytest.mark.parametrize("how", ["kill", "stop?t=0", "kill?signal=TERM"])
def test_killed_by_somebody_else_is_no_result(engine: Engine, grade: Grader, how: str) -> None:
    """An operator's `docker kill` must never become a student's score of 0."""

    def kill() -> None:
        deadline = time.monotonic() + 20
        while not any(container["State"] == "running" for container in own_containers(engine)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        engine.ask("end it", "POST", f"/containers/{own_containers(engine)[0]['Id']}/{how}")

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SandboxError, match="somebody else"):
        grade("exec sleep 20")
    killer.join()


@pytest.mark.parametrize("signal_name", ["KILL", "TERM"])
def test_a_program_that_kills_itself_is_its_own_doing(grade: Grader, signal_name: str) -> None:
    report = grade(f"kill -{signal_name} $$")
    assert report.exit_status in (137, 143) and report.results is None and not report.oom_killed


def test_no_engine() -> None:
    with pytest.raises(ServiceUnavailable, match="no container engine answers at unix:///nowhere"):
        Engine("unix:///nowhere/docker.sock")


def test_missing_image_is_our_fault(grade: Grader) -> None:
    with pytest.raises(SandboxError, match=r"No such image|not found"):
        grade("true", image="greengrader/no-such-image:1")


def test_unknown_runtime_is_our_fault(grade: Grader) -> None:
    with pytest.raises(SandboxError, match="no-such-runtime"):
        grade("true", runtime="no-such-runtime")


def test_engine_lost_in_the_middle_of_a_run(engine: Engine, base_image: str, grade: Grader) -> None:
    with Relay() as relay, Engine(relay.url) as distant:
        threading.Timer(1.0, relay.close).start()
        with pytest.raises(SandboxError, match="did not"):
            Grader(distant, base_image)(f"{WRITE_RESULTS}\nsleep 60")
    assert json.dumps([container["State"] for container in own_containers(engine)]) == '["running"]'
    assert sandbox.reap_orphans(engine, WORKER, set()) == 1
