"""The lines of the table, and how their figures come about: rounds in turn with those of the reference, and medians."""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

MEGABYTE = 1_000_000

HEADINGS = ("what", "measured", "reference, same run", "ratio", "bar", "met")


class NotMeasured(Exception):
    """Something went wrong that is no slowness: there is no figure."""


class LeftOut(Exception):
    """This machine lacks what the benchmark needs, as its text says."""


@dataclass(frozen=True)
class Figure:
    """A line of the table. `met` is None where there is no bar: the line is for information."""

    what: str
    measured: str
    reference: str = ""
    ratio: str = ""
    bar: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        met = "" if self.met is None else "met" if self.met else "NOT MET"
        return (self.what, self.measured, self.reference, self.ratio, self.bar, met)


def rate_figure(what: str, unit: str, measured: Sequence[float], reference: Sequence[float], bar: float) -> Figure:
    """Medians of two rates in `unit`, and the median of the rounds' ratios against the least that is wanted of it."""
    ratio = statistics.median(ours / theirs for ours, theirs in zip(measured, reference, strict=True))
    return Figure(
        what,
        f"{statistics.median(measured):,.1f} {unit} ({spread(measured)})",
        f"{statistics.median(reference):,.1f} {unit} ({spread(reference)})",
        f"{ratio:.0%}",
        f">= {bar:.0%}",
        ratio >= bar,
    )


def spread(values: Sequence[float]) -> str:
    """Smallest to largest, as a remark."""
    return (
        f"{min(values):,.3g}..{max(values):,.3g}" if max(values) < 1000 else f"{min(values):,.0f}..{max(values):,.0f}"
    )


def interleaved(
    name: str, rounds: int, measure: Callable[[int], float], refer: Callable[[int], float]
) -> tuple[list[float], list[float]]:
    """The values of both, each given the round's number. They take turns, and turns in going first: a noisy neighbour,
    or a disk that is quick only for its first gigabyte, disturbs both alike."""
    measured: list[float] = []
    reference: list[float] = []
    for number in range(rounds):
        turns = [(measured, measure), (reference, refer)]
        for values, take in turns if number % 2 else reversed(turns):
            values.append(take(number))
        progress(f"{name}: round {number + 1} of {rounds}: {measured[-1]:,.3f} against {reference[-1]:,.3f}")
    return measured, reference


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(figures: Sequence[Figure]) -> str:
    """The figures under their headings, columns aligned."""
    rows = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    lines = chain([rows[0], rule], rows[1:])
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)
