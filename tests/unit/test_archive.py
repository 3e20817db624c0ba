"""greengrader/archive.py and zipentry.py: what is refused at the door, in which words, and what is not."""

import stat
import struct
import tracemalloc
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from greengrader.archive import Archive
from greengrader.errors import PayloadRejected
from greengrader.limits import PayloadLimits
from greengrader.zipentry import Kind
from tests.builders import BUILT_S, Member, build_zip, folder, link

LIMITS = PayloadLimits()


def open_zip(tmp_path: Path, content: bytes | Iterable[Member], limits: PayloadLimits = LIMITS) -> Archive:
    path = tmp_path / "some.zip"
    path.write_bytes(content if isinstance(content, bytes) else build_zip(content))
    return Archive(path, limits)


def refusal(tmp_path: Path, content: bytes | Iterable[Member], limits: PayloadLimits = LIMITS) -> str:
    """Why the zip is refused, at the door or at the latest when its contents are read."""
    with pytest.raises(PayloadRejected) as refused, open_zip(tmp_path, content, limits) as archive:
        for entry in archive.entries.values():
            archive.read(entry, LIMITS.unpacked_bytes)
    return str(refused.value)


def test_reads_what_info_zip_writes(tmp_path: Path) -> None:
    text = b"the same line\n" * 100_000
    members = [folder("a"), Member("a/text", text, stat.S_IFREG | 0o4755), link("a/link", "text"), Member("a/empty")]
    with open_zip(tmp_path, members) as archive:
        entries = archive.entries
        assert [(name, entry.kind, entry.mode) for name, entry in entries.items()] == [
            ("a", Kind.directory, 0o755),
            ("a/text", Kind.file, 0o755),
            ("a/link", Kind.link, 0o777),
            ("a/empty", Kind.file, 0o644),
        ]
        assert {entry.modified_s for entry in entries.values()} == {BUILT_S}
        assert archive.read(entries["a/text"], len(text)) == text
        assert archive.read(entries["a/link"], 100) == b"text"
        assert archive.read(entries["a/empty"], 0) == b""
        with pytest.raises(PayloadRejected, match=r"1,400,000 bytes; at most 1,399,999"):
            archive.read(entries["a/text"], len(text) - 1)


@pytest.mark.parametrize("method", [0, 8])
@pytest.mark.parametrize("length", [0, 1, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 1_000_000])
def test_contents_come_back_at_every_length(tmp_path: Path, method: int, length: int) -> None:
    content = (b"0123456789abcdef" * (length // 16 + 1))[:length]
    with open_zip(tmp_path, [Member("a", content, method=method)]) as archive:
        assert archive.read(archive.entries["a"], length) == content


def test_names_without_the_utf8_flag_are_utf8(tmp_path: Path) -> None:
    with open_zip(tmp_path, [Member("naïve €.py".encode()), Member("flagged é.py", flags=0x800)]) as archive:
        assert list(archive.entries) == ["naïve €.py", "flagged é.py"]


def test_names_that_are_odd_only_elsewhere_are_kept(tmp_path: Path) -> None:
    names = ["back\\slash", "d/c:drive", "...", "d/..hidden", "d/ends.", "two\nlines"]
    with open_zip(tmp_path, map(Member, names)) as archive:
        assert list(archive.entries) == names


def test_zip64_and_a_comment_are_read(tmp_path: Path) -> None:
    zipped = build_zip([Member("a", b"abc", zip64=True), Member("b", b"d")], zip64=True, comment=b"PK\5\6 by chance")
    with open_zip(tmp_path, zipped) as archive:
        assert archive.read(archive.entries["a"], 3) == b"abc"


def test_times_without_the_utc_field_are_taken_from_dos(tmp_path: Path) -> None:
    with open_zip(tmp_path, [Member("a", with_utc_time=False)]) as archive:
        assert archive.entries["a"].modified_s == 315_532_800  # 1980-01-01, as the builder writes it
    broken = build_zip([Member("a", with_utc_time=False)]).replace(struct.pack("<2H", 0, 0x21), b"\xff" * 4)
    with open_zip(tmp_path, broken) as archive:
        assert archive.entries["a"].modified_s == 0


def test_a_zip_made_on_windows_has_default_modes(tmp_path: Path) -> None:
    members = [Member("a/", system=0, mode=0), Member("a/b", b"1", system=0, mode=0o120777)]
    with open_zip(tmp_path, members) as archive:
        assert [(entry.kind, entry.mode) for entry in archive.entries.values()] == [
            (Kind.directory, 0o755),
            (Kind.file, 0o644),
        ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "The payload is empty (0 bytes)."),
        (b"hello, this is no zip", "The payload is not a zip."),
        (b"PK", "The payload is not a zip."),
        (build_zip([]), "The zip holds no files."),
        (build_zip([Member("a", b"x" * 100)])[:-30], "The zip is cut off: its table of contents"),
        (build_zip([Member("a", b"x" * 100)])[50:], "The zip is damaged: a part of it is missing"),
        (b"prefix" + build_zip([Member("a")]), "something was added to it"),
        (build_zip([Member("a")], count=2), "The zip is damaged: its table of contents is too short."),
        (build_zip([Member("a"), Member("b")], count=1), "longer than it says"),
        (build_zip([Member("a")]).replace(b"PK\1\2", b"PK\1\3"), "its table of contents cannot be read"),
        (build_zip([Member("a")]).replace(b"PK\3\4", b"PK\3\5"), "its data are not where the zip says"),
        (build_zip([Member("a")], zip64=True).replace(b"PK\6\6", b"PK\6\5"), "its (64-bit) end record is missing"),
        (build_zip([Member("a", zip64=True)]).replace(b"\1\0\x18\0", b"\x09\0\x18\0"), "lacks its (64-bit) size"),
        (build_zip([Member("a")]).replace(b"PK\5\6\0\0", b"PK\5\6\1\0"), "split into several"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_whole_zip(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (Member("secret", flags=1), '"secret" is encrypted; send a zip without a password.'),
        (Member("secret", flags=0x2000), "is encrypted"),
        (Member("a", method=12), '"a" is packed by method 12'),
        (Member("/etc/passwd"), 'The name "/etc/passwd" in the zip is absolute'),
        (Member("\\windows"), "is absolute"),
        (Member("C:\\windows\\file"), "is absolute"),
        (Member("c:file"), "is absolute"),
        (Member("../up"), 'leads out of its folder by ".."'),
        (Member("a/../../up"), 'by ".."'),
        (Member("a/.."), 'by ".."'),
        (Member("a\\..\\..\\up"), 'by ".."'),
        (Member("a//b"), "is not a plain path"),
        (Member("./a"), "is not a plain path"),
        (Member("/"), "is not a plain path"),
        (Member(""), "is not a plain path"),
        (Member("a\0b"), 'The name "a?b" in the zip contains a NUL character.'),
        (Member(b"caf\xe9.py"), 'The name "café.py" in the zip is not UTF-8.'),
        (Member(b"caf\xe9.py", flags=0x800), "is not UTF-8"),
        (Member("/".join("d" * 41)), "is nested too deep: more than 40 levels"),
        (Member("/".join(["d" * 200] * 6)), "is longer than 1024 bytes"),
        (Member("d" * 256), "has a name of more than 255 bytes"),
        (Member("tty", mode=stat.S_IFCHR | 0o666), '"tty" is a device, pipe or socket'),
        (Member("disk", mode=stat.S_IFBLK | 0o666), "is a device, pipe or socket"),
        (Member("pipe", mode=stat.S_IFIFO | 0o666), "is a device, pipe or socket"),
        (Member("socket", mode=stat.S_IFSOCK | 0o666), "is a device, pipe or socket"),
        (Member("a", b"abc", size=2), '"a" is damaged: it does not have the size and checksum'),
        (Member("a", b"abc", size=4), "size and checksum"),
        (Member("a", b"abc", crc=1), "size and checksum"),
        (Member("a", b"abc" * 99, method=8, size=3), "size and checksum"),
        (Member("a", b"abc", method=8, packed=b"\xff\xff"), '"a" is damaged: it cannot be unpacked.'),
        (Member("a", b"abc", method=8, packed=b""), "its packed data end too early"),
        (Member("a", b"abc", header_at=2**32 - 2), "an entry reaches into the table of contents"),
        (Member("a", b"abc", header_at=2**63, zip64=True), "an entry reaches into the table of contents"),
        (Member("a", b"abc", header_at=2**64 - 1, zip64=True), "an entry reaches into the table of contents"),
    ],
)
def test_refuses_an_entry(tmp_path: Path, member: Member, reason: str) -> None:
    assert reason in refusal(tmp_path, [Member("before"), member])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([Member("a"), Member("a")], 'The zip holds "a" twice.'),
        ([Member("a"), folder("a")], 'The zip holds "a" twice.'),
        ([link("d", "elsewhere"), Member("d/file")], 'below "d", which is no folder but a symbolic link'),
        ([Member("d/e/file"), link("d", "elsewhere")], 'below "d", which is no folder but a symbolic link'),
        ([Member("d"), Member("d/e/file")], 'below "d", which is no folder but a file'),
        ([Member("a", b"x" * 50, method=0), Member("b", header_at=0)], "overlap"),
        ([Member("a", b"x" * 50, method=0), Member("b", header_at=60)], "overlap"),
    ],
)
def test_refuses_entries_that_do_not_go_together(tmp_path: Path, members: list[Member], reason: str) -> None:
    assert reason in refusal(tmp_path, members)


def test_refuses_too_many_entries_before_it_looks_at_any(tmp_path: Path) -> None:
    claimed = build_zip([Member("a")], count=100_001, zip64=True)
    assert refusal(tmp_path, claimed) == "The zip has 100,001 entries; at most 100,000 are taken."
    real = build_zip(Member(str(number)) for number in range(5))
    assert "has 5 entries; at most 4" in refusal(tmp_path, real, PayloadLimits(entries=4))


def test_too_many_entries_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    whole = build_zip([Member("a")])
    table = whole[whole.index(b"PK\1\2") : -22] * 0xFFFF
    path = tmp_path / "many.zip"
    path.write_bytes(table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(table), 0, 0))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadRejected, match="65,535 entries"):
            Archive(path, PayloadLimits(entries=65_000))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 < len(table)
    finally:
        tracemalloc.stop()


def test_refuses_bombs(tmp_path: Path) -> None:
    zeros = zlib.compressobj(9, wbits=-15)
    packed = zeros.compress(bytes(11 * 2**20)) + zeros.flush()
    bomb = Member("zeros", method=8, packed=packed, size=11 * 2**20)
    assert "more than 200 times as much: that looks like a zip bomb" in refusal(tmp_path, [bomb])
    huge = [Member("a", b"x" * 1000, size=2**32 - 2), Member("b")]
    assert "would unpack to 4,294,967,294 bytes; at most 2,147,483,648" in refusal(tmp_path, huge)
    endless = Member("a", size=2**64 - 1, zip64=True)
    assert "would unpack to 18,446,744,073,709,551,615 bytes" in refusal(tmp_path, [endless])


def test_small_contents_may_be_packed_as_tightly_as_they_like(tmp_path: Path) -> None:
    with open_zip(tmp_path, [Member("zeros", bytes(9 * 2**20))]) as archive:
        assert archive.entries["zeros"].packed_size * 900 < archive.entries["zeros"].size


def test_a_lie_about_the_size_is_found_after_one_piece(tmp_path: Path) -> None:
    with open_zip(tmp_path, [Member("a", bytes(9 * 2**20), size=10)]) as archive:
        given = 0
        with pytest.raises(PayloadRejected):
            for piece in archive.chunks(archive.entries["a"]):
                given += len(piece)
        assert given == 0


def test_reasons_are_one_line_however_odd_the_name(tmp_path: Path) -> None:
    reason = refusal(tmp_path, [Member("../" + "line\n\x1b[31m" * 40)])
    assert reason.isprintable()
    assert len(reason) < 200
