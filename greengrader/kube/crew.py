"""A few threads for work that blocks: a pool whose work waits only once, and that never keeps a process from ending."""

import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from greengrader import daemon

Job = tuple[Callable[..., None], tuple[Any, ...]]


class Crew:
    """Threads that take jobs in order. The same work with the same arguments waits only once, however often it is
    given: so what is asked for again and again while a service is away does not pile up."""

    def __init__(self, name: str, threads: int, on_fault: Callable[[BaseException], None]) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting: set[Job] = set()
        self._lock = threading.Lock()  # guards `_waiting` and `_is_closed`
        self._is_closed = False
        self._on_fault = on_fault
        self._threads = [daemon.thread(f"{name}-{number}", self._work, on_fault) for number in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Has a thread call it, unless just this waits already; nothing once the crew is closed."""
        with self._lock:
            if self._is_closed or (work, arguments) in self._waiting:
                return
            self._waiting.add((work, arguments))
        self._jobs.put((work, arguments))

    def close(self, patience_s: float) -> bool:
        """Begins nothing any more; True when all that was begun has ended within that time."""
        with self._lock:
            self._is_closed = True
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                self._waiting.discard(job)  # from here on it may be given again: things may have changed
                if self._is_closed:
                    return
            work, arguments = job
            daemon.guarded(partial(work, *arguments), self._on_fault)()
