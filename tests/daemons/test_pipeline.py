"""From mosquitto_pub to the graded row, with real containers: every outcome, every fault of ours, and the books."""

import json
import time

import pytest

from tests.daemons.world import World, payload, wait_until

pytestmark = pytest.mark.docker

_ids = iter(range(100, 10**6))


def shell(*lines: str) -> str:
    return "\n".join(["#!/bin/sh", *lines, ""])


def grade(stack: World, script: str, score: float = 1.0, **settings: object) -> dict[str, object]:
    """The status row and the result of a submission to an assignment with these settings."""
    submission_id = next(_ids)
    assignment_id = 10_000 + submission_id
    stack.store.set_assignment(assignment_id, settings)
    stack.publish(payload(submission_id, score, script=script, assignment_id=assignment_id))
    row = stack.wait_graded(submission_id, timeout_s=90)
    run = stack.store.newest_run(submission_id)
    assert run is not None
    found = stack.store.table("results", "run_id = %s", run.run_id)
    return {**(found[0] if found else {}), **row}


def test_a_completed_run_and_its_books(stack: World) -> None:
    row = grade(stack, shell("echo working", 'echo \'{"score": 3, "tests": []}\' > results/results.json'), score=3)
    assert (row["state"], row["outcome"], row["score"], row["gradescope_score"]) == ("graded", "completed", 3, 3)
    assert (row["parity"], row["exit_status"], row["attempt"], row["worker"]) == ("match", 0, 1, "worker-1")
    assert row["output"] == "working\n" and row["results"] == {"score": 3, "tests": []}
    # energy by the formula of the reference, from the inputs that stand beside it
    joules = (
        row["cpu_s"] * (row["watts_max"] - row["watts_min"])
        + row["wall_s"] * row["cpus"] * row["watts_min"]
        + row["wall_s"] * row["memory_bytes"] / 1e9 * 0.392
    )
    assert row["energy_usage"] == pytest.approx(joules / 3.6e6 * row["pue"])
    assert row["energy_kwh"] == row["energy_usage"] > 0
    assert row["carbon_emission"] == pytest.approx(row["energy_usage"] * row["carbon_intensity"])
    assert row["carbon_source"] and row["usage_method"] == "cgroup"


def test_parity_that_differs_is_told(stack: World) -> None:
    row = grade(stack, shell("echo '{\"score\": 2}' > results/results.json"), score=5)
    assert (row["score"], row["gradescope_score"], row["parity"]) == (2, 5, "differs")


def test_a_failing_exit_with_valid_results_counts(stack: World) -> None:
    row = grade(stack, shell("echo '{\"score\": 1}' > results/results.json", "exit 3"))
    assert (row["outcome"], row["score"], row["exit_status"]) == ("completed", 1, 3)


def test_timed_out(stack: World) -> None:
    row = grade(stack, shell("trap '' TERM", "echo before", "sleep 60"), timeout_s=1)
    assert (row["state"], row["outcome"], row["score"]) == ("graded", "timed_out", 0)
    assert row["output"] == "before\n" and 1 <= row["wall_s"] < 10


def test_out_of_memory(stack: World) -> None:
    script = "#!/usr/bin/python3\nhoard = bytearray(200 * 1024 * 1024)\n"
    row = grade(stack, script, memory_bytes=64 * 1024 * 1024)
    assert (row["state"], row["outcome"], row["score"]) == ("graded", "out_of_memory", 0)
    assert row["oom_killed"] is True


def test_no_results_and_invalid_results(stack: World) -> None:
    none = grade(stack, shell("echo 'no grade today'"))
    assert (none["outcome"], none["score"], none["output"]) == ("no_results", 0, "no grade today\n")
    invalid = grade(stack, shell("echo 'score: 3' > results/results.json"))
    assert (invalid["outcome"], invalid["score"], invalid["raw_results"]) == ("invalid_results", 0, "score: 3\n")


def test_an_autograder_that_cannot_be_built_is_abandoned_with_its_log(stack: World) -> None:
    from tests.builders import build_payload

    submission_id = next(_ids)
    broken = {"setup.sh": "#!/bin/bash\necho preparing\nno-such-command\nexit 7\n"}
    stack.publish(build_payload(metadata={"id": submission_id}, source=broken))
    row = stack.wait_graded(submission_id, timeout_s=120)
    assert (row["state"], row["score"], row["outcome"]) == ("abandoned", None, None)
    assert "setup.sh" in str(row["error"]) or "build" in str(row["error"])
    digest = stack.store.newest_run(submission_id).autograder_digest
    (autograder,) = stack.store.table("autograders", "digest = %s", digest)
    assert "no-such-command" in autograder["build_log"]


def test_the_network_is_off_unless_the_assignment_asks(stack: World) -> None:
    script = shell('test "$(ls /sys/class/net)" = lo && n=0 || n=1', 'echo "{\\"score\\": $n}" > results/results.json')
    assert grade(stack, script)["score"] == 0
    assert grade(stack, script, network=True)["score"] == 1


def test_cpu_share_of_the_assignment_is_in_force(stack: World) -> None:
    burn = shell("timeout 1 sh -c 'while :; do :; done'", "echo '{\"score\": 1}' > results/results.json")
    row = grade(stack, burn, cpus=0.25)
    assert row["cpus"] == 0.25
    assert row["cpu_s"] < 0.5 * row["wall_s"]


def test_a_rerun_is_a_new_run_with_a_result_of_its_own(stack: World) -> None:
    submission_id = next(_ids)
    stack.publish(payload(submission_id))
    stack.wait_graded(submission_id)
    done = stack.run("dispatcher", str(submission_id), "--rerun", "--wait")
    assert done.returncode == 0, done.stderr
    assert "graded" in done.stdout and "completed, score 1" in done.stdout
    runs = stack.store.table("runs JOIN submissions USING (submission_key)", "submission_id = %s", submission_id)
    assert [run["state"] for run in runs] == ["graded", "graded"]


def test_a_student_that_forks_itself_again_is_not_heard(stack: World) -> None:
    """The snippet at the end of run_autograder, in either form, is cut out: no second submission, no endless loop."""
    from tests.builders import PLAIN_SNIPPET

    row = grade(stack, shell("echo '{\"score\": 1}' > results/results.json") + PLAIN_SNIPPET)
    assert (row["outcome"], row["score"]) == ("completed", 1)
    assert "mosquitto" not in str(row["output"])


def test_a_worker_without_room_on_its_disk_takes_nothing(stack: World) -> None:
    stack.run("register", worker="worker-2")
    guarded = stack.start("execute", worker="worker-2", min_free_disk_bytes=str(2**60)).ready()
    guarded.says("disk full")
    assert not any(worker.worker == "worker-2" and worker.accepting for worker in stack.store.workers())
    assert guarded.terminate() == 0


def test_sigterm_hands_back_what_would_take_too_long(stack: World) -> None:
    """A second worker is stopped in the middle of a long run: the run goes back without costing an attempt."""
    stack.store.drain_worker("worker-1", True)
    worker = stack.start_worker("worker-2", stop_grace_s="0.5")
    try:
        submission_id = next(_ids)
        slow = shell("sleep 3", "echo '{\"score\": 1}' > results/results.json")
        stack.publish(payload(submission_id, script=slow))
        stack.wait_state(submission_id, "running")
        worker.says("running run=")
        assert worker.terminate(20) == 0
        row = stack.wait_state(submission_id, "dispatched", timeout_s=5)
        assert stack.store.newest_run(submission_id).failures == 0 and "worker stops" in row["error"]
    finally:
        stack.store.drain_worker("worker-1", False)
    assert stack.wait_graded(submission_id)["score"] == 1


def test_sigterm_lets_a_short_run_end(stack: World) -> None:
    stack.store.drain_worker("worker-1", True)
    worker = stack.start_worker("worker-2", stop_grace_s="20")
    try:
        submission_id = next(_ids)
        stack.publish(payload(submission_id, script=shell("sleep 1", "echo '{\"score\": 1}' > results/results.json")))
        stack.wait_state(submission_id, "running")
        worker.says("running run=")
        began = time.monotonic()
        assert worker.terminate(20) == 0
        assert time.monotonic() - began < 15
        row = stack.wait_state(submission_id, "graded", timeout_s=10)
        assert (row["worker"], row["score"], row["attempt"]) == ("worker-2", 1, 1)
    finally:
        stack.store.drain_worker("worker-1", False)


def test_logs_hold_ids_and_no_person(stack: World) -> None:
    """Names and addresses of the students of all the submissions above stand in no log."""
    people = {"Ada", "Lovelace", "ada@example.edu", "A1815"}
    (row,) = stack.store.table("submissions", limit=1)
    assert people & set(json.dumps(row["metadata"]).replace('"', " ").split()), "the payloads do name somebody"
    for log in stack.directory.glob("*.log"):
        text = log.read_text()
        assert not [word for word in people if word in text], log
        assert stack.submit_password not in text


def test_nothing_of_a_finished_run_is_left_on_the_engine(stack: World) -> None:
    import subprocess

    label = (stack.directory / "state/worker-worker-1/engine-name").read_text()

    def left() -> str:
        return subprocess.run(
            ["docker", "ps", "-aq", "--filter", f"label=greengrader.worker={label}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    wait_until(lambda: left() == "", 10, left)
