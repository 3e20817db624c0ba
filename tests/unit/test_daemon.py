"""Life of a process: small scripts, run as processes, end with the code that their fault has, and one clear line."""

import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from greengrader import daemon, errors
from greengrader.daemon import Outage, Stop
from greengrader.errors import ServiceUnavailable

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<level>[A-Z]+) (?P<daemon>\S+) (?P<event>.*)")
HEAD = """import logging, os, signal, sys
from greengrader import daemon
from greengrader.errors import *
log = logging.getLogger("greengrader")
def main(argv, stop):
"""
FAULTS = {
    "GreenGraderError('x')": 1,
    "SettingsError('x')": 2,
    "ServiceUnavailable('x')": 3,
    "SchemaMismatch('x')": 4,
    "PayloadRejected('x')": 1,
    "MessageInvalid('x')": 1,
    "NotFound('x')": 1,
    "AutograderMissing('a' * 64)": 1,
    "AutograderBroken('x', 'a long log')": 1,
    "SandboxError('x')": 1,
}


def script(directory: Path, body: str) -> list[str]:
    """Command line of a script whose `main` has this body."""
    path = directory / "small.py"
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    path.write_text(f"{HEAD}{indented}\nif __name__ == '__main__':\n    daemon.run(main)\n")
    return [sys.executable, str(path)]


def run(directory: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*script(directory, body), *arguments],
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


def start(directory: Path, body: str) -> subprocess.Popen[str]:
    """The script as it runs, as soon as it has printed a line."""
    process = subprocess.Popen(
        script(directory, body), env={"PYTHONPATH": str(ROOT), "PATH": os.defpath},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


# -------------------------------------------------------------------------------------------------------- exit codes
@pytest.mark.parametrize(("raised", "code"), FAULTS.items())
def test_every_fault_has_its_exit_code_and_one_line(tmp_path: Path, raised: str, code: int) -> None:
    ended = run(tmp_path, f"raise {raised}")
    assert ended.returncode == code
    (line,) = ended.stderr.splitlines()
    parsed = LINE.fullmatch(line)
    assert parsed and (parsed["level"], parsed["daemon"]) == ("ERROR", "small")
    assert "long log" not in line


def test_no_fault_was_forgotten_here() -> None:
    faults = {cls.__name__ for cls in vars(errors).values() if isinstance(cls, type)}
    assert faults == {raised.partition("(")[0] for raised in FAULTS}


@pytest.mark.parametrize(("body", "code"), [("return 0", 0), ("return 7", 7), ("sys.exit(5)", 5)])
def test_otherwise_it_is_mains_own(tmp_path: Path, body: str, code: int) -> None:
    ended = run(tmp_path, body)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_a_bug_is_exit_1_with_its_traceback(tmp_path: Path) -> None:
    ended = run(tmp_path, "log.info('before')\nreturn 1 // 0")
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr and "Traceback" in ended.stderr and "small.py" in ended.stderr
    assert any((parsed := LINE.fullmatch(line)) and "bug" in parsed["event"] for line in ended.stderr.splitlines())


def test_arguments_reach_main(tmp_path: Path) -> None:
    assert run(tmp_path, "print(argv)\nreturn 0", "a", "-b").stdout == "['a', '-b']\n"


def test_usage_is_exit_2(tmp_path: Path) -> None:
    body = "import argparse\nargparse.ArgumentParser().parse_args(argv)\nreturn 0"
    assert run(tmp_path, body, "--no-such-option").returncode == 2


@pytest.mark.parametrize("lines", [1, 100_000], ids=["short", "long"])
def test_a_reader_that_leaves_is_no_fault(tmp_path: Path, lines: int) -> None:
    """`greengrader status | head -1`, and what fits into a buffer is only written at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        ended = subprocess.run(
            script(tmp_path, f"for number in range({lines}):\n    print(number)\nreturn 0"),
            env={"PYTHONPATH": str(ROOT)}, stdout=output, stderr=subprocess.PIPE, timeout=20, check=False,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_another_broken_pipe_is_a_bug(tmp_path: Path) -> None:
    """A socket's, for example: a daemon that ends by it must not look as if it had been asked to."""
    ended = run(tmp_path, "reader, writer = os.pipe()\nos.close(reader)\nos.write(writer, b'x')")
    assert ended.returncode == 1
    assert "BrokenPipeError" in ended.stderr


# ----------------------------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "print('up', flush=True)\nstop.wait(20)\nprint('bye')\nreturn 0")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "bye\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_one_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    body = "print('up', flush=True)\nstop.wait(20)\nprint('stopping', flush=True)\nselect = __import__('select')\n"
    process = start(tmp_path, body + "select.select([], [], [], 30)\nreturn 0")
    process.send_signal(number)
    assert process.stdout is not None and process.stdout.readline() == "stopping\n"
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    process.communicate()


# -------------------------------------------------------------------------------------------------------------- logs
def test_a_log_entry_is_one_line_on_standard_error(tmp_path: Path) -> None:
    body = "daemon.log_to_stderr('ingest', 'INFO')\nlog.info('received run=%d', 7)\nlog.warning('two\\nlines')\n"
    ended = run(tmp_path, body + "log.debug('not this')\nlogging.getLogger('paho').info('nor this')\nreturn 0")
    first, second = ended.stderr.splitlines()
    assert ended.stdout == ""
    parsed = LINE.fullmatch(first)
    assert parsed and parsed.groupdict() == {"level": "INFO", "daemon": "ingest", "event": "received run=7"}
    parsed = LINE.fullmatch(second)
    assert parsed and (parsed["level"], parsed["event"]) == ("WARNING", "two | lines")


def test_a_fault_of_several_lines_is_one_line_too(tmp_path: Path) -> None:
    assert run(tmp_path, "raise SettingsError('one\\ntwo')").stderr.count("\n") == 1


def test_times_are_utc(tmp_path: Path) -> None:
    before = time.time()
    ended = subprocess.run(
        script(tmp_path, "log.warning('now')\nreturn 0"),
        env={"PYTHONPATH": str(ROOT), "TZ": "Pacific/Auckland"}, capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    stamped = time.strftime("%Y-%m-%dT%H", time.gmtime(before))
    assert ended.stderr.startswith((stamped, time.strftime("%Y-%m-%dT%H")))


def test_debug_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    ended = run(tmp_path, "daemon.log_to_stderr('x', 'DEBUG')\nlog.debug('details')\nreturn 0")
    assert " DEBUG x details" in ended.stderr


# ----------------------------------------------------------------------------------------------------------- threads
def test_a_threads_fault_is_handed_on() -> None:
    faults: list[BaseException] = []

    def broken() -> None:
        raise ZeroDivisionError

    for work in (lambda: None, broken):
        worker = daemon.thread("slot-1", work, faults.append)
        assert worker.daemon and worker.name == "slot-1" and not worker.is_alive()
        worker.start()
        worker.join(10)
    assert [type(fault) for fault in faults] == [ZeroDivisionError]


# -------------------------------------------------------------------------------------------------------------- stop
def test_stop_is_seen_everywhere() -> None:
    stop = Stop()
    told: list[str] = []
    stop.tell(lambda: told.append("before"))
    assert not stop and not stop.wait(0)
    stop.set()
    stop.set()
    stop.tell(lambda: told.append("after"))
    assert stop and stop.wait(0) and stop.wait(0)
    assert select.select([stop], [], [], 0)[0] == [stop]
    assert told == ["before", "after"], "each once"


def test_stop_wakes_who_waits() -> None:
    stop = Stop()
    threading.Timer(0.05, stop.set).start()
    assert stop.wait(20)


# ------------------------------------------------------------------------------------------------------------ outage
class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.pauses_s = 1000.0, list[float]()
        monkeypatch.setattr("greengrader.daemon.time.monotonic", lambda: self.now_s)

    def wait(self, timeout_s: float) -> bool:
        self.pauses_s.append(timeout_s)
        self.now_s += timeout_s
        return False


def outage_of(clock: Clock, limit_s: float) -> Outage:
    return Outage(limit_s, clock)  # type: ignore[arg-type]  # all that it needs of Stop


def test_patience_grows_and_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(monkeypatch)
    outage = outage_of(clock, 60)
    fault = ServiceUnavailable("Postgres does not answer")
    with pytest.raises(ServiceUnavailable) as given_up:
        for _ in range(1000):
            outage.wait(fault)
    assert given_up.value is fault
    assert 60 <= clock.now_s - 1000 < 67
    assert 0.07 <= clock.pauses_s[0] <= 0.13, "a hiccup costs little"
    assert all(3.5 <= pause <= 6.5 for pause in clock.pauses_s[-5:]), "a long one few tries, and not all at once"
    assert len(set(clock.pauses_s)) > 5, "jittered"
    (line,) = caplog.messages
    assert "Postgres does not answer" in line


def test_what_is_over_is_forgotten(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "greengrader")
    clock = Clock(monkeypatch)
    outage = outage_of(clock, 60)
    outage.over()
    assert caplog.messages == [], "nothing was away"
    for _ in range(3):
        for _ in range(8):
            outage.wait(ServiceUnavailable("away"))
        outage.over()
    assert len(caplog.messages) == 6
    assert clock.pauses_s[8] < 0.2, "it begins anew"


def test_stop_ends_the_patience() -> None:
    stop = Stop()
    stop.set()
    began = time.monotonic()
    outage = Outage(600, stop)
    for _ in range(20):
        outage.wait(ServiceUnavailable("away"))
    assert time.monotonic() - began < 5
