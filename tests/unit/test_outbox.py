"""Finished results on disk, until the broker has them."""

import os
from pathlib import Path

import pytest

from greengrader.outbox import Outbox


def test_what_was_put_waits_until_it_is_removed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.put(7, 1, b"first")
    outbox.put(7, 2, b"second")
    outbox.remove(7, 1)
    outbox.remove(7, 1)
    assert list(Outbox(tmp_path / "outbox").waiting()) == [(7, 2, b"second")], "in the next life too"
    outbox.remove(7, 2)
    assert list(outbox.waiting()) == []


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for age, run_id in enumerate((30, 4, 100)):
        outbox.put(run_id, 1, b"")
        os.utime(tmp_path / f"{run_id}-1", (age, age))
    assert [run_id for run_id, _, _ in outbox.waiting()] == [30, 4, 100]


def test_the_same_result_again_is_one_message(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(7, 1, b"old")
    outbox.put(7, 1, b"new")
    assert list(outbox.waiting()) == [(7, 1, b"new")]


def test_what_a_crash_cut_off_is_never_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path)

    def power_cut(_descriptor: int) -> None:
        raise OSError("no power")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="no power"):
        outbox.put(7, 1, b"half")
    assert list(Outbox(tmp_path).waiting()) == []
    assert list(tmp_path.iterdir()) == []


def test_results_are_nobody_elses_business(tmp_path: Path) -> None:
    Outbox(tmp_path / "outbox")
    assert (tmp_path / "outbox").stat().st_mode & 0o777 == 0o700
