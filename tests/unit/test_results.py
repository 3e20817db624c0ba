"""results.json by Gradescope's rules: a test for each row of the reference's table (section 2), named after the row."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greengrader.results import (
    MAX_DEPTH,
    MAX_OUTPUT_CHARS,
    MAX_RESULTS_BYTES,
    MAX_TESTS,
    MAX_VALUES,
    Grade,
    Outcome,
    Parity,
    cap_text,
    grade,
    parity,
    passed,
    reference_score,
)

TIMEOUT_S = 600.0


def graded(
    raw: bytes | str | dict[str, Any] | None,
    *,
    timed_out: bool = False,
    oom_killed: bool = False,
    problem: str | None = None,
) -> Grade:
    if isinstance(raw, dict):
        raw = json.dumps(raw)
    if isinstance(raw, str):
        raw = raw.encode()
    return grade(raw, timed_out=timed_out, oom_killed=oom_killed, timeout_s=TIMEOUT_S, problem=problem)


def refusal(raw: bytes | str | dict[str, Any]) -> str:
    """The problem of a results.json that has to be invalid."""
    invalid = graded(raw)
    assert (invalid.outcome, invalid.score, invalid.max_score) == (Outcome.invalid_results, 0.0, None)
    assert invalid.problem is not None
    assert invalid.results == {"score": 0.0, "output": invalid.problem}
    assert invalid.raw is not None
    return invalid.problem


# --- the rows of the table, from top to bottom


def test_valid_results_are_used_whatever_the_exit_status() -> None:
    """grade() is not even told the exit status; nor does a kill for memory spoil valid results."""
    for oom_killed in (False, True):
        used = graded({"score": 7.5}, oom_killed=oom_killed)
        assert (used.outcome, used.score, used.problem, used.raw) == (Outcome.completed, 7.5, None, None)


@pytest.mark.parametrize("raw", [None, "", '{"score": 10}', "{"])
def test_timeout_scores_0_whatever_results_json_holds(raw: str | None) -> None:
    late = graded(raw, timed_out=True, oom_killed=True, problem="a symbolic link")
    assert (late.outcome, late.score) == (Outcome.timed_out, 0.0)
    assert late.problem == "The submission timed out: it ran for longer than 600 seconds."
    assert late.results == {"score": 0.0, "output": late.problem}


def test_no_results_json() -> None:
    missing = graded(None)
    assert (missing.outcome, missing.score, missing.raw) == (Outcome.no_results, 0.0, None)
    assert missing.problem == "The autograder ended without writing results/results.json."


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{'score': 1}", "not valid JSON"),
        (b'\xef\xbb\xbf{"score": 1}', "not valid JSON"),
        (b'hello from main\n{"score": 1}', "was something printed into it?"),
        (b'{"score": 1}\nhello from atexit\n', "Extra data, line 2, column 1"),
        (b'{"score": 1', "not valid JSON"),
    ],
    ids=["empty", "blank", "not JSON", "BOM", "stdout before", "stdout after", "cut off"],
)
def test_invalid_json_scores_0_and_the_raw_text_is_kept(raw: bytes, reason: str) -> None:
    assert reason in refusal(raw)
    assert graded(raw).raw == raw.decode()


def test_kept_raw_text_is_capped() -> None:
    raw = graded(b"x" * 3 * MAX_OUTPUT_CHARS).raw
    assert raw is not None
    assert len(raw) == MAX_OUTPUT_CHARS


def test_invalid_utf8_and_nul_bytes_are_replaced_and_still_parsed() -> None:
    replaced = graded(b'{"score": 1, "output": "caf\xe9 \x00 end"}')
    assert replaced.outcome is Outcome.completed
    assert replaced.results["output"] == "caf\ufffd \ufffd end"


def test_nul_and_lone_surrogates_spelled_as_escapes_are_replaced() -> None:
    replaced = graded(r'{"score": 1, "a\u0000b": ["\ud800", {"\udfff": "\u0000"}], "fine": "\ud83d\ude00"}')
    expected = {"score": 1, "a\ufffdb": ["\ufffd", {"\ufffd": "\ufffd"}], "fine": "\N{GRINNING FACE}"}
    assert replaced.results == expected


@pytest.mark.parametrize("raw", ["[1]", '"text"', "3", "null", "true"])
def test_top_level_not_an_object(raw: str) -> None:
    assert "does not hold a JSON object" in refusal(raw)


@pytest.mark.parametrize("output", [1, 1.5, True, ["a"], {"a": 1}])
def test_output_not_a_string(output: object) -> None:
    assert "output in results.json is not a string" in refusal({"score": 1, "output": output})
    assert "output of test 2" in refusal({"tests": [{"score": 1}, {"score": 1, "output": output}]})


def test_output_null_is_no_output() -> None:
    assert graded({"output": None, "tests": [{"score": 1, "output": None}]}).score == 1.0


@pytest.mark.parametrize("tests", [{"a": 1}, "text", 5, [1], [None], [{"score": 1}, "text"]])
def test_tests_not_a_list_of_objects(tests: object) -> None:
    assert "`tests` in results.json is not a list of objects" in refusal({"score": 1, "tests": tests})


@pytest.mark.parametrize("tests", [None, []])
def test_no_tests_at_all(tests: object) -> None:
    assert graded({"score": 1, "tests": tests}).score == 1.0


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_nan_and_infinity(literal: str) -> None:
    assert literal in refusal(f'{{"score": {literal}}}')
    assert literal in refusal(f'{{"score": 1, "extra_data": {{"deep": [{literal}]}}}}')


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-Infinity", "1e999"])
def test_nan_and_infinity_as_strings(text: str) -> None:
    assert "not a number" in refusal({"score": text})


def test_sum_of_scores_beyond_a_double() -> None:
    assert "too large" in refusal({"tests": [{"score": 1.5e308}, {"score": 1.5e308}]})


def test_output_over_100_000_characters_is_shortened_to_head_and_tail() -> None:
    output = "head" + "x" * MAX_OUTPUT_CHARS + "tail"
    shortened = graded({"score": 1, "output": output, "tests": [{"score": 1, "output": output}]}).results
    for text in (shortened["output"], shortened["tests"][0]["output"]):
        assert len(text) == MAX_OUTPUT_CHARS
        assert text.startswith("headxxx")
        assert text.endswith("xxxtail")
        assert "[... 100,008 characters, shortened ...]" in text


def test_output_of_exactly_100_000_characters_is_left_alone() -> None:
    output = "\N{SNOWMAN}" * MAX_OUTPUT_CHARS
    assert graded({"score": 1, "output": output}).results["output"] == output


def test_unknown_keys_are_kept() -> None:
    written = {"score": 1, "extra_data": {"a": [1, None]}, "my_key": "x", "tests": [{"score": 1, "hint": "y"}]}
    assert graded(written).results == written


def test_duplicate_keys_last_wins() -> None:
    assert graded('{"score": 1, "score": 2}').score == 2.0


@pytest.mark.parametrize("score", [-3, 120, 0, -0.5])
def test_score_above_max_or_negative_is_not_clamped(score: float) -> None:
    over = graded({"tests": [{"score": score, "max_score": 100}]})
    assert (over.score, over.max_score) == (score, 100.0)


def test_numbers_as_strings_are_coerced() -> None:
    """gradescope-utils writes execution_time as a string in every run."""
    written = {
        "score": " 4.5 ",
        "execution_time": "0.05",
        "tests": [{"score": "2", "max_score": "1e1", "number": "1.1"}],
    }
    coerced = graded(written)
    assert (coerced.score, coerced.max_score) == (4.5, 10.0)
    assert coerced.results["execution_time"] == 0.05
    assert coerced.results["tests"] == [{"score": 2.0, "max_score": 10.0, "number": "1.1"}]


@pytest.mark.parametrize(
    "value", ["", "ten", "1,5", "1_000", "0x10", "10 points", "\u0664", True, False, [1], {"a": 1}]
)
@pytest.mark.parametrize("key", ["score", "execution_time"])
def test_other_strings_and_types_are_no_numbers(key: str, value: object) -> None:
    assert f"{key} in results.json is" in refusal({"score": 1, key: value})


def test_other_strings_are_no_numbers_in_a_test_either() -> None:
    assert "max_score of test 1" in refusal({"tests": [{"score": 1, "max_score": "ten"}]})
    assert 'score of test 2 in results.json is "x", not a number' in refusal({"tests": [{"score": 1}, {"score": "x"}]})


def test_leaderboard_values_may_be_strings_or_null_and_are_stored_as_they_are() -> None:
    board = [{"name": "Time", "value": "12.5"}, {"name": "Bugs", "value": None, "order": "asc"}]
    assert graded({"score": 1, "leaderboard": board}).results["leaderboard"] == board


def test_top_level_score_overrides_the_sum() -> None:
    overridden = graded({"score": 3, "tests": [{"score": 10, "max_score": 10}, {"score": 1, "max_score": 5}]})
    assert (overridden.score, overridden.max_score) == (3.0, 15.0)


@pytest.mark.parametrize("absent", [{}, {"score": None}])
def test_without_top_level_score_the_tests_are_summed(absent: dict[str, None]) -> None:
    tests = [{"score": 10}, {"status": "passed"}, {"score": None}, {"score": 1.5}]
    assert graded({**absent, "tests": tests}).score == 11.5


@pytest.mark.parametrize("tests", [None, [], [{}], [{"status": "passed"}], [{"max_score": 3}]])
def test_neither_score_nor_scored_tests(tests: object) -> None:
    assert "neither a score nor a test with one" in refusal({"tests": tests})


def test_a_test_may_have_only_status() -> None:
    only_status = graded({"score": 1, "tests": [{"status": "failed"}]})
    assert (only_status.score, only_status.max_score) == (1.0, None)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ({"status": "passed", "score": 0, "max_score": 5}, True),
        ({"status": "failed", "score": 5, "max_score": 5}, False),
        ({"score": 5, "max_score": 5.0}, True),
        ({"score": 4, "max_score": 5}, False),
        ({"status": "odd", "score": 5, "max_score": 5}, True),
        ({"score": 5}, None),
        ({"max_score": 5}, None),
        ({}, None),
    ],
)
def test_status_is_explicit_else_score_equals_max_score(test: dict[str, Any], expected: bool | None) -> None:
    assert passed(test) is expected


def test_visibility_and_formats_are_stored_as_they_are() -> None:
    written = {
        "score": 1,
        "visibility": "after_published",
        "stdout_visibility": "hidden",
        "output_format": "simple_format",
        "test_output_format": "ansi",
        "test_name_format": "html",
        "tests": [{"score": 1, "visibility": "visible", "output": "<b>&amp;</b>\x1b[1m", "output_format": "md"}],
    }
    assert graded(written).results == written


# --- what the sandbox tells


def test_killed_for_memory_without_results() -> None:
    killed = graded(None, oom_killed=True)
    assert (killed.outcome, killed.score) == (Outcome.out_of_memory, 0.0)
    assert killed.problem == "The run used more memory than it may and was killed."


def test_killed_for_memory_with_half_a_results_json() -> None:
    killed = graded('{"score": 1, "te', oom_killed=True)
    assert (killed.outcome, killed.score, killed.raw) == (Outcome.out_of_memory, 0.0, '{"score": 1, "te')
    assert "was killed; results.json is not valid JSON" in (killed.problem or "")


def test_problem_found_by_the_sandbox_makes_the_results_invalid() -> None:
    linked = graded(None, problem="results.json is a symbolic link to \0 /etc/passwd")
    assert (linked.outcome, linked.score) == (Outcome.invalid_results, 0.0)
    assert linked.problem == "results.json is a symbolic link to \ufffd /etc/passwd"


# --- limits


def test_results_json_over_16_mib() -> None:
    too_large = b'{"score": 1}' + b" " * MAX_RESULTS_BYTES
    assert re.search(r"16,777,2\d\d bytes, more than 16,777,216", refusal(too_large))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting(opening: str) -> None:
    closing = {"[": "]"}.get(opening, "}")
    deepest = opening * (MAX_DEPTH - 1) + "1" + closing * (MAX_DEPTH - 1)
    assert graded(f'{{"score": 1, "extra_data": {deepest}}}').outcome is Outcome.completed
    assert "nested more than 50" in refusal(f'{{"score": 1, "extra_data": {opening}{deepest}{closing}}}')
    assert "nested more than 50" in refusal(opening * 200_000)


def test_brackets_within_strings_are_no_nesting() -> None:
    assert graded({"score": 1, "output": '\\"[{' * 100}).outcome is Outcome.completed


def test_more_values_than_memory_should_hold() -> None:
    assert "more than 500,000 values" in refusal('{"a":[' + "[]," * MAX_VALUES)


def test_more_tests_than_anybody_reads() -> None:
    assert graded({"tests": [{"score": 1}] * MAX_TESTS}).score == MAX_TESTS
    assert "10,001 tests" in refusal({"tests": [{"score": 1}] * (MAX_TESTS + 1)})


def test_huge_integers() -> None:
    assert graded('{"score": ' + "9" * 308 + "}").score == 1e308
    assert "more than 308 digits" in refusal('{"score": 1, "extra_data": -' + "9" * 309 + "}")
    assert "more than 308 digits" in refusal('{"score": ' + "9" * 1_000_000 + "}")


# --- text


def test_cap_text_keeps_head_and_tail() -> None:
    assert cap_text("a" * 50 + "b" * 50, 100) == "a" * 50 + "b" * 50
    shortened = cap_text("a" * 500 + "b" * 500, 100)
    assert len(shortened) == 100
    assert re.fullmatch(r"a+\n\[\.\.\. 1,000 characters, shortened \.\.\.\]\nb+", shortened)


@given(st.text(), st.integers(0, 120))
def test_cap_text_never_exceeds_its_limit(text: str, limit: int) -> None:
    assert len(cap_text(text, limit)) <= limit


# --- parity


@pytest.mark.parametrize(
    ("score", "reference", "expected"),
    [
        (10.0, 10.0, Parity.match),
        (0.1 + 0.2, 0.3, Parity.match),
        (1e9, 1e9 + 1, Parity.match),
        (10.0, 9.999, Parity.differs),
        (0.0, 10.0, Parity.differs),
        (None, 10.0, Parity.differs),
        (10.0, None, Parity.no_reference),
        (None, None, Parity.no_reference),
    ],
)
def test_parity(score: float | None, reference: float | None, expected: Parity) -> None:
    assert parity(score, reference) is expected


def test_reference_score_is_gradescopes() -> None:
    assert reference_score(None) is None
    assert reference_score(b'{"tests": [{"score": "2"}, {"score": 3}]}') == 5.0
    assert reference_score(b"not JSON") == 0.0


# --- whatever a program may have left behind


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)
numbers = st.none() | st.integers() | st.floats() | st.text("0123456789.eE+- _naif", max_size=6) | json_values
test_results = st.fixed_dictionaries({}, optional={"score": numbers, "max_score": numbers, "output": json_values})
plausible = st.fixed_dictionaries(
    {},
    optional={
        "score": numbers,
        "execution_time": numbers,
        "output": st.text(st.characters()),
        "tests": st.lists(test_results, max_size=4) | json_values,
        "leaderboard": json_values,
        "\0key": json_values,
    },
)


def strings_of(value: object) -> list[str]:
    """Every string within `value`, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in strings_of(item)]
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in strings_of(part)]
    return []


def assert_storable(result: Grade) -> None:
    """What Postgres's text, jsonb and double precision take: no NUL, valid UTF-8, finite numbers."""
    assert json.loads(json.dumps(result.results, allow_nan=False)) == result.results
    for text in strings_of([result.results, result.problem, result.raw]):
        assert "\0" not in text
        assert text.encode().decode() == text
    assert json.dumps([result.score, result.max_score], allow_nan=False)
    assert (result.problem is None) == (result.outcome is Outcome.completed)
    assert result.outcome is Outcome.completed or result.score == 0.0


@given(raw=st.binary() | st.text().map(str.encode) | json_values.map(lambda value: json.dumps(value).encode()))
@example(raw=rb'{"score": 1, "\ud800": "\udc00"}')
@example(raw=b"[" * 2000)
@example(raw=b'{"score": "' + b"1" * 5000 + b'"}')
@example(raw=b"-" + b"1" * 5000)
@example(raw=b'"\\')
def test_any_bytes_make_a_storable_grade(raw: bytes) -> None:
    assert_storable(graded(raw))


@given(written=plausible, oom_killed=st.booleans())
def test_anything_like_results_makes_a_storable_grade(written: dict[str, Any], oom_killed: bool) -> None:
    result = graded(written, oom_killed=oom_killed)
    assert_storable(result)
    assert reference_score(json.dumps(written).encode()) == result.score


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=1, max_size=20))
def test_scores_are_summed_and_valid_results_are_left_as_they_are(pairs: list[tuple[float, float]]) -> None:
    written = {"tests": [{"score": score, "max_score": maximum} for score, maximum in pairs]}
    result = graded(written)
    assert result.score == pytest.approx(sum(score for score, _ in pairs), abs=1e-6)
    assert result.max_score == pytest.approx(sum(maximum for _, maximum in pairs))
    assert result.results == written
