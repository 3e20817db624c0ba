"""Life of a process: signals, exit codes, logging. The one place that catches everything.

A script's last line is `daemon.run(main)`. Exit codes: 0 stopped when asked · 1 a bug, with its traceback · 2 usage or
settings · 3 a service not reachable at start, or away beyond the limit · 4 the schema's version differs.
"""

import logging
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from greengrader.errors import GreenGraderError, ServiceUnavailable

log = logging.getLogger("greengrader")


class Stop:
    """Set by SIGTERM or SIGINT; a second signal ends the process at once.

    `fileno` becomes readable when it is set, so that `select` can wait for it together with a socket;
    listeners added by `tell` are called from the signal handler and must only put a mark into a queue.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._listeners: list[Callable[[], None]] = []
        self._is_set = False

    def __bool__(self) -> bool:
        return self._is_set

    def fileno(self) -> int:
        return self._reader

    def tell(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)
        if self._is_set:
            listener()

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            os.write(self._writer, b"x")
            for listener in self._listeners:
                listener()

    def wait(self, timeout_s: float) -> bool:
        """True as soon as it is set, False after the time."""
        return bool(select.select([self], [], [], timeout_s)[0])

    def on_signals(self) -> None:
        """Listen to SIGTERM and SIGINT from now on; main thread only."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._is_set:
                os._exit(128 + number)
            self.set()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)


class Outage:
    """Patience with a service that is away: waits longer and longer, up to a limit, then raises.

    >>> outage = Outage(limit_s, stop)
    ... while not stop:
    ...     try: work(); outage.over()
    ...     except ServiceUnavailable as error: outage.wait(error)
    """

    def __init__(self, limit_s: float, stop: Stop) -> None:
        self._limit_s, self._stop = limit_s, stop
        self._began: float | None = None
        self._pause_s = 0.1

    def over(self) -> None:
        if self._began is not None:
            log.info("back after_s=%.1f", time.monotonic() - self._began)
        self._began, self._pause_s = None, 0.1

    def wait(self, error: ServiceUnavailable) -> None:
        """Sleeps before the next try (jittered, at most 5 s); raises `error` again beyond the limit."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
            log.warning("away %s; trying again for up to %.0f s", error, self._limit_s)
        if now - self._began > self._limit_s:
            raise error
        self._stop.wait(self._pause_s * random.uniform(0.7, 1.3))
        self._pause_s = min(self._pause_s * 2, 5.0)


def log_to_stderr(name: str, level: str = "INFO") -> None:
    """One line an entry: time, level, daemon, event and key=value pairs."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine(f"%(asctime)s %(levelname)s {name} %(message)s", "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(level)


class _OneLine(logging.Formatter):
    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return f"{super().formatTime(record, datefmt)}.{int(record.msecs):03d}Z"

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", " | ")


def guarded(work: Callable[[], None], on_fault: Callable[[BaseException], None]) -> Callable[[], None]:
    """`work` for another thread: what it raises goes to `on_fault` instead of being printed and forgotten."""

    def call() -> None:
        try:
            work()
        except Exception as error:
            on_fault(error)

    return call


def thread(name: str, work: Callable[[], None], on_fault: Callable[[BaseException], None]) -> threading.Thread:
    """A guarded thread, not started yet."""
    return threading.Thread(target=guarded(work, on_fault), name=name, daemon=True)


def run(main: Callable[[list[str], Stop], int]) -> NoReturn:
    """Runs `main(arguments, stop)` and ends the process with its code, or with the code of the fault that it raised."""
    name = Path(sys.argv[0]).stem
    name = "greengrader" if name == "__main__" else name
    log_to_stderr(name)
    stop = Stop()
    stop.on_signals()
    try:
        code = main(sys.argv[1:], stop)
        sys.stdout.flush()  # here, where a reader that has left is no fault
    except GreenGraderError as error:
        log.error("%s", error)
        code = error.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            code = 0
        else:
            log.exception("bug: this should not happen; please report it with these lines")
            code = 1
    sys.exit(code)


def _nobody_reads() -> bool:
    """`greengrader status | head`: our output's reader has left. Then drops what is still to be written."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # a pipe without a reader is told as an error, asked for or not
    if not any(told & (select.POLLERR | select.POLLHUP) for _, told in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
