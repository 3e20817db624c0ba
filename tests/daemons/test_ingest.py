"""ingest.py as a process: what comes in is stored or rejected, answered, acknowledged, and the next one is
processed."""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from greengrader.daemon import Stop
from greengrader.mqtt import Link
from tests.builders import Member, build_payload, build_zip, link, payload_members, spoil
from tests.daemons.world import World, payload, wait_until

ROOT = "gradescope_data/autograder"


def many_entries(count: int) -> bytes:
    return build_zip(
        [*payload_members(), *(Member(f"{ROOT}/submission/{number}") for number in range(count))], zip64=True
    )


def encrypted() -> bytes:
    return build_zip(spoil(payload_members(), f"{ROOT}/submission/hello.txt", flags=1))


def bomb() -> bytes:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped,
        zipped.open(f"{ROOT}/submission/zeros", "w") as file,
    ):
        for _ in range(40):
            file.write(bytes(1024 * 1024))
    return packed.getvalue()


def with_entry(entry: Member) -> bytes:
    return build_payload(extra=[entry])


def bad_input() -> dict[str, tuple[bytes, str]]:
    """{what is wrong: (the bytes, a word that the reason must have)}"""
    return {
        "not a zip": (b"hello, this is no zip", "not a zip"),
        "empty": (b"", "empty"),
        "no metadata": (build_payload(without=[f"{ROOT}/submission_metadata.json"]), "submission_metadata.json"),
        "broken JSON": (build_payload(metadata=b'{"id": 7, '), "JSON"),
        "nested JSON": (build_payload(metadata=b"[" * 50_000 + b"]" * 50_000), "submission_metadata.json"),
        "no id": (build_payload(metadata=b'{"assignment": {"id": 1}}'), "id"),
        "no assignment id": (build_payload(metadata=b'{"id": 1}'), "assignment"),
        "id of a wrong type": (build_payload(metadata={"id": ["seven"]}), "id"),
        "id beyond Postgres": (build_payload(metadata={"id": 2**63}), "id"),
        "encrypted entry": (encrypted(), "encrypted"),
        "leads out by ..": (with_entry(Member("gradescope_data/../../etc/passwd", b"x")), ".."),
        "absolute name": (with_entry(Member("/etc/passwd", b"x")), "absolute"),
        "symlink out": (with_entry(link(f"{ROOT}/submission/out", "/etc/passwd")), "link"),
        "too many entries": (many_entries(100_001), "100,000"),
        "bomb by ratio": (bomb(), "bomb"),
        "bomb by size": (with_entry(Member(f"{ROOT}/submission/big", b"x", size=3 * 1024**3)), "unpack"),
        "nested too deep": (with_entry(Member("gradescope_data/" + "a/" * 60 + "b", b"x")), "deep"),
        "name that is not UTF-8": (with_entry(Member(b"gradescope_data/caf\xe9", b"x")), "UTF-8"),
        "cut off in the middle": (build_payload()[:-200], "zip"),
    }


@pytest.fixture
def asking(world: World) -> Iterator["Asking"]:
    client_id = f"fork-{os.getpid()}"
    with Link(
        world.broker.url_for("submit"), client_id=client_id, subscribe=[f"replies/{client_id}"], keep_session=False
    ) as opened:
        yield Asking(opened, f"replies/{client_id}")


class Asking:
    """Publishes as the acknowledged snippet does, and reads the answer."""

    def __init__(self, opened: Link, topic: str) -> None:
        self.link, self.topic = opened, topic

    def __call__(self, raw: bytes) -> dict[str, object]:
        self.link.publish("submissions", raw, response_topic=self.topic)
        for batch in self.link.batches(Stop(), idle_s=20):
            assert batch, "no answer in 20 s"
            batch[0].acknowledge()
            return dict(json.loads(batch[0].raw))
        raise AssertionError


def test_bad_input_is_rejected_with_a_reason_and_the_next_is_processed(world: World, asking: Asking) -> None:
    ingest = world.start("ingest").ready()
    bad = bad_input()
    for number, (name, (raw, word)) in enumerate(bad.items()):
        answer = asking(raw)
        assert answer["status"] == "rejected", name
        reason = str(answer["reason"])
        assert word.lower() in reason.lower() and "\n" not in reason and len(reason) > 20, (name, reason)
        (row,) = world.store.table("rejected", "true", order="rejected_id DESC", limit=1)
        assert row["reason"] == reason and bytes(row["payload"]) == raw, name
        assert asking(payload(number + 1))["status"] == "accepted", f"the one after {name}"
    assert len(world.store.table("rejected")) == len(bad)
    assert world.count("received") == len(bad)
    assert ingest.terminate() == 0
    assert "Traceback" not in ingest.said()
    assert list((world.directory / "state" / "spool").iterdir()) == []


def test_the_same_bad_bytes_only_count_up(world: World, asking: Asking) -> None:
    world.start("ingest").ready()
    asking(b"nonsense")
    asking(b"nonsense")
    (row,) = world.store.table("rejected")
    assert row["times"] == 2


def test_duplicates_are_dropped_and_other_content_is_a_new_row(world: World, asking: Asking) -> None:
    world.start("ingest").ready()
    assert asking(payload(1, 1.0))["status"] == "accepted"
    assert asking(payload(1, 1.0)) == {"status": "duplicate", "submission_id": 1}
    assert asking(payload(1, 2.0))["status"] == "accepted"
    rows = world.store.table("submissions", order="submission_key")
    assert [(row["submission_id"], row["gradescope_score"]) for row in rows] == [(1, 1.0), (1, 2.0)]
    assert len(world.store.table("submission_status")) == 1


def test_what_is_stored_is_what_was_sent(world: World) -> None:
    world.start("ingest").ready()
    raw = build_payload(
        {"answer.py": "print(42)\n"},
        metadata={
            "id": 8,
            "users": [{"id": 5, "name": "Zo\u00eb", "email": "zoe@example.edu"}, {"id": 6, "name": "Al"}],
        },
        results={"score": "3.5", "tests": [], "output": "a\x00b"},
    )
    world.publish(raw)
    world.wait_state(8, "received")
    (row,) = world.store.table("submissions")
    assert row["student_ids"] == [5, 6] and row["student_names"] == ["Zo\u00eb", "Al"]
    assert row["gradescope_score"] == 3.5 and row["gradescope_results"]["output"] == "a\ufffdb"
    assert row["sender_ip"] == "172.17.0.2" and row["course_id"] == 7 and row["payload_bytes"] == len(raw)
    kept = io.BytesIO()
    world.store.read_payload(row["submission_key"], kept)
    assert kept.getvalue() == raw


def test_answers_go_to_reply_topics_alone(world: World) -> None:
    """A response topic of somebody else's choosing is never written to."""
    world.start("ingest").ready()
    with Link(world.broker.url_for("hub"), client_id="spy", subscribe=["jobs/+"], keep_session=False) as spy:
        with Link(world.broker.url_for("submit"), client_id="evil", keep_session=False) as evil:
            evil.confirm(evil.publish("submissions", payload(1), response_topic="jobs/worker-1"))
            world.wait_state(1, "received")
            world.publish(payload(2))
            world.wait_state(2, "received")
        assert next(iter(spy.batches(Stop(), idle_s=0.5))) == []


def test_postgres_away_acknowledges_nothing_and_waits(world: World) -> None:
    ingest = world.start("ingest").ready()
    name = world.database_url.rsplit("/", 1)[1]
    administer = world.administer
    administer(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    administer(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND application_name = 'ingest'"
    )
    world.publish(payload(1))
    ingest.says("trying again")
    assert ingest.process.poll() is None
    administer(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    world.wait_state(1, "received", timeout_s=15)
    ingest.says("back after_s=")


def test_what_came_while_it_was_stopped_is_found(world: World) -> None:
    assert world.start("ingest").ready().terminate() == 0  # makes the session
    for submission_id in range(1, 31):
        world.publish(payload(submission_id))
    world.start("ingest").ready()
    wait_until(lambda: world.count("received") == 30, 20, world.logs)


def test_killed_with_messages_in_hand_it_stores_each_once(world: World) -> None:
    ingest = world.start("ingest").ready()
    for submission_id in range(1, 41):
        world.publish(payload(submission_id))
        if submission_id % 10 == 0:
            ingest.kill()
            ingest = world.start("ingest").ready()
    wait_until(lambda: world.count("received") == 40, 20, world.logs)
    assert ingest.terminate() == 0
    assert len(world.store.table("submissions")) == 40


def test_a_large_payload_is_streamed_not_held(world: World) -> None:
    """Memory stays below 120 MB and three times the payload in hand."""
    ingest = world.start("ingest").ready()
    size = 60 * 1024 * 1024
    world.publish(build_payload({"big.bin": os.urandom(size)}, metadata={"id": 3}))
    world.wait_state(3, "received", timeout_s=60)
    status = Path(f"/proc/{ingest.process.pid}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kib * 1024 < 120e6 + 3 * size
