"""What a run prints: taken from the engine while it runs, head and tail kept."""

from collections import deque

HEADER_BYTES = 8


class Output:
    """Standard output and error of one container, as they come; at most `max_bytes` of them, head and tail."""

    def __init__(self, max_bytes: int) -> None:
        self._half_bytes = max_bytes // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = self._size_bytes = 0
        self._frame = bytearray()  # a header that has come in part
        self._left_bytes = 0  # of the frame that is being read

    def feed(self, stream: bytes) -> None:
        """Takes a piece of the engine's stream: frames of 8 bytes, of which the last four are a length, and text."""
        at = 0
        while at < len(stream):
            if self._left_bytes == 0:
                missing = HEADER_BYTES - len(self._frame)
                self._frame += stream[at : at + missing]
                at += missing
                if len(self._frame) == HEADER_BYTES:
                    self._left_bytes = int.from_bytes(self._frame[4:], "big")
                    self._frame.clear()
            else:
                text = stream[at : at + self._left_bytes]
                at += len(text)
                self._left_bytes -= len(text)
                self.keep(text)

    def __bytes__(self) -> bytes:
        tail = b"".join(self._tail)
        if self._size_bytes <= 2 * self._half_bytes:
            return bytes(self._head) + tail
        tail = tail[-self._half_bytes :]
        missing = self._size_bytes - len(self._head) - len(tail)
        return bytes(self._head) + f"\n[... {missing:,} bytes left out ...]\n".encode() + tail

    def keep(self, text: bytes) -> None:
        """Takes a piece of the text itself."""
        self._size_bytes += len(text)
        room = self._half_bytes - len(self._head)
        if room > 0:
            self._head += text[:room]
            text = text[room:]
        if text:
            self._tail.append(text)
            self._tail_bytes += len(text)
            while self._tail_bytes - len(self._tail[0]) >= self._half_bytes:
                self._tail_bytes -= len(self._tail.popleft())
