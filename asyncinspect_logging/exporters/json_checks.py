"""What an export in JSON says, checked: each function takes a value as it was parsed, and where it stands, and gives
what it must be, or raises `FormatError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

from ..snapshot import Event, Finding, Histogram, NameView, Snapshot, TaskView
from ..states import TaskState

__all__ = ["MARK", "MAX_DEPTH", "FormatError", "list_of", "loads", "rest_of", "shown", "task_of"]

#: Nesting of a field's value beyond which it is named only; fields that a span has taken are never deeper than 4.
MAX_DEPTH: Final = 64
#: The key that marks what JSON has no word for. A mapping that has this key itself is marked, too.
MARK: Final = "$"
#: Bits of the largest number that is counted or measured, sums of many with 63 bits among them. (Fields may have any.)
_BITS: Final = 127
_MOST: Final = 1 << _BITS


class FormatError(ValueError):
    """A file is no export of snapshots, or not all of one, or was changed to something that cannot be right."""


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def loads(text: bytes, at: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"{at}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise FormatError(f"{at}: nested too deep to be an export") from None
    except ValueError as error:
        raise FormatError(f"{at}: not JSON, or cut short ({error})") from None


def shown(value: Any) -> str:
    """A short text for a value that is wrong."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    # Not in decimal, in which a long number takes long.
    text = f"{value:#x}" if type(value) is int else repr(value[:60]) if isinstance(value, str) else repr(value)
    return text if len(text) < 80 else text[:79] + "…"


def _wrong(value: Any, at: str, what: str) -> FormatError:
    return FormatError(f"{at}: {shown(value)} is not {what}")


def _scalar(value: Any, at: str, of: tuple[type, ...], what: str) -> Any:
    plain = _unmarked(value, at) if type(value) is dict else value
    if type(plain) not in of:
        raise _wrong(value, at, what)
    return plain


def _text(value: Any, at: str) -> str:
    text: str = value if type(value) is str else _scalar(value, at, (str,), "text")
    return text


def _int(value: Any, at: str) -> int:
    what = f"a whole number of at most {_BITS} bits"
    number: int = value if type(value) is int else _scalar(value, at, (int,), what)
    if number.bit_length() > _BITS:
        raise _wrong(value, at, what)
    return number


def _float(value: Any, at: str) -> float:
    # A whole number is as good.
    number: float = value if type(value) is float else _scalar(value, at, (float, int), "a number")
    if not -_MOST < number < _MOST:
        raise _wrong(value, at, f"a number of at most {_BITS} bits")
    return number


def _bool(value: Any, at: str) -> bool:
    if type(value) is not bool:
        raise _wrong(value, at, "true or false")
    return value


def list_of(value: Any, at: str) -> list[Any]:
    if type(value) is not list:
        raise _wrong(value, at, "a list")
    return value


def _state(value: Any, at: str) -> TaskState:
    try:
        return TaskState(_text(value, at))
    except ValueError:
        raise _wrong(value, at, f"a state ({', '.join(TaskState)})") from None


def _texts(value: Any, at: str) -> tuple[str, ...]:
    return tuple([_text(item, at) for item in list_of(value, at)])


def _mapping(value: Any, at: str) -> Mapping[str, Any]:
    plain = _unmarked(value, at)
    if type(plain) is not dict or not all(type(key) is str for key in plain):
        raise _wrong(value, at, "an object")
    return MappingProxyType(plain)


def _events(value: Any, at: str) -> tuple[Event, ...]:
    found = []
    for item in list_of(value, at):
        if len(list_of(item, at)) != 3:
            raise _wrong(item, at, "an event: its time, kind and detail")
        found.append(Event(_float(item[0], at), _text(item[1], at), _text(item[2], at)))
    return tuple(found)


def _counts(value: Any, at: str) -> Mapping[str, int]:
    return MappingProxyType({key: _int(item, f"{at}.{key:.60}") for key, item in _mapping(value, at).items()})


def _or_null(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, at: None if value is None else check(value, at)


def _unmarked(value: Any, at: str, depth: int = 0) -> Any:
    """What was marked when it was written."""
    cls = type(value)
    if cls is not dict and cls is not list:
        return value
    if depth > 2 * MAX_DEPTH:
        raise FormatError(f"{at}: nested too deep to be an export")
    if cls is list:
        return [_unmarked(item, at, depth + 1) for item in value]
    if MARK not in value:
        return {key: _unmarked(item, at, depth + 1) for key, item in value.items()}
    try:
        return _MARKED[value[MARK]](value, at, depth + 1)
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f'{at}: a value marked "{MARK}" that cannot be: {shown(value.get(MARK))}') from None


def _items(value: Any, at: str, depth: int) -> list[Any]:
    return [_unmarked(item, at, depth) for item in list_of(value["items"], at)]


def _pairs(value: Any, at: str, depth: int) -> dict[Any, Any]:
    found = {}
    for key, item in _items(value, at, depth):
        found[key] = item
    return found


_MARKED: Final[dict[str, Callable[[dict[str, Any], str, int], Any]]] = {
    "text": lambda value, at, depth: bytes.fromhex(value["utf8"]).decode("utf-8", "surrogatepass"),
    "int": lambda value, at, depth: int(value["hex"], 16),
    "float": lambda value, at, depth: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value["value"]],
    "tuple": lambda value, at, depth: tuple(_items(value, at, depth)),
    "mapping": _pairs,
}


def _record(value: Any, at: str, checks: Mapping[str, Callable[[Any, str], Any]], optional: str = "") -> dict[str, Any]:
    """The entries of an object that has them all; others are passed by, for the sake of later releases."""
    if type(value) is not dict:
        raise _wrong(value, at, "an object")
    found = {}
    for key, check in checks.items():
        if key in value:
            found[key] = check(value[key], f"{at}: {key}")
        elif key != optional:
            raise FormatError(f"{at}: {key} is missing")
    return found


def _histogram(value: Any, at: str) -> Histogram:
    found = _record(value, at, _HISTOGRAM)
    if len(found["counts"]) != len(found["bounds"]) + 1:
        raise FormatError(f"{at}: {len(found['counts'])} counts for {len(found['bounds'])} bounds; there is one more")
    if min(found["counts"]) < 0 or any(low >= high for low, high in pairwise(found["bounds"])):
        raise FormatError(f"{at}: bounds that do not rise, or a count below zero, which no histogram has")
    return Histogram(**found)


def _durations(value: Any, at: str) -> Mapping[str, Histogram]:
    if type(value) is not dict:
        raise _wrong(value, at, "an object")
    return MappingProxyType({key: _histogram(item, f"{at}.{key:.60}") for key, item in value.items()})


def _names(value: Any, at: str) -> Mapping[str, NameView]:
    if type(value) is not dict:
        raise _wrong(value, at, "an object")
    if value.get(MARK) == "mapping":
        pairs = [list_of(pair, at) for pair in list_of(value.get("items"), at)]
    else:
        pairs = [[key, item] for key, item in value.items()]
    found = {}
    for pair in pairs:
        if len(pair) != 2:
            raise _wrong(pair, at, "a name and what was counted under it")
        name = _text(pair[0], at)
        found[name] = NameView(**_record(pair[1], f"{at}.{name:.60}", _NAME))
    return MappingProxyType(found)


def _findings(value: Any, at: str) -> tuple[Finding, ...]:
    rows = enumerate(list_of(value, at))
    return tuple([Finding(**_record(item, f"{at}[{number}]", _FINDING)) for number, item in rows])


def _lints(value: Any, at: str) -> Mapping[tuple[str, str], int]:
    rows = [_record(item, f"{at}[{number}]", _LINT) for number, item in enumerate(list_of(value, at))]
    return MappingProxyType({(row["lint"], row["name"]): row["count"] for row in rows})


def task_of(value: Any, at: str) -> TaskView:
    return TaskView(**_record(value, at, _TASK_CHECKS, optional="awaiting"))


def rest_of(value: Any, at: str) -> Snapshot:
    if value is None:
        raise FormatError(f"{at} is missing: the export was cut short; export it again")
    return Snapshot(tasks=(), **_record(value, at, _REST))


_HISTOGRAM: Final = {
    "bounds": lambda value, at: tuple([_float(item, at) for item in list_of(value, at)]),
    "counts": lambda value, at: tuple([_int(item, at) for item in list_of(value, at)]),
    "sum": _float,
}
_NAME: Final[dict[str, Callable[[Any, str], Any]]] = {
    "name": _text,
    **dict.fromkeys(("spawned", "completed", "failed", "cancelled", "polls", "wakes", "self_wakes"), _int),
    **dict.fromkeys(("busy", "idle", "scheduled"), _float),
    "durations": _durations,
    **dict.fromkeys(("poll_counts", "poll_durations", "scheduled_delays"), _histogram),
}
_FINDING: Final[dict[str, Callable[[Any, str], Any]]] = {
    "kind": _text,
    "name": _text,
    "span_ids": _texts,
    "message": _text,
    "evidence": _texts,
    "at": _float,
}
_LINT: Final[dict[str, Callable[[Any, str], Any]]] = {"lint": _text, "name": _text, "count": _int}
_REST: Final[dict[str, Callable[[Any, str], Any]]] = {
    "taken_at": _float,
    "names": _names,
    **dict.fromkeys(("states", "events", "dropped", "memory"), _counts),
    "findings": _findings,
    "deadlocks": _int,
    "lints": _lints,
    "loop_lag": _histogram,
}
_TASK_CHECKS: Final[dict[str, Callable[[Any, str], Any]]] = {
    **dict.fromkeys(("id", "trace_id", "name"), _text),
    **dict.fromkeys(("parent_id", "outcome", "task", "at", "waiting_on"), _or_null(_text)),
    "state": _state,
    "fields": _mapping,
    "error": _or_null(_mapping),
    **dict.fromkeys(("age", "busy", "idle", "scheduled", "max_poll", "started_at"), _float),
    **dict.fromkeys(("duration", "waiting_since"), _or_null(_float)),
    **dict.fromkeys(("polls", "wakes", "self_wakes"), _int),
    "thread": _or_null(_int),
    **dict.fromkeys(("await_chain", "links", "awaiting"), _texts),
    "parent_closed": _bool,
    "events": _events,
}
