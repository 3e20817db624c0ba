"""What the figures were measured on."""

import os
import platform
import subprocess
from pathlib import Path

from greengrader.db import Store
from places import program
from tests.bench.stage import Stage


def facts(stage: Stage) -> dict[str, str]:
    """{fact: value} for the head of the table."""
    with Store.connect(stage.postgres.url) as store:
        postgres = str(store.table("(SELECT current_setting('server_version') AS version) facts")[0]["version"])
    return {
        "cores": f"{len(os.sched_getaffinity(0))} x {_cpu_model()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": f"{postgres}, fsync on",
        "mosquitto": _first_line([program("mosquitto"), "-h"]).removeprefix("mosquitto version "),
        "docker": _first_line(["docker", "version", "--format", "{{.Server.Version}}"]) or "none answers",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(command: list[str]) -> str:
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except OSError:
        return ""
    return printed.splitlines()[0] if printed else ""
