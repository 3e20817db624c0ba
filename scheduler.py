#!/usr/bin/env python3
"""Places dispatched runs on workers: leases each in Postgres, then publishes it to `jobs/<worker>`.

Takes back the leases of workers that fell silent, and gives a run up when its attempts are used up. A worker that
drains, is silent or has no free slot gets nothing. The autograder's source goes along only to a worker that does not
have it. Never grades and never records a result.

    nohup python3 scheduler.py [--policy least-loaded] >> scheduler.log 2>&1 &
    python3 scheduler.py --once           one pass, then exit

Settings: GREENGRADER_DATABASE_URL, GREENGRADER_MQTT_URL, GREENGRADER_LEASE_S, …; see `.env.example`.
Exit codes: 0 stopped by SIGTERM, or the pass is done · 1 bug · 2 usage or settings · 3 Postgres or broker away · 4
schema.
"""

import argparse
import logging
import random
from collections.abc import Iterator

from greengrader import config, daemon
from greengrader.config import Settings
from greengrader.daemon import Outage, Stop
from greengrader.db import RUNS_CHANNEL, WORKERS_CHANNEL, Placed, Store
from greengrader.errors import ServiceUnavailable
from greengrader.messages import Autograder, Job, jobs_topic
from greengrader.mqtt import Link
from greengrader.policy import Choice, Place, Policy, choose

log = logging.getLogger("greengrader")

PASS_RUNS = 500  # leased by one statement
IN_HAND_BYTES = 16 * 1024 * 1024  # of submissions' files in memory at a time
FALLBACK_S = 5.0  # leases end without anybody telling
WORTH_A_PASS = ("dispatched ", "graded ", "abandoned ")  # notices after which a run or a slot is free


def main(argv: list[str], stop: Stop) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Policy, choices=list(Policy), default=Policy.LEAST_LOADED, metavar="POLICY",
                        help="random, round-robin, least-loaded (default) or carbon")  # fmt: skip
    parser.add_argument("--once", action="store_true", help="one pass over what is dispatched, then exit")
    options = parser.parse_args(argv)
    settings = config.load()
    daemon.log_to_stderr("scheduler", settings.log_level)
    client_id = "greengrader-scheduler" + ("-once" if options.once else "")
    link = Link(
        settings.required("mqtt_url"), client_id=client_id, keep_session=False, outage_limit_s=settings.outage_limit_s
    )
    with (
        Store.connect(settings.required("database_url"), application="scheduler", alone=not options.once) as store,
        link,
    ):
        store.listen(RUNS_CHANNEL, WORKERS_CHANNEL)
        scheduler = Scheduler(store, link, settings, options.policy)
        log.info("ready policy=%s broker=%s:%s", options.policy, link.host, link.port)
        outage = Outage(settings.outage_limit_s, stop)
        while not stop:
            try:
                scheduler.take_back()
                placed = scheduler.place()
                if options.once:
                    print(f"placed {placed} runs")
                    return 0
                outage.over()
                scheduler.wait(stop)
            except ServiceUnavailable as error:
                link.check()
                outage.wait(error)
    return 0


class Scheduler:
    """The connections of this process, and where round-robin stands."""

    def __init__(self, store: Store, link: Link, settings: Settings, policy: Policy) -> None:
        self.store, self.link, self.settings, self.policy = store, link, settings, policy
        self.chance = random.Random()
        self.last_worker = ""

    def take_back(self) -> None:
        """Runs of workers that let their lease run out wait for a place again, or are given up."""
        for run in self.store.expire_leases(self.settings.max_attempts):
            level = logging.ERROR if run.state == "abandoned" else logging.WARNING
            log.log(
                level,
                "lease expired run=%d attempt=%d worker=%s now=%s",
                run.run_id,
                run.attempt,
                run.worker,
                run.state,
            )

    def place(self) -> int:
        """Places as many runs as there are free slots; returns how many."""
        placed = 0
        while self.link.check():
            places = list(self.open_places())
            free = sum(place.free for place in places)
            queued = self.store.next_dispatched(min(free, PASS_RUNS)) if free else []
            choices = choose(
                self.policy, [run.run_id for run in queued], places, chance=self.chance, after=self.last_worker
            )
            if not choices:
                break
            self.last_worker = choices[-1].worker
            placed += self.lease_and_send(choices)
        return placed

    def open_places(self) -> Iterator[Place]:
        for worker in self.store.workers():
            alive = worker.silent_s is not None and worker.silent_s < self.settings.worker_silent_s
            if alive and worker.accepting and not worker.draining and worker.free:
                yield Place(worker.worker, worker.slots, worker.free)

    def lease_and_send(self, choices: list[Choice]) -> int:
        """Leases first, so that nobody else can place them; then publishes. What is not sent comes back by its
        lease."""
        leased = self.store.place_runs([(c.run_id, c.worker, c.reason) for c in choices], self.settings.lease_s)
        receipts = []
        sent: set[tuple[str, str]] = set()
        for portion in portions(leased):
            files = self.store.submission_archives([run.run_id for run in portion])
            for run in portion:
                if not run.worker_has_autograder and (run.worker, run.autograder_digest) not in sent:
                    self.send_autograder(run)
                    sent.add((run.worker, run.autograder_digest))
                job = job_for(run, files[run.run_id])
                receipts.append(self.link.publish(jobs_topic(run.worker), job, expiry_s=int(self.settings.lease_s) + 1))
                log.info("placed run=%d attempt=%d worker=%s", run.run_id, run.attempt, run.worker)
        for receipt in receipts:
            self.link.confirm(receipt)
        return len(leased)

    def send_autograder(self, run: Placed) -> None:
        """The staff's code, to a worker that neither has it nor was just sent it."""
        archive = self.store.autograder_archive(run.autograder_digest)
        message = Autograder(digest=run.autograder_digest, base_image=run.base_image, parts={"archive": archive})
        self.link.publish(jobs_topic(run.worker), message.encode())
        self.store.note_autograder_sent(run.worker, run.autograder_digest)
        log.info("autograder sent digest=%s worker=%s bytes=%d", run.autograder_digest[:12], run.worker, len(archive))

    def wait(self, stop: Stop) -> None:
        """Until a run or a slot is free, or it is time to look at the leases."""
        while not stop:
            notices = self.store.wait(stop, FALLBACK_S if self.link.check() else 1.0)
            if not notices or any(
                channel == WORKERS_CHANNEL or text.startswith(WORTH_A_PASS) for channel, text in notices
            ):
                return


def portions(leased: list[Placed]) -> Iterator[list[Placed]]:
    """The runs in their order, cut so that their files together stay within IN_HAND_BYTES."""
    portion: list[Placed] = []
    size = 0
    for run in leased:
        if portion and size + run.archive_bytes > IN_HAND_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(run)
        size += run.archive_bytes
    if portion:
        yield portion


def job_for(run: Placed, files: bytes) -> bytes:
    return Job(
        run_id=run.run_id,
        attempt=run.attempt,
        submission_id=run.submission_id,
        autograder_digest=run.autograder_digest,
        base_image=run.base_image,
        cpus=run.cpus,
        memory_bytes=run.memory_bytes,
        timeout_s=run.timeout_s,
        network=run.network,
        parts={"files": files},
    ).encode()


if __name__ == "__main__":
    daemon.run(main)
