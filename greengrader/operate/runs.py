"""`rerun` and `cancel`: new runs of what is stored, and runs taken out of the queue."""

from greengrader.db import Run, Store
from greengrader.errors import GreenGraderError, NotFound
from greengrader.operate.desk import Commands, Desk, add_choice_of_submissions, declare
from greengrader.operate.status import missing

QUEUED = "state IN ('received', 'dispatched')"
CANCELLED = "cancelled by staff"


def add_commands(commands: Commands) -> None:
    parser = declare(
        commands, "rerun", rerun, "grade submissions again, as new runs",
        "Their earlier runs and results stay. What is being graded already is left alone.",
    )  # fmt: skip
    add_choice_of_submissions(parser)
    parser.add_argument(
        "--failed", action="store_true",
        help="only what was abandoned, or graded with another outcome than completed",
    )  # fmt: skip
    parser = declare(
        commands, "cancel", cancel, "take submissions out of the queue",
        "Only runs that wait can be cancelled; what a worker holds already is graded.",
    )  # fmt: skip
    add_choice_of_submissions(parser)


def rerun(desk: Desk) -> int:
    store, options = desk.store, desk.options
    if options.submission is not None:
        rows = store.table("result_export", "submission_id = %s", options.submission)
        if not rows:
            raise missing(options.submission)
    else:
        rows = [row for portion in store.exported(options.assignment) for row in portion]
        if not rows:
            raise NotFound(f"no submission of assignment {options.assignment} is here")
    if options.failed:
        rows = [row for row in rows if has_failed(row["state"], row["outcome"])]
    queued = 0
    for row in rows:
        if desk.stop:
            raise GreenGraderError(f"stopped before the end: {count(queued, 'run')} queued")
        newest = store.newest_run(row["submission_id"], row["assignment_id"])
        queued += newest is not None and store.rerun_submission(newest.submission_key) is not None
    if options.submission is not None and rows and not queued:
        raise GreenGraderError(f"submission {options.submission} is {rows[0]['state']}: nothing to run again yet")
    left = len(rows) - queued
    rest = f"; {count(left, 'submission')} left alone: being graded" if left else ""
    print(f"{count(queued, 'run')} queued{rest}")
    return 0


def has_failed(state: str, outcome: str | None) -> bool:
    """Whether the newest run, which is in `state`, ended without a completed result."""
    return state == "abandoned" or (state == "graded" and outcome != "completed")


def cancel(desk: Desk) -> int:
    store, options = desk.store, desk.options
    if options.submission is not None:
        condition, key, newest = "submission_id = %s", options.submission, store.newest_run(options.submission)
        if newest is None:
            raise missing(options.submission)
    else:
        condition, key, newest = "assignment_id = %s", options.assignment, None
    cancelled = cancel_queued(desk, store, condition, key)
    if newest and not cancelled:
        raise GreenGraderError(refusal(newest))
    print(f"{count(cancelled, 'run')} cancelled")
    return 0


def cancel_queued(desk: Desk, store: Store, condition: str, key: int) -> int:
    """How many queued runs were cancelled. In portions, until none is left: others may come meanwhile."""
    cancelled = 0
    while not desk.stop and (runs := store.table("run_status", f"{condition} AND {QUEUED}", key)):
        cancelled += sum(store.cancel_run(run["run_id"], CANCELLED) for run in runs)
    return cancelled


def refusal(run: Run) -> str:
    where = f" on {run.worker}" if run.worker and run.state in ("placed", "running") else ""
    return f"submission {run.submission_id} is {run.state}{where}: only what waits in the queue can be cancelled"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
