"""The first connection: every way that it can fail has its name, and nothing waits for ever."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greengrader import mqtt
from greengrader.errors import ServiceUnavailable, SettingsError
from greengrader.mqtt import Link
from places import LOOPBACK
from services import Broker
from tests.broker.conftest import BareBroker, payloads, taken
from tests.conftest import LinkOf


def test_a_link_is_connected_when_it_is_there(link_of: LinkOf) -> None:
    link = link_of("hub")
    assert link.check() and link.is_connected
    assert link.connected_s >= 0


def test_small_packets_are_sent_at_once(link_of: LinkOf) -> None:
    """Otherwise an acknowledgement that a publish follows costs 40 ms, on each hop."""
    connection = link_of("hub")._client.socket()
    assert isinstance(connection, socket.socket)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize(("account", "password"), [("hub", "wrong-secret"), ("nobody", "wrong-secret"), ("hub", "")])
def test_a_refused_account_is_a_matter_of_settings(broker: Broker, account: str, password: str) -> None:
    link = Link(f"mqtt://{account}:{password}@{LOOPBACK}:{broker.port}", client_id="refused")
    with pytest.raises(SettingsError, match=f"refuses account '{account}'") as refused, link:
        pytest.fail("it was let in")
    assert refused.value.exit_code == 2
    assert "secret" not in str(refused.value)
    link.close()


def test_no_account_at_all_is_refused(broker: Broker) -> None:
    with pytest.raises(SettingsError), Link(f"mqtt://{LOOPBACK}:{broker.port}", client_id="anonymous"):
        pytest.fail("it was let in")


def test_nobody_at_the_address_is_an_outage() -> None:
    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        link = Link(f"mqtt://hub:my-secret@{LOOPBACK}:{unused.getsockname()[1]}", client_id="alone")
        with pytest.raises(ServiceUnavailable, match="does not answer") as refused, link:
            pytest.fail("somebody answered")
    assert refused.value.exit_code == 3
    assert "secret" not in str(refused.value)
    link.close()


def test_a_name_that_nobody_knows_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ServiceUnavailable, match="Name or service not known"), Link("mqtt://hub@broker", client_id="x"):
        pytest.fail("it connected")


@pytest.mark.parametrize(
    "url", ["", "broker", "http://broker", "mqtt://", "mqtt://:1883", "mqtt://broker:99999", "mqtt://broker:port"]
)
def test_a_malformed_address_is_a_matter_of_settings(url: str) -> None:
    with pytest.raises(SettingsError, match="GREENGRADER_MQTT_URL"):
        Link(url, client_id="malformed")


def test_a_name_that_is_none_is_a_matter_of_settings() -> None:
    with pytest.raises(SettingsError), Link("mqtt://hub@a..b", client_id="malformed"):
        pytest.fail("it connected")


def test_the_parts_of_an_address() -> None:
    link = Link("mqtts://a%40b:p%2Fw@broker", client_id="parts")
    assert (link.host, link.port, link.user) == ("broker", 8883, "a@b")
    assert Link("mqtt://broker", client_id="parts").port == 1883


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """Port of somebody who takes connections, and who is no broker: `answer` to all, or silence."""
    with socket.create_server((LOOPBACK, 0)) as server:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                    if answer is not None:
                        held[-1].sendall(answer)
                        held[-1].close()
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for connection in held:
                connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\x03\x00\x88\x00",
        b"\xf0" * 50,
        b"\x30\xff\xff\xff\xff\xff",
    ],
    ids=["silence", "hangs-up", "http", "server-unavailable", "garbage", "endless-length"],
)
def test_somebody_who_is_no_broker_is_an_outage(monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT_S", 0.2)
    with answering(answer) as port:
        link = Link(f"mqtt://{LOOPBACK}:{port}", client_id="lost")
        with pytest.raises(ServiceUnavailable), link:
            pytest.fail("it connected")


def test_a_daemon_that_runs_twice_says_so() -> None:
    """A broker that says why it throws us out. Two that took each other's session in turns would get nothing done."""
    accepted, taken_over = b"\x20\x03\x00\x00\x00", b"\xe0\x02\x8e\x00"
    with answering(accepted + taken_over) as port:
        link = Link(f"mqtt://{LOOPBACK}:{port}", client_id="greengrader-ingest")
        with pytest.raises(SettingsError, match=r"'greengrader-ingest.*twice"), link:
            taken(link, 1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem, self-signed for localhost, and key.pem."""
    folder = tmp_path_factory.mktemp("certificate")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem", *subject],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def tls_port(tmp_path: Path, certificate: Path, unused_port: int) -> Iterator[int]:
    broker = BareBroker(tmp_path, unused_port, f"certfile {certificate}/cert.pem", f"keyfile {certificate}/key.pem")
    yield unused_port
    broker.stop()


def test_a_link_can_be_encrypted(monkeypatch: pytest.MonkeyPatch, tls_port: int, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    large = bytes(range(256)) * 20_000
    url = f"mqtts://localhost:{tls_port}"
    with Link(url, client_id="reader", subscribe=["t"]) as reader, Link(url, client_id="writer") as writer:
        receipts = [writer.publish("t", payload) for payload in (b"small", large, b"last")]
        for receipt in receipts:
            writer.confirm(receipt)
        messages = taken(reader, 3)
        assert payloads(messages) == [b"small", large, b"last"]
        for message in messages:
            message.acknowledge()


def test_a_certificate_that_nobody_trusts_is_a_matter_of_settings(tls_port: int) -> None:
    with pytest.raises(SettingsError, match="certificate"), Link(f"mqtts://localhost:{tls_port}", client_id="strict"):
        pytest.fail("it trusted anybody")


def test_the_name_in_the_certificate_counts(monkeypatch: pytest.MonkeyPatch, tls_port: int, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    with pytest.raises(SettingsError, match="certificate"), Link(f"mqtts://{LOOPBACK}:{tls_port}", client_id="strict"):
        pytest.fail("it trusted anybody")


def test_an_unencrypted_link_does_not_wait_for_an_encrypted_broker(
    monkeypatch: pytest.MonkeyPatch, tls_port: int
) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(ServiceUnavailable), Link(f"mqtt://localhost:{tls_port}", client_id="plain"):
        pytest.fail("it connected")
