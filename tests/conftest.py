"""Real services for the tests: a Postgres and a Mosquitto of their own, and whatever container engine answers.

Postgres and Mosquitto start once a session, in a temporary folder, on loopback. Each test that asks for `database` gets
a fresh one, cloned from a template. What needs a container engine or a cluster is skipped with a printed reason where
none answers, and fails instead where GREENGRADER_REQUIRE names it.
"""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from greengrader.db import Store
from greengrader.mqtt import Link
from services import Broker, Postgres, start_mosquitto, start_postgres

REQUIRED = set(filter(None, os.environ.get("GREENGRADER_REQUIRE", "").split(",")))
_names = itertools.count(1)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees no settings of the shell that runs it."""
    for key in list(os.environ):
        if key.startswith("GREENGRADER_") and key not in ("GREENGRADER_REQUIRE", "GREENGRADER_BASE_IMAGE"):
            monkeypatch.delenv(key)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A Postgres server for the session, with a template database that holds the schema."""
    server = start_postgres(tmp_path_factory.mktemp("postgres"), durable=False)
    with Store.connect(server.url, check_schema=False) as store:
        store.apply_schema()
    yield server
    server.stop()
    server.remove()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """URL of a database of the test's own, with the schema in it."""
    with fresh_database(postgres) as url:
        yield url


@contextmanager
def fresh_database(postgres: Postgres, template: str | None = None) -> Iterator[str]:
    """URL of a clone of the template, or of another database, dropped at the end."""
    base, holds_schema = postgres.url.rsplit("/", 1)
    name = f"test_{os.getpid()}_{next(_names)}"
    _administer(base, f'CREATE DATABASE "{name}" TEMPLATE "{template or holds_schema}"')
    yield f"{base}/{name}"
    # not WITH (FORCE), which fails while the server itself vacuums that database; a plain DROP sends that away
    _administer(base, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
                      " AND usename = current_user")  # fmt: skip
    _administer(base, f'DROP DATABASE "{name}"')


def _administer(base_url: str, command: str) -> None:
    connection = psycopg2.connect(f"{base_url}/postgres")
    connection.autocommit = True
    try:
        connection.cursor().execute(command)
    finally:
        connection.close()


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    with Store.connect(database) as connected:
        yield connected


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Mosquitto for the session, with deploy/mosquitto.conf and its ACL; accounts submit, hub, worker-1, worker-2."""
    server = start_mosquitto(tmp_path_factory.mktemp("mosquitto"), ("submit", "hub", "worker-1", "worker-2"))
    yield server
    server.stop()
    server.remove()


@pytest.fixture
def link_of(broker: Broker) -> Iterator["LinkOf"]:
    links = LinkOf(broker)
    yield links
    links.close()


class LinkOf:
    """Links of accounts at the session's broker: `link_of("hub", subscribe=[…])`, closed when the test ends."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._open: list[Link] = []

    def __call__(self, account: str, *, client_id: str | None = None, **options: object) -> Link:
        name = client_id or f"test-{os.getpid()}-{next(_names)}"
        options.setdefault("keep_session", False)
        link = Link(self._broker.url_for(account), client_id=name, **options)  # type: ignore[arg-type]
        link.__enter__()
        self._open.append(link)
        return link

    def close(self) -> None:
        for link in self._open:
            link.close()


@pytest.fixture(scope="session")
def docker_engine() -> str:
    """Version of the container engine that answers."""
    asked = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if asked.returncode != 0:
        reason = f"no container engine answers: {asked.stderr.strip().splitlines()[-1:]}"
        pytest.fail(reason) if "docker" in REQUIRED else pytest.skip(reason)
    return asked.stdout.strip()


@pytest.fixture(scope="session")
def base_image(docker_engine: str) -> str:
    """The image that autograders are built on here."""
    name = os.environ.get("GREENGRADER_BASE_IMAGE", "greengrader/base:debian-12")
    if subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode != 0:
        subprocess.run([Path(__file__).parent.parent / "deploy" / "base-image.sh"], check=True)
    return name
