"""Plain text for a terminal: numbers with units, bars, tables. No colours, and no name moves the cursor."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from ..snapshot import Histogram
from .quantiles import MoreThan

__all__ = ["bar", "columns", "distribution", "duration", "ladder", "shown"]

_EIGHTHS: Final = "▏▎▍▌▋▊▉█"
_STEPS: Final = 10
_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def shown(text: str, limit: int = 60) -> str:
    """A text of anybody's on one line, at most `limit` characters of it; what cannot be printed is escaped."""
    out = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[: limit + 1])
    return out if len(out) <= limit else out[: limit - 1] + "…"


def duration(seconds: float | None, *, ascii: bool = False) -> str:
    """Three digits and a unit; "-" for what is not known, and "> 10.0 s" for what is `MoreThan` that."""
    if isinstance(seconds, MoreThan):
        return f"> {duration(float(seconds), ascii=ascii)}"
    if seconds is None or math.isnan(seconds):
        return "-"
    for size, unit in _UNITS:
        # Not 1000 ms, but 1 s.
        if seconds >= size * 0.9995:
            value = seconds / size
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {'us' if ascii and unit == 'µs' else unit}"
    return "0 s"


def bar(share: float, width: int, *, ascii: bool = False) -> str:
    """A bar over `share` (0 to 1) of `width` columns. What is more than nothing is seen."""
    share = min(max(share, 0.0), 1.0) if share == share else 0.0
    if ascii:
        return "#" * max(round(share * width), share > 0)
    eighths = max(round(share * width * 8), share > 0)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def ladder(low: float, high: float) -> tuple[float, ...]:
    """Round bounds, the last not below `high` and `low` not far below the first: some ten steps of one width where the
    two are of one size, and else widths of 1, 2 and 5.
    """
    low, high = max(low, 1e-9), max(high, low, 1e-9)
    if high > 10 * low:
        powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        # By text, since 5 * 10.0 ** -5 is not 5e-05.
        bounds = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
        return tuple(bounds[bisect_left(bounds, low) : bisect_left(bounds, high) + 1])
    power = math.floor(math.log10(max((high - low) / _STEPS, high * 1e-3)))
    widths = (float(f"{digit}e{power + more}") for more in (0, 1) for digit in (1, 2, 5))
    width = next(each for each in widths if each * _STEPS >= high - low)
    first = math.ceil(low / width)
    # Each a product, so that the errors of the steps do not add up.
    bounds = [(first + step) * width for step in range(_STEPS + 3)]
    return tuple(bounds[: bisect_left(bounds, high) + 1])


def distribution(histogram: Histogram, width: int, *, ascii: bool = False) -> list[str]:
    """A histogram of seconds as lines: bounds, a bar, a count. Empty buckets at both ends are left out."""
    counts = histogram.counts
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return []
    most, bounds = max(counts), histogram.bounds
    rows = []
    for index in range(filled[0], filled[-1] + 1):
        last = index == len(bounds)
        over = "> " if last else "<= " if ascii else "≤ "
        label = over + duration(bounds[index - last], ascii=ascii) if bounds else "all"
        rows.append((label, index))
    wide = max(len(label) for label, _ in rows)
    digits = len(str(most))
    room = max(width - wide - digits - 4, 4)
    return [
        f"{label:>{wide}}  {counts[index]:>{digits}}  {bar(counts[index] / most, room, ascii=ascii)}".rstrip()
        for label, index in rows
    ]


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as lines with columns below each other, the first `left` of them ranged left."""
    if not rows:
        return []
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(cell + space if index < left else space + cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    """Columns that a printable text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )
