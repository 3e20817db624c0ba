"""Answers on an operator's screen: aligned tables, labelled details, JSON lines.

Much of what is shown was written by students or their programs, and a terminal obeys control characters. So nothing
goes out here but through `printable`, or as JSON with the same characters spelled as escapes.
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

CELL_CHARS = 60
# C1 controls, marks that reverse or hide the text after them, line and paragraph separators, lone surrogates
_MARKS = "\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
_UNSAFE = re.compile(f"[\0-\x1f{_MARKS}]")
_UNSAFE_BUT_LINES = re.compile(f"[\0-\x08\x0b-\x1f{_MARKS}]")


def printable(text: str) -> str:
    """`text` on one line, each character that a terminal would obey spelled as an escape."""
    return _UNSAFE.sub(_escape, text)


def printable_lines(text: str) -> str:
    """The same, but tabs and line ends stay, and the last line has one."""
    safe = _UNSAFE_BUT_LINES.sub(_escape, text.replace("\r\n", "\n"))
    return safe if safe.endswith("\n") or not safe else safe + "\n"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()


def moment(at: datetime | None) -> str:
    """A time in UTC, to the second; empty for None."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at else ""


def cell(value: Any) -> str:
    """A value as one cell: "-" for None, numbers without noise, texts shortened."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.10g}"
        case datetime():
            return moment(value)
        case list():
            return cell(", ".join(map(str, value)))
    text = printable(str(value))
    return text if len(text) <= CELL_CHARS else text[: CELL_CHARS - 1] + "…"


def table(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> str:
    """Aligned lines, the first with the columns' names; numbers to the right."""
    body = list(rows)
    cells = [list(columns)] + [[cell(row[column]) for column in columns] for row in body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [any(isinstance(row[column], int | float) for row in body) for column in columns]
    lines = []
    for line in cells:
        padded = zip(line, widths, numeric, strict=True)
        lines.append("  ".join(f"{text:>{width}}" if right else f"{text:<{width}}" for text, width, right in padded))
    return "\n".join(line.rstrip() for line in lines)


def details(pairs: Iterable[tuple[str, Any]], indent: str = "  ") -> str:
    """A line for each (label, value) that has a value, texts in full."""
    known = [(label, value) for label, value in pairs if value not in (None, "", [])]
    width = max((len(label) for label, _ in known), default=0)
    return "\n".join(f"{indent}{label:<{width}}  {_in_full(value)}" for label, value in known)


def _in_full(value: Any) -> str:
    return printable(value) if isinstance(value, str) else cell(value)


def json_line(row: Any) -> str:
    """The row as JSON on one line; times as ISO 8601 in UTC."""
    return _spelled(json.dumps(row, ensure_ascii=False, default=_plain))


def json_pretty(document: Any) -> str:
    """The document as JSON for people."""
    return _spelled(json.dumps(document, ensure_ascii=False, indent=2, default=_plain))


def _spelled(encoded: str) -> str:
    """JSON escapes C0 controls by itself; the rest stands inside strings only, where \\uXXXX means the same."""
    return _UNSAFE_BUT_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", encoded)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(f"{type(value)} has no place in JSON")
