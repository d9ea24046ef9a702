"""Retrofit rules as they are written, in TOML: read, and checked with errors that say what to write instead."""

from __future__ import annotations

import datetime
import re
import tomllib
import warnings
import zoneinfo
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from .rule import PLACE, Comparison, Rule, Times

__all__ = ["rules_of_file", "rules_of_text"]

_MAX_RULES_FILE: Final = 1 << 18

_COMPARED: Final = re.compile(r"(>=|<=|!=|>|<|=)\s*(-?\d{1,18}(?:\.\d{1,18})?)", re.ASCII)
_UNITS: Final = {"ns": 0, "us": 3, "ms": 6, "s": 9}
_KEYS: Final = {
    "name": "a text, with {group} where a group's text is to stand",
    "line": "a pattern for lines that tell of a whole span",
    "start": "a pattern",
    "end": "a pattern, or a list of them",
    "key": "the group, or the list of groups, that is the same in a start and its end",
    "time": "the group that has the time",
    "time_format": '"iso", "unix", "unix_ms", or a format of strptime such as "%d/%b/%Y:%H:%M:%S %z"',
    "time_of": '"start" or "end"',
    "timezone": 'an offset such as "+02:00" or a name such as "Europe/Berlin"',
    "duration": "the group that has the duration",
    "duration_unit": '"s", "ms", "us" or "ns"',
    "outcome": 'a table such as { group = "status", failed = ">= 500" }',
    "error": "the group that has the error's message",
    "fields": "a list of groups",
}


def rules_of_file(path: str | Path) -> list[Rule]:
    """The rules in a TOML file. Raises ConfigError, which says which rule and key it is, and what to write instead."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_RULES_FILE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"rules {str(path)!r} cannot be read: {error}; give the path of a TOML file") from None
    if len(data) > _MAX_RULES_FILE:
        raise ConfigError(f"rules {str(path)!r} are longer than {_MAX_RULES_FILE:,} bytes; split them up")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"rules {str(path)!r} are not UTF-8 ({error}); save the file as UTF-8") from None
    return rules_of_text(text, str(path))


def rules_of_text(text: str, source: str) -> list[Rule]:
    """The rules in a TOML text; `source` stands in the messages. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{source}: not TOML: {error or 'nested too deeply'}; a pattern is best written in single quotes, "
            "line = '^…$', in which a backslash is itself"
        ) from None
    found = document.get("rule")
    strange = sorted(set(document) - {"rule"})
    if strange:
        raise ConfigError(f"{source}: {strange[0]!r} is not known here; a rule begins with a line [[rule]]")
    if not isinstance(found, list) or not found or not all(isinstance(table, dict) for table in found):
        raise ConfigError(f"{source}: there is no rule; begin one with a line [[rule]]")
    return [_Table(table, f"{source}, rule {number}").rule() for number, table in enumerate(found, 1)]


class _Table:
    """A rule's table, read with errors that say where."""

    def __init__(self, table: dict[str, Any], where: str) -> None:
        self._table = table
        name = table.get("name")
        self._where = f"{where} ({name[:100]})" if isinstance(name, str) and name else where

    def rule(self) -> Rule:
        for key in self._table:
            if key not in _KEYS:
                raise self._wrong(key, f"is not a key of a rule; there are: {', '.join(_KEYS)}")
        name = self._text("name")
        if not name:
            raise self._missing("name", 'name = "job"')
        patterns = self._patterns()
        every = [pattern for _, pattern in patterns]
        last = [pattern for kind, pattern in patterns if kind != "start"]
        # The name is that of the span's beginning, which is where it is needed.
        for group in PLACE.findall(name):
            self._has("name", group, every[:1])
        time, duration = self._group("time", every), self._group("duration", last)
        outcome, outcomes = self._outcome(last)
        time_of = self._text("time_of")
        if time_of is not None and (len(every) > 1 or time is None):
            raise self._wrong("time_of", "says which end of a span a line's time is; it goes with line and time")
        if time_of not in (None, "start", "end"):
            raise self._wrong("time_of", f"must be {_KEYS['time_of']}")
        unit = self._text("duration_unit")
        if unit is not None and (unit not in _UNITS or duration is None):
            raise self._wrong("duration_unit", f"must be {_KEYS['duration_unit']}, and goes with duration")
        if duration is not None and unit is None:
            raise self._missing("duration_unit", 'duration_unit = "ms", or "s", "us", "ns"')
        return Rule(
            name=name,
            patterns=patterns,
            key=self._groups("key", every, all),
            time=time,
            read_time=self._times(time, name),
            time_is_start=time_of == "start",
            duration=duration,
            unit=_UNITS[unit or "s"],
            outcome=outcome,
            outcomes=outcomes,
            error=self._group("error", last, any),
            fields=self._groups("fields", every, any),
        )

    def _patterns(self) -> tuple[tuple[str, re.Pattern[str]], ...]:
        table = self._table
        if "line" in table:
            for key in ("start", "end", "key"):
                if key in table:
                    raise self._wrong(key, "does not go with line; write line alone, or start and end")
            return (("line", self._pattern("line", table["line"])),)
        for key in ("start", "end"):
            if key not in table:
                raise self._missing(key, "start = '…' and end = '…', or line = '…' for lines that tell both")
        ends = table["end"] if isinstance(table["end"], list) else [table["end"]]
        if not ends:
            raise self._wrong("end", f"must be {_KEYS['end']}")
        return (
            ("start", self._pattern("start", table["start"])),
            *(("end", self._pattern("end", end)) for end in ends),
        )

    def _pattern(self, key: str, value: object) -> re.Pattern[str]:
        if not isinstance(value, str) or not value:
            raise self._wrong(key, f"must be {_KEYS[key]}")
        try:
            with warnings.catch_warnings():
                # Such as of a "[" in a set, which is to mean something else one day.
                warnings.simplefilter("error", FutureWarning)
                return re.compile(value)
        except (re.error, OverflowError, RecursionError, MemoryError, FutureWarning) as error:
            raise self._wrong(
                key, f"is not a regular expression: {error}; groups are written (?P<name>…)", value
            ) from None

    def _text(self, key: str) -> str | None:
        value = self._table.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, f"must be {_KEYS[key]}")
        return value

    def _has(
        self,
        key: str,
        group: str,
        patterns: Sequence[re.Pattern[str]],
        quantifier: Callable[[Sequence[bool]], bool] = all,
    ) -> None:
        if not quantifier([group in pattern.groupindex for pattern in patterns]):
            known = sorted(set().union(*(pattern.groupindex for pattern in patterns)))
            where = "each of its patterns" if len(patterns) > 1 and quantifier is all else "its pattern"
            raise self._wrong(
                key,
                f"names the group {group!r}, which is not in {where}; write (?P<{group}>…) there"
                + (f", or use one of: {', '.join(known)}" if known else ""),
            )

    def _group(
        self,
        key: str,
        patterns: Sequence[re.Pattern[str]],
        quantifier: Callable[[Sequence[bool]], bool] | None = None,
    ) -> str | None:
        """The group that a key names."""
        group = self._text(key)
        if group is not None:
            self._has(key, group, patterns, quantifier or (any if key == "duration" else all))
        return group

    def _groups(
        self, key: str, patterns: Sequence[re.Pattern[str]], quantifier: Callable[[Sequence[bool]], bool]
    ) -> tuple[str, ...]:
        value = self._table.get(key, [])
        groups = [value] if isinstance(value, str) and key == "key" else value
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise self._wrong(key, f"must be {_KEYS[key]}")
        for group in groups:
            self._has(key, group, patterns, quantifier)
        return tuple(groups)

    def _times(self, time: str | None, name: str) -> Times:
        form, zone = self._text("time_format"), self._text("timezone")
        if time is None:
            for key, value in (("time_format", form), ("timezone", zone)):
                if value is not None:
                    raise self._wrong(key, "goes with time, the group that has the time, which is missing")
            return Times("unix", datetime.UTC, name)
        if form is None:
            raise self._missing("time_format", f"time_format = {_KEYS['time_format']}")
        if form not in ("iso", "unix", "unix_ms"):
            try:
                sample = datetime.datetime(2001, 2, 3, 4, 5, 6, tzinfo=datetime.UTC).strftime(form)
                datetime.datetime.strptime(sample, form)
            except (ValueError, OverflowError, re.error, IndexError) as error:
                raise self._wrong("time_format", f"must be {_KEYS['time_format']} ({error})") from None
            if "%" not in form:
                raise self._wrong("time_format", f"must be {_KEYS['time_format']}")
        return Times(form, self._zone(zone), name)

    def _zone(self, zone: str | None) -> datetime.tzinfo:
        if zone is None:
            return datetime.UTC
        offset = re.fullmatch(r"([+-])([01]\d|2[0-3]):([0-5]\d)", zone, re.ASCII)
        if offset is not None:
            minutes = int(offset[2]) * 60 + int(offset[3])
            return datetime.timezone(datetime.timedelta(minutes=-minutes if offset[1] == "-" else minutes))
        try:
            return zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise self._wrong("timezone", f"must be {_KEYS['timezone']}") from None

    def _outcome(
        self, patterns: Sequence[re.Pattern[str]]
    ) -> tuple[str | None, tuple[tuple[str, tuple[Comparison, ...]], ...]]:
        table = self._table.get("outcome")
        if table is None:
            return None, ()
        if not isinstance(table, dict) or not isinstance(table.get("group"), str):
            raise self._wrong("outcome", f"must be {_KEYS['outcome']}")
        self._has("outcome", table["group"], patterns, any)
        tests = []
        for outcome, values in table.items():
            if outcome == "group":
                continue
            if outcome not in ("failed", "cancelled"):
                raise self._wrong(
                    "outcome", f"has {outcome!r}; there are group, failed and cancelled, and all else is completed"
                )
            values = values if isinstance(values, list) else [values]
            if not all(isinstance(value, str) for value in values):
                raise self._wrong("outcome", f'needs texts for {outcome}, such as "error", ["499", "444"] or ">= 500"')
            tests.append((outcome, tuple(map(self._comparison, values))))
        return table["group"], tuple(tests)

    def _comparison(self, value: str) -> Comparison:
        if not value.startswith((">", "<", "=", "!=")):
            return Comparison("", value)
        found = _COMPARED.fullmatch(value)
        if found is None:
            raise self._wrong("outcome", f'has {value!r}, which compares with no number; write ">= 500"')
        return Comparison(found[1], float(found[2]))

    def _wrong(self, key: str, why: str, value: object = ...) -> ConfigError:
        value = self._table.get(key) if value is ... else value
        return ConfigError(f"{self._where}: {key}={_shown(value)} {why}")

    def _missing(self, key: str, fix: str) -> ConfigError:
        return ConfigError(f"{self._where}: {key} is missing; write {fix}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
