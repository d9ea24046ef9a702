"""Files that are written to, read to their ends again and again: across rotation, and from where a former run stopped.

A file is known by device and inode, and by its first bytes, since an inode is used again. What was read of a file stays
known by these bytes when the file is gone, so that a copy of it, compressed or not, is read from there on and not
anew. Offsets are at the beginnings of lines: the piece of a line at the end is left where it is.
"""

from __future__ import annotations

import glob
import gzip
import os
import re
import stat
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

from ..diagnostics import warn_once
from ..endpoint import MAX_LINE
from ..errors import ConfigError

__all__ = ["Files"]

#: First bytes that a file is known by.
_HEAD: Final = 1024
#: Bytes read of one file before the next has its turn, and of all before something else has.
_CHUNK: Final = MAX_LINE
_TURN: Final = 4 * _CHUNK
#: Descriptors kept open. Of the other files, one is opened for reading what was added.
_MAX_OPEN: Final = 128
#: Files that are gone of which is remembered how far they were read.
_MAX_READ: Final = 4096
#: Files that are no log, remembered until they change.
_MAX_REFUSED: Final = 4096
#: Seconds that a file which has no name any more is read on, after something was added last.
_LINGER: Final = 5.0
#: Seconds after which a compressed file that ends early is not being written any more.
_PACKING: Final = 10.0
#: Nanoseconds by which the time in a file may be behind the clock.
_COARSE: Final = 20_000_000
_GZIP: Final = b"\x1f\x8b"
#: Where the name of a file goes on once it is rotated: `app.log.1`, `app.log-20260101.gz`, `app.log.2026-01-01_12`.
_ROTATED: Final = re.compile(r"[.\-_](?=\d)")

_Key = tuple[int, int]
#: Takes the name of a file, the number of the first line, counted from 1, and the lines (without newlines). The name is
#: the same wherever the file is moved to, and of no other file that is there later.
Take = Callable[[str, int, list[bytes]], None]


class _File:
    """One file. `offset`: bytes read, of the unpacked text of a packed one. `lines`: how many that was.
    `head`: digest of the first `head_size` bytes. `skipping`: in the middle of a line that is too long. `name`: what
    it was called at first, and a number that no other has: whatever becomes of it, and of a copy of it, its lines are
    known by that.
    """

    __slots__ = (
        "head",
        "head_size",
        "key",
        "last",
        "lines",
        "name",
        "offset",
        "packed",
        "path",
        "skipping",
        "unnamed_since",
    )

    def __init__(self, path: str, key: _Key, *, packed: bool = False) -> None:
        self.path = path
        self.key = key
        self.packed = packed
        self.offset = self.lines = self.head_size = 0
        self.head = self.name = ""
        self.skipping = False
        #: Size and time of change when it was read to its end last.
        self.last: tuple[int, int] | None = None
        #: Since when (monotonic seconds) there is no name for it.
        self.unnamed_since: float | None = None


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _begins_with(data: bytes, size: int, digest: str) -> bool:
    """Whether these are the first bytes that a file is known by; nothing begins with none."""
    return 0 < size <= len(data) and _digest(data[:size]) == digest


class Files:
    """The files of `paths` (names or globs), and what rotation makes of them: names that go on after theirs.

    Raises ConfigError for no path at all, and for what is there and is no file.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self.patterns = [os.path.abspath(os.fspath(path)) for path in paths]
        for pattern in self.patterns:
            if os.path.exists(pattern) and not os.path.isfile(pattern):
                raise ConfigError(f"{pattern!r} is no file; give the path of a log, or a glob such as 'logs/*.jsonl'")
        self._files: dict[_Key, _File] = {}
        self._open: OrderedDict[_Key, Any] = OrderedDict()
        # How far files were read that are gone, by their heads: size of the head, offset, lines, name.
        self._read: OrderedDict[str, tuple[int, int, int, str]] = OrderedDict()
        self._head_sizes: set[int] = set()
        self._refused: OrderedDict[tuple[int, ...], None] = OrderedDict()
        # Rotated files that changed since then (Unix time in ns), and are not known, were missed.
        self._since = time.time_ns() - _COARSE
        self._turn = self._count = 0
        # Of packed files, what was unpacked and not handed over yet.
        self._rests: dict[_Key, bytes] = {}
        #: Whether a file has moved, so that it is time to look.
        self.moved = True
        #: Device and inode of the file that was read last.
        self.key: _Key = (0, 0)
        #: Lines that were too long.
        self.too_long = 0
        #: Bytes read in all.
        self.bytes_read = 0

    def __len__(self) -> int:
        return len(self._files)

    # -- which files there are ---------------------------------------------------------------------------------------

    def scan(self) -> None:
        """Look for files that have come, gone, or changed their names."""
        self.moved = False
        named: dict[_Key, tuple[str, os.stat_result, bool]] = {}
        for path, status, own in self._names():
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
        for path, status, own in sorted(fresh, key=lambda found: found[1].st_mtime_ns):
            self._meet(path, status, own)

    def _names(self) -> Iterator[tuple[str, os.stat_result, bool]]:
        """(path, status, whether it was asked for by name), those asked for first."""
        bases: dict[str, set[str]] = {}
        for pattern in self.patterns:
            # A name that has the characters of a glob in it is a name first.
            found = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
            for path in found or [pattern]:
                folder, name = os.path.split(path)
                bases.setdefault(folder, set()).add(name)
                status = _status(path)
                if status is not None:
                    yield path, status, True
        for folder, names in bases.items():
            try:
                entries = os.listdir(folder)
            except OSError:
                continue
            for entry in entries:
                if any(entry[: suffix.start()] in names for suffix in _ROTATED.finditer(entry)):
                    status = _status(os.path.join(folder, entry))
                    if status is not None:
                        yield os.path.join(folder, entry), status, False

    def _meet(self, path: str, status: os.stat_result, own: bool) -> None:
        """A file that is not known by its inode: new, a copy of one that is known, or none of ours."""
        state = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if state in self._refused:
            return
        packed, head = _head_of(path)
        if head is None:
            return
        file = _File(path, state[:2], packed=packed)
        alike = [
            other
            for other in self._files.values()
            if _begins_with(head, other.head_size, other.head)
            # Not read yet, and perhaps renamed and copied meanwhile.
            or (not own and not other.head_size and os.path.dirname(other.path) == os.path.dirname(path))
        ]
        # One of which it is a copy: whether the copy is needed will show when that one is cut off, or gone.
        if any(self._begins_so(other, head) for other in alike):
            return
        before = self._known_by(head, None if packed else status.st_size)
        if before is not None:
            file.head, file.head_size, file.offset, file.lines, file.name = before
            # From now on it is this file that is known by it.
            del self._read[file.head]
        elif not own and status.st_mtime_ns <= self._since:
            self._refused[state] = None
            if len(self._refused) > _MAX_REFUSED:
                self._refused.popitem(last=False)
            return
        if not file.name:
            self._count += 1
            file.name = f"{path}#{self._count}"
        self._files[file.key] = file

    def _known_by(self, head: bytes, length: int | None) -> tuple[str, int, int, int, str] | None:
        """What was read before of a file that begins so. length: of the file in bytes, None where that is not known."""
        for size in sorted(self._head_sizes, reverse=True):
            if size <= len(head):
                digest = _digest(head[:size])
                known = self._read.get(digest)
                # What is shorter than was read of that one is no copy of it: both have only begun alike.
                if known is not None and known[0] == size and (length is None or known[1] <= length):
                    return digest, *known
        return None

    def _begins_so(self, file: _File, head: bytes) -> bool:
        """Whether a file that was known to begin like `head` does so now, as far as that goes."""
        if file.packed:
            return file.head_size > 0
        try:
            held = self._descriptor(file)
            now = b"" if held is None else os.pread(held, _HEAD, 0)
        except OSError:
            return False
        if held is not None and file.head_size and not _begins_with(now, file.head_size, file.head):
            self._cut_off(file)
            return False
        return bool(head) and now.startswith(head)

    def _forget(self, file: _File) -> None:
        """A file is gone: what was read of it counts for its copies."""
        del self._files[file.key]
        self._close(file.key)
        if file.head_size and file.offset:
            self._read[file.head] = (file.head_size, file.offset, file.lines, file.name)
            self._read.move_to_end(file.head)
            if len(self._read) > _MAX_READ:
                self._read.popitem(last=False)
            self._head_sizes = {known[0] for known in self._read.values()}

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
        chunk = os.pread(held, _CHUNK, file.offset)
        # After the chunk: a file that was cut off before it has another head by now, or none.
        head = os.pread(held, _HEAD, 0)
        if status.st_size < file.offset or (file.head_size and not _begins_with(head, file.head_size, file.head)):
            self._cut_off(file)
            return 0, False
        if file.unnamed_since is not None:
            file.unnamed_since = now
        full = len(chunk) == _CHUNK
        if not file.offset:
            head = chunk
        used = self._take(file, chunk, take, full=full)
        if file.head_size < _HEAD:
            # Of what was read only: the rest may be a line that is being written.
            file.head_size = min(_HEAD, file.offset, len(head))
            file.head = _digest(head[: file.head_size])
        if not full:
            file.last = state
        return used, full

    def _take(self, file: _File, chunk: bytes, take: Take, *, full: bool) -> int:
        """Hand over the whole lines of a chunk, and go on behind them. Returns by how many bytes."""
        start = 0
        if file.skipping:
            start = chunk.find(b"\n") + 1
            if not start:
                file.offset += len(chunk)
                return len(chunk)
            file.skipping = False
            file.lines += 1
        end = chunk.rfind(b"\n", start) + 1
        if end > start:
            lines = chunk[start : end - 1].split(b"\n")
            take(file.name, file.lines + 1, lines)
            file.lines += len(lines)
        elif not start and full:
            # A line that has no end in as much as a line may be.
            self.too_long += 1
            file.skipping = True
            end = len(chunk)
        end = max(start, end)
        file.offset += end
        return end

    def _take_rest(self, file: _File, take: Take) -> None:
        """The last line of a file that is gone may lack its newline."""
        held = self._open.get(file.key)
        rest = b"" if held is None or file.skipping else os.pread(held, _CHUNK, file.offset)
        if rest:
            take(file.name, file.lines + 1, [rest])
            file.offset += len(rest)

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
        held = self._open.get(file.key)
        try:
            if held is None:
                held = gzip.open(file.path, "rb")  # noqa: SIM115 - stays open
                self._hold(file.key, held)
                held.seek(file.offset)
            rest = self._rests.pop(file.key, b"")
            chunk = rest + held.read(_CHUNK - len(rest))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._close(file.key)
            status = os.stat(file.path)
            if time.time() - status.st_mtime > _PACKING:
                warn_once("follow", file.path, "%s cannot be unpacked: %s", file.path, error)
                file.last = (0, 0)
            return 0, False
        full = len(chunk) == _CHUNK
        if not full and chunk and not chunk.endswith(b"\n"):
            chunk += b"\n"
        used = self._take(file, chunk, take, full=full)
        if full:
            self._rests[file.key] = chunk[used:]
            return used, True
        if not file.head_size:
            head = _head_of(file.path)[1] or b""
            file.head, file.head_size = _digest(head), len(head)
        file.last = (0, 0)
        self._close(file.key)
        return used, False

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
        slots = ("path", "offset", "lines", "head", "head_size", "skipping", "packed", "name")
        return {
            "count": self._count,
            "since": self._since,
            "files": [
                {"key": list(file.key), "done": file.packed and file.last is not None}
                | {slot: getattr(file, slot) for slot in slots}
                for file in self._files.values()
            ],
            "read": [[head, *known] for head, known in self._read.items()],
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError, TypeError or LookupError for what `dump` never gave."""
        self._since, self._count = int(saved["since"]), int(saved["count"])
        for one in saved["files"]:
            dev, ino = map(int, one["key"])
            file = self._files[dev, ino] = _File(str(one["path"]), (dev, ino), packed=bool(one["packed"]))
            file.offset, file.lines, file.head_size = int(one["offset"]), int(one["lines"]), int(one["head_size"])
            file.head, file.skipping, file.name = str(one["head"]), bool(one["skipping"]), str(one["name"])
            if one["done"]:
                file.last = (0, 0)
        for head, *known, name in saved["read"]:
            size, offset, lines = map(int, known)
            self._read[str(head)] = (size, offset, lines, str(name))
        self._head_sizes = {known[0] for known in self._read.values()}


def _status(path: str) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _head_of(path: str) -> tuple[bool, bytes | None]:
    """Whether a file is packed, and its first bytes, unpacked; None where they cannot be had (yet)."""
    try:
        with open(path, "rb") as plain:
            head = plain.read(_HEAD)
        if not head.startswith(_GZIP):
            return False, head
        with gzip.open(path, "rb") as packed:
            return True, packed.read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return False, None
