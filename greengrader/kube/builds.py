"""The images of autograders that run on a cluster: built on this machine, once per digest, and pushed for the nodes."""

import threading

from greengrader.config import Settings
from greengrader.db import PodJob, Store
from greengrader.errors import AutograderMissing, SandboxError, ServiceUnavailable
from greengrader.images import BuiltImage, Images


class Builds:
    """Threads may share it. Connects to the engine at the first image: ServiceUnavailable where none answers."""

    def __init__(self, settings: Settings) -> None:
        settings.required("registry")
        self._settings = settings
        self._state = settings.state_dir / "cluster-images"
        self._images: Images | None = None
        self._pushed: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        if self._images is not None:
            self._images.close()

    def pushed(self, store: Store, job: PodJob) -> tuple[str, tuple[str, ...]]:
        """(the image's name in the registry, the command that starts the autograder); AutograderBroken, or
        ServiceUnavailable where the engine or the registry failed."""
        digest = job.autograder_digest
        if digest not in self._pushed:
            images = self._connected()
            try:
                built = self._built(store, job, images)
                self._pushed[digest] = images.push(digest), tuple(built.command)
            except SandboxError as error:
                raise ServiceUnavailable(f"no image of the autograder for the cluster: {error}") from error
        return self._pushed[digest]

    def _built(self, store: Store, job: PodJob, images: Images) -> BuiltImage:
        digest = job.autograder_digest
        try:
            return images.ensure(digest, job.base_image, None)
        except AutograderMissing:
            source = self._state / f"{digest}.tar.gz"
            source.write_bytes(store.autograder_archive(digest))
            built = images.ensure(digest, job.base_image, source)
            source.unlink(missing_ok=True)
            return built

    def _connected(self) -> Images:
        with self._lock:
            if self._images is None:
                self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._images = Images.connect(self._settings, self._state)
            return self._images
