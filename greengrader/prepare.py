"""What a run needs before it can be placed, stored once: the student's files packed, and the autograder."""

import logging
import tempfile
from io import BytesIO
from pathlib import Path

from greengrader import autograder
from greengrader.config import Settings
from greengrader.db import Run, Store
from greengrader.errors import PayloadRejected
from greengrader.messages import PARTS_MAX_BYTES
from greengrader.payload import Payload

log = logging.getLogger("greengrader")


def prepare(store: Store, run: Run, settings: Settings) -> None:
    """Stores the run's autograder and its files where they are not stored yet, then sets it free for its backend."""
    digest = store.staff_autograder(run.assignment_id)
    if digest is None or not store.has_submission_archive(run.submission_key):
        with tempfile.NamedTemporaryFile(suffix=".zip") as file:
            store.read_payload(run.submission_key, file)
            file.flush()
            with Payload.open(Path(file.name), settings.payload_limits()) as payload:
                if not store.has_submission_archive(run.submission_key):
                    archive = payload.submission_archive()
                    check_size(archive, "the submission")
                    store.add_submission_archive(run.submission_key, archive)
                digest = digest or derive(store, run, payload, settings)
    if store.dispatch_run(run.run_id, digest):
        log.info("dispatched run=%d submission=%d autograder=%s", run.run_id, run.submission_id, digest[:12])


def derive(store: Store, run: Run, payload: Payload, settings: Settings) -> str:
    """Digest of the autograder that the payload carries; its archive is stored once."""
    derived = autograder.derive(payload, store.base_image(run.assignment_id) or settings.base_image)
    if not store.has_autograder(derived.digest):
        archive = BytesIO()
        derived.write_archive(archive)
        check_size(archive.getvalue(), "the autograder")
        store.add_autograder(derived.digest, derived.origin, derived.base_image, derived.warnings, archive.getvalue())
        log.info("autograder derived digest=%s bytes=%d", derived.digest[:12], len(archive.getvalue()))
    return derived.digest


def check_size(archive: bytes, what: str) -> None:
    if len(archive) > PARTS_MAX_BYTES:
        raise PayloadRejected(f"{what} has {len(archive):,} bytes packed: too many for one MQTT message to a worker")
