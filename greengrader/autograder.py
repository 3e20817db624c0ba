"""What an assignment is graded with: the staff's code, by digest.

It comes from the official autograder zip where the staff registered one, and from a submission's payload otherwise. The
payload was packed *after* Gradescope's run, when source/ may also hold the student's files and build products, so
deriving leaves out of source/

* what was modified since submission_metadata.json, which Gradescope writes just before the run, and before the payload
  was packed (a time later than that is a clock that went wrong before, not a sign of the run);
* what equals a file of submission/, unless the submission's copy is newer: then the autograder copied a file of its own
  there.

What a run moved into source/ with its old time cannot be told from the staff's files. That is why two payloads of one
assignment may derive to different digests, and why the staff's own zip is better.
"""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Self

from greengrader.archive import Archive
from greengrader.errors import PayloadRejected
from greengrader.limits import PayloadLimits
from greengrader.payload import SCRIPT_BYTES, Payload
from greengrader.snippet import cut_fork_snippet, to_unix
from greengrader.tree import Node, digest, file_node, folder, single_file, write_tar
from greengrader.zipentry import Kind, shown

__all__ = ["Autograder", "Origin", "cut_fork_snippet", "derive", "from_zip"]

TEMPLATE = Path(__file__).resolve().parent.parent / "deploy" / "autograder.Dockerfile"
SHOWN_NAMES = 10


class Origin(StrEnum):
    """Where an autograder comes from."""

    staff = "staff"  # the official zip
    derived = "derived"  # recovered from a payload


@dataclass(frozen=True)
class Autograder:
    """The staff's code, ready to be built; usable as long as the zip is open that it was made from.

    The digest (SHA-256, hex) covers all that `write_archive` writes, and the base image by its name. `warnings` are
    sentences for course staff: what was mended or left out. Without `has_shebang`, bash has to run run_autograder.
    """

    origin: Origin
    base_image: str
    digest: str
    warnings: tuple[str, ...]
    has_shebang: bool
    nodes: tuple[Node, ...] = field(repr=False)
    zip: Archive | None = field(default=None, repr=False)  # its own one, to be closed with it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the zip that from_zip opened; a payload stays open."""
        if self.zip:
            self.zip.close()

    def write_archive(self, file: IO[bytes]) -> None:
        """Write tar.gz with Dockerfile, run_autograder and source/: all that the image is built from; deterministic."""
        write_tar(file, self.nodes, compression=6)


def derive(payload: Payload, base_image: str) -> Autograder:
    """The autograder that graded this payload's submission, by the rules above."""
    source, submission = payload.folder("source"), payload.folder("submission")
    is_from_run = _is_from_run(payload)
    modified = {node.path for node in source if node.kind is not Kind.directory and is_from_run(node)}
    copied = _copies([node for node in source if node.path not in modified], submission)
    kept = [node for node in source if node.kind is not Kind.directory and node.path not in modified | copied]
    filled = {node.path[:end] for node in kept for end, letter in enumerate(node.path) if letter == "/"}
    for node in source:
        if node.kind is Kind.directory and (node.path in filled or not is_from_run(node)):
            kept.append(node)
    warnings = [
        *_left_out(modified, "they were modified during Gradescope's run"),
        *_left_out(copied, "they equal submitted files"),
    ]
    found = [payload.file("run_autograder"), payload.file("source/run_autograder")]
    scripts = [script for script in found if script]
    if not scripts:
        raise PayloadRejected("The zip holds no run_autograder, so there is nothing to grade the submission with.")
    script = next((script for script in scripts if not is_from_run(script)), scripts[0])
    if is_from_run(scripts[0]):
        instead = " the copy in source/ is used" if script is not scripts[0] else " there is no other copy"
        warnings.append(f"run_autograder was modified during Gradescope's run;{instead}.")
    return _assemble(Origin.derived, base_image, script, kept, warnings, None)


def from_zip(path: Path, base_image: str, limits: PayloadLimits) -> Autograder:
    """The autograder in the staff's own zip, as they upload it to Gradescope; close it after use."""
    archive = Archive(path, limits)
    try:
        root = _root_of(archive)
        script = single_file(archive, f"{root}/run_autograder" if root else "run_autograder")
        if script is None:
            raise PayloadRejected(_no_script(archive))
        source = [node for node in folder(archive, root) if not _is_finder_junk(node.path)]
        return _assemble(Origin.staff, base_image, script, source, [], archive)
    except BaseException:
        archive.close()
        raise


def _assemble(
    origin: Origin,
    base_image: str,
    script: Node,
    source: Iterable[Node],
    warnings: list[str],
    archive: Archive | None,
) -> Autograder:
    raw = script.content(SCRIPT_BYTES)
    content = cut_fork_snippet(raw)[0]
    has_shebang = content.startswith((b"#!", b"\x7fELF"))
    if not has_shebang:
        warnings = [*warnings, "run_autograder does not begin with #!; it is run by bash."]
    nodes = [Node("source", Kind.directory, 0o755, 0)]
    for node in source:
        in_place = replace(node, path=f"source/{node.path}", modified_s=0)
        if node.path == "setup.sh" and node.kind is Kind.file:
            setup = node.content(SCRIPT_BYTES)
            warnings = [*warnings, *_line_ends("setup.sh", setup)]
            in_place = file_node(in_place.path, to_unix(setup), mode=0o755)
        nodes.append(in_place)
    nodes += [file_node("Dockerfile", template()), file_node("run_autograder", content, mode=0o755)]
    nodes.sort(key=lambda node: node.path)
    total = hashlib.sha256(f"{base_image}\0{digest(nodes)}".encode()).hexdigest()
    warnings = [*_line_ends("run_autograder", raw), *warnings]
    return Autograder(origin, base_image, total, tuple(warnings), has_shebang, tuple(nodes), archive)


@functools.cache
def template() -> bytes:
    """The Dockerfile of every autograder image; it takes the base image as the argument BASE."""
    return TEMPLATE.read_bytes()


def _is_from_run(payload: Payload) -> Callable[[Node], bool]:
    """Whether a node was modified during Gradescope's run; a zip's times are whole seconds, so the first one counts."""
    began_s = payload.metadata_written_at.timestamp()
    packed_s = payload.packed_at.timestamp() if payload.packed_at else began_s
    ended_s = packed_s if packed_s > began_s else float("inf")
    return lambda node: began_s <= node.modified_s <= ended_s


def _copies(source: list[Node], submission: list[Node]) -> set[str]:
    """Paths in `source` of what the run copied from the submission: equal to a file there that is not newer."""
    candidates: defaultdict[tuple[int, int], list[Node]] = defaultdict(list)
    for node in submission:
        if node.kind is Kind.file and node.size:
            candidates[node.size, node.crc].append(node)
    suspects = [node for node in source if node.kind is Kind.file and (node.size, node.crc) in candidates]
    oldest: dict[str, int] = {}
    for key in {(node.size, node.crc) for node in suspects}:
        for node in candidates[key]:
            content = _content_digest(node)
            oldest[content] = min(node.modified_s, oldest.get(content, node.modified_s))
    return {node.path for node in suspects if oldest.get(_content_digest(node), node.modified_s + 1) <= node.modified_s}


def _content_digest(node: Node) -> str:
    total = hashlib.sha256()
    for chunk in node.chunks():
        total.update(chunk)
    return total.hexdigest()


def _left_out(paths: set[str], because: str) -> list[str]:
    if not paths:
        return []
    names = ", ".join(shown(path) for path in sorted(paths)[:SHOWN_NAMES])
    more = f" and {len(paths) - SHOWN_NAMES} more" if len(paths) > SHOWN_NAMES else ""
    return [f"Left out of source/ because {because}: {names}{more}."]


def _line_ends(name: str, raw: bytes) -> list[str]:
    if b"\0" in raw or b"\r\n" not in raw:
        return []
    return [f"{name} had Windows line ends; they were converted."]


def _root_of(archive: Archive) -> str:
    """The folder that holds run_autograder: the top, or the only folder there."""
    tops = {name.partition("/")[0] for name in archive.entries if not _is_finder_junk(name)}
    return tops.pop() if len(tops) == 1 and "run_autograder" not in tops else ""


def _is_finder_junk(name: str) -> bool:
    """Whether the Mac's Finder added this to the zip by itself."""
    return name.partition("/")[0] == "__MACOSX" or name.rpartition("/")[2] == ".DS_Store"


def _no_script(archive: Archive) -> str:
    if any(name.endswith("\\run_autograder") for name in archive.entries):
        return "The names in the zip have backslashes instead of folders; pack it with another program."
    return "The zip holds no run_autograder, neither at its top nor in the only folder there."
