"""The operator's command, called as a shell would call it, on a database of the test's own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from greengrader.__main__ import main
from greengrader.daemon import Stop


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def words(self) -> str:
        """Its output with single blanks, for what is aligned."""
        return " ".join(self.out.split())


Command = Callable[..., Answer]


@pytest.fixture
def greengrader(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`greengrader("status", "1001")` runs the command; `stop=` is the signal that it listens to."""
    monkeypatch.setenv("GREENGRADER_DATABASE_URL", database)
    monkeypatch.chdir(tmp_path)  # away from a .env of the checkout

    def run(*words: str, stop: Stop | None = None) -> Answer:
        capsys.readouterr()
        try:
            code = main(list(words), Stop() if stop is None else stop)
        except SystemExit as usage:
            code = int(usage.code or 0)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run
