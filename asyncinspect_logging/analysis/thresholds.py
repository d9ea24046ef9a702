"""The conditions of `asyncinspect diff --fail-on`: read, and judged by what a comparison found.

    condition  = subject comparison value
    subject    = measure [ "(" name ")" ] | ( "new" | "gone" ) ( "names" | "edges" | "findings" )
    measure    = "p" number | "count" | "completed" | "failed" | "cancelled"
    comparison = ">" | ">=" | "<" | "<="
    value      = number [ "x" | "%" | "s" | "ms" | "us" ]

`p` and a number above 0 and below 100 is that percentile, such as p99.9. `x` compares after / before; `%` is a part of
the spans that ended after; anything else compares what is after.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import ConfigError

__all__ = ["COUNTS", "QUANTILES", "Condition", "parse_condition", "quantile_of"]

#: Those that are shown; a condition may speak of any.
QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
COUNTS: Final = ("count", "completed", "failed", "cancelled")
_CHANGES: Final = ("names", "edges", "findings")
_SECONDS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_ORDERS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_WORD: Final = re.compile(r"\s*([A-Za-z0-9_.]+)")
_PERCENTILE: Final = re.compile(r"p(\d{1,2}(?:\.\d{1,6})?)", re.ASCII)
_CHANGE: Final = re.compile(r"\s*([A-Za-z]+)")
_REST: Final = re.compile(r"\s*(>=|<=|>|<)\s*(\d{1,12}(?:\.\d{1,12})?)\s*([A-Za-z%]*)\s*", re.ASCII)
_EXAMPLES: Final = '"p99 > 1.2x", "p50(fetch_user) > 1.1x", "failed > 0" or "new findings > 0"'
_MAX_LENGTH: Final = 1000


def quantile_of(measure: str) -> float | None:
    """Of "p99.9", 0.999; None for what is no percentile above 0 and below 100."""
    found = _PERCENTILE.fullmatch(measure)
    return float(found[1]) / 100 or None if found else None


class Condition(NamedTuple):
    """A condition, read. `unit`: "x", "%", "s" (then `bound` is in seconds) or ""; `name` None stands for all names."""

    text: str
    measure: str
    name: str | None
    order: str
    bound: float
    unit: str

    def holds(self, value: float) -> bool:
        """Whether `value` is what the condition speaks of: then it fails."""
        return _ORDERS[self.order](value, self.bound)

    @property
    def above(self) -> bool:
        return self.order.startswith(">")


def parse_condition(text: str) -> Condition:
    """Read a condition such as "p99 > 1.2x". Raises ConfigError, which says where it cannot be read, and the fix."""
    if not isinstance(text, str) or len(text) > _MAX_LENGTH:
        raise ConfigError(
            f"condition={str(text)[:100]!r} is not a text of up to {_MAX_LENGTH} characters; write {_EXAMPLES}"
        )
    found = _WORD.match(text)
    if found is None:
        raise _wrong(text, 0, f"nothing to compare; write {_EXAMPLES}")
    measure, at, name = found[1], found.end(), None
    if measure in ("new", "gone"):
        what = _CHANGE.match(text, at)
        if what is None or what[1] not in _CHANGES:
            raise _wrong(text, at, f"after {measure!r} comes one of {', '.join(_CHANGES)}")
        measure, at = f"{measure} {what[1]}", what.end()
    elif quantile_of(measure) is None and measure not in COUNTS:
        raise _wrong(text, found.start(1), f"{measure!r} is not known; there are {_measures()}")
    else:
        opened = re.compile(r"\s*\(").match(text, at)
        if opened is not None:
            # Names have brackets of their own, and what follows has none.
            closed = text.rfind(")")
            if closed < opened.end():
                raise _wrong(text, opened.end() - 1, 'the bracket is not closed; write "p50(name) > 1.1x"')
            name, at = text[opened.end() : closed].strip(), closed + 1
            if not name:
                raise _wrong(
                    text, opened.end(), f'a name is missing; write "{measure}(name) …", or "{measure} …" for all'
                )
    return _finish(text, measure, name, at)


def _finish(text: str, measure: str, name: str | None, at: int) -> Condition:
    rest = _REST.match(text, at)
    if rest is None:
        raise _wrong(text, at, f'here comes one of {", ".join(_ORDERS)} and a number; write "{measure} > 1.2x"')
    if rest.end() < len(text):
        raise _wrong(text, rest.end(), "the condition is over here; write one condition at a time")
    unit, bound = rest[3], float(rest[2])
    units = ("x", *_SECONDS) if quantile_of(measure) else ("x", "%", "") if measure in COUNTS else ("",)
    if unit not in units:
        known = ", ".join(repr(unit) for unit in units if unit) or "none"
        raise _wrong(text, rest.start(3), f"the unit {unit!r} does not go with {measure}; there is {known}")
    if unit == "x" and not bound:
        raise _wrong(text, rest.start(2), "a ratio is above 0; write 1.2x for a fifth more")
    if unit in _SECONDS:
        return Condition(text.strip(), measure, name, rest[1], bound * _SECONDS[unit], "s")
    return Condition(text.strip(), measure, name, rest[1], bound, unit)


def _measures() -> str:
    return ", ".join(
        (
            *QUANTILES,
            "any percentile such as p1",
            *COUNTS,
            *(f"new {what}" for what in _CHANGES),
            *(f"gone {what}" for what in _CHANGES),
        )
    )


def _wrong(text: str, at: int, why: str) -> ConfigError:
    return ConfigError(f"condition {text[:100]!r}, character {at + 1}: {why}")
