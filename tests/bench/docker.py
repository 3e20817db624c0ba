"""The container engine for the benchmarks that need one, and bare `docker run` to compare with."""

import os
import subprocess

from tests.bench.figure import LeftOut, NotMeasured

DEFAULT_BASE_IMAGE = "greengrader/base:debian-12"


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


def bare_run(image: str) -> list[str]:
    """The command line of a bare run of what a run of ours runs."""
    return ["docker", "run", "--rm", "--entrypoint", "/autograder/run_autograder", image]


def _missing(reason: str) -> Exception:
    required = "docker" in os.environ.get("GREENGRADER_REQUIRE", "").split(",")
    return NotMeasured(reason) if required else LeftOut(reason)


def _docker(*arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as error:
        raise _missing("there is no docker command") from error
