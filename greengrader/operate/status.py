"""`status`: what became of submissions; of one with every detail, its way live, and what its autograder printed."""

import argparse
import sys
import time
from typing import Any

from greengrader.daemon import Stop
from greengrader.db import RUNS_CHANNEL, Run, Store
from greengrader.errors import NotFound
from greengrader.follow import follow, line
from greengrader.operate import quantities
from greengrader.operate.desk import Commands, Desk, declare, identifier
from greengrader.operate.tables import details, json_line, moment, printable, printable_lines, table

STATES = ("received", "dispatched", "placed", "running", "graded", "abandoned", "cancelled")
COLUMNS = (
    "submission_id", "assignment_id", "state", "outcome", "score", "gradescope_score", "attempt", "backend", "worker",
    "region", "energy", "received_at", "graded_at", "error",
)  # fmt: skip
IDENTITIES = ("student_ids", "student_names", "student_emails", "metadata")
PARITY = {"match": "the same", "differs": "differs", "no_reference": "not sent along"}
ARRIVAL_LIMIT_S = 60.0


def add_command(commands: Commands) -> None:
    parser = declare(
        commands, "status", run, "list submissions, or show one of them",
        "Without SUBMISSION: the newest ones as a table. With it: all that is known, its runs and their way.",
    )  # fmt: skip
    parser.add_argument("submission", nargs="?", type=identifier, metavar="SUBMISSION", help="Gradescope's id of it")
    parser.add_argument("--assignment", type=identifier, metavar="ID", help="only submissions of this assignment")
    parser.add_argument("--state", choices=STATES, help="only submissions in this state")
    parser.add_argument("--limit", type=identifier, default=50, metavar="N", help="rows at most (default: 50)")
    parser.add_argument("--json", action="store_true", help="JSON, a line for each submission")
    parser.add_argument("--identities", action="store_true", help="with the names of the students")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--log", action="store_true", help="print what its autograder printed")
    what.add_argument("--follow", action="store_true", help="show its way live, and then its result")
    parser.add_argument("--raw", action="store_true", help="with --log: as it is, terminal escapes included")


def run(desk: Desk) -> int:
    options = desk.options
    if options.submission is None:
        if options.log or options.follow or options.identities:
            desk.usage("--log, --follow and --identities need a SUBMISSION")
        return list_submissions(desk.store, options)
    if options.assignment or options.state:
        desk.usage("--assignment and --state are for the table, without SUBMISSION")
    if options.raw and not options.log:
        desk.usage("--raw goes with --log")
    if options.follow:
        return follow_submission(desk.store, options.submission, desk.stop)
    if options.log:
        return print_log(desk.store, options.submission, raw=options.raw)
    return show_submission(desk.store, options)


def list_submissions(store: Store, options: argparse.Namespace) -> int:
    chosen = {"assignment_id = %s": options.assignment, "state = %s::run_state": options.state}
    chosen = {condition: value for condition, value in chosen.items() if value is not None}
    where = " AND ".join(chosen) or "true"
    rows = store.table("submission_status", where, *chosen.values(), order="received_at DESC", limit=options.limit)
    if options.json:
        for row in rows:
            print(json_line(row))
        return 0
    for row in rows:
        row["energy"] = None if row["energy_kwh"] is None else quantities.energy(row["energy_kwh"])
    print(table(rows, COLUMNS) if rows else "no submissions")
    if len(rows) == options.limit:
        print(f"only the newest {options.limit} are shown; --limit N shows more", file=sys.stderr)
    return 0


# --------------------------------------------------------------------------------------------------- one submission
def show_submission(store: Store, options: argparse.Namespace) -> int:
    submissions = store.table("submissions", "submission_id = %s", options.submission, order="submission_key")
    if not submissions:
        raise missing(options.submission)
    runs = store.table("run_status", "submission_id = %s", options.submission, order="submission_key, run_id")
    for each in runs:
        each["events"] = store.run_events(each["run_id"])
        each["result"] = next(iter(store.table("results", "run_id = %s", each["run_id"])), None)
    if not options.identities:
        for submission in submissions:
            for column in IDENTITIES:
                del submission[column]
    if options.json:
        print(json_line({"submission_id": options.submission, "payloads": submissions, "runs": runs}))
        return 0
    for submission in submissions:
        print(describe_submission(submission))
        for each in runs:
            if each["submission_key"] == submission["submission_key"]:
                print(describe_run(each))
                if each["result"]:
                    print(describe_result(each["result"], submission["gradescope_score"]))
    return 0


def describe_submission(submission: dict[str, Any]) -> str:
    facts = [
        ("received", f"{moment(submission['received_at'])}, {quantities.memory(submission['payload_bytes'])}"),
        ("payload", submission["payload_digest"]),
        ("submitted", moment(submission["submitted_at"])),
        ("by", submission["submission_method"]),
        ("from", submission["sender_ip"]),
        ("students", ", ".join(submission.get("student_names", ()))),
        ("e-mail", ", ".join(submission.get("student_emails", ()))),
        ("Gradescope", f"score {quantities.points(submission['gradescope_score'])}"),
    ]
    return f"submission {submission['submission_id']} of assignment {submission['assignment_id']}\n{details(facts)}"


def describe_run(run: dict[str, Any]) -> str:
    digest = run["autograder_digest"]
    facts = [
        ("autograder", digest and f"{digest[:12]} ({run['autograder_origin']})"),
        ("backend", run["backend"]),
        ("error", run["error"]),
    ]
    events = "\n".join(f"    {printable(line(event))}" for event in run["events"])
    began = moment(run["created_at"])
    return "\n".join(filter(None, [f"run {run['run_id']}: {run['state']}, begun {began}", details(facts), events]))


def describe_result(result: dict[str, Any], gradescope_score: float | None) -> str:
    """What `status --follow` ends with: outcome, score, use of the machine, energy and emissions."""
    maximum = f" of {quantities.points(result['max_score'])}" if result["max_score"] is not None else ""
    intensity = "" if result["carbon_intensity"] is None else f"{result['carbon_intensity']:g} gCO2e/kWh, "
    source = f" ({intensity}{result['carbon_source']})" if result["carbon_source"] else ""
    parity = f"{quantities.points(gradescope_score)} ({PARITY[result['parity']]})"
    peak = quantities.memory(result["peak_memory_bytes"])
    exit_status = result["exit_status"]
    facts = [
        ("result", result["outcome"]),
        ("problem", result["problem"]),
        ("score", f"{quantities.points(result['score'])}{maximum}"),
        ("Gradescope", "not sent along" if gradescope_score is None else parity),
        ("exit", f"status {exit_status}" if exit_status else None),
        ("wall time", quantities.duration(result["wall_s"])),
        ("CPU time", quantities.duration(result["cpu_s"])),
        ("peak memory", f"{peak} of {quantities.memory(result['memory_bytes'])}"),
        ("energy", f"{quantities.energy(result['energy_usage'])} ({result['energy_method']})"),
        ("emissions", f"{quantities.emissions(result['carbon_emission'])}{source}"),
        ("place", ", ".join(filter(None, (result["node"], result["region"], result["zone"])))),
        *(("warning", warning) for warning in result["warnings"]),
    ]
    return details(facts)


# ------------------------------------------------------------------------------------------------------------- live
def follow_submission(store: Store, submission_id: int, stop: Stop) -> int:
    """0 if the newest run ended graded, as is shown; 1 otherwise."""
    arrived = await_arrival(store, submission_id, stop)
    print(f"submission {submission_id} of assignment {arrived.assignment_id}, run {arrived.run_id}", flush=True)
    ended = follow(store, arrived.run_id, stop, lambda text: print(f"    {printable(text)}", flush=True))
    if ended.state != "graded":
        reason = f": {printable(ended.error)}" if ended.error else ""
        print(f"submission {submission_id} is {ended.state}{reason}", file=sys.stderr)
        return 1
    (submission,) = store.table("submissions", "submission_key = %s", ended.submission_key)
    (result,) = store.table("results", "run_id = %s", ended.run_id)
    print(describe_result(result, submission["gradescope_score"]))
    return 0


def await_arrival(store: Store, submission_id: int, stop: Stop) -> Run:
    """The newest run of the submission, which may have been published a moment ago and not be stored yet."""
    store.listen(RUNS_CHANNEL)  # before the first look, or an arrival in between goes unnoticed
    deadline = time.monotonic() + ARRIVAL_LIMIT_S
    told = False
    while (run := store.newest_run(submission_id)) is None:
        left_s = deadline - time.monotonic()
        if stop or left_s <= 0:
            raise missing(submission_id)
        if not told:
            print(f"submission {submission_id} is not here yet; waiting for it", flush=True)
            told = True
        store.wait(stop, left_s)
    return run


def print_log(store: Store, submission_id: int, *, raw: bool) -> int:
    """Prints the output of the newest run that has one; of an image that could not be built, what the build printed."""
    runs = store.table("run_status", "submission_id = %s", submission_id, order="submission_key DESC, run_id DESC")
    if not runs:
        raise missing(submission_id)
    for run in runs:
        rows = store.table("results", "run_id = %s", run["run_id"])
        output = rows[0]["output"] if rows else store.build_log(run["run_id"]) if run["state"] == "abandoned" else None
        if output is not None:
            if run is not runs[0]:
                newest = f"run {runs[0]['run_id']} is {runs[0]['state']}"
                print(f"{newest}; this is from run {run['run_id']}", file=sys.stderr)
            print(output if raw else printable_lines(output), end="")
            return 0
    raise NotFound(f"submission {submission_id} is {runs[0]['state']}: nothing has been printed yet")


def missing(submission_id: int) -> NotFound:
    return NotFound(
        f"submission {submission_id} is not here; `status` lists what is, `rejected list` what could not be taken"
    )
