"""One row of a zip's table of contents, made an Entry or refused.

Format: PKWARE's APPNOTE.TXT 6.3, section 4.3.12; extra fields: Info-ZIP's proginfo/extrafld.txt.
"""

import re
import stat
import struct
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from greengrader.errors import PayloadRejected
from greengrader.limits import PayloadLimits

COMPONENT_BYTES = 255
"""The longest file name, without folders, that Linux can create."""
ROW = struct.Struct("<4s2B5H3L5H2L")
STORED, DEFLATED = 0, 8

_IN_ZIP64 = 0xFFFFFFFF
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UNIX_SYSTEMS = (3, 19)  # Unix, Darwin: the upper half of the external attributes is st_mode
_DOS_DIRECTORY = 0x10
_UTC_TIMES = b"UT\x05\x00"  # Info-ZIP's field as it stands in the table: flags and the time of modification

# Everything that needs a second look, in one pass: empty, "." and ".." components, backslashes, NUL, drive letters.
_SUSPICIOUS_NAME = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)|[\\\0]|^[A-Za-z]:")


class Kind(StrEnum):
    """What an entry becomes when it is unpacked; anything else (devices, pipes, sockets) is refused."""

    file = "file"
    directory = "directory"
    link = "link"  # symbolic; its content is the target


class Entry(NamedTuple):
    """One row of the table of contents, checked but for its content."""

    name: str  # relative, "/" between components, none at the end
    kind: Kind
    mode: int  # permission bits, without setuid, setgid and sticky
    modified_s: int  # since 1970 in UTC; without Info-ZIP's UT field the packing machine's local time, taken for UTC
    size: int  # bytes, unpacked; a claim until `chunks` has proven it
    crc: int
    method: int
    packed_size: int
    header_at: int


def shown(name: str) -> str:
    """`name` in quotes, fit for one line of a person's screen."""
    short = name if len(name) <= 80 else f"{name[:39]}…{name[-40:]}"
    return '"' + "".join(character if character.isprintable() else "?" for character in short) + '"'


def read_entry(row: tuple[Any, ...], raw_name: bytes, extra: bytes, limits: PayloadLimits) -> Entry:
    """The entry of one row of the table of contents, or PayloadRejected with the first thing that is wrong with it."""
    _, _, system, _, flags, method, dos_time, dos_date, crc, packed_size, size = row[:11]
    header_at = row[17]
    name = _name(raw_name, limits)
    if flags & _ENCRYPTED:
        raise PayloadRejected(f"{shown(name)} is encrypted; send a zip without a password.")
    if method not in (STORED, DEFLATED):
        raise PayloadRejected(
            f"{shown(name)} is packed by method {method}; only plain zips (stored, deflated) are read."
        )
    if _IN_ZIP64 in (size, packed_size, header_at):
        size, packed_size, header_at = _zip64(extra, size, packed_size, header_at)
    kind, mode = _kind_and_mode(name, raw_name.endswith(b"/"), system, row[16])
    if extra.startswith(_UTC_TIMES) and len(extra) >= 9 and extra[4] & 1:
        modified_s = int.from_bytes(extra[5:9], "little")
    else:
        modified_s = _modified_s(extra, dos_date, dos_time)
    return Entry(name, kind, mode, modified_s, size, crc, method, packed_size, header_at)


def _name(raw: bytes, limits: PayloadLimits) -> str:
    """The name without the slash that marks a folder.

    Info-ZIP on Linux stores the bytes of a name as they are and sets no flag: what is valid UTF-8 is taken for UTF-8.
    """
    raw = raw.removesuffix(b"/")
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise PayloadRejected(f"The name {shown(raw.decode('latin-1'))} in the zip is not UTF-8.") from error
    if _SUSPICIOUS_NAME.search(raw):
        _refuse_unsafe(name)
    if len(raw) > limits.name_bytes:
        raise PayloadRejected(f"The name {shown(name)} in the zip is longer than {limits.name_bytes} bytes.")
    if len(raw) > COMPONENT_BYTES and max(map(len, raw.split(b"/"))) > COMPONENT_BYTES:
        raise PayloadRejected(f"A file or folder in {shown(name)} has a name of more than {COMPONENT_BYTES} bytes.")
    if raw.count(b"/") >= limits.depth:
        raise PayloadRejected(
            f"{shown(name)} is nested too deep: more than {limits.depth} levels (a link to its own parent does that)."
        )
    return name


def _refuse_unsafe(name: str) -> None:
    """Refuse a name that could end up elsewhere on some system. A lone backslash is fine: on Linux it is a letter."""
    if "\0" in name:
        raise PayloadRejected(f"The name {shown(name)} in the zip contains a NUL character.")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise PayloadRejected(
            f"The name {shown(name)} in the zip is absolute; it would be unpacked outside its folder."
        )
    if ".." in re.split(r"[/\\]", name):
        raise PayloadRejected(f'The name {shown(name)} in the zip leads out of its folder by "..".')
    if {"", "."} & set(name.split("/")):
        raise PayloadRejected(f"The name {shown(name)} in the zip is not a plain path.")


def _kind_and_mode(name: str, marked_as_folder: bool, system: int, attributes: int) -> tuple[Kind, int]:
    st_mode = attributes >> 16 if system in _UNIX_SYSTEMS else 0
    kind = stat.S_IFMT(st_mode)
    if marked_as_folder or kind == stat.S_IFDIR or (not kind and attributes & _DOS_DIRECTORY):
        return Kind.directory, st_mode & 0o777 or 0o755
    if kind in (0, stat.S_IFREG):
        return Kind.file, st_mode & 0o777 if kind else 0o644
    if kind == stat.S_IFLNK:
        return Kind.link, 0o777
    raise PayloadRejected(f"{shown(name)} is a device, pipe or socket; only files, folders and links are taken.")


def _modified_s(extra: bytes, dos_date: int, dos_time: int) -> int:
    field = _extra_field(extra, 0x5455)
    if len(field) >= 5 and field[0] & 1:
        return int.from_bytes(field[1:5], "little")
    try:
        local = datetime(
            1980 + (dos_date >> 9), dos_date >> 5 & 15, dos_date & 31, dos_time >> 11, dos_time >> 5 & 63,
            min((dos_time & 31) * 2, 59), tzinfo=UTC,
        )  # fmt: skip
    except ValueError:
        return 0
    return int(local.timestamp())


def _zip64(extra: bytes, *fields: int) -> tuple[int, int, int]:
    """The fields, each taken from the 64-bit extra field where the row says that it stands there."""
    field = _extra_field(extra, 1)
    values = struct.iter_unpack("<Q", field[: len(field) // 8 * 8])
    try:
        size, packed_size, header_at = [next(values)[0] if at == _IN_ZIP64 else at for at in fields]
    except StopIteration as error:
        raise PayloadRejected("The zip is damaged: an entry lacks its (64-bit) size.") from error
    return size, packed_size, header_at


def _extra_field(extra: bytes, wanted: int) -> bytes:
    """The content of one extra field, empty where it is missing or cut off."""
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<2H", extra, at)
        if number == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""
