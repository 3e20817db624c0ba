"""The database, one thin method per SQL function, query or view. The only module that knows psycopg2 and SQL.

A Store belongs to one thread. Each method is one transaction. When Postgres does not answer, every method raises
ServiceUnavailable and the next call connects anew; what a caller repeats is idempotent by the functions of schema.sql.
"""

import json
import re
import select
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from greengrader.copystream import CopyStream
from greengrader.daemon import Stop
from greengrader.errors import GreenGraderError, NotFound, SchemaMismatch, ServiceUnavailable, SettingsError
from greengrader.rows import (
    NewSubmission,
    Placed,
    PodJob,
    Queued,
    Received,
    ResultContext,
    Run,
    Worker,
)

__all__ = ["NewSubmission", "Placed", "PodJob", "Queued", "Received", "ResultContext", "Run", "Store", "Worker"]

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).resolve().parent.parent / "schema.sql"
RUNS_CHANNEL = "greengrader_runs"  # "STATE RUN_ID"
WORKERS_CHANNEL = "greengrader_workers"
URL_SHAPE = "GREENGRADER_DATABASE_URL must look like postgresql://user:password@host:port/database"
CLAIM_S = 5  # for a process of the same name to be gone
SLICE_BYTES = 4 * 1024 * 1024
TOO_LARGE = (
    "54"  # SQLSTATE class "program limit exceeded": the driver takes it for an outage, but no later try can help
)
SETTINGS_FAULTS = re.compile(
    r"authentication failed|does not exist|no pg_hba.conf entry|invalid (connection|port|integer|sslmode)"
)

Row = TypeVar("Row")


class Store:
    """A connection to the hub's database; a context manager."""

    def __init__(self, url: str, *, application: str = "greengrader", alone: bool = False) -> None:
        self._url, self._application, self._alone = url, application, alone
        self._channels: list[str] = []
        self._open: psycopg2.extensions.connection | None = None

    # ---------------------------------------------------------------------------------------------- life
    @classmethod
    def connect(
        cls, url: str, *, application: str = "greengrader", check_schema: bool = True, alone: bool = False
    ) -> Self:
        """Connected and, by default, with the schema's version checked: ServiceUnavailable, SettingsError,
        SchemaMismatch. `alone`: SettingsError where another process of this name is connected, too."""
        store = cls(url, application=application, alone=alone)
        if check_schema:
            store.check_schema()
        else:
            store._query("SELECT 1")
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def apply_schema(self) -> None:
        """Brings an empty database to SCHEMA_VERSION; SchemaMismatch where it holds another version."""
        try:
            self._query(SCHEMA.read_text(encoding="utf-8"))
        except GreenGraderError:  # the script's transaction is still open
            self.close()
            raise

    def schema_version(self) -> int | None:
        """What version of schema.sql the database holds; None where it has no tables of GreenGrader yet."""
        if not self._scalar("SELECT to_regclass('schema_version') IS NOT NULL"):
            return None
        return int(self._scalar("SELECT max(version) FROM schema_version") or 0)

    def check_schema(self) -> None:
        version = self.schema_version()
        if version is None:
            raise SchemaMismatch("the database has no tables of GreenGrader yet: `psql -f schema.sql` first")
        if version != SCHEMA_VERSION:
            raise SchemaMismatch(f"the database holds schema version {version}, this program needs {SCHEMA_VERSION}")

    # -------------------------------------------------------------------------------------------- notices
    def listen(self, *channels: str) -> None:
        """From now on `wait` returns what is notified there, also after a reconnect."""
        self._channels += channels
        for channel in channels:
            self._query(f"LISTEN {channel}")

    def wait(self, stop: Stop, timeout_s: float) -> list[tuple[str, str]]:
        """[(channel, text)] that were notified; returns at the first one, at `stop`, or empty after the time."""
        connection = self._connection()
        with self._faults():
            deadline = time.monotonic() + timeout_s
            while not connection.notifies:
                left_s = max(deadline - time.monotonic(), 0)
                readable, _, _ = select.select([connection.fileno(), stop.fileno()], [], [], left_s)
                if connection.fileno() not in readable:
                    break
                connection.poll()  # not always a notice: a server that goes says so first, and closes then
            notices = [(notice.channel, notice.payload) for notice in connection.notifies]
            connection.notifies.clear()
        return notices

    # ------------------------------------------------------------------------------------- ingest: payloads in
    def receive_submissions(self, batch: Sequence[NewSubmission]) -> list[Received | None]:
        """Stores all in one transaction; for each what became of it, None for an exact duplicate."""
        received: list[Received | None] = [None] * len(batch)
        with self._transaction() as cursor:
            columns = json.dumps([new.columns for new in batch])
            cursor.execute("SELECT place, submission_key, run_id FROM receive_submissions(%s)", [columns])
            for place, submission_key, run_id in cursor.fetchall():
                received[place] = Received(submission_key, run_id)
            rows = [
                (struct.pack("!q", r.submission_key), new.payload) for r, new in zip(received, batch, strict=True) if r
            ]
            if rows:
                _copy(cursor, "payloads (submission_key, zip)", rows)
        return received

    def reject_payload(self, digest: str, reason: str, payload: bytes | Path) -> None:
        """Keeps the payload with the reason; the same bytes again only count up."""
        with self._transaction() as cursor:
            cursor.execute("SELECT reject_payload(%s, %s)", [digest, reason])
            if cursor.fetchone() == (None,):
                row = (digest.encode(), reason.encode(), payload)
                _copy(cursor, "rejected (payload_digest, reason, payload)", [row])

    # ------------------------------------------------------------------------------ dispatcher: prepare and hand over
    _RUN = """SELECT r.run_id, r.submission_key, s.submission_id, s.assignment_id, r.state::text, r.backend::text,
        r.attempt, r.failures, r.autograder_digest, r.worker, r.error
        FROM runs r JOIN submissions s USING (submission_key) """

    def next_received(self, limit: int, backend: str) -> list[Run]:
        """Runs of a backend that wait for the dispatcher: by priority, deadline, age."""
        return self._rows(
            Run,
            self._RUN + "WHERE r.state = 'received' AND r.backend = %s"
            " ORDER BY r.priority DESC, r.deadline, r.run_id LIMIT %s",
            backend, limit,
        )  # fmt: skip

    def newest_received(self) -> Run | None:
        return self._row(Run, self._RUN + "WHERE r.state = 'received' ORDER BY r.run_id DESC LIMIT 1")

    def newest_run(self, submission_id: int, assignment_id: int | None = None) -> Run | None:
        """The newest run of the newest payload of a submission of Gradescope's."""
        return self._row(
            Run,
            self._RUN + "WHERE s.submission_id = %s AND (%s IS NULL OR s.assignment_id = %s)"
            " ORDER BY s.submission_key DESC, r.run_id DESC LIMIT 1",
            submission_id, assignment_id, assignment_id,
        )  # fmt: skip

    def run(self, run_id: int) -> Run | None:
        return self._row(Run, self._RUN + "WHERE r.run_id = %s", run_id)

    def run_events(self, run_id: int) -> list[dict[str, Any]]:
        """The run's transitions, oldest first, as {column: value}."""
        return self.table("run_events", "run_id = %s", run_id, order="at")

    def read_payload(self, submission_key: int, into: IO[bytes]) -> None:
        """Writes the zip into a file, slice by slice: never the whole of it in memory."""
        self._slices(
            "SELECT substring(zip FROM %s FOR %s) FROM payloads WHERE submission_key = %s", submission_key, into
        )

    def staff_autograder(self, assignment_id: int) -> str | None:
        """Digest of the zip that staff registered for the assignment."""
        return self._text("SELECT autograder_digest FROM assignments WHERE assignment_id = %s", assignment_id)

    def base_image(self, assignment_id: int) -> str | None:
        return self._text("SELECT base_image FROM assignments WHERE assignment_id = %s", assignment_id)

    def has_autograder(self, digest: str) -> bool:
        return bool(self._query("SELECT 1 FROM autograders WHERE digest = %s", [digest]))

    def add_autograder(
        self, digest: str, origin: str, base_image: str, warnings: Sequence[str], archive: bytes
    ) -> None:
        self._query(
            "INSERT INTO autograders (digest, origin, base_image, warnings, archive) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [digest, origin, base_image, list(warnings), psycopg2.Binary(archive)],
        )

    def has_submission_archive(self, submission_key: int) -> bool:
        return bool(self._query("SELECT 1 FROM submission_archives WHERE submission_key = %s", [submission_key]))

    def add_submission_archive(self, submission_key: int, archive: bytes) -> None:
        self._query(
            "INSERT INTO submission_archives (submission_key, archive) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [submission_key, psycopg2.Binary(archive)],
        )

    def dispatch_run(self, run_id: int, autograder_digest: str) -> bool:
        return bool(self._query("SELECT 1 FROM dispatch_run(%s, %s)", [run_id, autograder_digest]))

    def abandon_run(self, run_id: int, reason: str) -> bool:
        return bool(self._query("SELECT 1 FROM abandon_run(%s, %s)", [run_id, reason]))

    def rerun_submission(self, submission_key: int) -> int | None:
        """Run id of a new run; None where one is open already."""
        run_id = self._scalar("SELECT run_id FROM rerun_submission(%s)", submission_key)
        return None if run_id is None else int(run_id)

    def cancel_run(self, run_id: int, reason: str) -> bool:
        return bool(self._query("SELECT 1 FROM cancel_run(%s, %s)", [run_id, reason]))

    # ----------------------------------------------------------------------------------------- scheduler: places
    def workers(self) -> list[Worker]:
        return self._rows(Worker, f"SELECT {_columns(Worker)} FROM worker_status ORDER BY worker")

    def next_dispatched(self, limit: int) -> list[Queued]:
        """Runs that wait for a place on a worker: by priority, deadline, age."""
        return self._rows(
            Queued,
            "SELECT run_id, autograder_digest FROM runs WHERE state = 'dispatched' AND backend = 'docker'"
            " ORDER BY priority DESC, deadline, run_id LIMIT %s",
            limit,
        )

    def place_runs(self, choices: Sequence[tuple[int, str, str]], lease_s: float) -> list[Placed]:
        """Leases (run id, worker, reason) triples; returns those that were still free to go, in no order."""
        return self._rows(
            Placed,
            "SELECT r.run_id, r.attempt, r.worker, s.submission_id, r.autograder_digest, g.base_image, a.cpus,"
            " a.memory_bytes, a.timeout_s, a.network, octet_length(f.archive), h.digest IS NOT NULL"
            " FROM place_runs(%s::bigint[], %s, %s, %s) r JOIN submissions s USING (submission_key)"
            " JOIN assignments a USING (assignment_id) JOIN autograders g ON g.digest = r.autograder_digest"
            " JOIN submission_archives f USING (submission_key)"
            " LEFT JOIN worker_autograders h ON h.worker = r.worker AND h.digest = r.autograder_digest",
            *([list(column) for column in zip(*choices, strict=True)]), lease_s,
        )  # fmt: skip

    def submission_archives(self, run_ids: Sequence[int]) -> dict[int, bytes]:
        """{run id: tar.gz of submission/ and submission_metadata.json}"""
        rows = self._query(
            "SELECT run_id, archive FROM runs JOIN submission_archives USING (submission_key) WHERE run_id = ANY (%s)",
            [list(run_ids)],
        )
        return {run_id: bytes(archive) for run_id, archive in rows}

    def autograder_archive(self, digest: str) -> bytes:
        into = BytesIO()
        self._slices("SELECT substring(archive FROM %s FOR %s) FROM autograders WHERE digest = %s", digest, into)
        return into.getvalue()

    def note_autograder_sent(self, worker: str, digest: str) -> None:
        self._query(
            "INSERT INTO worker_autograders (worker, digest) VALUES (%s, %s) ON CONFLICT DO NOTHING", [worker, digest]
        )

    def expire_leases(self, max_attempts: int) -> list[Run]:
        return self._rows(Run, self._RUN.replace("FROM runs r", "FROM expire_leases(%s) r"), max_attempts)

    # --------------------------------------------------------------------------- pods: greengrader/kube/runner.py
    def next_for_cluster(self, limit: int) -> list[Run]:
        """Runs of the kubernetes backend that are in no pod yet: by priority, deadline, age."""
        return self._rows(
            Run,
            self._RUN + "WHERE r.state IN ('received', 'dispatched') AND r.backend = 'kubernetes'"
            " ORDER BY r.priority DESC, r.deadline, r.run_id LIMIT %s",
            limit,
        )

    def pod_job(self, run_id: int) -> PodJob:
        """What the pod of a prepared run is made from; NotFound where it is not prepared."""
        job = self._row(
            PodJob,
            "SELECT r.autograder_digest, g.base_image, a.cpus, a.memory_bytes, a.timeout_s, a.network, f.archive"
            " FROM runs r JOIN submissions s USING (submission_key) JOIN assignments a USING (assignment_id)"
            " JOIN autograders g ON g.digest = r.autograder_digest JOIN submission_archives f USING (submission_key)"
            " WHERE r.run_id = %s",
            run_id,
        )
        if job is None:
            raise NotFound(f"run {run_id} is not prepared")
        return replace(job, files=bytes(job.files))

    def place_pod(self, run_id: int, reason: str, region: str | None, zone: str | None, lease_s: float) -> int | None:
        """The attempt that begins; None where somebody else has placed, cancelled or ended the run meanwhile."""
        attempt = self._scalar(
            "SELECT attempt FROM place_pod(%s, %s, %s, %s, %s)", run_id, reason, region, zone, lease_s
        )
        return None if attempt is None else int(attempt)

    def extend_pod_leases(self, runs: Sequence[tuple[int, int]], lease_s: float) -> set[int]:
        """Run ids of the given (run id, attempt) pairs that are still held by who asks."""
        sent = [[r for r, _ in runs], [a for _, a in runs], lease_s]
        return {row[0] for row in self._query("SELECT extend_pod_leases(%s::bigint[], %s::integer[], %s)", sent)}

    def adopt_pods(self, most: int, lease_s: float, only_run: int | None = None) -> list[Run]:
        """Runs in pods that nobody watches any more, now held by who asks; that one alone where it is named."""
        adopted = self._RUN.replace("FROM runs r", "FROM adopt_pods(%s, %s, %s) r")
        return self._rows(Run, adopted, most, lease_s, only_run)

    def held_pods(self) -> set[tuple[int, int]]:
        """(run id, attempt) of every pod that somebody is in charge of."""
        rows = self._query(
            "SELECT run_id, attempt FROM runs WHERE state IN ('placed', 'running') AND backend = 'kubernetes'"
        )
        return {(run_id, attempt) for run_id, attempt in rows}

    def note_trouble(self, run_id: int, reason: str) -> None:
        """Why a waiting run is not placed, for people; changes no state."""
        self._query(
            "UPDATE runs SET error = %s WHERE run_id = %s AND state IN ('received', 'dispatched')", [reason, run_id]
        )

    # ------------------------------------------------------------------------------------- receiver: what workers say
    def start_run(self, run_id: int, attempt: int, worker: str | None) -> bool:
        return bool(self._query("SELECT 1 FROM start_run(%s, %s, %s)", [run_id, attempt, worker]))

    def finish_run(self, run_id: int, attempt: int, worker: str | None, result: dict[str, Any]) -> bool:
        """Stores the result and closes the run; False: it is no longer this worker's, nothing is stored."""
        try:
            sent = [run_id, attempt, worker, json.dumps(result, allow_nan=False)]
        except ValueError as error:
            raise GreenGraderError(f"run {run_id}: the result holds a number that is none: {error}") from error
        return bool(self._query("SELECT 1 FROM finish_run(%s, %s, %s, %s)", sent))

    def fail_run(
        self, run_id: int, attempt: int, worker: str | None, reason: str, *, for_good: bool, max_attempts: int
    ) -> str | None:
        """The state that the run is in now, `dispatched` or `abandoned`; None: it is no longer this worker's."""
        sent = [run_id, attempt, worker, reason, for_good, max_attempts]
        return self._text("SELECT state::text FROM fail_run(%s, %s, %s, %s, %s, %s)", *sent)

    def release_run(self, run_id: int, attempt: int, worker: str | None, reason: str) -> bool:
        return bool(self._query("SELECT 1 FROM release_run(%s, %s, %s, %s)", [run_id, attempt, worker, reason]))

    def forget_worker_autograder(self, worker: str, run_id: int) -> None:
        self._query(
            "DELETE FROM worker_autograders USING runs WHERE run_id = %s AND digest = autograder_digest"
            " AND worker_autograders.worker = %s",
            [run_id, worker],
        )

    def save_build_log(self, run_id: int, build_log: str) -> None:
        """Keeps what the newest build of the run's autograder printed."""
        self._query(
            "UPDATE autograders SET build_log = %s FROM runs WHERE run_id = %s AND digest = autograder_digest",
            [build_log, run_id],
        )

    def result_context(self, run_id: int, worker: str | None) -> ResultContext | None:
        return self._row(
            ResultContext,
            "SELECT s.submission_id, s.gradescope_score, g.warnings, w.node_ip, w.region, w.zone, w.watts_min,"
            " w.watts_max FROM runs r JOIN submissions s USING (submission_key)"
            " JOIN autograders g ON g.digest = r.autograder_digest LEFT JOIN workers w ON w.worker = %s"
            " WHERE run_id = %s",
            worker, run_id,
        )  # fmt: skip

    def extend_leases(self, worker: str, runs: Sequence[tuple[int, int]], lease_s: float) -> set[int]:
        """Run ids of the given (run id, attempt) pairs that the worker still holds."""
        sent = [worker, [r for r, _ in runs], [a for _, a in runs], lease_s]
        return {row[0] for row in self._query("SELECT extend_leases(%s, %s::bigint[], %s::integer[], %s)", sent)}

    def register_worker(self, registration: dict[str, Any]) -> None:
        self._query("SELECT register_worker(%s)", [json.dumps(registration)])

    def see_worker(self, worker: str, slots: int, accepting: bool, autograders: Sequence[str]) -> bool:
        """False: nobody has registered a worker of that name."""
        sent = [worker, slots, accepting, list(autograders)]
        return bool(self._scalar("SELECT see_worker(%s, %s, %s, %s::text[])", *sent))

    def lose_worker(self, worker: str) -> None:
        self._query("SELECT lose_worker(%s)", [worker])

    def now(self) -> datetime:
        """The database's clock, the only one for leases."""
        moment = self._scalar("SELECT clock_timestamp()")
        assert isinstance(moment, datetime)
        return moment

    def receiver_caught_up(self, at: datetime) -> None:
        """Everything that workers had sent until then is stored: leases that ended before may be taken back."""
        self._query("SELECT receiver_caught_up(%s)", [at])

    # --------------------------------------------------------------------------------------------- the operator
    def drain_worker(self, worker: str, draining: bool) -> bool:
        return bool(self._query("SELECT 1 FROM drain_worker(%s, %s)", [worker, draining]))

    def table(
        self, sql_view: str, where: str = "true", *values: Any, order: str = "1", limit: int = 1000
    ) -> list[dict[str, Any]]:
        """Rows of a view as {column: value}; `where`, `order` are this program's own text, never a user's."""
        with self._cursor() as cursor:
            cursor.execute(f"SELECT * FROM {sql_view} WHERE {where} ORDER BY {order} LIMIT %s", [*values, limit])
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def exported(self, assignment_id: int) -> Iterator[list[dict[str, Any]]]:
        """The assignment's rows of result_export by submission id, in portions: never all of them in memory."""
        after = 0
        while rows := self.table(
            "result_export", "assignment_id = %s AND submission_id > %s", assignment_id, after, order="submission_id"
        ):
            yield rows
            after = rows[-1]["submission_id"]

    def results_document(self, run_id: int) -> dict[str, Any] | None:
        """results.json of a graded run; None for any other."""
        document: dict[str, Any] | None = self._scalar("SELECT results FROM results WHERE run_id = %s", run_id)
        return document

    def build_log(self, run_id: int) -> str | None:
        """What the newest build of the run's autograder printed, as far as a worker reported it."""
        return self._text(
            "SELECT build_log FROM runs JOIN autograders ON digest = autograder_digest WHERE run_id = %s", run_id
        )

    def set_assignment(self, assignment_id: int, changes: dict[str, Any]) -> None:
        self._query("SELECT 1 FROM set_assignment(%s, %s)", [assignment_id, json.dumps(changes, default=str)])

    def read_rejected(self, rejected_id: int, into: IO[bytes]) -> None:
        self._slices("SELECT substring(payload FROM %s FOR %s) FROM rejected WHERE rejected_id = %s", rejected_id, into)

    def mark_retried(self, rejected_id: int, submission_key: int) -> None:
        self._query("UPDATE rejected SET retried_as = %s WHERE rejected_id = %s", [submission_key, rejected_id])

    # ------------------------------------------------------------------------------------------------- mechanics
    def _connection(self) -> psycopg2.extensions.connection:
        if self._open is None or self._open.closed:
            try:
                self._open = psycopg2.connect(
                    self._url, application_name=self._application, connect_timeout=5, keepalives_idle=10,
                    keepalives_interval=5, keepalives_count=3, tcp_user_timeout=20_000,
                )  # fmt: skip
            except psycopg2.ProgrammingError as error:  # its text quotes the URL, password and all
                raise SettingsError(URL_SHAPE) from error
            except psycopg2.Error as error:
                text = " ".join(str(error).split())
                if SETTINGS_FAULTS.search(text):
                    raise SettingsError(f"Postgres refuses GREENGRADER_DATABASE_URL: {text}") from error
                raise ServiceUnavailable(f"Postgres does not answer: {text}") from error
            self._open.autocommit = True
            if self._alone:
                self._claim()
            for channel in self._channels:
                self._query(f"LISTEN {channel}")
        return self._open

    def _claim(self) -> None:
        """Holds this application's name for as long as the connection lives; waits for one that is just dying."""
        try:
            self._query(f"SET lock_timeout = '{CLAIM_S}s'")
            self._query("SELECT pg_advisory_lock(hashtext('greengrader ' || %s))", [self._application])
            self._query("RESET lock_timeout")
        except ServiceUnavailable as error:
            if isinstance(error.__cause__, psycopg2.errors.LockNotAvailable):
                raise SettingsError(
                    f"{self._application} runs already, with this database: stop that one first"
                ) from error
            raise

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turns the driver's errors into ours; a broken connection is dropped, so that the next call makes a new
        one."""
        try:
            yield
        except psycopg2.errors.ObjectNotInPrerequisiteState as error:
            raise SchemaMismatch(str(error).splitlines()[0]) from error
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if (error.pgcode or "").startswith(TOO_LARGE):
                raise GreenGraderError(f"Postgres cannot hold this: {' '.join(str(error).split())}") from error
            self.close()
            raise ServiceUnavailable(f"Postgres went away: {' '.join(str(error).split())}") from error
        except psycopg2.errors.UndefinedTable as error:
            raise SchemaMismatch("the database has no tables of GreenGrader yet: `psql -f schema.sql` first") from error
        except psycopg2.DatabaseError as error:
            raise GreenGraderError(f"Postgres refuses: {' '.join(str(error).split())}") from error
        except ValueError as error:  # the driver's own: NUL or half a surrogate pair in a text
            raise GreenGraderError(f"Postgres cannot hold this: {error}") from error

    @contextmanager
    def _cursor(self) -> Iterator[psycopg2.extensions.cursor]:
        connection = self._connection()
        with self._faults(), connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def _transaction(self) -> Iterator[psycopg2.extensions.cursor]:
        with self._cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield cursor
                cursor.execute("COMMIT")
            finally:
                if not cursor.connection.closed and cursor.connection.info.transaction_status != 0:
                    cursor.execute("ROLLBACK")

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            cursor.execute(sql, values or None)  # None: a % in the text is just a %
            return cursor.fetchall() if cursor.description else []

    def _scalar(self, sql: str, *values: Any) -> Any:
        rows = self._query(sql, values)
        return rows[0][0] if rows else None

    def _text(self, sql: str, *values: Any) -> str | None:
        value = self._scalar(sql, *values)
        return None if value is None else str(value)

    def _rows(self, cls: type[Row], sql: str, *values: Any) -> list[Row]:
        return [cls(*row) for row in self._query(sql, values)]

    def _row(self, cls: type[Row], sql: str, *values: Any) -> Row | None:
        rows = self._rows(cls, sql, *values)
        return rows[0] if rows else None

    def _slices(self, sql: str, key: Any, into: IO[bytes]) -> None:
        position = 1
        while True:
            rows = self._query(sql, [position, SLICE_BYTES, key])
            if not rows:
                raise NotFound(f"nothing is stored under {key}")
            part = rows[0][0]
            into.write(part)
            position += len(part)
            if len(part) < SLICE_BYTES:
                return


def _columns(cls: Any) -> str:
    return ", ".join(field.name for field in fields(cls))


def _copy(cursor: psycopg2.extensions.cursor, target: str, rows: Sequence[tuple[bytes | Path, ...]]) -> None:
    """Binary COPY of rows, twice as fast as a parametrised INSERT for large values; a Path is streamed from its
    file."""
    stream = CopyStream(rows)
    try:
        cursor.copy_expert(f"COPY {target} FROM STDIN (FORMAT binary)", stream, size=1 << 18)
    except psycopg2.Error:
        if stream.fault is not None:  # a file of ours; the driver calls that a cancelled query
            raise stream.fault from None
        raise
