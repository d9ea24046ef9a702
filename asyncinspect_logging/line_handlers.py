"""Handlers for log files that are read again by a machine: whole lines, one file a process or one for all, rotation.

They are those of the standard library, made to survive a fork and the end of a process in the middle of a line.
"""

from __future__ import annotations

import io
import logging
import os
import time
from logging.handlers import RotatingFileHandler, TimedRotatingFileHandler, WatchedFileHandler
from typing import Any, Final

from . import process

__all__ = ["LineHandler", "SizedLineHandler", "TimedLineHandler"]

#: Seconds.
_A_WRITE: Final = 0.01


class _Lines(logging.FileHandler):
    """What the handlers below have in common. Each line is one `write()` at the end of the file, of whatever length:
    `StreamHandler` writes line and newline together, and a text file passes on at once what does not fit its buffers.
    """

    def __init__(self, filename: str | os.PathLike[str], **options: Any) -> None:
        self._pattern = os.fspath(filename)
        self._pid = process.pid
        self._writing = False
        # Device, inode and size of the file that was last seen to end in the middle of a line.
        self._cut: tuple[int, int, int] | None = None
        super().__init__(self._path(), encoding="utf-8", delay=True, **options)

    def _path(self) -> str:
        return os.path.abspath(self._pattern.replace("{pid}", str(process.pid)))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._after_fork()
            self._writing = True
            super().emit(record)
            if getattr(self, "_closed", False):
                # By a `dictConfig`, and nobody will close it once more.
                self._let_go()
        except RecursionError:
            raise
        except Exception:
            # Those of the standard library raise it in the application, where the file cannot be opened, or was moved
            # away while the disk was full.
            self.handleError(record)
        finally:
            self._writing = False

    def flush(self) -> None:
        self._after_fork()
        try:
            super().flush()
        except (OSError, ValueError):
            # What closes all handlers (`logging.shutdown`, `dictConfig`) flushes each one first, and leaves it open if
            # that raises.
            if self._writing:
                raise

    def close(self) -> None:
        self._after_fork()
        self.acquire()
        try:
            self._let_go()
        finally:
            self.release()
        super().close()

    def _after_fork(self) -> None:
        if self._pid == process.pid:
            return
        self._pid = process.pid
        if "{pid}" in self._pattern:
            self.baseFilename = self._path()
        stream = self.stream
        if stream is not None:
            # Without what waits in it for room on the disk, which is the parent's to write.
            stream.buffer.raw.close()  # type: ignore[attr-defined]
            self._let_go()

    def _let_go(self) -> None:
        """Close the file. What waits in it is lost if there is no room, and has been told of by then."""
        stream, self.stream = self.stream, None
        if stream is not None:
            try:
                stream.close()
            except (OSError, ValueError):
                pass

    def _open(self) -> io.TextIOWrapper:
        stream = super()._open()
        try:
            if self._was_cut():
                # By the end of a process: what comes now must not be lost with the rest of that line.
                os.write(stream.fileno(), b"\n")
        except OSError:
            pass
        return stream

    def _was_cut(self) -> bool:
        """Whether the file ends in the middle of a line, and nobody is writing the rest of it."""
        if not os.path.isfile(self.baseFilename):
            return False
        with open(self.baseFilename, "rb") as file:
            there = os.fstat(file.fileno())
            size = there.st_size
            if not size:
                return False
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return False
            cut = there.st_dev, there.st_ino, size
            if cut != self._cut:
                # A write of another process can be seen while it goes on. The longest line takes less than this. It is
                # waited for once: while the disk is full, the file is opened for each record, and ends as it did.
                time.sleep(_A_WRITE)
                if file.seek(0, os.SEEK_END) != size:
                    return False
                self._cut = cut
            return True


class LineHandler(_Lines, WatchedFileHandler):
    """Appends lines to a file, which may be moved away at any time: the next line then begins a new one.

    filename: `{pid}` in it stands for the number of the process that writes.
    """

    def reopenIfNeeded(self) -> None:
        try:
            super().reopenIfNeeded()
        except OSError:
            # It flushes the old file before it lets go of it, and on a full disk would fail at that for ever.
            self._let_go()


class SizedLineHandler(_Lines, RotatingFileHandler):
    """Appends lines to a file, and begins a new one where it has `maxBytes` or more; the old ones are `filename.1`,
    `filename.2`, … up to `backupCount`. For files that one process writes, such as those with `{pid}` in their names.
    """

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        # That of logging formats the record to learn its size, and then a second time to write it.
        if self.stream is None:
            self.stream = self._open()
        return os.fstat(self.stream.fileno()).st_size >= self.maxBytes

    def doRollover(self) -> None:
        self._let_go()
        super().doRollover()


class TimedLineHandler(_Lines, TimedRotatingFileHandler):
    """Appends lines to a file, and begins a new one at the times that `when`, `interval` and `utc` say. For files that
    one process writes, such as those with `{pid}` in their names.
    """

    def doRollover(self) -> None:
        self._let_go()
        super().doRollover()
