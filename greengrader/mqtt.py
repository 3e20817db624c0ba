"""A link to the broker: publish, iterate messages, acknowledge. The only module that knows paho.

paho runs a network thread of its own; its callbacks here only put marks into a queue (and large payloads into files),
so no long work and no exception of ours ever happens on it. The main thread iterates:

    with Link(url, client_id="greengrader-ingest", subscribe=["submissions"]) as link:
        for message in link.messages(stop):
            …                       # store it
            message.acknowledge()   # only now does the broker forget it

MQTT 5, QoS 1, persistent session: what was not acknowledged comes again after a reconnect, and only then. Messages of
a lost connection that still wait in the queue are dropped, since the broker sends them again.
"""

import hashlib
import logging
import queue
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from greengrader.daemon import Stop
from greengrader.errors import ServiceUnavailable, SettingsError
from greengrader.limits import MEBIBYTE

log = logging.getLogger("greengrader")

SESSION_EXPIRY_S = 0xFFFFFFFF  # never: a stopped daemon must find its messages, however late
SPOOL_OVER_BYTES = MEBIBYTE // 8
KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
PUBLISH_TIMEOUT_S = 60.0
REFUSED = {"Bad user name or password", "Not authorized", "Bad authentication method", "Client identifier not valid"}


@dataclass(frozen=True)
class Incoming:
    """A message in hand. `payload` is bytes, or the path of a file where it was large; `acknowledge` ends it."""

    topic: str
    payload: bytes | Path
    size_bytes: int
    digest: str  # SHA-256 hex of the payload
    response_topic: str | None
    correlation_data: bytes | None
    _link: "Link"
    _mid: int
    _connection: int

    def acknowledge(self) -> None:
        """Tells the broker that it may forget this message, and removes its file."""
        self._link.acknowledge(self._mid, self._connection)
        self.discard()

    def discard(self) -> None:
        if isinstance(self.payload, Path):
            self.payload.unlink(missing_ok=True)


class Link:
    """A connection that reconnects by itself; a context manager."""

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        subscribe: Sequence[str] = (),
        will: tuple[str, bytes] | None = None,
        keep_session: bool = True,
        spool: Path | None = None,
        receive_maximum: int = 40,
        outage_limit_s: float = 600.0,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise SettingsError("GREENGRADER_MQTT_URL must look like mqtt://user:password@host:port")
        self.host, self.port = parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        self.user = unquote(parts.username or "")
        self._subscribe = list(subscribe)
        self._spool = spool
        self._outage_limit_s, self._on_ready = outage_limit_s, on_ready
        self._queue: queue.SimpleQueue[Incoming | BaseException | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards what the network thread writes and the others read:
        self._connection = 0  # grows with each connection; a message belongs to one
        self._away_since: float | None = time.monotonic()  # None: connected and subscribed
        self._connected_at = 0.0
        self._fault: BaseException | None = None  # ended the network thread
        self._denied: set[int] = set()  # publishes that the broker's ACL refused
        self._closing = False
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, manual_ack=True
        )
        if parts.username:
            client.username_pw_set(self.user, unquote(parts.password or ""))
        if parts.scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context())
        if will:
            client.will_set(will[0], will[1], qos=1)
        client.reconnect_delay_set(1, 5)
        client.max_inflight_messages_set(1000)
        client.on_connect, client.on_disconnect, client.on_message = self._on_connect, self._on_disconnect, self._on_message
        client.on_subscribe, client.on_publish = self._on_subscribe, self._on_publish
        self._properties = _properties(PacketTypes.CONNECT)
        self._properties.SessionExpiryInterval = SESSION_EXPIRY_S if keep_session else 0
        self._properties.ReceiveMaximum = receive_maximum
        self._clean_start = not keep_session
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    # ---------------------------------------------------------------------------------------------- life
    def __enter__(self) -> Self:
        """Connects; ServiceUnavailable when nobody answers, SettingsError when the broker refuses the account."""
        try:
            self._client.connect(
                self.host, self.port, KEEPALIVE_S, clean_start=self._clean_start, properties=self._properties
            )
        except OSError as error:
            raise ServiceUnavailable(f"broker {self.host}:{self.port} does not answer: {error}") from error
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._fault or self._away_since is None, CONNECT_TIMEOUT_S)
        if self._away_since is not None:
            self.close()
            raise self._fault or ServiceUnavailable(f"broker {self.host}:{self.port} did not complete the connection")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leaves in order: no last will is sent, the session stays."""
        self._closing = True
        self._client.disconnect()
        if self._thread.is_alive():
            self._thread.join(5)

    @property
    def is_connected(self) -> bool:
        return self._away_since is None and self._fault is None

    @property
    def connected_s(self) -> float:
        """Seconds since the connection was made; 0 without one."""
        return time.monotonic() - self._connected_at if self.is_connected else 0.0

    def check(self) -> bool:
        """True: connected; False: reconnecting. Raises what ended the network thread, and ServiceUnavailable
        when the broker was away beyond the limit."""
        if self._fault is not None:
            raise self._fault
        if self._away_since is not None and time.monotonic() - self._away_since > self._outage_limit_s:
            raise ServiceUnavailable(f"broker {self.host}:{self.port} was away for longer than {self._outage_limit_s:.0f} s")
        return self._away_since is None

    def _run(self) -> None:
        try:
            self._client.loop_forever()
        except BaseException as error:  # a dead network thread must end the process, not leave it half alive
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Has the iteration of messages raise `error`: how another thread's fault reaches the main thread."""
        self._queue.put(error)
        with self._changed:
            self._fault = self._fault or error
            self._changed.notify_all()

    # ------------------------------------------------------------------------------- callbacks, network thread
    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            if str(reason) in REFUSED:  # anything else may pass: paho tries again
                client.disconnect()
                self.fail(SettingsError(f"broker {self.host}:{self.port} refuses account {self.user!r}: {reason}"))
            return
        self._connection += 1
        if self._subscribe:
            client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscribe])
        else:
            self._ready()

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        refused = [topic for topic, reason in zip(self._subscribe, reasons, strict=False) if reason.is_failure]
        if refused:
            self.fail(SettingsError(f"account {self.user!r} may not read {', '.join(refused)}; see the broker's ACL"))
        else:
            self._ready()

    def _ready(self) -> None:
        if self._connection > 1:
            log.info("connected broker=%s:%s", self.host, self.port)
        with self._changed:
            self._away_since, self._connected_at = None, time.monotonic()
            self._changed.notify_all()
        self._on_ready()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        with self._changed:
            was_connected = self._away_since is None
            self._away_since = self._away_since or time.monotonic()
        self._queue.put(None)  # wakes the iteration, which watches the limit from now on
        if was_connected and not self._closing:
            log.warning("disconnected broker=%s:%s reason=%s; reconnecting", self.host, self.port, reason)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            self._denied.add(mid)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        payload: bytes | Path = bytes(message.payload)  # no copy: it is bytes already
        if self._spool is not None and len(message.payload) > SPOOL_OVER_BYTES:
            # kept on disk from here on, so that many large payloads in flight do not add up in memory
            with tempfile.NamedTemporaryFile(dir=self._spool, suffix=".zip", delete=False) as file:
                file.write(message.payload)
            payload = Path(file.name)
        properties = message.properties
        self._queue.put(
            Incoming(
                message.topic,
                payload,
                len(message.payload),
                hashlib.sha256(message.payload).hexdigest(),
                getattr(properties, "ResponseTopic", None),
                getattr(properties, "CorrelationData", None),
                self,
                message.mid,
                self._connection,
            )
        )

    # ------------------------------------------------------------------------------------------- main thread
    def messages(self, stop: Stop) -> Iterator[Incoming]:
        """Messages in the order of the broker, until `stop`; raises as `check` does."""
        for batch in self.batches(stop):
            yield from batch

    def batches(
        self, stop: Stop, *, most: int = 1, most_bytes: int = 0, idle_s: float | None = None
    ) -> Iterator[list[Incoming]]:
        """Lists of 1 to `most` messages that are there already, of `most_bytes` together, or one large one alone.
        With `idle_s` an empty list after so long without a message."""
        stop.tell(lambda: self._queue.put(None))
        held: Incoming | None = None
        while not stop:
            first = held or self._next(idle_s)
            held = None
            if first is None:
                if idle_s is not None and not stop and self._queue.empty():
                    yield []
                continue
            batch, size = [first], first.size_bytes
            while len(batch) < most and size < most_bytes and not self._queue.empty():
                after = self._next(idle_s)
                if after is None:
                    break
                if size + after.size_bytes > most_bytes:
                    held = after
                    break
                batch.append(after)
                size += after.size_bytes
            yield batch

    def _next(self, idle_s: float | None) -> Incoming | None:
        """The next message of the living connection; None: a signal, idle, or time to look at the limit."""
        try:
            item = self._queue.get(timeout=idle_s if self._away_since is None else 1.0)
        except queue.Empty:
            self.check()
            return None
        if isinstance(item, BaseException):
            raise item
        if item is not None and item._connection != self._connection:
            item.discard()
            return None
        return item

    def acknowledge(self, mid: int, connection: int) -> None:
        if connection == self._connection and self.is_connected:
            self._client.ack(mid, 1)

    def publish(
        self, topic: str, payload: bytes, *, response_topic: str | None = None, expiry_s: int | None = None
    ) -> paho.MQTTMessageInfo:
        """Queues a QoS 1 publish and returns its receipt for `confirm`."""
        properties = _properties(PacketTypes.PUBLISH)
        if response_topic:
            properties.ResponseTopic = response_topic
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        return self._client.publish(topic, payload, qos=1, properties=properties)

    def confirm(self, receipt: paho.MQTTMessageInfo, timeout_s: float = PUBLISH_TIMEOUT_S) -> None:
        """Returns when the broker has acknowledged; ServiceUnavailable after the time."""
        try:
            receipt.wait_for_publish(timeout_s)
        except (RuntimeError, ValueError) as error:
            raise ServiceUnavailable(f"broker {self.host}:{self.port}: {error}") from error
        if receipt.mid in self._denied:
            self._denied.discard(receipt.mid)
            raise SettingsError(f"account {self.user!r} may not write there; see the broker's ACL")
        if not receipt.is_published():
            raise ServiceUnavailable(f"broker {self.host}:{self.port} did not acknowledge within {timeout_s:.0f} s")


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves it untyped
