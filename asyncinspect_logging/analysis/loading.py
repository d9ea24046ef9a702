"""What there is to be looked at: a log, a JSON export, or the /metrics of a running process. Content tells which."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..snapshot import Snapshot, TaskView
from .files import LogFileError, Source, sources, unpacked
from .pages import fetch_page, is_address, is_page, read_page

if TYPE_CHECKING:
    from ..streams import TaskStream
    from .rules import Rules

__all__ = ["LoadError", "load"]

#: Bytes looked at to tell what a file is.
_HEAD: Final = 4096
_EXPORT: Final = re.compile(rb'\s*\{\s*"format"\s*:\s*"asyncinspect_logging snapshot"')


class LoadError(ValueError):
    """What was named cannot be looked at. The message says why, and what to do."""


def load(
    where: str | os.PathLike[str] | list[str],
    *,
    strict: bool = False,
    at: float | None = None,
    rules: Rules | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Snapshot | TaskStream:
    """What `where` names: as a stream of tasks (`asyncinspect_logging.streams.TaskStream`) which is read when
    it is iterated, so that its length does not matter, or, of a running process, a Snapshot without tasks.

    where: "http://host:port", a file or a pattern, "-" for stdin, or a list of logs. Files may be compressed with gzip
        or zstd. A saved page of metrics is taken, too.
    strict, at, rules: of a log, as `asyncinspect_logging.analysis.replay.LogTasks` has them.
    progress: called now and then with the bytes done, and the bytes in all or None, of a log or an export.

    Raises LoadError for what cannot be that, LogFileError, FormatError or PageError for what cannot be read, and
    MissingExtraError. What is wrong further on in a file comes when the stream is read.
    """
    given = [where] if isinstance(where, str | os.PathLike) else list(where)
    for name in given:
        if is_address(name):
            _only(name, given)
            _of_logs(str(name), strict, at, rules)
            return fetch_page(str(name))
    heads = [(source, source.peek(_HEAD)) for source in sources(given)]
    for source, head in heads:
        kind = "an export" if _EXPORT.match(head) else "a page of metrics" if is_page(head) else ""
        if kind:
            _only(source.name, heads, kind)
            _of_logs(source.name, strict, at, rules, kind)
            return _export(source, progress) if kind == "an export" else _page(source)
    from .replay import LogTasks

    stream: TaskStream = LogTasks([source for source, _ in heads], at=at, strict=strict, rules=rules, progress=progress)
    return stream


def _only(name: object, all: list[Any], kind: str = "the address of a process") -> None:
    if len(all) > 1:
        raise LoadError(f"{name!r} is {kind}, which goes alone; only logs can be several")


def _of_logs(
    name: str, strict: bool, at: float | None, rules: Rules | None, kind: str = "the address of a process"
) -> None:
    for option, given in (("strict", strict), ("at", at is not None), ("rules", rules is not None)):
        if given:
            raise LoadError(f"{name!r} is {kind}; {option} is for logs only")


def _page(source: Source) -> Snapshot:
    return read_page(b"".join(_bytes(source)), source.name)


def _export(source: Source, progress: Callable[[int, int | None], None] | None) -> TaskStream:
    from ..exporters.json_file import JsonTasks

    if source.size is not None:
        with Path(source.name).open("rb") as file:
            packed = unpacked(file) is not file
        if not packed:
            return JsonTasks(source.name, progress=progress)
    return _Unpacked(source, progress)


class _Unpacked:
    """An export that is compressed, or comes through a pipe: read from a copy in a temporary file."""

    def __init__(self, source: Source, progress: Callable[[int, int | None], None] | None) -> None:
        self._source, self._progress = source, progress
        self._tasks: TaskStream | None = None

    def __iter__(self) -> Iterator[TaskView]:
        from ..exporters.json_file import JsonTasks

        with tempfile.TemporaryDirectory(prefix="asyncinspect-") as folder:
            path = Path(folder) / "export"
            with path.open("wb") as copy:
                copy.writelines(_bytes(self._source))
            self._tasks = JsonTasks(path, progress=self._progress)
            yield from self._tasks

    def rest(self) -> Snapshot:
        if self._tasks is None:
            raise RuntimeError("the rest comes after the tasks: go through them first")
        return self._tasks.rest()


def _bytes(source: Source) -> Iterator[bytes]:
    for batch in source.batches():
        if batch.problem:
            raise LogFileError(f"{source.name!r}: {batch.problem}")
        yield from batch.lines
