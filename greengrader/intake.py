"""A payload to the columns that Postgres stores of it: at the door (ingest.py), and for `rejected retry`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from greengrader import results
from greengrader.limits import PayloadLimits
from greengrader.payload import Payload

COPY_BYTES = 1024 * 1024


def check(source: Path | IO[bytes], limits: PayloadLimits, digest: str, size_bytes: int) -> dict[str, Any]:
    """The columns of a submission, as the SQL function receive_submissions reads them; all of it fits into JSON.

    `source` is the zip: its file, or an open one that is read from its position on. `digest` (SHA-256, hex) and
    `size_bytes` are the zip's. PayloadRejected where it cannot be taken.
    """
    with _as_file(source) as path, Payload.open(path, limits) as payload:
        metadata, assignment = payload.metadata, payload.metadata.assignment
        return {
            "submission_id": metadata.id,
            "payload_digest": digest,
            "assignment_id": assignment.id,
            "course_id": assignment.course_id,
            "assignment_title": assignment.title,
            "assignment_outline": payload.metadata_document["assignment"].get("outline"),
            "student_ids": metadata.student_ids,
            "student_names": metadata.student_names,
            "student_emails": metadata.student_emails,
            "submission_method": metadata.submission_method,
            "submitted_at": metadata.created_at.isoformat() if metadata.created_at else None,
            "sender_ip": payload.sender_hostnames or None,
            "metadata": payload.metadata_document,
            **_reference(payload.gradescope_results),
            "payload_bytes": size_bytes,
        }


def _reference(raw: bytes | None) -> dict[str, Any]:
    """Gradescope's own result: 0 points and no results.json where what its run left is invalid, by its own rules."""
    if raw is None:
        return {"gradescope_results": None, "gradescope_score": None}
    reference = results.grade(raw, timed_out=False, oom_killed=False, timeout_s=0)
    valid = reference.outcome is results.Outcome.completed
    return {"gradescope_results": reference.results if valid else None, "gradescope_score": reference.score}


@contextmanager
def _as_file(source: Path | IO[bytes]) -> Iterator[Path]:
    """A path to the zip. What is in memory stays there: a small payload never touches the disk before it is stored."""
    if isinstance(source, Path):
        yield source
        return
    memory = os.memfd_create("payload")
    try:
        with open(memory, "wb", closefd=False) as file:
            while chunk := source.read(COPY_BYTES):
                file.write(chunk)
        yield Path(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
