"""Small mistakes in a PromQL expression, one at a time: each operator, threshold, window, label and function of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

__all__ = ["Change", "changes", "pending_changes"]

#: What an operator or a function may be mistaken for.
_INSTEAD: Final = {
    ">": (">=", "<"),
    ">=": (">", "<="),
    "==": ("!=",),
    "-": ("+",),
    "/": ("*",),
    "*": ("/",),
    "and": ("or", "unless"),
    "or": ("and", "unless"),
    "unless": ("and", "or"),
    "increase": ("rate",),
    "rate": ("increase",),
    "sum": ("max", "min"),
    "min_over_time": ("max_over_time",),
    "by": ("without",),
    "without": ("by",),
}
_TOKEN: Final = re.compile(
    r"""
    (?P<matchers>\{[^}]*\})
    | (?P<window>(?<=\[)\d+[smhd](?=\])|(?<=offset\ )\d+[smhd]\b)
    | (?P<labels>\b(?:by|without|on|ignoring)\ \([^)]*\))
    | (?P<number>(?<![\w:.])\d+(?:\.\d+)?(?:e\d+)?(?![\w:]))
    | (?P<word>[a-z_:]\w*)
    | (?P<operator>[<>=!]=?|[-+*/])
    """,
    re.VERBOSE,
)


class Change(NamedTuple):
    """What was at a place of the expression, what is there now, and the whole of it then."""

    was: str
    now: str
    place: int
    expr: str

    def __str__(self) -> str:
        return f"{self.was} -> {self.now or 'nothing'} @{self.place}"


def changes(expr: str, near: float = 0.1) -> Iterator[Change]:
    """Each expression that one mistake makes of this one; of numbers, one that is off by the share `near`."""
    for found in _TOKEN.finditer(expr):
        was, kind = found[0], found.lastgroup or ""
        for now in _mistaken(kind, was, near):
            start = found.start()
            yield Change(was, now, start, expr[:start] + now + expr[found.end() :])


def pending_changes(pending: str) -> tuple[str, ...]:
    """What may be written for a `for`, "" for none."""
    return ("1m",) if not pending else ("", _times(pending, 0.8), _times(pending, 1.2))


def _mistaken(kind: str, was: str, near: float) -> Iterator[str]:
    if kind == "window":
        yield from (_times(was, 0.8), _times(was, 2))
    elif kind == "number":
        number = float(was)
        # A quantile stays one.
        others = (
            (0.95, 0.995) if number == 0.99 else (1.5,) if number == 0 else (number * (1 - near), number * (1 + near))
        )
        yield from (f"{other:g}" for other in others)
    elif kind == "labels":
        word, _, labels = was.partition(" ")
        each = labels.strip("()").replace(",", " ").split()
        for left_out in each:
            yield f"{word} ({', '.join(label for label in each if label != left_out)})"
        yield from (f"{instead} {labels}" for instead in _INSTEAD.get(word, ()))
    elif kind == "matchers":
        matchers = [tuple(found) for found in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', was)]
        for place, (label, operator, value) in enumerate(matchers):
            if "$" not in value:  # what is chosen in a dashboard may be anything
                values = value.split("|")
                fewer = ["|".join(one for one in values if one != left_out) for left_out in values]
                instead = [(label, operator, one) for one in fewer if one] + [(label, _OPPOSITE[operator], value)]
                yield _matchers(matchers[:place] + matchers[place + 1 :])
                yield from (_matchers([*matchers[:place], one, *matchers[place + 1 :]]) for one in instead)
    else:
        yield from _INSTEAD.get(was, ())


_OPPOSITE: Final = {"=": "!=", "!=": "=", "=~": "!~", "!~": "=~"}


def _matchers(each: Sequence[tuple[str, ...]]) -> str:
    inside = ", ".join(f'{label}{operator}"{value}"' for label, operator, value in each)
    return f"{{{inside}}}" if inside else ""


def _times(duration: str, factor: float) -> str:
    """As whole seconds."""
    return f"{round(int(duration[:-1]) * {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}[duration[-1]] * factor)}s"
