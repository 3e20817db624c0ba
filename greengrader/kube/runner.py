"""The life of runs in pods: from a received run to its graded row, many at a time, watched by one connection.

Theory of operation. A run is prepared, its image built and pushed, its place chosen, and it is leased to this process
(`place_pod`). Then its files go to storage, under a prefix of this run and attempt alone, and the pod is created, named
by run and attempt. From there the watch tells: started, ended. At the end the results come from storage and the log
from the cluster, the row is recorded by the same SQL function as a worker's, and pod and prefix are removed.

This process may die at any of these steps. The lease then runs out; whoever adopts the run finds its pod by name: it
waits for it, collects it if it has ended, or, where there is none, ends the attempt. A second pod of the same attempt
cannot be made, because its name is taken. Pods and prefixes that no held run owns are swept.

What keeps a run from being placed costs it no attempt: it is handed back, and nothing is begun for a while. A pod whose
creation was not answered is created again, by the same name. What keeps a result from being collected is tried again.

Threads: the watch's, a few for blocking work (`WORK_THREADS`, each with a database connection of its own), and one that
keeps leases, adopts, and has the others look again and sweep; it waits for nothing but the database. An unexpected
fault of any of them goes to `on_fault`.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from greengrader import daemon
from greengrader.carbon.regions import scores
from greengrader.config import Settings
from greengrader.db import ResultContext, Run, Store
from greengrader.errors import AutograderBroken, GreenGraderError, PayloadRejected
from greengrader.kube import collect
from greengrader.kube.builds import Builds
from greengrader.kube.cluster import AlreadyExists, Cluster, ClusterUnavailable, Forbidden, PodInvalid
from greengrader.kube.crew import Crew
from greengrader.kube.node import Node, pod_requests
from greengrader.kube.pod import Ended, PodState, Running, Stuck, classify
from greengrader.kube.podspec import PodspecInvalid, RunPod, pod_name, render
from greengrader.kube.region import Preference, choose
from greengrader.kube.template import AUTOGRADER, PodTemplate
from greengrader.kube.transport import FILES, RESULTS, Remote, prefix_of
from greengrader.kube.watch import PodWatch
from greengrader.limits import Limits
from greengrader.prepare import prepare
from greengrader.record import row_of

log = logging.getLogger("greengrader.pods")  # pod.sh, which tells of one run in its own words, turns it off

PODSPEC = Path(__file__).resolve().parents[2] / "pod.yaml"
WORK_THREADS = 8
SWEEP_LEASES = 2  # leases' time between two sweeps
NODES_FRESH_S = 30.0  # on a large cluster the nodes and their pods are many megabytes
OWNER = f"{socket.gethostname()}:{os.getpid()}"
UNSEEN_S = 30.0  # of a pod that the watch has not shown for so long the cluster itself is asked
STUCK_S = 120.0  # what keeps a pod from starting may pass; not for longer than this
AGAIN_S, AGAIN_MOST_S = 1.0, 15.0  # pauses of what a service that is away keeps from being done
CLOSE_S = 10.0  # what is being done may take so long when the process ends; whoever adopts the run goes on with it
FULL = ("Insufficient ", "Too many pods")  # the scheduler's words for nodes that will take the pod later


def template_for(settings: Settings, folder: Path | None = None) -> PodTemplate:
    """The podspec in force: pod.yaml in `folder`, else the setting's, else the project's."""
    own = folder / "pod.yaml" if folder is not None else None
    return PodTemplate.read(own if own is not None and own.is_file() else settings.kube_podspec or PODSPEC)


@dataclass(eq=False)
class Flight:
    """One attempt at one run, held by this process."""

    run: Run
    attempt: int
    limits: Limits
    state: PodState | None = None  # as the watch saw it last
    deleted: bool = False
    started: bool = False
    ending: bool = False  # a thread collects it
    anywhere: bool = True  # it was placed without preference
    launching: bool = False  # a thread is about to create the pod
    manifest: dict[str, Any] | None = None  # of a pod that is to be created, until the cluster has answered
    look_at: float = field(default_factory=time.monotonic)  # not before then the keeper has it looked at
    pause_s: float = AGAIN_S

    @property
    def key(self) -> tuple[int, int]:
        return self.run.run_id, self.attempt

    @property
    def pod(self) -> str:
        return pod_name(self.run.run_id, self.attempt)

    @property
    def prefix(self) -> str:
        return prefix_of(self.run.run_id, self.attempt)


class Runner:
    """Runs in flight on a cluster; a context manager."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        template: PodTemplate,
        *,
        on_fault: Callable[[BaseException], None],
        on_trouble: Callable[[Run, GreenGraderError], None] = lambda run, error: None,
        only_run: int | None = None,
    ) -> None:
        """`on_fault` hears of bugs, `on_trouble` of what keeps a run from being placed; both on other threads. With
        `only_run` no other run is adopted and nothing is swept: the process will not stay for long."""
        self._settings, self._cluster, self._template = settings, cluster, template
        self._on_fault, self._on_trouble, self._only_run = on_fault, on_trouble, only_run
        self._remote = Remote(settings.rclone_remote, settings.rclone_config, settings.rclone_timeout_s)
        self._builds = Builds(settings)
        self._watch = PodWatch(cluster, listener=self._seen, on_fault=on_fault)
        self._flights: dict[tuple[int, int], Flight] = {}
        self._beginning: set[int] = set()  # ids of runs that a thread prepares
        self._files: dict[int, bytes] = {}  # {run id: files that replace the stored ones}
        self._anywhere: set[int] = set()  # ids of runs that found no node where they were wanted
        self._pause_s, self._paused_until = AGAIN_S, 0.0  # nothing is begun, because something is away
        self._lock = threading.Lock()  # guards the six above and the flights' fields
        self._nodes: tuple[float, list[Node]] | None = None  # when they were asked for, and what came
        self._nodes_lock = threading.Lock()  # one thread asks, the others wait for its answer
        self._crew = Crew("pods", WORK_THREADS, on_fault)
        self._own = threading.local()  # .store: each thread's database connection
        self._stores: list[Store] = []
        self._closing = threading.Event()
        self._keeper = daemon.thread("pods-keeper", self._keep, on_fault)

    def __enter__(self) -> Self:
        self._watch.start()
        self._crew.start()
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Pods go on by themselves; whoever starts next may adopt those at once that are known to exist."""
        self._closing.set()
        have_ended = self._crew.close(CLOSE_S)
        self._watch.close()
        self._keeper.join(CLOSE_S)
        if not have_ended:  # they end with the process
            log.warning("left undone what did not end within %.0f s", CLOSE_S)
            return
        self._let_go()
        for store in self._stores:
            store.close()
        self._builds.close()

    def _let_go(self) -> None:
        with self._lock:
            seen = [flight.key for flight in self._flights.values() if flight.state is not None and not flight.ending]
        try:
            if seen:
                self._store.extend_pod_leases(seen, 0.0)
        except GreenGraderError as error:
            log.warning("leases run out by themselves reason=%s", error)

    def room(self) -> int:
        """How many more runs may begin now."""
        with self._lock:
            if time.monotonic() < self._paused_until:
                return 0
            return self._settings.max_pods - len(self._flights) - len(self._beginning)

    def patience_s(self, most_s: float) -> float:
        """After what time to look for runs again when nothing is heard of any."""
        with self._lock:
            left_s = self._paused_until - time.monotonic()
            if left_s > 0:
                return left_s
            return min(most_s, AGAIN_MOST_S) if self._beginning else most_s

    # ------------------------------------------------------------------------------------------ the beginning
    def use_files(self, run_id: int, files: bytes) -> None:
        """The run's pods get this tar.gz instead of the stored one."""
        self._files[run_id] = files

    def begin(self, run: Run) -> None:
        """Takes the run up, as the database has just said it is, unless it is in hand already; returns at once."""
        with self._lock:
            newer = any(run_id == run.run_id and attempt > run.attempt for run_id, attempt in self._flights)
            if newer or run.run_id in self._beginning:
                return
            self._beginning.add(run.run_id)
        self._submit(self._begin, run)

    def _begin(self, run: Run) -> None:
        try:
            if time.monotonic() >= self._paused_until:
                self._launch(run)
        except (PayloadRejected, AutograderBroken) as error:
            if isinstance(error, AutograderBroken) and error.build_log:
                self._store.save_build_log(run.run_id, error.build_log)
            self._store.abandon_run(run.run_id, str(error))
            log.error("abandoned run=%d reason=%r", run.run_id, str(error))
        except GreenGraderError as error:  # the run stays as it is, and is begun again
            log.warning("not begun run=%d reason=%s", run.run_id, error)
            self._pause()
            self._on_trouble(run, error)
            self._store.note_trouble(run.run_id, str(error))
        finally:
            with self._lock:
                self._beginning.discard(run.run_id)

    def _launch(self, run: Run) -> None:
        """Prepared, built, placed, stored, created; where it gets no pod after it was placed, it is handed back."""
        if run.state == "received":
            prepare(self._store, run, self._settings)
        job = self._store.pod_job(run.run_id)
        image, command = self._builds.pushed(self._store, job)
        limits = job.limits(self._settings.run_limits())
        pod = RunPod(run.run_id, run.attempt + 1, image, command, limits, prefix_of(run.run_id, run.attempt + 1), OWNER)
        wanted = self._where(run, pod)
        attempt = self._store.place_pod(run.run_id, wanted.why, wanted.region, wanted.zone, self._settings.lease_s)
        if attempt is None:
            return
        flight = self._hold(Flight(run, attempt, limits, anywhere=wanted.region is None, launching=True))
        pod = replace(pod, attempt=attempt, prefix=flight.prefix, region=wanted.region, zone=wanted.zone)
        log.info("placed run=%d attempt=%d pod=%s where=%r", run.run_id, attempt, flight.pod, wanted.why)
        try:
            flight.manifest = render(self._template, pod, self._settings)
            self._remote.put(flight.prefix, FILES, self._files.get(run.run_id, job.files))
            self._create(flight)
        except GreenGraderError as error:
            flight.manifest = None
            self._hand_back(flight, str(error))
            raise
        finally:
            flight.launching = False
        self._pause_s = AGAIN_S

    def _create(self, flight: Flight) -> None:
        """Creates the pod, unless the attempt is no longer ours; without an answer that is done again later."""
        with self._lock:
            manifest = flight.manifest if flight.key in self._flights else None
        if manifest is None:
            self._remove(None, flight.prefix)
            return
        try:
            self._cluster.create_pod(manifest)
        except AlreadyExists:  # a request that was thought to be lost
            log.warning("pod is there already pod=%s", flight.pod)
        except PodInvalid as error:
            raise PodspecInvalid(self._template.explain(str(error))) from error
        except ClusterUnavailable as error:  # the pod may be there all the same, so the attempt must not end
            log.warning("pod perhaps not created pod=%s reason=%s", flight.pod, error)
            self._put_off(flight)
            return
        flight.manifest = None
        flight.look_at = time.monotonic() + UNSEEN_S

    def _pause(self) -> None:
        """Nothing is begun for a while: longer from time to time, until a run is placed."""
        with self._lock:
            if time.monotonic() >= self._paused_until:
                self._paused_until = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, AGAIN_MOST_S)

    def _where(self, run: Run, pod: RunPod) -> Preference:
        """The greenest place whose nodes can take the pod now; anywhere where none can, or where waiting was in
        vain."""
        if run.run_id in self._anywhere:
            return Preference(None, None, "anywhere: no node of the greenest region took it in time")
        made, nodes = render(self._template, pod, self._settings), self._fresh_nodes()
        asked = made["spec"].get("tolerations") or (), made["spec"].get("nodeSelector") or {}
        try:
            found = choose(scores(self._settings), nodes, pod_requests(made), *asked)
        except (AttributeError, KeyError, TypeError, ValueError):  # of a podspec that the cluster will not take
            return Preference(None, None, "anywhere: what the podspec asks for cannot be read")
        return found or Preference(None, None, "anywhere: no node can take it now, it waits for one")

    def _hold(self, flight: Flight) -> Flight:
        with self._lock:
            self._flights[flight.key] = flight
        return flight

    # ------------------------------------------------------------------------------------- what the watch tells
    def _seen(self, pod: PodState, deleted: bool) -> None:
        """On the watch's thread: notes the change, and has a thread of the pool act on it."""
        if pod.run_id is None or pod.attempt is None:
            return
        with self._lock:
            flight = self._flights.get((pod.run_id, pod.attempt))
            if flight is None:
                return
            flight.state, flight.deleted = pod, deleted
        self._submit(self._judge, flight)

    def _judge(self, flight: Flight) -> None:
        """Acts on what is known of the flight's pod; any number of times, by any thread."""
        with self._lock:
            if flight.ending or flight.state is None or flight.key not in self._flights:
                return
            verdict = classify(flight.state, deleted=flight.deleted, timeout_s=flight.limits.timeout_s)
            flight.ending = isinstance(verdict, Ended) or self._is_hopeless(flight, verdict)
            starts = isinstance(verdict, Running) and not flight.started
            flight.started = flight.started or starts
        try:
            if starts and self._store.start_run(flight.run.run_id, flight.attempt, None):
                log.info("running run=%d attempt=%d node=%s", *flight.key, flight.state.node)
            if isinstance(verdict, Ended):
                self._end(flight, verdict)
            elif flight.ending and isinstance(verdict, Stuck):
                self._give_up(flight, verdict)
        except GreenGraderError as error:  # storage, cluster or database: the keeper comes back to it
            log.warning("waits run=%d attempt=%d reason=%s", *flight.key, error)
            self._put_off(flight)
            with self._lock:
                flight.ending = False
                flight.started = flight.started and not starts

    def _put_off(self, flight: Flight) -> None:
        """The keeper's next look comes later from time to time: a hundred flights may wait for the same service."""
        flight.look_at = time.monotonic() + flight.pause_s
        flight.pause_s = min(2 * flight.pause_s, AGAIN_MOST_S)

    def _is_hopeless(self, flight: Flight, verdict: object) -> bool:
        if not isinstance(verdict, Stuck):
            return False
        if verdict.end.name == "UNSCHEDULABLE" and flight.anywhere and any(word in verdict.sentence for word in FULL):
            return False  # a full cluster is no fault: the pod is in the scheduler's queue, and its turn comes
        limit_s = self._settings.kube_unschedulable_s if verdict.end.name == "UNSCHEDULABLE" else STUCK_S
        waited_s = (datetime.now(UTC) - verdict.since).total_seconds() if verdict.since else 0.0
        return verdict.is_hopeless or waited_s > limit_s

    def _give_up(self, flight: Flight, verdict: Stuck) -> None:
        """A pod that does not start. Where it was wanted in one region, the next attempt may go anywhere."""
        if verdict.end.name == "UNSCHEDULABLE" and not flight.anywhere:
            self._anywhere.add(flight.run.run_id)
            self._hand_back(flight, verdict.sentence)
        else:
            self._fail(flight, verdict.sentence)

    # -------------------------------------------------------------------------------------------------- the end
    def _end(self, flight: Flight, ended: Ended) -> None:
        """An outcome becomes a row; an error of ours ends the attempt. Then nothing of it is left anywhere."""
        if not ended.end.is_outcome or (ended.finished_at or ended.started_at) is None:
            self._fail(flight, ended.sentence)
            return
        packed = self._remote.get(flight.prefix, RESULTS, flight.limits.results_bytes + 1024 * 1024)
        left = collect.unpack(packed, flight.limits.results_bytes) if packed else collect.Left()
        if fault := collect.fault(ended, left if packed else None):
            self._fail(flight, fault)
            return
        result = collect.result_of(*flight.key, ended, left, self._printed(flight), flight.limits)
        node = flight.state.node if flight.state else None
        context = self._context(flight, node)
        row = row_of(result, node or "unknown", context, self._settings) if context else None
        if row is not None and self._store.finish_run(*flight.key, None, row):
            log.info("graded run=%d attempt=%d node=%s", *flight.key, node)
        else:
            log.warning("late result dropped run=%d attempt=%d", *flight.key)
        self._clear(flight)

    def _printed(self, flight: Flight) -> bytes:
        return self._cluster.pod_log(flight.pod, AUTOGRADER, flight.limits.log_bytes)

    def _context(self, flight: Flight, node_name: str | None) -> ResultContext | None:
        """Gradescope's score from the database, the place from the node that it really ran on."""
        context = self._store.result_context(flight.run.run_id, None)
        node = next((node for node in self._fresh_nodes() if node.name == node_name), None)
        if context is None or node is None:
            return context
        return context.at(node_ip=node.ip, region=node.region, zone=node.zone)

    def _fail(self, flight: Flight, reason: str) -> None:
        """The attempt ended by a fault of ours: another one, or the end of the run."""
        most = self._settings.max_attempts
        now = self._store.fail_run(*flight.key, None, reason, for_good=False, max_attempts=most)
        flight.ending = True
        level = logging.ERROR if now == "abandoned" else logging.WARNING
        log.log(level, "failed run=%d attempt=%d now=%s reason=%r", *flight.key, now, reason)
        self._clear(flight)

    def _hand_back(self, flight: Flight, reason: str) -> None:
        self._store.release_run(*flight.key, None, reason)
        flight.ending = True
        log.warning("handed back run=%d attempt=%d reason=%r", *flight.key, reason)
        self._clear(flight)

    def _clear(self, flight: Flight) -> None:
        """Removes pod and prefix; what cannot be removed now is swept later."""
        self._remove(flight.pod, flight.prefix)
        with self._lock:
            self._flights.pop(flight.key, None)

    def _remove(self, pod: str | None, prefix: str | None) -> None:
        try:
            if pod is not None:
                self._cluster.delete_pod(pod)
        except GreenGraderError as error:
            log.warning("pod stays pod=%s reason=%s", pod, error)
        try:
            if prefix is not None:
                self._remote.purge(prefix)
        except GreenGraderError as error:
            log.warning("prefix stays prefix=%s reason=%s", prefix, error)

    # ---------------------------------------------------------------------------------------------- the keeper
    def _keep(self) -> None:
        """Leases and adoption, second looks and sweeps, every few seconds until the end."""
        swept_at = -math.inf
        while not self._closing.wait(min(self._settings.lease_s / 4, 5.0)):
            try:
                self._keep_leases()
                self._adopt()
            except GreenGraderError as error:
                log.warning("keeper waits reason=%s", error)
            now = time.monotonic()
            with self._lock:
                flights = [flight for flight in self._flights.values() if flight.look_at <= now]
            for flight in flights:
                if not flight.launching:
                    self._submit(self._look, flight)
            is_due = now - swept_at > SWEEP_LEASES * self._settings.lease_s
            if is_due and self._only_run is None and self._watch.is_current:
                swept_at = now
                self._submit(self._sweep)

    def _keep_leases(self) -> None:
        with self._lock:
            held = list(self._flights)
        if held:
            kept = self._store.extend_pod_leases(held, self._settings.lease_s)
            for key in held:
                if key[0] not in kept:  # cancelled, or ended by another process
                    with self._lock:
                        flight = self._flights.pop(key, None)
                    if flight and not flight.ending:
                        log.warning("lease lost run=%d attempt=%d", *key)

    def _adopt(self) -> None:
        """Takes over runs whose process fell silent: their pods are watched, or their attempts ended."""
        if not self._watch.is_current or self.room() <= 0:
            return
        for run in self._store.adopt_pods(self.room(), self._settings.lease_s, self._only_run):
            limits = self._store.pod_job(run.run_id).limits(self._settings.run_limits())
            flight = self._hold(Flight(run, run.attempt, limits, started=run.state == "running"))
            log.warning("adopted run=%d attempt=%d pod=%s", *flight.key, flight.pod)

    def _look(self, flight: Flight) -> None:
        """What the keeper has done for a flight that it has had nothing from for a while."""
        if flight.state is not None:
            self._judge(flight)
        elif flight.manifest is not None:
            try:
                self._create(flight)
            except GreenGraderError as error:
                flight.manifest = None
                self._hand_back(flight, str(error))
        else:
            self._find(flight)

    def _find(self, flight: Flight) -> None:
        """Asks the cluster itself for a pod that the watch has not shown; ends the attempt where there is none."""
        self._put_off(flight)
        found = self._cluster.pod(flight.pod)
        with self._lock:
            if flight.key not in self._flights:
                return
            flight.state = flight.state or found
        if flight.state is None:
            self._fail(flight, f"attempt {flight.attempt}: its pod was never created, or is gone")
        else:
            self._judge(flight)

    def _sweep(self) -> None:
        """Removes pods and prefixes that belong to no held run. Listed first, then compared: a pod that is listed had
        been placed before, so whatever is not held by now has ended."""
        pods = self._watch.pods()
        prefixes = self._remote.prefixes()
        held = self._store.held_pods()
        with self._lock:
            held |= set(self._flights)  # some are being removed right now
        kept = {pod_name(*key) for key in held}
        for name in pods.keys() - kept:
            log.warning("orphan swept pod=%s", name)
            self._submit(self._remove, name, None)
        for prefix in prefixes - {prefix_of(*key) for key in held}:
            log.warning("orphan swept prefix=%s", prefix)
            self._submit(self._remove, None, prefix)

    # ------------------------------------------------------------------------------------------------ mechanics
    @property
    def _store(self) -> Store:
        store: Store | None = getattr(self._own, "store", None)
        if store is None:
            store = Store(self._settings.required("database_url"), application="pods")
            self._own.store = store
            self._stores.append(store)
        return store

    def _fresh_nodes(self) -> list[Node]:
        """The cluster's nodes as they were seconds ago; none where the account may not see them."""
        with self._nodes_lock:
            if self._nodes is None or time.monotonic() - self._nodes[0] > NODES_FRESH_S:
                try:
                    nodes = self._cluster.nodes()
                except Forbidden as forbidden:
                    log.warning("places unknown reason=%s", forbidden)
                    nodes = []
                self._nodes = (time.monotonic(), nodes)
            return self._nodes[1]

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        self._crew.submit(self._patiently, work, *arguments)

    def _patiently(self, work: Callable[..., None], *arguments: Any) -> None:
        """What is kept from being done by something of ours that is away is done again at the keeper's next look."""
        try:
            work(*arguments)
        except GreenGraderError as error:
            log.warning("waits reason=%s", error)
