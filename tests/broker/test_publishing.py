"""Publishing: confirmed means that the broker has it; anything else is told."""

import os
import signal
import threading
from contextlib import closing

import pytest

from greengrader.delivery import Incoming
from greengrader.errors import ServiceUnavailable, SettingsError
from greengrader.mqtt import Link
from services import Broker
from tests.broker.conftest import ACCOUNTS, payloads, taken
from tests.conftest import LinkOf


def test_confirm_returns_when_the_broker_has_it(link_of: LinkOf) -> None:
    link = link_of("hub")
    receipt = link.publish("results/worker-1", b"x")
    link.confirm(receipt)
    link.confirm(receipt, 0)


def test_a_topic_that_nobody_reads_is_no_fault(link_of: LinkOf) -> None:
    link = link_of("hub")
    link.confirm(link.publish("nobody/reads/this", b"x"))


def test_an_answer_names_where_to_answer(link_of: LinkOf) -> None:
    reader, writer = link_of("hub", subscribe=["workers/+/+"]), link_of("worker-1")
    writer.publish("workers/worker-1/registration", b"x", response_topic="replies/me", expiry_s=60)
    assert taken(reader, 1)[0].response_topic == "replies/me"


def test_a_denied_publish_raises_where_it_is_confirmed(link_of: LinkOf) -> None:
    link = link_of("worker-1")
    with pytest.raises(SettingsError, match="'worker-1' may not write to results/worker-2"):
        link.confirm(link.publish("results/worker-2", b"x"))


def test_a_denied_publish_that_nobody_confirms_ends_the_iteration(link_of: LinkOf) -> None:
    """A worker under another one's name would send heartbeats for ever, and nobody would see them."""
    link = link_of("worker-1", subscribe=["jobs/worker-1"])
    link.publish("workers/worker-2/heartbeat", b"x")
    with pytest.raises(SettingsError, match="'worker-1' may not write to workers/worker-2/heartbeat") as denied:
        taken(link, 1)
    assert denied.value.exit_code == 2


def test_a_broker_that_hangs_is_told_after_the_time(own_broker: Broker) -> None:
    with Link(own_broker.url_for("hub"), client_id="patient") as link:
        assert own_broker.pid is not None
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            receipt = link.publish("results/worker-1", b"x")
            with pytest.raises(ServiceUnavailable, match="did not acknowledge"):
                link.confirm(receipt, 0.1)
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)
        link.confirm(receipt)


def test_what_was_published_arrives_though_the_link_is_closed_at_once(link_of: LinkOf) -> None:
    """More than paho lets under way at a time, and more than a socket's buffer holds."""
    reader = link_of("hub", subscribe=["results/+"], receive_maximum=3000)
    messages = [str(number).encode() * 100 for number in range(2500)]
    with closing(link_of("hub")) as writer:
        for message in messages:
            writer.publish("results/worker-1", message)
    assert payloads(taken(reader, 2500)) == messages


def test_what_was_published_arrives_though_much_is_unread(link_of: LinkOf) -> None:
    """A socket that is closed with unread bytes is reset, and what it had to send may be lost."""
    reader = link_of("hub", subscribe=["results/+"])
    flood = link_of("hub")
    with closing(link_of("hub", subscribe=["submissions"])) as writer:
        for _ in range(100):
            flood.publish("submissions", bytes(100_000))
        for number in range(30):
            writer.publish("results/worker-1", str(number).encode() * 10_000)
    assert len(taken(reader, 30)) == 30


def test_threads_do_not_mix_up_their_packets(link_of: LinkOf) -> None:
    """Slots publish results while the main thread acknowledges. A packet that is larger than the socket's buffer is
    sent in pieces, and nothing may come between them."""
    reader = link_of("hub", subscribe=["results/+"], receive_maximum=1000)
    writer = link_of("hub", subscribe=["submissions"])
    feeder = link_of("hub")
    faults: list[BaseException] = []

    def publish(number: int) -> None:
        try:
            for receipt in [writer.publish("results/worker-1", bytes([number]) * 2_000_000) for _ in range(5)]:
                writer.confirm(receipt)
        except BaseException as error:
            faults.append(error)

    for _ in range(200):
        feeder.publish("submissions", b"to be acknowledged")
    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        taken(writer, 1)[0].acknowledge()
    for thread in threads:
        thread.join(30)
    assert faults == []
    assert sorted(message.raw for message in taken(reader, 20)) == [
        bytes([number]) * 2_000_000 for number in range(4) for _ in range(5)
    ]
    assert writer._connection == 1, "the broker saw no broken packet"


# --------------------------------------------------------------------------------------------------------------- ACL
def forbidden_writes() -> list[tuple[str, str]]:
    """(account, topic) of all that no account may write but its own."""
    topics = (
        "submissions",
        "jobs/{w}",
        "results/{w}",
        "workers/{w}/registration",
        "workers/{w}/heartbeat",
        "replies/x",
    )
    every = [topic.format(w=worker) for worker in ("worker-1", "worker-2") for topic in topics]
    every += ["jobs/submit", "results/submit", "workers/submit/heartbeat", "other", "$SYS/broker/version", "results"]
    allowed = {
        "submit": {"submissions"},
        "worker-1": {"results/worker-1", "workers/worker-1/registration", "workers/worker-1/heartbeat"},
        "worker-2": {"results/worker-2", "workers/worker-2/registration", "workers/worker-2/heartbeat"},
    }
    return [(account, topic) for account in allowed for topic in sorted(set(every) - allowed[account])]


@pytest.mark.parametrize("account", ["submit", "worker-1", "worker-2"])
def test_nobody_writes_where_he_may_not(link_of: LinkOf, account: str) -> None:
    everything = link_of("hub", subscribe=["#"])
    topics = [topic for whose, topic in forbidden_writes() if whose == account]
    assert len(topics) > 10
    for topic in topics:
        link = link_of(account)
        with pytest.raises(SettingsError, match="may not write"):
            link.confirm(link.publish(topic, b"forged"), 5)
    hub = link_of("hub")
    hub.confirm(hub.publish("marker", b"marker"))
    assert payloads(taken(everything, 1)) == [b"marker"], "nothing of it came through"


@pytest.mark.parametrize(
    ("account", "topic"),
    [("submit", "submissions"), ("worker-1", "results/worker-1"), ("worker-1", "workers/worker-1/registration"),
     ("worker-2", "workers/worker-2/heartbeat"), ("hub", "jobs/worker-1"), ("hub", "replies/anybody")],
)  # fmt: skip
def test_everybody_writes_where_he_has_to(link_of: LinkOf, account: str, topic: str) -> None:
    everything = link_of("hub", subscribe=["#"])
    link = link_of(account)
    link.confirm(link.publish(topic, b"mine"))
    assert [(message.topic, message.raw) for message in taken(everything, 1)] == [(topic, b"mine")]


READABLE = {  # {account: what of EVERYTHING it is handed}, its client id being `me`
    "submit": {"replies/me"},
    "worker-1": {"jobs/worker-1", "replies/me"},
    "worker-2": {"jobs/worker-2", "replies/me"},
}
EVERYTHING = [
    "submissions",
    *(f"{kind}/{account}" for kind in ("jobs", "results") for account in ACCOUNTS),
    *(f"workers/{account}/heartbeat" for account in ACCOUNTS),
    "replies/me",
    "replies/another",
    "replies/me/more",
    "other",
]


@pytest.mark.parametrize("account", READABLE)
@pytest.mark.parametrize("filters", [["#"], ["+", "+/+", "+/+/+"], EVERYTHING], ids=["all", "levels", "each"])
def test_nobody_reads_what_is_not_for_him(link_of: LinkOf, account: str, filters: list[str]) -> None:
    """Mosquitto grants the subscription and keeps the messages back."""
    reader = link_of(account, client_id="me", subscribe=filters)
    hub = link_of("hub")
    for topic in EVERYTHING:
        hub.confirm(hub.publish(topic, topic.encode()))
    hub.confirm(hub.publish("replies/me", b"marker"))
    seen: list[Incoming] = []
    while b"marker" not in payloads(seen):
        for message in taken(reader, 1):
            seen.append(message)
            message.acknowledge()
    assert {message.topic for message in seen} == READABLE[account]
