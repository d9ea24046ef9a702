"""Whether one file holds what another one held, by its bytes.

What was read of a file is known by its first bytes, and by the bytes before the place up to which it was read. Files of
different services may begin alike, and so the one is not enough; nor are both without a name that goes on after the
other's (see `names`), for two services may have said the very same until now.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from hashlib import sha256
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from ..analysis.files import unpacked
from ..errors import MissingExtraError

__all__ = ["HEAD", "UNPACKING", "Mark", "Unpacked", "digest", "head_of", "last_of"]

#: First bytes, and last ones, that a file is known by.
HEAD: Final = 1024
#: What is raised where a compressed file is cut short, or damaged, or cannot be read for want of a package.
UNPACKING: Final = (EOFError, OSError, zlib.error, ValueError, MissingExtraError)
_PIECE: Final = 1 << 20


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


class Mark(NamedTuple):
    """How far a file was read (bytes of its text, and lines), and the digests of what it is known by."""

    head: str = ""
    head_size: int = 0
    tail: str = ""
    tail_size: int = 0
    offset: int = 0
    lines: int = 0

    @classmethod
    def of(cls, saved: Any) -> Self:
        """The one whose values these are. Raises ValueError or TypeError for what is none."""
        head, head_size, tail, tail_size, offset, lines = saved
        mark = cls(str(head), int(head_size), str(tail), int(tail_size), int(offset), int(lines))
        if not (0 <= mark.head_size <= HEAD and 0 <= mark.tail_size <= min(HEAD, mark.offset)):
            raise ValueError(f"a file cannot be known by {mark.head_size} and {mark.tail_size} bytes")
        return mark

    def begins(self, data: bytes) -> bool:
        """Whether these first bytes are the file's; nothing begins with none."""
        return 0 < self.head_size <= len(data) and digest(data[: self.head_size]) == self.head

    def ends(self, data: bytes) -> bool:
        """Whether these are the bytes before the place."""
        return self.tail_size <= len(data) and digest(data[len(data) - self.tail_size :]) == self.tail


def _opened(path: str) -> Any:
    """A regular file; what is at its place by now is not waited for. Raises OSError."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=opener)  # noqa: SIM115 - for the caller to close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no file any more")
    return file


class Unpacked:
    """The text of a compressed file, or of one that is not. Raises what `UNPACKING` has, here and where it is read."""

    def __init__(self, path: str) -> None:
        self._raw = _opened(path)
        try:
            self._stream: Any = unpacked(self._raw)
        except BaseException:
            self._raw.close()
            raise
        self.packed = self._stream is not self._raw
        # What is there, where more would be an error.
        self.read = getattr(self._stream, "read1", self._stream.read)

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def head_of(path: str) -> tuple[bool, bytes | None]:
    """Whether a file is packed, and its first bytes, unpacked; None where they cannot be had (yet)."""
    packed, head = False, b""
    try:
        with Unpacked(path) as stream:
            packed = stream.packed
            while len(head) < HEAD and (data := stream.read(HEAD - len(head))):
                head += data
    except UNPACKING:
        return packed, None
    return packed, head


def last_of(path: str, packed: bool, until: int) -> tuple[int, bytes]:
    """The last bytes of a file's text before a place, or before its end where that comes first: (where that is, them).

    Raises what `UNPACKING` has.
    """
    if not packed:
        with _opened(path) as file:
            end = min(until, os.fstat(file.fileno()).st_size)
            file.seek(max(0, end - HEAD))
            return end, file.read(min(end, HEAD))
    place, last = 0, b""
    with Unpacked(path) as stream:
        while place < until and (data := stream.read(min(_PIECE, until - place))):
            place += len(data)
            last = (last + data)[-HEAD:]
    return place, last
