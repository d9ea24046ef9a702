"""One retrofit rule, and what it reads in the groups that its patterns find in a line."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

__all__ = ["Comparison", "Rule", "Times", "Unreadable"]

_MAX_NAME: Final = 200
#: Times remembered by their text, which most often is that of the line before.
_MAX_TIMES: Final = 256

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NUMBER: Final = re.compile(r"\s*(\d{1,18})(?:[.,](\d{1,18})\d*)?\s*", re.ASCII)
#: Where in a rule's name a group's text is to stand.
PLACE: Final = re.compile(r"\{(\w+)\}")
_ORDERS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": float.__ge__,
    "<=": float.__le__,
    ">": float.__gt__,
    "<": float.__lt__,
    "=": float.__eq__,
    "!=": float.__ne__,
}


class Unreadable(ValueError):
    """A line matches, and a value in it cannot be used."""


class Rule(NamedTuple):
    """One rule, checked. `patterns`: of lines of the kinds "line", "start" and "end"; texts are names of groups."""

    name: str
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    key: tuple[str, ...]
    time: str | None
    read_time: Times
    time_is_start: bool
    duration: str | None
    unit: int
    outcome: str | None
    outcomes: tuple[tuple[str, tuple[Comparison, ...]], ...]
    error: str | None
    fields: tuple[str, ...]

    def time_in(self, groups: Mapping[str, str], number: int) -> int:
        """Unix time in ns; without one, the lines' order stands for it."""
        if self.time is None:
            return number
        text = groups.get(self.time)
        if text is None:
            raise Unreadable(f"rule {self.name!r}: group {self.time!r}, the time, has no text")
        return self.read_time(text)

    def duration_in(self, groups: Mapping[str, str]) -> int:
        """In ns, 0 where the rule has none."""
        if self.duration is None:
            return 0
        text = groups.get(self.duration, "")
        try:
            return _scaled(text, self.unit)
        except ValueError:
            raise Unreadable(f"rule {self.name!r}: {self.duration}={text[:100]!r} is not a duration") from None

    def key_in(self, groups: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(groups.get(name, "") for name in self.key)

    def name_in(self, groups: Mapping[str, str]) -> str:
        return PLACE.sub(lambda place: groups.get(place[1], ""), self.name)[:_MAX_NAME]

    def fields_in(self, groups: Mapping[str, str]) -> dict[str, str]:
        return {name: groups[name] for name in self.fields if name in groups}

    def outcome_in(self, groups: Mapping[str, str]) -> tuple[str, dict[str, str] | None]:
        """And the error of one that failed."""
        said = groups.get(self.outcome, "") if self.outcome else ""
        outcome = next((outcome for outcome, tests in self.outcomes if any(test(said) for test in tests)), "completed")
        if outcome != "failed":
            return outcome, None
        return outcome, {"type": said, "message": groups.get(self.error, "") if self.error else ""}


class Times:
    """Reads the times of a rule, to Unix time in ns."""

    def __init__(self, form: str, zone: datetime.tzinfo, name: str) -> None:
        self._form, self._zone, self._name = form, zone, name
        self._remembered: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        t = self._remembered.get(text)
        if t is None:
            try:
                t = _nanoseconds(text, self._form, self._zone)
            except (ValueError, OverflowError):
                raise Unreadable(
                    f"rule {self._name!r}: {text[:100]!r} is not a time in the format {self._form!r}"
                ) from None
            if len(self._remembered) >= _MAX_TIMES:
                self._remembered.clear()
            self._remembered[text] = t
        return t


class Comparison(NamedTuple):
    """What the text of the outcome's group is compared with: a text, or by `order` a number."""

    order: str
    bound: Any

    def __call__(self, said: str) -> bool:
        if not self.order:
            return said == str(self.bound)
        try:
            return _ORDERS[self.order](float(said), self.bound)
        except ValueError:
            return False


def _scaled(text: str, places: int) -> int:
    """A decimal number times 10 ** places, without the rounding of floats. Raises ValueError."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise ValueError(text)
    value: int = int(found[1]) * 10**places + int(((found[2] or "") + "0" * places)[:places] or "0")
    if value >= 1 << 62:
        raise ValueError(text)
    return value


def _nanoseconds(text: str, form: str, zone: datetime.tzinfo) -> int:
    if form == "unix":
        return _scaled(text, 9)
    if form == "unix_ms":
        return _scaled(text, 6)
    moment = datetime.datetime.fromisoformat(text) if form == "iso" else datetime.datetime.strptime(text, form)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    t = (moment - _EPOCH) // datetime.timedelta(microseconds=1) * 1000
    if t < 0:
        raise ValueError(text)
    return t
