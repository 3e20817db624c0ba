"""Every sample, really forked: run as Gradescope runs it, published by the README's own snippet, graded by the whole
pipeline, and found with the same score and its outcome.
"""

from pathlib import Path
from typing import Any

import pytest

from greengrader.results import reference_score
from tests.samples.fork import fork, readme_snippet
from tests.samples.table import Case, cases, samples

pytestmark = pytest.mark.docker

GRADED_WITHIN_S = 120


def submission_id(sample: Path, case: Case) -> int:
    return 70_000 + 100 * samples().index(sample) + cases(sample).index(case)


@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.name)
def test_forked_submissions_earn_what_gradescope_gave(stack: Any, sample: Path) -> None:
    account = (stack.submit_host, stack.submit_port, stack.submit_user, stack.submit_password)
    snippet = readme_snippet("plain", *account)
    for case in cases(sample):
        forked = fork(
            sample,
            case.submission,
            snippet=snippet,
            submission_id=submission_id(sample, case),
            assignment_id=7_000 + samples().index(sample),
            metadata=case.metadata,
        )
        assert reference_score(forked.results) == case.gradescope_score, forked.stdout
    autograders = set()
    for case in cases(sample):
        row = stack.wait_graded(submission_id(sample, case), GRADED_WITHIN_S)
        found = (row["state"], row["outcome"], row["score"], row["gradescope_score"])
        assert found == ("graded", case.outcome, case.score, case.gradescope_score), case.submission
        autograders.add(stack.store.newest_run(submission_id(sample, case)).autograder_digest)
    # Derived from whatever each run left behind, it is one autograder all the same: one image, and nobody's own files.
    assert len(autograders) == 1


def test_acknowledged_snippet_forks_too(stack: Any) -> None:
    sample = next(sample for sample in samples() if sample.name == "plain_bash")
    account = (stack.submit_host, stack.submit_port, stack.submit_user, stack.submit_password)
    forked = fork(
        sample,
        "partial",
        snippet=readme_snippet("acknowledged", *account),
        submission_id=79_999,
        assignment_id=7_999,
    )
    row = stack.wait_graded(79_999, GRADED_WITHIN_S)
    assert reference_score(forked.results) == row["score"] == row["gradescope_score"] == 2
