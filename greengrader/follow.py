"""A run's way to its end, live: what `dispatcher.py --wait` and `greengrader status --follow` show."""

from collections.abc import Callable
from datetime import UTC
from typing import Any

from greengrader.daemon import Stop
from greengrader.db import RUNS_CHANNEL, Run, Store
from greengrader.errors import NotFound

ENDED = ("graded", "abandoned", "cancelled")
FALLBACK_S = 30.0


def follow(store: Store, run_id: int, stop: Stop, say: Callable[[str], None]) -> Run:
    """Says each transition as it happens; returns the run at its end, or as it is at `stop`."""
    store.listen(RUNS_CHANNEL)
    shown = 0
    while True:
        events = store.run_events(run_id)
        for event in events[shown:]:
            say(line(event))
        shown = len(events)
        run = store.run(run_id)
        if run is None:
            raise NotFound(f"run {run_id} does not exist any more")
        if run.state in ENDED or stop:
            return run
        while not stop:
            notices = store.wait(stop, FALLBACK_S)
            if not notices or any(text.endswith(f" {run_id}") for _, text in notices):
                break


def line(event: dict[str, Any]) -> str:
    """One transition as one line, times in UTC."""
    at = event["at"].astimezone(UTC)  # the session's time zone is the server's choice
    words = [f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}", f"{event['to_state']:<10}"]
    if event["worker"] and event["to_state"] in ("placed", "running", "graded"):
        words.append(f"on {event['worker']}")
    if event["attempt"] > 1:
        words.append(f"(attempt {event['attempt']})")
    if event["reason"]:
        words.append(f"- {event['reason']}")
    return " ".join(words).rstrip()
