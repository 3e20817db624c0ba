"""One watch of the cluster's pods for a whole process: one connection, one thread, a small state of each pod.

Theory of operation. The pods are listed, then watched from the list's resourceVersion on. The server ends every watch
after WATCH_S, and it is taken up where it ended; so a connection that is only half alive is noticed. Where it breaks
off before, or where the server no longer knows the version (410 Gone), the pods are listed again, and what has changed
meanwhile is told from the difference: nothing is missed but states in between.

Listeners are called with a pod's new state, or with its last one and True when it has been deleted. That happens in the
watch's thread, in order and with its lock held; so they must only put a mark into a queue. Changes that mean nothing to
a run are not told.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from greengrader import daemon
from greengrader.errors import GreenGraderError
from greengrader.kube.cluster import Cluster, ClusterRefused, ClusterUnavailable, PodEvents, VersionGone
from greengrader.kube.podspec import SELECTOR
from greengrader.kube.podstate import PodState

log = logging.getLogger("greengrader")

WATCH_S = 60
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
CLOSE_S = 15.0
SHORT_S = 1.0  # a watch that ends sooner has been cut off, however politely


Listener = Callable[[PodState, bool], None]


class PodWatch:
    """The pods of a cluster's namespace that have the labels, as they are now; a context manager."""

    def __init__(
        self,
        cluster: Cluster,
        selector: str = SELECTOR,
        listener: Listener | None = None,
        on_fault: Callable[[BaseException], None] = lambda fault: None,
    ) -> None:
        self._cluster, self._selector, self._on_fault = cluster, selector, on_fault
        self._lock = threading.RLock()  # guards all below
        self._listeners: list[tuple[Listener, str | None]] = [(listener, None)] if listener else []
        self._pods: dict[str, PodState] = {}
        self._is_listed = False
        self._events: PodEvents | None = None
        self._away_since: float | None = None
        self._trouble: GreenGraderError | None = None
        self._fault: BaseException | None = None
        self._closing = threading.Event()
        self._thread = daemon.thread("pods-watch", self._run, self._died)
        self._version: str | None = None
        self._pause_s = FIRST_PAUSE_S

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Lists the pods, telling the listeners of each, and watches from then on; raises what the cluster says."""
        self._list()
        self._thread.start()

    def close(self) -> None:
        """Tells nobody anything any more. Not to be called by a listener."""
        self._closing.set()
        with self._lock:
            self._listeners.clear()
            if self._events is not None:
                self._events.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def listen(self, listener: Listener, pod: str | None = None) -> Callable[[], None]:
        """Tells `listener` of every pod there is, then of every change; of one pod alone where one is named.

        Returns what ends that.
        """
        entry = (listener, pod)
        with self._lock:
            for name, state in self._pods.items():
                if pod is None or pod == name:
                    listener(state, False)
            self._listeners.append(entry)

        def stop() -> None:
            with self._lock:
                if entry in self._listeners:
                    self._listeners.remove(entry)

        return stop

    def pods(self) -> dict[str, PodState]:
        """{name: state} of all pods, as far as is known."""
        with self._lock:
            return dict(self._pods)

    @property
    def is_current(self) -> bool:
        """True while changes are heard of, so that `pods` is what the cluster says."""
        with self._lock:
            return self._is_listed and self._away_since is None

    @property
    def away_s(self) -> float:
        """For how long changes have not been heard of; 0 while the watch is open."""
        with self._lock:
            return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    def check(self, limit_s: float) -> None:
        """Raises the last trouble when it has lasted for longer than `limit_s`, and a fault of the watch at once."""
        with self._lock:
            if self._fault is not None:
                raise self._fault
            if self._trouble is not None and self.away_s > limit_s:
                raise self._trouble

    # ------------------------------------------------------------------------------------------ the thread
    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if self._version is None:
                    self._list()
                else:
                    self._follow(self._version)
            except VersionGone as error:
                self._lost(error, logging.INFO)
                self._pause()
            except (ClusterUnavailable, ClusterRefused) as error:
                self._lost(error)
                self._pause()

    def _list(self) -> None:
        """Takes the list for the truth, and tells of the difference."""
        listed, version = self._cluster.pods_and_version(self._selector)
        with self._lock:
            names = {pod.name for pod in listed}
            for pod in [pod for name, pod in self._pods.items() if name not in names]:
                self._tell(pod, deleted=True)
            for pod in listed:
                self._tell(pod, deleted=False)
            self._is_listed = True
        self._version = version

    def _follow(self, version: str) -> None:
        """Tells what happens until the server ends the watch; the next one goes on from there."""
        self._version = None  # unless it ends as it should
        opened_at = time.monotonic()
        with self._cluster.pod_events(self._selector, version, WATCH_S) as events:
            with self._lock:
                if self._closing.is_set():
                    return
                self._events = events
            self._found()
            try:
                for kind, raw in events:
                    version = self._happened(kind, raw)
            finally:
                with self._lock:
                    self._events = None
        if time.monotonic() - opened_at < SHORT_S:
            raise ClusterUnavailable(f"the cluster ended the watch within {SHORT_S:g} s")
        self._version, self._pause_s = version, FIRST_PAUSE_S

    def _happened(self, kind: str, raw: dict[str, Any]) -> str:
        """Tells of an event; returns the version that it leads to."""
        if kind == "ERROR":
            text = str(raw.get("message"))
            raise VersionGone(text, 410) if raw.get("code") == 410 else ClusterUnavailable(f"the watch ended: {text}")
        if kind in ("ADDED", "MODIFIED", "DELETED"):
            with self._lock:
                self._tell(PodState.from_json(raw), deleted=kind == "DELETED")
        self._pause_s = FIRST_PAUSE_S
        return str(raw["metadata"]["resourceVersion"])  # all that a BOOKMARK has

    def _tell(self, pod: PodState, *, deleted: bool) -> None:
        """Notes the change and tells it, unless it means nothing; the lock is held."""
        known = self._pods.get(pod.name)
        if known is not None and known.uid != pod.uid:
            # Another pod of the same name: nobody has told of the first one's end.
            del self._pods[pod.name]
            self._call(known, True)
            known = None
        if deleted:
            self._pods.pop(pod.name, None)
        elif known == pod:
            return
        else:
            self._pods[pod.name] = pod
        self._call(pod, deleted)

    def _call(self, pod: PodState, deleted: bool) -> None:
        for listener, name in list(self._listeners):
            if name is None or name == pod.name:
                listener(pod, deleted)

    # ------------------------------------------------------------------------------------------ outages
    def _lost(self, error: GreenGraderError, level: int = logging.WARNING) -> None:
        with self._lock:
            if self._away_since is None and not self._closing.is_set():
                log.log(level, "watch lost, pods will be listed again: %s", error)
                self._away_since = time.monotonic()
            self._trouble = error

    def _found(self) -> None:
        with self._lock:
            if self._away_since is not None:
                log.info("watch back after_s=%.1f", time.monotonic() - self._away_since)
            self._away_since = self._trouble = None

    def _pause(self) -> None:
        """Longer from time to time, until something is heard again."""
        self._closing.wait(self._pause_s * random.uniform(0.7, 1.3))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _died(self, fault: BaseException) -> None:
        log.error("watch ended by a bug: %r", fault)
        with self._lock:
            self._fault = fault
            self._away_since = self._away_since or time.monotonic()
        self._on_fault(fault)
