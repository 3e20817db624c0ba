"""dispatcher.py as staff call it."""

from pathlib import Path

import pytest

from tests.builders import build_payload
from tests.daemons.world import World, payload


def stored(world: World, *submission_ids: int, **about: int) -> None:
    """Submissions taken in by the real ingest, which is stopped again."""
    ingest = world.start("ingest").ready()
    for submission_id in submission_ids:
        world.publish(payload(submission_id, **about))
        world.wait_state(submission_id, "received", "dispatched")
    assert ingest.terminate() == 0


def test_alone_it_takes_the_latest_pending(world: World) -> None:
    stored(world, 1, 2)
    done = world.run("dispatcher")
    assert done.returncode == 0 and "submission 2 is dispatched" in done.stdout
    assert world.status(1)["state"] == "received" and world.status(2)["state"] == "dispatched"


def test_nothing_pending_is_exit_1_with_one_line(world: World) -> None:
    done = world.run("dispatcher")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "no submission is pending\n")


def test_by_submission_and_by_assignment_and_submission(world: World) -> None:
    stored(world, 1, 2)
    assert world.run("dispatcher", "1").returncode == 0
    assert world.run("dispatcher", "7", "2").returncode == 0
    assert [world.status(i)["state"] for i in (1, 2)] == ["dispatched", "dispatched"]


def test_not_found_is_exit_1_with_one_line(world: World) -> None:
    stored(world, 1)
    for ids in (["99"], ["8", "1"]):
        done = world.run("dispatcher", *ids)
        assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done


def test_twice_dispatches_once(world: World) -> None:
    stored(world, 1)
    world.run("dispatcher", "1")
    again = world.run("dispatcher", "1")
    assert again.returncode == 0 and "dispatched already" in again.stdout
    assert len(world.store.run_events(world.store.newest_run(1).run_id)) == 2


def test_rerun_waits_for_the_open_run(world: World) -> None:
    stored(world, 1)
    refused = world.run("dispatcher", "1", "--rerun")
    assert refused.returncode == 1 and "already" in refused.stderr


def test_load_writes_the_files_as_autograder_would_look_and_dispatches_nothing(world: World, tmp_path: Path) -> None:
    stored(world, 1)
    target = tmp_path / "debug"
    done = world.run("dispatcher", "1", "--load", str(target))
    assert done.returncode == 0, done.stderr
    assert (target / "submission/hello.txt").read_text() == "submission 1\n"
    assert (target / "run_autograder").read_text().startswith("#!/bin/sh")
    assert list((target / "results").iterdir()) == []
    assert (target / "submission_metadata.json").is_file()
    assert world.status(1)["state"] == "received"
    again = world.run("dispatcher", "1", "--load", str(target))
    assert again.returncode == 1 and "Traceback" not in again.stderr


def test_watch_goes_by_priority_then_deadline_then_age(world: World) -> None:
    stored(world, 1, 2, assignment_id=10)
    stored(world, 3, assignment_id=11)
    stored(world, 4, assignment_id=12)
    world.store.set_assignment(11, {"priority": 5})
    world.store.set_assignment(12, {"deadline": "2030-01-01T00:00:00Z"})
    watch = world.start("dispatcher", "--watch").ready()
    for submission_id in (1, 2, 3, 4):
        world.wait_state(submission_id, "dispatched")
    order = sorted((1, 2, 3, 4), key=lambda i: world.store.run_events(world.store.newest_run(i).run_id)[-1]["at"])
    assert order == [3, 4, 1, 2]
    assert watch.terminate() == 0


def test_watch_is_woken_by_a_new_submission(world: World) -> None:
    world.start("dispatcher", "--watch").ready()
    stored(world, 1)
    world.wait_state(1, "dispatched", timeout_s=5)  # its fallback look is a minute away


def test_kubernetes_without_a_cluster_is_a_clear_error_and_leaves_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    stored(world, 1)
    world.store.set_assignment(7, {"backend": "kubernetes"})
    done = world.run("dispatcher", "1")  # hands over to pod.sh
    assert done.returncode == 2 and "no kubeconfig at /nowhere/config" in done.stderr, done
    assert len(done.stderr.splitlines()) == 1
    assert world.status(1)["state"] == "received"


def test_a_payload_without_run_autograder_is_abandoned_with_its_reason(world: World) -> None:
    ingest = world.start("ingest").ready()
    nothing_to_grade_with = ["gradescope_data/autograder/source/run_autograder"]
    world.publish(build_payload(metadata={"id": 5}, run_autograder=None, without=nothing_to_grade_with))
    world.wait_state(5, "received")
    assert ingest.terminate() == 0
    world.start("dispatcher", "--watch").ready()
    row = world.wait_state(5, "abandoned")
    assert "run_autograder" in row["error"]
