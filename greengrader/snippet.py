"""The fork snippet, recognised in a run_autograder and cut out: an image with it would submit every run again.

Two forms are known: the guarded one, between the marks `# >>> GreenGrader` and `# <<< GreenGrader`, and the README's
plain one, which has no marks and is recognised line by line. Lines of a known shape that follow each other, with only
blank lines, comments and changes of folder in between, are the snippet if one of them publishes gradescope_data.zip.
Everything else stays as it is. What escapes this (a snippet wrapped in conditions, or rewritten) finds a mosquitto_pub
in the image that does nothing.
"""

import re
import shlex
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import PurePosixPath

# A student's program can have overwritten run_autograder; searching it must not take long, whatever it holds.
SEARCHED_BYTES = 64 * 1024  # of a script; a longer one only gets its line ends changed
SEARCHED_CHARS = 4096  # of a line
SEARCHED_LINES = 50  # before a snippet

_BEGIN = re.compile(rb"\s*#+\s*>>>\s*greengrader\b", re.IGNORECASE)
_END = re.compile(rb"\s*#+\s*<<<\s*greengrader\b", re.IGNORECASE)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMMENT_AT_END = re.compile(r"(?:^|\s)#[^'\"]*+$")
# After these a shell wants a command; where the snippet was the only one, a syntax error would be left.
_WANTS_COMMAND = re.compile(r"(?:(?:^|[\s;])(?:then|do|else)|[{(|]|&&)\s*$")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_DURATION = re.compile(r"[\d.]+[smhd]?$")
_PACKAGES = {"zip", "mosquitto", "mosquitto-clients"}
_OURS = re.compile(r"mosquitto|gradescope_data|hostname\.txt|greengrader", re.IGNORECASE)


class _Shape(Enum):
    """What a command, or a line of commands, is to the plain snippet; of several the last named one counts."""

    passes = auto()  # blank, comment, cd: part of it between lines that belong
    updates = auto()  # apt-get update: part of it before a line that belongs, too
    belongs = auto()
    publishes = auto()  # mosquitto_pub … gradescope_data.zip
    foreign = auto()


def cut_fork_snippet(script: bytes) -> tuple[bytes, bool]:
    """The script without the fork snippet and with Unix line ends, and whether a snippet was cut out."""
    if b"\0" in script:  # a compiled program: neither line ends nor a snippet
        return script, False
    script = to_unix(script)
    if len(script) > SEARCHED_BYTES:
        return script, False
    lines = script.split(b"\n")
    cut = set(_marked(lines))
    cut |= set(_plain([b"foreign" if number in cut else line for number, line in enumerate(lines)]))
    kept: list[bytes] = []
    for number, line in enumerate(lines):
        if number not in cut:
            kept.append(line)
        elif number - 1 not in cut and _wants_command(kept):
            kept.append(b":")
    if kept and len(lines) - 1 in cut:
        kept.append(b"")  # the line before the snippet keeps its end
    return b"\n".join(kept), bool(cut)


def to_unix(script: bytes) -> bytes:
    """The script as dos2unix leaves it; with a byte order mark, or CR at line ends, the kernel would not run it."""
    return script.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n")


def _wants_command(lines: list[bytes]) -> bool:
    """Whether the last line that is neither blank nor a comment leaves a shell waiting for a command."""
    for line in reversed(lines[-SEARCHED_LINES:]):
        code = _COMMENT_AT_END.sub("", line[-SEARCHED_CHARS:].decode("latin-1"))
        if code.strip():
            return bool(_WANTS_COMMAND.search(code))
    return False


def _marked(lines: list[bytes]) -> Iterator[int]:
    """Numbers of the lines between marks, the marks included; a mark without its counterpart is left alone."""
    begin = None
    for number, line in enumerate(lines):
        if _BEGIN.match(line):
            begin = number
        elif begin is not None and _END.match(line):
            yield from range(begin, number + 1)
            begin = None


def _plain(lines: list[bytes]) -> Iterator[int]:
    """Numbers of the lines of unmarked snippets."""
    block: list[tuple[range, _Shape]] = []
    for numbers in _logical_lines(lines):
        text = b"\n".join(lines[number] for number in numbers).replace(b"\\\n", b" ").decode("latin-1")
        shape = _Shape.foreign if text.startswith("#!") else _line_shape(text)
        if shape is _Shape.foreign:
            yield from _inside(block)
            block = []
        else:
            block.append((numbers, shape))
    yield from _inside(block)


def _logical_lines(lines: list[bytes]) -> Iterator[range]:
    """Numbers of the lines that a backslash at the end joins."""
    begin = 0
    for number, line in enumerate(lines):
        if not line.endswith(b"\\") or line.endswith(b"\\\\"):
            yield range(begin, number + 1)
            begin = number + 1
    if begin < len(lines):
        yield range(begin, len(lines))


def _inside(block: list[tuple[range, _Shape]]) -> Iterator[int]:
    """Numbers of the lines from the first to the last that belongs, if one of them publishes."""
    shapes = [shape for _, shape in block]
    if _Shape.publishes not in shapes:
        return
    ours = [place for place, shape in enumerate(shapes) if shape in (_Shape.belongs, _Shape.publishes)]
    first, last = ours[0], ours[-1]
    if first > 0 and shapes[first - 1] is _Shape.updates:
        first -= 1
    for numbers, _ in block[first : last + 1]:
        yield from numbers


def _line_shape(text: str) -> _Shape:
    if len(text) > SEARCHED_CHARS:
        return _Shape.foreign
    if text.lstrip().startswith("#"):
        return _Shape.passes
    try:
        shapes = [_command_shape(words, files) for words, files in _commands(_COMMENT_AT_END.sub("", text))]
    except ValueError:  # a quote that is not closed on this line
        return _Shape.foreign
    return max(shapes, key=lambda shape: shape.value, default=_Shape.passes)


def _commands(text: str) -> list[tuple[list[str], list[str]]]:
    """The simple commands of a line of shell: their words, and the files they are redirected to."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.commenters = ""
    lexer.whitespace_split = True
    commands: list[tuple[list[str], list[str]]] = [([], [])]
    redirected = False
    for token in lexer:
        if redirected:
            commands[-1][1].append(token)
            redirected = False
        elif token.strip("();<>|&"):
            commands[-1][0].append(token)
        elif "<" in token or ">" in token:
            redirected = True
            if commands[-1][0] and commands[-1][0][-1].isdigit():  # 2>
                commands[-1][0].pop()
        else:
            commands.append(([], []))
    return [(words, files) for words, files in commands if words or files]


def _command_shape(words: list[str], files: list[str]) -> _Shape:
    program, arguments = _without_prefix(words)
    match program:
        case "mosquitto_pub" if any(_component(argument, "gradescope_data.zip") for argument in arguments):
            return _Shape.publishes
        case "apt" | "apt-get":
            return _apt_shape(arguments)
        case "hostname" if any(_component(file, "hostname.txt") for file in files):
            return _Shape.belongs
        case "zip" if any(_component(argument, "gradescope_data") for argument in arguments):
            return _Shape.belongs
        case "cp" if arguments and _component(arguments[-1], "gradescope_data"):
            return _Shape.belongs
        case "mv" | "rm" | "mkdir" | "cd" | "echo" if arguments and all(map(_OURS.search, arguments)):
            return _Shape.belongs
        case "mkdir" if set(arguments) <= {"gradescope", "autograder"}:
            return _Shape.passes
        case "cd" | "true" | ":":
            return _Shape.passes
    return _Shape.foreign


def _without_prefix(words: list[str]) -> tuple[str, list[str]]:
    """The program of a command and its arguments but for options, without sudo, timeout and assignments before it."""
    ahead = list(words)
    while ahead and (ahead[0] in ("sudo", "nohup", "timeout", "env") or _ASSIGNMENT.match(ahead[0])):
        limited = ahead.pop(0) == "timeout"
        while ahead and (ahead[0].startswith("-") or (limited and _DURATION.match(ahead[0]))):
            ahead.pop(0)
    if not ahead:
        return "", []
    return PurePosixPath(ahead[0]).name, [word for word in ahead[1:] if not word.startswith("-")]


def _apt_shape(arguments: list[str]) -> _Shape:
    if arguments == ["update"]:
        return _Shape.updates
    if arguments[:1] == ["install"] and arguments[1:] and set(arguments[1:]) <= _PACKAGES:
        return _Shape.belongs
    return _Shape.foreign


def _component(path: str, name: str) -> bool:
    """Whether one of the path's components is `name`, with or without the ending .zip."""
    return any(part in (name, f"{name}.zip") for part in path.split("/"))
