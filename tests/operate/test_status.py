"""`status`: the table, one submission, its log, and its way live."""

import json
import threading

import pytest

from greengrader.daemon import Stop
from greengrader.db import Store
from greengrader.operate import status
from tests import rows
from tests.operate.conftest import Command

ESCAPES = "\x1b]0;owned\x07\x9b31m\u202e"


def test_an_empty_database_says_so(greengrader: Command) -> None:
    assert (greengrader("status").out, greengrader("status", "--json").out) == ("no submissions\n", "")


def test_the_table_has_the_newest_first_and_is_aligned(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001)
    rows.received(store, 1002)
    answer = greengrader("status")
    head, first, second = answer.lines
    assert head.split() == list(status.COLUMNS)
    assert first.split()[:4] == ["1002", "7", "received", "-"]
    assert second.split()[:6] == ["1001", "7", "graded", "completed", "8", "8"]
    assert "1.5 mWh" in second
    assert head.index("state") == first.index("received") == second.index("graded")


def test_times_are_utc_whatever_the_session_says(
    greengrader: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.received(store)
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    (shown,) = greengrader("status", "--json").json_lines
    assert shown["received_at"].endswith("Z")
    received = shown["received_at"][:19]
    assert f"{received}Z" in greengrader("status").out
    assert f"{received}Z" in greengrader("status", "1001").out
    assert f"    {received[11:]}" in greengrader("status", "1001").out


def test_the_table_can_be_narrowed(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001, assignment_id=7)
    rows.received(store, 1002, assignment_id=7)
    rows.received(store, 1003, assignment_id=8)

    def found(*words: str) -> list[int]:
        return [row["submission_id"] for row in greengrader("status", "--json", *words).json_lines]

    assert found() == [1003, 1002, 1001]
    assert found("--assignment", "7") == [1002, 1001]
    assert found("--state", "received") == [1003, 1002]
    assert found("--assignment", "7", "--state", "received") == [1002]
    assert found("--limit", "1") == [1003]
    assert "--limit" in greengrader("status", "--limit", "1").err


def test_a_long_error_is_cut_in_the_table_and_whole_in_the_details(greengrader: Command, store: Store) -> None:
    reason = "the disk is full, " * 20 + "and that is all"
    rows.abandoned(store, 1001, reason)
    assert "…" in greengrader("status").out and "that is all" not in greengrader("status").out
    assert reason in greengrader("status", "1001").out


def test_the_details_of_a_submission_tell_its_whole_story(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001, warnings=["source/ was derived"])
    words = greengrader("status", "1001").words
    for fact in (
        "submission 1001 of assignment 7", "score 8 of 10", "Gradescope 8 (the same)", "wall time 2 s",
        "CPU time 0.5 s", "peak memory 20 MiB of 768 MiB", "energy 1.5 mWh",
        "emissions 600 µg CO2e (400 gCO2e/kWh, setting",
        "warning source/ was derived", "place worker-1, home", "received", "dispatched", "placed on worker-1",
        "it was free", "running on worker-1", "graded on worker-1", "autograder aaaaaaaaaaaa (derived)",
    ):  # fmt: skip
        assert fact in words, fact


def test_the_details_tell_every_run_and_every_payload(greengrader: Command, store: Store) -> None:
    first = rows.graded(store, 1001, score=8.0)
    again = store.rerun_submission(store.newest_run(1001).submission_key)  # type: ignore[union-attr]
    rows.received(store, 1001, payload=b"another zip")
    answer = greengrader("status", "1001")
    assert f"run {first.run_id}: graded" in answer.out and f"run {again}: received" in answer.out
    assert answer.out.count("submission 1001 of assignment 7") == 2
    (document,) = greengrader("status", "1001", "--json").json_lines
    assert len(document["payloads"]) == 2
    assert [run["state"] for run in document["runs"]] == ["graded", "received", "received"]
    assert document["runs"][0]["result"]["score"] == 8.0
    assert [event["to_state"] for event in document["runs"][0]["events"]][-1] == "graded"


def test_students_are_named_only_when_asked_for(greengrader: Command, store: Store) -> None:
    rows.received(store, 1001)
    for words in (["status", "1001"], ["status", "1001", "--json"], ["status"], ["status", "--json"]):
        assert "Ada" not in greengrader(*words).out and "example.edu" not in greengrader(*words).out
    assert "Ada Lovelace" in greengrader("status", "1001", "--identities").out
    assert "ada@example.edu" in greengrader("status", "1001", "--identities", "--json").out


def test_a_submission_that_is_not_here_is_one_line_and_code_1(greengrader: Command) -> None:
    answer = greengrader("status", "1001")
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (1, "", 1)
    assert "submission 1001 is not here" in answer.err


@pytest.mark.parametrize(
    "words",
    [["--log"], ["--follow"], ["--identities"], ["x"], ["-5"], ["0"], ["9223372036854775808"], ["--limit", "0"],
     ["1001", "--assignment", "7"], ["1001", "--raw"], ["1001", "--log", "--follow"], ["--state", "lost"]],
)  # fmt: skip
def test_what_makes_no_sense_is_a_usage_error(greengrader: Command, words: list[str]) -> None:
    answer = greengrader("status", *words)
    assert (answer.code, answer.out) == (2, "")
    assert "usage: python3 -m greengrader status" in answer.err


# ----------------------------------------------------------------------------------------------------- terminal escapes
def test_nothing_that_a_student_wrote_commands_the_terminal(greengrader: Command, store: Store) -> None:
    rows.finish(
        store,
        rows.running(store, 1001, assignment_title=ESCAPES, student_names=[ESCAPES], sender_ip=ESCAPES,
                     submission_method=ESCAPES, metadata={"x": ESCAPES}),
        problem=ESCAPES, output=f"{ESCAPES}\n", warnings=[ESCAPES], results={"output": ESCAPES}, raw_results=ESCAPES,
        node=ESCAPES, region=ESCAPES,
    )  # fmt: skip
    rows.abandoned(store, 1002, ESCAPES)
    for words in (
        ["status"], ["status", "--json"], ["status", "1001", "--identities"],
        ["status", "1001", "--json", "--identities"],
        ["status", "1001", "--log"], ["status", "1001", "--follow"], ["status", "1002"], ["status", "1002", "--follow"],
        ["results", "1001"], ["results", "1001", "--csv", "--identities"], ["results", "1001", "--json"],
        ["results", "--assignment", "7", "--identities"], ["assignment", "show"], ["assignment", "show", "7"],
    ):  # fmt: skip
        answer = greengrader(*words)
        assert answer.out or answer.err, words
        for character in "\x1b\x07\x9b\u202e":
            assert character not in answer.out + answer.err, words


def test_json_means_the_same_as_what_is_stored(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001, output=ESCAPES + "\n\té")
    (document,) = greengrader("status", "1001", "--json").json_lines
    assert document["runs"][0]["result"]["output"] == ESCAPES + "\n\té"


# ------------------------------------------------------------------------------------------------------------------ log
def test_the_log_is_what_the_autograder_printed(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001, output="one\ttwo\r\n\x1b[31mred\x1b[0m\nlast")
    assert greengrader("status", "1001", "--log").out == "one\ttwo\n\\x1b[31mred\\x1b[0m\nlast\n"
    assert greengrader("status", "1001", "--log", "--raw").out == "one\ttwo\r\n\x1b[31mred\x1b[0m\nlast"


def test_during_a_rerun_the_log_is_that_of_the_last_result(greengrader: Command, store: Store) -> None:
    run = rows.graded(store, 1001, output="first\n")
    newest = store.newest_run(1001)
    assert newest is not None
    store.rerun_submission(newest.submission_key)
    answer = greengrader("status", "1001", "--log")
    assert answer.out == "first\n" and f"this is from run {run.run_id}" in answer.err


def test_of_an_image_that_cannot_be_built_the_log_is_the_build(greengrader: Command, store: Store) -> None:
    run = rows.running(store, 1001)
    store.save_build_log(run.run_id, "E: no such package\n")
    store.fail_run(run.run_id, run.attempt, run.worker, "setup.sh failed", for_good=True, max_attempts=3)
    assert greengrader("status", "1001", "--log").out == "E: no such package\n"


def test_before_anything_was_printed_there_is_no_log(greengrader: Command, store: Store) -> None:
    rows.running(store, 1001)
    answer = greengrader("status", "1001", "--log")
    assert answer.code == 1 and "is running: nothing has been printed yet" in answer.err


# --------------------------------------------------------------------------------------------------------------- follow
def test_following_what_is_graded_shows_its_way_and_its_result(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001, outcome="timed_out", score=0.0, parity="differs", problem="It ran for too long.")
    answer = greengrader("status", "1001", "--follow")
    assert answer.code == 0
    for fact in (
        "result timed_out",
        "problem It ran for too long.",
        "score 0 of 10",
        "Gradescope 8 (differs)",
        "1.5 mWh",
    ):
        assert fact in answer.words


def test_what_could_not_be_measured_is_said_to_be(greengrader: Command, store: Store) -> None:
    unknown = dict.fromkeys(("cpu_s", "peak_memory_bytes", "energy_usage", "carbon_emission", "carbon_source"))
    rows.finish(
        store, rows.running(store, 1001, gradescope_score=None), **unknown, parity="no_reference", max_score=None
    )
    words = greengrader("status", "1001", "--follow").words
    for fact in ("CPU time not measured", "energy not measured", "emissions not measured", "Gradescope not sent along"):
        assert fact in words


def test_following_what_was_given_up_is_code_1(greengrader: Command, store: Store) -> None:
    rows.abandoned(store, 1001, "the disk is full")
    answer = greengrader("status", "1001", "--follow")
    assert answer.code == 1
    assert answer.err == "submission 1001 is abandoned: the disk is full\n"


def test_a_submission_is_followed_from_before_it_arrives(
    greengrader: Command, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `make run` does it: the command is there first."""
    listening, stop = threading.Event(), Stop()
    wait = Store.wait

    def wait_and_tell(store: Store, stop: Stop, timeout_s: float) -> list[tuple[str, str]]:
        listening.set()
        return wait(store, stop, timeout_s)

    def grade() -> None:
        assert listening.wait(20)
        with Store.connect(database) as other:
            rows.graded(other, 1001)

    monkeypatch.setattr(Store, "wait", wait_and_tell)
    grader, guard = threading.Thread(target=grade), threading.Timer(20, stop.set)
    grader.start()
    guard.start()
    answer = greengrader("status", "1001", "--follow", stop=stop)
    grader.join()
    guard.cancel()
    assert answer.code == 0
    assert "submission 1001 is not here yet" in answer.lines[0]
    told = [line.split()[1] for line in answer.lines if line.startswith("    ")]
    assert told == ["received", "dispatched", "placed", "running", "graded"]


def test_what_never_arrives_is_not_waited_for_for_ever(greengrader: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "ARRIVAL_LIMIT_S", 0.2)
    answer = greengrader("status", "1001", "--follow")
    assert answer.code == 1 and "submission 1001 is not here" in answer.err


def test_following_ends_when_asked(greengrader: Command, store: Store) -> None:
    rows.running(store, 1001)
    stop = Stop()
    threading.Timer(0.3, stop.set).start()
    answer = greengrader("status", "1001", "--follow", stop=stop)
    assert answer.code == 1 and answer.err == "submission 1001 is running\n"


def test_json_of_a_submission_is_one_line(greengrader: Command, store: Store) -> None:
    rows.graded(store, 1001, output="a\nb\u2028c")
    answer = greengrader("status", "1001", "--json")
    assert len(answer.lines) == 1
    assert json.loads(answer.out)["submission_id"] == 1001
