"""One build of an autograder's image: what is sent to the engine, what it says, and what that means.

By the classic builder of the engine's REST interface, which every version has. The archive streams from its file as it
is, behind a gzip member of our own with the Dockerfile in it; nothing is read whole into memory. A build that takes
too long is ended by hanging up, which the engine answers by killing the step that runs.
"""

import gzip
import json
import logging
import re
import tarfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from greengrader.engine import CHUNK_BYTES, Engine, EngineRefused
from greengrader.errors import AutograderBroken, SandboxError
from greengrader.layer import AUTOGRADER

log = logging.getLogger("greengrader")

ROLE_LABEL, ROLE = "greengrader.role", "autograder"
"""On all images of a build, the unfinished ones of a failed build too: by it they are found and removed."""

DOCKERFILE = "greengrader.Dockerfile"
DOCKERFILE_BYTES = 1024 * 1024
LOG_HEAD_CHARS, LOG_TAIL_CHARS = 20_000, 80_000
PROGRESS_S = 15.0


class BuildLog:
    """What a build printed: its head, and of the rest the tail, where the reason stands."""

    def __init__(self) -> None:
        self._head = ""
        self._tail: deque[str] = deque()
        self._tail_chars = self._left_out_chars = 0

    def add(self, text: str) -> None:
        room = max(LOG_HEAD_CHARS - len(self._head), 0)
        self._head += text[:room]
        self._tail.append(text[room:])
        self._tail_chars += len(self._tail[-1])
        while self._tail_chars > LOG_TAIL_CHARS and len(self._tail) > 1:
            gone = len(self._tail.popleft())
            self._tail_chars -= gone
            self._left_out_chars += gone

    def __str__(self) -> str:
        gap = f"\n[... {self._left_out_chars:,} characters left out ...]\n" if self._left_out_chars else ""
        return self._head + gap + "".join(self._tail)

    def last_line(self) -> str:
        """The last line that says something, without the engine's own remarks."""
        for line in reversed(str(self).splitlines()):
            text = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
            if text and not text.startswith(("Step ", "---> ", "Removing intermediate container")):
                return text[:300]
        return ""


@dataclass(frozen=True)
class Recipe:
    """What an autograder's archive says about its own image."""

    dockerfile: str
    command: list[str]  # starts run_autograder

    @classmethod
    def of(cls, archive: Path, template: Path) -> Self:
        """Read off the archive; `template` serves where it brings no Dockerfile. SandboxError where it is no tar.gz."""
        dockerfile, script = None, None
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    if name in ("Dockerfile", "run_autograder") and (file := tar.extractfile(member)) is not None:
                        if name == "Dockerfile":
                            dockerfile = file.read(DOCKERFILE_BYTES).decode()
                        else:
                            script = file.read(4)
                    if script is not None and (dockerfile is not None or name.startswith("source/")):
                        break  # both stand before source/, whose unpacking would take a while
        except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
            raise SandboxError(f"the autograder's archive cannot be read: {error}") from error
        if script is None:
            raise AutograderBroken("the autograder has no run_autograder", "")
        return cls(dockerfile or template.read_text(encoding="utf-8"), _command(script))


def build(
    engine: Engine,
    archive: Path,
    recipe: Recipe,
    *,
    tag: str,
    base_image: str,
    labels: dict[str, str],
    timeout_s: float,
) -> str:
    """Builds and tags the image; its log. AutograderBroken where the staff's code is to blame, else SandboxError."""
    params = {
        "t": tag,
        "dockerfile": DOCKERFILE,
        "rm": "true",
        "forcerm": "true",
        "buildargs": json.dumps({"BASE": base_image}),
        "labels": json.dumps(labels),
    }
    context = _context(recipe.dockerfile, archive)
    try:
        answer = engine.stream("build the image", "POST", "/build", params=params, data=context, timeout_s=timeout_s)
    except EngineRefused as refused:
        if refused.status in (400, 500):  # a Dockerfile or an archive that it cannot read
            raise AutograderBroken(str(refused), "") from refused
        raise
    printed, progress, finished = BuildLog(), _Progress(tag), False
    with answer:
        for line in answer.json_lines():
            if "error" in line:
                _raise_failure(line, printed)
            finished = finished or "aux" in line
            text = str(line.get("stream", ""))
            printed.add(text)
            progress.tell(text)
    if answer.timed_out:
        reason = f"building the image (setup.sh) took longer than {timeout_s:.0f} s; last line: {printed.last_line()}"
        raise AutograderBroken(reason, str(printed))
    if not finished:
        raise SandboxError(f"the engine broke off the build; last line: {printed.last_line()}")
    return str(printed)


def _command(script: bytes) -> list[str]:
    """The file itself, or bash for a script without a first line that names its interpreter."""
    path = f"{AUTOGRADER}/run_autograder"
    return [path] if script.startswith((b"#!", b"\x7fELF")) else ["/bin/bash", path]


def _context(dockerfile: str, archive: Path) -> Iterator[bytes]:
    """The build context: a tar.gz of the Dockerfile without an end, then the archive, which is the rest of it."""
    # A label behind FROM marks every image that the steps leave.
    text = re.sub(r"(?mi)^(FROM\s.*)$", rf"\1\nLABEL {ROLE_LABEL}={ROLE}", dockerfile, count=1).encode()
    entry = tarfile.TarInfo(DOCKERFILE)
    entry.size = len(text)
    padding = b"\0" * (-len(text) % tarfile.BLOCKSIZE)
    yield gzip.compress(entry.tobuf() + text + padding, mtime=0)
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _raise_failure(line: dict[str, Any], printed: BuildLog) -> None:
    message = str(line["error"])
    detail = line.get("errorDetail") or {}
    if "no space left on device" in message.lower():
        raise SandboxError(f"the engine could not build the image: {message}")
    if detail.get("code"):
        reason = f"setup.sh failed with exit status {detail['code']}; last line: {printed.last_line()}"
    else:
        reason = f"the image could not be built: {message}"
    printed.add(f"{message}\n")
    raise AutograderBroken(reason, str(printed))


class _Progress:
    """Says in the log which step a build is at: at its begin, and every now and then while it lasts."""

    def __init__(self, tag: str) -> None:
        self._tag, self._began, self._told_at, self._step = tag, time.monotonic(), 0.0, "?"

    def tell(self, text: str) -> None:
        now = time.monotonic()
        step = re.match(r"Step (\d+/\d+) ", text)
        self._step = step[1] if step else self._step
        if step or now - self._told_at >= PROGRESS_S:
            self._told_at = now
            log.info("building image=%s step=%s after_s=%.0f", self._tag, self._step, now - self._began)
