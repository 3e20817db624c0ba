"""What every command works with: the words that were typed, the settings, the hub's database."""

import argparse
from collections.abc import Callable
from functools import cached_property
from typing import NoReturn, Protocol, Self

from greengrader import config
from greengrader.config import Settings
from greengrader.daemon import Stop
from greengrader.db import Store

MAX_ID = 2**63 - 1  # Postgres's bigint
ALL = 1_000_000  # rows of what is few: workers, assignments


class Commands(Protocol):
    """Where a module adds its subcommands: what argparse's add_subparsers returns."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser: ...


class Desk:
    """Settings and database are reached for only by the commands that need them; a context manager."""

    def __init__(self, options: argparse.Namespace, stop: Stop) -> None:
        self.options, self.stop = options, stop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "store" in self.__dict__:
            self.store.close()

    @cached_property
    def settings(self) -> Settings:
        return config.load()

    @cached_property
    def store(self) -> Store:
        return Store.connect(self.settings.required("database_url"), application="greengrader")

    def usage(self, fault: str) -> NoReturn:
        """Ends with the command's usage and exit code 2."""
        parser: argparse.ArgumentParser = self.options.parser
        parser.error(fault)


def declare(
    commands: Commands, name: str, run: Callable[[Desk], int], help: str, description: str = ""
) -> argparse.ArgumentParser:
    """The parser of a subcommand that `run` answers with an exit code."""
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}. {description}")
    parser.set_defaults(run=run, parser=parser)
    return parser


def identifier(text: str) -> int:
    """An argument that is an id of Gradescope's or of the database."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= MAX_ID:
        raise argparse.ArgumentTypeError(f"{text!r} is no id: a whole number is expected")
    return int(text)


def add_choice_of_submissions(parser: argparse.ArgumentParser) -> None:
    """SUBMISSION or --assignment ID: exactly one of them."""
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("submission", nargs="?", type=identifier, metavar="SUBMISSION", help="Gradescope's id of it")
    choice.add_argument("--assignment", type=identifier, metavar="ID", help="all submissions of the assignment")
