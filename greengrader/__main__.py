"""The operator's command: `python3 -m greengrader`, for course staff and for the people who run the machines.

Reads and changes the hub's database and nothing else; the daemons notice by themselves. An answer goes to standard
output, whatever else there is to say to standard error.

Settings: GREENGRADER_DATABASE_URL, limits; `python3 -m greengrader config` prints them.
Exit codes: 0 done · 1 not found, refused, or a bug · 2 usage or settings · 3 Postgres away · 4 schema version.
"""

import argparse
import io
import sys

from greengrader import daemon
from greengrader.daemon import Stop
from greengrader.errors import GreenGraderError
from greengrader.operate import assignments, installation, rejected, results, runs, status, workers
from greengrader.operate.desk import Desk
from greengrader.operate.tables import printable

NOUNS = (status.add_command, results.add_command, assignments.add_command, runs.add_commands, workers.add_command,
         rejected.add_command, installation.add_commands)  # fmt: skip


def main(argv: list[str], stop: Stop) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode is no reason to fail
    options = arguments().parse_args(argv)
    with Desk(options, stop) as desk:
        try:
            code: int = options.run(desk)
            sys.stdout.flush()
            return code
        except GreenGraderError as error:
            if error.exit_code != 1:  # the installation's trouble, not the question's
                raise
            print(f"greengrader: {printable(str(error))}", file=sys.stderr)
            return 1


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m greengrader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in NOUNS:
        add(commands)
    return parser


if __name__ == "__main__":
    daemon.run(main)
