"""A folder of an archive on its way out: into a tar, onto disk, into a digest.

Symbolic links are the one thing that names alone do not settle. A link is followed here as the kernel would follow it,
through other links, and must stay inside the folder that is unpacked: links like `a -> b/..` are harmless by their text
and lead out once `b` is a link as well.
"""

import gzip
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

from greengrader.archive import Archive
from greengrader.errors import GreenGraderError, PayloadRejected
from greengrader.zipentry import Entry, Kind, shown

LINK_HOPS = 40
"""As many links as Linux follows in one name; then it gives up (ELOOP), and nobody gets anywhere."""
LINK_STEPS = 300_000
"""Components walked in all links of one folder: a second of work at worst; ten thousand honest links need half."""
LINK_LEVELS = 100
"""How deep a link may lead; no entry lies deeper than PayloadLimits.depth."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file, folder or link below the root of a tree. `chunks` gives a file's content as often as it is called."""

    path: str  # relative to the root, "/" between components
    kind: Kind
    mode: int
    modified_s: int  # since 1970, UTC
    size: int = 0  # bytes of a file
    crc: int = 0  # of a file; tells most different contents apart without unpacking them
    target: str = ""  # of a link
    chunks: Callable[[], Iterable[bytes]] = tuple

    def at(self, path: str) -> "Node":
        """The same in another place."""
        return replace(self, path=path)

    def content(self, limit_bytes: int) -> bytes:
        """All of a file at once; refused where it is larger than `limit_bytes`."""
        if self.size > limit_bytes:
            raise PayloadRejected(f"{shown(self.path)} has {self.size:,} bytes; at most {limit_bytes:,} are taken.")
        return b"".join(self.chunks())


def file_node(path: str, content: bytes, *, mode: int = 0o644, modified_s: int = 0) -> Node:
    """A file with content that is in memory already."""
    return Node(path, Kind.file, mode, modified_s, size=len(content), chunks=lambda: (content,))


def folder(archive: Archive, prefix: str) -> list[Node]:
    """What lies below the folder `prefix` of the archive ("": all), sorted by path, links checked."""
    links = read_links(archive, prefix)
    nodes = [_node(archive, entry, path, links.get(path, "")) for path, entry in _below(archive, prefix)]
    return sorted(nodes, key=lambda node: node.path)


def single_file(archive: Archive, name: str) -> Node | None:
    """The file of that name, at the root of a tree; None where there is none, or something else."""
    entry = archive.entries.get(name)
    return _node(archive, entry, name.rpartition("/")[2], "") if entry and entry.kind is Kind.file else None


def _node(archive: Archive, entry: Entry, path: str, target: str) -> Node:
    if entry.kind is not Kind.file:
        return Node(path, entry.kind, entry.mode, entry.modified_s, target=target)
    chunks = partial(archive.chunks, entry)
    return Node(path, Kind.file, entry.mode, entry.modified_s, entry.size, entry.crc, chunks=chunks)


def read_links(archive: Archive, prefix: str) -> dict[str, str]:
    """Targets of the links below the folder `prefix`, by path; PayloadRejected where one leads out of that folder."""
    root = archive.entries.get(prefix)
    if root and root.kind is not Kind.directory:
        raise PayloadRejected(f"{shown(prefix)} is no folder but a {root.kind}.")
    links = {}
    for path, entry in _below(archive, prefix):
        if entry.kind is Kind.link:
            raw_target = archive.read(entry, archive.limits.name_bytes)
            try:
                links[path] = raw_target.decode()
            except UnicodeDecodeError as error:
                raise PayloadRejected(f"The target of the symbolic link {shown(entry.name)} is not UTF-8.") from error
    steps = iter(range(LINK_STEPS))
    for path, target in links.items():
        link = f"The symbolic link {shown(f'{prefix}/{path}' if prefix else path)}"
        if not target or "\0" in target:
            raise PayloadRejected(f"{link} has no valid target.")
        if _leads_out(path, links, steps):
            place = shown(prefix) if prefix else "the zip"
            raise PayloadRejected(f"{link} points to {shown(target)}, which leads out of {place}.")
    return links


def _below(archive: Archive, prefix: str) -> Iterator[tuple[str, Entry]]:
    """Paths relative to the folder `prefix`, and the entries there."""
    start = f"{prefix}/" if prefix else ""
    for name, entry in archive.entries.items():
        if name.startswith(start):
            yield name[len(start) :], entry


def _leads_out(path: str, links: dict[str, str], steps: Iterator[int]) -> bool:
    """Whether the kernel, walking the link at `path`, would leave the root. What does not exist counts as a folder."""
    here: list[str] = []
    ahead = path.split("/")[::-1]
    hops = 0
    while ahead and hops <= LINK_HOPS:
        if next(steps, None) is None or len(here) > LINK_LEVELS:
            raise PayloadRejected("The symbolic links in the zip are too many or too tangled to check.")
        part = ahead.pop()
        if part == "..":
            if not here:
                return True
            here.pop()
        elif part not in ("", "."):
            here.append(part)
            target = links.get("/".join(here))
            if target is not None:
                if target.startswith("/"):
                    return True
                here.pop()
                ahead += target.split("/")[::-1]
                hops += 1
    return False


def digest(nodes: Iterable[Node]) -> str:
    """SHA-256 (hex) over paths, kinds, modes and contents in the given order; times do not count."""
    total = hashlib.sha256()
    for node in nodes:
        total.update(f"{node.kind} {node.mode:o} {node.size} {node.path}\0{node.target}\0".encode())
        for chunk in node.chunks():
            total.update(chunk)
    return total.hexdigest()


def write_tar(file: IO[bytes], nodes: Iterable[Node], *, compression: int) -> None:
    """Write the nodes as tar.gz, owned by root; the same nodes give the same bytes (with the same zlib)."""
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=compression, mtime=0) as packed:
        for node in nodes:
            packed.write(_tar_header(node))
            for chunk in node.chunks():
                packed.write(chunk)
            packed.write(bytes(-node.size % tarfile.BLOCKSIZE))
        packed.write(bytes(2 * tarfile.BLOCKSIZE))


def _tar_header(node: Node) -> bytes:
    info = tarfile.TarInfo(node.path)
    info.type = {Kind.file: tarfile.REGTYPE, Kind.directory: tarfile.DIRTYPE, Kind.link: tarfile.SYMTYPE}[node.kind]
    info.mode, info.mtime, info.size, info.linkname = node.mode, node.modified_s, node.size, node.target
    info.uname = info.gname = "root"
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8")


def write_directory(directory: Path, nodes: list[Node]) -> None:
    """Create the nodes below `directory`, which must be empty or missing, with their times and modes."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise GreenGraderError(
                f"{directory} is not empty; name a directory that is, or one that does not exist yet"
            )
        for node in nodes:
            if node.kind is Kind.directory:
                (directory / node.path).mkdir(parents=True, exist_ok=True)
            elif node.kind is Kind.file:
                _write_file(directory / node.path, node)
        # Last, so that nothing is ever written through a link.
        for node in nodes:
            if node.kind is Kind.link:
                (directory / node.path).parent.mkdir(parents=True, exist_ok=True)
                (directory / node.path).symlink_to(node.target)
        # From the inside out, because each file that is created changes the time of its folder.
        for node in reversed(nodes):
            if node.kind is Kind.directory:
                (directory / node.path).chmod(node.mode | 0o700)
            os.utime(directory / node.path, (node.modified_s, node.modified_s), follow_symlinks=False)
    except OSError as error:
        raise GreenGraderError(f"cannot write to {directory}: {error.strerror or error}") from error


def _write_file(path: Path, node: Node) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for chunk in node.chunks():
            file.write(chunk)
    path.chmod(node.mode)
