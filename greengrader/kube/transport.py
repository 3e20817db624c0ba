"""What a pod is given and what it gives back, over any storage that rclone knows.

    runs/<run>-<attempt>/files.tar.gz   submission/ and submission_metadata.json, put there before the pod
    runs/<run>-<attempt>/results.tar    put there by the pod's `upload`, see returned.py

One prefix for each attempt, so nothing of one student lies in another's, and a late upload of a lost attempt meets
nobody. rclone is started for each transfer (60 ms of CPU time with rclone 1.60); it keeps no state between them, and
threads may share a Remote. It does not try again for long: whoever calls knows better how long a storage may be away.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from greengrader.errors import ServiceUnavailable, SettingsError

RUNS = "runs"
FILES = "files.tar.gz"
RESULTS = "results.tar"

CONNECT_S = 10
SILENCE_S = 30  # a connection that moves nothing for so long is given up
NOT_FOUND = (3, 4)  # rclone's exit status for a folder or a file that is not there
REASON_CHARS = 300

_PREFIX = re.compile(r"\d+-\d+")
_STAMP = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\s+(?:(?:ERROR|NOTICE|CRITICAL|Fatal error)\s*:\s*)?")


class StorageUnavailable(ServiceUnavailable):
    """The storage, or rclone on this machine, does not do what it should; the same call may succeed later."""


def prefix_of(run_id: int, attempt: int) -> str:
    """Where an attempt's files lie, below the remote."""
    return f"{RUNS}/{run_id}-{attempt}"


def remote_path(remote: str, path: str) -> str:
    """The path below a remote, which may itself hold one: remote:bucket/folder."""
    return f"{remote}{path}" if remote.endswith((":", "/")) else f"{remote}/{path}"


@dataclass(frozen=True)
class Remote:
    """The storage that hub and pods share. Each method raises StorageUnavailable, or SettingsError for no such remote.

    `config` is rclone's configuration file; None: its own default.
    """

    remote: str = "greengrader-app:"
    config: Path | None = None
    timeout_s: float = 120.0  # for one transfer

    def put(self, prefix: str, name: str, content: bytes) -> None:
        """Stores a file, in the place of one by that name."""
        # As long as the whole fits into its memory, rclone sends it in one request; that limit is ours to set.
        cutoff = f"--streaming-upload-cutoff={len(content) + 1}b"
        self._run(f"store {prefix}/{name}", ["rcat", cutoff, self._path(prefix, name)], content, may_lack=False)

    def get(self, prefix: str, name: str, max_bytes: int) -> bytes | None:
        """A file's content, cut off after `max_bytes`; None where there is no such file, or an empty one."""
        # Asked for the file itself, rclone takes any trouble of the storage for "there is no such file".
        only = ["--max-depth=1", f"--include=/{name}", f"--head={max_bytes}"]
        return self._run(f"fetch {prefix}/{name}", ["cat", *only, self._path(prefix)]) or None

    def purge(self, prefix: str) -> None:
        """Removes everything below a prefix; nothing there is no fault."""
        self._run(f"remove {prefix}", ["purge", self._path(prefix)])

    def prefixes(self) -> set[str]:
        """The prefixes that hold anything: {"runs/7-1"}."""
        listed = self._run(f"list {RUNS}", ["lsf", "--dirs-only", self._path(RUNS)])
        names = [line.rstrip("/") for line in listed.decode(errors="replace").splitlines()]
        return {f"{RUNS}/{name}" for name in names if _PREFIX.fullmatch(name)}

    def _path(self, *parts: str) -> str:
        return remote_path(self.remote, "/".join(parts))

    def _run(self, what: str, arguments: list[str], content: bytes = b"", *, may_lack: bool = True) -> bytes:
        """What rclone prints; nothing where it finds no such folder or file and `may_lack`."""
        command = ["rclone", *self._options(), *arguments]
        try:
            # In a group of its own: a Ctrl-C is for us, who then let a transfer end.
            done = subprocess.run(
                command,
                input=content,
                capture_output=True,
                timeout=self.timeout_s,
                env=_environment(),
                process_group=0,
                check=False,
            )
        except FileNotFoundError as error:
            raise SettingsError("rclone is not installed here; it carries files to and from the pods") from error
        except subprocess.TimeoutExpired as error:
            raise StorageUnavailable(f"{self.remote} did not {what} within {self.timeout_s:g} s") from error
        if done.returncode == 0:
            return done.stdout
        if may_lack and done.returncode in NOT_FOUND:
            return b""
        reason = _reason(done.stderr)
        if "didn't find section in config file" in reason:
            place = f" {self.config}" if self.config else ""
            raise SettingsError(f"rclone's configuration{place} has no remote {self.remote.partition(':')[0]}:")
        raise StorageUnavailable(f"{self.remote} did not {what}: {reason or f'rclone ended with {done.returncode}'}")

    def _options(self) -> list[str]:
        options = [f"--contimeout={CONNECT_S}s", f"--timeout={SILENCE_S}s", "--retries=1", "--low-level-retries=3"]
        return options if self.config is None else [f"--config={self.config}", *options]


def _environment() -> dict[str, str]:
    """Ours; but rclone's S3 breaks on AWS's name for the authorities to trust, so it gets that by rclone's own."""
    environment = dict(os.environ)
    bundle = environment.pop("AWS_CA_BUNDLE", None)
    if bundle:
        environment.setdefault("RCLONE_CA_CERT", bundle)
    return environment


def _reason(stderr: bytes) -> str:
    """The last thing that rclone complained about, without the time; "caused by" goes on from the line before."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    while len(lines) > 1 and not _STAMP.match(lines[-1]):
        lines[-2:] = [f"{lines[-2]}: {lines[-1]}"]
    return _STAMP.sub("", lines[-1])[:REASON_CHARS] if lines else ""
