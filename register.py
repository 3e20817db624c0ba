#!/usr/bin/env python3
"""Tells the hub what machine a worker is. Once per machine, and again after a change.

    python3 register.py <ip> <name> <cpu_model_name> <cpu_clock_rate> <cpu_sockets> <cpu_cores> <cache_size>
    <memory_size> python3 register.py                   reads all eight off this machine

Units: cpu_clock_rate MHz, cpu_cores in all sockets, cache_size KiB (last level), memory_size MiB. `name` is also the
worker's broker account. Needs the broker alone: no database. Prints success or the reason.

Settings: GREENGRADER_MQTT_URL (the worker's account), GREENGRADER_WORKER_NAME, GREENGRADER_SLOTS; see `.env.example`.
Exit codes: 0 registered · 1 refused or no answer · 2 usage or settings · 3 broker away.
"""

import argparse
import os
import re
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from greengrader import config, daemon
from greengrader.config import Settings
from greengrader.daemon import Stop
from greengrader.messages import REPLY_PREFIX, Registration, Reply, worker_topic
from greengrader.mqtt import Link

ANSWER_TIMEOUT_S = 15.0
POSITIONS = ("ip", "name", "cpu_model_name", "cpu_clock_rate", "cpu_sockets", "cpu_cores", "cache_size", "memory_size")


def main(argv: list[str], stop: Stop) -> int:
    parser = arguments()
    options = parser.parse_args(argv)
    if options.machine and len(options.machine) != len(POSITIONS):
        parser.error(
            f"give all of {' '.join(f'<{name}>' for name in POSITIONS)}, or none: then they are read off this machine"
        )
    settings = config.load()
    machine = dict(zip(POSITIONS, options.machine, strict=True)) if options.machine else this_machine(settings)
    try:
        registration = describe(machine, options, settings)
    except ValidationError as error:
        for fault in error.errors():
            print(f"not registered: {fault['loc'][0]}={fault['input']!r}: {fault['msg']}", file=sys.stderr)
        return 2
    reply = ask(settings, registration, stop)
    if reply is None:
        print(
            f"not registered: no answer in {ANSWER_TIMEOUT_S:.0f} s; is receiver.py running on the hub?",
            file=sys.stderr,
        )
        return 1
    if reply.status != "accepted":
        print(f"not registered: {reply.detail.get('reason', 'no reason given')}", file=sys.stderr)
        return 1
    print(f"registered {registration.worker}: {registration.cpu_model_name}, {registration.cpu_cores} cores, "
          f"{registration.memory_size} MiB, {registration.slots} slots, region {registration.region}")  # fmt: skip
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machine", nargs="*", metavar="<value>", help=f"exactly {', '.join(POSITIONS)}; or nothing")
    parser.add_argument("--region", default="home", help="where the machine stands, as carbon sources name it")
    parser.add_argument("--zone", default="", help="zone within the region")
    parser.add_argument("--watts-min", type=float, help="W per core when idle")
    parser.add_argument("--watts-max", type=float, help="W per core under full load")
    parser.add_argument("--slots", type=int, help="runs at a time (default: GREENGRADER_SLOTS)")
    return parser


def this_machine(settings: Settings) -> dict[str, Any]:
    """The eight values, read from /proc and /sys."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)", cpuinfo, re.M)]
    model = re.search(r"^(?:model name|Model|Hardware)\s*: (.+)", cpuinfo, re.M)
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
    caches = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    sizes_kib = [
        int(size[:-1]) * (1024 if size.endswith("M") else 1) for size in caches if re.fullmatch(r"\d+[KM]", size)
    ]
    stated = re.search(r"^cache size\s*: (\d+) KB", cpuinfo, re.M)
    return {
        "ip": own_address(settings),
        "name": settings.worker_name or socket.gethostname(),
        "cpu_model_name": model[1] if model else os.uname().machine,
        "cpu_clock_rate": max(clocks) if clocks else 1.0,
        "cpu_sockets": max(len(set(re.findall(r"^physical id\s*: (\d+)", cpuinfo, re.M))), 1),
        "cpu_cores": os.cpu_count() or 1,
        "cache_size": max(sizes_kib, default=int(stated[1]) if stated else 0),
        "memory_size": int(memory[1]) // 1024 if memory else 1,
    }


def own_address(settings: Settings) -> str:
    """The address of this machine that the broker sees."""
    link = Link(settings.required("mqtt_url"), client_id="")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((link.host, link.port))  # UDP: sends nothing, only picks the route
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def describe(machine: dict[str, Any], options: argparse.Namespace, settings: Settings) -> Registration:
    values = {**machine, "worker": machine["name"], "node_ip": machine["ip"]}
    return Registration.model_validate(
        {
            **values,
            "region": options.region,
            "zone": options.zone,
            "watts_min": options.watts_min,
            "watts_max": options.watts_max,
            "slots": settings.slots if options.slots is None else options.slots,
        }
    )


def ask(settings: Settings, registration: Registration, stop: Stop) -> Reply | None:
    """Publishes the registration and waits for the hub's answer; None when there is none in time."""
    client_id = f"register-{secrets.token_hex(8)}"
    topic = REPLY_PREFIX + client_id
    with Link(settings.required("mqtt_url"), client_id=client_id, subscribe=[topic], keep_session=False) as link:
        receipt = link.publish(
            worker_topic(registration.worker, "registration"), registration.encode(), response_topic=topic, expiry_s=60
        )
        link.confirm(receipt)
        for batch in link.batches(stop, idle_s=ANSWER_TIMEOUT_S):
            return Reply.decode(batch[0].raw) if batch else None
    return None


if __name__ == "__main__":
    daemon.run(main)
