#!/usr/bin/env python3
"""Records what workers say: results, registrations and heartbeats, from MQTT into Postgres.

A result counts exactly once: only for the worker and the attempt that hold the run now; anything else is logged and
dropped. Reads results.json by Gradescope's rules, works out energy and emissions, and compares with Gradescope's own
score. Commits first, acknowledges then. Never places runs.

    nohup python3 receiver.py >> receiver.log 2>&1 &

Settings: GREENGRADER_DATABASE_URL, GREENGRADER_MQTT_URL, GREENGRADER_LEASE_S, GREENGRADER_PUE, …; see `.env.example`.
Exit codes: 0 stopped by SIGTERM · 1 bug · 2 settings · 3 Postgres or broker away · 4 schema version.
"""

import argparse
import logging
import time
from typing import Any

from greengrader import config, daemon
from greengrader.config import Settings
from greengrader.daemon import Outage, Stop
from greengrader.db import Store
from greengrader.errors import GreenGraderError, MessageInvalid, ServiceUnavailable
from greengrader.messages import (
    MARKS,
    RESULTS,
    WORKERS,
    Accepted,
    Failed,
    Gone,
    Heartbeat,
    Mark,
    Message,
    OfAttempt,
    Registration,
    Released,
    Reply,
    Result,
    decode,
    may_reply_to,
    worker_of,
)
from greengrader.mqtt import Incoming, Link
from greengrader.record import row_of, text_of

log = logging.getLogger("greengrader")

IDLE_S = 2.0


def main(argv: list[str], stop: Stop) -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    settings = config.load()
    daemon.log_to_stderr("receiver", settings.log_level)
    link = Link(
        settings.required("mqtt_url"),
        client_id="greengrader-receiver",
        subscribe=[RESULTS, WORKERS],
        outage_limit_s=settings.outage_limit_s,
    )
    with Store.connect(settings.required("database_url"), application="receiver", alone=True) as store, link:
        receiver = Receiver(store, link, settings)
        log.info("ready topics=%s,%s broker=%s:%s", RESULTS, WORKERS, link.host, link.port)
        outage = Outage(settings.outage_limit_s, stop)
        for batch in link.batches(stop, idle_s=IDLE_S):
            while True:
                try:
                    for message in batch:
                        receiver.receive(message)
                    receiver.mark()
                    break
                except ServiceUnavailable as error:
                    outage.wait(error)
                    if stop:
                        return 0
            outage.over()
    return 0


class Receiver:
    def __init__(self, store: Store, link: Link, settings: Settings) -> None:
        self.store, self.link, self.settings = store, link, settings
        self.strangers: set[str] = set()  # workers that nobody registered: one warning each
        self.marked_at = 0.0  # monotonic seconds

    def receive(self, incoming: Incoming) -> None:
        """Stores one message, then acknowledges it. A malformed one is logged and acknowledged: it would come for
        ever."""
        worker = worker_of(incoming.topic)
        try:
            self.record(worker, decode(incoming.raw), incoming)
        except ServiceUnavailable:
            raise
        except GreenGraderError as error:  # malformed, or nothing that the database can hold: it would come for ever
            log.error("message dropped topic=%s digest=%s reason=%s", incoming.topic, incoming.digest[:12], error)
            self.reply(incoming, Reply("rejected", {"reason": str(error)}))
        incoming.acknowledge()

    def store_or_fail(self, worker: str, message: OfAttempt, result: dict[str, Any]) -> bool:
        """finish_run; a result that the database refuses ends the attempt as a fault of ours."""
        try:
            return self.store.finish_run(message.run_id, message.attempt, worker, result)
        except ServiceUnavailable:
            raise
        except GreenGraderError as error:
            self.record_failure(
                worker, Failed(run_id=message.run_id, attempt=message.attempt, reason=str(error)[:1000])
            )
            return True

    def record(self, worker: str, message: Message, incoming: Incoming) -> None:
        match message:
            case Accepted():
                if self.store.start_run(message.run_id, message.attempt, worker):
                    log.info("running run=%d attempt=%d worker=%s", message.run_id, message.attempt, worker)
            case Result():
                self.record_result(worker, message)
            case Failed():
                self.record_failure(worker, message)
            case Released():
                self.record_release(worker, message)
            case Heartbeat():
                self.record_heartbeat(worker, message)
            case Registration():
                self.register(worker, message, incoming)
            case Gone():
                self.store.lose_worker(worker)
                log.warning("worker gone worker=%s", worker)
            case Mark() if incoming.topic == MARKS:
                self.store.receiver_caught_up(message.at)
            case _:
                raise MessageInvalid(f"a worker does not send messages of kind {message.kind}")

    def record_result(self, worker: str, message: Result) -> None:
        """Grade, energy, emissions and parity in one row, if the run is still this worker's."""
        context = self.store.result_context(message.run_id, worker)
        if context is None or not self.store_or_fail(worker, message, row_of(message, worker, context, self.settings)):
            log.warning("late result dropped run=%d attempt=%d worker=%s", message.run_id, message.attempt, worker)
            return
        if "build_log" in message.parts:
            self.store.save_build_log(message.run_id, text_of(message, "build_log"))
        log.info("graded run=%d attempt=%d worker=%s", message.run_id, message.attempt, worker)

    def record_failure(self, worker: str, message: Failed) -> None:
        state = self.store.fail_run(
            message.run_id, message.attempt, worker, message.reason,
            for_good=message.for_good, max_attempts=self.settings.max_attempts,
        )  # fmt: skip
        if state is None:
            log.warning("late failure dropped run=%d attempt=%d worker=%s", message.run_id, message.attempt, worker)
            return
        if "build_log" in message.parts:
            self.store.save_build_log(message.run_id, text_of(message, "build_log"))
        level = logging.ERROR if state == "abandoned" else logging.WARNING
        log.log(level, "failed run=%d attempt=%d worker=%s now=%s reason=%r",
                message.run_id, message.attempt, worker, state, message.reason)  # fmt: skip

    def record_release(self, worker: str, message: Released) -> None:
        if message.autograder_missing:
            self.store.forget_worker_autograder(worker, message.run_id)
        if self.store.release_run(message.run_id, message.attempt, worker, message.reason):
            log.warning("handed back run=%d attempt=%d worker=%s reason=%r",
                        message.run_id, message.attempt, worker, message.reason)  # fmt: skip

    def record_heartbeat(self, worker: str, message: Heartbeat) -> None:
        if not self.store.see_worker(worker, message.slots, message.accepting, message.autograders):
            if worker not in self.strangers:
                self.strangers.add(worker)
                log.warning("unregistered worker=%s: run register.py there, with the same name", worker)
            return
        kept = self.store.extend_leases(worker, message.runs, self.settings.lease_s)
        for run_id, attempt in message.runs:
            if run_id not in kept:
                log.debug("lease not extended run=%d attempt=%d worker=%s", run_id, attempt, worker)

    def register(self, worker: str, message: Registration, incoming: Incoming) -> None:
        if message.worker != worker:
            raise MessageInvalid(f"the account of {worker} may register {worker} only, not {message.worker}")
        self.store.register_worker(message.model_dump())
        self.strangers.discard(worker)
        log.info("registered worker=%s region=%s slots=%d", worker, message.region, message.slots)
        self.reply(incoming, Reply("accepted", {"worker": worker}))

    def reply(self, incoming: Incoming, reply: Reply) -> None:
        if incoming.response_topic is not None and may_reply_to(incoming.response_topic):
            self.link.publish(incoming.response_topic, reply.encode(), expiry_s=60)

    def mark(self) -> None:
        """Sends a mark now and then. It comes back behind all that waits in the broker: then a worker that was not
        heard of before the mark was silent. Not right after a reconnect, when the workers are only about to reconnect
        as well."""
        now = time.monotonic()
        if now - self.marked_at > IDLE_S and self.link.connected_s > self.settings.worker_silent_s:
            self.link.publish(MARKS, Mark(at=self.store.now()).encode(), expiry_s=60)
            self.marked_at = now


if __name__ == "__main__":
    daemon.run(main)
