"""What only a fresh machine or an operator runs, held against what it speaks of."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))


def test_make_alone_prints_the_commands() -> None:
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = {line.split()[1] for line in printed.splitlines()}
    assert named >= {"run", "up", "down", "test", "lint", "bench"}


def test_ci_runs_the_readmes_test_command() -> None:
    commands = (ROOT / "README.md").read_text().split("## Two commands")[1].split("```")[1]
    test_command = next(line for line in commands.splitlines() if "test" in line).split("  ")[0].strip()
    assert test_command in [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]


@pytest.mark.parametrize(
    "script", ["deploy/install.sh", "deploy/install-cluster-tests.sh", "deploy/base-image.sh", ".ci/run", "pod.sh"]
)
def test_scripts_parse_and_are_executable(script: str) -> None:
    path = ROOT / script
    shell = path.read_text().partition("\n")[0].rpartition("/")[2].removeprefix("env ")
    assert subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False).stderr == ""
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_start_a_script_that_exists(unit: Path) -> None:
    started = re.findall(r"^ExecStart=/opt/greengrader/.venv/bin/python (\S+)", unit.read_text(), re.MULTILINE)
    assert [(ROOT / script).is_file() for script in started] == [True]


def test_each_daemon_has_a_unit() -> None:
    named = {unit.stem.removeprefix("greengrader-") for unit in UNITS}
    assert named == {"ingest", "dispatcher", "scheduler", "receiver", "execute"}


def test_no_file_of_deploy_names_a_registry() -> None:
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            hosts = re.findall(r"https?://[a-z0-9.-]+\.[a-z]{2,}", path.read_text())
            assert hosts == [], path
