"""What travels on MQTT: topics, and each kind of message to and from bytes.

Format, version 1: one line of JSON, then the parts, one behind the other without separators.

    {"version": 1, "kind": "job", "run_id": 7, …, "parts": {"files": 5120}}\\n<5120 bytes>

The line may be 4 MiB long at most; sizes must add up exactly. Everything is checked here, so the code behind it
never meets a malformed message: `decode` returns one of the classes below or raises MessageInvalid.
"""

import json
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from greengrader.errors import MessageInvalid
from greengrader.limits import MEBIBYTE, Limits

VERSION = 1
HEADER_MAX_BYTES = 4 * MEBIBYTE
PARTS_MAX_BYTES = 255 * MEBIBYTE  # MQTT carries 256 MiB, header and topic included
RUN_ID_MAX = 2**63 - 1

SUBMISSIONS = "submissions"
RESULTS = "results/+"
WORKERS = "workers/+/+"
REPLY_PREFIX = "replies/"
MARKS = "workers/hub/mark"  # below WORKERS, so that marks queue behind everything else; workers may not write there

TEXT_MAX = 1000


def _fit(text: object) -> object:
    """The text as Postgres can hold it, cut to TEXT_MAX: a report must not fail for what an engine wrote into it."""
    if not isinstance(text, str):
        return text
    return text[:TEXT_MAX].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


RunId = Annotated[int, Field(ge=1, le=RUN_ID_MAX)]
Attempt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
ShortText = Annotated[str, BeforeValidator(_fit)]
Amount = Annotated[float, Field(ge=0, le=1e12)]
Bytes = Annotated[int, Field(ge=0, le=2**62)]


def jobs_topic(worker: str) -> str:
    return f"jobs/{worker}"


def results_topic(worker: str) -> str:
    return f"results/{worker}"


def worker_topic(worker: str, what: Literal["registration", "heartbeat"]) -> str:
    return f"workers/{worker}/{what}"


def worker_of(topic: str) -> str:
    """The worker that a topic belongs to: the broker's ACL has made sure that it wrote there itself."""
    return topic.split("/")[1]


class Message(BaseModel):
    """A kind of message: its fields travel in the line of JSON, `parts` behind it."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
    kind: ClassVar[str]
    part_names: ClassVar[tuple[str, ...]] = ()
    parts: dict[str, bytes] = Field(default_factory=dict, exclude=True, repr=False)

    def encode(self) -> bytes:
        header = {"version": VERSION, "kind": self.kind, **self.model_dump(mode="json")}
        header["parts"] = {name: len(part) for name, part in self.parts.items()}
        return b"".join([json.dumps(header).encode(), b"\n", *self.parts.values()])


# --------------------------------------------------------------------------------------- hub to worker, jobs/<worker>
class Autograder(Message):
    """The staff's code, sent once to a worker that lacks it. Part `archive`: tar.gz with run_autograder and source/."""

    kind = "autograder"
    part_names = ("archive",)
    digest: Digest
    base_image: ShortText


class Job(Message):
    """One attempt at one run. Part `files`: tar.gz with submission/ and submission_metadata.json."""

    kind = "job"
    part_names = ("files",)
    run_id: RunId
    attempt: Attempt
    submission_id: int
    autograder_digest: Digest
    base_image: ShortText
    cpus: float | None = None  # None in a limit: the worker's setting
    memory_bytes: int | None = None
    timeout_s: float | None = None
    network: bool | None = None

    def limits(self, default: Limits) -> Limits:
        """The worker's limits, with those that the assignment overrides."""
        return default.overridden(
            cpus=self.cpus, memory_bytes=self.memory_bytes, timeout_s=self.timeout_s, network=self.network
        )


# --------------------------------------------------------------------------------- worker to hub, results/<worker>
class OfAttempt(Message):
    run_id: RunId
    attempt: Attempt


class Accepted(OfAttempt):
    """The worker has the job and is about to run it."""

    kind = "accepted"


class Released(OfAttempt):
    """Handed back in order; costs no attempt. `autograder_missing`: the source has to be sent again."""

    kind = "released"
    reason: ShortText
    autograder_missing: bool = False


class Failed(OfAttempt):
    """The attempt ended by a fault of ours. `for_good`: trying again cannot help. Part `build_log` after a build."""

    kind = "failed"
    part_names = ("build_log",)
    reason: ShortText
    for_good: bool = False


class Result(OfAttempt):
    """What the container did. Parts: `results` (results.json as it was, absent if there was none), `output`,
    `build_log`."""

    kind = "result"
    part_names = ("results", "output", "build_log")
    exit_status: int | None
    timed_out: bool
    oom_killed: bool
    results_problem: ShortText | None = None
    started_at: AwareDatetime
    finished_at: AwareDatetime
    wall_s: Amount
    cpu_s: Amount | None
    peak_memory_bytes: Bytes | None
    usage_method: Literal["cgroup", "container", "stats", "none"]
    timeout_s: Amount
    cpus: Amount
    memory_bytes: Bytes
    image_built_s: Amount = 0.0
    warnings: Annotated[list[ShortText], Field(max_length=100)] = []


# --------------------------------------------------------------------------- worker to hub, workers/<worker>/…
class Registration(Message):
    """What a machine is; `register.py` sends it once. Units as in schema.sql, table workers."""

    kind = "registration"
    worker: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    node_ip: Annotated[str, Field(max_length=64)]
    cpu_model_name: Annotated[str, Field(max_length=200)]
    cpu_clock_rate: Annotated[float, Field(gt=0, le=1e6)]
    cpu_sockets: Annotated[int, Field(ge=1, le=1024)]
    cpu_cores: Annotated[int, Field(ge=1, le=65536)]
    cache_size: Annotated[int, Field(ge=0, le=2**40)]
    memory_size: Annotated[int, Field(ge=1, le=2**40)]
    region: Annotated[str, Field(min_length=1, max_length=100)] = "home"
    zone: Annotated[str, Field(max_length=100)] = ""
    watts_min: Annotated[float, Field(ge=0, le=10_000)] | None = None
    watts_max: Annotated[float, Field(ge=0, le=10_000)] | None = None
    slots: Annotated[int, Field(ge=1, le=10_000)] = 1


class Heartbeat(Message):
    """The worker lives: the runs whose leases it wants extended, what it has, whether it takes jobs."""

    kind = "heartbeat"
    runs: Annotated[list[tuple[RunId, Attempt]], Field(max_length=20_000)] = []  # (run id, attempt)
    slots: Annotated[int, Field(ge=1, le=10_000)]
    accepting: bool
    autograders: Annotated[list[Digest], Field(max_length=20_000)] = []


class Gone(Message):
    """The worker said good-bye, or the broker says it in its place (last will)."""

    kind = "gone"


class Mark(Message):
    """The receiver's own: when it comes back, everything that workers had sent before `at` has been read."""

    kind = "mark"
    at: AwareDatetime


KINDS: dict[str, type[Message]] = {
    cls.kind: cls for cls in (Autograder, Job, Accepted, Released, Failed, Result, Registration, Heartbeat, Gone, Mark)
}


def decode(raw: bytes) -> Message:
    """The message in these bytes; MessageInvalid says in one line what is wrong with them."""
    line_end = raw.find(b"\n", 0, HEADER_MAX_BYTES)
    if line_end < 0:
        raise MessageInvalid("no header line")
    try:
        header = json.loads(raw[:line_end])
    except (ValueError, RecursionError) as error:
        raise MessageInvalid("the header is not JSON") from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise MessageInvalid(f"not a message of version {VERSION}; are hub and worker of one release?")
    kind = header.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise MessageInvalid(f"unknown kind {kind[:40]!r}" if isinstance(kind, str) else "no kind")
    header["parts"] = _split(raw, line_end + 1, header.get("parts", {}), cls.part_names)
    try:
        return cls.model_validate(header)
    except ValidationError as error:
        fault = error.errors()[0]
        raise MessageInvalid(f"{cls.kind}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error


def _split(raw: bytes, start: int, sizes: object, names: tuple[str, ...]) -> dict[str, bytes]:
    if not isinstance(sizes, dict) or not set(sizes) <= set(names):
        raise MessageInvalid("unexpected parts")
    parts = {}
    for name, size in sizes.items():
        if type(size) is not int or size < 0 or start + size > len(raw):
            raise MessageInvalid(f"part {name} is cut off")
        parts[name] = raw[start : start + size]
        start += size
    if start != len(raw):
        raise MessageInvalid("bytes left over behind the parts")
    return parts


# ------------------------------------------------------------------------------------------ answers, replies/<client>
@dataclass(frozen=True)
class Reply:
    """Answer to whoever named a response topic; JSON, so that a shell script can `grep` it."""

    status: Literal["accepted", "duplicate", "rejected"]
    detail: dict[str, str | int] = field(default_factory=dict)

    def encode(self) -> bytes:
        return json.dumps({"status": self.status, **self.detail}).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "Reply":
        try:
            answer = json.loads(raw)
            status = answer.pop("status")
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise MessageInvalid("the answer is not JSON") from error
        if status not in ("accepted", "duplicate", "rejected"):
            raise MessageInvalid("the answer has no status")
        return cls(status, answer)


def may_reply_to(topic: str | None) -> bool:
    """Answers go to replies/<client id> alone: nobody may have us write to another's topic."""
    return (
        topic is not None
        and topic.startswith(REPLY_PREFIX)
        and 0 < len(topic) - len(REPLY_PREFIX) <= 200
        and not set(topic[len(REPLY_PREFIX) :]) & set("/+#\0")
    )
