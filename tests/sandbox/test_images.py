"""images.py and build.py against a real engine: each autograder is built once, and what cannot be built says why."""

import hashlib
import itertools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greengrader import build as build_module
from greengrader import images as images_module
from greengrader.build import BuildLog, Recipe
from greengrader.engine import Engine
from greengrader.errors import AutograderBroken, AutograderMissing, SandboxError
from greengrader.images import BuiltImage, Images
from tests.sandbox.conftest import RESULTS, Grader, tar_gz, write_autograder
from tests.sandbox.registry import Registry

pytestmark = pytest.mark.docker

_numbers = itertools.count()
SCRIPT = f"#!/bin/bash\necho '{RESULTS.strip()}' > results/results.json\ncat /made-by-setup\n"
# The deployed template fetches package lists first, which takes seconds; one test uses it.
QUICK = """ARG BASE
FROM ${BASE}
WORKDIR /autograder
COPY source source
COPY run_autograder .
RUN mkdir results; [ ! -f source/setup.sh ] || bash source/setup.sh
"""
TINY = "ARG BASE\nFROM ${BASE}\nCOPY run_autograder /autograder/run_autograder\n"


class Workshop:
    """Makes autograders of the test's own, and removes their images at its end."""

    def __init__(self, engine: Engine, folder: Path, base_image: str) -> None:
        self.engine, self.folder, self.base_image = engine, folder, base_image
        self.digests: set[str] = set()

    def images(self, **settings: object) -> Images:
        return Images(self.engine, self.folder / "state", **settings)  # type: ignore[arg-type]  # as the test wants it

    def autograder(self, setup: str | None = "touch /made-by-setup", **files: str) -> tuple[str, Path]:
        """Digest and archive of a new autograder."""
        digest = hashlib.sha256(f"{os.getpid()} {next(_numbers)}".encode()).hexdigest()
        content = {"Dockerfile": QUICK, "run_autograder": SCRIPT, **files}
        if setup is not None:
            content["source/setup.sh"] = setup
        self.digests.add(digest)
        return digest, write_autograder(self.folder / digest, content)

    def ensure(self, images: Images, made: tuple[str, Path]) -> BuiltImage:
        return images.ensure(made[0], self.base_image, made[1])

    def collect(self, images: Images, *, others: frozenset[str] | set[str] = frozenset(), **limits: float) -> list[str]:
        """Like `collect_garbage`, with other people's images out of reach."""
        protected = (images.digests() - self.digests) | others
        return images.collect_garbage(in_use=protected, **limits)  # type: ignore[arg-type]  # max_bytes is an int


ROLE = f"test-{os.getpid()}"


@pytest.fixture
def workshop(engine: Engine, tmp_path: Path, base_image: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """A Workshop, whose failed builds are not mistaken for other people's."""
    for module in (images_module, build_module):
        monkeypatch.setattr(module, "ROLE", ROLE)
    made = Workshop(engine, tmp_path, base_image)
    yield made
    monkeypatch.setattr(images_module, "IN_HAND_S", -1.0)
    made.collect(made.images(build_timeout_s=0), max_bytes=-1)
    assert not made.images().digests() & made.digests


def _tags(engine: Engine) -> set[str]:
    return {tag for image in engine.ask("list", "GET", "/images/json") for tag in image["RepoTags"] or ()}


def _leavings(engine: Engine) -> int:
    filters = json.dumps({"dangling": ["true"], "label": [f"greengrader.role={ROLE}"]})
    return len(engine.ask("list", "GET", "/images/json", params={"filters": filters}))


# ------------------------------------------------------------------------------------------------- building


def test_four_threads_build_once(workshop: Workshop, grade: Grader) -> None:
    images = workshop.images()
    template = images_module.TEMPLATE.read_text()
    made = workshop.autograder("sleep 0.5\necho set up > /made-by-setup", Dockerfile=template)
    found: list[BuiltImage] = []
    threads = [threading.Thread(target=lambda: found.append(workshop.ensure(images, made))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(image.built for image in found) == [False, False, False, True]
    assert {image.reference for image in found} == {f"greengrader/autograder:{made[0][:32]}"}
    built = next(image for image in found if image.built)
    assert built.build_s > 0.5 and "setup.sh" in built.build_log
    assert built.command == ["/autograder/run_autograder"]
    assert made[0] in images.digests()
    report = grade("", image=built.reference, archive=tar_gz({"submission/a.py": "pass"}), command=built.command)
    assert (report.results, report.output) == (RESULTS.encode(), b"set up\n")


def test_no_source_and_no_image(workshop: Workshop, tmp_path: Path) -> None:
    digest, archive = workshop.autograder()
    archive.unlink()
    for nothing in (None, archive):
        with pytest.raises(AutograderMissing) as caught:
            workshop.images().ensure(digest, workshop.base_image, nothing)
        assert caught.value.digest == digest


def test_script_without_shebang_is_started_by_bash(workshop: Workshop, grade: Grader) -> None:
    made = workshop.autograder(None, run_autograder='echo "bash ${BASH_VERSION:+yes}"\n')
    first, second = (workshop.ensure(workshop.images(), made) for _ in range(2))
    assert first.command == second.command == ["/bin/bash", "/autograder/run_autograder"]
    report = grade("", image=first.reference, archive=tar_gz({"submission/a": ""}), command=first.command)
    assert report.output == b"bash yes\n"


def test_archive_without_run_autograder(workshop: Workshop) -> None:
    digest, archive = workshop.autograder()
    archive.write_bytes(tar_gz({"source/setup.sh": "true"}))
    with pytest.raises(AutograderBroken, match="no run_autograder"):
        workshop.images().ensure(digest, workshop.base_image, archive)
    with pytest.raises(SandboxError, match="cannot be read"):
        archive.write_bytes(b"no archive")
        workshop.images(build_retry_s=0).ensure(digest, workshop.base_image, archive)


def test_recipe_is_read_without_the_source(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.write_text("FROM template")
    brought = write_autograder(tmp_path / "a", {"Dockerfile": "FROM brought", "run_autograder": b"\x7fELF..."})
    bare = write_autograder(tmp_path / "b", {"./run_autograder": "echo"})
    direct, by_bash = ["/autograder/run_autograder"], ["/bin/bash", "/autograder/run_autograder"]
    assert Recipe.of(brought, template) == Recipe("FROM brought", direct)
    assert Recipe.of(bare, template) == Recipe("FROM template", by_bash)


# ------------------------------------------------------------------------------------------------- builds that fail


def test_broken_setup_is_reported_and_not_tried_again_at_once(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greengrader")
    images = workshop.images()
    made = workshop.autograder("echo installing >&2\necho 'E: no such package' >&2\nexit 42")
    with pytest.raises(AutograderBroken, match=r"exit status 42; last line: E: no such package") as first:
        workshop.ensure(images, made)
    assert "installing\n" in first.value.build_log
    steps = len(caplog.records)
    assert steps > 3
    with pytest.raises(AutograderBroken) as second:
        workshop.ensure(images, made)
    assert (str(second.value), second.value.build_log) == (str(first.value), first.value.build_log)
    assert len(caplog.records) == steps
    assert made[0] not in images.digests()


def test_broken_setup_is_tried_again_later_and_leaves_nothing(workshop: Workshop) -> None:
    images = workshop.images(build_retry_s=0.0, build_timeout_s=60)
    digest, archive = workshop.autograder(f"echo {os.urandom(8).hex()}; exit 1")
    with pytest.raises(AutograderBroken):
        images.ensure(digest, workshop.base_image, archive)
    assert _leavings(workshop.engine) > 0
    write_autograder(archive, {"Dockerfile": QUICK, "run_autograder": SCRIPT, "source/setup.sh": "true"})
    assert images.ensure(digest, workshop.base_image, archive).built
    workshop.collect(workshop.images(build_timeout_s=0))
    assert _leavings(workshop.engine) == 0


def test_build_that_takes_too_long_is_stopped(workshop: Workshop) -> None:
    seconds = f"600.{os.getpid()}"
    made = workshop.autograder(f"echo going to sleep; exec sleep {seconds}")
    began = time.monotonic()
    with pytest.raises(AutograderBroken, match=r"longer than 5 s; last line: going to sleep") as caught:
        workshop.ensure(workshop.images(build_timeout_s=5), made)
    assert time.monotonic() - began < 15
    assert "going to sleep" in caught.value.build_log
    _wait_until(lambda: not _is_running(f"sleep\0{seconds}\0"))


def _is_running(command: str) -> bool:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_text(errors="replace") == command:
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def _wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_base_image_that_does_not_exist(workshop: Workshop) -> None:
    with Registry() as registry, pytest.raises(AutograderBroken, match=r"base image 127\.0\.0\.1.* cannot be had"):
        digest, archive = workshop.autograder()
        workshop.images().ensure(digest, f"{registry.address}/no/base:1", archive)


def test_registry_of_the_base_image_away(workshop: Workshop) -> None:
    with Registry() as registry:
        address = registry.address
    digest, archive = workshop.autograder()
    with pytest.raises(SandboxError, match="refused") as caught:
        workshop.images().ensure(digest, f"{address}/base:1", archive)
    assert not isinstance(caught.value, AutograderBroken)


def test_long_build_log_keeps_head_and_tail() -> None:
    log = BuildLog()
    log.add("Step 1/2 : FROM base\n")
    for number in range(40_000):
        log.add(f"line {number}\n")
    log.add(" ---> Running in 0123\n")
    text = str(log)
    assert text.startswith("Step 1/2 : FROM base\nline 0\n")
    assert "characters left out" in text and "line 39999\n" in text
    assert len(text) < 101_000
    assert log.last_line() == "line 39999"


# ------------------------------------------------------------------------------------------------- garbage


@pytest.fixture
def tiny_base(engine: Engine) -> Iterator[str]:
    """A base image of a few bytes, for what is not about running."""
    name = f"greengrader-test/tiny:{os.getpid()}"
    repository, tag = name.split(":")
    params = {"fromSrc": "-", "repo": repository, "tag": tag}
    engine.ask("import", "POST", "/images/create", params=params, data=tar_gz({"etc/marker": "x"}))
    yield name
    engine.ask("remove", "DELETE", f"/images/{name}")


def test_longest_unused_goes_first_and_is_built_again(workshop: Workshop, tiny_base: str) -> None:
    images = workshop.images()
    old, new = (workshop.autograder(None, Dockerfile=TINY) for _ in range(2))
    for digest, archive in (old, new):
        images.ensure(digest, tiny_base, archive)
    _last_used(workshop, old[0], 1000.0)
    _last_used(workshop, new[0], 500.0)
    present = len(images.digests())
    assert workshop.collect(images, max_images=present) == []
    assert workshop.collect(images, max_images=present - 1) == [old[0]]
    assert workshop.collect(images, unused_for_s=600.0) == []
    assert workshop.collect(images, max_bytes=-1, others={new[0]}) == []
    assert workshop.collect(images, max_bytes=-1) == [new[0]]
    assert images.ensure(old[0], tiny_base, old[1]).built


def _last_used(workshop: Workshop, digest: str, ago_s: float) -> None:
    path = workshop.folder / "state" / "images" / f"{digest[:32]}.lock"
    os.utime(path, (time.time() - ago_s, time.time() - ago_s))


def test_images_in_use_stay(workshop: Workshop, tiny_base: str) -> None:
    images = workshop.images()
    digest, archive = workshop.autograder(None, Dockerfile=TINY)
    image = images.ensure(digest, tiny_base, archive)
    assert workshop.collect(images, max_bytes=-1) == []  # asked for a moment ago
    _last_used(workshop, digest, 1000.0)
    config = {"Image": image.reference, "Cmd": ["nothing"], "HostConfig": {"NetworkMode": "none"}}
    container = workshop.engine.ask("create", "POST", "/containers/create", body=config)["Id"]
    try:
        assert workshop.collect(images, max_bytes=-1) == []
    finally:
        workshop.engine.ask("remove", "DELETE", f"/containers/{container}")
    assert workshop.collect(images, max_bytes=-1) == [digest]


# ------------------------------------------------------------------------------------------------- registry


def test_second_worker_pulls_what_the_first_has_pushed(
    workshop: Workshop, tiny_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "IN_HAND_S", -1.0)
    digest, archive = workshop.autograder(None, Dockerfile=TINY)
    with Registry() as registry:
        images = workshop.images(registry=registry.address)
        assert images.ensure(digest, tiny_base, archive).built
        assert f"{digest[:32]}" in registry.manifests
        assert workshop.collect(images, max_bytes=-1) == [digest]
        assert not any(digest[:32] in tag for tag in _tags(workshop.engine))
        shutil.rmtree(workshop.folder / "state")
        pulled = workshop.images(registry=registry.address).ensure(digest, tiny_base, None)
    assert not pulled.built
    assert pulled.command == ["/autograder/run_autograder"]


def test_registry_away_is_no_reason_not_to_build(
    workshop: Workshop, tiny_base: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Registry() as registry:
        address = registry.address
    digest, archive = workshop.autograder(None, Dockerfile=TINY)
    assert workshop.images(registry=address).ensure(digest, tiny_base, archive).built
    assert any("image not pushed" in record.message for record in caplog.records)
