"""pod.sh: grades one submission in a pod, waits for its end, and records the result.

    ./pod.sh <assignment id> <submission id>

Works from the calling folder: a gradescope_data/ found there is graded instead of the stored payload, and a pod.yaml
found there is used instead of the project's. Otherwise the submission comes from Postgres and the podspec from the
project.

Settings: GREENGRADER_DATABASE_URL, GREENGRADER_REGISTRY, GREENGRADER_RCLONE_REMOTE, GREENGRADER_KUBE_…; see
`.env.example`. Exit codes: 0 graded · 1 no such submission, or a bug · 2 usage or settings · 3 cluster, storage,
registry or database trouble · 4 schema version · 5 graded, but the student's program failed · 6 the autograder cannot
be built.
"""

import argparse
import logging
import sys
import tempfile
import zipfile
from pathlib import Path

from greengrader import config, daemon
from greengrader.config import Settings
from greengrader.daemon import Stop
from greengrader.db import Run, Store
from greengrader.errors import NotFound, ServiceUnavailable
from greengrader.follow import ENDED, follow
from greengrader.kube.cluster import Cluster
from greengrader.kube.runner import Runner, template_for
from greengrader.payload import Payload
from greengrader.prepare import derive

STUDENT_FAILED = 5
BROKEN = 6


def main(argv: list[str], stop: Stop) -> int:
    parser = argparse.ArgumentParser(
        prog="pod.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assignment", type=int, help="Gradescope's id")
    parser.add_argument("submission", type=int, help="Gradescope's id")
    options = parser.parse_args(argv)
    settings = config.load()
    if settings.log_level == "INFO":  # the steps are printed instead
        daemon.log_to_stderr("pod", "WARNING")
        logging.getLogger("greengrader.pods").disabled = True
    else:
        daemon.log_to_stderr("pod", settings.log_level)
    with Store.connect(settings.required("database_url"), application="pod.sh") as store:
        run = store.newest_run(options.submission, options.assignment)
        if run is None:
            raise NotFound(f"submission {options.submission} of assignment {options.assignment} is not here")
        if run.state in ENDED:
            print(f"submission {run.submission_id} is {run.state} already; `dispatcher.py {run.submission_id} --rerun`")
            return code_of(store, run)
        if run.backend != "kubernetes":
            change = f"`python3 -m greengrader assignment set {run.assignment_id} --backend kubernetes`"
            raise NotFound(f"assignment {run.assignment_id} is graded by {run.backend}: {change}")
        return grade(store, run, settings, stop)


def grade(store: Store, run: Run, settings: Settings, stop: Stop) -> int:
    """Has the runner grade it, and says each step as it happens."""
    faults: list[BaseException] = []

    def end(error: BaseException) -> None:
        faults.append(error)
        stop.set()

    template = template_for(settings, Path.cwd())
    with Cluster.connect(settings.kube_namespace) as cluster:
        runner = Runner(
            settings, cluster, template, on_fault=end, on_trouble=lambda _run, error: end(error), only_run=run.run_id
        )
        run = take_local_files(store, run, settings, runner, Path.cwd() / "gradescope_data")

        def say(line: str) -> None:
            print(line, flush=True)
            now = store.run(run.run_id)
            if now is not None and now.state in ("received", "dispatched"):
                runner.begin(now)

        with runner:
            ended = follow(store, run.run_id, stop, say)
    if faults:
        raise faults[0]
    return code_of(store, ended)


def take_local_files(store: Store, run: Run, settings: Settings, runner: Runner, folder: Path) -> Run:
    """With a gradescope_data/ in the calling folder: its files, and where the run is not prepared yet its
    autograder."""
    if not folder.is_dir():
        return run
    print(f"using {folder} instead of the stored payload")
    with tempfile.NamedTemporaryFile(suffix=".zip") as file:
        with zipfile.ZipFile(file, "w", strict_timestamps=False) as packed:
            for path in sorted(folder.rglob("*")):
                packed.write(path, path.relative_to(folder.parent))
        file.flush()
        with Payload.open(Path(file.name), settings.payload_limits()) as payload:
            archive = payload.submission_archive()
            runner.use_files(run.run_id, archive)
            if run.state == "received":
                store.add_submission_archive(run.submission_key, archive)
                store.dispatch_run(run.run_id, derive(store, run, payload, settings))
    return store.run(run.run_id) or run


def code_of(store: Store, run: Run) -> int:
    """Says how it ended; the exit code for that."""
    if run.state != "graded":
        print(f"submission {run.submission_id} is {run.state}: {run.error}", file=sys.stderr)
        if run.state == "abandoned":
            return BROKEN if run.failures == 0 else ServiceUnavailable.exit_code
        return ServiceUnavailable.exit_code
    row = store.table("submission_status", "submission_id = %s", run.submission_id)[0]
    where = row["region"] or "an unknown region"
    print(f"submission {run.submission_id}: {row['outcome']}, score {row['score']:g}, in {where}")
    return 0 if row["outcome"] == "completed" else STUDENT_FAILED


if __name__ == "__main__":
    daemon.run(main)
