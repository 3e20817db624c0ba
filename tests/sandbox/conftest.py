"""A real container engine, and short ways to run a script in the sandbox and to pack an autograder."""

import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from greengrader import sandbox
from greengrader.engine import Engine
from greengrader.limits import Limits
from greengrader.sandbox import RunReport
from greengrader.usage import cgroup_keys

WORKER = f"test-{os.getpid()}"
RESULTS = '{"score": 1}\n'
_run_ids = itertools.count(1)


@pytest.fixture(scope="session")
def engine(docker_engine: str) -> Iterator[Engine]:
    with Engine() as connected:
        yield connected


class Grader:
    """Runs a bash script as run_autograder; the report is returned after the container has gone."""

    def __init__(self, engine: Engine, image: str) -> None:
        self.engine, self.image = engine, image

    def __call__(
        self,
        script: str,
        *,
        files: Mapping[str, str | bytes] | None = None,
        archive: bytes | None = None,
        command: list[str] | None = None,
        image: str | None = None,
        cancelled: Event | None = None,
        **limits: Any,
    ) -> RunReport:
        packed = archive or tar_gz({"run_autograder": f"#!/bin/bash\n{script}\n", **(files or {})})
        with sandbox.run(
            self.engine,
            image or self.image,
            command or ["/autograder/run_autograder"],
            Limits(**{"cpus": 1.0, "timeout_s": 30.0, **limits}),
            packed,
            run_id=next(_run_ids),
            attempt=1,
            worker=WORKER,
            cancelled=cancelled,
        ) as report:
            return report


@pytest.fixture
def grade(engine: Engine, base_image: str) -> Iterator[Grader]:
    """A Grader on the base image; nothing of its runs may be left behind."""
    yield Grader(engine, base_image)
    assert own_containers(engine) == []
    assert [key for key in cgroup_keys() if key.startswith(f"{WORKER}.")] == []


def own_containers(engine: Engine) -> list[dict[str, Any]]:
    query = {"all": "true", "filters": json.dumps({"label": [f"{sandbox.LABEL_WORKER}={WORKER}"]})}
    found: list[dict[str, Any]] = engine.ask("list containers", "GET", "/containers/json", params=query)
    return found


def results(command: str) -> str:
    """A script that prepares results/ and then runs `command` in it."""
    return f"mkdir -p results && cd results\n{command}\n"


def tar_gz(files: Mapping[str, str | bytes], mode: int = 0o755) -> bytes:
    """A tar.gz of plain files, all of that mode."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def write_autograder(path: Path, files: Mapping[str, str | bytes]) -> Path:
    """An autograder's archive as a worker keeps it."""
    path.write_bytes(tar_gz({"source/.keep": "", **files}))
    return path
