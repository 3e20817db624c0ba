"""A payload to the columns that are stored of it."""

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from greengrader.config import Settings
from greengrader.errors import PayloadRejected
from greengrader.intake import check
from tests.builders import build_payload

LIMITS = Settings().payload_limits()
RESULTS_JSON = "gradescope_data/autograder/results/results.json"


def columns(payload: bytes) -> dict[str, Any]:
    return check(BytesIO(payload), LIMITS, hashlib.sha256(payload).hexdigest(), len(payload))


def test_everything_that_gradescope_says_becomes_a_column() -> None:
    payload = build_payload(results={"score": 3, "tests": [{"score": 3, "max_score": 4}]})
    found = columns(payload)
    metadata = found.pop("metadata")
    assert metadata["assignment"]["title"] == "Hello" and metadata["users"][0]["sid"] == "A1815"
    outline = {"id": 1, "type": "ProgrammingQuestion", "title": "Hello", "parent_id": None, "weight": "10.0"}
    assert found == {
        "submission_id": 1001,
        "payload_digest": hashlib.sha256(payload).hexdigest(),
        "assignment_id": 42,
        "course_id": 7,
        "assignment_title": "Hello",
        "assignment_outline": [outline],
        "student_ids": [5],
        "student_names": ["Ada Lovelace"],
        "student_emails": ["ada@example.edu"],
        "submission_method": "upload",
        "submitted_at": "2023-11-15T22:12:20.123456+00:00",
        "sender_ip": "172.17.0.2",
        "gradescope_results": {"score": 3, "tests": [{"score": 3, "max_score": 4}]},
        "gradescope_score": 3.0,
        "payload_bytes": len(payload),
    }


def test_a_file_gives_what_its_bytes_give(tmp_path: Path) -> None:
    payload = build_payload()
    (tmp_path / "payload.zip").write_bytes(payload)
    digest = hashlib.sha256(payload).hexdigest()
    assert check(tmp_path / "payload.zip", LIMITS, digest, len(payload)) == columns(payload)


def test_ids_alone_are_enough() -> None:
    payload = build_payload(metadata=b'{"id": 5, "assignment": {"id": "6"}}', without=["gradescope_data/hostname.txt"])
    found = columns(payload)
    assert (found["submission_id"], found["assignment_id"]) == (5, 6)
    optional = ("course_id", "assignment_title", "assignment_outline", "submission_method", "submitted_at", "sender_ip")
    assert {key: found[key] for key in optional} == dict.fromkeys(optional)
    assert found["student_ids"] == found["student_names"] == found["student_emails"] == []


@pytest.mark.parametrize("created_at", ["yesterday", "", 5, "2023-13-01T00:00:00Z", "9999-12-31T23:59:59-23:00", None])
def test_an_odd_time_of_submission_is_none(created_at: object) -> None:
    assert columns(build_payload(metadata={"created_at": created_at}))["submitted_at"] is None


def test_invalid_results_count_nothing_and_are_no_document() -> None:
    found = columns(build_payload(results=b"Traceback (most recent call last)"))
    assert (found["gradescope_results"], found["gradescope_score"]) == (None, 0.0)


def test_no_results_are_no_reference() -> None:
    found = columns(build_payload(without=[RESULTS_JSON]))
    assert (found["gradescope_results"], found["gradescope_score"]) == (None, None)


@pytest.mark.parametrize("submission_id", [0, -1, 2**63, 1.5, True, "x", None])
def test_an_id_that_is_none_is_rejected(submission_id: object) -> None:
    with pytest.raises(PayloadRejected, match="id"):
        columns(build_payload(metadata={"id": submission_id}))


def test_the_largest_id_is_taken() -> None:
    assert columns(build_payload(metadata={"id": 2**63 - 1}))["submission_id"] == 2**63 - 1


def test_bytes_that_are_no_zip_are_rejected() -> None:
    with pytest.raises(PayloadRejected):
        columns(b"hello")


def test_all_columns_are_json_without_what_postgres_refuses() -> None:
    raw = rb"""{"id": 5, "assignment": {"id": 6, "title": "a\u0000b\ud800", "outline": ["\u0000"]}, "weight": 1e999,
        "users": [{"name": "\udc00", "email": "\u0000"}], "x\u0000": NaN, "big": 1234567890123456789012345678901234}"""
    written = json.dumps(columns(build_payload(metadata=raw)), allow_nan=False)
    for refused in (r"\u0000", r"\ud800", r"\udc00"):
        assert refused not in written


def test_a_payload_in_memory_leaves_no_file_open() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    columns(build_payload())
    with pytest.raises(PayloadRejected):
        columns(b"hello")
    assert len(set(Path("/proc/self/fd").iterdir())) == len(before)
