"""Where output goes: tables and bars for people, one JSON object for machines, exports as they are.

Nothing that a log says reaches a terminal before `clean` has seen it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final

import click
from rich.box import ASCII2, ROUNDED
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .text import clean, fit, is_ascii

__all__ = ["print_json", "print_table", "progress_bar", "say", "title", "to_stdout", "warn"]

#: Width where nobody looks on: nothing is to be cut then.
_WIDE: Final = 10_000

#: Styles of the words that are states and outcomes, wherever they stand.
STYLES: Final = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "blocked": "yellow",
    "running": "green",
    "pending": "cyan",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would exit with the status that a condition which failed has."""
        raise BrokenPipeError


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    console = _Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = _Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=True, width=_WIDE)
    return console


def _text(value: object, style: str = "", *, stream: Any = None, limit: int = 200) -> Text:
    return Text(fit(clean(value, limit=limit), stream), style)


def say(text: object = "", *, style: str = "", limit: int = 2000) -> None:
    """A line of text."""
    _console().print(_text(text, style, limit=limit))


def title(text: object) -> None:
    _console().print(_text(text, "bold"))


def warn(text: object) -> None:
    """A line on stderr."""
    _console(stderr=True).print(_text(text, "yellow", stream=sys.stderr, limit=2000))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows of texts and numbers. A column whose name begins with `#` is aligned right."""
    console = _console()
    table = Table(box=ASCII2 if is_ascii() else ROUNDED, header_style="bold", pad_edge=True)
    for column in columns:
        # All may be folded: what may not be would take the place of what the numbers are of, in a narrow terminal.
        table.add_column(
            column.removeprefix("#"), justify="right" if column.startswith("#") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_text(cell, STYLES.get(str(cell), "")) for cell in row))
    console.print(table)


def print_json(command: str, values: Mapping[str, Any]) -> None:
    """One object on stdout: `command`, `version` (of its shape) and the values. All of it is ASCII."""
    document = {"command": command, "version": 1} | {key: _plain(value) for key, value in values.items()}
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(document, allow_nan=False, indent=indent))


def _plain(value: Any, depth: int = 0) -> Any:
    """What JSON has a word for: no NaN, tuples as lists, views as objects."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if depth < 32:
        if isinstance(value, Mapping):
            return {str(key): _plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return _plain(value._asdict(), depth)
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(item, depth + 1) for item in value]
    return f"<{type(value).__qualname__}>"


@contextmanager
def progress_bar(what: str, *, hidden: bool = False) -> Iterator[Callable[[int, int | None], None] | None]:
    """A function to call with the bytes done and those there are in all, which draws a bar on stderr; None where nobody
    looks on, or `hidden`.
    """
    if hidden or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(
        *columns,
        console=_console(stderr=True),
        transient=True,
        # What goes to stdout meanwhile is an export, and not for rich to look at.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Terminal:
    """A file that writes to a terminal what may be shown there."""

    encoding = "utf-8"

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # Lines of CSV end with both.
        self._stream.write(clean(text.replace("\r\n", "\n"), keep="\n\t", limit=len(text)))
        return len(text)


@contextmanager
def to_stdout() -> Iterator[IO[Any]]:
    """stdout for an export: bytes as they are into a file or a pipe, and to a terminal only what may be shown."""
    sys.stdout.flush()
    if sys.stdout.isatty():
        yield _Terminal(sys.stdout)  # type: ignore[misc] # all of a file that exports use
        sys.stdout.flush()
    else:
        stream = sys.stdout.buffer
        yield stream
        stream.flush()
