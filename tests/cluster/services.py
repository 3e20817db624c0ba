"""What the tests of the Kubernetes pipeline need beside a cluster: an S3 server, a registry, a namespace of their own.

Moto's server lives in a virtual environment of its own, since it pins python-dateutil below 3 against the kubernetes
package, in a cache folder where deploy/install-cluster-tests.sh puts it. The registry is Debian's docker-registry.
Pods reach this machine at CLUSTER_HOST_IP. Nodes take images from the registry on loopback where they are on this
machine; else CLUSTER_REGISTRY names one that they, and the container engine here, can reach.
"""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.relay import Relay
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "greengrader" / "cluster-tests"
INSTALL = "run deploy/install-cluster-tests.sh"
BUCKET = "greengrader"
RCLONE_TAG = "greengrader/rclone:debian-12"


class Lacking(Exception):
    """Something that these tests need is not here; the text says what, and what to do."""


def program(name: str, *places: Path) -> str:
    """Where a program is; Lacking where it is not."""
    found = shutil.which(name) or next((str(place) for place in places if place.is_file()), None)
    if found is None:
        raise Lacking(f"{name} is not installed: {INSTALL}")
    return found


def host_ip() -> str:
    """The address by which pods reach this machine."""
    address = os.environ.get("CLUSTER_HOST_IP")
    if not address:
        raise Lacking("CLUSTER_HOST_IP is not set: the address by which pods reach this machine")
    return address


# ------------------------------------------------------------------------------------------------ S3
@dataclass(frozen=True)
class S3:
    """A bucket of a server that speaks S3. Pods and this machine reach it through `relay`, which can cut it off."""

    relay: Relay
    rclone_config: Path  # for this machine; its remote is the default one, greengrader-app:

    def config_for(self, host: str) -> str:
        """rclone's configuration, by which the server is reached at that address."""
        return textwrap.dedent(f"""\
            [greengrader-app]
            type = alias
            remote = s3:{BUCKET}

            [s3]
            type = s3
            provider = Other
            endpoint = http://{host}:{self.relay.port}
            access_key_id = greengrader
            secret_access_key = not-secret
            region = us-east-1
            """)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """While the block runs, nobody gets through to the server."""
        self.relay.refuse()
        self.relay.cut()
        try:
            yield
        finally:
            self.relay.refuse(False)

    def rclone(self, *words: str, stdin: bytes = b"") -> bytes:
        """What rclone itself says of the bucket, for tests that look from the side."""
        return _run("rclone", f"--config={self.rclone_config}", *words, stdin=stdin)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """A running server with an empty bucket."""
    server, port = program("moto_server", CACHE / "moto" / "bin" / "moto_server"), free_port()
    with (
        _running(
            [server, "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log", f"http://127.0.0.1:{port}/moto-api/"
        ),
        Relay("127.0.0.1", port, address="0.0.0.0") as relay,
    ):
        s3 = S3(relay, folder / "rclone.conf")
        s3.rclone_config.write_text(s3.config_for("127.0.0.1"))
        s3.rclone("mkdir", "greengrader-app:")
        yield s3


# ------------------------------------------------------------------------------------------------ images
@contextlib.contextmanager
def image_registry(folder: Path) -> Iterator[str]:
    """The address of a registry that this machine's engine and the nodes take images from: host:port/path."""
    given = os.environ.get("CLUSTER_REGISTRY")
    if given:
        yield given
        return
    server, port = program("docker-registry", CACHE / "registry" / "usr" / "bin" / "docker-registry"), free_port()
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "registry.yml").write_text(json.dumps(config))
    command = [server, "serve", str(folder / "registry.yml")]
    with _running(command, folder / "registry.log", f"http://127.0.0.1:{port}/v2/"):
        yield f"127.0.0.1:{port}"


def build_rclone_image(registry: str, base_image: str) -> str:
    """deploy/rclone.Dockerfile's image, built and pushed; its name for the nodes."""
    build(RCLONE_TAG, (ROOT / "deploy" / "rclone.Dockerfile").read_text(), BASE=base_image)
    return push(RCLONE_TAG, registry)


def build(tag: str, dockerfile: str, **arguments: str) -> None:
    """Builds an image from a Dockerfile that copies nothing."""
    given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    command = ["docker", "build", "--quiet", *given, "--tag", tag, "-"]
    _run(*command, stdin=dockerfile.encode(), environment={"DOCKER_BUILDKIT": "0"})


def push(image: str, registry: str) -> str:
    """The image's name in the registry, where it then is."""
    remote = f"{registry}/{image}"
    _run("docker", "tag", image, remote)
    try:
        _run("docker", "push", "--quiet", remote)
    finally:
        _run("docker", "rmi", "--no-prune", remote)  # the name alone
    return remote


# ------------------------------------------------------------------------------------------------ namespaces
@dataclass(frozen=True)
class Namespace:
    """A namespace with all of deploy/kubernetes in it."""

    name: str
    kubeconfig: Path  # of its service account: what the tests run as

    def kubectl(self, *words: str, stdin: str = "", as_admin: bool = False) -> str:
        """What kubectl prints, as the service account or as whoever KUBECONFIG says."""
        environment = {} if as_admin else {"KUBECONFIG": str(self.kubeconfig)}
        command = ["kubectl", f"--namespace={self.name}", *words]
        return _run(*command, stdin=stdin.encode(), environment=environment).decode()

    def pod(self, name: str) -> dict[str, Any]:
        """The pod as it is now."""
        pod: dict[str, Any] = json.loads(self.kubectl("get", "pod", name, "--output=json"))
        return pod


def manifests(namespace: str) -> list[dict[str, Any]]:
    """The objects of deploy/kubernetes, for another namespace than their own; cluster-wide ones get its name, too."""
    objects: list[dict[str, Any]] = []
    for path in sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml")):
        objects += yaml.safe_load_all(path.read_text())
    for one in objects:
        if one["kind"] == "Namespace" or one["kind"].startswith("Cluster"):
            one["metadata"]["name"] = namespace
        else:
            one["metadata"]["namespace"] = namespace
        for subject in one.get("subjects", ()):
            subject["namespace"] = namespace
        if one["kind"] == "ClusterRoleBinding":
            one["roleRef"]["name"] = namespace
    return objects


@contextlib.contextmanager
def fresh_namespace(name: str, folder: Path, rclone_config: str | None = None) -> Iterator[Namespace]:
    """A namespace made from deploy/kubernetes, with the Secret that holds `rclone_config`; removed at the end."""
    objects = manifests(name)
    if rclone_config is not None:
        metadata = {"name": "greengrader-rclone", "namespace": name}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        objects.append(secret | {"stringData": {"rclone.conf": rclone_config}})
    namespace = Namespace(name, folder / f"{name}.kubeconfig")
    try:
        everything = {"apiVersion": "v1", "kind": "List", "items": objects}
        namespace.kubectl("apply", "--filename=-", stdin=json.dumps(everything), as_admin=True)
        look = ["get", "serviceaccounts", "--output=name"]
        eventually(lambda: "/default" in namespace.kubectl(*look, as_admin=True), 60, "the default service account")
        token = eventually(lambda: _token(namespace), 60, "the service account's token")
        namespace.kubeconfig.write_text(json.dumps(_kubeconfig(name, token)))
        yield namespace
    finally:
        wide = [f"{one['kind']}/{name}" for one in objects if one["kind"].startswith("Cluster")]
        _run("kubectl", "delete", "--wait=false", "--ignore-not-found", f"namespace/{name}", *wide)


def _token(namespace: Namespace) -> str:
    secret = json.loads(namespace.kubectl("get", "secret", "greengrader-token", "--output=json", as_admin=True))
    return base64.b64decode(secret.get("data", {}).get("token", "")).decode()


def _kubeconfig(namespace: str, token: str) -> dict[str, Any]:
    """A kubeconfig for the same cluster as that in force, which JSON is, too."""
    shown = _run("kubectl", "config", "view", "--raw", "--minify", "--flatten", "--output=json")
    config: dict[str, Any] = json.loads(shown)
    account = {"name": "greengrader", "user": {"token": token}}
    context = {"cluster": config["clusters"][0]["name"], "user": "greengrader", "namespace": namespace}
    contexts = [{"name": "greengrader", "context": context}]
    return config | {"users": [account], "contexts": contexts, "current-context": "greengrader"}


# ------------------------------------------------------------------------------------------------ processes
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], log: Path, url: str) -> Iterator[None]:
    """A server that answers at `url`, stopped at the end."""
    environment = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        eventually(lambda: server.poll() is not None or _answers(url), 60, f"{command[0]} at {url}")
        assert server.poll() is None, log.read_text()
        yield
    finally:
        server.terminate()
        server.wait(20)


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _run(*command: str, stdin: bytes = b"", environment: dict[str, str] | None = None) -> bytes:
    ours = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
    done = subprocess.run(
        command, input=stdin, capture_output=True, timeout=600, env=ours | (environment or {}), check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode(errors='replace')}"
    return done.stdout


def cluster_answers() -> str:
    """The version of the cluster at KUBECONFIG; Lacking where none answers."""
    if not os.environ.get("KUBECONFIG"):
        raise Lacking("KUBECONFIG is not set: no cluster to test against")
    command = [program("kubectl"), "get", "--raw=/version", "--request-timeout=5s"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if asked.returncode != 0:
        raise Lacking(f"no cluster answers at KUBECONFIG: {(asked.stderr.strip().splitlines() or ['?'])[-1]}")
    return str(json.loads(asked.stdout)["gitVersion"])
