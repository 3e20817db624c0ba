"""Links of accounts at a real Mosquitto, what publishers outside use, and brokers that a test may stop."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greengrader.daemon import Stop
from greengrader.mqtt import Incoming, Link
from places import LOOPBACK, program
from processes import Detached
from services import Broker, start_mosquitto

ACCOUNTS = ("submit", "hub", "worker-1", "worker-2")
NEVER = Stop()  # one for all: each holds two file descriptors, and paho's select takes none above 1023


@pytest.fixture
def stop() -> Stop:
    """Nobody stops anything unless the test does."""
    return Stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that the test may stop."""
    server = start_mosquitto(tmp_path / "mosquitto", ACCOUNTS)
    yield server
    server.stop()
    server.remove()


@pytest.fixture
def client_id(request: pytest.FixtureRequest) -> str:
    """A name for a session that no other test's messages wait in."""
    return f"{request.node.name}-{os.getpid()}"


def taken(link: Link, count: int, limit_s: float = 15) -> list[Incoming]:
    """The next `count` messages, not acknowledged."""
    messages: list[Incoming] = []
    deadline = time.monotonic() + limit_s
    for batch in link.batches(NEVER, idle_s=0.05):
        messages += batch
        if len(messages) >= count:
            break
        assert time.monotonic() < deadline, f"{len(messages)} of {count} messages came within {limit_s:g} s"
    return messages


def payloads(messages: list[Incoming]) -> list[bytes]:
    return [message.raw for message in messages]


def settle(link: Link) -> None:
    """Returns when the broker has read what the link sent before, acknowledgements for example."""
    link.confirm(link.publish("nobody/reads/this", b""))


def publish_outside(broker: Broker, account: str, topic: str, message: str, *options: str) -> None:
    """As the snippet does it, by mosquitto_pub: QoS 0 and MQTT 3.1.1 unless the options say otherwise."""
    command = [program("mosquitto_pub"), "-h", LOOPBACK, "-p", str(broker.port), "-t", topic, "-m", message]
    account_options = ["-u", account, "-P", broker.password(account)]
    subprocess.run([*command, *account_options, *options], check=True, capture_output=True, timeout=20)


class BareBroker:
    """A Mosquitto with a configuration of the test's own, without accounts."""

    def __init__(self, directory: Path, port: int, *lines: str) -> None:
        self.port = port
        configuration = directory / "bare.conf"
        configuration.write_text(
            "\n".join((f"listener {port} {LOOPBACK}", "allow_anonymous true", "user root", *lines))
        )
        self._process = Detached("mosquitto", directory / "pid", directory / "log", str(configuration))
        self._process.launch([program("mosquitto"), "-c", configuration])
        self._process.wait_until(self._is_up, 20)

    def _is_up(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self._process.stop()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
