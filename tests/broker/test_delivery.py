"""What the broker keeps for us: until it is acknowledged, however often we come and go."""

import hashlib
import logging
import resource
import signal
from contextlib import closing
from pathlib import Path

import pytest

from greengrader.delivery import Incoming, spool_payload
from greengrader.errors import ServiceUnavailable
from greengrader.mqtt import Link
from services import Broker
from tests.broker.conftest import BareBroker, payloads, publish_outside, settle, taken
from tests.conftest import LinkOf
from tests.waiting import eventually

SUBMISSIONS = ["submissions"]


def numbered(count: int) -> list[bytes]:
    return [f"message {number}".encode() for number in range(count)]


def test_a_message_comes_with_all_that_belongs_to_it(link_of: LinkOf, broker: Broker) -> None:
    link = link_of("hub", subscribe=SUBMISSIONS)
    properties = ["response-topic", "replies/me"], ["correlation-data", "4711"]
    options = [word for name, value in properties for word in ("-D", "publish", name, value)]
    publish_outside(broker, "submit", "submissions", "Zoë", "-V", "5", "-q", "1", *options)
    (message,) = taken(link, 1)
    assert (message.topic, message.payload, message.size_bytes) == ("submissions", "Zoë".encode(), 4)
    assert message.digest == hashlib.sha256("Zoë".encode()).hexdigest()
    assert (message.response_topic, message.correlation_data) == ("replies/me", b"4711")
    message.acknowledge()


def test_a_plain_message_has_nobody_to_answer(link_of: LinkOf, broker: Broker) -> None:
    link = link_of("hub", subscribe=SUBMISSIONS)
    publish_outside(broker, "submit", "submissions", "plain")
    (message,) = taken(link, 1)
    assert (message.response_topic, message.correlation_data) == (None, None)
    message.acknowledge()


def test_what_was_acknowledged_does_not_come_again(link_of: LinkOf, client_id: str) -> None:
    publisher = link_of("hub")
    with closing(link_of("hub", client_id=client_id, keep_session=True, subscribe=SUBMISSIONS)) as link:
        for payload in numbered(3):
            publisher.confirm(publisher.publish("submissions", payload))
        for message in taken(link, 3)[:2]:
            message.acknowledge()
        settle(link)
    with closing(link_of("hub", client_id=client_id, keep_session=True, subscribe=SUBMISSIONS)) as link:
        publisher.confirm(publisher.publish("submissions", b"marker"))
        again = taken(link, 2)
        assert payloads(again) == [b"message 2", b"marker"]
        for message in again:
            message.acknowledge()


def test_what_was_not_acknowledged_comes_again_only_after_a_reconnect(link_of: LinkOf, client_id: str) -> None:
    publisher = link_of("hub")
    with closing(link_of("hub", client_id=client_id, keep_session=True, subscribe=SUBMISSIONS)) as link:
        publisher.confirm(publisher.publish("submissions", b"kept in hand"))
        publisher.confirm(publisher.publish("submissions", b"next"))
        assert payloads(taken(link, 2)) == [b"kept in hand", b"next"]
        publisher.confirm(publisher.publish("submissions", b"marker"))
        assert payloads(taken(link, 1)) == [b"marker"], "not the first one once more"
    with closing(link_of("hub", client_id=client_id, keep_session=True, subscribe=SUBMISSIONS)) as link:
        again = taken(link, 3)
        assert payloads(again) == [b"kept in hand", b"next", b"marker"], "in their order"
        for message in again:
            message.acknowledge()


def test_a_session_is_kept_while_nobody_is_there(link_of: LinkOf, broker: Broker, client_id: str) -> None:
    link_of("hub", client_id=client_id, keep_session=True, subscribe=SUBMISSIONS).close()
    publisher = link_of("hub")
    publisher.confirm(publisher.publish("submissions", b"at QoS 1"))
    publish_outside(broker, "submit", "submissions", "at QoS 0, as the plain snippet does it")
    publish_outside(broker, "submit", "submissions", "at QoS 1 from outside", "-q", "1")
    with closing(link_of("hub", client_id=client_id, keep_session=True, subscribe=SUBMISSIONS)) as link:
        messages = taken(link, 3)
        assert [message.raw.decode() for message in messages] == [
            "at QoS 1",
            "at QoS 0, as the plain snippet does it",
            "at QoS 1 from outside",
        ]
        for message in messages:
            message.acknowledge()


def test_a_session_that_is_not_to_be_kept_starts_empty(link_of: LinkOf, client_id: str) -> None:
    link_of("hub", client_id=client_id, subscribe=SUBMISSIONS).close()
    publisher = link_of("hub")
    publisher.confirm(publisher.publish("submissions", b"while away"))
    with closing(link_of("hub", client_id=client_id, subscribe=SUBMISSIONS)) as link:
        publisher.confirm(publisher.publish("submissions", b"marker"))
        assert payloads(taken(link, 1)) == [b"marker"]


def test_no_more_is_in_hand_than_was_asked_for(link_of: LinkOf) -> None:
    """The memory of ingest hangs on it."""
    link = link_of("hub", subscribe=SUBMISSIONS, receive_maximum=2)
    publisher = link_of("hub")
    for payload in numbered(5):
        publisher.confirm(publisher.publish("submissions", payload))
    first = taken(link, 2)
    assert payloads(first) == numbered(2)
    first[0].acknowledge()
    (third,) = taken(link, 1)
    assert third.raw == b"message 2"
    first[1].acknowledge()
    third.acknowledge()
    assert payloads(taken(link, 2)) == numbered(5)[3:]


def test_many_messages_come_in_the_order_of_the_broker(link_of: LinkOf) -> None:
    link = link_of("hub", subscribe=SUBMISSIONS)
    publisher = link_of("hub")
    for payload in numbered(500):
        publisher.publish("submissions", payload)
    seen: list[bytes] = []
    while len(seen) < 500:
        for message in taken(link, 1):
            seen.append(message.raw)
            message.acknowledge()
    assert seen == numbered(500)


@pytest.mark.parametrize("bad", ["response-topic", "content-type", "user-property"])
def test_a_property_that_paho_cannot_read_stops_nobody(link_of: LinkOf, broker: Broker, bad: str) -> None:
    """U+FEFF is legal, the broker passes it on, and paho takes it for a broken connection: for ever, if the broker
    sends it again at each reconnect. Everybody who has the snippet's password could do that."""
    link = link_of("hub", subscribe=SUBMISSIONS)
    value = ["key", "\ufeff"] if bad == "user-property" else ["replies/\ufeff"]
    publish_outside(broker, "submit", "submissions", "poison", "-V", "5", "-q", "1", "-D", "publish", bad, *value)
    publish_outside(broker, "submit", "submissions", "next")
    messages = taken(link, 2)
    assert payloads(messages) == [b"poison", b"next"]
    assert messages[0].response_topic is None
    for message in messages:
        message.acknowledge()
    assert link._connection == 1, "the connection held"


def test_a_message_without_packet_id_needs_no_acknowledgement(tmp_path: Path, unused_port: int) -> None:
    """A broker that was set up without upgrade_outgoing_qos hands the plain snippet's messages on at QoS 0."""
    broker = BareBroker(tmp_path, unused_port)
    try:
        url = f"mqtt://127.0.0.1:{broker.port}"
        with Link(url, client_id="reader", subscribe=["t"]) as link, Link(url, client_id="writer") as writer:
            writer._client.publish("t", b"at QoS 0", qos=0)
            writer.publish("t", b"at QoS 1")
            for message in taken(link, 2):
                message.acknowledge()
            writer.publish("t", b"marker")
            assert payloads(taken(link, 1)) == [b"marker"]
            assert link._connection == 1, "the broker has not thrown us out"
    finally:
        broker.stop()


def test_a_link_without_a_subscription_only_publishes(link_of: LinkOf) -> None:
    link, reader = link_of("hub"), link_of("hub", subscribe=["workers/+/+", "results/+"])
    link.confirm(link.publish("results/worker-1", b"a"))
    link.confirm(link.publish("workers/worker-1/heartbeat", b"b"))
    assert payloads(taken(reader, 2)) == [b"a", b"b"]


# ------------------------------------------------------------------------------------------------------------ spool
LARGE = bytes(range(256)) * 40_000


def path_of(message: Incoming) -> Path:
    assert isinstance(message.payload, Path)
    return message.payload


def test_large_payloads_are_kept_in_files_until_they_are_acknowledged(link_of: LinkOf, tmp_path: Path) -> None:
    link = link_of("hub", subscribe=SUBMISSIONS, spool=tmp_path)
    publisher = link_of("hub")
    for payload in (LARGE, b"small", LARGE[1:]):
        publisher.confirm(publisher.publish("submissions", payload))
    first, small, last = taken(link, 3)
    assert small.raw == b"small"
    assert (path_of(first).read_bytes(), path_of(last).read_bytes()) == (LARGE, LARGE[1:])
    assert (first.size_bytes, first.digest) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert {path_of(first).parent, path_of(last).parent} == {tmp_path}
    first.acknowledge()
    assert list(tmp_path.iterdir()) == [path_of(last)]
    last.acknowledge()
    assert list(tmp_path.iterdir()) == []


def test_files_of_messages_that_nobody_took_are_removed_at_the_end(link_of: LinkOf, tmp_path: Path) -> None:
    with closing(link_of("hub", subscribe=SUBMISSIONS, spool=tmp_path)) as link:
        publisher = link_of("hub")
        for number in range(3):
            publisher.confirm(publisher.publish("submissions", LARGE[number:]))
        eventually(lambda: len(list(tmp_path.iterdir())) == 3)
        in_hand = taken(link, 1)
    assert list(tmp_path.iterdir()) == [path_of(in_hand[0])], "who has it in hand may still need it"


def test_a_spool_that_cannot_be_written_ends_the_iteration(link_of: LinkOf, tmp_path: Path, client_id: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    link = link_of("hub", client_id=client_id, keep_session=True, subscribe=SUBMISSIONS, spool=spool)
    spool.rmdir()
    publisher = link_of("hub")
    publisher.confirm(publisher.publish("submissions", LARGE))
    with pytest.raises(ServiceUnavailable, match=str(spool)):
        taken(link, 1)
    link.close()
    spool.mkdir()
    again = link_of("hub", client_id=client_id, keep_session=True, subscribe=SUBMISSIONS, spool=spool)
    (message,) = taken(again, 1)
    assert path_of(message).read_bytes() == LARGE, "it was not acknowledged, so it comes again"
    message.acknowledge()


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError):
            spool_payload(tmp_path, LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_logged_of_what_goes_well(link_of: LinkOf, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    link = link_of("hub", subscribe=SUBMISSIONS)
    link.confirm(link.publish("submissions", b"Ada Lovelace"))
    taken(link, 1)[0].acknowledge()
    link.close()
    assert caplog.records == []
