"""Payloads in and out: the same bytes, slice by slice, and a bad one among good ones."""

import hashlib
import os
import random
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from greengrader.db import SLICE_BYTES, NewSubmission, Store
from greengrader.errors import GreenGraderError, NotFound, ServiceUnavailable
from tests import rows

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

MEBIBYTE = 1024 * 1024


class Digest(BytesIO):
    """A file that keeps nothing but the SHA-256 of what is written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.sum, self.size_bytes = hashlib.sha256(), 0

    def write(self, part: "Buffer") -> int:
        self.sum.update(part)
        self.size_bytes += memoryview(part).nbytes
        return memoryview(part).nbytes


def large_file(path: Path, size_bytes: int) -> str:
    """The SHA-256 of the random bytes that the file holds now."""
    content = random.Random(size_bytes).randbytes(size_bytes)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "size_bytes",
    [1, 1000, SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES],
)
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_a_payload_comes_back_as_it_was(store: Store, tmp_path: Path, size_bytes: int, as_file: bool) -> None:
    digest = large_file(tmp_path / "payload", size_bytes)
    payload = tmp_path / "payload" if as_file else (tmp_path / "payload").read_bytes()
    new = rows.new_submission(payload_digest=digest, payload_bytes=size_bytes)
    (stored,) = store.receive_submissions([NewSubmission(new.columns, payload)])
    assert stored is not None
    read = Digest()
    store.read_payload(stored.submission_key, read)
    assert (read.size_bytes, read.sum.hexdigest()) == (size_bytes, digest)


def test_a_large_payload_is_never_whole_in_memory(store: Store, tmp_path: Path) -> None:
    digest = large_file(tmp_path / "payload", 64 * MEBIBYTE)
    new = rows.new_submission(payload_digest=digest, payload_bytes=64 * MEBIBYTE)
    tracemalloc.start()
    try:
        (stored,) = store.receive_submissions([NewSubmission(new.columns, tmp_path / "payload")])
        assert stored is not None
        read = Digest()
        store.read_payload(stored.submission_key, read)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read.sum.hexdigest() == digest
    assert peak_bytes < 3 * SLICE_BYTES


def test_many_of_both_kinds_in_one_transaction(store: Store, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large_file(large, MEBIBYTE)
    batch = [rows.new_submission(number, payload=os.urandom(number)) for number in range(1, 40)]
    batch[20] = NewSubmission(batch[20].columns, large)
    answers = store.receive_submissions(batch)
    for new, stored in zip(batch, answers, strict=True):
        assert stored is not None
        read = BytesIO()
        store.read_payload(stored.submission_key, read)
        assert read.getvalue() == (large.read_bytes() if new.payload == large else new.payload)


def test_nothing_is_stored_under_a_number_that_nobody_gave(store: Store) -> None:
    with pytest.raises(NotFound):
        store.read_payload(404, BytesIO())


@pytest.mark.parametrize(
    "poison",
    [{"metadata": "\0"}, {"student_ids": ["x"]}, {"payload_digest": "?"}, {"submission_id": 2**63},
     {"submission_id": None}, {"submitted_at": "yesterday, about noon"}, {"gradescope_score": 1e400}],
    ids=lambda columns: next(iter(columns)),
)  # fmt: skip
def test_one_poisoned_submission_stores_none_of_its_batch(store: Store, poison: dict[str, object]) -> None:
    """Ingest stores each by itself then: the good ones are not lost, and the connection still serves."""
    good, bad, another = (rows.new_submission(number) for number in (1, 2, 3))
    bad.columns.update(poison)
    with pytest.raises(GreenGraderError) as refused:
        store.receive_submissions([good, bad, another])
    assert not isinstance(refused.value, ServiceUnavailable), "no later try can help"
    assert "\n" not in str(refused.value)
    assert store.table("submissions") == [] and store.table("runs") == [] and store.table("payloads") == []
    assert None not in store.receive_submissions([good, another])
    with pytest.raises(GreenGraderError):
        store.receive_submissions([bad])


def test_a_document_that_is_too_large_for_the_database_is_refused_for_good(store: Store) -> None:
    """The driver takes SQLSTATE 54… for an outage; repeating it would stop ingest for ever."""
    nested = "[" * 100_000 + "]" * 100_000
    with pytest.raises(GreenGraderError, match="cannot hold") as refused:
        store._query("SELECT %s::jsonb", [nested])
    assert not isinstance(refused.value, ServiceUnavailable)
    assert store._query("SELECT 1") == [(1,)]


def test_a_spool_file_that_vanished_stores_nothing(store: Store, tmp_path: Path) -> None:
    new = rows.new_submission()
    with pytest.raises(FileNotFoundError):
        store.receive_submissions([NewSubmission(new.columns, tmp_path / "nothing")])
    assert store.table("submissions") == [], "no submission without its bytes"
    assert store.receive_submissions([new]) != [None]


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_a_rejected_payload_is_kept_with_its_reason(store: Store, tmp_path: Path, as_file: bool) -> None:
    digest = large_file(tmp_path / "payload", SLICE_BYTES + 5)
    payload = tmp_path / "payload" if as_file else (tmp_path / "payload").read_bytes()
    store.reject_payload(digest, "The payload is not a zip: Zoë’s essay.", payload)
    (row,) = store.table("rejected_status")
    assert (row["times"], row["reason"]) == (1, "The payload is not a zip: Zoë’s essay.")
    read = Digest()
    store.read_rejected(row["rejected_id"], read)
    assert read.sum.hexdigest() == digest


def test_the_same_bytes_again_only_count_up(store: Store) -> None:
    for reason in ("first", "second", "third"):
        store.reject_payload("e" * 64, reason, b"hello")
    (row,) = store.table("rejected_status")
    assert (row["times"], row["reason"]) == (3, "third")


def test_a_retried_one_tells_what_became_of_it(store: Store) -> None:
    store.reject_payload("e" * 64, "too large", b"hello")
    stored = rows.received(store)
    (row,) = store.table("rejected_status")
    store.mark_retried(row["rejected_id"], stored.submission_key)
    assert store.table("rejected_status")[0]["retried_as"] == rows.SUBMISSION


def test_a_reason_that_postgres_cannot_hold_is_a_fault_with_a_name(store: Store) -> None:
    for reason in ("a\0b", "half a pair: \ud800"):
        with pytest.raises(GreenGraderError):
            store.reject_payload("e" * 64, reason, b"hello")
    assert store.table("rejected") == []
