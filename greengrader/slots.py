"""The runs that a worker holds, and the threads that work on them: one a slot."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto

from greengrader import daemon
from greengrader.messages import Job


class Taken(Enum):
    """What became of a job that was offered."""

    yes = auto()
    known = auto()  # it is held already: a second copy of the message
    full = auto()


class Slots:
    """`count` threads that call `work(job)` for each job taken; what they raise goes to `on_fault`."""

    def __init__(self, count: int, work: Callable[[Job], None], on_fault: Callable[[BaseException], None]) -> None:
        self._count, self._work = count, work
        self._held: set[tuple[int, int]] = set()  # (run id, attempt): taken, its end not confirmed yet
        self._lock = threading.Lock()  # guards _held
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads = [daemon.thread(f"slot-{number}", self._run, on_fault) for number in range(count)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def take(self, job: Job) -> Taken:
        """Holds the job and queues it for a free slot, unless it is known or there is none."""
        with self._lock:
            if (job.run_id, job.attempt) in self._held:
                return Taken.known
            if len(self._held) >= self._count:
                return Taken.full
            self._held.add((job.run_id, job.attempt))
        self._jobs.put(job)
        return Taken.yes

    def let_go(self, job: Job) -> None:
        """The hub knows the end of this job: its slot is free."""
        with self._lock:
            self._held.discard((job.run_id, job.attempt))

    def held(self) -> list[tuple[int, int]]:
        """(run id, attempt) of every job that was taken and not let go."""
        with self._lock:
            return list(self._held)

    def close(self) -> Iterator[Job]:
        """No thread begins another job; yields those that none has begun."""
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                yield job
        for _ in self._threads:
            self._jobs.put(None)

    def join(self, timeout_s: float | None = None) -> None:
        """Returns when all threads have ended, or after the time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._work(job)
