"""What intake makes of a payload fits into the database, whatever a payload holds."""

import hashlib
import json
from io import BytesIO

from greengrader.config import Settings
from greengrader.db import NewSubmission, Store
from greengrader.intake import check
from tests.builders import build_payload

HOSTILE = rb"""{"id": 9223372036854775807, "created_at": "0001-01-01T00:00:00Z", "weight": -1e999, "tiny": 1e-400,
    "assignment": {"id": 6, "title": "a\u0000b\ud800", "outline": [{"title": "\udfff\u0000"}], "course_id": 1e3},
    "users": [{"id": "5", "name": "\udc00'); DROP TABLE runs; --"}, {"email": "{\"\\,\u0000}"}, {"id": -1}],
    "x\u0000": [NaN, Infinity], "big": DIGITS, "deep": NESTED}"""


def stored(store: Store, payload: bytes) -> dict[str, object]:
    columns = check(BytesIO(payload), Settings().payload_limits(), hashlib.sha256(payload).hexdigest(), len(payload))
    (received,) = store.receive_submissions([NewSubmission(columns, payload)])
    assert received is not None
    return store.table("submissions", "submission_key = %s", received.submission_key)[0]


def test_hostile_metadata_are_stored(store: Store) -> None:
    raw = HOSTILE.replace(b"DIGITS", b"9" * 4000).replace(b"NESTED", b"[" * 90 + b"]" * 90)
    row = stored(store, build_payload(metadata=raw))
    assert row["submission_id"] == 2**63 - 1
    assert row["student_ids"] == [5]
    assert row["student_names"] == ["\N{REPLACEMENT CHARACTER}'); DROP TABLE runs; --"]
    assert row["student_emails"] == ['{"\\,\N{REPLACEMENT CHARACTER}}']
    assert isinstance(row["metadata"], dict) and row["metadata"]["big"] == int("9" * 4000)


def test_hostile_results_are_stored(store: Store) -> None:
    results = {"score": "-1e-320", "output": "a\0b\ud800", "n": 10**300, "tests": [{"max_score": 1.7e308}]}
    row = stored(store, build_payload(results=json.dumps(results).encode()))
    assert row["gradescope_score"] == -1e-320
    assert isinstance(row["gradescope_results"], dict)
    assert row["gradescope_results"]["output"] == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
