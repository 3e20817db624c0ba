"""A hub for tests of the Kubernetes pipeline: database, broker, ingest, and a namespace, a bucket's folder, a registry.

One autograder for all submissions: it runs the submission's do.sh, so that its image is built once and each submission
says by itself what is to happen.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services import Broker
from tests.builders import build_payload
from tests.cluster.services import S3, Namespace
from tests.daemons.world import ROOT, World

RUN_AUTOGRADER = "#!/bin/sh\n. /autograder/submission/do.sh\n"
WRITE = "echo '{\"score\": 1.0}' > /autograder/results/results.json\n"
SCORES = {"us-west.ucsc": 112, "us-east.mghpcc": 301}


@dataclass(frozen=True)
class Said:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def one_line(self) -> str:
        """What went wrong: all that it wrote to standard error, which has to be one line."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, f"code {self.code}, {len(lines)} lines:\n{self.err}\n{self.out}"
        return lines[0]


class ScriptedHub(World):
    """World's database, broker and ingest, and commands that have a cluster."""

    def __init__(
        self,
        directory: Path,
        database_url: str,
        broker: Broker,
        base_image: str,
        namespace: Namespace,
        s3: S3,
        settings: dict[str, str],
    ) -> None:
        super().__init__(directory, database_url, broker, base_image)
        self.namespace, self.s3 = namespace, s3
        # A folder of its own: other hubs count their runs from 1, too, and sweep what they do not know.
        self.remote = f"greengrader-app:{namespace.name}"
        self._settings = settings | {
            "GREENGRADER_RCLONE_REMOTE": self.remote,
            "GREENGRADER_KUBE_REGION_SCORES": json.dumps(SCORES),
            "GREENGRADER_MEMORY_BYTES": str(64 * 1024 * 1024),
            "GREENGRADER_KUBE_CPU_REQUEST": "0.1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self._submissions = iter(range(1, 100_000))

    def environment(self, *, worker: str | None = None, **settings: str) -> dict[str, str]:
        """World's, with the cluster, under the Role."""
        given = {f"GREENGRADER_{name.upper()}": value for name, value in settings.items()}
        return super().environment(worker=worker) | self._settings | given

    def submit(
        self, do: str = WRITE, *, assignment_id: int = 7, source: dict[str, str] | None = None, **payload: Any
    ) -> int:
        """Id of a new submission, which is received; `do` is its script, `source` more files of its autograder."""
        number = next(self._submissions)
        packed = build_payload(
            {"do.sh": do}, {"id": number, "assignment": {"id": assignment_id}}, {"score": 1.0},
            **({"run_autograder": RUN_AUTOGRADER, "source": source} | payload),
            without=() if source else ("gradescope_data/autograder/source/setup.sh",),
        )  # fmt: skip
        self.publish(packed)
        self.wait_state(number, "received")
        return number

    def pod_sh(
        self, *words: object, folder: Path | None = None, environment: dict[str, str] | None = None, **settings: str
    ) -> Said:
        """./pod.sh, called from `folder`."""
        done = subprocess.run(
            [ROOT / "pod.sh", *map(str, words)],
            env=self.environment(**settings) | (environment or {}), cwd=folder or self.directory,
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def result(self, submission_id: int) -> dict[str, Any]:
        """The row of `results` of the submission's newest run."""
        (row,) = self.store.table("results", "run_id = %s", self.run_of(submission_id)["run_id"])
        return row

    def run_of(self, submission_id: int) -> dict[str, Any]:
        """The row of `runs` of the submission's newest run."""
        run = self.store.newest_run(submission_id)
        assert run is not None
        (row,) = self.store.table("runs", "run_id = %s", run.run_id)
        return row

    def events(self, submission_id: int) -> list[tuple[str, str | None]]:
        """(state, reason) of each step of the submission's newest run."""
        return [
            (event["to_state"], event["reason"])
            for event in self.store.run_events(self.run_of(submission_id)["run_id"])
        ]

    def pods(self) -> list[str]:
        """Names of the namespace's pods."""
        return self.namespace.kubectl("get", "pods", "--output=name").split()

    def left(self) -> list[str]:
        """Pods and files in the storage that are there; nothing of a run that has ended may be."""
        files = self.s3.rclone("lsf", "--recursive", "--files-only", "greengrader-app:").decode().split()
        return self.pods() + [file for file in files if file.startswith(f"{self.namespace.name}/")]
