"""A link to the broker: publish, iterate messages, acknowledge. The only module that knows paho.

paho runs a network thread of its own, the only one that touches the socket. Its callbacks here only put marks into a
queue (and large payloads into files), so no long work and no exception of ours ever happens on it. The main thread
iterates:

    with Link(url, client_id="greengrader-ingest", subscribe=["submissions"]) as link:
        for message in link.messages(stop):
            …                       # store it
            message.acknowledge()   # only now does the broker forget it

MQTT 5, QoS 1, persistent session: what was not acknowledged comes again after a reconnect, and only then. Messages of
a lost connection that still wait in the queue are dropped, since the broker sends them again; they are kept where it
has forgotten the session.
"""

import hashlib
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from greengrader.daemon import Stop
from greengrader.delivery import Incoming as Incoming
from greengrader.delivery import Receipt, Receipts, spool_payload
from greengrader.errors import ServiceUnavailable, SettingsError

log = logging.getLogger("greengrader")

SESSION_EXPIRY_S = 0xFFFFFFFF  # never: a stopped daemon must find its messages, however late
KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
PUBLISH_TIMEOUT_S = 60.0
SPOOL_FROM_BYTES = 256 * 1024  # smaller ones cost more as a file than in memory: there are `receive_maximum` at most
CLOSE_TIMEOUT_S = 5.0
NOT_AUTHORIZED = "Not authorized"
REFUSED = {"Bad user name or password", NOT_AUTHORIZED, "Bad authentication method", "Client identifier not valid"}
TAKEN_OVER = "Session taken over"
WITH_WILL = ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message")


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
        try:
            self.host, self.port = parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        except ValueError as error:
            raise SettingsError(f"GREENGRADER_MQTT_URL: {error}") from error
        self.user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if keep_session:
            # A broker asks for no password to end another account's session: who knows the name can have its queue
            # deleted. So the name of a session that matters holds a part that only its account's owner can know.
            client_id += "-" + hashlib.sha256(f"{client_id} {password}".encode()).hexdigest()[:16]
        self.client_id = client_id
        self._subscribe = list(subscribe)
        self._spool = spool
        self._outage_limit_s, self._on_ready = outage_limit_s, on_ready
        self._queue: queue.SimpleQueue[Incoming | BaseException | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards what the network thread writes and the others read:
        self._connection = 0  # grows with each connection; a message belongs to one
        self._up = False  # the broker takes acknowledgements, even before it has confirmed the subscription
        self._away_since: float | None = time.monotonic()  # None: connected and subscribed
        self._connected_at = 0.0
        self._fault: BaseException | None = None  # ended the network thread
        self._receipts = Receipts(self._on_refusal)
        self._closing = False
        self._ended = threading.Event()  # there is no network thread
        self._ended.set()
        self._client = client = _Client(self._network_thread_ended, client_id)
        if parts.username:
            client.username_pw_set(self.user, password)
        if parts.scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context())
        if will:
            client.will_set(will[0], will[1], qos=1)
        client.reconnect_delay_set(1, 5)
        client.max_inflight_messages_set(1000)
        client.on_socket_open = _send_at_once
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe, client.on_publish = self._on_subscribe, self._on_publish
        client.on_message = self._on_message
        self._properties = _properties(PacketTypes.CONNECT)
        self._properties.SessionExpiryInterval = SESSION_EXPIRY_S if keep_session else 0
        self._properties.ReceiveMaximum = receive_maximum
        self._clean_start = not keep_session

    # ---------------------------------------------------------------------------------------------- life
    def __enter__(self) -> Self:
        """Connects; ServiceUnavailable when nobody answers, SettingsError when the broker refuses the account."""
        try:
            self._client.connect(
                self.host, self.port, KEEPALIVE_S, clean_start=self._clean_start, properties=self._properties
            )
        except (ssl.SSLCertVerificationError, UnicodeError) as error:  # no patience helps
            raise SettingsError(f"broker {self.host}:{self.port}: {error}") from error
        except OSError as error:
            raise ServiceUnavailable(f"broker {self.host}:{self.port} does not answer: {error}") from error
        self._ended.clear()
        self._client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._fault or self._away_since is None, CONNECT_TIMEOUT_S)
        if self._fault is not None or self._away_since is not None:
            self.close()
            raise self._fault or ServiceUnavailable(f"broker {self.host}:{self.port} did not complete the connection")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(in_order=error is None)

    def close(self, *, in_order: bool = True) -> None:
        """Ends the connection; the session stays. In order: what was published arrives, and no last will is sent."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        while in_order and self.is_connected and (waiting := self._receipts.waiting()) and time.monotonic() < deadline:
            waiting[0].settled.wait(deadline - time.monotonic())
        self._closing = True
        self._client.disconnect(None if in_order else WITH_WILL)
        self._ended.wait(CLOSE_TIMEOUT_S)
        self._drop_queue()

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
            raise ServiceUnavailable(f"broker {self.host}:{self.port} was away for over {self._outage_limit_s:.0f} s")
        return self._away_since is None

    def fail(self, error: BaseException) -> None:
        """Has the iteration of messages raise `error`: how another thread's fault reaches the main thread."""
        self._queue.put(error)
        with self._changed:
            self._fault = self._fault or error
            self._changed.notify_all()
        self._receipts.give_up()

    def _network_thread_ended(self, error: BaseException | None) -> None:
        """A dead network thread must end the process, not leave it half alive."""
        if error is not None or not (self._closing or self._fault):
            self.fail(error or RuntimeError("the network thread ended by itself"))
        self._ended.set()

    # ------------------------------------------------------------------------------- callbacks, network thread
    def _on_connect(
        self, client: paho.Client, _data: Any, flags: paho.ConnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure:
            if str(reason) in REFUSED:  # anything else may pass: paho tries again
                client.disconnect()
                self.fail(SettingsError(f"broker {self.host}:{self.port} refuses account {self.user!r}: {reason}"))
            return
        if self._closing:  # while paho was about to connect again
            client.disconnect()
            return
        if flags.session_present:
            self._drop_queue()
        elif self._connection and not self._clean_start:
            log.warning("session lost broker=%s:%s: it has forgotten what it kept for us", self.host, self.port)
        with self._changed:
            self._connection += 1
            self._up = True
        if self._subscribe:
            client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscribe])
        if flags.session_present or not self._subscribe:
            self._ready()  # a session's messages arrive before this answer: 600 MB take longer than we wait for it

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        refused = [topic for topic, reason in zip(self._subscribe, reasons, strict=False) if reason.is_failure]
        if refused:
            self.fail(SettingsError(f"account {self.user!r} may not read {', '.join(refused)}; see the broker's ACL"))
        elif self._away_since is not None:
            self._ready()

    def _ready(self) -> None:
        if self._connection > 1:
            log.info("connected broker=%s:%s", self.host, self.port)
        with self._changed:
            self._away_since, self._connected_at = None, time.monotonic()
            self._changed.notify_all()
        self._on_ready()

    def _on_disconnect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        with self._changed:
            was_connected = self._away_since is None
            self._up = False
            self._away_since = self._away_since or time.monotonic()
        if str(reason) == TAKEN_OVER:  # to connect again would throw the other one out, and so on
            client.disconnect()
            self.fail(SettingsError(f"another process connected as {self.client_id!r}: does this daemon run twice?"))
            return
        self._queue.put(None)  # wakes the iteration, which watches the limit from now on
        if was_connected and not self._closing:
            log.warning("disconnected broker=%s:%s reason=%s; reconnecting", self.host, self.port, reason)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        self._receipts.acknowledged(mid, str(reason) if reason.is_failure else "")

    def _on_refusal(self, receipt: Receipt) -> None:
        """An account that may not write where its daemon has to is of no use; Mosquitto 2.0.11 even throws it out."""
        if receipt.answer == NOT_AUTHORIZED:
            self.fail(self._forbidden(receipt))
        else:
            log.error("publish refused topic=%s reason=%s", receipt.topic, receipt.answer)

    def _forbidden(self, receipt: Receipt) -> SettingsError:
        return SettingsError(f"account {self.user!r} may not write to {receipt.topic}; see the broker's ACL")

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        payload: bytes | Path
        if self._spool is None or len(message.payload) <= SPOOL_FROM_BYTES:
            payload = bytes(message.payload)
        else:
            try:  # kept on disk from here on: payloads in flight do not add up in memory
                payload = spool_payload(self._spool, message.payload)
            except OSError as error:  # not acknowledged: it comes again when there is room
                self.fail(ServiceUnavailable(f"cannot write to {self._spool}: {error.strerror}"))
                return
        properties = message.properties
        self._queue.put(
            Incoming(
                message.topic,
                payload,
                len(message.payload),
                hashlib.sha256(message.payload).hexdigest(),
                getattr(properties, "ResponseTopic", None),
                getattr(properties, "CorrelationData", None),
                partial(self._acknowledge, message.mid, self._connection),
            )
        )

    def _drop_queue(self) -> None:
        """Forgets the messages that wait in the queue, as the broker sends them again; marks and faults stay."""
        kept = []
        with suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, Incoming):
                    item.discard()
                else:
                    kept.append(item)
        for mark in kept:
            self._queue.put(mark)

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
        """The next message; None: a signal, idle, or time to look at the limit."""
        try:
            item = self._queue.get(timeout=idle_s if self._away_since is None else 1.0)
        except queue.Empty:
            self.check()
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def _acknowledge(self, mid: int, connection: int) -> None:
        """Nothing is sent for a message of a lost connection, or of QoS 0, which has no packet id."""
        with self._changed:  # or it may belong to the next connection by now, and to another message there
            if mid and self._up and connection == self._connection:
                self._client.ack(mid, 1)

    def publish(
        self, topic: str, payload: bytes, *, response_topic: str | None = None, expiry_s: int | None = None
    ) -> Receipt:
        """Queues a QoS 1 publish, returns its receipt for `confirm`. While the broker is away it is kept for later."""
        properties = _properties(PacketTypes.PUBLISH)
        if response_topic:
            properties.ResponseTopic = response_topic
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        sent = self._client.publish(topic, payload, qos=1, properties=properties)
        if sent.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # all packet ids are in use
            raise ServiceUnavailable(f"broker {self.host}:{self.port}: too many messages wait for it")
        return self._receipts.sent(sent.mid, topic)

    def confirm(self, receipt: Receipt, timeout_s: float = PUBLISH_TIMEOUT_S) -> None:
        """Returns when the broker has it; ServiceUnavailable after the time, SettingsError where the ACL forbids it."""
        if self._fault is None:
            receipt.settled.wait(timeout_s)
        broker = f"broker {self.host}:{self.port}"
        if receipt.answer is None:
            raise self._fault or ServiceUnavailable(f"{broker} did not acknowledge within {timeout_s:.0f} s")
        if receipt.answer == NOT_AUTHORIZED:
            raise self._forbidden(receipt)
        if receipt.answer:
            raise ServiceUnavailable(f"{broker} refuses what was sent to {receipt.topic}: {receipt.answer}")


class _Client(paho.Client):
    """paho's client, but it tells how its network thread ended, reads every message that a broker may pass on, and
    copies no payload: paho does so six times, which is most of what a large one costs."""

    def __init__(self, ended: Callable[[BaseException | None], None], client_id: str) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, manual_ack=True)
        self._ended = ended
        self._payload = bytearray()  # of the message that is being read

    def loop_forever(self, *arguments: Any, **options: Any) -> MQTTErrorCode:
        try:
            code = super().loop_forever(*arguments, **options)
        except BaseException as error:
            self._ended(error)
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        self._ended(None)
        return code

    def _handle_publish(self) -> MQTTErrorCode:
        """paho 2.2 ends the connection at U+FEFF in a property, which MQTT allows. The broker would send that message
        again for ever: anybody who may publish could stop a daemon for good. So it is read without its properties."""
        packet: bytearray = self._in_packet["packet"]
        has_mid = self._in_packet["command"] & 0x06
        start = 2 + int.from_bytes(packet[:2], "big") + (2 if has_mid else 0)
        length, width = VariableByteIntegers.decode(packet[start : start + 4])  # type: ignore[no-untyped-call]
        head = packet[: start + width + length]
        del packet[: len(head)]  # moves the array's begin, not its bytes
        self._payload = packet
        try:
            self._in_packet["packet"] = head
            return super()._handle_publish()
        except MalformedPacket:
            self._in_packet["packet"] = head[:start] + bytes(1)
            return super()._handle_publish()
        finally:
            self._payload = bytearray()

    def _handle_on_message(self, message: paho.MQTTMessage) -> None:
        message.payload = self._payload
        super()._handle_on_message(message)


def _send_at_once(_client: Any, _data: Any, connection: Any) -> None:
    """Without this an acknowledgement followed by a publish waits 40 ms for the broker's delayed ACK (Nagle)."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves it untyped
