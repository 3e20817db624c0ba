"""results.json to a checked result, by the rules that Gradescope really applies.

Whatever a student's program or the staff's autograder left behind becomes a `Grade`: never an exception, never anything
that Postgres would refuse. The rules are the table in the reference, section 2; tests/unit/test_results.py has a test
for each of its rows.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

MAX_RESULTS_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 50
MAX_TESTS = 10_000
MAX_VALUES = 500_000
"""16 MiB of `[],[],[],…` would be half a gigabyte of Python objects; 10,000 tests with 20 keys each stay below this."""
MAX_INTEGER_DIGITS = 308
"""The longest integers that are certain to fit a double; longer ones would also be slow to convert."""
MAX_OUTPUT_CHARS = 100_000
PARITY_TOLERANCE = 1e-6

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# A whole string (to the end of the text where it is not closed), or one structural character. Possessive, because
# 16 MiB of escaped quotes must neither pile up states to come back to nor be scanned again from each quote.
_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)
_NUMERIC = re.compile(r"\s*+[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?\s*+", re.ASCII)


class Outcome(StrEnum):
    """How a graded run ended, from the student's point of view."""

    completed = "completed"  # results.json is valid, whatever the exit status was
    timed_out = "timed_out"  # the wall clock ran out; what results.json holds does not count
    out_of_memory = "out_of_memory"  # the kernel killed it, and no valid results.json had been written
    no_results = "no_results"  # it ended by itself without a results.json
    invalid_results = "invalid_results"  # there is a results.json, but Gradescope could not have used it


class Parity(StrEnum):
    """Whether our score is Gradescope's."""

    match = "match"
    differs = "differs"
    no_reference = "no_reference"  # Gradescope's run had left no results.json


@dataclass(frozen=True)
class Grade:
    """What one run earned. `problem` is one sentence for course staff, None if and only if the outcome is completed."""

    outcome: Outcome
    score: float
    max_score: float | None  # the sum over the tests that name one
    results: dict[str, Any]  # fit for jsonb; score 0 and the problem as output where the autograder left nothing valid
    raw: str | None = None  # the text of an invalid results.json, shortened
    problem: str | None = None


class _Refused(Exception):
    """Why a results.json is invalid; becomes Grade.problem."""


def grade(
    raw: bytes | None, *, timed_out: bool, oom_killed: bool, timeout_s: float, problem: str | None = None
) -> Grade:
    """The grade for a run that left `raw` as its results.json (None: no such file).

    A valid results.json counts even if the run failed or was killed for memory afterwards; after a timeout it never
    does. `problem` is what the sandbox found wrong with the file itself (a symbolic link, too large).
    """
    if timed_out:
        return _failed(Outcome.timed_out, f"The submission timed out: it ran for longer than {timeout_s:g} seconds.")
    if problem is not None:
        return _failed(Outcome.invalid_results, clean(problem), raw)
    if raw is None and not oom_killed:
        return _failed(Outcome.no_results, "The autograder ended without writing results/results.json.")
    if raw is None:
        return _failed(Outcome.out_of_memory, "The run used more memory than it may and was killed.")
    try:
        results = _parse(raw)
        score, max_score = _check(results)
    except _Refused as refused:
        if oom_killed:
            problem = f"The run used more memory than it may and was killed; {refused}."
            return _failed(Outcome.out_of_memory, problem, raw)
        return _failed(Outcome.invalid_results, f"The autograder failed: {refused}.", raw)
    return Grade(Outcome.completed, score, max_score, results)


def reference_score(raw: bytes | None) -> float | None:
    """The score that Gradescope gave for the results.json of its own run (0 for an invalid one), None without one."""
    return None if raw is None else grade(raw, timed_out=False, oom_killed=False, timeout_s=0).score


def parity(score: float | None, reference: float | None) -> Parity:
    """Whether `score` is Gradescope's `reference`, but for rounding."""
    if reference is None:
        return Parity.no_reference
    if score is None:
        return Parity.differs
    same = math.isclose(score, reference, rel_tol=PARITY_TOLERANCE, abs_tol=PARITY_TOLERANCE)
    return Parity.match if same else Parity.differs


def passed(test: dict[str, Any]) -> bool | None:
    """Whether a test of a checked results.json counts as passed; None where it says nothing about it."""
    if test.get("status") in ("passed", "failed"):
        return bool(test["status"] == "passed")
    if test.get("score") is None or test.get("max_score") is None:
        return None
    return bool(test["score"] == test["max_score"])


def cap_text(text: str, limit: int = MAX_OUTPUT_CHARS) -> str:
    """`text`, or its head and tail around a marker where it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    marker = f"\n[... {len(text):,} characters, shortened ...]\n"
    kept = max(limit - len(marker), 0)
    tail = kept // 2
    return text[: kept - tail] + marker[: limit - kept] + text[len(text) - tail :]


def clean(text: str) -> str:
    """`text` as Postgres can store it: a replacement character for each NUL and each lone surrogate."""
    return _UNSTORABLE.sub(_REPLACEMENT, text)


def _failed(outcome: Outcome, problem: str, raw: bytes | None = None) -> Grade:
    """A grade of score 0 whose results read as Gradescope's would."""
    text = None if raw is None else cap_text(clean(raw[:MAX_RESULTS_BYTES].decode("utf-8", "replace")))
    results = {"score": 0.0, "output": cap_text(problem)}
    return Grade(outcome, 0.0, None, results, text, cap_text(problem))


def _parse(raw: bytes) -> dict[str, Any]:
    """The object in `raw`, decoded as Gradescope's harness does, every string of it storable."""
    if len(raw) > MAX_RESULTS_BYTES:
        raise _Refused(f"results.json has {len(raw):,} bytes, more than {MAX_RESULTS_BYTES:,}")
    text = raw.decode("utf-8", "replace").replace("\0", _REPLACEMENT)
    if not text.strip():
        raise _Refused("results.json is empty")
    _check_size(text)
    try:
        parsed = json.loads(text, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_finite)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _Refused(
            f"results.json is not valid JSON ({error.msg}, {where}; was something printed into it?)"
        ) from error
    if not isinstance(parsed, dict):
        raise _Refused("results.json does not hold a JSON object")
    storable: dict[str, Any] = _storable(parsed)
    return storable


def _check_size(text: str) -> None:
    """Refuse text that would recurse too deep or grow too large while it is parsed; malformed text may pass."""
    depth = values = 0
    for found in _STRUCTURE.finditer(text):
        character = found[0]
        if character in "]}":
            depth -= 1
        elif character in "[{,":
            depth += character != ","
            values += 1
        if depth > MAX_DEPTH:
            raise _Refused(f"results.json is nested more than {MAX_DEPTH} levels deep")
        if values > MAX_VALUES:
            raise _Refused(f"results.json holds more than {MAX_VALUES:,} values")


def _refuse_constant(literal: str) -> NoReturn:
    raise _Refused(f"results.json holds {literal}, which is not a number")


def _integer(literal: str) -> int:
    if len(literal.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise _Refused(f"results.json holds a number with more than {MAX_INTEGER_DIGITS} digits")
    return int(literal)


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise _Refused(f"results.json holds {literal[:40]}, which is too large")
    return number


def _storable(value: Any) -> Any:
    """`value` with all its strings and keys made storable: JSON can spell NUL and lone surrogates as escapes."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): _storable(item) for key, item in value.items()}
    return value


def _check(results: dict[str, Any]) -> tuple[float, float | None]:
    """Score and maximum score. In `results` itself numeric strings become numbers, and long outputs are shortened."""
    _check_output(results, "output")
    score = _number(results, "score", "score")
    _number(results, "execution_time", "execution_time")
    tests = results.get("tests") or []
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise _Refused("`tests` in results.json is not a list of objects")
    if len(tests) > MAX_TESTS:
        raise _Refused(f"results.json has {len(tests):,} tests, more than {MAX_TESTS:,}")
    for position, test in enumerate(tests, start=1):
        _check_output(test, f"output of test {position}")
    scores = [_number(test, "score", f"score of test {position}") for position, test in enumerate(tests, start=1)]
    maxima = [
        _number(test, "max_score", f"max_score of test {position}") for position, test in enumerate(tests, start=1)
    ]
    if score is None:
        score = _total(scores, "score")
    if score is None:
        raise _Refused("results.json has neither a score nor a test with one")
    return score, _total(maxima, "max_score")


def _check_output(holder: dict[str, Any], where: str) -> None:
    output = holder.get("output")
    if output is None:
        return
    if not isinstance(output, str):
        raise _Refused(f"{where} in results.json is not a string")
    holder["output"] = cap_text(output)


def _number(holder: dict[str, Any], key: str, where: str) -> float | None:
    """The number under `key`, None where it is absent or null; a numeric string is replaced by its number."""
    value = holder.get(key)
    if value is None:
        return None
    if isinstance(value, str) and _NUMERIC.fullmatch(value):
        value = holder[key] = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Refused(f"{where} in results.json is {json.dumps(value)[:40]}, not a number")
    return float(value)


def _total(numbers: Iterable[float | None], where: str) -> float | None:
    """The sum of those that are given, None where none is."""
    given = [number for number in numbers if number is not None]
    if not given:
        return None
    total = sum(given)
    if not math.isfinite(total):
        raise _Refused(f"the sum over {where} of the tests in results.json is too large")
    return total
