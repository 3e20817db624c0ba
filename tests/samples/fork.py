"""Gradescope's side of a fork, for tests and for `make run`: builds a sample's image as Gradescope does, and runs a
submission in it with a snippet at the end of run_autograder, which publishes by the real mosquitto_pub.

    snippet = readme_snippet("plain", "127.0.0.1", 1883, "submit", password)
    forked = fork(sample, "full", snippet=snippet, submission_id=1, assignment_id=2)

Containers run on the host's network, so 127.0.0.1 is this machine's broker. Images and containers carry the label
greengrader.fork. Imports nothing but the standard library; needs the `docker` command and the base image.
"""

import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
BASE_IMAGE = "greengrader/base:debian-12"
MEMORY = "768m"  # Gradescope's smallest container
LABEL = "greengrader.fork"


@dataclass(frozen=True)
class Forked:
    """What Gradescope sees of one run."""

    results: bytes | None  # results.json as it was written
    stdout: str  # standard output and error of run_autograder, the snippet's included
    exit_status: int
    seconds: float  # from the start of the container to its end


def readme_snippet(name: str, host: str, port: int, user: str, password: str) -> str:
    """The snippet `name` (plain, acknowledged) as it stands in the README, filled in as its reader would do it."""
    block = re.search(rf"<!-- snippet: {name} -->\s*```\w*\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    if block is None:
        raise LookupError(f"{README} has no fenced block after <!-- snippet: {name} -->")
    snippet = block[1]
    for key, value in {"HOST": host, "PORT": str(port), "USER": user, "PASSWORD": password}.items():
        snippet = _fill(snippet, key, shlex.quote(value))
    return snippet


def official_zip(sample: Path, snippet: str = "") -> bytes:
    """The autograder zip as staff upload it to Gradescope and register it here, with or without the snippet."""
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        source = _source(sample, snippet, Path(scratch))
        for path in sorted(source.rglob("*")):
            zipped.write(path, path.relative_to(source))
    return archive.getvalue()


def build(sample: Path, snippet: str) -> str:
    """The id of the image that Gradescope makes of a sample. Building the same again takes a fraction of a second."""
    with tempfile.TemporaryDirectory() as scratch:
        _source(sample, snippet, Path(scratch))
        shutil.copy(HERE / "gradescope/Dockerfile", scratch)
        base = os.environ.get("GREENGRADER_BASE_IMAGE") or BASE_IMAGE
        return _build_image(Path(scratch), "Dockerfile", base=_gradescope_image(base))


def fork(
    sample: Path,
    submission: str,
    *,
    snippet: str,
    submission_id: int,
    assignment_id: int,
    user: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Forked:
    """What Gradescope gets for submissions/`submission` of a sample whose run_autograder ends in `snippet`.

    `user` replaces keys of the student (id, email, name, sid), `metadata` top-level keys of submission_metadata.json,
    `environment` is added to the container's. Run a second time, it publishes the same id again, as a re-run does.
    """
    image = build(sample, snippet)
    about = _metadata(sample, submission_id, assignment_id, user) | dict(metadata or {})
    container = f"greengrader-fork-{uuid.uuid4().hex[:12]}"
    settings = [f"--env={name}={value}" for name, value in (environment or {}).items()]
    memory = [f"--memory={MEMORY}", f"--memory-swap={MEMORY}"]
    _docker("create", "--name", container, "--label", LABEL, "--network", "host", "--init", *memory, *settings, image)
    try:
        files = _submission_tar(sample / "submissions" / submission, about)
        _docker("cp", "-", f"{container}:/autograder", stdin=files)
        started = time.monotonic()
        _docker("start", container)
        exit_status = int(_docker("wait", container))
        seconds = time.monotonic() - started
        results = _docker("cp", f"{container}:/autograder/results", "-")
    finally:
        _docker("rm", "--force", "--volumes", container)
    stdout = _member(results, "results/stdout") or b""
    return Forked(_member(results, "results/results.json"), stdout.decode("utf-8", "replace"), exit_status, seconds)


def _fill(snippet: str, key: str, value: str) -> str:
    """`snippet` with `value` for what its reader has to fill in: the line `KEY=...`, else the word KEY itself."""
    name = rf"(?:GREENGRADER_)?{key}"
    for place in (rf"^(?P<before>\s*(?:export )?{name}=).*$", rf"(?P<before>)(?<![\w${{]){name}\b"):
        filled, places = re.subn(place, lambda found: found["before"] + value, snippet, flags=re.MULTILINE)
        if places:
            return filled
    raise LookupError(f"a snippet of {README} has no place for {key}")


def _source(sample: Path, snippet: str, folder: Path) -> Path:
    """A copy of the staff's folder within `folder`, with the snippet at the end of run_autograder; follows links, as
    `zip -r` does.
    """
    source = folder / "source"
    shutil.copytree(sample / "autograder", source)
    if snippet:
        with (source / "run_autograder").open("a", newline="") as run_autograder:
            run_autograder.write("\n" + snippet)
    return source


@functools.cache
def _gradescope_image(base: str) -> str:
    image = _build_image(HERE / "gradescope", "Dockerfile.base", base=base)
    _docker("tag", image, "greengrader/gradescope-like")
    # A snippet holds its broker's port, so a test session makes images of its own; an hour later they are nobody's.
    _docker("image", "prune", "--force", "--filter", f"label={LABEL}", "--filter", "until=1h")
    return image


def _build_image(context: Path, dockerfile: str, *, base: str) -> str:
    # The classic builder is part of every engine; its successor is a plugin that Debian does not install.
    # Host network: setup.sh installs packages, and reaches what this machine reaches.
    options = ["--quiet", "--network", "host", "--label", LABEL, "--build-arg", f"BASE={base}"]
    return _docker("build", *options, "--file", str(context / dockerfile), str(context)).decode().strip()


def _docker(*arguments: str, stdin: bytes | None = None) -> bytes:
    """What a docker command prints; an error carries what it complained about."""
    environment = os.environ | {"DOCKER_BUILDKIT": "0"}
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, env=environment, check=False)
    if done.returncode != 0:
        complaint = (done.stdout[-4000:] + done.stderr[-4000:]).decode("utf-8", "replace")
        raise RuntimeError(f"docker {arguments[0]} ended with {done.returncode}:\n{complaint}")
    return done.stdout


def _metadata(sample: Path, submission_id: int, assignment_id: int, user: Mapping[str, Any] | None) -> dict[str, Any]:
    """submission_metadata.json with every key that Gradescope is known to write (the reference, section 3)."""
    written: dict[str, Any] = json.loads((HERE / "gradescope/submission_metadata.json").read_text())
    expected = json.loads((sample / "expected.json").read_text())
    written["id"] = submission_id
    written["created_at"] = datetime.now(UTC).isoformat(timespec="microseconds")
    written["users"][0] |= user or {}
    written["assignment"] |= {
        "id": assignment_id,
        "title": expected["about"],
        "total_points": str(float(expected["max_score"])),
    }
    return written


def _submission_tar(submission: Path, metadata: dict[str, Any]) -> bytes:
    """What the harness writes to /autograder before a run: the metadata first, then the student's files, all new."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        text = json.dumps(metadata).encode()
        entry = _fresh(tarfile.TarInfo("submission_metadata.json"))
        entry.size, entry.mode = len(text), 0o644
        tar.addfile(entry, io.BytesIO(text))
        tar.add(submission, "submission", filter=_fresh)
    return archive.getvalue()


def _fresh(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = int(time.time())
    return entry


def _member(tarred: bytes, name: str) -> bytes | None:
    """The content of a regular file in a tar archive, None where there is no such file."""
    with tarfile.open(fileobj=io.BytesIO(tarred)) as tar:
        entry = next((entry for entry in tar.getmembers() if entry.name == name and entry.isreg()), None)
        file = tar.extractfile(entry) if entry else None
        return file.read() if file else None
