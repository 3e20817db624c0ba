"""`rejected list`, `show` and `retry`."""

import hashlib
from pathlib import Path

import pytest

from greengrader.db import Store
from tests import rows
from tests.builders import build_payload
from tests.operate.conftest import Command

GOOD = build_payload(metadata={"id": 1001})


def reject(store: Store, payload: bytes, reason: str = "The payload is not a zip.") -> int:
    digest = hashlib.sha256(payload).hexdigest()
    store.reject_payload(digest, reason, payload)
    return int(store.table("rejected_status", "payload_digest = %s", digest)[0]["rejected_id"])


def test_nothing_rejected_says_so(greengrader: Command) -> None:
    assert greengrader("rejected", "list").out == "nothing is rejected\n"


def test_the_list_has_reason_and_size(greengrader: Command, store: Store) -> None:
    reject(store, b"x" * 2048)
    reject(store, b"x" * 2048)
    head, line = greengrader("rejected", "list").lines
    assert head.split() == ["rejected_id", "received_at", "times", "size", "retried_as", "reason"]
    assert line.endswith("The payload is not a zip.") and "2 KiB" in line and line.split()[2] == "2"
    (row,) = greengrader("rejected", "list", "--json").json_lines
    assert (row["payload_bytes"], row["times"]) == (2048, 2) and "payload" not in row


def test_show_gives_the_whole_reason(greengrader: Command, store: Store) -> None:
    rejected_id = reject(store, b"hello", "much " * 40 + "to say\x1b[2J")
    answer = greengrader("rejected", "show", str(rejected_id))
    assert "much to say\\x1b[2J" in answer.out and hashlib.sha256(b"hello").hexdigest() in answer.out


def test_save_writes_the_payload_and_overwrites_nothing(greengrader: Command, store: Store, tmp_path: Path) -> None:
    payload = bytes(range(256)) * 20_000  # more than one slice
    words = ["rejected", "show", str(reject(store, payload)), "--save", str(tmp_path / "payload.zip")]
    assert greengrader(*words).code == 0
    assert (tmp_path / "payload.zip").read_bytes() == payload
    again = greengrader(*words)
    assert again.code == 1 and "cannot write" in again.err and "Traceback" not in again.err


def test_retry_of_what_is_good_now_stores_it(greengrader: Command, store: Store) -> None:
    rejected_id = reject(store, GOOD, "too large")
    answer = greengrader("rejected", "retry", str(rejected_id))
    assert (answer.code, answer.out) == (0, "submission 1001 of assignment 42 is stored\n")
    assert greengrader("status", "--json").json_lines[0]["state"] == "received"
    newest = store.newest_run(1001)
    assert newest is not None
    (payload,) = store.table("payloads", "submission_key = %s", newest.submission_key)
    assert bytes(payload["zip"]) == GOOD
    assert greengrader("rejected", "list").out == "nothing is rejected\n"
    assert greengrader("rejected", "list", "--all", "--json").json_lines[0]["retried_as"] == 1001


def test_retry_of_what_was_taken_already_does_nothing(greengrader: Command, store: Store) -> None:
    rejected_id = str(reject(store, GOOD))
    greengrader("rejected", "retry", rejected_id)
    answer = greengrader("rejected", "retry", rejected_id)
    assert answer.code == 0 and "was taken already, as submission 1001" in answer.out
    assert len(store.table("submissions")) == 1


def test_retry_of_what_came_again_meanwhile_finds_it(greengrader: Command, store: Store) -> None:
    rejected_id = str(reject(store, GOOD))
    rows.received(store, 1001, assignment_id=42, payload=GOOD)
    answer = greengrader("rejected", "retry", rejected_id)
    assert (answer.code, answer.out) == (0, "submission 1001 of assignment 42 was stored already\n")
    assert greengrader("rejected", "list").out == "nothing is rejected\n"


def test_retry_of_what_is_still_bad_tells_why_and_keeps_it(greengrader: Command, store: Store) -> None:
    rejected_id = str(reject(store, b"hello"))
    answer = greengrader("rejected", "retry", rejected_id)
    assert answer.code == 1 and "still rejected: The payload is not a zip" in answer.err
    assert greengrader("rejected", "list", "--json").json_lines[0]["times"] == 1


def test_retry_goes_by_the_limits_of_the_settings(
    greengrader: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected_id = str(reject(store, GOOD))
    monkeypatch.setenv("GREENGRADER_MAX_PAYLOAD_BYTES", "100")
    assert "GREENGRADER_MAX_PAYLOAD_BYTES is 100" in greengrader("rejected", "retry", rejected_id).err
    monkeypatch.delenv("GREENGRADER_MAX_PAYLOAD_BYTES")
    monkeypatch.setenv("GREENGRADER_MAX_PAYLOAD_ENTRIES", "2")
    assert greengrader("rejected", "retry", rejected_id).code == 1
    monkeypatch.delenv("GREENGRADER_MAX_PAYLOAD_ENTRIES")
    assert greengrader("rejected", "retry", rejected_id).code == 0


@pytest.mark.parametrize("action", ["show", "retry"])
def test_an_unknown_id_is_code_1(greengrader: Command, action: str) -> None:
    answer = greengrader("rejected", action, "5")
    assert answer.code == 1 and "no rejected payload has the id 5" in answer.err
