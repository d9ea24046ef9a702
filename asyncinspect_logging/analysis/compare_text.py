"""A comparison of two runs as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..snapshot import NameView
from .quantiles import MoreThan
from .thresholds import COUNTS

if TYPE_CHECKING:
    from .compare import Change, Comparison, Ratio

__all__ = ["count", "described", "label", "seconds", "text_of", "untold"]

#: Names, edges and findings that are listed, of each.
_MAX_SHOWN: Final = 40


def text_of(comparison: Comparison) -> str:
    """What differs first, then every name."""
    lines: list[str] = []
    for word in ("new", "gone"):
        for what in ("names", "edges", "findings"):
            found: Sequence[Any] | None = getattr(comparison, f"{word}_{what}")
            if found is None:
                lines.append(untold(word))
                continue
            lines += [f"{word} {what.removesuffix('s')}: {label(each)}" for each in found[:_MAX_SHOWN]]
            if len(found) > _MAX_SHOWN:
                lines.append(f"… and {len(found) - _MAX_SHOWN} more {word} {what}")
    if abs(comparison.machine - 1) > 0.05:
        how, factor = ("slower", comparison.machine) if comparison.machine > 1 else ("faster", 1 / comparison.machine)
        lines.append(f"the machine, or all of the program, was {factor:.2f}x {how}; ratios marked = are without that")
    for change in comparison.changes[:_MAX_SHOWN]:
        lines.append(f"{shown_name(change.name)}: {_outcomes(change)}")
        known = {which: ratio for which, ratio in change.quantiles.items() if ratio.before or ratio.after}
        lines += [f"  {which} {described(ratio)}" for which, ratio in known.items()]
    if len(comparison.changes) > _MAX_SHOWN:
        lines.append(f"… and {len(comparison.changes) - _MAX_SHOWN} more names")
    return "\n".join(lines)


def count(view: NameView, measure: str) -> int:
    found: int = view.spawned if measure == "count" else getattr(view, measure)
    return found


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, MoreThan):
        return f"> {seconds(float(value))}"
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def described(ratio: Ratio) -> str:
    text = f"{seconds(ratio.before)} -> {seconds(ratio.after)}"
    if ratio.before is None or ratio.after is None:
        return text
    if ratio.value is None:
        return f"{text}: too few samples to say"
    mark = "=" if ratio.at_equal_speed else ""
    text += f": {mark}{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{text} {ratio.change}" if ratio.change else text


def _outcomes(change: Change) -> str:
    parts = []
    for measure in COUNTS:
        before, after = (0 if view is None else count(view, measure) for view in (change.before, change.after))
        if before or after:
            word = "spans" if measure == "count" else measure
            parts.append(f"{before:,} {word}" if before == after else f"{before:,} -> {after:,} {word}")
    return ", ".join(parts) or "no spans"


def untold(word: str) -> str:
    return f"{word} edges are unknown: the run {'before' if word == 'new' else 'after'} does not have all its tasks"


def shown_name(name: str) -> str:
    return name if name.isprintable() else repr(name)


def label(each: Any) -> str:
    if isinstance(each, str):
        return shown_name(each)
    if len(each) == 3:
        return f"{shown_name(each[0])} -> {shown_name(each[1])} ({each[2]})"
    return f"{each[0]} in {shown_name(each[1])}" if each[1] else str(each[0])
