"""Snapshots as JSON, and back: what is read is equal to what was written, in every field.

The format (version 1; docs/export.md has it in full) is one JSON object with the keys `format`, `version`, `tasks` and
`rest`. It is written with each task on a line of its own, so that it can be read task by task, but may be laid out in
any other way.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import IO, Any, Final

from ..snapshot import Event, Finding, Histogram, NameView, Snapshot, TaskView
from ..states import TaskState
from ..streams import in_snapshot_order
from .source import Progress, Source, read_source
from .writing import Path, to_file, to_path, to_string

__all__ = ["FORMAT", "VERSION", "FormatError", "JsonExporter", "JsonTasks"]

FORMAT: Final = "asyncinspect_logging snapshot"
VERSION: Final = 1

_HEAD: Final = f'{{"format":"{FORMAT}","version":{VERSION},"tasks":['
#: Bytes read from one call of the progress function to the next.
_STEP: Final = 1 << 20
#: Nesting of a field's value beyond which it is named only; fields that a span has taken are never deeper than 4.
_MAX_DEPTH: Final = 64
#: Whole numbers of more bits are written in hexadecimal, which is read in linear time.
_MAX_BITS: Final = 1024
#: Bits of the largest number that is counted or measured, sums of many with 63 bits among them. (Fields may have any.)
_BITS: Final = 127
_MOST: Final = 1 << _BITS
#: The key that marks what JSON has no word for. A mapping that has this key itself is marked, too.
_MARK: Final = "$"
_PLAIN: Final = frozenset({str, int, bool, type(None)})


class FormatError(ValueError):
    """A file is no export of snapshots, or not all of one, or was changed to something that cannot be right."""


class JsonExporter:
    """Everything in a snapshot as JSON."""

    @staticmethod
    def export_to_file(source: Source, path: Path, *, progress: Progress | None = None) -> None:
        """Write `source` to a file at `path`, which is complete or not there. Raises `ExportError`."""
        to_path(_parts(source, progress), path)

    @staticmethod
    def export_to_string(source: Source) -> str:
        return to_string(_parts(source, None))

    @staticmethod
    def write(source: Source, file: IO[Any], *, progress: Progress | None = None) -> None:
        """Write `source` to an open file, binary or text."""
        to_file(_parts(source, progress), file)

    @staticmethod
    def read(where: Path | bytes, *, progress: Progress | None = None) -> Snapshot:
        """The snapshot that was exported to the file at `where`. Text that begins with `{` (and bytes) is not taken as
        a path, but as the export itself. `progress` is called now and then with the bytes read and the bytes in all
        (None: not known).

        Raises `FormatError` where it is no complete export, and OSError where the file cannot be read.
        """
        tasks = JsonTasks(where, progress=progress)
        found = in_snapshot_order(tasks)
        return tasks.rest()._replace(tasks=found)


class JsonTasks:
    """The tasks of an export, read one after the other in flat memory, and then the `rest()`: a stream of tasks.

    The arguments and errors are those of `JsonExporter.read`. An export that was laid out anew is read as a whole.
    """

    def __init__(self, where: Path | bytes, *, progress: Progress | None = None) -> None:
        self._progress = progress
        self._text: bytes | None = None
        self._path: Path = "the export"
        if isinstance(where, bytes):
            self._text = where
        elif isinstance(where, str) and where.lstrip()[:1] == "{":
            self._text = where.encode("utf-8", "surrogatepass")
        else:
            self._path = where
        self._rest: Snapshot | None = None

    def __iter__(self) -> Iterator[TaskView]:
        name = os.fspath(self._path)
        if self._text is not None:
            lines = iter(self._text.splitlines(keepends=True))
            yield from self._read(name, self._told(lines, len(self._text)))
            return
        with open(self._path, "rb") as file:
            of_file = os.fstat(file.fileno())
            total = of_file.st_size if stat.S_ISREG(of_file.st_mode) else None
            yield from self._read(name, self._told(file, total))

    def _told(self, lines: Iterator[bytes], total: int | None) -> Iterator[bytes]:
        """The lines, and how far they have come."""
        if self._progress is None:
            yield from lines
            return
        done = told = 0
        for line in lines:
            yield line
            done += len(line)
            if done - told >= _STEP:
                told = done
                self._progress(done, total)
        self._progress(done, total)

    def rest(self) -> Snapshot:
        """All but the tasks, once those have been gone through."""
        if self._rest is None:
            raise RuntimeError("the rest comes after the tasks: go through them first")
        return self._rest

    def _read(self, name: str, lines: Iterator[bytes]) -> Iterator[TaskView]:
        first = next(lines, b"")
        if first.strip() != _HEAD.encode():
            document = _loads(first + b"".join(lines), name)
            yield from self._whole(document, name)
            return
        number = 1
        for number, line in enumerate(lines, 2):
            at = f"{name}: line {number}"
            line = line.strip()
            if line[:1] == b"]":
                rest = _loads(_HEAD.encode() + line + b"".join(lines), name)
                self._rest = _rest_of(rest.get("rest"), f"{name}: rest")
                return
            if line:
                yield _task_of(_loads(line.removesuffix(b","), at), at)
        raise FormatError(f"{name}: cut short after line {number}; export it again")

    def _whole(self, document: Any, name: str) -> Iterator[TaskView]:
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FormatError(f'{name}: not an export of snapshots, which has "format": "{FORMAT}"')
        version = document.get("version")
        if version != VERSION or type(version) is not int:
            raise FormatError(f"{name}: version {_shown(version)} of the format is not known here, only {VERSION}")
        for number, task in enumerate(_list(document.get("tasks"), f"{name}: tasks")):
            at = f"{name}: tasks[{number}]"
            yield _task_of(task, at)
        self._rest = _rest_of(document.get("rest"), f"{name}: rest")


# ---- writing

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False).encode
_TASK: Final = TaskView._fields


def _parts(source: Source, progress: Progress | None) -> Iterator[bytes]:
    tasks, rest, _ = read_source(source, progress)
    yield _HEAD.encode()
    before = b"\n"
    for task in tasks:
        yield before
        yield _task_line(task)
        before = b",\n"
    yield b'\n],\n"rest":'
    yield _marked_line(_rest_row(rest()))
    yield b"}\n"


def _task_line(task: TaskView) -> bytes:
    row: dict[str, Any] = dict(zip(_TASK, task, strict=True))
    fields, error = task.fields, task.error
    if _is_plain(fields) and (error is None or _is_plain(error)):
        row["fields"] = dict(fields)
        if error is not None:
            row["error"] = dict(error)
        try:
            # UTF-8 has no lone surrogates, and the encoder takes no NaN: both are marked.
            return _encode(row).encode("utf-8")
        except (ValueError, TypeError):
            pass
    row["events"] = [list(event) for event in task.events]
    for key in ("links", "await_chain", "awaiting"):
        row[key] = list(row[key])
    return _marked_line(row)


def _is_plain(values: Mapping[str, Any]) -> bool:
    """Whether JSON says all of it as it is, so that nothing needs to be marked."""
    for key, value in values.items():
        cls = type(value)
        if type(key) is not str or key == _MARK:
            return False
        if cls not in _PLAIN and cls is not float and not _is_plain_container(value, 1):
            return False
    return True


def _is_plain_container(value: Any, depth: int) -> bool:
    if depth >= _MAX_DEPTH:
        return False
    if type(value) is dict:
        if _MARK in value or not all(type(key) is str for key in value):
            return False
        items = list(value.values())
    elif type(value) is list:
        items = value
    else:
        return False
    return all(type(i) in _PLAIN or type(i) is float or _is_plain_container(i, depth + 1) for i in items)


def _marked_line(row: Any) -> bytes:
    return _encode(_marked(row, -3)).encode("utf-8")


def _marked(value: Any, depth: int) -> Any:
    """`value` with everything marked that JSON does not say as it is."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return {_MARK: "text", "utf8": text.encode("utf-8", "surrogatepass").hex()}
        return text
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _MAX_BITS else {_MARK: "int", "hex": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_MARK: "float", "value": repr(float(value))}
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            pairs = [(_marked(key, depth + 1), _marked(item, depth + 1)) for key, item in value.items()]
            if all(type(key) is str and key != _MARK for key, _ in pairs):
                return dict(pairs)
            return {_MARK: "mapping", "items": pairs}
        if isinstance(value, tuple):
            return {_MARK: "tuple", "items": [_marked(item, depth + 1) for item in value]}
        if isinstance(value, list):
            return [_marked(item, depth + 1) for item in value]
    return _marked(f"<{type(value).__qualname__}>", depth)


def _rest_row(rest: Snapshot) -> dict[str, Any]:
    row = rest._asdict()
    del row["tasks"]
    row["names"] = {key: _name_row(view) for key, view in rest.names.items()}
    row["findings"] = [
        {**finding._asdict(), "span_ids": list(finding.span_ids), "evidence": list(finding.evidence)}
        for finding in rest.findings
    ]
    row["lints"] = [{"lint": lint, "name": name, "count": count} for (lint, name), count in rest.lints.items()]
    row["loop_lag"] = _histogram_row(rest.loop_lag)
    return row


def _name_row(view: NameView) -> dict[str, Any]:
    row = view._asdict()
    row["durations"] = {state: _histogram_row(found) for state, found in view.durations.items()}
    for key in ("poll_counts", "poll_durations", "scheduled_delays"):
        row[key] = _histogram_row(row[key])
    return row


def _histogram_row(histogram: Histogram) -> dict[str, Any]:
    return {"bounds": list(histogram.bounds), "counts": list(histogram.counts), "sum": histogram.sum}


# ---- reading: each function takes a value as it was parsed and where it stands, and gives what it must be


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _loads(text: bytes, at: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"{at}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise FormatError(f"{at}: nested too deep to be an export") from None
    except ValueError as error:
        raise FormatError(f"{at}: not JSON, or cut short ({error})") from None


def _shown(value: Any) -> str:
    """A short text for a value that is wrong."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    # Not in decimal, in which a long number takes long.
    text = f"{value:#x}" if type(value) is int else repr(value[:60]) if isinstance(value, str) else repr(value)
    return text if len(text) < 80 else text[:79] + "…"


def _wrong(value: Any, at: str, what: str) -> FormatError:
    return FormatError(f"{at}: {_shown(value)} is not {what}")


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


def _list(value: Any, at: str) -> list[Any]:
    if type(value) is not list:
        raise _wrong(value, at, "a list")
    return value


def _state(value: Any, at: str) -> TaskState:
    try:
        return TaskState(_text(value, at))
    except ValueError:
        raise _wrong(value, at, f"a state ({', '.join(TaskState)})") from None


def _texts(value: Any, at: str) -> tuple[str, ...]:
    return tuple([_text(item, at) for item in _list(value, at)])


def _mapping(value: Any, at: str) -> Mapping[str, Any]:
    plain = _unmarked(value, at)
    if type(plain) is not dict or not all(type(key) is str for key in plain):
        raise _wrong(value, at, "an object")
    return MappingProxyType(plain)


def _events(value: Any, at: str) -> tuple[Event, ...]:
    found = []
    for item in _list(value, at):
        if len(_list(item, at)) != 3:
            raise _wrong(item, at, "an event: its time, kind and detail")
        found.append(Event(_float(item[0], at), _text(item[1], at), _text(item[2], at)))
    return tuple(found)


def _counts(value: Any, at: str) -> Mapping[str, int]:
    return MappingProxyType({key: _int(item, f"{at}.{key:.60}") for key, item in _mapping(value, at).items()})


def _or_null(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, at: None if value is None else check(value, at)


def _unmarked(value: Any, at: str, depth: int = 0) -> Any:
    """What `_marked` was given."""
    cls = type(value)
    if cls is not dict and cls is not list:
        return value
    if depth > 2 * _MAX_DEPTH:
        raise FormatError(f"{at}: nested too deep to be an export")
    if cls is list:
        return [_unmarked(item, at, depth + 1) for item in value]
    if _MARK not in value:
        return {key: _unmarked(item, at, depth + 1) for key, item in value.items()}
    try:
        return _MARKED[value[_MARK]](value, at, depth + 1)
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f'{at}: a value marked "{_MARK}" that cannot be: {_shown(value.get(_MARK))}') from None


def _items(value: Any, at: str, depth: int) -> list[Any]:
    return [_unmarked(item, at, depth) for item in _list(value["items"], at)]


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
    if value.get(_MARK) == "mapping":
        pairs = [_list(pair, at) for pair in _list(value.get("items"), at)]
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
    rows = enumerate(_list(value, at))
    return tuple([Finding(**_record(item, f"{at}[{number}]", _FINDING)) for number, item in rows])


def _lints(value: Any, at: str) -> Mapping[tuple[str, str], int]:
    rows = [_record(item, f"{at}[{number}]", _LINT) for number, item in enumerate(_list(value, at))]
    return MappingProxyType({(row["lint"], row["name"]): row["count"] for row in rows})


def _task_of(value: Any, at: str) -> TaskView:
    return TaskView(**_record(value, at, _TASK_CHECKS, optional="awaiting"))


def _rest_of(value: Any, at: str) -> Snapshot:
    if value is None:
        raise FormatError(f"{at} is missing: the export was cut short; export it again")
    return Snapshot(tasks=(), **_record(value, at, _REST))


_HISTOGRAM: Final = {
    "bounds": lambda value, at: tuple([_float(item, at) for item in _list(value, at)]),
    "counts": lambda value, at: tuple([_int(item, at) for item in _list(value, at)]),
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
