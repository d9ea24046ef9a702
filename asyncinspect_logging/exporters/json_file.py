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
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

from ..snapshot import Histogram, NameView, Snapshot, TaskView
from ..streams import in_snapshot_order
from .json_checks import MARK, MAX_DEPTH, FormatError, list_of, loads, rest_of, shown, task_of
from .source import Progress, Source, read_source
from .writing import Path, to_file, to_path, to_string

__all__ = ["FORMAT", "VERSION", "FormatError", "JsonExporter", "JsonTasks"]

FORMAT: Final = "asyncinspect_logging snapshot"
VERSION: Final = 1

_HEAD: Final = f'{{"format":"{FORMAT}","version":{VERSION},"tasks":['
#: Bytes read from one call of the progress function to the next.
_STEP: Final = 1 << 20
#: Whole numbers of more bits are written in hexadecimal, which is read in linear time.
_MAX_BITS: Final = 1024
_PLAIN: Final = frozenset({str, int, bool, type(None)})


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
            document = loads(first + b"".join(lines), name)
            yield from self._whole(document, name)
            return
        number = 1
        for number, line in enumerate(lines, 2):
            at = f"{name}: line {number}"
            line = line.strip()
            if line[:1] == b"]":
                rest = loads(_HEAD.encode() + line + b"".join(lines), name)
                self._rest = rest_of(rest.get("rest"), f"{name}: rest")
                return
            if line:
                yield task_of(loads(line.removesuffix(b","), at), at)
        raise FormatError(f"{name}: cut short after line {number}; export it again")

    def _whole(self, document: Any, name: str) -> Iterator[TaskView]:
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FormatError(f'{name}: not an export of snapshots, which has "format": "{FORMAT}"')
        version = document.get("version")
        if version != VERSION or type(version) is not int:
            raise FormatError(f"{name}: version {shown(version)} of the format is not known here, only {VERSION}")
        for number, task in enumerate(list_of(document.get("tasks"), f"{name}: tasks")):
            at = f"{name}: tasks[{number}]"
            yield task_of(task, at)
        self._rest = rest_of(document.get("rest"), f"{name}: rest")


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
        if type(key) is not str or key == MARK:
            return False
        if cls not in _PLAIN and cls is not float and not _is_plain_container(value, 1):
            return False
    return True


def _is_plain_container(value: Any, depth: int) -> bool:
    if depth >= MAX_DEPTH:
        return False
    if type(value) is dict:
        if MARK in value or not all(type(key) is str for key in value):
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
            return {MARK: "text", "utf8": text.encode("utf-8", "surrogatepass").hex()}
        return text
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _MAX_BITS else {MARK: "int", "hex": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {MARK: "float", "value": repr(float(value))}
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            pairs = [(_marked(key, depth + 1), _marked(item, depth + 1)) for key, item in value.items()]
            if all(type(key) is str and key != MARK for key, _ in pairs):
                return dict(pairs)
            return {MARK: "mapping", "items": pairs}
        if isinstance(value, tuple):
            return {MARK: "tuple", "items": [_marked(item, depth + 1) for item in value]}
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
