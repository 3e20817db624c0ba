"""The container engine and the base image of the embedded stack."""

import grp
import os
import subprocess
from pathlib import Path

from greengrader.errors import ServiceUnavailable
from places import program
from processes import Detached, as_root, write_private
from services import DEPLOY

DEFAULT_IMAGE = "gradescope/autograder-base:ubuntu-22.04"
LOCAL_IMAGE = "greengrader/base:debian-12"
START_LIMIT_S = 60
REGISTRY_LIMIT_S = 20
PULL_LIMIT_S = 1200


class Engine:
    """A Docker engine of our own, for machines where none answers."""

    def __init__(self, directory: Path) -> None:
        # The label tells this engine from every other: `stop` must never end one that we did not start.
        self._label = f"greengrader.stack={directory.absolute()}"
        self.process = Detached("dockerd", directory / "dockerd.pid", directory / "dockerd.log", self._label)

    def start(self) -> bool:
        """An engine answers afterwards; True if it is one that we started."""
        if engine_version() is not None:
            return False
        if os.environ.get("DOCKER_HOST"):
            raise ServiceUnavailable(f"no container engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}")
        # cgroupfs: the sandbox puts each run below a cgroup of its own, which keeps the run's totals.
        command = [program("dockerd"), "--exec-opt", "native.cgroupdriver=cgroupfs", "--label", self._label]
        if os.geteuid() == 0:
            self.process.launch(command)
        else:
            self._launch_through_sudo([*command, "--group", grp.getgrgid(os.getgid()).gr_name])
        self.process.wait_until(lambda: engine_version() is not None, START_LIMIT_S)
        return True

    def _launch_through_sudo(self, command: list[str]) -> None:
        """The engine leaves the terminal only after sudo has had its chance to ask for a password there."""
        self.process.log.touch()
        script = 'log=$1; shift; setsid "$@" >> "$log" 2>&1 < /dev/null & echo $!'
        words = ["sudo", "sh", "-c", script, "sh", str(self.process.log), *command]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise ServiceUnavailable("no container engine answers, and sudo does not let us start one")
        write_private(self.process.pid_file, done.stdout)

    def stop(self) -> bool:
        """Ends the engine if we started it, its containers with it; False if there is none of ours."""
        return self.process.stop(limit_s=60)


def engine_version() -> str | None:
    """Version of the engine that answers, None if none does."""
    try:
        done = _docker("version", "--format", "{{.Server.Version}}", limit_s=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def ensure_base_image(wanted: str | None) -> str:
    """Name of a base image that this engine has.

    `wanted` (a setting), or Gradescope's own where a registry answers, or else the local one, built when missing.
    """
    image = wanted or DEFAULT_IMAGE
    if _is_present(image):
        return image
    if image != LOCAL_IMAGE:
        if not wanted and _is_present(LOCAL_IMAGE):
            return LOCAL_IMAGE
        if _pull(image):
            return image
        if wanted:
            raise ServiceUnavailable(f"the base image {wanted} is not on this machine and cannot be pulled")
        print(f"base image   {image} cannot be pulled here", flush=True)
    done = subprocess.run([*as_root(), DEPLOY / "base-image.sh", LOCAL_IMAGE], check=False)
    if done.returncode != 0:
        raise ServiceUnavailable(f"the base image {LOCAL_IMAGE} could not be built; see above")
    return LOCAL_IMAGE


def _is_present(image: str) -> bool:
    return _docker("image", "inspect", image, limit_s=30).returncode == 0


def _pull(image: str) -> bool:
    """A registry that does not answer is found out by asking for a few bytes; only then the long wait begins."""
    try:
        if _docker("manifest", "inspect", image, limit_s=REGISTRY_LIMIT_S).returncode != 0:
            return False
        print(f"base image   pulling {image}", flush=True)
        return subprocess.run(["docker", "pull", image], timeout=PULL_LIMIT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _docker(*words: str, limit_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, timeout=limit_s)
