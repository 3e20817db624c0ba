"""How messages are handed to the main thread: in batches within limits, idle or not, until stop or a fault."""

import threading
import time
from collections.abc import Iterator

import pytest

from greengrader.daemon import Stop
from greengrader.errors import GreenGraderError
from greengrader.mqtt import Incoming, Link
from tests.broker.conftest import payloads
from tests.conftest import LinkOf
from tests.waiting import eventually


@pytest.fixture
def link(link_of: LinkOf) -> Link:
    return link_of("hub", subscribe=["submissions"], receive_maximum=1000)


@pytest.fixture
def publisher(link_of: LinkOf) -> Link:
    return link_of("hub")


def waiting(link: Link, publisher: Link, *sizes: int) -> None:
    """Messages of these sizes stand in the link's queue."""
    for size in sizes:
        publisher.confirm(publisher.publish("submissions", bytes(size)))
    eventually(lambda: link._queue.qsize() == len(sizes))


def sizes_of(batches: Iterator[list[Incoming]], count: int) -> list[list[int]]:
    found = []
    for batch in batches:
        found.append([message.size_bytes for message in batch])
        if sum(map(len, found)) >= count:
            return found
    raise AssertionError("the iteration ended")


@pytest.mark.parametrize(
    ("most", "most_bytes", "expected"),
    [
        (3, 1000, [[10, 10, 10], [10, 10, 10], [10]]),
        (100, 1000, [[10] * 7]),
        (100, 25, [[10, 10], [10, 10], [10, 10], [10]]),
        (100, 30, [[10, 10, 10], [10, 10, 10], [10]]),
        (1, 1000, [[10]] * 7),
    ],
)
def test_a_batch_keeps_its_limits(
    link: Link, publisher: Link, stop: Stop, most: int, most_bytes: int, expected: list[list[int]]
) -> None:
    waiting(link, publisher, *[10] * 7)
    assert sizes_of(link.batches(stop, most=most, most_bytes=most_bytes), 7) == expected


def test_a_large_message_comes_alone_and_in_its_turn(link: Link, publisher: Link, stop: Stop) -> None:
    waiting(link, publisher, 10, 10, 5000, 10, 6000, 7000)
    found = sizes_of(link.batches(stop, most=100, most_bytes=100), 6)
    assert found == [[10, 10], [5000], [10], [6000], [7000]]


def test_nobody_waits_for_a_batch_to_fill(link: Link, publisher: Link, stop: Stop) -> None:
    batches = link.batches(stop, most=100, most_bytes=1000)
    for number in range(3):
        waiting(link, publisher, number)
        assert [message.size_bytes for message in next(batches)] == [number]


def test_messages_are_batches_one_by_one(link: Link, publisher: Link, stop: Stop) -> None:
    waiting(link, publisher, 1, 2, 3)
    messages = link.messages(stop)
    assert [next(messages).size_bytes for _ in range(3)] == [1, 2, 3]


def test_silence_is_told_where_it_is_asked_for(link: Link, publisher: Link, stop: Stop) -> None:
    batches = link.batches(stop, idle_s=0.05)
    began = time.monotonic()
    assert next(batches) == []
    assert time.monotonic() - began >= 0.05
    assert next(batches) == [], "and again"
    waiting(link, publisher, 1)
    assert len(next(batches)) == 1, "not while something waits"


def test_stop_ends_the_iteration(link: Link, stop: Stop) -> None:
    threading.Timer(0.05, stop.set).start()
    assert list(link.messages(stop)) == []


def test_stop_ends_it_even_if_set_before(link: Link, publisher: Link, stop: Stop) -> None:
    waiting(link, publisher, 1)
    stop.set()
    assert list(link.messages(stop)) == []


def test_what_waits_at_stop_is_left_to_the_next(link: Link, publisher: Link, stop: Stop) -> None:
    waiting(link, publisher, 1, 2, 3)
    seen = []
    for message in link.messages(stop):
        seen.append(message.size_bytes)
        stop.set()
    assert seen == [1]


def test_a_fault_of_the_network_thread_reaches_the_iteration(link: Link, publisher: Link, stop: Stop) -> None:
    """is_connected() of paho would still say True."""

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("a bug in a callback")

    link._client.on_message = broken
    publisher.publish("submissions", b"x")
    with pytest.raises(ZeroDivisionError, match="a bug in a callback"):
        for _ in link.messages(stop):
            pytest.fail("a message")
    with pytest.raises(ZeroDivisionError):
        link.check()
    assert not link.is_connected
    with pytest.raises(ZeroDivisionError):
        link.confirm(link.publish("results/worker-1", b"y"))


def test_a_fault_wakes_who_waits_for_a_confirmation(link: Link) -> None:
    link._client.on_publish = lambda *_: None  # the acknowledgement never comes through
    receipt = link.publish("results/worker-1", b"x")
    threading.Timer(0.05, link.fail, [GreenGraderError("a slot's fault")]).start()
    with pytest.raises(GreenGraderError, match="a slot's fault"):
        link.confirm(receipt, 30)


def test_a_fault_of_another_thread_reaches_the_iteration(link: Link, stop: Stop) -> None:
    threading.Timer(0.05, link.fail, [GreenGraderError("the engine is away")]).start()
    with pytest.raises(GreenGraderError, match="the engine is away"):
        for _ in link.messages(stop):
            pytest.fail("a message")


def test_the_first_fault_counts(link: Link) -> None:
    link.fail(GreenGraderError("first"))
    link.fail(GreenGraderError("second"))
    with pytest.raises(GreenGraderError, match="first"):
        link.check()


def test_a_link_is_ready_at_each_connection(link_of: LinkOf) -> None:
    ready = threading.Event()
    link_of("hub", subscribe=["submissions"], on_ready=ready.set)
    assert ready.wait(10)


def test_a_closed_link_can_be_closed_again(link: Link, publisher: Link) -> None:
    publisher.confirm(publisher.publish("nobody", b"x"))
    assert payloads([]) == []
    publisher.close()
    publisher.close()
    link.close()
