#!/usr/bin/env python3
"""Chooses the submission that is graded next, prepares it, and hands it to its scheduler.

Preparing derives the autograder from the payload (or takes the one that staff registered) and packs the student's
files; both are stored once. Docker runs are then picked up by scheduler.py; Kubernetes runs by ./pod.sh. Never grades.

    python3 dispatcher.py                          the latest pending submission
    python3 dispatcher.py SUBMISSION               that one (also: ASSIGNMENT SUBMISSION)
    python3 dispatcher.py SUBMISSION --rerun       grade it again, as a new run
    python3 dispatcher.py SUBMISSION --wait        follow it to its result
    python3 dispatcher.py SUBMISSION --load DIR    write its files to DIR as /autograder would look; dispatches nothing
    nohup python3 dispatcher.py --watch >> dispatcher.log 2>&1 &      the daemon: by priority, deadline, age

Settings: GREENGRADER_DATABASE_URL, GREENGRADER_BASE_IMAGE, limits; see `.env.example`.
Exit codes: 0 found and done · 1 not found, or a bug · 2 usage or settings · 3 Postgres away · 4 schema version.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from greengrader import config, daemon
from greengrader.config import Settings
from greengrader.daemon import Outage, Stop
from greengrader.db import RUNS_CHANNEL, Run, Store
from greengrader.errors import GreenGraderError, NotFound, PayloadRejected, ServiceUnavailable
from greengrader.follow import follow
from greengrader.payload import Payload
from greengrader.prepare import prepare

if TYPE_CHECKING:
    from greengrader.kube.runner import Runner

log = logging.getLogger("greengrader")

FALLBACK_S = 60.0
PASS_RUNS = 20
TROUBLE_S = 15.0  # when the cluster, its storage or the registry had trouble
WORTH_A_PASS = ("received ", "dispatched ", "graded ", "abandoned ")  # something to do, or room for it
POD_SH = Path(__file__).resolve().parent / "pod.sh"


def main(argv: list[str], stop: Stop) -> int:
    options = arguments(argv)
    settings = config.load()
    daemon.log_to_stderr("dispatcher", settings.log_level)
    with Store.connect(settings.required("database_url"), application="dispatcher") as store:
        if options.watch:
            return watch(store, settings, stop)
        try:
            run = find(store, options.ids, rerun=options.rerun)
            if options.load:
                load(store, run, options.load, settings)
                print(f"submission {run.submission_id} is in {options.load}")
                return 0
            code = dispatch_one(store, run, settings)
        except (NotFound, PayloadRejected) as error:
            print(error, file=sys.stderr)
            return 1
        return wait(store, run, stop) if options.wait and code == 0 else code


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", type=int, metavar="[ASSIGNMENT] SUBMISSION", help="Gradescope's ids")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--watch", action="store_true", help="stay, and dispatch whatever comes")
    action.add_argument("--load", type=Path, metavar="DIR", help="write the submission's files to DIR, for debugging")
    action.add_argument("--rerun", action="store_true", help="grade again, as a new run")
    parser.add_argument("--wait", action="store_true", help="follow the run to its result")
    options = parser.parse_args(argv)
    if len(options.ids) > 2:
        parser.error("give a submission id, or an assignment id and a submission id")
    if options.watch and (options.ids or options.wait):
        parser.error("--watch takes whatever comes: no ids and no --wait with it")
    if options.rerun and not options.ids:
        parser.error("--rerun needs a submission id")
    return options


def find(store: Store, ids: list[int], *, rerun: bool = False) -> Run:
    """The run that is meant: the latest pending one, or the newest of the submission; with `rerun` a new one."""
    if not ids:
        run = store.newest_received()
        if run is None:
            raise NotFound("no submission is pending")
        return run
    assignment_id, submission_id = ids if len(ids) == 2 else (None, ids[0])
    run = store.newest_run(submission_id, assignment_id)
    if run is None:
        where = f" of assignment {assignment_id}" if assignment_id is not None else ""
        raise NotFound(f"submission {submission_id}{where} is not here; `python3 -m greengrader status` lists what is")
    if rerun:
        new_run = store.rerun_submission(run.submission_key)
        run = store.run(new_run) if new_run is not None else None
        if run is None:
            raise NotFound(f"submission {submission_id} is being graded already: nothing to run again yet")
    return run


def dispatch_one(store: Store, run: Run, settings: Settings) -> int:
    """Prepares the run and hands it over; says what it did."""
    if run.state != "received":
        print(f"submission {run.submission_id} is {run.state} already (run {run.run_id}); --rerun grades it again")
        return 0
    if run.backend == "kubernetes":
        # pod.sh takes the first python3 in the path: ours
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        command = [str(POD_SH), str(run.assignment_id), str(run.submission_id)]
        return subprocess.call(command, env={**os.environ, "PATH": path})
    prepare(store, run, settings)
    print(f"submission {run.submission_id} is dispatched to the docker scheduler (run {run.run_id})")
    return 0


def wait(store: Store, run: Run, stop: Stop) -> int:
    ended = follow(store, run.run_id, stop, print)
    if ended.state != "graded":
        print(f"submission {run.submission_id} is {ended.state}: {ended.error}", file=sys.stderr)
        return 1
    row = store.table("submission_status", "submission_id = %s", run.submission_id)[0]
    print(f"submission {run.submission_id}: {row['outcome']}, score {row['score']:g}")
    return 0


def watch(store: Store, settings: Settings, stop: Stop) -> int:
    """Dispatches everything that is received, best first, until the stop; keeps the pods of kubernetes runs."""
    store.listen(RUNS_CHANNEL)
    outage = Outage(settings.outage_limit_s, stop)
    with Pods(settings, stop) as pods:
        log.info("ready")
        while not stop:
            try:
                while not stop and (waiting := store.next_received(PASS_RUNS, "docker")):
                    for run in waiting:
                        hand_over(store, run, settings)
                        if stop:
                            break
                pods.fill(store)
                outage.over()
                while not stop:
                    notices = store.wait(stop, pods.patience_s())
                    if not notices or any(text.startswith(WORTH_A_PASS) for _, text in notices):
                        break
            except ServiceUnavailable as error:
                outage.wait(error)
        pods.raise_fault()
    return 0


class Pods:
    """The runner of kubernetes runs, made when the first of them comes: most hubs have none, and it weighs 40 MB."""

    def __init__(self, settings: Settings, stop: Stop) -> None:
        self._settings, self._stop = settings, stop
        self._open = ExitStack()  # of the runner, when there is one
        self._runner: Runner | None = None
        self._fault: BaseException | None = None
        self._in_trouble = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def fill(self, store: Store) -> None:
        """Begins as many runs as there is room for, and adopts those of a dispatcher that died."""
        self._in_trouble = False
        if self._runner is None and not self._is_needed(store):
            return
        try:
            runner = self._runner = self._runner or self._connected()
        except GreenGraderError as error:  # the docker runs go on meanwhile
            log.error("kubernetes runs wait reason=%s", error)
            self._in_trouble = True
            return
        if (room := runner.room()) > 0:
            for run in store.next_for_cluster(room):
                runner.begin(run)

    def _is_needed(self, store: Store) -> bool:
        """Even where no run is open: a pod.sh that was killed may have left a pod."""
        on_cluster = store.table("assignments", "backend = %s", "kubernetes")
        return bool(on_cluster or store.held_pods() or store.next_for_cluster(1))

    def patience_s(self) -> float:
        """For how long to wait for a notice: of what keeps runs from being placed, nobody tells that it is over."""
        if self._runner is None:
            return TROUBLE_S if self._in_trouble else FALLBACK_S
        return self._runner.patience_s(FALLBACK_S)

    def raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _connected(self) -> "Runner":
        from greengrader.kube.cluster import Cluster
        from greengrader.kube.runner import Runner, template_for

        with ExitStack() as opening:
            cluster = opening.enter_context(Cluster.connect(self._settings.kube_namespace))
            runner = Runner(self._settings, cluster, template_for(self._settings), on_fault=self._end)
            opening.enter_context(runner)
            self._open = opening.pop_all()
        return runner

    def _end(self, error: BaseException) -> None:
        self._fault = self._fault or error
        self._stop.set()


def hand_over(store: Store, run: Run, settings: Settings) -> None:
    """Prepares one run; what can never be prepared is given up with its reason."""
    try:
        prepare(store, run, settings)
    except (PayloadRejected, NotFound) as error:
        store.abandon_run(run.run_id, str(error))
        log.error("abandoned run=%d submission=%d reason=%r", run.run_id, run.submission_id, str(error))


def load(store: Store, run: Run, directory: Path, settings: Settings) -> None:
    """Writes the submission's files as /autograder would look."""
    with tempfile.NamedTemporaryFile(suffix=".zip") as file:
        store.read_payload(run.submission_key, file)
        file.flush()
        try:
            with Payload.open(Path(file.name), settings.payload_limits()) as payload:
                payload.write_files(directory)
        except OSError as error:
            raise GreenGraderError(f"cannot write to {directory}: {error.strerror}") from error


if __name__ == "__main__":
    daemon.run(main)
