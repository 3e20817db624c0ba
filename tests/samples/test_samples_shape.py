"""The samples and their tables are whole, and fork.py hands them over as staff would. Runs no container."""

import io
import json
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from greengrader.results import Outcome
from tests.samples import fork
from tests.samples.fork import official_zip, readme_snippet
from tests.samples.table import cases, samples

every_sample = pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.name)


def test_there_are_eight_kinds_of_autograder() -> None:
    assert len(samples()) >= 8


def test_every_outcome_that_reaches_us_is_in_some_sample() -> None:
    """All but the timeout: on Gradescope it ends run_autograder before the snippet."""
    outcomes = {case.outcome for sample in samples() for case in cases(sample)}
    assert outcomes == set(Outcome) - {Outcome.timed_out}


@every_sample
def test_table_and_submissions_agree(sample: Path) -> None:
    listed = [case.submission for case in cases(sample)]
    assert sorted(listed) == sorted(folder.name for folder in (sample / "submissions").iterdir())
    assert {"full", "partial", "none", "crash"} <= set(listed)


@every_sample
def test_table_is_plausible(sample: Path) -> None:
    score = {case.submission: case.score for case in cases(sample)}
    maximum = json.loads((sample / "expected.json").read_text())["max_score"]
    assert score["full"] >= maximum > score["partial"] > score["none"] == 0
    for case in cases(sample):
        assert case.outcome == Outcome.completed or case.score == 0
        assert case.gradescope_score == (None if case.outcome in ("no_results", "out_of_memory") else case.score)


@every_sample
def test_run_autograder_can_take_the_snippet(sample: Path) -> None:
    """It is a bash script that does not leave before its end."""
    lines = (sample / "autograder/run_autograder").read_bytes().splitlines()
    assert lines[0] in (b"#!/usr/bin/env bash", b"#!/bin/bash")
    assert not [line for line in lines if line.startswith((b"exit", b"set -e", b"exec python"))]


@every_sample
def test_official_zip_is_what_staff_upload(sample: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(official_zip(sample, "echo forked\n"))) as zipped:
        names = set(zipped.namelist())
        script = zipped.read("run_autograder")
    folder = sample / "autograder"
    assert {name for name in names if not name.endswith("/")} >= {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }
    assert script == (folder / "run_autograder").read_bytes() + b"\necho forked\n"


def test_official_zip_follows_links_as_zip_does() -> None:
    sample = next(sample for sample in samples() if sample.name == "c_make")
    assert (sample / "autograder/cases").is_symlink()
    with zipfile.ZipFile(io.BytesIO(official_zip(sample))) as zipped:
        assert zipped.read("cases/1-few.txt") == zipped.read("inputs/1-few.txt") == b"3\n1\n2\n"


def test_official_zip_without_snippet_leaves_run_autograder_alone() -> None:
    sample = samples()[0]
    with zipfile.ZipFile(io.BytesIO(official_zip(sample))) as zipped:
        assert zipped.read("run_autograder") == (sample / "autograder/run_autograder").read_bytes()


README = """
<!-- snippet: plain -->

```bash
mosquitto_pub -h HOST -p PORT -u USER -P PASSWORD -t submissions -f $PASSWORD_FILE
```

<!-- snippet: acknowledged -->
```sh
if true; then
    HOST=broker.example.edu   # the hub's address
    PORT=1883
    USER=submit
    export PASSWORD=
    send "$USER" "$HOST"
fi
```
"""


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "README.md"
    path.write_text(README)
    monkeypatch.setattr(fork, "README", path)
    return path


def test_placeholders_of_a_snippet_are_filled_in(readme: Path) -> None:
    filled = readme_snippet("plain", "127.0.0.1", 1884, "submit", r"a 'b' \1 $c")
    password = r"""'a '"'"'b'"'"' \1 $c'"""
    assert filled == f"mosquitto_pub -h 127.0.0.1 -p 1884 -u submit -P {password} -t submissions -f $PASSWORD_FILE\n"


def test_assignments_of_a_snippet_are_filled_in(readme: Path) -> None:
    filled = readme_snippet("acknowledged", "127.0.0.1", 1884, "staff", "secret")
    assert filled.splitlines() == [
        "if true; then",
        "    HOST=127.0.0.1",
        "    PORT=1884",
        "    USER=staff",
        "    export PASSWORD=secret",
        '    send "$USER" "$HOST"',
        "fi",
    ]


def test_a_snippet_that_is_not_there_or_has_no_place_for_a_setting(readme: Path) -> None:
    with pytest.raises(LookupError, match="<!-- snippet: shiny -->"):
        readme_snippet("shiny", "127.0.0.1", 1884, "submit", "secret")
    readme.write_text(README.replace("PORT", "1883"))
    with pytest.raises(LookupError, match="no place for PORT"):
        readme_snippet("plain", "127.0.0.1", 1884, "submit", "secret")


@pytest.mark.parametrize("name", ["plain", "acknowledged"])
def test_readmes_snippets_are_bash_with_nothing_left_to_fill_in(name: str) -> None:
    filled = readme_snippet(name, "127.0.0.1", 1884, "submit", "secret")
    assert subprocess.run(["bash", "-n"], input=filled, text=True, check=False).returncode == 0
    assert "secret" in filled and "1884" in filled
    assert not re.search(r"(?<![$\w])(HOST|PORT|USER|PASSWORD)(?!=)\b|=\.\.\.", filled)


def test_metadata_is_gradescopes() -> None:
    """Every key that the reference's section 3 names."""
    written = fork._metadata(samples()[0], 7, 8, {"name": "Grace Hopper"})
    documented = {"id", "created_at", "submission_method", "assignment", "users", "previous_submissions"}
    assert set(written) == documented | {"assignment_id"}
    assert set(written["users"][0]) == {"id", "email", "name", "sid", "assignment"}
    assert {"course_id", "title", "due_date", "late_due_date", "release_date", "outline"} <= set(written["assignment"])
    assert {"group_size", "group_submission", "total_points"} <= set(written["assignment"])
    assert (written["id"], written["assignment"]["id"], written["users"][0]["name"]) == (7, 8, "Grace Hopper")
