"""Minimal valid rows for tests that need a database: each builder takes a run one state further, by Store's methods.

run = placed(store, submission_id=1001)         received, dispatched, leased to `worker-1`
graded(store, submission_id=1002, score=3.0)    with a result
"""

import hashlib
from typing import Any

from greengrader.db import NewSubmission, Placed, Received, Run, Store

WORKER = "worker-1"
SUBMISSION = 1001
ASSIGNMENT = 7
BASE_IMAGE = "greengrader/base:debian-12"
LEASE_S = 30.0
DIGEST = "a" * 64
"""Of the autograder that every run here is graded by, where a test names no other."""


def new_submission(
    submission_id: int = SUBMISSION, assignment_id: int = ASSIGNMENT, *, payload: bytes | None = None, **columns: Any
) -> NewSubmission:
    """A submission as ingest would store it; `columns` replace what receive_submissions reads."""
    zipped = payload if payload is not None else f"zip of submission {submission_id}".encode()
    minimal = {
        "submission_id": submission_id,
        "payload_digest": hashlib.sha256(zipped).hexdigest(),
        "assignment_id": assignment_id,
        "course_id": 3,
        "assignment_title": "Recursion",
        "assignment_outline": None,
        "student_ids": [51],
        "student_names": ["Ada Lovelace"],
        "student_emails": ["ada@example.edu"],
        "submission_method": "upload",
        "submitted_at": "2026-03-01T10:00:00+00:00",
        "sender_ip": "172.17.0.2",
        "metadata": {"id": submission_id, "assignment": {"id": assignment_id}},
        "gradescope_results": {"score": 8.0},
        "gradescope_score": 8.0,
        "payload_bytes": len(zipped),
    }
    return NewSubmission(minimal | columns, zipped)


def received(
    store: Store, submission_id: int = SUBMISSION, assignment_id: int = ASSIGNMENT, **columns: Any
) -> Received:
    """A run that waits for the dispatcher."""
    (stored,) = store.receive_submissions([new_submission(submission_id, assignment_id, **columns)])
    assert stored is not None, f"submission {submission_id} with this payload is there already"
    return stored


def prepare(store: Store, run: Received | Run, digest: str = DIGEST) -> Received:
    """The run, which now waits for a place: its autograder and its files are stored, as the dispatcher does it."""
    store.add_autograder(digest, "derived", BASE_IMAGE, [], b"tar.gz of the autograder")
    store.add_submission_archive(run.submission_key, b"tar.gz of the submission")
    assert store.dispatch_run(run.run_id, digest), f"run {run.run_id} is not received any more"
    return Received(run.submission_key, run.run_id)


def dispatched(store: Store, submission_id: int = SUBMISSION, *, digest: str = DIGEST, **columns: Any) -> Received:
    """A run that waits for a place."""
    return prepare(store, received(store, submission_id, **columns), digest)


def worker(store: Store, name: str = WORKER, *, slots: int = 2, alive: bool = True, **columns: Any) -> str:
    """The name of a worker that is registered and, if alive, takes jobs."""
    minimal = {
        "worker": name,
        "node_ip": "10.0.0.9",
        "cpu_model_name": "Example CPU",
        "cpu_clock_rate": 2400.0,
        "cpu_sockets": 1,
        "cpu_cores": 4,
        "cache_size": 8192,
        "memory_size": 16384,
        "region": "home",
        "zone": "",
        "watts_min": 1.0,
        "watts_max": 4.0,
        "slots": slots,
    }
    store.register_worker(minimal | columns)
    if alive:
        assert store.see_worker(name, slots, True, [])
    return name


def place(
    store: Store, run: Received, name: str = WORKER, reason: str = "it was free", lease_s: float = LEASE_S
) -> Placed:
    """The run, now leased to a worker that is registered and has a free slot."""
    (leased,) = store.place_runs([(run.run_id, name, reason)], lease_s)
    return leased


def placed(
    store: Store, submission_id: int = SUBMISSION, *, name: str = WORKER, lease_s: float = LEASE_S, **columns: Any
) -> Placed:
    """A run that is leased to the worker `name`, which is registered where nobody did it yet."""
    if not any(known.worker == name for known in store.workers()):
        worker(store, name, slots=100)
    return place(store, dispatched(store, submission_id, **columns), name, lease_s=lease_s)


def running(store: Store, submission_id: int = SUBMISSION, **columns: Any) -> Placed:
    """A run that its worker said it has started."""
    run = placed(store, submission_id, **columns)
    assert store.start_run(run.run_id, run.attempt, run.worker)
    return run


def result(**columns: Any) -> dict[str, Any]:
    """The columns of `results` as the receiver hands them to finish_run; `columns` replace some."""
    minimal = {
        "outcome": "completed",
        "score": 8.0,
        "max_score": 10.0,
        "parity": "match",
        "results": {"score": 8.0, "output": "well done"},
        "output": "all tests ran\n",
        "exit_status": 0,
        "oom_killed": False,
        "started_at": "2026-03-01T10:00:10+00:00",
        "finished_at": "2026-03-01T10:00:12+00:00",
        "wall_s": 2.0,
        "cpu_s": 0.5,
        "peak_memory_bytes": 20 * 1024 * 1024,
        "usage_method": "cgroup",
        "cpus": 0.5,
        "memory_bytes": 768 * 1024 * 1024,
        "watts_min": 1.0,
        "watts_max": 4.0,
        "pue": 1.0,
        "energy_method": "cpu time, watts registered by the worker",
        "energy_usage": 1.5e-6,
        "carbon_intensity": 400.0,
        "carbon_source": "setting GREENGRADER_HOME_INTENSITY_GCO2E_PER_KWH",
        "carbon_emission_from_compute": 6e-4,
        "carbon_emission": 6e-4,
        "region": "home",
        "zone": "",
        "node": WORKER,
        "node_ip": "10.0.0.9",
        "warnings": [],
    }
    return minimal | columns


def finish(store: Store, run: Placed, **columns: Any) -> Placed:
    """The run, now graded with a result of which `columns` replace some."""
    assert store.finish_run(run.run_id, run.attempt, run.worker, result(**columns)), f"run {run.run_id} is not held"
    return run


def graded(store: Store, submission_id: int = SUBMISSION, assignment_id: int = ASSIGNMENT, **columns: Any) -> Placed:
    """A graded run with a result of which `columns` replace some."""
    return finish(store, running(store, submission_id, assignment_id=assignment_id), **columns)


def abandoned(
    store: Store, submission_id: int = SUBMISSION, reason: str = "the disk is full", **columns: Any
) -> Received:
    """A run that was given up for a reason of ours."""
    run = received(store, submission_id, **columns)
    assert store.abandon_run(run.run_id, reason)
    return run
