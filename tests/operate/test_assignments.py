"""`assignment show` and `assignment set`, with the staff's autograder zip."""

from pathlib import Path
from typing import Any

import pytest

from greengrader.db import Store
from tests import rows
from tests.builders import build_autograder_zip
from tests.operate.conftest import Command

MEBIBYTE = 1024 * 1024


def assignment(store: Store, assignment_id: int = 7) -> dict[str, Any]:
    return store.table("assignment_status", "assignment_id = %s", assignment_id)[0]


@pytest.fixture
def autograder_zip(tmp_path: Path) -> str:
    (tmp_path / "autograder.zip").write_bytes(build_autograder_zip())
    return str(tmp_path / "autograder.zip")


def test_without_assignments_show_says_where_they_come_from(greengrader: Command) -> None:
    assert "come with their first submission" in greengrader("assignment", "show").out


def test_show_lists_assignments_with_their_counts(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001, parity="differs")
    rows.graded(store, 1002)
    rows.received(store, 1003)
    rows.abandoned(store, 1004)
    rows.received(store, 1005, assignment_id=8)
    head, first, second = greengrader("assignment", "show").lines
    assert head.split()[:6] == ["assignment_id", "submissions", "open", "graded", "abandoned", "differs"]
    assert first.split()[:8] == ["7", "4", "1", "2", "1", "1", "docker", "derived"] and first.endswith("Recursion")
    assert second.split()[:6] == ["8", "1", "1", "0", "0", "0"]
    assert [row["submissions"] for row in greengrader("assignment", "show", "--json").json_lines] == [4, 1]


def test_show_of_one_tells_what_is_decided(greengrader: Command, store: Store) -> None:
    rows.received(store, 1001)
    words = greengrader("assignment", "show", "7").words
    for fact in ("title Recursion", "here 1 submissions, 1 open", "backend docker", "cpus default", "memory default",
                 "network default", "deadline none", "autograder derived from each payload"):  # fmt: skip
        assert fact in words, fact


def test_every_decision_can_be_made(greengrader: Command, store: Store) -> None:
    answer = greengrader(
        "assignment", "set", "7", "--backend", "kubernetes", "--base-image", "debian:12", "--cpus", "2",
        "--memory", "2G", "--timeout", "90", "--network", "yes", "--priority", "-3", "--max-delay", "3600",
        "--deadline", "2026-03-01T12:00+01:00",
    )  # fmt: skip
    assert answer.code == 0
    for fact in ("backend kubernetes", "base image debian:12", "cpus 2", "memory 2 GiB", "timeout 90 s", "network yes",
                 "priority -3", "max delay 60 min 0 s", "deadline 2026-03-01T11:00:00Z", "nothing yet"):  # fmt: skip
        assert fact in answer.words, fact
    row = assignment(store)
    decided = {"backend": "kubernetes", "base_image": "debian:12", "cpus": 2.0, "memory_bytes": 2048 * MEBIBYTE,
               "timeout_s": 90.0, "network": True, "priority": -3, "max_delay_s": 3600.0}  # fmt: skip
    assert {key: row[key] for key in decided} == decided


def test_every_decision_can_be_taken_back(greengrader: Command, store: Store) -> None:
    rows.received(store, 1001)
    before = assignment(store)
    options = ["--backend", "--base-image", "--cpus", "--memory", "--timeout", "--network", "--priority", "--max-delay",
               "--deadline", "--autograder"]  # fmt: skip
    greengrader("assignment", "set", "7", "--backend", "kubernetes", "--cpus", "2", "--priority", "9",
                "--max-delay", "1", "--network", "no", "--deadline", "2026-03-01T12:00Z")  # fmt: skip
    assert assignment(store) != before
    for word in ("default", "none"):
        assert greengrader("assignment", "set", "7", *(x for option in options for x in (option, word))).code == 0
        assert assignment(store) == before


def test_what_is_not_named_stays(greengrader: Command, store: Store) -> None:
    greengrader("assignment", "set", "7", "--cpus", "2", "--network", "no")
    greengrader("assignment", "set", "7", "--timeout", "60")
    row = assignment(store)
    assert (row["cpus"], row["network"], row["timeout_s"]) == (2.0, False, 60.0)


def test_queued_runs_follow(greengrader: Command, store: Store) -> None:
    rows.received(store, 1001)
    greengrader("assignment", "set", "7", "--priority", "5")
    assert store.table("runs")[0]["priority"] == 5


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512", 512), ("768M", 768), ("1.5G", 1536), ("2GiB", 2048), ("64 MB", 64), ("16", 16)],
)
def test_memory_is_mib_unless_it_says_otherwise(greengrader: Command, store: Store, text: str, size_bytes: int) -> None:
    assert greengrader("assignment", "set", "7", "--memory", text).code == 0
    assert assignment(store)["memory_bytes"] == size_bytes * MEBIBYTE


@pytest.mark.parametrize(
    "words",
    [["--memory", "15"], ["--memory", "2T"], ["--memory", "-1"], ["--cpus", "0"], ["--cpus", "inf"], ["--cpus", "nan"],
     ["--timeout", "-5"], ["--network", "maybe"], ["--priority", "1.5"], ["--priority", "99999999999"],
     ["--max-delay", "-1"], ["--deadline", "2026-03-01T12:00"], ["--deadline", "soon"], ["--backend", "slurm"],
     ["--base-image", "../x y"], ["--base-image", ""], []],
)  # fmt: skip
def test_what_makes_no_sense_is_a_usage_error(greengrader: Command, store: Store, words: list[str]) -> None:
    answer = greengrader("assignment", "set", "7", *words)
    assert answer.code == 2 and "usage: python3 -m greengrader assignment set" in answer.err
    assert store.table("assignments") == []


def test_show_of_what_is_not_here_is_code_1(greengrader: Command) -> None:
    answer = greengrader("assignment", "show", "7")
    assert answer.code == 1 and "assignment 7 is not here" in answer.err


# ------------------------------------------------------------------------------------------------------ the staff's zip
def test_the_staffs_zip_is_registered(greengrader: Command, store: Store, autograder_zip: str) -> None:
    answer = greengrader("assignment", "set", "7", "--base-image", "debian:12", "--autograder", autograder_zip)
    assert answer.code == 0
    row = assignment(store)
    digest = row["autograder_digest"]
    assert f"autograder staff's, {digest[:12]}, on debian:12" in answer.words
    (autograder,) = store.table("autograders")
    assert (autograder["digest"], autograder["origin"], autograder["base_image"]) == (digest, "staff", "debian:12")
    assert store.autograder_archive(digest).startswith(b"\x1f\x8b")
    assert greengrader("assignment", "show").lines[1].split()[7] == "staff"


def test_the_base_image_of_the_settings_counts_where_none_is_decided(
    greengrader: Command, store: Store, autograder_zip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENGRADER_BASE_IMAGE", "debian:11")
    greengrader("assignment", "set", "7", "--autograder", autograder_zip)
    assert assignment(store)["autograder_base_image"] == "debian:11"


def test_the_base_image_that_was_decided_before_counts(greengrader: Command, store: Store, autograder_zip: str) -> None:
    greengrader("assignment", "set", "7", "--base-image", "debian:12")
    greengrader("assignment", "set", "7", "--autograder", autograder_zip)
    assert assignment(store)["autograder_base_image"] == "debian:12"


def test_another_base_image_needs_the_zip_again(greengrader: Command, store: Store, autograder_zip: str) -> None:
    greengrader("assignment", "set", "7", "--base-image", "debian:12", "--autograder", autograder_zip)
    before = assignment(store)
    answer = greengrader("assignment", "set", "7", "--base-image", "debian:13", "--cpus", "2")
    assert answer.code == 1 and "give its zip again" in answer.err
    assert assignment(store) == before
    assert greengrader("assignment", "set", "7", "--base-image", "debian:12").code == 0, "it is the same one"
    assert greengrader("assignment", "set", "7", "--base-image", "debian:13", "--autograder", autograder_zip).code == 0
    after = assignment(store)
    assert after["autograder_base_image"] == "debian:13"
    assert after["autograder_digest"] != before["autograder_digest"]


def test_none_goes_back_to_what_payloads_hold(greengrader: Command, store: Store, autograder_zip: str) -> None:
    greengrader("assignment", "set", "7", "--autograder", autograder_zip)
    assert greengrader("assignment", "set", "7", "--autograder", "none", "--base-image", "debian:13").code == 0
    row = assignment(store)
    assert (row["autograder_digest"], row["base_image"]) == (None, "debian:13")


def test_what_was_mended_in_the_zip_is_said(greengrader: Command, store: Store, tmp_path: Path) -> None:
    (tmp_path / "crlf.zip").write_bytes(build_autograder_zip({"run_autograder": "#!/bin/sh\r\nexit 0\r\n"}))
    answer = greengrader("assignment", "set", "7", "--autograder", str(tmp_path / "crlf.zip"))
    assert "note: run_autograder had Windows line ends" in answer.out
    assert assignment(store)["autograder_warnings"]


@pytest.mark.parametrize("content", [b"hello", build_autograder_zip({"run_autograder": ""})[:-30], None])
def test_a_file_that_is_no_autograder_changes_nothing(
    greengrader: Command, store: Store, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "bad.zip"
    if content is not None:
        path.write_bytes(content)
    answer = greengrader("assignment", "set", "7", "--autograder", str(path))
    assert answer.code == 1 and str(path) in answer.err and "Traceback" not in answer.err
    assert store.table("assignments") == []
