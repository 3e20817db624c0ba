"""`rejected`: the payloads that were refused at the door, why, and another try."""

import tempfile
from pathlib import Path
from typing import Any

from greengrader import intake
from greengrader.db import NewSubmission, Received
from greengrader.errors import GreenGraderError, NotFound, PayloadRejected
from greengrader.operate import quantities
from greengrader.operate.desk import Commands, Desk, declare, identifier
from greengrader.operate.tables import details, json_line, moment, printable, table

COLUMNS = ("rejected_id", "received_at", "times", "size", "retried_as", "reason")


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "rejected", help="list payloads that were refused, show one, retry one", description="Refused payloads."
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    parser = declare(
        actions, "list", list_rejected, "list refused payloads, newest first",
        "Those that were taken after all, by `rejected retry`, are left out unless --all is given.",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="also those that were taken after all")
    parser.add_argument("--limit", type=identifier, default=50, metavar="N", help="rows at most (default: 50)")
    parser.add_argument("--json", action="store_true", help="JSON, a line for each payload")
    parser = declare(actions, "show", show, "show a refused payload with its whole reason")
    parser.add_argument("rejected_id", type=identifier, metavar="ID", help="from `rejected list`")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the payload to FILE, which must not exist yet")
    parser = declare(
        actions, "retry", retry, "check a refused payload again, and store it if it is good now",
        "Of use after a limit was raised or a bug mended; the limits are this command's settings.",
    )  # fmt: skip
    parser.add_argument("rejected_id", type=identifier, metavar="ID", help="from `rejected list`")


def list_rejected(desk: Desk) -> int:
    where = "true" if desk.options.all else "retried_as IS NULL"
    rows = desk.store.table("rejected_status", where, order="received_at DESC", limit=desk.options.limit)
    if desk.options.json:
        for row in rows:
            print(json_line(row))
        return 0
    for row in rows:
        row["size"] = quantities.memory(row["payload_bytes"])
    print(table(rows, COLUMNS) if rows else "nothing was rejected" if desk.options.all else "nothing is rejected")
    return 0


def show(desk: Desk) -> int:
    row = find(desk)
    facts = [
        ("reason", row["reason"]),
        ("received", f"{moment(row['received_at'])}" + (f", {row['times']} times" if row["times"] > 1 else "")),
        ("size", f"{row['payload_bytes']:,} bytes"),
        ("SHA-256", row["payload_digest"]),
        ("taken as", row["retried_as"] and f"submission {row['retried_as']}"),
    ]
    print(f"rejected payload {row['rejected_id']}\n{details(facts)}")
    if desk.options.save:
        save(desk, row["rejected_id"], desk.options.save)
    return 0


def save(desk: Desk, rejected_id: int, path: Path) -> None:
    """Writes the payload, as it came, to a new file."""
    try:
        with path.open("xb") as file:
            desk.store.read_rejected(rejected_id, file)
    except OSError as error:
        raise GreenGraderError(f"cannot write {path}: {error.strerror}") from error
    print(f"saved as {path}, as it came: unpack it with care")


def retry(desk: Desk) -> int:
    row = find(desk)
    if row["retried_as"]:
        print(f"rejected payload {row['rejected_id']} was taken already, as submission {row['retried_as']}")
        return 0
    with tempfile.NamedTemporaryFile(suffix=".zip") as file:
        desk.store.read_rejected(row["rejected_id"], file)
        file.flush()
        columns = check(desk, row, Path(file.name))
        (received,) = desk.store.receive_submissions([NewSubmission(columns, Path(file.name))])
    desk.store.mark_retried(row["rejected_id"], key_of(desk, columns, received))
    what = "is stored" if received else "was stored already"
    print(f"submission {columns['submission_id']} of assignment {columns['assignment_id']} {what}")
    return 0


def check(desk: Desk, row: dict[str, Any], path: Path) -> dict[str, Any]:
    """The columns of the payload, which is good now; GreenGraderError with the reason where it is not."""
    most_bytes = desk.settings.max_payload_bytes
    if row["payload_bytes"] > most_bytes:
        raise GreenGraderError(f"still rejected: GREENGRADER_MAX_PAYLOAD_BYTES is {most_bytes:,}")
    try:
        return intake.check(path, desk.settings.payload_limits(), row["payload_digest"], row["payload_bytes"])
    except PayloadRejected as rejection:
        raise GreenGraderError(f"still rejected: {printable(str(rejection))}") from rejection


def key_of(desk: Desk, columns: dict[str, Any], received: Received | None) -> int:
    """The submission's key, also where it had come another time meanwhile."""
    if received:
        return received.submission_key
    same = "submission_id = %s AND payload_digest = %s"
    (stored,) = desk.store.table("submissions", same, columns["submission_id"], columns["payload_digest"])
    return int(stored["submission_key"])


def find(desk: Desk) -> dict[str, Any]:
    rows = desk.store.table("rejected_status", "rejected_id = %s", desk.options.rejected_id)
    if not rows:
        raise NotFound(f"no rejected payload has the id {desk.options.rejected_id}; `rejected list` names them")
    return rows[0]
