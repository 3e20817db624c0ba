"""A worker's heartbeat: that it lives, which runs it holds, what it has, and whether it takes jobs."""

import logging
import shutil
import threading

from greengrader.config import Settings
from greengrader.errors import SandboxError
from greengrader.images import Images
from greengrader.messages import Heartbeat, worker_topic
from greengrader.mqtt import Link
from greengrader.slots import Slots
from greengrader.workplace import Workplace

log = logging.getLogger("greengrader")


class Pulse:
    """Publishes a heartbeat every GREENGRADER_HEARTBEAT_S, and at once after `beat`; `keep_beating` is its thread."""

    def __init__(self, name: str, settings: Settings, workplace: Workplace, images: Images, slots: Slots) -> None:
        self._name, self._settings = name, settings
        self._workplace, self._images, self._slots = workplace, images, slots
        self._now = threading.Event()
        self._stopping = threading.Event()
        self._full = threading.Event()  # the disk: no jobs until there is room

    def beat(self) -> None:
        self._now.set()

    def stop_accepting(self) -> None:
        self._stopping.set()
        self.beat()

    @property
    def is_accepting(self) -> bool:
        return not self._stopping.is_set() and not self._full.is_set()

    def keep_beating(self, link: Link) -> None:
        while True:
            if link.is_connected:
                message = Heartbeat(
                    runs=self._slots.held(),
                    slots=self._settings.slots,
                    accepting=self._has_room() and self.is_accepting,
                    autograders=self._autograders(),
                )
                link.publish(worker_topic(self._name, "heartbeat"), message.encode(), expiry_s=60)
            self._now.wait(self._settings.heartbeat_s)
            self._now.clear()

    def _has_room(self) -> bool:
        """Whether the disks of the engine and of this worker are above the limit; removes images where they are not."""
        room = min(shutil.disk_usage(path).free for path in {self._workplace.folder, self._images.data_root()})
        if room >= self._settings.min_free_disk_bytes:
            self._full.clear()
            return True
        if not self._full.is_set():
            self._full.set()
            limit = self._settings.min_free_disk_bytes
            log.error("disk full free_bytes=%d limit_bytes=%d: takes no jobs until there is room", room, limit)
            self._images.collect_garbage(0)
        return False

    def _autograders(self) -> list[str]:
        """Digests of those whose image or source is here; of the sources alone while the engine is away."""
        here = self._workplace.sources()
        try:
            here |= self._images.digests()
        except SandboxError as error:
            log.warning("engine away reason=%s", error)
        return sorted(here)
