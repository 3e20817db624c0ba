"""`assignment`: what staff decide about an assignment, and the autograder zip that they register for it."""

import argparse
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from greengrader import autograder
from greengrader.errors import GreenGraderError, NotFound, PayloadRejected
from greengrader.limits import MEBIBYTE
from greengrader.messages import PARTS_MAX_BYTES
from greengrader.operate import quantities
from greengrader.operate.desk import ALL, Commands, Desk, declare, identifier
from greengrader.operate.tables import details, json_line, moment, printable, table

COLUMNS = (
    "assignment_id", "submissions", "open", "graded", "abandoned", "differs", "backend", "autograder", "priority",
    "deadline", "title",
)  # fmt: skip
DEFAULTS: dict[str, Any] = {"backend": "docker", "priority": 0, "max_delay_s": 0.0}  # of any other: null
MIN_MEMORY_BYTES = 16 * MEBIBYTE
MEMORY_UNITS = {"": MEBIBYTE, "M": MEBIBYTE, "G": 1024 * MEBIBYTE}


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "assignment", help="show or change limits, backend, queue and autograder of an assignment",
        description="What staff decide about an assignment.",
    )  # fmt: skip
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    parser = declare(actions, "show", show, "list the assignments, or show one with all that is decided about it")
    parser.add_argument("assignment", nargs="?", type=identifier, metavar="ID", help="Gradescope's id of it")
    parser.add_argument("--json", action="store_true", help="JSON, a line for each assignment")
    parser = declare(
        actions, "set", change, "change an assignment",
        'Only what is named changes; "default" or "none" takes a decision back. What waits follows at once; but a new '
        "autograder or base image counts only for what is dispatched from now on (`rerun` grades the rest again).",
    )  # fmt: skip
    parser.add_argument("assignment", type=identifier, metavar="ID", help="Gradescope's id; it need not be here yet")
    add_decisions(parser)


def add_decisions(parser: argparse.ArgumentParser) -> None:
    def decision(option: str, column: str, read: Callable[[str], Any], metavar: str, help: str) -> None:
        parser.add_argument(
            option, dest=column, type=or_default(column, read), metavar=metavar, help=help, default=argparse.SUPPRESS
        )

    decision("--backend", "backend", one_of("docker", "kubernetes"), "BACKEND", "docker (default) or kubernetes")
    decision("--base-image", "base_image", image, "IMAGE", "base of the autograder's image")
    decision("--cpus", "cpus", above_zero, "N", "cores that a run may use, e.g. 0.5")
    decision("--memory", "memory_bytes", memory, "SIZE", "memory of a run in MiB; also 768M or 2G")
    decision("--timeout", "timeout_s", above_zero, "SECONDS", "wall-clock limit of run_autograder")
    decision("--network", "network", yes_or_no, "yes|no", "may a run reach the network")
    decision("--priority", "priority", small_integer, "N", "higher goes first (default: 0)")
    decision(
        "--max-delay", "max_delay_s", zero_or_more, "SECONDS", "wait at most so long for cleaner power (default: 0)"
    )
    decision("--deadline", "deadline", instant, "TIME", "graded before this, e.g. 2026-03-01T12:00+01:00")
    decision("--autograder", "autograder", Path, "ZIP", "the staff's own zip, as uploaded to Gradescope; none: derived")


# ------------------------------------------------------------------------------------ the words of `assignment set`
def or_default(column: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read`, but for the words that take the decision back."""

    def read_decision(text: str) -> Any:
        if text in ("default", "none"):
            return DEFAULTS.get(column)
        try:
            return read(text)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return read_decision


def one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected {' or '.join(words)}")
        return text

    return read


def yes_or_no(text: str) -> bool:
    return one_of("yes", "no")(text) == "yes"


def image(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][A-Za-z0-9._:/@-]{0,254}", text):
        raise ValueError("this is no name of an image")
    return text


def zero_or_more(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or number < 0:
        raise ValueError("expected a number, 0 or more")
    return number


def above_zero(text: str) -> float:
    number = zero_or_more(text)
    if not number:
        raise ValueError("expected a number above 0")
    return number


def small_integer(text: str) -> int:
    number = int(text)
    if not -(2**31) <= number < 2**31:
        raise ValueError("expected a number of at most 9 digits")
    return number


def memory(text: str) -> int:
    """Bytes: a bare number means MiB."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*(?:([MG])(?:iB|B)?)?", text, re.ASCII)
    if not found:
        raise ValueError("expected MiB, or a size like 768M or 2G")
    size_bytes = int(float(found[1]) * MEMORY_UNITS[found[2] or ""])
    if size_bytes < MIN_MEMORY_BYTES:
        raise ValueError("a run needs at least 16 MiB")
    return size_bytes


def instant(text: str) -> str:
    """A moment, for JSON; refused without an offset, because nobody could tell whose clock was meant."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("no offset is given; add Z for UTC, or one like +01:00")
    return at.astimezone(UTC).isoformat()


# ------------------------------------------------------------------------------------------------------------- commands
def show(desk: Desk) -> int:
    assignment_id = desk.options.assignment
    where, values = ("true", ()) if assignment_id is None else ("assignment_id = %s", (assignment_id,))
    rows = desk.store.table("assignment_status", where, *values, order="assignment_id", limit=ALL)
    if assignment_id is not None and not rows:
        raise unknown(assignment_id)
    if desk.options.json:
        for row in rows:
            print(json_line(row))
    elif assignment_id is not None:
        print(describe(rows[0]))
    else:
        for row in rows:
            row["autograder"] = "staff" if row["autograder_digest"] else "derived"
        print(table(rows, COLUMNS) if rows else "no assignments: they come with their first submission")
    return 0


def describe(row: dict[str, Any]) -> str:
    """The assignment with its decisions; "default" is what the settings of the worker say."""

    def decided(value: Any, text: str) -> str:
        return "default" if value is None else text

    digest = row["autograder_digest"]
    made = f"staff's, {str(digest)[:12]}, on {row['autograder_base_image']}, of {moment(row['autograder_created_at'])}"
    counts = (f"{row[key]} {key}" for key in ("submissions", "open", "graded", "abandoned") if row[key])
    facts = [
        ("title", row["title"]),
        ("course", str(row["course_id"] or "")),
        ("here", ", ".join(counts) or "nothing yet"),
        ("parity", f"{row['differs']} scores differ from Gradescope's" if row["differs"] else None),
        ("backend", row["backend"]),
        ("base image", decided(row["base_image"], row["base_image"])),
        ("cpus", decided(row["cpus"], f"{row['cpus']}")),
        ("memory", decided(row["memory_bytes"], quantities.memory(row["memory_bytes"]))),
        ("timeout", decided(row["timeout_s"], quantities.duration(row["timeout_s"]))),
        ("network", decided(row["network"], "yes" if row["network"] else "no")),
        ("priority", str(row["priority"])),
        ("max delay", quantities.duration(row["max_delay_s"])),
        ("deadline", moment(row["deadline"]) or "none"),
        ("autograder", made if digest else "derived from each payload"),
        *(("warning", warning) for warning in row["autograder_warnings"] or ()),
    ]
    return f"assignment {row['assignment_id']}\n{details(facts)}"


def change(desk: Desk) -> int:
    decided = {key: value for key, value in vars(desk.options).items() if key not in ("run", "parser", "assignment")}
    if not decided:
        desk.usage("nothing to set; name at least one option")
    assignment_id = desk.options.assignment
    before = next(iter(desk.store.table("assignment_status", "assignment_id = %s", assignment_id)), None)
    if "autograder" in decided:
        path = decided.pop("autograder")
        base_image = decided.get("base_image", before and before["base_image"]) or desk.settings.base_image
        decided["autograder_digest"] = None if path is None else register(desk, path, base_image)
    elif "base_image" in decided and before and before["autograder_digest"]:
        base_image = decided["base_image"] or desk.settings.base_image
        if base_image != before["autograder_base_image"]:
            raise GreenGraderError(
                f"the staff's autograder of assignment {assignment_id} was registered for another base image, "
                f"{before['autograder_base_image']}: give its zip again in the same command (--autograder ZIP), "
                "or go without it (--autograder none)"
            )
    desk.store.set_assignment(assignment_id, decided)
    print(describe(desk.store.table("assignment_status", "assignment_id = %s", assignment_id)[0]))
    return 0


def register(desk: Desk, path: Path, base_image: str) -> str:
    """Digest of the autograder in the zip, whose source is stored."""
    packed = BytesIO()
    try:
        with autograder.from_zip(path, base_image, desk.settings.payload_limits()) as made:
            made.write_archive(packed)
    except OSError as error:
        raise GreenGraderError(f"cannot read {path}: {error.strerror}") from error
    except PayloadRejected as rejection:
        raise GreenGraderError(f"{path} is no autograder that can be used: {rejection}") from rejection
    archive = packed.getvalue()
    if len(archive) > PARTS_MAX_BYTES:
        raise GreenGraderError(f"{path} has {len(archive):,} bytes packed again, too many for one message to a worker")
    for warning in made.warnings:
        print(f"note: {printable(warning)}")
    desk.store.add_autograder(made.digest, made.origin, base_image, made.warnings, archive)
    return made.digest


def unknown(assignment_id: int) -> NotFound:
    return NotFound(f"assignment {assignment_id} is not here; `assignment show` lists what is")
