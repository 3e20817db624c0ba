"""`results`: results.json of a submission, and the results of an assignment."""

import csv
import json

import pytest

from greengrader.daemon import Stop
from greengrader.db import Store
from greengrader.operate import results
from tests import rows
from tests.operate.conftest import Answer, Command


def table_of(answer: Answer) -> list[dict[str, str]]:
    assert answer.code == 0
    return list(csv.DictReader(answer.lines))


def test_a_submission_is_its_results_json(greengrader: Command, store: Store) -> None:
    document = {"score": 8.0, "tests": [{"name": "ünï", "output": "a\nb"}]}
    rows.graded(store, 1001, results=document)
    answer = greengrader("results", "1001")
    assert json.loads(answer.out) == document
    assert "ünï" in answer.out and len(answer.lines) > 5


def test_a_submission_without_a_result_is_code_1(greengrader: Command, store: Store) -> None:
    rows.running(store, 1001)
    answer = greengrader("results", "1001")
    assert (answer.code, answer.out) == (1, "")
    assert "submission 1001 is running: it has no result" in answer.err


def test_during_a_rerun_the_last_result_is_given(greengrader: Command, store: Store) -> None:
    run = rows.graded(store, 1001)
    newest = store.newest_run(1001)
    assert newest is not None
    store.rerun_submission(newest.submission_key)
    answer = greengrader("results", "1001")
    assert json.loads(answer.out)["score"] == 8.0
    assert f"run {run.run_id}" in answer.err and "is received" in answer.err


def test_csv_has_a_row_for_each_submission_with_units_in_the_names(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001, parity="differs", score=7.5)
    rows.abandoned(store, 1002)
    rows.graded(store, 1003, assignment_id=8)
    first, second = table_of(greengrader("results", "--assignment", "7", "--csv"))
    assert tuple(first) == results.COLUMNS
    expected = {
        "submission_id": "1001", "assignment_id": "7", "state": "graded", "outcome": "completed", "score": "7.5",
        "max_score": "10.0", "gradescope_score": "8.0", "parity": "differs", "wall_s": "2.0", "cpu_s": "0.5",
        "peak_memory_bytes": "20971520", "energy_kwh": "1.5e-06", "carbon_emission_g": "0.0006", "region": "home",
        "worker": "worker-1", "submitted_at": "2026-03-01T10:00:00Z",
    }  # fmt: skip
    assert {key: first[key] for key in expected} == expected
    assert (second["submission_id"], second["state"], second["outcome"], second["score"]) == (
        "1002",
        "abandoned",
        "",
        "",
    )


def test_csv_of_one_submission_is_one_row(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    (row,) = table_of(greengrader("results", "1001", "--csv"))
    assert row["submission_id"] == "1001"


def test_the_newest_result_counts(greengrader: Command, store: Store) -> None:
    """A re-run's, and that of a payload which came later; the state is that of the newest run of all."""
    rows.graded(store, 1001, score=1.0)
    newest = store.newest_run(1001)
    assert newest is not None and store.rerun_submission(newest.submission_key) is not None
    again = store.newest_run(1001)
    assert again is not None
    rows.finish(store, rows.place(store, rows.prepare(store, again)), score=2.0)
    assert table_of(greengrader("results", "1001", "--csv"))[0]["score"] == "2.0"

    later = rows.received(store, 1001, payload=b"later", gradescope_score=9.0)
    (row,) = table_of(greengrader("results", "1001", "--csv"))
    assert (row["score"], row["gradescope_score"], row["state"]) == ("2.0", "8.0", "received")
    rows.finish(store, rows.place(store, rows.prepare(store, later)), score=3.0)
    (row,) = table_of(greengrader("results", "1001", "--csv"))
    assert (row["score"], row["gradescope_score"], row["state"]) == ("3.0", "9.0", "graded")


def test_json_lines_carry_the_document(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    rows.received(store, 1002)
    first, second = greengrader("results", "--assignment", "7", "--json").json_lines
    assert first["results"] == {"score": 8.0, "output": "well done"} and first["energy_kwh"] == 1.5e-6
    assert (second["state"], second["results"]) == ("received", None)


def test_no_form_is_a_table_for_people(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    rows.received(store, 1002)
    answer = greengrader("results", "--assignment", "7")
    head, first, second = answer.lines
    assert tuple(head.split()) == results.SHOWN
    assert "1.5 mWh" in first and "600 µg CO2e" in first
    assert second.split()[:3] == ["1002", "received", "-"]


@pytest.mark.parametrize("form", ["--csv", "--json", None])
def test_nobody_is_named_unless_asked(greengrader: Command, store: Store, form: str | None) -> None:
    rows.graded(store, 1001)
    words = ["results", "--assignment", "7", *([form] if form else [])]
    plain, named = greengrader(*words), greengrader(*words, "--identities")
    for identity in ("Ada", "ada@example.edu", "student"):
        assert identity not in plain.out and identity in named.out


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_meets_no_formula(greengrader: Command, store: Store, start: str) -> None:
    rows.finish(store, rows.running(store, 1001, student_names=[f"{start}HYPERLINK(1)", "x"]), score=-1.0)
    (row,) = table_of(greengrader("results", "1001", "--csv", "--identities"))
    assert row["student_names"].startswith("'")
    assert row["score"] == "-1.0", "a number is none"


def test_an_assignment_is_read_in_portions(greengrader: Command, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for submission_id in range(1, 8):
        rows.received(store, submission_id)
    whole = Store.table
    asked = []

    def three_at_most(store: Store, view: str, where: str = "true", *values: object, **options: object) -> object:
        asked.append(view)
        return whole(store, view, where, *values, **{**options, "limit": 3})  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "table", three_at_most)
    found = table_of(greengrader("results", "--assignment", "7", "--csv"))
    assert [row["submission_id"] for row in found] == ["1", "2", "3", "4", "5", "6", "7"]
    assert len(asked) == 4


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_half_of_the_results_are_not_taken_for_all(greengrader: Command, store: Store, form: str) -> None:
    rows.received(store, 1001)
    stop = Stop()
    stop.set()
    answer = greengrader("results", "--assignment", "7", form, stop=stop)
    assert answer.code == 1 and "not complete" in answer.err


@pytest.mark.parametrize("words", [["1001"], ["--assignment", "7"], ["--assignment", "7", "--csv"]])
def test_what_is_not_here_is_code_1(greengrader: Command, words: list[str]) -> None:
    answer = greengrader("results", *words)
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (1, "", 1)


@pytest.mark.parametrize("words", [[], ["1001", "--assignment", "7"], ["1001", "--csv", "--json"]])
def test_what_makes_no_sense_is_a_usage_error(greengrader: Command, words: list[str]) -> None:
    assert greengrader("results", *words).code == 2
