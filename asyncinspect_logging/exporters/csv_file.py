"""Tasks, or the entries of their timelines, as CSV (RFC 4180): a header row, CRLF line ends, UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, Literal, TypeAlias

from ..errors import ConfigError
from ..snapshot import TaskView
from .source import Progress, Source, read_source
from .writing import Path, loose_json, to_file, to_path, to_string

__all__ = ["EVENT_COLUMNS", "TASK_COLUMNS", "CsvExporter", "What"]

What: TypeAlias = Literal["tasks", "events"]

#: Rows that are turned into text at a time.
_BATCH: Final = 500
#: What a spreadsheet takes for the beginning of a formula, or skips before one (OWASP, "CSV injection").
_FORMULA: Final = frozenset("=+-@\t\r\n＝＋－＠")

TASK_COLUMNS: Final = (
    *("id", "parent_id", "trace_id", "name", "state", "outcome", "started_at", "age", "duration"),
    *("polls", "wakes", "self_wakes", "busy", "idle", "scheduled", "max_poll", "task", "thread", "at"),
    *("error_type", "error_message", "waiting_on", "waiting_since", "await_chain", "links", "awaiting"),
    *("parent_closed", "events", "fields"),
)
EVENT_COLUMNS: Final = ("task_id", "name", "at", "kind", "detail")


class CsvExporter:
    """A table of `what`: "tasks", a row for each, or "events", a row for each entry of each task's timeline.

    Text that a spreadsheet would take for a formula has an apostrophe put before it. Raises `ConfigError` for any other
    `what`.
    """

    @staticmethod
    def export_to_file(source: Source, path: Path, *, what: What = "tasks", progress: Progress | None = None) -> None:
        """Write `source` to a file at `path`, which is complete or not there. Raises `ExportError`."""
        to_path(_parts(source, what, progress), path)

    @staticmethod
    def export_to_string(source: Source, *, what: What = "tasks") -> str:
        return to_string(_parts(source, what, None))

    @staticmethod
    def write(source: Source, file: IO[Any], *, what: What = "tasks", progress: Progress | None = None) -> None:
        """Write `source` to an open file, binary or text (a text file opened with `newline=""`)."""
        to_file(_parts(source, what, progress), file)


def _parts(source: Source, what: str, progress: Progress | None) -> Iterator[bytes]:
    if what not in _TABLES:
        raise ConfigError(f"what={what!r} is no table; write {' or '.join(map(repr, _TABLES))}")
    # Not a generator itself, so that a wrong argument is told of before a file is made.
    columns, rows_of = _TABLES[what]
    return _table(source, columns, rows_of, progress)


def _table(
    source: Source,
    columns: tuple[str, ...],
    rows_of: Callable[[TaskView], Iterator[list[object]]],
    progress: Progress | None,
) -> Iterator[bytes]:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(columns)
    rows = 0
    for task in read_source(source, progress).tasks:
        for row in rows_of(task):
            writer.writerow(row)
            rows += 1
            if rows % _BATCH == 0:
                yield _taken(buffer)
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode("utf-8", "backslashreplace")


def _cell(text: str | None) -> str | None:
    return "'" + text if text and text[0] in _FORMULA else text


def _lines(texts: tuple[str, ...]) -> str | None:
    return _cell("\n".join(texts)) if texts else None


def _task_rows(task: TaskView) -> Iterator[list[object]]:
    error = task.error or {}
    yield [
        _cell(task.id),
        _cell(task.parent_id),
        _cell(task.trace_id),
        _cell(task.name),
        task.state.value,
        _cell(task.outcome),
        task.started_at,
        task.age,
        task.duration,
        task.polls,
        task.wakes,
        task.self_wakes,
        task.busy,
        task.idle,
        task.scheduled,
        task.max_poll,
        _cell(task.task),
        task.thread,
        _cell(task.at),
        _cell(_text(error.get("type"))),
        _cell(_text(error.get("message"))),
        _cell(task.waiting_on),
        task.waiting_since,
        _lines(task.await_chain),
        _lines(task.links),
        _lines(task.awaiting),
        "true" if task.parent_closed else "false",
        len(task.events),
        loose_json(dict(task.fields)).decode("utf-8") if task.fields else "{}",
    ]


def _text(value: object) -> str | None:
    """What stands in an error, which a log may have anything in."""
    return value if value is None or isinstance(value, str) else loose_json(value).decode("utf-8")


def _event_rows(task: TaskView) -> Iterator[list[object]]:
    task_id, name = _cell(task.id), _cell(task.name)
    for event in task.events:
        yield [task_id, name, event.at, _cell(event.kind), _cell(event.detail)]


_TABLES: Final[dict[str, tuple[tuple[str, ...], Callable[[TaskView], Iterator[list[object]]]]]] = {
    "tasks": (TASK_COLUMNS, _task_rows),
    "events": (EVENT_COLUMNS, _event_rows),
}
