"""The container engine for the benchmarks that need one: a hub with a worker that has the image, and the same bare."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench.figure import LeftOut, NotMeasured, progress
from tests.bench.stage import Stage, Transitions
from tests.builders import build_payload
from tests.daemons.world import World

DEFAULT_BASE_IMAGE = "greengrader/base:debian-12"
SLOTS = 2
RUN_AUTOGRADER = """#!/bin/sh
# the trivial autograder of tests/bench
echo '{"score": 1}' > /autograder/results/results.json
"""


@dataclass(frozen=True)
class Graders:
    """A hub and a worker that are up, and the image that the worker runs."""

    world: World
    transitions: Transitions
    image: str

    def bare_run(self, *options: str) -> list[str]:
        """The command line of a bare run of the same image and command."""
        return ["docker", "run", "--rm", *options, "--entrypoint=/autograder/run_autograder", self.image]


@contextmanager
def graders(stage: Stage, name: str, base: str) -> Iterator[Graders]:
    """The hub and a worker with SLOTS slots, after a first run that built the image; gone with the image at the end."""
    with stage.world(name, base) as world, Transitions(world.database_url) as transitions:
        progress(f"{name}: starting the daemons and building the image")
        world.start_hub()
        world.start_worker(slots=SLOTS)
        world.publish(trivial_payload(1))
        transitions.await_runs(1, "graded")
        digest = world.store.table("runs")[0]["autograder_digest"]
        image = autograder_image(str(digest))
        try:
            yield Graders(world, transitions, image)
        finally:
            world.close()
            _docker("image", "rm", "--force", image)


def trivial_payload(submission_id: int) -> bytes:
    """A submission of the smallest autograder: a shell script that writes the score."""
    files = {"hello.txt": f"submission {submission_id}\n"}
    return build_payload(files, {"id": submission_id}, {"score": 1}, run_autograder=RUN_AUTOGRADER)


def base_image() -> str:
    """The image that autograders are built on; LeftOut where there is no engine, or no such image in it."""
    if _docker("version").returncode != 0:
        raise _missing("no container engine answers")
    name = os.environ.get("GREENGRADER_BASE_IMAGE", DEFAULT_BASE_IMAGE)
    if _docker("image", "inspect", name).returncode != 0:
        raise _missing(f"there is no image {name}: run deploy/base-image.sh")
    return name


def autograder_image(digest: str) -> str:
    """The id of the image that a worker built for an autograder."""
    listed = _docker("images", "--quiet", "--filter", f"label=greengrader.autograder={digest}")
    if listed.returncode != 0 or not listed.stdout.split():
        raise NotMeasured(f"no image has the label greengrader.autograder={digest}: {listed.stderr}")
    return listed.stdout.split()[0]


def _missing(reason: str) -> Exception:
    required = "docker" in os.environ.get("GREENGRADER_REQUIRE", "").split(",")
    return NotMeasured(reason) if required else LeftOut(reason)


def _docker(*arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as error:
        raise _missing("there is no docker command") from error
