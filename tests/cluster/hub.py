"""A hub whose runs go to the cluster: database, broker, ingest, and whatever dispatcher or pod.sh a test starts.

The API server and the storage, as this machine reaches them, are behind relays of the hub's own: so that a test takes
them away from our processes and not from the pods.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from greengrader.kube.podspec import pod_name
from services import Broker
from tests.builders import build_payload
from tests.cluster.relay import Relay
from tests.cluster.services import S3, Namespace
from tests.daemons.world import ROOT, World
from tests.waiting import eventually

ASSIGNMENT = 7
# One script for all, so that there is one image: a submission says itself for how long it runs.
RUN_AUTOGRADER = """#!/bin/sh
sleep "$(cat /autograder/submission/seconds)"
echo '{"score": 1}' > /autograder/results/results.json
"""


def payload(submission_id: int, runs_s: float = 0) -> bytes:
    """A submission that runs for so long and then has all its points."""
    return build_payload(
        {"seconds": f"{runs_s:g}\n", "hello.txt": f"submission {submission_id}\n"},
        {"id": submission_id, "assignment": {"id": ASSIGNMENT}},
        {"score": 1},
        run_autograder=RUN_AUTOGRADER,
        without=["gradescope_data/autograder/source/setup.sh"],  # nothing to install
    )


class Script:
    """pod.sh as a process; what it prints goes to a file."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def says(self, text: str, limit_s: float = 60) -> None:
        eventually(lambda: text in self.said() or self.process.poll() is not None, limit_s, f"{text} in {self.log}")
        assert text in self.said(), self.said()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Hub(World):
    """A World whose assignment is graded on the cluster; `given` are the settings of all its processes."""

    def __init__(
        self, directory: Path, url: str, broker: Broker, base_image: str, namespace: Namespace, given: Mapping[str, str]
    ) -> None:
        super().__init__(directory, url, broker, base_image)
        self.namespace, self.given = namespace, dict(given)
        self.store.set_assignment(ASSIGNMENT, {"backend": "kubernetes"})

    def environment(self, *, worker: str | None = None, **settings: str) -> dict[str, str]:
        """As a World's; a name in capitals is a variable and no setting of ours."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        named = {name if name.isupper() else f"GREENGRADER_{name.upper()}": value for name, value in settings.items()}
        return super().environment(worker=worker) | self.given | {"PATH": path} | named

    def submit(self, submission_id: int, runs_s: float = 0) -> int:
        """Publishes a submission; the id of its run, as soon as it is there."""
        self.publish(payload(submission_id, runs_s))
        return self.run_of(submission_id)

    def run_of(self, submission_id: int) -> int:
        run = eventually(lambda: self.store.newest_run(submission_id), 30, f"the run of submission {submission_id}")
        assert run is not None
        return run.run_id

    def pod_sh(self, submission_id: int, number: int = 0, **settings: str) -> Script:
        log = self.directory / f"pod.sh-{submission_id}-{number}.log"
        command = [str(ROOT / "pod.sh"), str(ASSIGNMENT), str(submission_id)]
        return Script(command, self.environment(**settings), log)

    def pod(self, run_id: int, attempt: int = 1) -> dict[str, Any]:
        """The pod of the attempt as soon as it exists, as kubectl shows it."""
        name = pod_name(run_id, attempt)
        look = ("get", "pod", name, "--ignore-not-found", "--output=json")
        found: dict[str, Any] = json.loads(eventually(lambda: self.namespace.kubectl(*look), 60, f"pod {name}"))
        return found

    def left_over(self) -> list[str]:
        """Pods and prefixes that there are; names of neither must stay."""
        pods = self.namespace.kubectl("get", "pods", "--output=name").split()
        return pods + self.prefixes()

    def prefixes(self) -> list[str]:
        config = self.given["GREENGRADER_RCLONE_CONFIG"]
        command = ["rclone", f"--config={config}", "lsf", "--dirs-only", "greengrader-app:runs"]
        environment = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert listed.returncode in (0, 3), listed.stderr  # 3: nothing was ever stored
        return listed.stdout.split()

    def await_tidiness(self, limit_s: float = 40) -> None:
        deadline = time.monotonic() + limit_s
        while left := self.left_over():
            assert time.monotonic() < deadline, f"after {limit_s:g} s there still are {left}\n{self.logs()}"

    def check_graded_once(self, run_ids: list[int], *, attempts: int | None = None) -> None:
        """Each run has ended exactly once, with one result, all its points, and after so many attempts."""
        for run_id in run_ids:
            run = self.store.run(run_id)
            assert run is not None and run.state == "graded", f"{run}\n{self.logs()}"
            ends = [event for event in self.store.run_events(run_id) if event["to_state"] == "graded"]
            results = self.store.table("results", "run_id = %s", run_id)
            assert (len(ends), len(results)) == (1, 1), ends
            assert (results[0]["score"], results[0]["attempt"]) == (1, run.attempt)
            if attempts is not None:
                assert run.attempt == attempts, self.store.run_events(run_id)


def relayed_kubeconfig(namespace: Namespace, folder: Path, relay: Relay) -> Path:
    """The namespace's kubeconfig, with the server reached by way of the relay."""
    config = json.loads(namespace.kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    if not cluster.get("insecure-skip-tls-verify"):
        cluster["tls-server-name"] = server.hostname
    cluster["server"] = f"{server.scheme}://127.0.0.1:{relay.port}"
    path = folder / "relayed.kubeconfig"
    path.write_text(json.dumps(config))
    return path


@contextlib.contextmanager
def api_relay(namespace: Namespace) -> Iterator[Relay]:
    """A relay before the API server."""
    server = urlsplit(json.loads(namespace.kubeconfig.read_text())["clusters"][0]["cluster"]["server"])
    assert server.hostname is not None
    with Relay(server.hostname, server.port or 443) as relay:
        yield relay


@contextlib.contextmanager
def storage_relay(s3: S3, folder: Path) -> Iterator[tuple[Relay, Path]]:
    """A relay before the storage, and rclone's configuration by which it is used."""
    with Relay("127.0.0.1", s3.relay.port) as relay:
        config = folder / "relayed-rclone.conf"
        config.write_text(s3.config_for("127.0.0.1").replace(f":{s3.relay.port}\n", f":{relay.port}\n"))
        yield relay, config


@contextlib.contextmanager
def away(relay: Relay) -> Iterator[None]:
    """While the block runs, nobody gets through."""
    relay.refuse()
    relay.cut()
    try:
        yield
    finally:
        relay.refuse(False)


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
