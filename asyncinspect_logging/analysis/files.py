"""Logs as lines: files, sets of rotated files, gzip, zstd and stdin, in memory that does not grow with the file.

Several files are read side by side, by the times in them, so that what belongs together comes together.
"""

from __future__ import annotations

import glob
import gzip
import heapq
import io
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from .zstd import Zstd, is_zstd

__all__ = ["LONG_LINE", "MAX_LINE", "Batch", "LogFileError", "Paths", "Source", "batches", "sources", "unpacked"]

#: Bytes read at a time. The lines of that are worked off together, and stay in the processor's second cache meanwhile.
_CHUNK: Final = 1 << 16
#: A line longer than this is passed over; one longer than the next is looked at with care.
MAX_LINE: Final = 1 << 24
LONG_LINE: Final = 1 << 20
#: Files open at a time.
_MAX_OPEN: Final = 100
_WALL: Final = re.compile(rb'"wall":\s?(\d{1,19})[,}\s]')


class LogFileError(ValueError):
    """A log cannot be read. The message says which, why, and what to do."""


class Batch(NamedTuple):
    """Lines that follow each other in a source, with their ends. `first`: the number of the first, counted from 1.
    `cut`: the last has no end. `long`: it is one line of more than `LONG_LINE` bytes. `problem`: these
    are no lines, but this was wrong.
    """

    source: Source
    lines: list[bytes]
    first: int
    cut: bool = False
    long: bool = False
    problem: str = ""


Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def sources(paths: Paths) -> list[Source]:
    """What `paths` name: a file, a pattern, "-" for stdin, or several of these. Each file once. A source stands for
    itself, with what was read of it.

    Raises LogFileError for what is not there.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise LogFileError("no log was given; name a file, a pattern such as 'app.log*', or '-' for stdin")
    found: dict[str, Source] = {}
    for each in given:
        path = str(os.fspath(each))
        if isinstance(each, Source) or path == "-":
            name = path if path == "-" else os.path.realpath(path)
            found.setdefault(name, each if isinstance(each, Source) else Source("-"))
            continue
        names = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        names = [name for name in names if name == path or not os.path.isdir(name)]
        if not names:
            what = "no file matches" if glob.has_magic(path) else "there is no file"
            raise LogFileError(f"{what} {path!r}; name a log file, a pattern such as 'app.log*', or '-' for stdin")
        for name in names:
            if os.path.isdir(name):
                raise LogFileError(f"{name!r} is a directory; name the files in it, as with {name + '/*.log'!r}")
            found.setdefault(os.path.realpath(name), Source(name))
    return list(found.values())


class Source:
    """A log file, or stdin ("-"). `size` in bytes as it is stored, None where that is not known."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.size: int | None = None
        #: Bytes read, as they are stored; and the time that was met last, Unix time in ns.
        self.done = 0
        self.wall = 0
        #: When the file was last changed, likewise; 0 where that is not known.
        self.changed = 0
        if name != "-":
            try:
                status = os.stat(name)
            except OSError as error:
                raise LogFileError(f"{name!r} cannot be read: {error.strerror}") from None
            if stat.S_ISREG(status.st_mode):
                self.size = status.st_size
                self.changed = status.st_mtime_ns
        # Of what can be read only once, what was read, and is to be read again, and the rest.
        self._begun: Iterator[bytes] | None = None

    def __fspath__(self) -> str:
        return self.name

    def peek(self, size: int) -> bytes:
        """The first `size` bytes of the text, or all if it has fewer, also of stdin and of pipes, however slowly they
        come. What cannot be read ends it, and is told of when it is read.
        """
        if self.size is not None:
            return self.head()[:size]
        chunks, found = self._chunks(), b""
        rest: Iterator[bytes] = chunks
        try:
            while len(found) < size and (data := next(chunks, b"")):
                found += data
        except (EOFError, OSError, zlib.error, ValueError) as error:
            rest = _failing(error)
        self._begun = chain([found] if found else [], rest)
        return found[:size]

    def first_wall(self) -> int:
        """The first time in the file, 0 where none is found near its beginning."""
        found = _WALL.search(self.head())
        return int(found[1]) if found else 0

    def head(self) -> bytes:
        """What a file begins with; nothing of what can be read only once, or not at all."""
        if self.size is None:
            return b""
        chunks = self._chunks()
        try:
            return next(chunks, b"")
        except (EOFError, OSError, zlib.error, ValueError):
            return b""
        finally:
            chunks.close()
            self.done = 0

    def batches(self, *, timed: bool = False) -> Iterator[Batch]:
        """All lines. `timed`: say in `wall` when the next ones are of."""
        number, rest, passing, broken = 1, b"", False, ""
        chunks = self._chunks()
        while True:
            try:
                data = next(chunks, b"")
            except (EOFError, OSError, zlib.error, ValueError) as error:
                # What is compressed and damaged.
                data, broken = b"", f"the file cannot be read on: {error}; make it whole, or leave it out"
            if not data:
                break
            if timed:
                found = _WALL.search(data)
                if found:
                    self.wall = int(found[1])
            # It looks for their ends with memchr; `split` goes byte by byte, which took a twelfth of all reading.
            lines = BytesIO(data).readlines()
            if data.endswith(b"\n"):
                lines.append(b"")
            if rest or passing:
                if len(lines) == 1 and not passing and len(rest) + len(data) <= MAX_LINE:
                    rest += data
                    continue
                if passing or len(rest) + len(lines[0]) > MAX_LINE:
                    rest = b""
                    if len(lines) == 1:
                        passing = True
                        continue
                    passing = False
                    del lines[0]
                    yield Batch(
                        self, [], number, problem=f"the line is longer than {MAX_LINE >> 20} MB; it is left out"
                    )
                    number += 1
                else:
                    lines[0] = rest + lines[0]
                    if len(lines[0]) > LONG_LINE and len(lines) > 1:
                        yield Batch(self, [lines.pop(0)], number, long=True)
                        number += 1
            rest = lines.pop()
            if lines:
                yield Batch(self, lines, number)
                number += len(lines)
        if passing:
            yield Batch(self, [], number, problem=f"the line is longer than {MAX_LINE >> 20} MB; it is left out")
        elif rest:
            yield Batch(self, [rest], number, cut=True, long=len(rest) > LONG_LINE)
        if broken:
            yield Batch(self, [], number, problem=broken)

    def _chunks(self) -> Generator[bytes, None, None]:
        if self._begun is not None:
            begun, self._begun = self._begun, None
            yield from begun
            return
        file: Any
        if self.name == "-":
            file = sys.stdin.buffer
        else:
            try:
                file = Path(self.name).open("rb")  # noqa: SIM115 - closed below, unless it is stdin
            except OSError as error:
                raise LogFileError(f"{self.name!r} cannot be read: {error.strerror}") from None
        try:
            once = self.size is None
            raw: Any = io.BufferedReader(_Once(file, self), _CHUNK) if once else file
            read = _reader(unpacked(raw))
            while data := read(_CHUNK):
                if not once:
                    self.done = raw.tell()
                yield data
        finally:
            if self.name != "-":
                file.close()


class _Once(io.RawIOBase):
    """Stdin, or a pipe. Four bytes come at a time at first, since these say what it is."""

    def __init__(self, file: Any, source: Source) -> None:
        self._read = _reader(file)
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        while not self._source.done and 0 < len(data) < 4 and (more := self._read(4 - len(data))):
            data += more
        buffer[: len(data)] = data
        self._source.done += len(data)
        return len(data)


def _failing(error: Exception) -> Iterator[bytes]:
    yield from ()
    raise error


def _reader(stream: Any) -> Callable[[int], bytes]:
    # `read1` gives what is there: from a pipe, lines are to come as they are written.
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    return read


def unpacked(raw: Any) -> Any:
    """What is in a file, by its first bytes and not by its name: `raw` itself, or what reads its text.

    Reading that raises EOFError, OSError, zlib.error or ValueError where it is damaged or cut short. Raises
    MissingExtraError where it is compressed with zstd and the package for that is missing.
    """
    magic = raw.peek(4)[:4] if hasattr(raw, "peek") else b""
    if magic[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw)
    if is_zstd(magic):
        return Zstd(raw)
    return raw


def _begins(source: Source, first_time: Callable[[Iterable[bytes]], int] | None) -> int:
    begins = source.first_wall()
    if begins or first_time is None:
        return begins
    return first_time(source.head().split(b"\n")) or source.changed


def batches(
    found: list[Source],
    progress: Callable[[int, int | None], None] | None = None,
    first_time: Callable[[Iterable[bytes]], int] | None = None,
) -> Iterator[Batch]:
    """The lines of all sources. Of several files, always those next whose time is the earliest.

    first_time: says of the first lines of a file that has no records which time (Unix time in ns) they tell, 0 for
    none. Such a file is read to its end at a go, when that time has come; where there is none, that of its last change
    stands for it.
    """
    sizes = [source.size for source in found]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    for batch in found[0].batches() if len(found) == 1 else _side_by_side(found, first_time):
        yield batch
        if progress is not None:
            progress(sum(source.done for source in found), total)
    if progress is not None:
        progress(sum(source.done for source in found), total)


def _side_by_side(found: list[Source], first_time: Callable[[Iterable[bytes]], int] | None) -> Iterator[Batch]:
    if first_time is not None:
        found = sorted(found, key=lambda source: source.name)
    # Files are opened when their time has come: of a set of rotated ones, one is open at a time. One that has no
    # records stays at time 0 once it is open, and so comes before all others until its end.
    waiting = sorted(((_begins(source, first_time), order) for order, source in enumerate(found)), reverse=True)
    under_way: list[tuple[int, int, Iterator[Batch]]] = []
    while waiting or under_way:
        if waiting and len(under_way) < _MAX_OPEN and (not under_way or waiting[-1][0] <= under_way[0][0]):
            _, order = waiting.pop()
            lines = found[order].batches(timed=True)
        else:
            _, order, lines = heapq.heappop(under_way)
        batch = next(lines, None)
        if batch is not None:
            yield batch
            heapq.heappush(under_way, (found[order].wall, order, lines))
