"""Every sample, really forked: run as Gradescope runs it, published by the README's own snippet, graded by the whole
pipeline, and found with the same score and its outcome.
"""

import io
from pathlib import Path

import pytest

from greengrader.autograder import from_zip
from greengrader.payload import PayloadLimits
from greengrader.results import reference_score
from tests.daemons.world import World
from tests.samples.fork import Forked, fork, official_zip, readme_snippet
from tests.samples.table import Case, cases, samples

pytestmark = pytest.mark.docker

GRADED_WITHIN_S = 120
BY_NAME = {sample.name: sample for sample in samples()}


def submit(stack: World, sample: Path, case: Case, submission_id: int, *, assignment_id: int, snippet: str) -> Forked:
    """What Gradescope got for the submission that is now on its way to us; checked against the sample's table."""
    text = readme_snippet(snippet, stack.submit_host, stack.submit_port, stack.submit_user, stack.submit_password)
    forked = fork(
        sample,
        case.submission,
        snippet=text,
        submission_id=submission_id,
        assignment_id=assignment_id,
        metadata=case.metadata,
    )
    assert reference_score(forked.results) == case.gradescope_score, forked.stdout
    return forked


def assert_graded_alike(stack: World, case: Case, submission_id: int) -> str | None:
    """Digest of the autograder that gave the submission what its case says."""
    row = stack.wait_graded(submission_id, GRADED_WITHIN_S)
    found = (row["state"], row["outcome"], row["score"], row["gradescope_score"])
    assert found == ("graded", case.outcome, case.score, case.gradescope_score), (case.submission, row["error"])
    run = stack.store.newest_run(submission_id)
    assert run is not None
    return run.autograder_digest


@pytest.mark.parametrize("sample", BY_NAME.values(), ids=BY_NAME)
def test_forked_submissions_earn_what_gradescope_gave(stack: World, sample: Path) -> None:
    number = 1 + list(BY_NAME).index(sample.name)
    forked = {7_000 + 100 * number + index: case for index, case in enumerate(cases(sample))}
    for submission_id, case in forked.items():
        submit(stack, sample, case, submission_id, assignment_id=number, snippet="plain")
    autograders = {assert_graded_alike(stack, case, submission_id) for submission_id, case in forked.items()}
    # Derived from what each run left behind, and still one image: nothing that a run made has come along. Only where
    # students' files replace the staff's can the one who left them alone be told from the others.
    assert len(autograders) == (2 if sample.name == "copy_into_source" else 1)


def test_the_staffs_own_zip_is_used_where_it_is_registered(stack: World, tmp_path: Path, base_image: str) -> None:
    sample, assignment_id = BY_NAME["copy_into_source"], 98
    uploaded = tmp_path / "autograder.zip"
    uploaded.write_bytes(official_zip(sample))
    archive = io.BytesIO()
    with from_zip(uploaded, base_image, PayloadLimits()) as official:
        official.write_archive(archive)
    stack.store.add_autograder(official.digest, official.origin, base_image, official.warnings, archive.getvalue())
    stack.store.set_assignment(assignment_id, {"autograder_digest": official.digest})
    forked = {9_800 + index: case for index, case in enumerate(cases(sample)) if case.submission in ("full", "none")}
    for submission_id, case in forked.items():
        submit(stack, sample, case, submission_id, assignment_id=assignment_id, snippet="plain")
    for submission_id, case in forked.items():
        assert assert_graded_alike(stack, case, submission_id) == official.digest


def test_the_acknowledged_snippet_forks_too(stack: World) -> None:
    sample = BY_NAME["plain_bash"]
    partial = next(case for case in cases(sample) if case.submission == "partial")
    forked = submit(stack, sample, partial, 9_900, assignment_id=99, snippet="acknowledged")
    assert_graded_alike(stack, partial, 9_900)
    # The student's output shows nothing of it.
    assert forked.stdout == ""
