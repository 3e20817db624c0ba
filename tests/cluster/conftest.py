"""A real cluster, a real S3 server, real rclone, a real registry: each skips with its reason where it is not there.

s3                 a bucket behind a relay, and rclone's configurations for this machine and for pods
registry           where images for the nodes are pushed to
rclone_image       the image of a pod's `fetch` and `upload`, in that registry
cluster_namespace  a namespace made from deploy/kubernetes, and a kubeconfig of its service account
environment        GREENGRADER_… and KUBECONFIG by which a process of ours works in that namespace
hub                database, broker, ingest and namespace for a module; runs pod.sh and dispatcher.py
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from services import Postgres, start_mosquitto
from tests.cluster import services
from tests.cluster.scripted import ScriptedHub
from tests.cluster.services import S3, Lacking, Namespace
from tests.conftest import REQUIRED, fresh_database

Found = TypeVar("Found")
_numbers = itertools.count(1)


def needed(get: Callable[[], Found]) -> Found:
    """What `get` returns; where something lacks, the test is skipped, or fails where GREENGRADER_REQUIRE says so."""
    try:
        return get()
    except Lacking as lacking:
        reason = str(lacking)
    if "cluster" in REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster_version() -> str:
    """Version of the cluster that answers at KUBECONFIG."""
    return needed(services.cluster_answers)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A bucket for the session, reached by rclone as greengrader-app: with `s3.rclone_config`."""
    needed(lambda: services.program("rclone"))
    with contextlib.ExitStack() as stack:
        yield needed(lambda: stack.enter_context(services.s3_server(tmp_path_factory.mktemp("s3"))))


@pytest.fixture(scope="session")
def registry(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a registry for the session."""
    with contextlib.ExitStack() as stack:
        yield needed(lambda: stack.enter_context(services.image_registry(tmp_path_factory.mktemp("registry"))))


@pytest.fixture(scope="session")
def rclone_image(registry: str, base_image: str) -> str:
    """Name of deploy/rclone.Dockerfile's image, where nodes find it."""
    return services.build_rclone_image(registry, base_image)


@contextlib.contextmanager
def namespace_for(s3: S3, folder: Path) -> Iterator[Namespace]:
    """A fresh namespace whose pods reach the bucket."""
    name = f"greengrader-test-{os.getpid()}-{next(_numbers)}"
    with services.fresh_namespace(name, folder, s3.config_for(needed(services.host_ip))) as namespace:
        yield namespace


@pytest.fixture
def cluster_namespace(cluster_version: str, s3: S3, tmp_path: Path) -> Iterator[Namespace]:
    """A namespace of the test's own."""
    with namespace_for(s3, tmp_path) as namespace:
        yield namespace


@pytest.fixture
def environment(cluster_namespace: Namespace, s3: S3, registry: str, rclone_image: str) -> dict[str, str]:
    """Settings of that namespace, bucket and registry."""
    return settings_of(cluster_namespace, s3, registry, rclone_image)


def settings_of(namespace: Namespace, s3: S3, registry: str, rclone_image: str) -> dict[str, str]:
    """The variables by which a process of ours works there, under the Role and not as an administrator."""
    return {
        "KUBECONFIG": str(namespace.kubeconfig),
        "GREENGRADER_KUBE_NAMESPACE": namespace.name,
        "GREENGRADER_REGISTRY": registry,
        "GREENGRADER_RCLONE_CONFIG": str(s3.rclone_config),
        "GREENGRADER_RCLONE_IMAGE": rclone_image,
    }


@pytest.fixture(scope="module")
def hub(
    tmp_path_factory: pytest.TempPathFactory,
    cluster_version: str,
    s3: S3,
    registry: str,
    rclone_image: str,
    postgres: Postgres,
    base_image: str,
) -> Iterator[ScriptedHub]:
    """Assignment 7 is graded by kubernetes; whatever else it needs, a test says so."""
    directory = tmp_path_factory.mktemp("hub")
    broker = start_mosquitto(directory / "mosquitto", ("submit", "hub", "worker-1"))
    with fresh_database(postgres) as url, namespace_for(s3, directory) as namespace:
        settings = settings_of(namespace, s3, registry, rclone_image)
        hub = ScriptedHub(directory, url, broker, base_image, namespace, s3, settings)
        hub.store.set_assignment(7, {"backend": "kubernetes"})
        hub.start("ingest").ready()
        yield hub
        hub.close()
    broker.stop()
    broker.remove()
