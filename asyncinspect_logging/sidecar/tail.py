"""Files that are written to, read to their ends again and again: across rotation, and from where a former run stopped.

A file is known by device and inode, and by some of its bytes (see `copies`), since an inode is used again. What was
read of a file stays known by these when it is gone, so that a copy of it, compressed or not, is read from there on and
not anew. Offsets are at the beginnings of lines: the piece of a line at the end is left where it is.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from ..diagnostics import warn_once
from ..endpoint import MAX_LINE
from .copies import HEAD, UNPACKING, Mark, Unpacked, digest, head_of, last_of
from .names import Names, origins_of

__all__ = ["Files"]

#: Bytes read of one file before the next has its turn, and of all before something else has.
_CHUNK: Final = MAX_LINE
_TURN: Final = 4 * _CHUNK
#: Descriptors kept open. Of the other files, one is opened for reading what was added.
_MAX_OPEN: Final = 128
#: Files that are gone of which is remembered how far they were read.
_MAX_READ: Final = 4096
#: Files that are no log, or copies of one that is there, remembered until they change.
_MAX_REFUSED: Final = 4096
#: Seconds that a file which has no name any more is read on, after something was added last.
_LINGER: Final = 5.0
#: Seconds after which a compressed file that ends early is not being written any more.
_PACKING: Final = 10.0
#: Seconds without a change after which it is looked at whether a compressed file is a copy of one that is there.
_SETTLED: Final = 2.0
#: Nanoseconds by which the time in a file may be behind the clock.
_COARSE: Final = 20_000_000

_Key = tuple[int, int]
#: Takes the name of a file, the number of the first line, counted from 1, and the lines (without newlines). The name is
#: the same wherever the file is moved to, and of no other file that is there later.
Take = Callable[[str, int, list[bytes]], None]


class _File:
    """One file. `mark`: how far it was read. `skipping`: in the middle of a line that is too long. `first`: what it was
    called at first; `name`: that, and a number that no other has: whatever becomes of it, and of a copy of it, its
    lines are known by that.
    """

    __slots__ = ("first", "key", "last", "mark", "name", "packed", "path", "skipping", "unnamed_since")

    def __init__(self, path: str, key: _Key, *, packed: bool = False) -> None:
        self.path = self.first = path
        self.key = key
        self.packed = packed
        self.mark = Mark()
        self.name = ""
        self.skipping = False
        #: Size and time of change when it was read to its end last.
        self.last: tuple[int, int] | None = None
        #: Since when (monotonic seconds) there is no name for it.
        self.unnamed_since: float | None = None

    def read(self, data: bytes, used: int, head: bytes) -> None:
        """Bytes were read, `data` up to where it is now. head: the first bytes of the file."""
        mark = self.mark
        if used:
            tail = data[-HEAD:]
            mark = mark._replace(tail=digest(tail), tail_size=len(tail), offset=mark.offset + used)
        if mark.head_size < HEAD:
            # Of what was read only: the rest may be a line that is being written.
            size = min(HEAD, mark.offset, len(head))
            mark = mark._replace(head=digest(head[:size]), head_size=size)
        self.mark = mark


class _Past(NamedTuple):
    """How far a file was read that is gone; `path` is what it was called last."""

    mark: Mark
    first: str
    path: str


class Files:
    """The files of `paths` (names or globs), and what rotation makes of them: names that go on after theirs.

    Raises ConfigError for what is there and is no file.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._names = Names(paths)
        self.patterns = self._names.patterns
        self._files: dict[_Key, _File] = {}
        self._open: OrderedDict[_Key, Any] = OrderedDict()
        # How far files were read that are gone, by their names.
        self._read: OrderedDict[str, _Past] = OrderedDict()
        # By device, inode, time and size; with the file that it is a copy of.
        self._refused: OrderedDict[tuple[int, ...], _File | None] = OrderedDict()
        # Names of logs that were found or asked for, and those of all files that are known.
        self._names_met: set[str] = set()
        # Rotated files that changed since then (Unix time in ns), and are not known, were missed.
        self._since = time.time_ns() - _COARSE
        self._turn = self._count = 0
        # Of packed files, what was unpacked and not handed over yet.
        self._rests: dict[_Key, bytes] = {}
        #: Whether a file has moved, so that it is time to look.
        self.moved = True
        #: Device and inode of the file that was read last.
        self.key: _Key = (0, 0)
        #: Lines that could not be had: too long, or the rest of a compressed file that is damaged.
        self.bad = 0
        #: Bytes read in all.
        self.bytes_read = 0

    def __len__(self) -> int:
        return len(self._files)

    # -- which files there are ---------------------------------------------------------------------------------------

    def scan(self) -> None:
        """Look for files that have come, gone, or changed their names."""
        self.moved = False
        named: dict[_Key, tuple[str, os.stat_result, bool]] = {}
        for path, status, own in self._names.look():
            key = (status.st_dev, status.st_ino)
            if key not in named:
                named[key] = path, status, own
        now = time.monotonic()
        for key, file in list(self._files.items()):
            if key in named:
                file.path, file.unnamed_since = named[key][0], None
            elif key not in self._open:
                self._forget(file)
            elif file.unnamed_since is None:
                file.unnamed_since = now
        fresh = [found for key, found in named.items() if key not in self._files]
        if fresh:
            self._names_met = self._names.bases.union(
                *((file.first, file.path) for file in self._files.values()),
                *((past.first, past.path) for past in self._read.values()),
            )
        for path, status, own in sorted(fresh, key=lambda found: found[1].st_mtime_ns):
            self._meet(path, status, own)

    def _meet(self, path: str, status: os.stat_result, own: bool) -> None:
        """A file that is not known by its inode: new, a copy of one that is known, or none of ours."""
        state = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if state in self._refused:
            other = self._refused[state]
            if other is None or self._files.get(other.key) is other:
                return
            del self._refused[state]
        packed, head = head_of(path)
        if head is None:
            return
        if not head and not own:
            # It may yet become a copy.
            return
        file = _File(path, state[:2], packed=packed)
        origins = origins_of(path) & self._names_met
        self._names_met.add(path)
        in_doubt = False
        try:
            for other in self._alike(head, origins, own):
                is_copy = self._is_copy(file, status, head, other)
                if is_copy:
                    # Whether it is needed will show when that one is cut off, or gone.
                    self._refuse(state, other)
                    return
                in_doubt = in_doubt or is_copy is None
            before = self._known_by(file, head, origins)
            if in_doubt and before is None:
                return
        except UNPACKING as error:
            if packed and time.time() - status.st_mtime > _PACKING:
                warn_once("follow", path, "%s cannot be unpacked: %s", path, error)
                self._refuse(state, None)
            return
        if before is not None:
            # From now on it is this file that is known by it.
            past = self._read.pop(before)
            file.mark, file.first, file.name = past.mark, past.first, before
        elif not own and status.st_mtime_ns <= self._since:
            self._refuse(state, None)
            return
        if not file.name:
            self._count += 1
            file.name = f"{path}#{self._count}"
        self._files[file.key] = file

    def _refuse(self, state: tuple[int, ...], other: _File | None) -> None:
        self._refused[state] = other
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)

    def _alike(self, head: bytes, origins: frozenset[str], own: bool) -> list[_File]:
        """The files that are there and begin like one that may be a copy of them by its name."""
        return [
            other
            for other in self._files.values()
            # One that was asked for is a copy of what was read; another one may be of what is yet to be read.
            if (other.mark.begins(head) if own or other.mark.offset else True)
            and self._names.may_be_of(origins, other.first, other.path)
        ]

    def _is_copy(self, file: _File, status: os.stat_result, head: bytes, other: _File) -> bool | None:
        """Whether a file that may be one is a copy of another that is there, and which may have grown since; None where
        that will show later.
        """
        mark = other.mark
        if other.packed:
            return mark.begins(head) and _holds(file, mark)
        held = self._descriptor(other)
        if held is None:
            return None
        now = os.pread(held, HEAD, 0)
        if mark.offset and not (mark.begins(now) and mark.ends(_before(held, mark.offset))):
            # It holds something else by now than what may have been copied.
            self._cut_off(other)
            return False
        if not now.startswith(head):
            return False
        if file.packed and time.time() - status.st_mtime < _SETTLED:
            return None
        place, last = last_of(file.path, file.packed, os.fstat(held).st_size + _CHUNK)
        same = place <= os.fstat(held).st_size and _before(held, place) == last
        # Before something was read, nobody would see that it is another file by now.
        return same if mark.offset or not same else None

    def _known_by(self, file: _File, head: bytes, origins: frozenset[str]) -> str | None:
        """The name of one that is gone, and that was read to a place that this file has, too."""
        found = [
            (past.mark.offset, name)
            for name, past in self._read.items()
            if past.mark.begins(head)
            and (file.path in (past.first, past.path) or self._names.may_be_of(origins, past.first, past.path))
        ]
        # What is shorter than was read of that one is no copy of it: both have only begun alike.
        return next((name for _, name in sorted(found, reverse=True) if _holds(file, self._read[name].mark)), None)

    def _forget(self, file: _File) -> None:
        """A file is gone: what was read of it counts for its copies."""
        del self._files[file.key]
        self._close(file.key)
        if file.mark.offset:
            self._read[file.name] = _Past(file.mark, file.first, file.path)
            self._read.move_to_end(file.name)
            if len(self._read) > _MAX_READ:
                self._read.popitem(last=False)

    # -- reading -----------------------------------------------------------------------------------------------------

    def poll(self, take: Take) -> bool:
        """Read what was added, up to a bound; `take` the lines. Returns whether there is more at once."""
        left, more = _TURN, False
        now, files = time.monotonic(), list(self._files.values())
        for turn in range(self._turn, self._turn + len(files)):
            file = files[turn % len(files)]
            if left <= 0:
                # Whoever had no turn is first the next time.
                self._turn = turn % len(files)
                return True
            try:
                done, further = self._poll_one(file, take, now)
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    self.moved = True
                else:
                    warn_once("follow", file.path, "%s cannot be read: %s", file.path, error)
                continue
            left -= done
            self.bytes_read += done
            more = more or further
        return more

    def _poll_one(self, file: _File, take: Take, now: float) -> tuple[int, bool]:
        self.key = file.key
        if file.packed:
            return self._poll_packed(file, take)
        held = self._open.get(file.key)
        status = os.stat(file.path) if held is None else os.fstat(held)
        if (status.st_dev, status.st_ino) != file.key:
            self.moved = True
            return 0, False
        state = (status.st_size, status.st_mtime_ns)
        if state == file.last:
            if file.unnamed_since is not None and now - file.unnamed_since > _LINGER:
                self._take_rest(file, take)
                self._forget(file)
            return 0, False
        held = self._descriptor(file)
        if held is None:
            return 0, False
        mark = file.mark
        data = os.pread(held, mark.tail_size + _CHUNK, mark.offset - mark.tail_size)
        # After the chunk: a file that was cut off before it has another head by now, or none.
        head = os.pread(held, HEAD, 0)
        if mark.offset and not (mark.begins(head) and mark.ends(data[: mark.tail_size])):
            self._cut_off(file)
            return 0, False
        if file.unnamed_since is not None:
            file.unnamed_since = now
        chunk = data[mark.tail_size :]
        full = len(chunk) == _CHUNK
        used = self._take(file, chunk, take, full=full)
        file.read(data[: mark.tail_size + used], used, head if mark.offset else chunk)
        if not full:
            file.last = state
        return used, full

    def _take(self, file: _File, chunk: bytes, take: Take, *, full: bool) -> int:
        """Hand over the whole lines of a chunk. Returns how many bytes they are."""
        start = 0
        if file.skipping:
            start = chunk.find(b"\n") + 1
            if not start:
                return len(chunk)
            file.skipping = False
            file.mark = file.mark._replace(lines=file.mark.lines + 1)
        end = chunk.rfind(b"\n", start) + 1
        if end > start:
            self._hand_over(file, chunk[start : end - 1].split(b"\n"), take)
        elif not start and full:
            # A line that has no end in as much as a line may be.
            self.bad += 1
            file.skipping = True
            end = len(chunk)
        return max(start, end)

    def _hand_over(self, file: _File, lines: list[bytes], take: Take) -> None:
        take(file.name, file.mark.lines + 1, lines)
        file.mark = file.mark._replace(lines=file.mark.lines + len(lines))

    def _take_rest(self, file: _File, take: Take) -> None:
        """The last line of a file that is gone may lack its newline."""
        held = self._open.get(file.key)
        if held is None or file.skipping:
            return
        rest = os.pread(held, _CHUNK, file.mark.offset)
        if rest:
            self._hand_over(file, [rest], take)
            file.read(rest, len(rest), os.pread(held, HEAD, 0))

    def _cut_off(self, file: _File) -> None:
        """The file begins anew, or another one has its inode: it is met again, and a copy of what it was may be
        somewhere and hold more than was read.
        """
        self._forget(file)
        self._refused.clear()
        self.moved = True

    def _poll_packed(self, file: _File, take: Take) -> tuple[int, bool]:
        if file.last is not None:
            return 0, False
        held, chunk, problem = self._open.get(file.key), self._rests.pop(file.key, b""), None
        try:
            if held is None:
                held = Unpacked(file.path)
                self._hold(file.key, held)
                if not _goes_on(held, file.mark):
                    self._cut_off(file)
                    return 0, False
            while len(chunk) < _CHUNK and (data := held.read(_CHUNK - len(chunk))):
                chunk += data
        except UNPACKING as error:
            if time.time() - os.stat(file.path).st_mtime < _PACKING:
                # It is being written, and read again from where it was read to.
                self._close(file.key)
                return 0, False
            warn_once("follow", file.path, "%s cannot be unpacked: %s", file.path, error)
            self.bad += 1
            problem = error
        mark = file.mark
        head = chunk if not mark.offset or mark.head_size == HEAD else head_of(file.path)[1] or b""
        full = len(chunk) == _CHUNK and problem is None
        used = self._take(file, chunk, take, full=full)
        if full:
            self._rests[file.key] = chunk[used:]
        else:
            if chunk[used:] and not file.skipping and problem is None:
                # The last line may lack its newline.
                self._hand_over(file, [chunk[used:]], take)
                used = len(chunk)
            file.last = (0, 0)
            self._close(file.key)
        file.read(chunk[:used], used, head)
        return used, full

    # -- descriptors -------------------------------------------------------------------------------------------------

    def _descriptor(self, file: _File) -> int | None:
        """The file's, opened now if need be; None where its name is another file's by now."""
        held = self._open.get(file.key)
        if held is None:
            held = os.open(file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
            status = os.fstat(held)
            if (status.st_dev, status.st_ino) != file.key:
                os.close(held)
                self.moved = True
                return None
            self._hold(file.key, held)
        else:
            self._open.move_to_end(file.key)
        return int(held)

    def _hold(self, key: _Key, held: Any) -> None:
        self._open[key] = held
        if len(self._open) > _MAX_OPEN:
            self._close(next(iter(self._open)))

    def _close(self, key: _Key) -> None:
        held = self._open.pop(key, None)
        self._rests.pop(key, None)
        if isinstance(held, int):
            os.close(held)
        elif held is not None:
            held.close()

    def close(self) -> None:
        for key in list(self._open):
            self._close(key)

    # -- from one run to the next ------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """How far everything was read, as values that JSON can hold."""
        slots = ("path", "first", "mark", "skipping", "packed", "name")
        return {
            "count": self._count,
            "since": self._since,
            "files": [
                {"key": list(file.key), "done": file.packed and file.last is not None}
                | {slot: getattr(file, slot) for slot in slots}
                for file in self._files.values()
            ],
            "read": [[name, *past] for name, past in self._read.items()],
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError, TypeError or LookupError for what `dump` never gave."""
        self._since, self._count = int(saved["since"]), int(saved["count"])
        for one in saved["files"]:
            dev, ino = map(int, one["key"])
            file = self._files[dev, ino] = _File(str(one["path"]), (dev, ino), packed=bool(one["packed"]))
            file.mark, file.first, file.name = Mark.of(one["mark"]), str(one["first"]), str(one["name"])
            file.skipping = bool(one["skipping"])
            if one["done"]:
                file.last = (0, 0)
        for name, mark, first, path in saved["read"]:
            self._read[str(name)] = _Past(Mark.of(mark), str(first), str(path))


def _before(held: int, place: int) -> bytes:
    size = min(HEAD, place)
    return os.pread(held, size, place - size)


def _holds(file: _File, mark: Mark) -> bool:
    """Whether a file has, at the place of a mark, what was read there."""
    place, last = last_of(file.path, file.packed, mark.offset)
    return place == mark.offset and mark.ends(last)


def _goes_on(stream: Any, mark: Mark) -> bool:
    """Go to the place of a mark in a file just opened. Returns whether it is what was read until there."""
    place = mark.offset - mark.tail_size
    while place > 0 and (data := stream.read(min(_CHUNK, place))):
        place -= len(data)
    return not mark.offset or (place == 0 and mark.ends(stream.read(mark.tail_size)))
