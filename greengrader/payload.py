"""The zip that a forked submission arrives as: checked at the door, and given out in parts.

Opening reads the table of contents, submission_metadata.json, results.json, hostname.txt and the targets of symbolic
links, nothing else: a payload of 200 MB is checked as quickly as one of 2 MB. Whatever is unpacked later is bounded and
proven while it streams, so each of the methods below may still raise PayloadRejected.

    gradescope_data/hostname.txt                                `hostname -I` of Gradescope's container
    gradescope_data/gradescope/                                 Gradescope's own harness; never looked at
    gradescope_data/autograder/run_autograder, setup.sh         the staff's, see autograder.py
    gradescope_data/autograder/source/                          the same
    gradescope_data/autograder/submission/                      the student's files
    gradescope_data/autograder/results/results.json             Gradescope's own results: the reference, never an input
    gradescope_data/autograder/submission_metadata.json         written just before Gradescope's run
"""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from greengrader.archive import Archive
from greengrader.errors import PayloadRejected
from greengrader.limits import MEBIBYTE, PayloadLimits
from greengrader.metadata import Metadata, read_metadata
from greengrader.results import clean
from greengrader.snippet import cut_fork_snippet
from greengrader.tree import (
    Node,
    digest,
    file_node,
    folder,
    read_links,
    single_file,
    write_directory,
    write_tar,
)
from greengrader.zipentry import Kind

__all__ = ["Metadata", "Payload", "PayloadLimits"]

ROOT = "gradescope_data"
AUTOGRADER = f"{ROOT}/autograder"
HOSTNAMES_BYTES = 1000
SCRIPT_BYTES = 16 * MEBIBYTE
"""The largest run_autograder; it may be a compiled program."""


class Payload:
    """A payload that passed the checks; a context manager that closes the zip.

    `metadata` is the checked extract of submission_metadata.json, `metadata_document` all of it fit for jsonb, and
    `raw_metadata` its bytes, which go into the run unchanged. `gradescope_results` is the results.json of Gradescope's
    own run, unchecked; None where there is none, or one beyond the limit. `sender_hostnames` is hostname.txt.
    `metadata_written_at` and `packed_at` (None without hostname.txt) enclose Gradescope's run.
    """

    @classmethod
    def open(cls, path: Path, limits: PayloadLimits) -> Self:
        """The payload in the zip at `path`; PayloadRejected where it cannot be taken."""
        archive = Archive(path, limits)
        try:
            return cls(archive, limits)
        except BaseException:
            archive.close()
            raise

    def __init__(self, archive: Archive, limits: PayloadLimits) -> None:
        self._archive = archive
        metadata = self.file("submission_metadata.json")
        if metadata is None:
            raise PayloadRejected(
                f"The zip holds no {AUTOGRADER}/submission_metadata.json; was it packed by the snippet of the README?"
            )
        self.raw_metadata = metadata.content(limits.metadata_bytes)
        self.metadata, self.metadata_document = read_metadata(self.raw_metadata)
        self.metadata_written_at = datetime.fromtimestamp(metadata.modified_s, UTC)
        results = self.file("results/results.json")
        fits = results is not None and results.size <= limits.results_bytes
        self.gradescope_results = results.content(limits.results_bytes) if results and fits else None
        hostnames = single_file(archive, f"{ROOT}/hostname.txt")
        self.sender_hostnames = _read_hostnames(hostnames)
        self.packed_at = datetime.fromtimestamp(hostnames.modified_s, UTC) if hostnames else None
        # Links that lead out are refused here and now, not when the run is about to start.
        read_links(archive, f"{AUTOGRADER}/submission")
        read_links(archive, f"{AUTOGRADER}/source")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the zip; only what was read while opening remains usable."""
        self._archive.close()

    def file(self, name: str) -> Node | None:
        """The file of that name in /autograder; None where there is none, or something else."""
        return single_file(self._archive, f"{AUTOGRADER}/{name}")

    def folder(self, name: str) -> list[Node]:
        """What lies below that folder of /autograder, sorted, paths relative to it; empty where it is missing."""
        return folder(self._archive, f"{AUTOGRADER}/{name}")

    def submission_archive(self) -> bytes:
        """tar.gz of submission/ and submission_metadata.json, to be unpacked in /autograder; deterministic."""
        packed = io.BytesIO()
        nodes = [self._directory("submission"), *self._below("submission"), self._metadata()]
        # It is made once and unpacked once: speed counts more than the last tenth of size.
        write_tar(packed, nodes, compression=1)
        return packed.getvalue()

    def submission_digest(self) -> str:
        """SHA-256 (hex) over the names, modes and contents of the student's files; times do not count."""
        return digest(self.folder("submission"))

    def write_files(self, directory: Path) -> None:
        """Write /autograder as it would look just before the run to `directory`, which must be empty or missing.

        For people who debug: run_autograder comes without the fork snippet, or running it would submit again.
        """
        nodes = [self._directory(name) for name in ("results", "source", "submission")]
        nodes += [*self._below("source"), *self._below("submission"), self._metadata()]
        if script := self.file("run_autograder"):
            content = cut_fork_snippet(script.content(SCRIPT_BYTES))[0]
            nodes.append(file_node("run_autograder", content, mode=0o755, modified_s=script.modified_s))
        if setup := self.file("setup.sh"):
            nodes.append(setup)
        write_directory(directory, sorted(nodes, key=lambda node: node.path))

    def _below(self, name: str) -> list[Node]:
        return [node.at(f"{name}/{node.path}") for node in self.folder(name)]

    def _directory(self, name: str) -> Node:
        return Node(name, Kind.directory, 0o755, int(self.metadata_written_at.timestamp()))

    def _metadata(self) -> Node:
        modified_s = int(self.metadata_written_at.timestamp())
        return file_node("submission_metadata.json", self.raw_metadata, modified_s=modified_s)


def _read_hostnames(file: Node | None) -> str:
    """The addresses that `hostname -I` printed, separated by blanks."""
    if file is None or file.size > HOSTNAMES_BYTES:
        return ""
    return " ".join(clean(file.content(HOSTNAMES_BYTES).decode("utf-8", "replace")).split())
