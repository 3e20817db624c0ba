"""`results`: results.json of a submission, or the results of an assignment for spreadsheets and programs."""

import csv
import itertools
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from greengrader.daemon import Stop
from greengrader.db import Store
from greengrader.errors import GreenGraderError, NotFound
from greengrader.operate import quantities
from greengrader.operate.desk import Commands, Desk, add_choice_of_submissions, declare
from greengrader.operate.status import missing
from greengrader.operate.tables import json_line, json_pretty, moment, printable, table

COLUMNS = (
    "submission_id", "assignment_id", "course_id", "run_id", "state", "outcome", "score", "max_score",
    "gradescope_score", "parity", "wall_s", "cpu_s", "peak_memory_bytes", "energy_kwh", "carbon_emission_g",
    "carbon_intensity", "carbon_source", "region", "worker", "submitted_at", "received_at", "graded_at",
)  # fmt: skip
IDENTITIES = ("student_ids", "student_names", "student_emails")
SHOWN = (
    "submission_id", "state", "outcome", "score", "max_score", "gradescope_score", "parity", "wall", "cpu", "memory",
    "energy", "emissions", "worker", "graded_at",
)  # fmt: skip
# A spreadsheet takes a text that begins so for a formula; an apostrophe before it says that it is none.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def add_command(commands: Commands) -> None:
    parser = declare(
        commands, "results", run, "print results.json of a submission, or all results of an assignment",
        "Of each submission the newest result counts; `state` is that of its newest run, which may still be under way. "
        "Nothing names a student unless --identities is given.",
    )  # fmt: skip
    add_choice_of_submissions(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="a row for each submission, units in the columns' names")
    form.add_argument("--json", action="store_true", help="the same as JSON lines, with results.json as `results`")
    parser.add_argument("--identities", action="store_true", help="with the students' ids, names and e-mail addresses")


def run(desk: Desk) -> int:
    options = desk.options
    columns = COLUMNS + IDENTITIES if options.identities else COLUMNS
    if options.submission is not None:
        rows = desk.store.table("result_export", "submission_id = %s", options.submission)
        if not rows:
            raise missing(options.submission)
        portions = iter([rows])
        if not (options.csv or options.json):
            return print_results(desk.store, rows[0])
    else:
        portions = at_least_one(until_the_end(desk.store.exported(options.assignment), desk.stop), options.assignment)
    if options.csv:
        write_csv(portions, columns)
    elif options.json:
        write_json_lines(desk.store, portions, columns)
    else:
        people = IDENTITIES if options.identities else ()
        print(table(map(shown, itertools.chain.from_iterable(portions)), SHOWN + people))
    return 0


def at_least_one(portions: Iterator[list[dict[str, Any]]], assignment_id: int) -> Iterator[list[dict[str, Any]]]:
    """The same portions; NotFound at once where there is none."""
    first = next(portions, None)
    if first is None:
        raise NotFound(f"no submission of assignment {assignment_id} is here")
    return itertools.chain([first], portions)


def until_the_end(portions: Iterator[list[dict[str, Any]]], stop: Stop) -> Iterator[list[dict[str, Any]]]:
    """The same portions; GreenGraderError at a stop, so that nobody takes half of them for all."""
    for rows in portions:
        if stop:
            raise GreenGraderError("stopped before the end: the output is not complete")
        yield rows


def print_results(store: Store, row: dict[str, Any]) -> int:
    document = store.results_document(row["run_id"])
    if document is None:
        raise NotFound(f"submission {row['submission_id']} is {row['state']}: it has no result")
    print(json_pretty(document))
    if row["state"] != "graded":
        print(f"this is the result of run {row['run_id']}; a newer run is {row['state']}", file=sys.stderr)
    return 0


def write_csv(portions: Iterator[list[dict[str, Any]]], columns: tuple[str, ...]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for rows in portions:
        writer.writerows([spreadsheet_cell(row[column]) for column in columns] for row in rows)


def spreadsheet_cell(value: Any) -> Any:
    """The value as csv writes it best; a text is never a formula and never commands a terminal."""
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(FORMULA_STARTS) else value)


def write_json_lines(store: Store, portions: Iterator[list[dict[str, Any]]], columns: tuple[str, ...]) -> None:
    for row in itertools.chain.from_iterable(portions):
        document = store.results_document(row["run_id"])  # one at a time: it may have megabytes
        print(json_line({column: row[column] for column in columns} | {"results": document}))


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its quantities for people."""
    if row["outcome"] is None:
        return row | dict.fromkeys(("wall", "cpu", "memory", "energy", "emissions"))
    return row | {
        "wall": quantities.duration(row["wall_s"]),
        "cpu": quantities.duration(row["cpu_s"]),
        "memory": quantities.memory(row["peak_memory_bytes"]),
        "energy": quantities.energy(row["energy_kwh"]),
        "emissions": quantities.emissions(row["carbon_emission_g"]),
    }
