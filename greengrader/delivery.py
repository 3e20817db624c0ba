"""Messages in hand, and publishes on their way: what mqtt.py hands to its callers, without anything of paho."""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Incoming:
    """A message in hand; `acknowledge` ends it. `payload` is a file's path where it is large and the link has a
    spool."""

    topic: str
    payload: bytes | Path
    size_bytes: int
    digest: str  # SHA-256 hex of the payload
    response_topic: str | None
    correlation_data: bytes | None
    _acknowledge: Callable[[], None]

    @property
    def raw(self) -> bytes:
        """The payload of a link without a spool."""
        assert isinstance(self.payload, bytes)
        return self.payload

    def acknowledge(self) -> None:
        """Tells the broker that it may forget this message, and removes its file."""
        self._acknowledge()
        self.discard()

    def discard(self) -> None:
        if isinstance(self.payload, Path):
            self.payload.unlink(missing_ok=True)


def spool_payload(directory: Path, payload: bytes | bytearray) -> Path:
    """A new file in the directory that holds the payload; none stays behind where the disk is full (OSError)."""
    with tempfile.NamedTemporaryFile(dir=directory, suffix=".zip", delete=False) as file:
        path = Path(file.name)
        try:
            file.write(payload)
            file.flush()
        except OSError:
            path.unlink()
            raise
    return path


class Receipt:
    """A publish on its way; what `Link.confirm` waits for."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.settled = threading.Event()  # acknowledged, or never to be
        self.answer: str | None = None  # "" accepted, else why the broker refused; None: not known


class Receipts:
    """Receipts by packet id. Publishing threads call `sent`, the network thread `acknowledged`, in either order."""

    def __init__(self, refused: Callable[[Receipt], None]) -> None:
        self._refused = refused  # called by either thread
        self._halves: dict[int, Receipt | str] = {}  # {packet id: receipt or answer that waits for the other}

    def sent(self, packet_id: int, topic: str) -> Receipt:
        receipt = Receipt(topic)
        answer = self._halves.setdefault(packet_id, receipt)  # one step: a lock would deadlock with paho's own
        if isinstance(answer, str):
            self._settle(packet_id, receipt, answer)
        return receipt

    def acknowledged(self, packet_id: int, answer: str) -> None:
        receipt = self._halves.setdefault(packet_id, answer)
        if isinstance(receipt, Receipt):
            self._settle(packet_id, receipt, answer)

    def waiting(self) -> list[Receipt]:
        """Those that nobody acknowledged yet, oldest first."""
        return [half for half in list(self._halves.values()) if isinstance(half, Receipt)]

    def give_up(self) -> None:
        """Nothing will be acknowledged any more: lets go who waits."""
        for receipt in self.waiting():
            receipt.settled.set()

    def _settle(self, packet_id: int, receipt: Receipt, answer: str) -> None:
        del self._halves[packet_id]
        receipt.answer = answer
        receipt.settled.set()
        if answer:
            self._refused(receipt)
