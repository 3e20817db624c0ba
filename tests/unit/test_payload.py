"""greengrader/payload.py, metadata.py and tree.py: a payload in, its checked parts out, or PayloadRejected."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greengrader.autograder import derive
from greengrader.errors import GreenGraderError, PayloadRejected
from greengrader.metadata import read_metadata
from greengrader.payload import Payload, PayloadLimits
from tests.builders import (
    BUILT_S,
    METADATA_S,
    PACKED_S,
    PLAIN_SNIPPET,
    RUN_AUTOGRADER,
    SUBMITTED_S,
    Member,
    build_metadata,
    build_payload,
    build_zip,
    folder,
    link,
    payload_members,
    spoil,
)

LIMITS = PayloadLimits()
INSIDE = "gradescope_data/autograder"


@contextmanager
def opened(zipped: bytes, limits: PayloadLimits = LIMITS) -> Iterator[Payload]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "payload.zip"
        path.write_bytes(zipped)
        with Payload.open(path, limits) as payload:
            yield payload


def refusal(zipped: bytes, limits: PayloadLimits = LIMITS) -> str:
    with pytest.raises(PayloadRejected) as refused, opened(zipped, limits):
        pass
    return str(refused.value)


def unpacked(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: member for member in tar}


def test_a_payload_gives_what_ingest_stores() -> None:
    with opened(build_payload(results={"score": 3.5})) as payload:
        metadata = payload.metadata
        assert (metadata.id, metadata.assignment.id, metadata.assignment.course_id) == (1001, 42, 7)
        assert metadata.created_at == datetime(2023, 11, 15, 22, 12, 20, 123456, UTC)
        assert metadata.submission_method == "upload"
        assert metadata.assignment.title == "Hello"
        assert metadata.assignment.due_date == datetime(2023, 11, 21, 7, 59, tzinfo=UTC)
        assert metadata.assignment.total_points == 10.0
        assert metadata.student_ids == [5]
        assert metadata.student_names == ["Ada Lovelace"]
        assert metadata.student_emails == ["ada@example.edu"]
        assert payload.raw_metadata == json.dumps(build_metadata()).encode()
        assert payload.metadata_document == build_metadata()
        assert payload.gradescope_results == b'{"score": 3.5}'
        assert payload.sender_hostnames == "172.17.0.2"
        assert payload.metadata_written_at == datetime.fromtimestamp(METADATA_S, UTC)
        assert payload.packed_at == datetime.fromtimestamp(PACKED_S, UTC)


def test_only_the_ids_are_needed() -> None:
    without = ["gradescope_data/hostname.txt", f"{INSIDE}/results/results.json", f"{INSIDE}/submission/"]
    zipped = build_payload({}, b'{"id": "9007199254740993", "assignment": {"id": 1}}', without=without)
    with opened(zipped) as payload:
        assert (payload.metadata.id, payload.metadata.assignment.id) == (9007199254740993, 1)
        assert (payload.metadata.created_at, payload.metadata.student_names) == (None, [])
        assert (payload.gradescope_results, payload.sender_hostnames, payload.packed_at) == (None, "", None)
        assert list(unpacked(payload.submission_archive())) == ["submission", "submission_metadata.json"]


def test_null_everywhere_is_as_good_as_absent() -> None:
    nothing = dict.fromkeys(build_metadata()) | {"id": 5}
    assignment = dict.fromkeys(build_metadata()["assignment"]) | {"id": 6}
    users = [{"id": None, "name": None, "email": None, "sid": None}]
    with opened(build_payload(metadata={**nothing, "assignment": assignment, "users": users})) as payload:
        assert payload.metadata.assignment.due_date is None
        assert payload.metadata.student_ids == []
        assert payload.metadata.previous_submissions == []
    with opened(build_payload(metadata={**nothing, "assignment": assignment})) as payload:
        assert payload.metadata.users == []


@pytest.mark.parametrize(
    ("field", "odd", "becomes"),
    [
        ("created_at", "yesterday", None),
        ("created_at", 1700000000, None),
        ("created_at", ["2023"], None),
        ("created_at", "0001-01-01T00:00:00+14:00", None),
        ("created_at", "2023-11-15T22:12:20Z", datetime(2023, 11, 15, 22, 12, 20, tzinfo=UTC)),
        ("created_at", "2023-11-15T22:12:20", datetime(2023, 11, 15, 22, 12, 20, tzinfo=UTC)),
        ("submission_method", 7, None),
        ("submission_method", "nul\0 and \ud800", "nul\N{REPLACEMENT CHARACTER} and \N{REPLACEMENT CHARACTER}"),
        ("previous_submissions", "none", []),
        ("something_new", {"a": 1}, AttributeError),
    ],
)
def test_what_is_odd_elsewhere_refuses_nothing(field: str, odd: Any, becomes: Any) -> None:
    with opened(build_payload(metadata={field: odd})) as payload:
        if becomes is AttributeError:
            assert payload.metadata_document[field] == odd
        else:
            assert getattr(payload.metadata, field) == becomes


@pytest.mark.parametrize(
    ("points", "number"),
    [("10.0", 10.0), (7, 7.0), ("many", None), (True, None), (None, None), ("1e999", None), ([], None)],
)
def test_total_points_may_be_a_string(points: Any, number: float | None) -> None:
    with opened(build_payload(metadata={"assignment": {"id": 1, "total_points": points}})) as payload:
        assert payload.metadata.assignment.total_points == number


def test_the_metadata_document_is_fit_for_jsonb() -> None:
    raw = rb"""{"id": 1, "assignment": {"id": 2}, "a\u0000": "\ud800 \ud83d\ude00", "n": NaN, "i": [Infinity, 1e999]}"""
    with opened(build_payload(metadata=b"\xef\xbb\xbf" + raw)) as payload:
        mended = {"a\N{REPLACEMENT CHARACTER}": "\N{REPLACEMENT CHARACTER} \U0001f600", "n": None, "i": [None, None]}
        assert payload.metadata_document == {"id": 1, "assignment": {"id": 2}, **mended}
        assert payload.raw_metadata == b"\xef\xbb\xbf" + raw


def test_long_outputs_in_previous_results_are_not_values() -> None:
    previous = [{"results": {"output": '1,2,[3],{4}\\",' * 100_000}}]
    with opened(build_payload(metadata={"previous_submissions": previous})) as payload:
        assert payload.metadata.previous_submissions == previous


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "submission_metadata.json is not valid JSON (line 1, column 1)."),
        (b"{'id': 1}", "is not valid JSON"),
        (b'{"id": 1', "is not valid JSON"),
        (b'{"id": 1}\0', "is not valid JSON"),
        (b'{"id": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b"[1]", "submission_metadata.json does not hold a JSON object."),
        (b"null", "does not hold a JSON object"),
        (b"[" * 50_000 + b"]" * 50_000, "submission_metadata.json is nested too deep."),
        (b'{"id": 1, "a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "is nested too deep"),
        (b'{"id": 1, "a": ' + b"[" * 101 + b"]" * 101 + b"}", "is nested too deep"),
        (b'{"id": 1, "a": [' + b"{}," * 200_000 + b"1]}", "submission_metadata.json holds more than 200,000 values."),
        (b"{}", "submission_metadata.json: id is missing."),
        (b'{"id": 1}', "assignment is missing."),
        (b'{"id": 1, "assignment": null}', "assignment is not an object."),
        (b'{"id": 1, "assignment": [3]}', "assignment is not an object."),
        (b'{"id": 1, "assignment": {}}', "assignment.id is missing."),
        (b'{"id": 1, "assignment": {"id": null}}', "assignment.id is not a whole number."),
        *[
            (b'{"id": %s, "assignment": {"id": 1}}' % wrong, "submission_metadata.json: id is not a whole number.")
            for wrong in (b"true", b"1.0", b"1e3", b'"one"', b'"-1"', b'""', b"[1]", b"{}", b"NaN", '"١"'.encode())
        ],
        *[
            (b'{"id": %s, "assignment": {"id": 1}}' % wrong, "id is not between 1 and 9223372036854775807.")
            for wrong in (b"0", b"-1", b"9223372036854775808", b"1" * 300, b'"9999999999999999999"')
        ],
        (b'{"id": 1, "assignment": {"id": 1}, "users": "Ada"}', "users is not a list of users."),
        (b'{"id": 1, "assignment": {"id": 1}, "users": [5]}', "users is not a list of users."),
        (b'{"id": 1, "assignment": {"id": 1}, "users": [' + b"{}," * 1000 + b"{}]}", "names more than 1,000 users"),
    ],
)  # fmt: skip
def test_refuses_metadata(raw: bytes, reason: str) -> None:
    assert reason in refusal(build_payload(metadata=raw))


def test_refuses_a_zip_that_is_no_payload() -> None:
    missing = "The zip holds no gradescope_data/autograder/submission_metadata.json"
    name = f"{INSIDE}/submission_metadata.json"
    assert missing in refusal(build_payload(without=[name]))
    assert missing in refusal(build_zip([Member("submission_metadata.json", b"{}")]))
    assert missing in refusal(build_payload(extra=[link(name, "results/results.json")]))


def test_limits_of_single_files() -> None:
    limits = PayloadLimits(metadata_bytes=100, results_bytes=10)
    assert '"submission_metadata.json" has' in refusal(build_payload(), limits)
    with opened(build_payload(results={"output": "x" * 100}), dataclasses.replace(LIMITS, results_bytes=99)) as payload:
        assert payload.gradescope_results is None
    with opened(build_payload(extra=[Member("gradescope_data/hostname.txt", b"1.2.3.4 " * 1000)])) as payload:
        assert payload.sender_hostnames == ""
    with opened(build_payload(extra=[Member("gradescope_data/hostname.txt", b"\0\xff 10.0.0.1\nfe80::1 ")])) as payload:
        assert payload.sender_hostnames == "\ufffd\ufffd 10.0.0.1 fe80::1"


def test_damage_is_found_when_it_is_read_and_not_before() -> None:
    spoilt = build_zip(spoil(payload_members(), f"{INSIDE}/submission/hello.txt", crc=1))
    with opened(spoilt) as payload:
        for method in (payload.submission_archive, payload.submission_digest):
            with pytest.raises(PayloadRejected, match=r"hello\.txt"):
                method()
    assert "results.json" in refusal(build_zip(spoil(payload_members(), f"{INSIDE}/results/results.json", size=99)))


@pytest.mark.parametrize("tree", ["submission", "source"])
@pytest.mark.parametrize(
    "links",
    [
        {"a": "/etc/passwd"},
        {"a": "/autograder/submission/hello.txt"},
        {"a": "../run_autograder"},
        {"a": ".."},
        {"d/a": "../../x"},
        {"a": "d/../.././x"},
        {"a": "missing/../../x"},
        {"d/e/l": "../..", "m": "d/e/l/.."},  # each is harmless by its text alone
        {"l": "d", "m": "l/../../x"},
        {"l1": "l2", "l2": "../x"},
        {f"l{n}": f"l{n + 1}/.." for n in range(39)},
    ],
)
def test_refuses_links_that_lead_out(tree: str, links: dict[str, str]) -> None:
    members = [link(f"{INSIDE}/{tree}/{name}", target) for name, target in links.items()]
    reason = refusal(build_payload(extra=members))
    assert f'"gradescope_data/autograder/{tree}/' in reason
    assert "leads out of" in reason


@pytest.mark.parametrize("target", [b"", b"a\0b", b"\xff", b"x" * 1025])
def test_refuses_links_without_a_usable_target(target: bytes) -> None:
    reason = refusal(build_payload(extra=[link(f"{INSIDE}/submission/a", target)]))
    assert "submission/a" in reason


def test_refuses_a_submission_that_is_a_link() -> None:
    zipped = build_payload({}, extra=[link(f"{INSIDE}/submission", "/etc")], without=[f"{INSIDE}/submission/"])
    assert refusal(zipped) == '"gradescope_data/autograder/submission" is no folder but a link.'


def test_refuses_links_that_nobody_can_follow_in_time() -> None:
    chain = [link(f"{INSIDE}/submission/l{n}", f"{'d/../' * 150}l{n + 1}") for n in range(200)]
    assert "too many or too tangled" in refusal(build_payload(extra=chain))
    deep = link(f"{INSIDE}/submission/deep", "d/" * 200)
    assert "too many or too tangled" in refusal(build_payload(extra=[deep]))


def test_keeps_links_that_stay_inside_and_ignores_those_elsewhere() -> None:
    kept = {"a": "hello.txt", "loop": "loop", "d/up": "../hello.txt", "dangling": "nowhere/x", "d/round": "../d/.././a"}
    members = [link(f"{INSIDE}/submission/{name}", target) for name, target in kept.items()]
    members += [link("gradescope_data/gradescope/a", "/etc"), link(f"{INSIDE}/results/b", "/etc"), link("c", "/etc")]
    with opened(build_payload(extra=members)) as payload:
        tar = unpacked(payload.submission_archive())
        assert {name: tar[f"submission/{name}"].linkname for name in kept} == kept
        assert not [name for name in tar if name != "submission_metadata.json" and not name.startswith("submission")]


def test_the_archive_for_the_run() -> None:
    name = f"{INSIDE}/submission/d/naïve.py"
    zipped = build_payload(extra=[Member(name, b"print()", 0o106755), folder(f"{INSIDE}/submission/empty", 5)])
    with opened(zipped) as payload:
        archive = payload.submission_archive()
        assert archive == payload.submission_archive()
    tar = unpacked(archive)
    assert list(tar) == [
        "submission",
        "submission/d/naïve.py",
        "submission/empty",
        "submission/hello.txt",
        "submission_metadata.json",
    ]
    assert {(member.uid, member.gid, member.uname) for member in tar.values()} == {(0, 0, "root")}
    assert (tar["submission/d/naïve.py"].mode, tar["submission/d/naïve.py"].mtime) == (0o755, BUILT_S)
    assert (tar["submission/hello.txt"].mode, tar["submission/hello.txt"].mtime) == (0o644, SUBMITTED_S)
    assert tar["submission/empty"].isdir()
    assert tar["submission_metadata.json"].mtime == METADATA_S
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened_tar:
        content = opened_tar.extractfile("submission/hello.txt")
        assert content is not None and content.read() == b"hello\n"
    assert len(gzip.decompress(archive)) % 512 == 0


def test_the_digest_of_a_submission_tells_contents_and_not_times() -> None:
    def digest(*extra: Member, files: dict[str, str] | None = None) -> str:
        with opened(build_payload(files, extra=extra)) as payload:
            return payload.submission_digest()

    hello = f"{INSIDE}/submission/hello.txt"
    same = {digest(), digest(Member(hello, b"hello\n", modified_s=1)), digest(Member(f"{INSIDE}/source/x"))}
    assert len(same) == 1
    others = {
        digest(Member(hello, b"hallo\n")),
        digest(Member(hello, b"hello\n", 0o100755)),
        digest(Member(f"{hello}.bak", b"")),
        digest(files={"hello.txt": "", "hello.txt2": "hello\n"}),
        digest(files={}),
        digest(link(hello, "hello\n")),
    }
    assert len(others | same) == 7
    assert all(len(bytes.fromhex(one)) == hashlib.sha256().digest_size for one in others)


def test_writes_files_as_the_run_would_see_them(tmp_path: Path) -> None:
    files = [Member(f"{INSIDE}/submission/d/tool", b"x", 0o104711, 7), link(f"{INSIDE}/submission/l", "d/tool")]
    zipped = build_payload(run_autograder=RUN_AUTOGRADER + PLAIN_SNIPPET, extra=files)
    where = tmp_path / "new" / "dir"
    with opened(zipped) as payload:
        payload.write_files(where)
        names = {str(path.relative_to(where)) for path in where.rglob("*")}
        assert names == {
            *("run_autograder", "source", "source/setup.sh", "source/run_autograder", "results", "submission"),
            *("submission/hello.txt", "submission/d", "submission/d/tool", "submission/l", "submission_metadata.json"),
        }
        assert (where / "submission/d/tool").stat().st_mode == 0o100711
        assert (where / "submission/d/tool").stat().st_mtime == 7
        assert (where / "submission/l").readlink() == Path("d/tool")
        assert (where / "submission_metadata.json").read_bytes() == payload.raw_metadata
        assert os.access(where / "run_autograder", os.X_OK)
        assert (where / "run_autograder").read_text() == RUN_AUTOGRADER
        with pytest.raises(GreenGraderError, match="is not empty"):
            payload.write_files(where)
        with pytest.raises(GreenGraderError, match="cannot write to"):
            payload.write_files(where / "run_autograder")


def use(zipped: bytes) -> bool:
    """Whether the payload can be used to the end; any exception but PayloadRejected is a failed test."""
    with TemporaryDirectory() as directory:
        try:
            with opened(zipped) as payload:
                assert payload.metadata.id > 0
                assert payload.submission_archive()
                assert payload.submission_digest()
                payload.write_files(Path(directory) / "files")
                derive(payload, "base").write_archive(io.BytesIO())
        except PayloadRejected as refused:
            assert str(refused)
            return False
    return True


WHOLE = build_payload(extra=[link(f"{INSIDE}/submission/l", "hello.txt"), folder(f"{INSIDE}/source/d")])


def test_the_whole_payload_can_be_used() -> None:
    assert use(WHOLE)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(zipped: bytes) -> None:
    assert not use(zipped)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_of_a_payload_may_be_changed(changes: list[tuple[int, int]]) -> None:
    changed = bytearray(WHOLE)
    for at, byte in changes:
        changed[at] = byte
    use(bytes(changed))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)), st.binary(max_size=8))
def test_any_part_of_a_payload_may_be_missing_or_replaced(begin: int, end: int, instead: bytes) -> None:
    if WHOLE[:begin] + instead + WHOLE[end:] != WHOLE:
        use(WHOLE[:begin] + instead + WHOLE[end:])


MEMBERS = st.builds(
    Member,
    name=st.lists(st.sampled_from(["a", "b", "..", "é", "setup.sh", "run_autograder"]), min_size=1, max_size=3).map(
        "/".join
    ),
    content=st.sampled_from([b"", b"a", b"../b", b"/etc", b"hello\n", b"b" * 300]),
    mode=st.sampled_from([0o100644, 0o120777, 0o40755, 0o010644, 0]),
    modified_s=st.sampled_from([0, BUILT_S, METADATA_S + 1, 2**32 - 1]),
    method=st.sampled_from([None, None, None, 0, 8, 12]),
    size=st.sampled_from([None, None, None, 1, 2**31]),
    header_at=st.sampled_from([None, None, None, 0]),
    flags=st.sampled_from([0, 0, 0, 1]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["submission/", "source/", ""]), MEMBERS), max_size=4))
def test_any_members_may_be_added(added: list[tuple[str, Member]]) -> None:
    extra = [dataclasses.replace(member, name=f"{INSIDE}/{place}{member.name!s}") for place, member in added]
    use(build_payload(extra=extra))


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_value_may_stand_anywhere_in_the_metadata(value: Any) -> None:
    for field in build_metadata():
        with suppress(PayloadRejected):
            assert read_metadata(json.dumps(build_metadata(**{field: value})).encode())[0].id > 0
    odd = dict.fromkeys(build_metadata()["assignment"], value) | {"id": 42}
    metadata, document = read_metadata(json.dumps(build_metadata(assignment=odd, users=[{"name": value}])).encode())
    assert metadata.assignment.id == 42
    assert "\\u0000" not in json.dumps(document) and "NaN" not in json.dumps(document)
