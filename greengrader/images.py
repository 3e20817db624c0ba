"""Images of autograders on this worker: found, pulled or built once, and removed when they take too much room.

The key is the autograder's digest (of the staff's code, the Dockerfile and the base image's name). An image is built by
one thread of one process at a time: a file lock for each digest. The lock file's modification time says when the image
was last asked for, which the engine does not know. A build that failed is not tried again for a while: the next 500
submissions fail at once. Nothing secret goes into a build: its only argument is the name of the base image.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from greengrader.build import ROLE, ROLE_LABEL, Recipe, build
from greengrader.config import Settings
from greengrader.engine import Engine, EngineRefused
from greengrader.errors import AutograderBroken, AutograderMissing, SandboxError

log = logging.getLogger("greengrader")

REPOSITORY = "greengrader/autograder"
LABEL_DIGEST = "greengrader.autograder"
LABEL_COMMAND = "greengrader.command"
LABEL_BASE = "greengrader.base"
TEMPLATE = Path(__file__).resolve().parent.parent / "deploy" / "autograder.Dockerfile"
IN_HAND_S = 60.0  # an image that was asked for so recently may be about to start a run

_STAFFS_FAULTS = ("not found", "manifest unknown", "denied", "unauthorized", "does not exist", "invalid reference")


@dataclass(frozen=True)
class BuiltImage:
    """An image that is on this engine, and how to start its autograder."""

    reference: str
    command: list[str]
    built: bool  # just now, for this call
    build_s: float = 0.0
    build_log: str = ""


class Images:
    """The autograders' images of one engine. Threads may share it."""

    def __init__(
        self,
        engine: Engine,
        state_dir: Path,
        *,
        registry: str | None = None,
        build_timeout_s: float = 1200.0,
        pull_timeout_s: float = 600.0,
        cache_bytes: int = 20 * 1024**3,
        build_retry_s: float = 600.0,
        template: Path = TEMPLATE,
    ) -> None:
        self.engine = engine
        self._folder = state_dir / "images"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._registry, self._template = registry, template
        self._build_timeout_s, self._pull_timeout_s = build_timeout_s, pull_timeout_s
        self._cache_bytes, self._build_retry_s = cache_bytes, build_retry_s
        self._broken: dict[str, tuple[float, AutograderBroken]] = {}

    @classmethod
    def connect(cls, settings: Settings, state_dir: Path) -> Self:
        """Those of the engine that DOCKER_HOST names, or of this machine's; ServiceUnavailable where none answers."""
        return cls(
            Engine(),
            state_dir,
            registry=settings.registry or None,
            build_timeout_s=settings.image_build_timeout_s,
            pull_timeout_s=settings.image_pull_timeout_s,
            cache_bytes=settings.image_cache_bytes,
        )

    def close(self) -> None:
        self.engine.close()

    def data_root(self) -> Path:
        """The folder whose disk the engine fills; / where the engine is on another machine."""
        return self.engine.facts.root_dir if self.engine.facts.local else Path("/")

    def ensure(self, digest: str, base_image: str, archive: Path | None) -> BuiltImage:
        """The autograder's image, pulled or built from `archive` (as autograder.py writes it) if need be.

        AutograderMissing: neither image nor archive are here. AutograderBroken: the staff has to change something.
        """
        with self._locked(digest):
            present = self._find(digest)
            if present is not None:
                return present
            self._raise_if_known_broken(digest)
            pulled = self._pull_ready(digest)
            if pulled is not None:
                return pulled
            if archive is None or not archive.is_file():
                raise AutograderMissing(digest)
            try:
                return self._build(digest, base_image, archive)
            except AutograderBroken as error:
                self._broken[digest] = time.monotonic() + self._build_retry_s, error
                raise

    def digests(self) -> set[str]:
        """The autograders whose images are on this engine."""
        return {image["Labels"][LABEL_DIGEST] for image in self._list()}

    def collect_garbage(
        self,
        max_bytes: int | None = None,
        *,
        max_images: int | None = None,
        unused_for_s: float | None = None,
        in_use: frozenset[str] | set[str] = frozenset(),
    ) -> list[str]:
        """Digests of the images removed: the longest unused first, until the others fit; never one in use.

        `max_bytes` (default: the setting) counts what each image adds to its base. What failed builds left goes too.
        """
        limit_bytes = self._cache_bytes if max_bytes is None else max_bytes
        found = sorted(self._list(), key=self._last_used)
        sizes = self._added_bytes(found)
        total_bytes, count = sum(sizes.values()), len(found)
        removed = []
        for image in found:
            digest = image["Labels"][LABEL_DIGEST]
            idle_s = time.time() - self._last_used(image)
            too_many = total_bytes > limit_bytes or (max_images is not None and count > max_images)
            too_old = unused_for_s is not None and idle_s > unused_for_s
            if (too_many or too_old) and digest not in in_use and self._remove(digest, image):
                total_bytes, count = total_bytes - sizes[image["Id"]], count - 1
                removed.append(digest)
        self._prune_failed_builds()
        return removed

    # ------------------------------------------------------------------------------------------- one image
    @contextlib.contextmanager
    def _locked(self, digest: str) -> Iterator[None]:
        """Waits until no other thread or process is at this image, and marks it as used now."""
        path = self._lock_path(digest)
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # each open file is a holder of its own, so threads exclude each other
            os.utime(path)
            yield

    def _lock_path(self, digest: str) -> Path:
        return self._folder / f"{digest[:32]}.lock"

    def _find(self, digest: str) -> BuiltImage | None:
        labels = self._labels_of(_tag(digest))
        if labels is None or labels.get(LABEL_DIGEST) != digest:
            return None
        return BuiltImage(_tag(digest), json.loads(labels[LABEL_COMMAND]), built=False)

    def _labels_of(self, reference: str) -> dict[str, str] | None:
        """The labels of an image, None where the engine has no such image."""
        try:
            inspected = self.engine.ask("describe an image", "GET", f"/images/{reference}/json")
        except EngineRefused as refused:
            if refused.status == 404:
                return None
            raise
        return dict(inspected["Config"].get("Labels") or {})

    def _build(self, digest: str, base_image: str, archive: Path) -> BuiltImage:
        began = time.monotonic()
        recipe = Recipe.of(archive, self._template)
        self._need_base(base_image)
        labels = {LABEL_DIGEST: digest, LABEL_COMMAND: json.dumps(recipe.command), LABEL_BASE: base_image}
        build_log = build(
            self.engine,
            archive,
            recipe,
            tag=_tag(digest),
            base_image=base_image,
            labels=labels,
            timeout_s=self._build_timeout_s,
        )
        build_s = time.monotonic() - began
        log.info("image built digest=%s build_s=%.1f", digest[:12], build_s)
        self._broken.pop(digest, None)
        self._offer(digest)
        return BuiltImage(_tag(digest), recipe.command, built=True, build_s=build_s, build_log=build_log)

    def _raise_if_known_broken(self, digest: str) -> None:
        until, error = self._broken.get(digest, (0.0, None))
        if error is not None and time.monotonic() < until:
            raise AutograderBroken(str(error), error.build_log)

    def _need_base(self, base_image: str) -> None:
        """The base image is here; AutograderBroken where its registry says that there is none."""
        if self._labels_of(base_image) is not None:
            return
        try:
            self._pull(base_image)
        except EngineRefused as refused:
            if any(words in str(refused).lower() for words in _STAFFS_FAULTS):
                raise AutograderBroken(f"the base image {base_image} cannot be had: {refused}", "") from refused
            raise

    # ------------------------------------------------------------------------------------------- registry
    def _pull_ready(self, digest: str) -> BuiltImage | None:
        """The image as another worker has pushed it; None where there is no registry or it has none."""
        if self._registry is None:
            return None
        remote = f"{self._registry}/{_tag(digest)}"
        try:
            self._pull(remote)
        except SandboxError as error:
            log.info("image not pulled digest=%s reason=%s", digest[:12], error)
            return None
        repository, _, tag = _tag(digest).partition(":")
        self.engine.ask("tag an image", "POST", f"/images/{remote}/tag", params={"repo": repository, "tag": tag})
        return self._find(digest)

    def push(self, digest: str) -> str:
        """The image's name in the registry, which has it from now on; SandboxError where it does not take it."""
        repository, _, tag = f"{self._registry}/{_tag(digest)}".rpartition(":")
        params = {"repo": repository, "tag": tag}
        self.engine.ask("tag an image", "POST", f"/images/{_tag(digest)}/tag", params=params)
        with self.engine.asked("push the image"):
            self._follow(self.engine.client.push(repository, tag, stream=True, decode=True), f"push {repository}")
        return f"{repository}:{tag}"

    def _offer(self, digest: str) -> None:
        """Offers the image to the other workers; that it fails is no reason not to grade."""
        if self._registry is None:
            return
        try:
            self.push(digest)
        except SandboxError as error:
            log.warning("image not pushed digest=%s reason=%s", digest[:12], error)

    def _pull(self, reference: str) -> None:
        log.info("pulling image=%s", reference)
        with self.engine.asked(f"pull {reference}"):  # by the SDK's method, which knows the registries' passwords
            self._follow(self.engine.client.pull(reference, stream=True, decode=True), f"pull {reference}")

    def _follow(self, lines: Iterator[dict[str, Any]], what: str) -> None:
        """Reads a transfer's messages to the end; EngineRefused where one is an error, SandboxError after the time."""
        deadline = time.monotonic() + self._pull_timeout_s
        for line in lines:
            if "error" in line:
                raise EngineRefused(f"the engine could not {what}: {line['error']}", 0)
            if time.monotonic() > deadline:
                raise SandboxError(f"the engine did not {what} within {self._pull_timeout_s:.0f} s")

    # ------------------------------------------------------------------------------------------- garbage
    def _list(self) -> list[dict[str, Any]]:
        query = {"filters": json.dumps({"label": [LABEL_DIGEST]})}
        images: list[dict[str, Any]] = self.engine.ask("list images", "GET", "/images/json", params=query)
        return [image for image in images if _tag(image["Labels"][LABEL_DIGEST]) in (image["RepoTags"] or ())]

    def _last_used(self, image: dict[str, Any]) -> float:
        """Unix time of the last `ensure`; of its making, where this state folder does not know it."""
        try:
            return self._lock_path(image["Labels"][LABEL_DIGEST]).stat().st_mtime
        except FileNotFoundError:
            return float(image["Created"])

    def _added_bytes(self, images: list[dict[str, Any]]) -> dict[str, int]:
        """{image id: bytes that it adds to its base, or all of them where the base has gone}"""
        bases: dict[str, int] = {}
        for base in {image["Labels"].get(LABEL_BASE, "") for image in images} - {""}:
            with contextlib.suppress(EngineRefused):
                bases[base] = int(self.engine.ask("describe an image", "GET", f"/images/{base}/json")["Size"])
        return {image["Id"]: max(image["Size"] - bases.get(image["Labels"].get(LABEL_BASE), 0), 0) for image in images}

    def _remove(self, digest: str, image: dict[str, Any]) -> bool:
        """True if the image is gone; False while it is in use, which the engine knows, or was just asked for."""
        with self._lock_path(digest).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if time.time() - self._last_used(image) < IN_HAND_S:
                return False
            try:
                for tag in image["RepoTags"]:
                    self.engine.ask("remove an image", "DELETE", f"/images/{tag}")
            except EngineRefused as refused:
                if refused.status in (404, 409):
                    return False
                raise
        log.info("image removed digest=%s", digest[:12])
        return True

    def _prune_failed_builds(self) -> None:
        """Removes what failed builds left; not what is young enough to belong to one that is going on."""
        age = f"{self._build_timeout_s:.0f}s"
        filters = {"dangling": ["true"], "label": [f"{ROLE_LABEL}={ROLE}"], "until": [age]}
        try:
            self.engine.ask("prune images", "POST", "/images/prune", params={"filters": json.dumps(filters)})
        except EngineRefused as refused:
            if refused.status != 409:  # 409: somebody else is pruning
                raise


def _tag(digest: str) -> str:
    return f"{REPOSITORY}:{digest[:32]}"
