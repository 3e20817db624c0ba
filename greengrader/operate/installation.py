"""`config` and `schema`: the settings in force, and the database's tables."""

import json
from typing import Any

from greengrader.config import PREFIX, SECRETS, Settings
from greengrader.db import SCHEMA_VERSION, Store
from greengrader.operate.desk import Commands, Desk, declare
from greengrader.operate.tables import printable

EXAMPLE_HEAD = """\
# GreenGrader's settings with their defaults. Copy this file to .env, remove the # before what shall differ.
# A variable of the environment goes before .env. Made by `python3 -m greengrader config --example`.
"""


def add_commands(commands: Commands) -> None:
    parser = declare(commands, "config", show_settings, "print the settings in force, secrets masked")
    parser.add_argument("--example", action="store_true", help="print .env.example: every setting with its default")
    declare(
        commands, "schema", apply_schema, "create or renew tables, functions and views in the database",
        "Applies schema.sql; no harm when it was applied before. Rows stay. Another version is refused.",
    )  # fmt: skip


def show_settings(desk: Desk) -> int:
    if desk.options.example:
        print(example(), end="")
        return 0
    for key, value in desk.settings.masked().items():
        print(f"{key}={printable(spelled(value))}")
    return 0


def example() -> str:
    """The text of .env.example: a paragraph for each setting, commented out, with its default."""
    defaults = Settings().model_dump(mode="json")
    paragraphs = [EXAMPLE_HEAD]
    for name, field in Settings.model_fields.items():
        key = f"{PREFIX}{name.upper()}"
        secret = f"# Or the name of a file that holds it: {key}_FILE\n" if name in SECRETS else ""
        # what the machine decides has no default to be printed
        default = "" if field.default_factory else spelled(defaults[name])
        paragraphs.append(f"# {field.description}\n{secret}#{key}={default}\n")
    return "\n".join(paragraphs)


def spelled(value: Any) -> str:
    """A setting's value as it is written in .env."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.15g}"
        case dict() | list():
            return json.dumps(value)
    return str(value)


def apply_schema(desk: Desk) -> int:
    with Store.connect(desk.settings.required("database_url"), application="greengrader", check_schema=False) as store:
        before = store.schema_version()
        store.apply_schema()
    if before is None:
        print(f"schema version {SCHEMA_VERSION} is in the database now, which had none")
    else:
        print(f"the database held schema version {before} already; its functions and views were renewed")
    return 0
