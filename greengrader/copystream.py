"""PostgreSQL's binary COPY format: rows as a file that is read while it is made.

Format: PostgreSQL's documentation of COPY, section "Binary Format".
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

# signature, flags, length of the extension
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
COPY_TRAILER = struct.pack("!h", -1)


class CopyStream:
    """A file that reads as PostgreSQL's binary COPY of the rows; holds one chunk of one value in memory."""

    def __init__(self, rows: Sequence[tuple[bytes | Path, ...]]) -> None:
        self._chunks = self._generate(rows)
        self._left = b""
        self.fault: OSError | None = None  # of a file that could not be read

    @staticmethod
    def _generate(rows: Sequence[tuple[bytes | Path, ...]]) -> Iterator[bytes]:
        small = [COPY_HEADER]
        for row in rows:
            small.append(struct.pack("!h", len(row)))
            for value in row:
                if isinstance(value, bytes):
                    small += [struct.pack("!i", len(value)), value]
                    continue
                yield b"".join(small) + struct.pack("!i", value.stat().st_size)
                small = []
                with value.open("rb") as file:
                    while chunk := file.read(1 << 18):
                        yield chunk
        yield b"".join([*small, COPY_TRAILER])

    def readline(self, size: int = -1) -> bytes:
        """Part of psycopg2's idea of a file; COPY calls `read` alone."""
        return self.read(size)

    def read(self, size: int = -1) -> bytes:
        while not self._left:
            try:
                self._left = next(self._chunks)
            except StopIteration:
                return b""
            except OSError as error:
                self.fault = error
                raise
        part, self._left = self._left[:size], self._left[size:]
        return part
