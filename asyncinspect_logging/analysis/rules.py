"""Retrofit rules: spans out of the lines that other programs log when something starts and finishes.

Rules are a small TOML file, described in docs/retrofit.md. The file is the user's own; the lines are anybody's, and so
they are cut off at a length, what is remembered of them has bounds, and what cannot be read is counted.
"""

from __future__ import annotations

import datetime
import re
import tomllib
import warnings
import zoneinfo
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import ConfigError
from ..placing import UNNUMBERED
from ..records import VERSION, is_whole

__all__ = ["Rules", "load_rules", "parse_rules"]

#: Longer lines are passed over: what a pattern takes on a line may grow with more than its length.
MAX_LINE: Final = 8192
#: Starts that wait for their end, spans remembered so that they count once, and lines remembered in each file.
MAX_OPEN: Final = 10_000
MAX_KNOWN: Final = 100_000
MAX_LINES: Final = 65_536
MAX_FILES: Final = 64
MAX_PROBLEMS: Final = 100
_MAX_RULES_FILE: Final = 1 << 18
_MAX_NAME: Final = 200
#: Times remembered by their text, which most often is that of the line before.
_MAX_TIMES: Final = 256

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NUMBER: Final = re.compile(r"\s*(\d{1,18})(?:[.,](\d{1,18})\d*)?\s*", re.ASCII)
_COMPARED: Final = re.compile(r"(>=|<=|!=|>|<|=)\s*(-?\d{1,18}(?:\.\d{1,18})?)", re.ASCII)
_PLACE: Final = re.compile(r"\{(\w+)\}")
_UNITS: Final = {"ns": 0, "us": 3, "ms": 6, "s": 9}
_ORDERS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": float.__ge__,
    "<=": float.__le__,
    ">": float.__gt__,
    "<": float.__lt__,
    "=": float.__eq__,
    "!=": float.__ne__,
}
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


class _Unreadable(ValueError):
    """A line matches, and a value in it cannot be used."""


class Rule(NamedTuple):
    """One rule, checked. `patterns`: of lines of the kinds "line", "start" and "end"; texts are names of groups."""

    name: str
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    key: tuple[str, ...]
    time: str | None
    read_time: _Times
    time_is_start: bool
    duration: str | None
    unit: int
    outcome: str | None
    outcomes: tuple[tuple[str, tuple[_Test, ...]], ...]
    error: str | None
    fields: tuple[str, ...]


class _Open(NamedTuple):
    """A start that waits for its end; `id` is None where that span has been counted before."""

    id: int | None
    t: int
    name: str


class _File:
    """What is remembered of a file: where it was read to, and how often lines stood in it."""

    __slots__ = ("number", "times")

    def __init__(self) -> None:
        self.number = -1
        self.times: OrderedDict[int, int] = OrderedDict()


class Rules:
    """Turns lines into payloads of the record protocol. Made by `load_rules` or `parse_rules`.

    Counts, so that nothing is lost in silence: `matched` lines, of which `duplicates` told of spans that were known,
    `unreadable` had a value that cannot be used (`problems` has the first hundred, as (file, line, why)) and
    `unmatched` were ends without a start; `too_long` lines were not looked at; `given_up` starts were followed by
    another one of the same key, or by too many others, and their spans end there as interrupted.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        # What a rule's starts are known by in another run.
        self._of_rule = [_digest_of(rule) for rule in self._rules]
        self._open: OrderedDict[tuple[int, tuple[str, ...]], _Open] = OrderedDict()
        self._known: OrderedDict[int, None] = OrderedDict()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self.matched = self.duplicates = self.unreadable = self.unmatched = self.too_long = self.given_up = 0
        self.problems: list[tuple[str, int, str]] = []

    def payloads(self, line: bytes | str, file: str, number: int) -> Sequence[dict[str, Any]]:
        """What a line tells, as payloads for `Inspector.apply`; empty where no rule matches it. Raises nothing.

        file, number: where it stands, the first line being 1. A number that is not above the one before says that the
        file is read again.
        """
        if len(line) > MAX_LINE:
            self.too_long += 1
            return ()
        if isinstance(line, bytes):
            line = line.decode("utf-8", "replace")
        line = line.rstrip("\r\n")
        for index, rule in enumerate(self._rules):
            for kind, pattern in rule.patterns:
                found = pattern.search(line)
                if found is not None:
                    self.matched += 1
                    groups = {name: text for name, text in found.groupdict().items() if text is not None}
                    try:
                        return self._told(kind, index, groups, line, file, number)
                    except _Unreadable as problem:
                        self.unreadable += 1
                        if len(self.problems) < MAX_PROBLEMS:
                            self.problems.append((file, number, str(problem)))
                        return ()
        return ()

    def _told(
        self, kind: str, index: int, groups: Mapping[str, str], line: str, file: str, number: int
    ) -> list[dict[str, Any]]:
        if kind == "line":
            return self._whole(index, groups, line, file, number)
        return self._start(index, groups, file, number) if kind == "start" else self._end(index, groups, number)

    def first_time(self, lines: Iterable[bytes]) -> int:
        """The time (Unix time in ns) of the first of these lines that has one, 0 where none does. Nothing is counted or
        remembered.
        """
        for line in lines:
            if len(line) > MAX_LINE:
                continue
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            rule, found = next(
                (
                    (rule, found)
                    for rule in self._rules
                    for _, pattern in rule.patterns
                    if (found := pattern.search(text)) is not None
                ),
                (None, None),
            )
            if rule is not None and found is not None and rule.time is not None:
                try:
                    return rule.read_time(found.groupdict().get(rule.time) or "")
                except _Unreadable:
                    pass
        return 0

    def finish(self) -> Sequence[dict[str, Any]]:
        """No more lines come. Spans whose end has not been seen stay open, as those of a killed process do; so there
        is nothing more to tell.
        """
        self._open.clear()
        return ()

    def dump(self) -> list[list[Any]]:
        """The starts that wait for their end, oldest first, as values that JSON can hold."""
        return [[self._of_rule[index], list(key), *begun] for (index, key), begun in self._open.items()]

    def load(self, saved: list[list[Any]]) -> None:
        """Go on with what `dump` gave in a former run; starts of rules that are no more, or are others by now, are left
        out. Raises ValueError or TypeError for what `dump` never gave.
        """
        known = {digest: index for index, digest in enumerate(self._of_rule)}
        for digest, key, id, t, name in saved[-MAX_OPEN:]:
            if not (isinstance(digest, str) and isinstance(name, str) and all(isinstance(part, str) for part in key)):
                raise TypeError(f"{name!r} is no start that waits for its end")
            if not is_whole(t) or not (id is None or (is_whole(id >> 1) and id > 0)):
                raise ValueError(f"{id!r} and {t!r} are no span")
            if digest in known:
                self._open[known[digest], tuple(key)] = _Open(id, t, name)
                if id is not None:
                    self._known[id] = None

    # -- the three kinds of lines ------------------------------------------------------------------------------------

    def _whole(self, index: int, groups: Mapping[str, str], line: str, file: str, number: int) -> list[dict[str, Any]]:
        rule = self._rules[index]
        t = _time(rule, groups, number)
        duration = _duration(rule, groups)
        if rule.time is None:
            # Nothing in the line tells it from others like it.
            id = self._identify(index, "line", file, str(number))
        else:
            # Nor does a time in whole seconds, of two requests in one of them.
            id = self._identify(index, "line", line, str(self._occurrence(index, line, file, number)))
        if id is None:
            return []
        begun = t if rule.time_is_start else max(0, t - duration)
        name = _name(rule, groups)
        enter = _begin(id, begun, name, _fields(rule, groups), f"{file}:{number}")
        return [enter, *_finished(id, begun + duration, name, duration, rule, groups, {})]

    def _start(self, index: int, groups: Mapping[str, str], file: str, number: int) -> list[dict[str, Any]]:
        rule = self._rules[index]
        t = _time(rule, groups, number)
        key = _key(rule, groups)
        where = (file, str(number)) if rule.time is None else (str(t),)
        id = self._identify(index, "start", *key, *where)
        told = []
        before = self._open.pop((index, key), None)
        if before is not None and id is not None:
            told += self._give_up(before, t)
        name = _name(rule, groups)
        self._open[index, key] = _Open(id, t, name)
        if id is not None:
            told.append(_begin(id, t, name, _fields(rule, groups), f"{file}:{number}"))
        if len(self._open) > MAX_OPEN:
            told += self._give_up(self._open.popitem(last=False)[1], t)
        return told

    def _end(self, index: int, groups: Mapping[str, str], number: int) -> list[dict[str, Any]]:
        rule = self._rules[index]
        t = _time(rule, groups, number)
        duration = _duration(rule, groups) if rule.duration in groups else None
        begun = self._open.pop((index, _key(rule, groups)), None)
        if begun is None:
            self.unmatched += 1
            return []
        if begun.id is None:
            self.duplicates += 1
            return []
        if duration is None:
            duration = max(0, t - begun.t)
        return _finished(begun.id, begun.t + duration, begun.name, duration, rule, groups, _fields(rule, groups))

    def _give_up(self, begun: _Open, t: int) -> list[dict[str, Any]]:
        if begun.id is None:
            return []
        self.given_up += 1
        return [_exit(begun.id, 2, max(begun.t, t), begun.name, max(0, t - begun.t), "interrupted")]

    # -- which span it is --------------------------------------------------------------------------------------------

    def _identify(self, index: int, *parts: str) -> int | None:
        """The number of the span that the parts identify, whatever file they stand in; None where it is known."""
        digest = blake2b(digest_size=8)
        # The lengths keep ("a", "bc") and ("ab", "c") apart.
        for part in (self._rules[index].name, *parts):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(data) + data)
        id = int.from_bytes(digest.digest()) or 1
        known = self._known
        if id in known:
            self.duplicates += 1
            return None
        known[id] = None
        if len(known) > MAX_KNOWN:
            known.popitem(last=False)
        return id

    def _occurrence(self, index: int, line: str, file: str, number: int) -> int:
        """How often the line stood in the file before."""
        seen = self._files.get(file)
        if seen is None or number <= seen.number:
            seen = self._files[file] = _File()
        self._files.move_to_end(file)
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        seen.number = number
        times, what = seen.times, hash((index, line))
        before = times.pop(what, 0)
        times[what] = before + 1
        if len(times) > MAX_LINES:
            times.popitem(last=False)
        return before


def _digest_of(rule: Rule) -> str:
    said = (rule.name, rule.key, rule.time, *((kind, pattern.pattern) for kind, pattern in rule.patterns))
    return blake2b(repr(said).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# -- payloads ---------------------------------------------------------------------------------------------------------


def _payload(kind: str, id: int, step: int, t: int, name: str) -> dict[str, Any]:
    return {
        "v": VERSION,
        "kind": kind,
        "id": f"{id:016x}",
        # No clock but the log's: it stands for the monotonic one, too.
        "t": t,
        "wall": t,
        "pid": UNNUMBERED,
        # The span's own: in which order what is told of it comes.
        "seq": (id & 0xFFFFFFFF) * 3 + step,
        "name": name,
    }


def _begin(id: int, t: int, name: str, fields: dict[str, str], at: str) -> dict[str, Any]:
    return {**_payload("enter", id, 0, t, name), "trace": f"{id:032x}", "at": at, "fields": fields}


def _exit(
    id: int, step: int, t: int, name: str, duration: int, outcome: str, error: dict[str, str] | None = None
) -> dict[str, Any]:
    payload = {**_payload("exit", id, step, t, name), "outcome": outcome, "duration": duration}
    if error is not None:
        payload["error"] = error
    return payload


def _finished(
    id: int, t: int, name: str, duration: int, rule: Rule, groups: Mapping[str, str], fields: dict[str, str]
) -> list[dict[str, Any]]:
    told = []
    if fields:
        told.append({**_payload("record", id, 1, t, name), "fields": fields})
    said = groups.get(rule.outcome, "") if rule.outcome else ""
    outcome = next((outcome for outcome, tests in rule.outcomes if any(test(said) for test in tests)), "completed")
    error = None
    if outcome == "failed":
        error = {"type": said, "message": groups.get(rule.error, "") if rule.error else ""}
    return [*told, _exit(id, len(told) + 1, t, name, duration, outcome, error)]


def _time(rule: Rule, groups: Mapping[str, str], number: int) -> int:
    """Unix time in ns; without one, the lines' order stands for it."""
    if rule.time is None:
        return number
    text = groups.get(rule.time)
    if text is None:
        raise _Unreadable(f"rule {rule.name!r}: group {rule.time!r}, the time, has no text")
    return rule.read_time(text)


def _duration(rule: Rule, groups: Mapping[str, str]) -> int:
    if rule.duration is None:
        return 0
    text = groups.get(rule.duration, "")
    try:
        return _scaled(text, rule.unit)
    except ValueError:
        raise _Unreadable(f"rule {rule.name!r}: {rule.duration}={text[:100]!r} is not a duration") from None


def _key(rule: Rule, groups: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(groups.get(name, "") for name in rule.key)


def _name(rule: Rule, groups: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda place: groups.get(place[1], ""), rule.name)[:_MAX_NAME]


def _fields(rule: Rule, groups: Mapping[str, str]) -> dict[str, str]:
    return {name: groups[name] for name in rule.fields if name in groups}


def _scaled(text: str, places: int) -> int:
    """A decimal number times 10 ** places, without the rounding of floats. Raises ValueError."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise ValueError(text)
    value: int = int(found[1]) * 10**places + int(((found[2] or "") + "0" * places)[:places] or "0")
    if value >= 1 << 62:
        raise ValueError(text)
    return value


class _Times:
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
                raise _Unreadable(
                    f"rule {self._name!r}: {text[:100]!r} is not a time in the format {self._form!r}"
                ) from None
            if len(self._remembered) >= _MAX_TIMES:
                self._remembered.clear()
            self._remembered[text] = t
        return t


class _Test(NamedTuple):
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


# -- from TOML --------------------------------------------------------------------------------------------------------


def load_rules(path: str | Path) -> Rules:
    """The rules of a TOML file. Raises ConfigError for a file that cannot be read or used; the message says which rule
    and key it is, and what to write instead.
    """
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
    return parse_rules(text, str(path))


def parse_rules(text: str, source: str = "rules") -> Rules:
    """The rules in a TOML text; `source` stands in the messages. Raises ConfigError, as `load_rules` does."""
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
    return Rules([_Table(table, f"{source}, rule {number}").rule() for number, table in enumerate(found, 1)])


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
        for group in _PLACE.findall(name):
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

    def _times(self, time: str | None, name: str) -> _Times:
        form, zone = self._text("time_format"), self._text("timezone")
        if time is None:
            for key, value in (("time_format", form), ("timezone", zone)):
                if value is not None:
                    raise self._wrong(key, "goes with time, the group that has the time, which is missing")
            return _Times("unix", datetime.UTC, name)
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
        return _Times(form, self._zone(zone), name)

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
    ) -> tuple[str | None, tuple[tuple[str, tuple[_Test, ...]], ...]]:
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
            tests.append((outcome, tuple(map(self._test, values))))
        return table["group"], tuple(tests)

    def _test(self, value: str) -> _Test:
        if not value.startswith((">", "<", "=", "!=")):
            return _Test("", value)
        found = _COMPARED.fullmatch(value)
        if found is None:
            raise self._wrong("outcome", f'has {value!r}, which compares with no number; write ">= 500"')
        return _Test(found[1], float(found[2]))

    def _wrong(self, key: str, why: str, value: object = ...) -> ConfigError:
        value = self._table.get(key) if value is ... else value
        return ConfigError(f"{self._where}: {key}={_shown(value)} {why}")

    def _missing(self, key: str, fix: str) -> ConfigError:
        return ConfigError(f"{self._where}: {key} is missing; write {fix}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
