#!/usr/bin/env python3
"""A worker: takes jobs from `jobs/<worker>`, runs each in a container under limits, and sends what came of it.

Reports each job as accepted before it starts, keeps the leases of its runs by heartbeats, builds an autograder's image
once, and keeps every finished result in an outbox on disk until the broker has it. Knows no database and grades
nothing: results.json travels as it was. Takes no jobs below the free-space limit.

    nohup python3 execute.py >> execute.log 2>&1 &

SIGTERM: takes nothing more, lets its runs go on for GREENGRADER_STOP_GRACE_S, hands the others back. Twice: at once.
Settings: GREENGRADER_MQTT_URL (the worker's account), GREENGRADER_WORKER_NAME, GREENGRADER_SLOTS; see `.env.example`.
Exit codes: 0 stopped by SIGTERM · 1 bug · 2 usage or settings · 3 broker or container engine away.
"""

import argparse
import logging
import os
import socket
import threading
from functools import partial

from greengrader import config, daemon, sandbox
from greengrader.config import Settings
from greengrader.daemon import Stop
from greengrader.errors import (
    AutograderBroken,
    AutograderMissing,
    MessageInvalid,
    SandboxError,
    ServiceUnavailable,
)
from greengrader.images import BuiltImage, Images
from greengrader.limits import Limits
from greengrader.messages import (
    Accepted,
    Autograder,
    Failed,
    Gone,
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
from greengrader.pulse import Pulse
from greengrader.slots import Slots, Taken
from greengrader.workplace import Workplace

log = logging.getLogger("greengrader")


def main(argv: list[str], stop: Stop) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, help="runs at a time (default: GREENGRADER_SLOTS, else one a core)")
    options = parser.parse_args(argv)
    given = {} if options.slots is None else {"GREENGRADER_SLOTS": str(options.slots)}
    settings = config.load({**os.environ, **given})
    daemon.log_to_stderr("execute", settings.log_level)
    name = settings.worker_name or socket.gethostname()
    worker = Worker(name, settings)
    link = Link(
        settings.required("mqtt_url"),
        client_id=f"greengrader-worker-{name}",
        subscribe=[jobs_topic(name)],
        will=(worker_topic(name, "heartbeat"), Gone().encode()),
        outage_limit_s=settings.outage_limit_s,
        on_ready=worker.pulse.beat,
    )
    with link:
        worker.start(link)
        log.info("ready worker=%s slots=%d broker=%s:%s", name, settings.slots, link.host, link.port)
        for message in link.messages(stop):
            worker.receive(message)
        worker.hand_back()
    worker.images.close()
    return 0


class Worker:
    """The engine, the link to the hub and the slots of this machine."""

    link: Link

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.workplace = Workplace(settings.state_dir, name)
        self.images = Images.connect(settings, self.workplace.folder)
        self.slots = Slots(settings.slots, self.grade, self.fault)
        self.pulse = Pulse(name, settings, self.workplace, self.images, self.slots)
        self.killed = threading.Event()  # set: running containers are ended and their runs handed back

    # ------------------------------------------------------------------------------------------- life
    def start(self, link: Link) -> None:
        """Clears up what an earlier life left: its containers, and finished results that the broker never got."""
        self.link = link
        sandbox.reap_orphans(self.images.engine, self.workplace.engine_name, set())
        self.images.collect_garbage()
        for run_id, attempt, message in self.workplace.outbox.waiting():
            log.info("result sent again run=%d attempt=%d", run_id, attempt)
            self.link.confirm(self.link.publish(results_topic(self.name), message))
            self.workplace.outbox.remove(run_id, attempt)
        self.slots.start()
        daemon.thread("heartbeat", partial(self.pulse.keep_beating, link), self.fault).start()

    def hand_back(self) -> None:
        """Ends in order: queued jobs go back at once, running ones after the grace; then says good-bye."""
        self.pulse.stop_accepting()
        for job in self.slots.close():
            self.release(job, "the worker stops")
        self.slots.join(self.settings.stop_grace_s)
        self.killed.set()
        self.slots.join()
        self.link.confirm(self.link.publish(worker_topic(self.name, "heartbeat"), Gone().encode()))

    def fault(self, error: BaseException) -> None:
        """A thread's fault that nobody can name ends the process, through the main thread."""
        self.link.fail(error)

    # -------------------------------------------------------------------------------------- main thread
    def receive(self, incoming: Incoming) -> None:
        """Takes a job or an autograder's source, then acknowledges: from here on the lease protects the run."""
        try:
            message = decode(incoming.raw)
            if isinstance(message, Job):
                self.take(message)
            elif isinstance(message, Autograder):
                self.workplace.keep_source(message.digest, message.parts.get("archive", b""))
                self.pulse.beat()  # the hub need not send it again
            else:
                raise MessageInvalid(f"a worker takes no messages of kind {message.kind}")
        except MessageInvalid as error:
            log.error("message dropped topic=%s digest=%s reason=%s", incoming.topic, incoming.digest[:12], error)
        incoming.acknowledge()

    def take(self, job: Job) -> None:
        """Queues the job for a slot; what cannot be taken goes back to the hub."""
        if not self.pulse.is_accepting:
            self.pulse.beat()  # the hub should know, or it sends the next one at once
            self.release(job, "the worker takes no jobs now")
            return
        taken = self.slots.take(job)
        if taken is Taken.full:
            self.release(job, "the worker has no free slot")
        elif taken is Taken.known:
            log.info("job known already run=%d attempt=%d", job.run_id, job.attempt)

    # -------------------------------------------------------------------------------------- slot threads
    def grade(self, job: Job) -> None:
        """One attempt from start to end; our own faults become messages too."""
        self.send(Accepted(run_id=job.run_id, attempt=job.attempt))
        log.info("running run=%d attempt=%d", job.run_id, job.attempt)
        try:
            self.run(job, self.image_for(job))
        except AutograderMissing as error:
            self.release(job, str(error), autograder_missing=True)
        except AutograderBroken as error:
            log.error("autograder broken run=%d digest=%s reason=%s", job.run_id, job.autograder_digest[:12], error)
            self.fail(job, str(error), for_good=True, build_log=error.build_log)
        except SandboxError as error:
            if self.killed.is_set():
                self.release(job, "the worker stops")
            else:
                log.error("failed run=%d attempt=%d reason=%s", job.run_id, job.attempt, error)
                self.fail(job, str(error))

    def image_for(self, job: Job) -> BuiltImage:
        """The autograder's image, built if need be; then its source is not needed here any more."""
        source = self.workplace.source(job.autograder_digest)
        image = self.images.ensure(job.autograder_digest, job.base_image, source)
        if image.built:
            source.unlink(missing_ok=True)
            self.images.collect_garbage()
        return image

    def run(self, job: Job, image: BuiltImage) -> None:
        """Runs the job; its result is on its way before the container is removed."""
        limits = job.limits(self.settings.run_limits())
        with sandbox.run(
            self.images.engine, image.reference, image.command, limits, job.parts.get("files", b""),
            run_id=job.run_id, attempt=job.attempt, worker=self.workplace.engine_name, cancelled=self.killed,
        ) as report:  # fmt: skip
            self.finish(job, result_of(job, image, limits, report))

    def finish(self, job: Job, result: Result) -> None:
        """Result to disk, to the broker, off the disk; the slot is free only when the broker has it."""
        raw = result.encode()
        self.workplace.outbox.put(job.run_id, job.attempt, raw)
        receipt = self.link.publish(results_topic(self.name), raw)
        while not self.killed.is_set():
            try:
                self.link.confirm(receipt)
                self.workplace.outbox.remove(job.run_id, job.attempt)
                break
            except ServiceUnavailable as error:
                log.warning("result waits run=%d attempt=%d reason=%s", job.run_id, job.attempt, error)
        self.slots.let_go(job)
        log.info("finished run=%d attempt=%d wall_s=%.3f", job.run_id, job.attempt, result.wall_s)

    def fail(self, job: Job, reason: str, *, for_good: bool = False, build_log: str = "") -> None:
        parts = {"build_log": build_log.encode()} if build_log else {}
        self.send(Failed(run_id=job.run_id, attempt=job.attempt, reason=reason[:1000], for_good=for_good, parts=parts))
        self.slots.let_go(job)

    def release(self, job: Job, reason: str, *, autograder_missing: bool = False) -> None:
        log.warning("handed back run=%d attempt=%d reason=%s", job.run_id, job.attempt, reason)
        why = f"{self.name}: {reason}"
        self.send(Released(run_id=job.run_id, attempt=job.attempt, reason=why, autograder_missing=autograder_missing))
        self.slots.let_go(job)

    def send(self, message: Message) -> None:
        """Sent in order, kept by paho while the broker is away; lost only with this process: leases allow for that."""
        self.link.publish(results_topic(self.name), message.encode())


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
        warnings=list(report.warnings),
        parts=parts,
    )


if __name__ == "__main__":
    daemon.run(main)
