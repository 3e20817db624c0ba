"""Memory of each daemon that has nothing to do."""

import time

from tests.bench.containers import base_image
from tests.bench.figure import Figure, LeftOut, progress
from tests.bench.stage import Stage, memory_mb

BAR_MB = 80
SETTLED_S = 6.0  # after the first heartbeat and the first look at the leases


def measure(stage: Stage) -> list[Figure]:
    with stage.world("idle-memory") as world:
        daemons = world.start_hub()
        try:
            world.base_image = base_image()
            daemons["execute"] = world.start_worker()
        except LeftOut as reason:
            progress(f"idle-memory: without execute.py: {reason}")
        time.sleep(SETTLED_S)
        used = {name: memory_mb(daemon, "VmRSS") for name, daemon in daemons.items()}
    return [
        Figure(f"memory of an idle {name}.py", f"{used_mb:.0f} MB", "", "", f"<= {BAR_MB} MB", used_mb <= BAR_MB)
        for name, used_mb in used.items()
    ]
