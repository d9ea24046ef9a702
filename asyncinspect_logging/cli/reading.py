"""What commands that read logs have in common: their options, and what they say of a log that is not whole."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..snapshot import Snapshot, TaskView
from .commands import UnusableError

if TYPE_CHECKING:
    from ..analysis.replay import Report
    from ..analysis.rules import Rules
    from ..streams import TaskStream

__all__ = ["as_json", "log_options", "need_records", "need_tasks", "no_records", "read_rules"]
__all__ += ["report_json", "tell_report"]

Command = TypeVar("Command", bound=Callable[..., Any])


def moment_of(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Unix time (s) of a time in ISO 8601 (without a zone: UTC), or of such a number."""
    if value is None:
        return None
    text = value.strip()
    if re.fullmatch(r"\d{1,11}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is no time; write for example 2030-01-31T12:00:00Z or 1896091200.5", ctx, param
        ) from None


def log_options(command: Command) -> Command:
    """--strict, --at and --rules."""
    for option in (
        click.option("--rules", metavar="FILE", help="TOML rules that make spans of other programs' lines."),
        click.option(
            "--at", callback=moment_of, metavar="TIME", help="The state at a time: ISO 8601, or Unix seconds."
        ),
        click.option("--strict", is_flag=True, help="A broken line is an error: exit status 1."),
    ):
        command = option(command)
    return command


def as_json(command: Command) -> Command:
    """--json."""
    return click.option("--json", "machine", is_flag=True, help="One JSON object, for machines.")(command)


def read_rules(path: str | None) -> Rules | None:
    if path is None:
        return None
    from ..analysis.rules import load_rules

    if not Path(path).exists():
        raise UnusableError(f"there is no file {path!r}; --rules takes the path of a TOML file")
    return load_rules(path)


def need_tasks(source: object, where: tuple[str, ...], what: str) -> None:
    """Raises UnusableError for what has counters only: the page of a process."""
    if isinstance(source, Snapshot) and not source.tasks:
        raise UnusableError(
            f"{where[0]} has counters and no tasks, which {what} needs; give a log, or an export of one"
        )


class _Begun:
    """A log whose first task was looked for."""

    def __init__(self, source: TaskStream, where: str) -> None:
        self.report: Report = source.report  # type: ignore[attr-defined] # a log's has one
        self._source = source
        tasks = iter(source)
        first = [task for task in (next(tasks, None),) if task is not None]
        if not first and not self.report.records:
            raise no_records(self.report, where)
        self._tasks = chain(first, tasks)

    def __iter__(self) -> Iterator[TaskView]:
        return self._tasks

    def rest(self) -> Snapshot:
        return self._source.rest()


def need_records(source: Snapshot | TaskStream, where: object) -> Snapshot | TaskStream:
    """`source`, read as far as to its first task. Raises UnusableError for a log without any record, which is most
    likely another file than was meant: that nothing was found in it says nothing.
    """
    if getattr(source, "report", None) is None or isinstance(source, Snapshot):
        return source
    return _Begun(source, " ".join(map(str, where)) if isinstance(where, tuple | list) else str(where))


def no_records(report: Report, where: str, *, at: float | None = None) -> UnusableError:
    """What was found in a log instead of records, of which those after `at` are none."""
    what = f"{report.lines:,} lines, {report.annotations:,} of them inside spans, {report.foreign:,} of others"
    fix = "give another file, or log in JSON at level DEBUG, as json_logging() does"
    if at is not None and report.lines > report.annotations + report.foreign + report.broken:
        fix = "the others came after --at: name a later time"
    if report.problems:
        file, line, why = report.problems[0]
        fix += f"; the first broken line is {file}:{line}: {why}"
    return UnusableError(f"{where}: no records of spans in {what} and {report.broken:,} broken; {fix}")


def tell_report(source: object) -> None:
    """On stderr, what was wrong with a log that has been read."""
    from .output import warn

    report = getattr(source, "report", None)
    if report is None:
        return
    for file, line, why in report.problems[:5]:
        warn(f"{file}:{line}: {why}")
    if report.broken:
        warn(f"{report.broken:,} broken lines were left out; --strict makes them an error")
    if report.missing:
        warn(f"{report.missing:,} records are missing, by their numbers: counts are at least what is shown")


def report_json(report: Any) -> dict[str, Any]:
    return {
        "lines": report.lines,
        "records": report.records,
        "annotations": report.annotations,
        "foreign": report.foreign,
        "broken": report.broken,
        "missing": report.missing,
        "bytes_read": report.bytes_read,
        "problems": [{"file": file, "line": line, "why": why} for file, line, why in report.problems],
    }
