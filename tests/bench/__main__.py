"""Measures, and prints one table: what, measured, its reference in the same run, their ratio, the bar, met or not.

    python -m tests.bench              all of them
    python -m tests.bench NAME …       these
    python -m tests.bench --list       their names

Exit codes: 0 measured, whether the bars are met or not · 1 something could not be measured.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

from greengrader.errors import GreenGraderError
from tests.bench import machine
from tests.bench.figure import Figure, LeftOut, NotMeasured, progress, table
from tests.bench.stage import Stage

NAMES = (
    "latency", "throughput", "ingest-small", "ingest-large", "ingest-memory", "idle-memory", "placements",
    "cluster-latency", "cluster-throughput", "cluster-in-flight",
)  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--list", action="store_true", help="print the names")
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if options.list:
        print("\n".join(NAMES))
        return 0
    began = time.monotonic()
    figures: list[Figure] = []
    remarks: list[str] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="greengrader-bench-") as directory, Stage(Path(directory)) as stage:
        facts = machine.facts(stage)
        for name in options.names or NAMES:
            progress(f"{name}: begins")
            try:
                figures += import_module(f"tests.bench.{name.replace('-', '_')}").measure(stage)
            except LeftOut as reason:
                remarks.append(f"{name} is left out: {reason}")
            except (NotMeasured, GreenGraderError, AssertionError, OSError, subprocess.SubprocessError) as error:
                traceback.print_exc()
                failures.append(f"{name} could not be measured: {error}")
    print("\n".join(f"{fact}: {value}" for fact, value in facts.items()))
    print(f"\n{table(figures)}\n")
    bars = [figure.met for figure in figures if figure.met is not None]
    print("\n".join([*remarks, *failures]))
    print(f"{sum(bars)} of {len(bars)} bars are met. Medians, with the smallest and the largest round in brackets. "
          f"Took {time.monotonic() - began:.0f} s.")  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
