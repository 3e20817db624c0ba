"""Builders of minimal valid objects: payloads and autograder zips as Info-ZIP writes them, and bad ones made by code.

    build_payload({"hello.py": "print('hello')"}, metadata={"id": 7}, results={"score": 3})

The zips are written here and not by zipfile, because the tests need what zipfile never writes: times in UTC, names as
raw bytes, links, and every kind of lie about sizes, positions and counts.
"""

import json
import stat
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

BUILT_S = 1_700_000_000  # when the staff's files were last changed
METADATA_S = BUILT_S + 86_400  # when Gradescope wrote submission_metadata.json
RUN_S = METADATA_S + 5  # while the autograder ran there
PACKED_S = METADATA_S + 10  # when the snippet packed the payload
SUBMITTED_S = METADATA_S - 60  # when the student uploaded

RUN_AUTOGRADER = """#!/bin/bash
cp /autograder/submission/hello.txt /tmp/ && score=1 || score=0
echo "{\\"score\\": $score}" > /autograder/results/results.json
"""

PLAIN_SNIPPET = """apt-get update && apt-get install -y zip mosquitto mosquitto-clients
cd /
mkdir gradescope_data
cd gradescope_data
hostname -I > hostname.txt
mkdir gradescope
mkdir autograder
cd ..
cp -a /gradescope/. /gradescope_data/gradescope/
cp -a /autograder/. /gradescope_data/autograder/
zip -r gradescope_data.zip gradescope_data
mosquitto_pub -h broker.example.edu -u submit -P 'se;cr&et' -t submissions -f gradescope_data.zip
"""


@dataclass(frozen=True)
class Member:
    """One entry of a zip; the fields after `modified_s` are for bad ones."""

    name: str | bytes  # ends in "/" for a folder
    content: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    modified_s: int = BUILT_S
    method: int | None = None  # None: deflated where that is shorter, as Info-ZIP decides
    flags: int = 0
    size: int | None = None  # as declared
    crc: int | None = None
    packed: bytes | None = None
    header_at: int | None = None  # as the table of contents says
    system: int = 3
    with_utc_time: bool = True
    zip64: bool = False


def link(name: str, target: str | bytes, modified_s: int = BUILT_S) -> Member:
    """A symbolic link, as `zip -y` stores it."""
    content = target if isinstance(target, bytes) else target.encode()
    return Member(name, content, stat.S_IFLNK | 0o777, modified_s)


def folder(name: str, modified_s: int = BUILT_S) -> Member:
    """A folder with an entry of its own, as `zip -r` stores them all."""
    return Member(f"{name}/", b"", stat.S_IFDIR | 0o755, modified_s)


def build_zip(
    members: Iterable[Member], *, comment: bytes = b"", count: int | None = None, zip64: bool = False
) -> bytes:
    """The members as a zip in the given order; `count` is what the end record claims."""
    members = list(members)
    body, table = bytearray(), bytearray()
    for member in members:
        table += _row(member, len(body))
        body += _header_and_data(member)
    number = len(members) if count is None else count
    if zip64:
        end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, len(table), len(body))
        end += struct.pack("<4sLQL", b"PK\6\7", 0, len(body) + len(table), 1)
        end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, len(comment))
    else:
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, len(table), len(body), len(comment))
    return bytes(body + table + end + comment)


def build_metadata(**changes: Any) -> dict[str, Any]:
    """A submission_metadata.json with everything that Gradescope documents; `changes` replace keys of the top level."""
    return {
        "id": 1001,
        "created_at": "2023-11-15T14:12:20.123456-08:00",
        "submission_method": "upload",
        "assignment": {
            "id": 42,
            "course_id": 7,
            "title": "Hello",
            "due_date": "2023-11-20T23:59:00.000000-08:00",
            "late_due_date": None,
            "release_date": "2023-11-01T00:00:00.000000-08:00",
            "group_size": None,
            "group_submission": False,
            "total_points": "10.0",
            "outline": [
                {"id": 1, "type": "ProgrammingQuestion", "title": "Hello", "parent_id": None, "weight": "10.0"}
            ],
        },
        "users": [{"id": 5, "email": "ada@example.edu", "name": "Ada Lovelace", "sid": "A1815"}],
        "previous_submissions": [],
        **changes,
    }


def build_payload(
    files: Mapping[str, str | bytes] | None = None,
    metadata: Mapping[str, Any] | bytes | None = None,
    results: Mapping[str, Any] | bytes | None = None,
    *,
    source: Mapping[str, str | bytes] | None = None,
    run_autograder: str | bytes | None = RUN_AUTOGRADER,
    extra: Iterable[Member] = (),
    without: Iterable[str] = (),
) -> bytes:
    """A payload as the plain snippet packs it, after a run of Gradescope's.

    `files` are the student's, `source` the staff's. A mapping as `metadata` changes keys of build_metadata. `extra`
    members replace those of the same name; names in `without` (all of them in full) are left out.
    """
    return build_zip(payload_members(files, metadata, results, source, run_autograder, extra, without))


def payload_members(
    files: Mapping[str, str | bytes] | None = None,
    metadata: Mapping[str, Any] | bytes | None = None,
    results: Mapping[str, Any] | bytes | None = None,
    source: Mapping[str, str | bytes] | None = None,
    run_autograder: str | bytes | None = RUN_AUTOGRADER,
    extra: Iterable[Member] = (),
    without: Iterable[str] = (),
) -> list[Member]:
    """The members of build_payload, for tests that want to spoil one of them."""
    root, autograder = "gradescope_data", "gradescope_data/autograder"
    raw_metadata = metadata if isinstance(metadata, bytes) else json.dumps(build_metadata(**(metadata or {}))).encode()
    raw_results = results if isinstance(results, bytes) else json.dumps(results or {"score": 1.0}).encode()
    script = _bytes(run_autograder or "")
    source = {"setup.sh": "#!/bin/bash\n", "run_autograder": script, **(source or {})}
    members = [
        folder(root, PACKED_S),
        Member(f"{root}/hostname.txt", b"172.17.0.2 \n", modified_s=PACKED_S),
        folder(f"{root}/gradescope", PACKED_S),
        Member(f"{root}/gradescope/harness.py", b"# Gradescope's own\n", stat.S_IFREG | 0o755),
        folder(autograder, PACKED_S),
        Member(f"{autograder}/run_autograder", script, stat.S_IFREG | 0o755),
        Member(f"{autograder}/submission_metadata.json", raw_metadata, modified_s=METADATA_S),
        folder(f"{autograder}/source"),
        *(Member(f"{autograder}/source/{name}", _bytes(content)) for name, content in source.items()),
        folder(f"{autograder}/submission", SUBMITTED_S),
        *(
            Member(f"{autograder}/submission/{name}", _bytes(content), modified_s=SUBMITTED_S)
            for name, content in (files if files is not None else {"hello.txt": "hello\n"}).items()
        ),
        folder(f"{autograder}/results", RUN_S),
        Member(f"{autograder}/results/results.json", raw_results, modified_s=RUN_S),
        Member(f"{autograder}/results/stdout", b"", modified_s=RUN_S),
    ]
    by_name: dict[str | bytes, Member] = {member.name: member for member in [*members, *extra]}
    left_out = {*without, *([f"{autograder}/run_autograder"] if run_autograder is None else [])}
    return [member for name, member in by_name.items() if name not in left_out]


def build_autograder_zip(files: Mapping[str, str | bytes] | None = None, *, top: str = "") -> bytes:
    """The official zip as staff upload it, with everything in the folder `top` if one is named ("autograder/")."""
    files = {"setup.sh": "#!/bin/bash\n", "run_autograder": RUN_AUTOGRADER, **(files or {})}
    return build_zip(Member(f"{top}{name}", _bytes(content)) for name, content in files.items())


def spoil(members: Iterable[Member], name: str, **changes: Any) -> list[Member]:
    """The members, with fields of the one called `name` replaced."""
    return [replace(member, **changes) if member.name == name else member for member in members]


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _raw_name(member: Member) -> bytes:
    return _bytes(member.name)


def _method_and_data(member: Member) -> tuple[int, bytes]:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(member.content) + deflater.flush()
    deflate = member.method == 8 or (member.method is None and len(deflated) < len(member.content))
    method = member.method if member.method is not None else (8 if deflate else 0)
    return method, member.packed if member.packed is not None else (deflated if deflate else member.content)


def _facts(member: Member) -> tuple[int, bytes, int, int]:
    """Method, packed data, declared checksum and declared size."""
    method, data = _method_and_data(member)
    crc = zlib.crc32(member.content) if member.crc is None else member.crc
    return method, data, crc, len(member.content) if member.size is None else member.size


def _header_and_data(member: Member) -> bytes:
    method, data, crc, size = _facts(member)
    name = _raw_name(member)
    extra = _utc_time(member, b"\3" + struct.pack("<LL", member.modified_s, member.modified_s))
    sizes = (len(data) & 0xFFFFFFFF, size & 0xFFFFFFFF)
    header = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 20, member.flags, method, 0, 0x21, crc, *sizes, len(name), len(extra)
    )  # fmt: skip
    return header + name + extra + data


def _row(member: Member, at: int) -> bytes:
    method, data, crc, size = _facts(member)
    name = _raw_name(member)
    at = at if member.header_at is None else member.header_at
    # In the table of contents, the flags still announce the time of access, but it is not there.
    extra = _utc_time(member, b"\3" + struct.pack("<L", member.modified_s))
    extra += struct.pack("<2HBBLBL", 0x7875, 11, 1, 4, 0, 4, 0)
    numbers: tuple[int, int, int] = (len(data), size, at)
    if member.zip64:
        extra += struct.pack("<2H3Q", 1, 24, size, len(data), at)
        numbers = (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return struct.pack(
        "<4s2B5H3L5H2L", b"PK\1\2", 30, member.system, 20, member.flags, method, 0, 0x21, crc, *numbers[:2],
        len(name), len(extra), 0, 0, 0, member.mode << 16, numbers[2],
    ) + name + extra  # fmt: skip


def _utc_time(member: Member, field: bytes) -> bytes:
    return struct.pack("<2H", 0x5455, len(field)) + field if member.with_utc_time else b""
