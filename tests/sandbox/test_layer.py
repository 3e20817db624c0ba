"""Files into and out of a container's layer: the short way does what the engine's archive calls do, or nothing."""

import dataclasses
import gc
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greengrader import layer
from greengrader.engine import Engine, EngineFacts
from greengrader.layer import Found, Layer, NotThisWay
from greengrader.output import Output
from tests.sandbox.conftest import tar_gz

# Path, kind, mode, owner, group, target, time and checksum of everything that a container sees.
LISTING = r"""find /autograder -printf '%P|%y|%m|%U|%G|%l|%T@|' \
    -exec sh -c '[ ! -f "$1" ] || cksum < "$1"' - {} \; -printf '\n' | sort"""


def _entry(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **attributes: object
) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.mtime = kind, len(content), 1_700_000_000
    for key, value in attributes.items():
        setattr(entry, key, value)
    return entry, content


def _pack(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in entries:
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def here(tmp_path: Path) -> Layer:
    """A fresh layer on an image whose /autograder is private and whose submission folder is for everybody."""
    image = tmp_path / "image"
    (image / "autograder" / "submission").mkdir(parents=True)
    (image / "autograder" / "link").symlink_to("submission")
    (image / "autograder").chmod(0o710)
    (image / "autograder" / "submission").chmod(0o777)
    upper = tmp_path / "upper"
    upper.mkdir()
    return Layer(upper, (image,))


# ------------------------------------------------------------------------------------------------- into the layer


@pytest.fixture
def prepared_image(engine: Engine, base_image: str) -> Iterator[str]:
    """An image whose /autograder has attributes of its own, and files where the submission goes."""
    dockerfile = f"""FROM {base_image}
RUN mkdir -p /autograder/submission/old /autograder/other && chmod 1777 /autograder/submission
RUN echo stale > /autograder/submission/a.py && ln -s /tmp /autograder/away && touch -d @1600000000 /autograder
RUN chown 7:8 /autograder && chmod 750 /autograder
"""
    name = f"greengrader-test/layer:{os.getpid()}"
    params = {"t": name, "rm": "true", "forcerm": "true"}
    context = iter([tar_gz({"Dockerfile": dockerfile})])
    with engine.stream("build", "POST", "/build", params=params, data=context) as answer:
        assert [line for line in answer.json_lines() if "aux" in line]
    yield name
    engine.ask("remove", "DELETE", f"/images/{name}")


@pytest.mark.docker
def test_layer_and_archive_call_put_the_same(engine: Engine, prepared_image: str) -> None:
    archive = _pack(
        _entry("submission", tarfile.DIRTYPE, mode=0o755),
        _entry("submission/a.py", content=b"new", mode=0o600),
        _entry("submission/deep/er/ünïcode name.txt", content=b"x" * 5000, mode=0o444),
        _entry("submission/empty", content=b"", mode=0o755),
        _entry("submission/folder", tarfile.DIRTYPE, mode=0o500),
        _entry("submission/folder/in a closed folder", content=b"1"),
        _entry("submission/link", tarfile.SYMTYPE, linkname="deep/er"),
        _entry("submission/broken link", tarfile.SYMTYPE, linkname="nowhere"),
        _entry("submission_metadata.json", content=b"{}"),
    )
    short, long = (_listing(engine, prepared_image, archive, by_layer) for by_layer in (True, False))
    assert "submission/a.py|f|600|0|0||1700000000" in short
    assert short == long


def _listing(engine: Engine, image: str, archive: bytes, by_layer: bool) -> str:
    """What a container sees in /autograder, without the times that a write moves: of links, and of folders around."""
    config = {"Image": image, "Entrypoint": ["bash", "-c", LISTING], "HostConfig": {"NetworkMode": "none"}}
    container = engine.ask("create", "POST", "/containers/create", body=config)["Id"]
    try:
        if by_layer:
            found = layer.layer_of(engine.facts, engine.ask("describe", "GET", f"/containers/{container}/json"))
            assert found is not None
            layer.unpack(found, archive)
        else:
            layer.put(engine, container, None, archive)
        output = Output(1_000_000)
        with engine.attach(container) as attached:
            engine.ask("start", "POST", f"/containers/{container}/start")
            while piece := attached.read(20):
                output.feed(piece)
    finally:
        engine.ask("remove", "DELETE", f"/containers/{container}", params={"force": "true"})
    lines = []
    for line in bytes(output).decode().splitlines():
        fields = line.split("|")
        if fields[1:2] in (["d"], ["l"]) and fields[0] not in ("submission", "submission/folder"):
            fields[6] = ""
        lines.append("|".join(fields))
    return "\n".join(lines)


def test_folders_stand_before_the_images_with_its_attributes(here: Layer) -> None:
    layer.unpack(here, _pack(_entry("submission/a/b.py", content=b"x")))
    submission = here.upper / "autograder" / "submission"
    modes = [path.stat().st_mode & 0o7777 for path in (submission.parent, submission, submission / "a")]
    assert modes == [0o710, 0o777, 0o755]


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(_pack(_entry("../outside", content=b"x")), id="parent"),
        pytest.param(_pack(_entry("submission/../../outside", content=b"x")), id="parent inside"),
        pytest.param(_pack(_entry("/outside", content=b"x")), id="absolute"),
        pytest.param(
            _pack(_entry("a", tarfile.SYMTYPE, linkname="../../.."), _entry("a/outside", content=b"x")),
            id="through a link",
        ),
        pytest.param(_pack(_entry("a", tarfile.SYMTYPE, linkname="/"), _entry("a", content=b"x")), id="onto a link"),
        pytest.param(_pack(_entry("link/x", content=b"x")), id="through the image's link"),
        pytest.param(_pack(_entry("a", content=b"x"), _entry("b", tarfile.LNKTYPE, linkname="a")), id="hard link"),
        pytest.param(_pack(_entry("a", tarfile.FIFOTYPE)), id="pipe"),
        pytest.param(_pack(_entry("a", tarfile.CHRTYPE)), id="device"),
        pytest.param(_pack(_entry("a", content=b"x"), _entry("a", content=b"y")), id="twice"),
        pytest.param(_pack(_entry("a", content=b"x"), _entry("a/b", content=b"y")), id="file as folder"),
        pytest.param(_pack(_entry("a", content=b"x" * 9000))[:-40], id="cut off"),
        pytest.param(b"no archive", id="no archive"),
    ],
)
def test_unusual_archives_are_left_to_the_engine(here: Layer, tmp_path: Path, archive: bytes) -> None:
    before = sorted(path for path in tmp_path.iterdir())
    with pytest.raises(NotThisWay):
        layer.unpack(here, archive)
    assert sorted(path for path in tmp_path.iterdir()) == before
    assert sorted(path.name for path in here.upper.iterdir()) in ([], ["autograder"])
    assert sorted(path.name for path in (here.lower[0] / "autograder/submission").iterdir()) == []


# ------------------------------------------------------------------------------------------------- out of the layer


def _results(here: Layer) -> Path:
    folder = here.upper / "autograder" / "results"
    folder.mkdir(parents=True)
    return folder / "results.json"


def test_results_are_read_up_to_the_limit(here: Layer) -> None:
    _results(here).write_bytes(b"x" * 100)
    assert layer.read_results(here, 100) == Found(content=b"x" * 100)
    assert layer.read_results(here, 99) == Found(problem="results/results.json has 100 bytes; 99 are allowed")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), id="link"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
        pytest.param(os.mkfifo, id="pipe"),
        pytest.param(lambda path: os.mknod(path, 0o020666, os.makedev(0, 0)), id="whiteout"),
        pytest.param(lambda path: (path.parent.rmdir(), path.parent.symlink_to("/etc")), id="folder is a link"),
        pytest.param(lambda path: None, id="none"),
    ],
)
def test_anything_but_a_file_is_left_to_the_engine(here: Layer, spoil: Callable[[Path], None]) -> None:
    spoil(_results(here))
    gc.collect()
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NotThisWay):
        layer.read_results(here, 100)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_layers_are_used_only_where_they_are_plain_folders_here(tmp_path: Path) -> None:
    facts = EngineFacts("20.10", True, tmp_path, "overlay2", "extfs", "cgroupfs", True)
    inspected = {"GraphDriver": {"Data": {"UpperDir": str(tmp_path), "LowerDir": "/a:/b"}}}
    assert layer.layer_of(facts, inspected) == Layer(tmp_path, (Path("/a"), Path("/b")))
    assert layer.layer_of(dataclasses.replace(facts, local=False), inspected) is None
    assert layer.layer_of(dataclasses.replace(facts, storage_driver="zfs"), inspected) is None
    assert layer.layer_of(facts, {"GraphDriver": {"Data": {"UpperDir": str(tmp_path / "elsewhere")}}}) is None
    assert layer.layer_of(facts, {}) is None
