"""The samples beside this file and what their submissions earn.

A sample is a folder: autograder/ (as staff upload it), submissions/NAME/ (as students hand them in), expected.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One line of a sample's expected.json."""

    submission: str
    outcome: str  # of our run
    score: float  # of our run
    gradescope_score: float | None  # None: Gradescope's run leaves no results.json
    metadata: dict[str, Any]  # what its submission_metadata.json says besides


def samples() -> list[Path]:
    """The folders of all samples, sorted by name."""
    return sorted(expected.parent for expected in HERE.glob("*/expected.json"))


def cases(sample: Path) -> list[Case]:
    """The submissions of a sample with what they earn."""
    table = json.loads((sample / "expected.json").read_text())["submissions"]
    return [
        Case(name, row["outcome"], row["score"], row.get("gradescope_score", row["score"]), row.get("metadata", {}))
        for name, row in table.items()
    ]
