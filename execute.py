#!/usr/bin/env python3
"""A worker: takes jobs from `jobs/<worker>`, runs each in a container under limits, and sends what came of it.

Reports each job as accepted before it starts, keeps the leases of its runs by heartbeats, builds an autograder's image once,
and keeps every finished result in an outbox on disk until the broker has it. Knows no database and grades nothing: results.json
travels as it was. Takes no jobs below the free-space limit.

    nohup python3 execute.py >> execute.log 2>&1 &

SIGTERM: takes nothing more, lets its runs go on for GREENGRADER_STOP_GRACE_S, hands the others back. A second one: at once.
Settings: GREENGRADER_MQTT_URL (the worker's account), GREENGRADER_WORKER_NAME, GREENGRADER_SLOTS, …; see `.env.example`.
Exit codes: 0 stopped by SIGTERM · 1 bug · 2 usage or settings · 3 broker or container engine away.
"""

import argparse
import logging
import os
import queue
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from greengrader import config, daemon, sandbox
from greengrader.config import Settings
from greengrader.daemon import Stop
from greengrader.errors import AutograderBroken, AutograderMissing, MessageInvalid, SandboxError, ServiceUnavailable
from greengrader.images import BuiltImage, Images
from greengrader.limits import Limits
from greengrader.messages import (
    Accepted,
    Autograder,
    Failed,
    Gone,
    Heartbeat,
    Job,
    Message,
    Released,
    Result,
    decode,
    jobs_topic,
    results_topic,
    worker_topic,
)
from greengrader.mqtt import Incoming, Link
from greengrader.outbox import Outbox

log = logging.getLogger("greengrader")


def main(argv: list[str], stop: Stop) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, help="runs at a time (default: GREENGRADER_SLOTS, else one a core)")
    options = parser.parse_args(argv)
    settings = config.load({**os.environ, "GREENGRADER_SLOTS": str(options.slots)} if options.slots is not None else None)
    daemon.log_to_stderr("execute", settings.log_level)
    name = settings.worker_name or socket.gethostname()
    worker = Worker(name, settings)
    link = Link(
        settings.required("mqtt_url"),
        client_id=f"greengrader-worker-{name}",
        subscribe=[jobs_topic(name)],
        will=(worker_topic(name, "heartbeat"), Gone().encode()),
        outage_limit_s=settings.outage_limit_s,
        on_ready=worker.beat,
    )
    worker.start(link)
    with link:
        worker.send_outbox()
        log.info("ready worker=%s slots=%d broker=%s:%s", name, settings.slots, link.host, link.port)
        for message in link.messages(stop):
            worker.receive(message)
        worker.hand_back()
    worker.close()
    return 0


class Worker:
    """The runs that this machine holds, and the threads that work on them: one a slot, one for heartbeats."""

    link: Link

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.state = settings.state_dir / f"worker-{name}"
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.engine_name = engine_name(name, self.state)
        self.outbox = Outbox(self.state / "outbox")
        self.sources = self.state / "autograders"
        self.sources.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.held: dict[tuple[int, int], Job] = {}  # (run, attempt): accepted, its end not confirmed yet
        self.lock = threading.Lock()  # guards held
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.beat_now = threading.Event()
        self.stopping = threading.Event()
        self.killed = threading.Event()  # set: running containers are ended and their runs handed back
        self.threads: list[threading.Thread] = []

    # ------------------------------------------------------------------------------------------- life
    def start(self, link: Link) -> None:
        """Connects the engine, removes containers of an earlier life, starts the threads."""
        self.link = link
        self.images = Images.connect(self.settings, self.state)
        reaped = sandbox.reap_orphans(self.images.engine, self.engine_name, set())
        if reaped:
            log.warning("orphans removed containers=%d", reaped)
        self.images.collect_garbage()
        self.threads = [threading.Thread(target=self.guarded, args=(self.keep_beating,), name="heartbeat", daemon=True)]
        for slot in range(self.settings.slots):
            self.threads.append(threading.Thread(target=self.guarded, args=(self.work,), name=f"slot-{slot}", daemon=True))

    def send_outbox(self) -> None:
        """What was finished before the last end, then the threads begin."""
        for run_id, attempt, message in self.outbox.waiting():
            log.info("result sent again run=%d attempt=%d", run_id, attempt)
            self.link.confirm(self.link.publish(results_topic(self.name), message))
            self.outbox.remove(run_id, attempt)
        for thread in self.threads:
            thread.start()

    def hand_back(self) -> None:
        """Ends in order: queued jobs go back at once, running ones after the grace; then says good-bye."""
        self.stopping.set()
        self.beat()
        while not self.jobs.empty():
            job = self.jobs.get()
            if job is not None:
                self.release(job, "the worker stops")
        for _ in self.threads[1:]:
            self.jobs.put(None)
        deadline = time.monotonic() + self.settings.stop_grace_s
        for thread in self.threads[1:]:
            thread.join(max(deadline - time.monotonic(), 0))
        self.killed.set()
        for thread in self.threads[1:]:
            thread.join()
        self.link.confirm(self.link.publish(worker_topic(self.name, "heartbeat"), Gone().encode()))

    def close(self) -> None:
        self.images.close()

    def guarded(self, work: Callable[[], None]) -> None:
        """A thread's life: a fault that it cannot name ends the process through the main thread."""
        try:
            work()
        except BaseException as error:
            self.link.fail(error)

    # ---------------------------------------------------------------------------------- heartbeat thread
    def beat(self) -> None:
        self.beat_now.set()

    def keep_beating(self) -> None:
        while True:
            if self.link.is_connected and not self.killed.is_set():
                with self.lock:
                    runs = list(self.held)
                message = Heartbeat(
                    runs=runs,
                    slots=self.settings.slots,
                    accepting=self.accepting(),
                    autograders=sorted(self.images.digests() | {path.name for path in self.sources.iterdir()}),
                )
                self.link.publish(worker_topic(self.name, "heartbeat"), message.encode(), expiry_s=60)
            self.beat_now.wait(self.settings.heartbeat_s)
            self.beat_now.clear()

    def accepting(self) -> bool:
        """Takes jobs: not stopping, and enough room on the disks of the engine and of this worker."""
        if self.stopping.is_set():
            return False
        room = min(shutil.disk_usage(path).free for path in {self.state, self.images.data_root()})
        if room < self.settings.min_free_disk_bytes:
            log.error("disk full free_bytes=%d limit_bytes=%d: takes no jobs until there is room", room,
                      self.settings.min_free_disk_bytes)  # fmt: skip
            self.images.collect_garbage(0)
            return False
        return True

    # -------------------------------------------------------------------------------------- main thread
    def receive(self, incoming: Incoming) -> None:
        """Takes a job or an autograder's source, then acknowledges: from here on the lease protects the run."""
        try:
            message = decode(incoming.raw)
            if isinstance(message, Job):
                self.take(message)
            elif isinstance(message, Autograder):
                self.keep_source(message)
            else:
                raise MessageInvalid(f"a worker takes no messages of kind {message.kind}")
        except MessageInvalid as error:
            log.error("message dropped topic=%s digest=%s reason=%s", incoming.topic, incoming.digest[:12], error)
        incoming.acknowledge()

    def take(self, job: Job) -> None:
        """Queues the job for a slot, unless it is here already or there is no slot."""
        with self.lock:
            if (job.run_id, job.attempt) in self.held:
                log.info("job known already run=%d attempt=%d", job.run_id, job.attempt)
                return
            full = len(self.held) >= self.settings.slots
            if not full:
                self.held[job.run_id, job.attempt] = job
        if full or not self.accepting():
            self.release(job, "the worker has no free slot" if full else "the worker takes no jobs now")
        else:
            self.jobs.put(job)

    def keep_source(self, message: Autograder) -> None:
        """Keeps the staff's code until the image is built from it."""
        part = self.sources / f".{message.digest}"
        part.write_bytes(message.parts.get("archive", b""))
        part.rename(self.sources / message.digest)
        self.beat()

    # -------------------------------------------------------------------------------------- slot threads
    def work(self) -> None:
        while (job := self.jobs.get()) is not None:
            self.grade(job)

    def grade(self, job: Job) -> None:
        """One attempt from start to end; our own faults become messages too."""
        self.send(Accepted(run_id=job.run_id, attempt=job.attempt))
        log.info("running run=%d attempt=%d", job.run_id, job.attempt)
        try:
            image = self.images.ensure(job.autograder_digest, job.base_image, self.sources / job.autograder_digest)
            self.run(job, image)
        except AutograderMissing as error:
            self.release(job, str(error), autograder_missing=True)
        except AutograderBroken as error:
            log.error("autograder broken run=%d digest=%s reason=%s", job.run_id, job.autograder_digest[:12], error)
            self.fail(job, str(error), for_good=True, build_log=error.build_log)
        except (SandboxError, ServiceUnavailable) as error:
            if self.killed.is_set():
                self.release(job, "the worker stops")
            else:
                log.error("failed run=%d attempt=%d reason=%s", job.run_id, job.attempt, error)
                self.fail(job, str(error))

    def run(self, job: Job, image: BuiltImage) -> None:
        """Runs the job; its result is on its way before the container is removed."""
        if image.built:
            self.beat()  # the hub need not send this autograder again
        limits = job.limits(self.settings.run_limits())
        with sandbox.run(
            self.images.engine, image.reference, image.command, limits, job.parts.get("files", b""),
            run_id=job.run_id, attempt=job.attempt, worker=self.engine_name, cancelled=self.killed,
        ) as report:  # fmt: skip
            self.finish(job, result_of(job, image, limits, report))

    def finish(self, job: Job, result: Result) -> None:
        """Result to disk, to the broker, off the disk; the slot is free only when the broker has it."""
        raw = result.encode()
        self.outbox.put(job.run_id, job.attempt, raw)
        receipt = self.link.publish(results_topic(self.name), raw)
        while not self.killed.is_set():
            try:
                self.link.confirm(receipt)
                self.outbox.remove(job.run_id, job.attempt)
                break
            except ServiceUnavailable as error:
                log.warning("result waits run=%d attempt=%d reason=%s", job.run_id, job.attempt, error)
        self.let_go(job)
        log.info("finished run=%d attempt=%d wall_s=%.3f", job.run_id, job.attempt, result.wall_s)

    def fail(self, job: Job, reason: str, *, for_good: bool = False, build_log: str = "") -> None:
        parts = {"build_log": build_log.encode()} if build_log else {}
        self.send(Failed(run_id=job.run_id, attempt=job.attempt, reason=reason[:1000], for_good=for_good, parts=parts))
        self.let_go(job)

    def release(self, job: Job, reason: str, *, autograder_missing: bool = False) -> None:
        log.warning("handed back run=%d attempt=%d reason=%s", job.run_id, job.attempt, reason)
        self.send(
            Released(
                run_id=job.run_id, attempt=job.attempt, reason=f"{self.name}: {reason}", autograder_missing=autograder_missing
            )
        )
        self.let_go(job)

    def send(self, message: Message) -> None:
        """Sent in order and kept by paho while the broker is away; lost only with this process, as the lease allows for."""
        self.link.publish(results_topic(self.name), message.encode())

    def let_go(self, job: Job) -> None:
        with self.lock:
            self.held.pop((job.run_id, job.attempt), None)


def engine_name(worker: str, state: Path) -> str:
    """The worker's name among all that use this engine: a stack under test has a worker-1 as well, and must never take
    our containers for its own orphans. Made once, kept in the state folder."""
    path = state / "engine-name"
    if not path.exists():
        path.write_text(f"{worker}-{secrets.token_hex(4)}", encoding="utf-8")
    return path.read_text(encoding="utf-8")


def result_of(job: Job, image: BuiltImage, limits: Limits, report: sandbox.RunReport) -> Result:
    """What the container did, as it travels to the hub: facts only, nothing is judged here."""
    parts = {"output": report.output}
    if report.results is not None:
        parts["results"] = report.results
    if image.built:
        parts["build_log"] = image.build_log.encode()
    return Result(
        run_id=job.run_id,
        attempt=job.attempt,
        exit_status=report.exit_status,
        timed_out=report.timed_out,
        oom_killed=report.oom_killed,
        results_problem=report.results_problem,
        started_at=report.started_at,
        finished_at=report.finished_at,
        wall_s=report.wall_s,
        cpu_s=report.cpu_s,
        peak_memory_bytes=report.peak_memory_bytes,
        usage_method=report.usage_method,
        timeout_s=limits.timeout_s,
        cpus=limits.cpus,
        memory_bytes=limits.memory_bytes,
        image_built_s=image.build_s,
        warnings=[*image.warnings, *report.warnings],
        parts=parts,
    )


if __name__ == "__main__":
    daemon.run(main)
