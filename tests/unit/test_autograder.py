"""greengrader/autograder.py: what counts as the staff's code, and the digest that stands for it."""

import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from greengrader.autograder import Autograder, Origin, derive, from_zip, template
from greengrader.errors import PayloadRejected
from greengrader.payload import Payload, PayloadLimits
from tests.builders import (
    BUILT_S,
    METADATA_S,
    PACKED_S,
    PLAIN_SNIPPET,
    RUN_AUTOGRADER,
    RUN_S,
    SUBMITTED_S,
    Member,
    build_autograder_zip,
    build_payload,
    build_zip,
    folder,
    link,
)

BASE = "debian:local"
LIMITS = PayloadLimits()
INSIDE = "gradescope_data/autograder"
ALWAYS = {"Dockerfile", "run_autograder", "source", "source/run_autograder", "source/setup.sh"}


@contextmanager
def derived(zipped: bytes, base_image: str = BASE) -> Iterator[Autograder]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "payload.zip"
        path.write_bytes(zipped)
        with Payload.open(path, LIMITS) as payload:
            yield derive(payload, base_image)


@contextmanager
def official(zipped: bytes, base_image: str = BASE) -> Iterator[Autograder]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "autograder.zip"
        path.write_bytes(zipped)
        with from_zip(path, base_image, LIMITS) as autograder:
            yield autograder


def contents(autograder: Autograder) -> dict[str, bytes]:
    """Everything in the archive, by name; folders and links have none."""
    file = io.BytesIO()
    autograder.write_archive(file)
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        found = {}
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            found[member.name] = content.read() if content else b""
        return found


def kept(*extra: Member, files: dict[str, str] | None = None, without: Iterable[str] = ()) -> set[str]:
    """What is in source/ of the autograder that is derived, beside the two scripts."""
    with derived(build_payload(files, extra=extra, without=without)) as autograder:
        names = {name for name in contents(autograder) if name not in ALWAYS}
        assert all(name.startswith("source/") for name in names)
        return {name.removeprefix("source/") for name in names}


def source(name: str, content: bytes = b"staff", modified_s: int = BUILT_S) -> Member:
    return Member(f"{INSIDE}/source/{name}", content, modified_s=modified_s)


def test_a_derived_autograder_is_the_staffs_code_without_the_snippet() -> None:
    script = RUN_AUTOGRADER + PLAIN_SNIPPET
    with derived(build_payload(source={"tests/test_a.py": "assert 1\n"}, run_autograder=script)) as autograder:
        assert (autograder.origin, autograder.base_image) == (Origin.derived, BASE)
        assert (autograder.warnings, autograder.has_shebang) == ((), True)
        assert contents(autograder) == {
            "Dockerfile": template(),
            "run_autograder": RUN_AUTOGRADER.encode(),
            "source": b"",
            "source/run_autograder": script.encode(),  # as Gradescope has it; nothing runs it
            "source/setup.sh": b"#!/bin/bash\n",
            "source/tests/test_a.py": b"assert 1\n",
        }


def test_leaves_out_what_the_run_modified() -> None:
    assert kept(source("data"), source("early", modified_s=METADATA_S - 1)) == {"data", "early"}
    assert kept(source("quick.pyc", modified_s=METADATA_S)) == set()  # times are whole seconds, and runs can be quick
    assert kept(source("built.o", modified_s=METADATA_S + 1), source("last", modified_s=PACKED_S)) == set()
    # Nothing can be modified after the payload was packed: that clock was wrong before the run.
    assert kept(source("future", modified_s=PACKED_S + 1)) == {"future"}
    assert kept(source("late", modified_s=2**32 - 1), without=["gradescope_data/hostname.txt"]) == set()
    assert kept(Member("gradescope_data/hostname.txt", b"", modified_s=5), source("late", modified_s=RUN_S)) == set()


def test_leaves_out_what_the_run_copied_from_the_submission() -> None:
    hello = {"hello.txt": "hello\n"}
    assert kept(source("copy.txt", b"hello\n", SUBMITTED_S), files=hello) == set()
    assert kept(source("copy.txt", b"hello\n", SUBMITTED_S + 1), files=hello) == set()
    assert kept(source("copy.txt", b"hallo\n", SUBMITTED_S), files=hello) == {"copy.txt"}
    assert kept(source("empty", b"", SUBMITTED_S), files={"empty": ""}) == {"empty"}


def test_keeps_what_the_autograder_copied_into_the_submission() -> None:
    assert kept(source("data", b"hello\n", SUBMITTED_S - 1), files={"data": "hello\n"}) == {"data"}
    old = Member(f"{INSIDE}/submission/old", b"hello\n", modified_s=BUILT_S - 1)
    assert kept(source("data", b"hello\n"), old, files={"data": "hello\n"}) == set()


def test_equal_checksums_are_not_taken_for_equal_contents() -> None:
    one, other = "plumless", b"buckeroo"
    assert zlib.crc32(one.encode()) == zlib.crc32(other)
    assert kept(source("word", other, SUBMITTED_S), files={"word": one}) == {"word"}


def test_keeps_folders_that_were_there_before_the_run() -> None:
    found = kept(
        folder(f"{INSIDE}/source/empty"),
        folder(f"{INSIDE}/source/__pycache__", RUN_S),
        source("__pycache__/a.pyc", modified_s=RUN_S),
        folder(f"{INSIDE}/source/mixed", RUN_S),
        source("mixed/staff"),
        source("mixed/built", modified_s=RUN_S),
        folder(f"{INSIDE}/source/cleared"),
        source("cleared/out", modified_s=RUN_S),
        folder(f"{INSIDE}/source/made", RUN_S),
    )
    assert found == {"empty", "mixed", "mixed/staff", "cleared"}


def test_says_what_was_left_out() -> None:
    built = [source(f"built{number:02}", modified_s=RUN_S) for number in range(12)]
    with derived(build_payload(extra=[*built, source("copy", b"hello\n", SUBMITTED_S)])) as autograder:
        modified, copied = autograder.warnings
    assert modified.startswith('Left out of source/ because they were modified during Gradescope\'s run: "built00", ')
    assert modified.endswith('"built09" and 2 more.')
    assert copied == 'Left out of source/ because they equal submitted files: "copy".'


def test_a_run_autograder_that_the_run_overwrote_is_taken_from_source() -> None:
    forged = Member(f"{INSIDE}/run_autograder", b"#!/bin/sh\necho 100\n", modified_s=RUN_S)
    with derived(build_payload(extra=[forged])) as autograder:
        assert contents(autograder)["run_autograder"] == RUN_AUTOGRADER.encode()
        assert "the copy in source/ is used" in autograder.warnings[0]
    with derived(build_payload(extra=[forged], without=[f"{INSIDE}/source/run_autograder"])) as autograder:
        assert contents(autograder)["run_autograder"] == forged.content
        assert "there is no other copy" in autograder.warnings[0]
    with derived(build_payload(without=[f"{INSIDE}/run_autograder"])) as autograder:
        assert contents(autograder)["run_autograder"] == RUN_AUTOGRADER.encode()


def test_without_run_autograder_there_is_no_autograder() -> None:
    names = [f"{INSIDE}/run_autograder", f"{INSIDE}/source/run_autograder"]
    with pytest.raises(PayloadRejected, match="no run_autograder"), derived(build_payload(without=names)):
        pass


def test_mends_scripts_as_gradescope_does() -> None:
    extra = [
        source("setup.sh", b"#!/bin/bash\r\napt-get install -y gcc\r\n"),
        source("other.sh", b"#!/bin/bash\r\n"),
    ]
    with derived(build_payload(extra=extra, run_autograder="\ufeffecho hi\r\n")) as autograder:
        found = contents(autograder)
        assert found["run_autograder"] == b"echo hi\n"
        assert found["source/setup.sh"] == b"#!/bin/bash\napt-get install -y gcc\n"
        assert found["source/other.sh"] == b"#!/bin/bash\r\n"
        assert not autograder.has_shebang
        assert autograder.warnings == (
            "run_autograder had Windows line ends; they were converted.",
            "run_autograder does not begin with #!; it is run by bash.",
            "setup.sh had Windows line ends; they were converted.",
        )


def test_the_archive_is_deterministic_and_safe() -> None:
    extra = [Member(f"{INSIDE}/source/tool", b"x", 0o106750), link(f"{INSIDE}/source/l", "tool")]
    with derived(build_payload(extra=extra)) as autograder:
        first, second = io.BytesIO(), io.BytesIO()
        autograder.write_archive(first)
        autograder.write_archive(second)
    assert first.getvalue() == second.getvalue()
    first.seek(0)
    with tarfile.open(fileobj=first) as tar:
        members = {member.name: member for member in tar}
    assert list(members) == sorted(members)
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}
    assert members["source/tool"].mode == 0o750
    assert (members["source/l"].issym(), members["source/l"].linkname) == (True, "tool")
    assert (members["run_autograder"].mode, members["source/setup.sh"].mode) == (0o755, 0o755)


def digest(*extra: Member, base_image: str = BASE, files: dict[str, str] | None = None) -> str:
    with derived(build_payload(files, extra=extra), base_image) as autograder:
        return autograder.digest


def test_the_digest_ignores_whose_submission_it_came_with() -> None:
    leftovers = [source("__pycache__/a.pyc", b"1", RUN_S), Member(f"{INSIDE}/run_autograder", RUN_AUTOGRADER.encode())]
    same = {
        digest(),
        digest(files={"other.py": "print()"}),
        digest(*leftovers),
        digest(source("setup.sh", b"#!/bin/bash\r\n", BUILT_S - 1)),
        digest(Member(f"{INSIDE}/run_autograder", (RUN_AUTOGRADER + PLAIN_SNIPPET).encode(), 0o100644)),
        digest(Member(f"{INSIDE}/results/results.json", b"{}")),
    }
    assert len(same) == 1
    assert len(bytes.fromhex(same.pop())) == 32


def test_the_digest_tells_everything_that_is_built() -> None:
    different = {
        digest(),
        digest(base_image="debian:other"),
        digest(source("data")),
        digest(source("data", b"other")),
        digest(source("date")),
        digest(Member(f"{INSIDE}/source/data", b"staff", 0o100755)),
        digest(link(f"{INSIDE}/source/data", "staff")),
        digest(folder(f"{INSIDE}/source/data")),
        digest(Member(f"{INSIDE}/run_autograder", b"#!/bin/sh\n")),
        digest(source("setup.sh", b"#!/bin/sh\n")),
    }
    assert len(different) == 10


def test_the_digest_covers_the_dockerfile(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    monkeypatch.setattr("greengrader.autograder.template", lambda: b"FROM scratch\n")
    assert digest() != before


@pytest.mark.parametrize("top", ["", "autograder/"])
def test_the_official_zip(top: str) -> None:
    with official(build_autograder_zip({"tests/a.py": "1\n"}, top=top)) as autograder:
        assert (autograder.origin, autograder.warnings) == (Origin.staff, ())
        assert set(contents(autograder)) == ALWAYS | {"source/tests/a.py"}
        with derived(build_payload(source={"tests/a.py": "1\n"})) as twin:
            assert twin.digest == autograder.digest


def test_the_official_zip_of_a_mac() -> None:
    names = ["autograder/run_autograder", "autograder/.DS_Store", "__MACOSX/autograder/._run_autograder"]
    with official(build_zip(Member(name, b"#!/bin/sh\n") for name in names)) as autograder:
        assert set(contents(autograder)) == {"Dockerfile", "run_autograder", "source", "source/run_autograder"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([Member("setup.sh")], "The zip holds no run_autograder, neither at its top nor in the only folder there."),
        ([Member("a/run_autograder"), Member("b/x")], "holds no run_autograder"),
        ([Member("a/b/run_autograder")], "holds no run_autograder"),
        ([link("run_autograder", "setup.sh")], "holds no run_autograder"),
        ([Member("autograder\\run_autograder")], "have backslashes instead of folders"),
        ([Member("run_autograder"), link("a", "/etc/passwd")], 'points to "/etc/passwd", which leads out of the zip'),
        ([Member("a/run_autograder"), link("a/b", "../c")], 'points to "../c", which leads out of "a"'),
        ([Member("run_autograder", flags=1)], "is encrypted"),
    ],
)
def test_refuses_an_official_zip(members: list[Member], reason: str) -> None:
    with pytest.raises(PayloadRejected) as refused, official(build_zip(members)):
        pass
    assert reason in str(refused.value)
