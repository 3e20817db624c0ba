"""`worker`: who grades, who is silent, and who gets nothing new."""

from typing import Any

from greengrader.errors import NotFound
from greengrader.limits import MEBIBYTE
from greengrader.operate import quantities
from greengrader.operate.desk import ALL, Commands, Desk, declare
from greengrader.operate.tables import json_line, table

COLUMNS = (
    "worker", "condition", "held", "slots", "region", "zone", "node_ip", "cores", "memory", "watts", "last_seen_at",
    "cpu_model_name",
)  # fmt: skip


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("worker", help="list the workers, drain or resume one", description="The workers.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    parser = declare(
        actions, "list", list_workers, "list the workers",
        "Condition: ready; draining (by staff); full (its disk is, so that it takes no jobs); silent (no longer heard "
        "of); gone (said good-bye, or never seen). `held` is the number of runs it has.",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON, a line for each worker")
    parser = declare(actions, "drain", drain, "give a worker nothing new; it finishes what it has")
    parser.add_argument("name", metavar="NAME")
    parser = declare(actions, "resume", resume, "give a drained worker runs again")
    parser.add_argument("name", metavar="NAME")


def list_workers(desk: Desk) -> int:
    rows = desk.store.table("worker_status", order="worker", limit=ALL)
    for row in rows:
        row["condition"] = condition(row, desk.settings.worker_silent_s)
    if desk.options.json:
        for row in rows:
            print(json_line(row))
        return 0
    print(table(map(shown, rows), COLUMNS) if rows else "no worker has registered; `python3 register.py` does it there")
    return 0


def condition(row: dict[str, Any], silent_s: float) -> str:
    if row["silent_s"] is None:
        return "gone"
    if row["silent_s"] >= silent_s:
        return "silent"
    if row["draining"]:
        return "draining"
    return "ready" if row["accepting"] else "full"


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its quantities for people."""
    watts = None if row["watts_min"] is None else f"{row['watts_min']:g}-{row['watts_max']:g} a core"
    memory = None if row["memory_size"] is None else quantities.memory(row["memory_size"] * MEBIBYTE)
    return row | {"memory": memory, "watts": watts, "cores": row["cpu_cores"]}


def drain(desk: Desk) -> int:
    return set_draining(desk, True)


def resume(desk: Desk) -> int:
    return set_draining(desk, False)


def set_draining(desk: Desk, draining: bool) -> int:
    name = desk.options.name
    if not desk.store.drain_worker(name, draining):
        raise NotFound(f"no worker is called {name}; `worker list` names them")
    held = desk.store.table("worker_status", "worker = %s", name)[0]["held"]
    has = f"it finishes the {held} it has" if held else "it has none"
    print(f"{name} gets no new runs; {has}" if draining else f"{name} gets runs again")
    return 0
