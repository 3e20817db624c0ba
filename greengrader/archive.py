"""A zip from outside, read without believing anything in it.

Theory of operation. Files are found through the table of contents at the end of the zip and nowhere else. All of it is
checked before any content is unpacked: how many entries there are (from the end record, before the table is parsed),
what they are called and what kind they are, that no two of them share bytes of the zip, and what they claim to unpack
to. Those claims are bounded, in sum and in ratio, and then enforced while content streams out: a piece beyond the
claimed size never leaves `chunks`, and a wrong length or checksum ends in PayloadRejected.

Python's zipfile is not used: it builds an object for each entry before they can be counted, reads names that Info-ZIP
stored as plain UTF-8 as if they came from DOS, ignores the modification times in UTC, and fails with a dozen different
exceptions on damaged input. Here there is one, PayloadRejected, and its text is for a course assistant.

Format: PKWARE's APPNOTE.TXT 6.3, section 4.3.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from greengrader.errors import PayloadRejected
from greengrader.limits import MEBIBYTE, PayloadLimits
from greengrader.zipentry import ROW, STORED, Entry, Kind, read_entry, shown

RATIO_FREE_BYTES = 10 * MEBIBYTE
"""Up to this much, any compression ratio is fine: a few kilobytes of blank table are not a bomb."""
TABLE_BYTES = 64 * MEBIBYTE
"""The longest table of contents that is read at all; 100,000 entries of Info-ZIP's need about 20 MB."""
CHUNK_BYTES = 256 * 1024

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_FILE_HEADER = struct.Struct("<4s5H3L2H")
_COMMENT_BYTES = 65535


class Archive:
    """A zip that passed every check that needs no unpacking; a context manager that closes the file.

    `entries` maps names to entries in the order of the table of contents. Folders need not have entries of their own.
    """

    def __init__(self, path: Path, limits: PayloadLimits) -> None:
        self.limits = limits
        self._file = path.open("rb", buffering=0)
        try:
            self._length = os.fstat(self._file.fileno()).st_size
            self._table_at, table, count = self._read_table()
            self.entries = self._parse(table, count)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read from the entries afterwards."""
        self._file.close()

    def read(self, entry: Entry, limit_bytes: int) -> bytes:
        """The content of `entry`, proven; refused where it claims more than `limit_bytes`."""
        if entry.size > limit_bytes:
            raise PayloadRejected(f"{shown(entry.name)} has {entry.size:,} bytes; at most {limit_bytes:,} are taken.")
        return b"".join(self.chunks(entry))

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        """The content of `entry` in pieces. It is proven only when the last piece has come without PayloadRejected."""
        length = crc = 0
        for piece in self._unpacked(entry):
            length += len(piece)
            if length > entry.size:
                break
            crc = zlib.crc32(piece, crc)
            yield piece
        if length != entry.size or crc != entry.crc:
            raise PayloadRejected(
                f"{shown(entry.name)} is damaged: it does not have the size and checksum that the zip says."
            )

    def _unpacked(self, entry: Entry) -> Iterator[bytes]:
        if entry.method == STORED:
            yield from self._packed(entry)
            return
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for packed in self._packed(entry):
                while packed and not inflater.eof:
                    yield inflater.decompress(packed, CHUNK_BYTES)
                    packed = inflater.unconsumed_tail
            # zlib may have taken all input and still hold output that did not fit into the last piece.
            while not inflater.eof and (piece := inflater.decompress(b"", CHUNK_BYTES)):
                yield piece
        except zlib.error as error:
            raise PayloadRejected(f"{shown(entry.name)} is damaged: it cannot be unpacked.") from error
        if not inflater.eof:
            raise PayloadRejected(f"{shown(entry.name)} is damaged: its packed data end too early.")

    def _packed(self, entry: Entry) -> Iterator[bytes]:
        header = _FILE_HEADER.unpack(self._read_at(entry.header_at, _FILE_HEADER.size))
        at = entry.header_at + _FILE_HEADER.size + header[9] + header[10]
        if header[0] != b"PK\3\4" or at + entry.packed_size > self._table_at:
            raise PayloadRejected(f"{shown(entry.name)} is damaged: its data are not where the zip says.")
        for offset in range(0, entry.packed_size, CHUNK_BYTES):
            yield self._read_at(at + offset, min(CHUNK_BYTES, entry.packed_size - offset))

    def _read_at(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file.fileno(), length, offset) if offset < self._length else b""
        if len(data) != length:
            raise PayloadRejected("The zip is damaged: it refers to data beyond its end.")
        return data

    def _read_table(self) -> tuple[int, bytes, int]:
        """Where the table of contents begins, its bytes, and how many rows it is said to have."""
        end_at, end = self._find_end()
        _, disk, table_disk, count_here, count, length, offset, _ = end
        if end_at >= _END64_LOCATOR.size:
            locator = _END64_LOCATOR.unpack(self._read_at(end_at - _END64_LOCATOR.size, _END64_LOCATOR.size))
            if locator[0] == b"PK\6\7":
                end_at = locator[2]
                end64 = _END64.unpack(self._read_at(end_at, _END64.size))
                if end64[0] != b"PK\6\6":
                    raise PayloadRejected("The zip is damaged: its (64-bit) end record is missing.")
                disk, table_disk, count_here, count, length, offset = end64[4:]
        if disk or table_disk or count_here != count:
            raise PayloadRejected("This is one part of a zip that was split into several; send it in one piece.")
        if count > self.limits.entries:
            raise PayloadRejected(f"The zip has {count:,} entries; at most {self.limits.entries:,} are taken.")
        if not count:
            raise PayloadRejected("The zip holds no files.")
        if offset + length != end_at:
            raise PayloadRejected("The zip is damaged: a part of it is missing, or something was added to it.")
        if length > TABLE_BYTES:
            raise PayloadRejected(
                f"The zip's table of contents has {length:,} bytes; at most {TABLE_BYTES:,} are read."
            )
        return offset, self._read_at(offset, length), count

    def _find_end(self) -> tuple[int, tuple[bytes, int, int, int, int, int, int, int]]:
        """Where the end record begins, and its fields."""
        if not self._length:
            raise PayloadRejected("The payload is empty (0 bytes).")
        tail_length = min(self._length, _END.size + _COMMENT_BYTES)
        tail = self._read_at(self._length - tail_length, tail_length)
        at = tail.rfind(b"PK\5\6")
        while at >= 0:
            # A comment may follow; nothing else may, or the four bytes stand there by chance.
            if at + _END.size <= tail_length:
                end = _END.unpack_from(tail, at)
                if at + _END.size + end[7] == tail_length:
                    return self._length - tail_length + at, end
            at = tail.rfind(b"PK\5\6", 0, at + 3)
        if self._read_at(0, min(4, self._length)) == b"PK\3\4":
            raise PayloadRejected("The zip is cut off: its table of contents, which stands at the end, is missing.")
        raise PayloadRejected("The payload is not a zip.")

    def _parse(self, table: bytes, count: int) -> dict[str, Entry]:
        """The entries by name, each of them checked, and all of them together."""
        entries: dict[str, Entry] = {}
        spans: list[tuple[int, int]] = []
        folders: set[str] = set()
        at = 0
        try:
            for _ in range(count):
                row = ROW.unpack_from(table, at)
                extra_at = at + ROW.size + row[11]
                next_at = extra_at + row[12] + row[13]
                if row[0] != b"PK\1\2" or next_at > len(table):
                    raise PayloadRejected("The zip is damaged: its table of contents cannot be read.")
                raw_name = table[at + ROW.size : extra_at]
                entry = read_entry(row, raw_name, table[extra_at : extra_at + row[12]], self.limits)
                if entry.name in entries:
                    raise PayloadRejected(f"The zip holds {shown(entry.name)} twice.")
                entries[entry.name] = entry
                spans.append((entry.header_at, entry.header_at + _FILE_HEADER.size + row[11] + entry.packed_size))
                _add_folders(folders, entry.name)
                at = next_at
        except struct.error as error:
            raise PayloadRejected("The zip is damaged: its table of contents is too short.") from error
        if at != len(table):
            raise PayloadRejected("The zip is damaged: its table of contents is longer than it says.")
        _check_folders(folders, entries)
        self._check_spans(spans)
        self._check_sizes(entries)
        return entries

    def _check_spans(self, spans: list[tuple[int, int]]) -> None:
        """Refuse entries that share bytes of the zip: that is how a small bomb claims the same data thousandfold."""
        spans.sort()
        free_from = 0
        for begin, end in spans:
            if begin < free_from:
                raise PayloadRejected("Entries of the zip overlap each other; no honest program packs like that.")
            free_from = end
        if free_from > self._table_at:
            raise PayloadRejected("The zip is damaged: an entry reaches into the table of contents.")

    def _check_sizes(self, entries: dict[str, Entry]) -> None:
        unpacked = sum(entry.size for entry in entries.values())
        if unpacked > self.limits.unpacked_bytes:
            raise PayloadRejected(
                f"The zip would unpack to {unpacked:,} bytes; at most {self.limits.unpacked_bytes:,} are taken."
            )
        packed = sum(entry.packed_size for entry in entries.values())
        if unpacked > RATIO_FREE_BYTES and unpacked > self.limits.ratio * packed:
            raise PayloadRejected(
                f"The zip would unpack from {packed:,} to {unpacked:,} bytes, more than {self.limits.ratio:g} times as "
                "much: that looks like a zip bomb."
            )


def _add_folders(folders: set[str], name: str) -> None:
    """Add every folder that `name` lies in, from the inside out as far as they are new."""
    folder = name.rpartition("/")[0]
    while folder and folder not in folders:
        folders.add(folder)
        folder = folder.rpartition("/")[0]


def _check_folders(folders: set[str], entries: dict[str, Entry]) -> None:
    """Refuse files below a symbolic link: unpacked in order, they would land wherever it points."""
    for folder in folders & entries.keys():
        if entries[folder].kind is not Kind.directory:
            what = "symbolic link" if entries[folder].kind is Kind.link else "file"
            raise PayloadRejected(f"The zip holds files below {shown(folder)}, which is no folder but a {what}.")
