"""What travels on MQTT: every kind comes back as it was, and nothing else comes through."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from greengrader.errors import MessageInvalid
from greengrader.limits import Limits
from greengrader.messages import (
    HEADER_MAX_BYTES,
    KINDS,
    TEXT_MAX,
    Accepted,
    Autograder,
    Failed,
    Gone,
    Heartbeat,
    Job,
    Mark,
    Message,
    Registration,
    Released,
    Reply,
    Result,
    decode,
    jobs_topic,
    may_reply_to,
    results_topic,
    worker_of,
    worker_topic,
)

DIGEST = "a" * 64
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)
RESULT: dict[str, Any] = {
    "run_id": 7,
    "attempt": 2,
    "exit_status": 1,
    "timed_out": False,
    "oom_killed": True,
    "results_problem": "results.json is a symbolic link",
    "started_at": NOON,
    "finished_at": NOON,
    "wall_s": 1.5,
    "cpu_s": 0.25,
    "peak_memory_bytes": 20_000_000,
    "usage_method": "cgroup",
    "timeout_s": 600.0,
    "cpus": 0.5,
    "memory_bytes": 768 * 2**20,
    "image_built_s": 12.5,
    "warnings": ["the disk was nearly full"],
}
REGISTRATION: dict[str, Any] = {
    "worker": "worker-1",
    "node_ip": "10.0.0.9",
    "cpu_model_name": "Example CPU",
    "cpu_clock_rate": 2400.5,
    "cpu_sockets": 1,
    "cpu_cores": 4,
    "cache_size": 8192,
    "memory_size": 16384,
}
ONE_OF_EACH: list[Message] = [
    Autograder(digest=DIGEST, base_image="debian:12", parts={"archive": b"\x1f\x8b\n\0tar"}),
    Job(
        run_id=2**63 - 1, attempt=1, submission_id=1001, autograder_digest=DIGEST, base_image="debian:12",
        cpus=2.0, memory_bytes=2**30, timeout_s=60.0, network=True, parts={"files": b"line\nline\n"},
    ),
    Accepted(run_id=1, attempt=2**31 - 1),
    Released(run_id=1, attempt=1, reason="the worker stops", autograder_missing=True),
    Failed(run_id=1, attempt=1, reason="Zoë’s engine hung", for_good=True, parts={"build_log": b"E: no network\n"}),
    Result(**RESULT, parts={"results": b'{"score": 1}', "output": b"", "build_log": b"ok"}),
    Registration(**REGISTRATION, region="us-west", zone="a", watts_min=0.5, watts_max=4, slots=3),
    Heartbeat(runs=[(7, 2), (8, 1)], slots=2, accepting=True, autograders=[DIGEST]),
    Gone(),
    Mark(at=NOON),
]  # fmt: skip


def wire(kind: str = "accepted", body: bytes = b"", **header: Any) -> bytes:
    """A message as somebody else may have made it."""
    minimal = {"version": 1, "kind": kind, "run_id": 7, "attempt": 2, "parts": {}}
    return json.dumps(minimal | header).encode() + b"\n" + body


def test_there_is_one_of_each() -> None:
    assert {message.kind for message in ONE_OF_EACH} == set(KINDS)


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: message.kind)
def test_every_kind_comes_back_as_it_was(message: Message) -> None:
    again = decode(message.encode())
    assert type(again) is type(message)
    assert again == message
    assert again.parts == message.parts


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: message.kind)
def test_a_message_that_was_cut_off_anywhere_is_invalid(message: Message) -> None:
    raw = message.encode()
    for end in range(len(raw)):
        with pytest.raises(MessageInvalid):
            decode(raw[:end])


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: message.kind)
def test_nothing_may_follow(message: Message) -> None:
    with pytest.raises(MessageInvalid, match="bytes left over"):
        decode(message.encode() + b"\n")


def test_the_header_is_one_line_of_json() -> None:
    raw = ONE_OF_EACH[5].encode()
    header = json.loads(raw[: raw.index(b"\n")])
    assert header["version"] == 1 and header["kind"] == "result"
    assert header["parts"] == {"results": 12, "output": 0, "build_log": 2}
    assert header["started_at"] == "2026-03-01T12:00:00.123456Z"
    assert raw.endswith(b'\n{"score": 1}ok')


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "no header line"),
        (b"\n", "not JSON"),
        (b"PK\x03\x04\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"null\n", "version 1"),
        (b"[1]\n", "version 1"),
        (b'"accepted"\n', "version 1"),
        (wire(version=2), "version 1"),
        (wire(version=None), "version 1"),
        (wire(version="1"), "version 1"),
        (wire(kind="party"), "unknown kind 'party'"),
        (wire(kind="x" * 10_000), "unknown kind 'x"),
        (json.dumps({"version": 1}).encode() + b"\n", "no kind"),
        (json.dumps({"version": 1, "kind": ["job"]}).encode() + b"\n", "no kind"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b'{"version": 1, "n": ' + b"9" * 5000 + b"}\n", "not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_is_no_message_is_told(raw: bytes, said: str) -> None:
    with pytest.raises(MessageInvalid, match=said) as refused:
        decode(raw)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_header_has_an_end() -> None:
    with pytest.raises(MessageInvalid, match="no header line"):
        decode(b'{"version": 1, "kind": "gone", "x": "' + b"x" * HEADER_MAX_BYTES + b'"}\n')


@pytest.mark.parametrize(
    "parts",
    [{"output": 1}, {"files": 3}, {"files": 5}, {"files": -4}, {"files": 4.0}, {"files": True}, {"files": "4"},
     {"files": None}, {"files": 4, "more": 0}, {}, [4], "files", None, {"files": 2**70}],
    ids=str,
)  # fmt: skip
def test_parts_add_up_exactly(parts: object) -> None:
    job: dict[str, Any] = {"submission_id": 1, "autograder_digest": DIGEST, "base_image": "b"}
    assert decode(wire("job", b"four", **job, parts={"files": 4})).parts == {"files": b"four"}
    with pytest.raises(MessageInvalid):
        decode(wire("job", b"four", **job, parts=parts))


def test_a_part_may_be_absent() -> None:
    """No results.json is no empty results.json."""
    assert decode(Result(**RESULT).encode()).parts == {}
    assert decode(Result(**RESULT, parts={"results": b""}).encode()).parts == {"results": b""}


@pytest.mark.parametrize(
    ("field", "value"),
    [("run_id", "seven"), ("run_id", 0), ("run_id", -1), ("run_id", 2**63), ("run_id", 1.5), ("run_id", None),
     ("run_id", [7]), ("attempt", 0), ("attempt", 2**31), ("attempt", "")],
)  # fmt: skip
def test_numbers_fit_into_their_columns(field: str, value: object) -> None:
    """A message that Postgres would refuse comes again for ever."""
    header: dict[str, Any] = {field: value}
    with pytest.raises(MessageInvalid, match=field):
        decode(wire(**header))


@pytest.mark.parametrize(
    ("field", "value"),
    [("wall_s", -1), ("wall_s", float("inf")), ("cpu_s", float("nan")), ("cpu_s", 1e300), ("cpus", float("inf")),
     ("peak_memory_bytes", 2**63), ("peak_memory_bytes", -1), ("usage_method", "guess"), ("warnings", ["w"] * 101),
     ("started_at", "2026-03-01T12:00:00"), ("finished_at", "yesterday"), ("exit_status", "x"),
     ("timed_out", "perhaps"), ("warnings", "one"), ("warnings", [{}])],
    ids=str,
)  # fmt: skip
def test_a_result_is_checked_field_by_field(field: str, value: object) -> None:
    header = json.loads(Result(**RESULT).encode())
    with pytest.raises(MessageInvalid, match=f"result: {field}"):
        decode(wire(**header | {field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("worker", "a/b"), ("worker", ""), ("worker", "#"), ("worker", "x" * 64), ("worker", "a\n"), ("cpu_cores", 0),
     ("cpu_clock_rate", 0), ("memory_size", -1), ("slots", 0), ("region", ""), ("watts_min", -1),
     ("node_ip", "x" * 65)],
)  # fmt: skip
def test_a_registration_describes_a_machine(field: str, value: object) -> None:
    header = json.loads(Registration(**REGISTRATION).encode())
    with pytest.raises(MessageInvalid, match=f"registration: {field}"):
        decode(wire(**header | {field: value}))


def test_a_heartbeat_names_runs_and_autograders() -> None:
    for wrong in ({"runs": [[7]]}, {"runs": [[7, 0]]}, {"runs": [7]}, {"slots": 0}, {"autograders": ["latest"]}):
        header = {"slots": 1, "accepting": True} | wrong
        with pytest.raises(MessageInvalid, match=f"heartbeat: {next(iter(wrong))}"):
            decode(wire("heartbeat", **header))


def test_what_a_later_release_adds_is_left_out() -> None:
    assert decode(wire(mood="good")) == Accepted(run_id=7, attempt=2)


def test_the_message_says_nothing_of_a_wrong_value() -> None:
    """It is logged."""
    with pytest.raises(MessageInvalid) as refused:
        decode(wire("registration", **REGISTRATION | {"worker": "ada@example.edu"}))
    assert "ada" not in str(refused.value)


@pytest.mark.parametrize(
    ("given_text", "kept"),
    [
        ("a\0b", "a\N{REPLACEMENT CHARACTER}b"),
        ("half \ud800", "half ?"),
        ("x" * 2000, "x" * TEXT_MAX),
        ("Zoë\n", "Zoë\n"),
    ],
    ids=["nul", "surrogate", "long", "plain"],
)
def test_a_reason_is_made_fit_rather_than_refused(given_text: str, kept: str) -> None:
    """The report of a fault must not fail for what an engine wrote into it."""
    message = Failed(run_id=1, attempt=1, reason=given_text)
    assert message.reason == kept
    decoded = decode(wire("failed", reason=given_text))
    assert isinstance(decoded, Failed) and decoded.reason == kept


def test_a_message_cannot_be_changed() -> None:
    message = Accepted(run_id=1, attempt=1)
    with pytest.raises(ValidationError):
        message.attempt = 2  # type: ignore[misc]  # this is what must not work


def test_the_repr_holds_no_files() -> None:
    assert "secret" not in repr(Job(**JOB, parts={"files": b"secret"}))


JOB: dict[str, Any] = {
    "run_id": 1, "attempt": 1, "submission_id": 1, "autograder_digest": DIGEST, "base_image": "b",
}  # fmt: skip


def test_a_job_overrides_the_workers_limits() -> None:
    worker = Limits(timeout_s=600, cpus=0.5, pids=99)
    assert Job(**JOB).limits(worker) == worker
    assert Job(**JOB, cpus=2, network=False).limits(worker) == Limits(timeout_s=600, cpus=2, network=False, pids=99)


MUTATED = st.tuples(st.sampled_from(ONE_OF_EACH), st.integers(0, 500), st.binary(max_size=8))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b'{"version":1,"kind":"gone"}\n')
@example(b'{"version":1,"kind":"gone","parts":{"\xff":1}}\n')
def test_any_bytes_are_a_message_or_invalid(raw: bytes) -> None:
    assert_message_or_invalid(raw)


@settings(max_examples=300, deadline=None)
@given(MUTATED)
def test_damaged_messages_are_messages_or_invalid(damage: tuple[Message, int, bytes]) -> None:
    message, position, noise = damage
    raw = message.encode()
    assert_message_or_invalid(raw[:position] + noise + raw[position + len(noise) :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ONE_OF_EACH), st.data())
def test_a_wrong_value_in_any_field_is_invalid_or_harmless(message: Message, data: st.DataObject) -> None:
    header = json.loads(message.encode().partition(b"\n")[0])
    header[data.draw(st.sampled_from(sorted(header)))] = data.draw(JSON)
    assert_message_or_invalid(json.dumps(header).encode() + b"\n" + b"".join(message.parts.values()))


def assert_message_or_invalid(raw: bytes) -> None:
    try:
        message = decode(raw)
    except MessageInvalid as refused:
        assert "\n" not in str(refused)
    else:
        assert decode(message.encode()) == message


# ----------------------------------------------------------------------------------------------------------- topics
def test_a_topic_names_its_worker() -> None:
    assert jobs_topic("w") == "jobs/w" and results_topic("w") == "results/w"
    assert worker_topic("w", "heartbeat") == "workers/w/heartbeat"
    for topic in (jobs_topic("w"), results_topic("w"), worker_topic("w", "registration")):
        assert worker_of(topic) == "w"


# ---------------------------------------------------------------------------------------------------------- answers
def test_an_answer_comes_back_as_it_was() -> None:
    reply = Reply("rejected", {"reason": "The payload is not a zip.", "submission_id": 7})
    assert Reply.decode(reply.encode()) == reply
    assert json.loads(reply.encode()) == {
        "status": "rejected", "reason": "The payload is not a zip.", "submission_id": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [b"", b"accepted", b"[]", b"7", b'"accepted"', b"null", b"{}", b'{"status": "fine"}', b'{"status": ["accepted"]}',
     b"\xff", b"[" * 100_000],
    ids=lambda raw: repr(raw[:20]),
)  # fmt: skip
def test_what_is_no_answer_is_told(raw: bytes) -> None:
    with pytest.raises(MessageInvalid):
        Reply.decode(raw)


@pytest.mark.parametrize("topic", ["replies/me", "replies/register-0123", "replies/a b", "replies/" + "x" * 200])
def test_answers_go_to_a_clients_own_topic(topic: str) -> None:
    assert may_reply_to(topic)


@pytest.mark.parametrize(
    "topic",
    [None, "", "replies", "replies/", "submissions", "jobs/worker-1", "results/worker-1", "replies/a/b", "replies/+",
     "replies/#", "replies/a#", "replies/\0", "Replies/me", "/replies/me", "replies/" + "x" * 201, "$SYS/replies/me"],
)  # fmt: skip
def test_and_nowhere_else(topic: str | None) -> None:
    """Or anybody could have the hub, which may write everywhere, send jobs."""
    assert not may_reply_to(topic)
