"""A world of its own for each test, and one stack with a worker that many tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services import Broker, Postgres, start_mosquitto
from tests.conftest import fresh_database
from tests.daemons.world import World


@pytest.fixture
def world(tmp_path: Path, database: str, own_broker: Broker) -> Iterator[World]:
    """A database and a broker of the test's own, and no daemon yet."""
    world = World(tmp_path, database, own_broker)
    yield world
    world.close()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker for tests that stop it or leave messages in it."""
    server = start_mosquitto(tmp_path / "mosquitto", ("submit", "hub", "worker-1", "worker-2"))
    yield server
    server.stop()
    server.remove()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, base_image: str) -> Iterator[World]:
    """The whole hub and one registered worker with two slots, on a broker of their own."""
    directory = tmp_path_factory.mktemp("stack")
    server = start_mosquitto(directory / "mosquitto", ("submit", "hub", "worker-1", "worker-2"))
    with fresh_database(postgres) as url:
        world = World(directory, url, server, base_image)
        world.start_hub()
        world.start_worker()
        yield world
        world.close()
    server.stop()
    server.remove()
