#!/usr/bin/env python3
"""Stores what Gradescope forks: MQTT topic `submissions` into Postgres.

Reads the zips that the snippet publishes, checks them, stores each in one transaction (small ones share one), answers
whoever asked for an answer, and only then acknowledges to the broker. A bad payload is kept in `rejected`, with its
reason. Never grades, never dispatches, never drops an unstored payload: while Postgres is away nothing is acknowledged.

    nohup python3 ingest.py >> ingest.log 2>&1 &

Settings: GREENGRADER_DATABASE_URL, GREENGRADER_MQTT_URL, limits; see `.env.example`.
Exit codes: 0 stopped by SIGTERM · 1 bug · 2 settings · 3 Postgres or broker away · 4 schema version.
"""

import argparse
import logging
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from greengrader import config, daemon
from greengrader.daemon import Outage, Stop
from greengrader.db import NewSubmission, Received, Store
from greengrader.errors import GreenGraderError, PayloadRejected, ServiceUnavailable
from greengrader.intake import check
from greengrader.limits import PayloadLimits
from greengrader.messages import SUBMISSIONS, Reply, may_reply_to
from greengrader.mqtt import Incoming, Link

log = logging.getLogger("greengrader")

IN_FLIGHT_PAYLOADS = 40
BATCH_PAYLOADS = IN_FLIGHT_PAYLOADS // 2  # while these are stored, as many are on their way
BATCH_BYTES = 2 * 1024 * 1024


def main(argv: list[str], stop: Stop) -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    settings = config.load()
    daemon.log_to_stderr("ingest", settings.log_level)
    spool = empty_spool(settings.state_dir / "spool")
    link = Link(
        settings.required("mqtt_url"),
        client_id="greengrader-ingest",
        subscribe=[SUBMISSIONS],
        spool=spool,
        receive_maximum=IN_FLIGHT_PAYLOADS,
        outage_limit_s=settings.outage_limit_s,
    )
    with Store.connect(settings.required("database_url"), application="ingest", alone=True) as store, link:
        log.info("ready topic=%s broker=%s:%s", SUBMISSIONS, link.host, link.port)
        outage = Outage(settings.outage_limit_s, stop)
        limits = settings.payload_limits()
        for batch in link.batches(stop, most=BATCH_PAYLOADS, most_bytes=BATCH_BYTES):
            checked = [(message, look_at(message, settings.max_payload_bytes, limits)) for message in batch]
            while True:
                try:
                    answers = list(keep(store, checked))
                    break
                except ServiceUnavailable as error:  # nothing is acknowledged: the broker keeps it as well
                    outage.wait(error)
                    if stop:
                        return 0
            outage.over()
            for message, reply in answers:
                answer(link, message, reply)
    return 0


def empty_spool(spool: Path) -> Path:
    """The folder for large payloads in hand. What a killed ingest left there was never acknowledged: it comes again."""
    spool.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left_over in spool.glob("*.zip"):
        left_over.unlink()
    return spool


def look_at(message: Incoming, most_bytes: int, limits: PayloadLimits) -> NewSubmission | PayloadRejected:
    """A submission that is fit to be stored, or why it is not."""
    if message.size_bytes > most_bytes:
        return PayloadRejected(f"the zip has {message.size_bytes:,} bytes; this server takes at most {most_bytes:,}")
    source = message.payload if isinstance(message.payload, Path) else BytesIO(message.payload)
    try:
        return NewSubmission(check(source, limits, message.digest, message.size_bytes), message.payload)
    except PayloadRejected as rejection:
        return rejection


def keep(
    store: Store, checked: list[tuple[Incoming, NewSubmission | PayloadRejected]]
) -> Iterator[tuple[Incoming, Reply]]:
    """Stores the good ones in one transaction and each bad one by itself; yields the answer to each."""
    good = [(message, new) for message, new in checked if isinstance(new, NewSubmission)]
    if good:
        for (message, new), stored in zip(good, store_together(store, [new for _, new in good]), strict=True):
            if isinstance(stored, PayloadRejected):
                yield message, reject(store, message, stored)
            else:
                yield message, tell(new, stored)
    for message, verdict in checked:
        if isinstance(verdict, PayloadRejected):
            yield message, reject(store, message, verdict)


def store_together(store: Store, batch: list[NewSubmission]) -> list[Received | PayloadRejected | None]:
    """One transaction for all; where Postgres refuses one of them, each by itself, so that only that one fails."""
    try:
        return list(store.receive_submissions(batch))
    except ServiceUnavailable:
        raise
    except GreenGraderError as error:
        if len(batch) == 1:
            return [PayloadRejected(f"the database cannot hold its metadata: {error}")]
        return [received for new in batch for received in store_together(store, [new])]


def tell(new: NewSubmission, received: Received | None) -> Reply:
    submission_id = int(new.columns["submission_id"])
    if received is None:
        log.info("duplicate submission=%d digest=%s", submission_id, new.columns["payload_digest"][:12])
        return Reply("duplicate", {"submission_id": submission_id})
    log.info("received submission=%d run=%d bytes=%d", submission_id, received.run_id, new.columns["payload_bytes"])
    return Reply("accepted", {"submission_id": submission_id, "run_id": received.run_id})


def reject(store: Store, message: Incoming, rejection: PayloadRejected) -> Reply:
    store.reject_payload(message.digest, str(rejection), message.payload)
    log.warning("rejected digest=%s bytes=%d reason=%r", message.digest[:12], message.size_bytes, str(rejection))
    return Reply("rejected", {"reason": str(rejection)})


def answer(link: Link, message: Incoming, reply: Reply) -> None:
    """Answers where an answer is wanted, then lets the broker forget the message."""
    if message.response_topic is not None and may_reply_to(message.response_topic):
        link.publish(message.response_topic, reply.encode(), expiry_s=600)
    message.acknowledge()


if __name__ == "__main__":
    daemon.run(main)
