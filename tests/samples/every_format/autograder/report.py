"""Writes results that use everything Gradescope knows. Students' output goes in byte for byte, whatever it holds."""

import json
from pathlib import Path

FORMATS = ["text", "html", "simple_format", "md", "ansi"]
VISIBILITIES = ["visible", "hidden", "after_due_date", "after_published", None]
FRAMES = {
    "text": "You answered: %s",
    "html": "You answered: <b onclick='alert(1)'>%s</b>",
    "simple_format": "You answered:\n\n%s",
    "md": "You answered: **%s**",
    "ansi": "You answered: \x1b[1;32m%s\x1b[0m",
}
EXPECTED = [b"one", b"two", b"three", b"four", b"five"]

tests, raw_answers = [], {}
for number, (kind, visibility, expected) in enumerate(zip(FORMATS, VISIBILITIES, EXPECTED), start=1):
    answer = Path(f"/tmp/answer.{number}").read_bytes().rstrip(b"\n")
    crashed = Path(f"/tmp/status.{number}").read_text().strip() not in ("0", "1")
    correct = answer == expected and not crashed
    raw_answers[f"@{number}@"] = answer
    test = {
        "number": f"{number}.0",
        "name": f"Question *{number}*",
        "name_format": "md",
        "score": str(2.5 * number) if correct else 0,
        "max_score": 2.5 * number,
        "output": FRAMES[kind] % f"@{number}@",
        "output_format": kind,
        "tags": ["formats", kind],
        "extra_data": {"crashed": crashed},
    }
    if visibility:
        test["visibility"] = visibility
    if number == 5:
        test["status"] = "passed" if answer else "failed"
    tests.append(test)

correct = sum(float(test["score"]) > 0 for test in tests)
results = {
    "execution_time": "0.05",
    "output": "# Formats\n\nEvery *format* there is.",
    "output_format": "md",
    "test_output_format": "text",
    "test_name_format": "text",
    "visibility": "visible",
    "stdout_visibility": "hidden",
    "extra_data": {"nested": [[{"deep": None}]], "unicode": "Zoë ✓ \N{GRINNING FACE}"},
    "leaderboard": [
        {"name": "Correct", "value": correct},
        {"name": "Rank", "value": "n/a" if not correct else "*" * correct, "order": "asc"},
        {"name": "Time", "value": None},
    ],
    "tests": [*tests, {"name": "Handed something in", "status": "passed"}],
    "a_key_of_tomorrow": True,
}
text = json.dumps(results, ensure_ascii=False).encode()
for placeholder, answer in raw_answers.items():
    text = text.replace(placeholder.encode(), answer)
Path("/autograder/results/results.json").write_bytes(text)
