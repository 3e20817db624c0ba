"""The broker goes away and comes back, or a process dies: what was promised holds."""

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from greengrader.daemon import Stop
from greengrader.errors import ServiceUnavailable
from greengrader.mqtt import Link
from services import Broker
from tests.broker.conftest import payloads, publish_outside, settle, taken
from tests.conftest import LinkOf
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


def ingest(broker: Broker, **options: object) -> Link:
    options.setdefault("subscribe", ["submissions"])
    return Link(broker.url_for("hub"), client_id="greengrader-ingest", **options)  # type: ignore[arg-type]


def is_away(link: Link) -> bool:
    return not link.check()


def is_saved(broker: Broker, client_id: str) -> bool:
    """What a killed broker has not saved is lost at any QoS."""
    return any(client_id.encode() in saved.read_bytes() for saved in broker.directory.glob("home/*.db"))


def test_a_restarted_broker_has_lost_nothing(own_broker: Broker) -> None:
    ingest(own_broker).__enter__().close()
    publish_outside(own_broker, "submit", "submissions", "plain, at QoS 0")
    publish_outside(own_broker, "submit", "submissions", "at QoS 1", "-q", "1")
    with Link(own_broker.url_for("hub"), client_id="publisher") as publisher:
        publisher.confirm(publisher.publish("submissions", b"by a link"))
    own_broker.restart()
    own_broker.restart()
    with ingest(own_broker) as link:
        messages = taken(link, 3)
        assert payloads(messages) == [b"plain, at QoS 0", b"at QoS 1", b"by a link"]
        for message in messages[:2]:
            message.acknowledge()
        settle(link)
    own_broker.restart()
    with ingest(own_broker) as link:
        (message,) = taken(link, 1)
        assert message.raw == b"by a link", "what was acknowledged stays gone"
        message.acknowledge()


def test_a_killed_broker_has_saved_what_a_connected_client_had_in_hand(own_broker: Broker) -> None:
    """Mosquitto with autosave_on_changes counts messages on their way to a client as no change, and loses them."""
    with ingest(own_broker) as link:
        for number in range(10):
            publish_outside(own_broker, "submit", "submissions", f"in hand {number}", "-q", "1")
        assert len(taken(link, 10)) == 10  # and none of them is acknowledged
        eventually(lambda: is_saved(own_broker, "in hand 9"), what="that the broker has saved them")
        own_broker.kill()
        own_broker.start()
        assert payloads(taken(link, 10)) == [f"in hand {number}".encode() for number in range(10)]


def test_a_link_finds_a_killed_broker_again(own_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "greengrader")
    with ingest(own_broker) as link, Link(own_broker.url_for("hub"), client_id="publisher") as publisher:
        eventually(lambda: is_saved(own_broker, "greengrader-ingest"), what="that the broker has saved the session")
        own_broker.kill()
        eventually(lambda: is_away(link) and is_away(publisher))
        assert not link.is_connected and link.connected_s == 0
        kept = [publisher.publish("submissions", f"kept {number}".encode()) for number in range(3)]
        with pytest.raises(ServiceUnavailable, match="did not acknowledge"):
            publisher.confirm(kept[0], 0.05)
        own_broker.start()
        for receipt in kept:
            publisher.confirm(receipt, 20)
        messages = taken(link, 3)
        assert sorted(payloads(messages)) == [b"kept 0", b"kept 1", b"kept 2"]
        for message in messages:
            message.acknowledge()
        assert link.check() and link.connected_s > 0
    assert {record.levelno for record in caplog.records} == {logging.WARNING, logging.INFO}, "handled, but odd"


def test_what_waits_in_the_queue_is_not_handed_out_twice(own_broker: Broker) -> None:
    """The broker sends it again: the copies of the lost connection are dropped."""
    with ingest(own_broker) as link:
        with Link(own_broker.url_for("hub"), client_id="publisher") as publisher:
            for number in range(5):
                publisher.confirm(publisher.publish("submissions", str(number).encode()))
            eventually(lambda: link._queue.qsize() == 5)
        own_broker.restart()
        eventually(lambda: link._connection == 2 and link.check())
        with Link(own_broker.url_for("hub"), client_id="publisher") as publisher:
            publisher.confirm(publisher.publish("submissions", b"marker"))
        messages = taken(link, 6)
        assert payloads(messages) == [b"0", b"1", b"2", b"3", b"4", b"marker"]
        for message in messages:
            message.acknowledge()


def test_what_a_forgetful_broker_will_not_send_again_is_kept(
    own_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with ingest(own_broker) as link:
        with Link(own_broker.url_for("hub"), client_id="publisher") as publisher:
            publisher.confirm(publisher.publish("submissions", b"in the queue"))
            eventually(lambda: link._queue.qsize() == 1)
        own_broker.stop()
        for saved in own_broker.directory.glob("home/*.db"):
            saved.unlink()
        own_broker.start()
        eventually(lambda: link._connection == 2 and link.check())
        (message,) = taken(link, 1)
        assert message.raw == b"in the queue"
        message.acknowledge()
        with Link(own_broker.url_for("hub"), client_id="publisher") as publisher:
            publisher.confirm(publisher.publish("submissions", b"next"))
        (message,) = taken(link, 1)
        assert message.raw == b"next", "it has subscribed again"
        assert link._connection == 2, "the old acknowledgement was not sent on the new connection"
    assert [record for record in caplog.records if "session lost" in record.getMessage()]


def test_acknowledgements_count_before_the_subscription_is_confirmed(own_broker: Broker) -> None:
    """At a reconnect the broker sends what waits first. Were those acknowledgements lost, it would wait for them for
    ever, as for everything up to the receive maximum."""
    with ingest(own_broker, receive_maximum=2) as link:
        with Link(own_broker.url_for("hub"), client_id="publisher") as publisher:
            for number in range(4):
                publisher.confirm(publisher.publish("submissions", str(number).encode()))
        first = taken(link, 2)
        held = threading.Event()
        confirmed = link._client.on_subscribe

        def confirmed_late(*arguments: Any) -> None:
            held.wait(20)
            assert confirmed is not None
            confirmed(*arguments)

        link._client.on_subscribe = confirmed_late
        own_broker.restart()
        again = taken(link, 2)
        for message in [*first, *again]:
            message.acknowledge()
        held.set()
        rest = taken(link, 2)
        assert sorted(payloads(again) + payloads(rest)) == [b"0", b"1", b"2", b"3"]
        for message in rest:
            message.acknowledge()


def test_a_broker_that_stays_away_ends_the_iteration(own_broker: Broker, stop: Stop) -> None:
    with ingest(own_broker, outage_limit_s=0.3) as link:
        own_broker.stop()
        with pytest.raises(ServiceUnavailable, match="was away for over"):
            for _ in link.messages(stop):
                pytest.fail("a message")
        with pytest.raises(ServiceUnavailable, match="was away for over") as away:
            link.check()
        assert away.value.exit_code == 3


def test_stop_ends_the_iteration_though_the_broker_is_away(own_broker: Broker, stop: Stop) -> None:
    with ingest(own_broker) as link:
        own_broker.stop()
        eventually(lambda: is_away(link))
        threading.Timer(0.05, stop.set).start()
        assert list(link.messages(stop)) == []


def test_an_acknowledgement_without_connection_is_no_fault(own_broker: Broker) -> None:
    with ingest(own_broker) as link:
        with Link(own_broker.url_for("hub"), client_id="publisher") as publisher:
            publisher.confirm(publisher.publish("submissions", b"x"))
        (message,) = taken(link, 1)
        own_broker.stop()
        eventually(lambda: is_away(link))
        message.acknowledge()
        own_broker.start()
        (again,) = taken(link, 1)
        assert again.raw == b"x"
        again.acknowledge()


def test_threads_publish_through_a_restart(own_broker: Broker) -> None:
    """Each confirmed one arrives, at least once; no packet is torn."""
    reader = Link(own_broker.url_for("hub"), client_id="reader", subscribe=["results/+"], receive_maximum=5000)
    with reader, Link(own_broker.url_for("hub"), client_id="slots", keep_session=False) as writer:
        confirmed: list[bytes] = []
        restarted = threading.Event()

        def work(number: int) -> None:
            turn, left = 0, 20
            while left:
                payload = f"{number}/{turn} ".encode() * 500
                writer.confirm(writer.publish(f"results/{number}", payload), 30)
                confirmed.append(payload)
                turn, left = turn + 1, left - restarted.is_set()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(confirmed) > 40)
        own_broker.restart()
        restarted.set()
        for thread in threads:
            thread.join(40)
        assert writer._connection == 2 and len(confirmed) > 120
        arrived: set[bytes] = set()
        deadline = time.monotonic() + 20
        while arrived < set(confirmed):
            assert time.monotonic() < deadline, f"{len(arrived)} of {len(confirmed)}"
            for message in taken(reader, 1):
                arrived.add(message.raw)
                message.acknowledge()
        assert arrived == set(confirmed)


# -------------------------------------------------------------------------------------------------------- last will
DYING = """
import os, sys
from greengrader.mqtt import Link
link = Link(sys.argv[1], client_id="greengrader-worker-1", will=("workers/worker-1/heartbeat", b"gone"))
{end}
"""
ENDS = {
    "killed": ("link.__enter__(); os.kill(os.getpid(), 9)", True),
    "bug": ("with link: raise RuntimeError('a bug')", True),
    "closed": ("with link: pass", False),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_last_will_is_sent_for_whoever_could_not_say_good_bye(link_of: LinkOf, broker: Broker, end: str) -> None:
    reader = link_of("hub", subscribe=["workers/+/+"])
    statement, is_sent = ENDS[end]
    script = DYING.format(end=statement)
    subprocess.run(
        [sys.executable, "-c", script, broker.url_for("worker-1")],
        cwd=ROOT,
        timeout=20,
        check=False,
        capture_output=True,
    )
    hub = link_of("hub")
    if is_sent:
        assert payloads(taken(reader, 1)) == [b"gone"]
    hub.confirm(hub.publish("workers/worker-1/marker", b"marker"))
    assert payloads(taken(reader, 1)) == [b"marker"]
