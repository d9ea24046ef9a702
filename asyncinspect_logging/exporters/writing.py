"""Files that are there as a whole or not at all: written beside their place, and moved into it when they are complete.

Also what exported values look like as JSON for other programs to read.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, Final, TypeAlias

__all__ = ["ExportError", "Path", "loose_json", "to_file", "to_path", "to_string"]

Path: TypeAlias = str | os.PathLike[str]

_MAX_NAME: Final = 40
_MAX_DEPTH: Final = 32
_CHUNK: Final = 1 << 18
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_BINARY: Final = getattr(os, "O_BINARY", 0)


class ExportError(OSError):
    """An export could not be written. Nothing is left behind, and what stood at the path before stands there still.

    It has the `errno` and `filename` of the operating system's error, which is its `__cause__`.
    """


def to_path(parts: Iterable[bytes], path: Path) -> None:
    """Write `parts` to a file at `path`, which has them all or is what it was before.

    A file that exists keeps its permissions, and a symbolic link stays one: what it points to is replaced. What is no
    regular file (a device, a named pipe) is written to as it is.

    Raises `ExportError` where the file cannot be written, and whatever `parts` raises.
    """
    name = os.fspath(path)
    with _replacing(name) as descriptor:
        waiting = bytearray()
        for part in parts:
            waiting += part
            if len(waiting) >= _CHUNK:
                _write(descriptor, waiting, name)
                waiting.clear()
        _write(descriptor, waiting, name)


def to_file(parts: Iterable[bytes], file: IO[Any]) -> None:
    """Write `parts` to an open file, binary or text."""
    # A text file has an encoding (None for a StringIO), a binary one has none.
    text = hasattr(file, "encoding")
    for part in parts:
        file.write(part.decode("utf-8") if text else part)


def to_string(parts: Iterable[bytes]) -> str:
    return b"".join(parts).decode("utf-8")


def _write(descriptor: int, data: bytearray, path: str) -> None:
    # Only the operating system's own errors become an `ExportError`: those of where the data comes from are others.
    try:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.write(descriptor, view[done:])
    except OSError as error:
        raise _failed(path, error) from error


@contextmanager
def _replacing(path: str) -> Iterator[int]:
    """The descriptor of a file that takes the place of the one at `path` when the block ends without an exception."""
    try:
        target = os.path.realpath(path)
        before = _stat(target)
        if before is not None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
        if before is not None and not stat.S_ISREG(before.st_mode):
            temporary, descriptor = None, os.open(target, os.O_WRONLY | _CLOEXEC)
        else:
            # Made as any new file is, so that the process's umask counts, and never over one that exists.
            temporary = _beside(target)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC | _BINARY, 0o666)
    except OSError as error:
        raise _failed(path, error) from error
    if temporary is None:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        return
    try:
        try:
            yield descriptor
            _complete(descriptor, before, path)
        finally:
            os.close(descriptor)
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise _failed(path, error) from error
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(target))


def _beside(target: str) -> str:
    """A name for a new file in the same folder, since a file cannot be moved to another file system in one step."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name[:_MAX_NAME]}.{secrets.token_hex(8)}.tmp")


def _complete(descriptor: int, before: os.stat_result | None, path: str) -> None:
    try:
        if before is not None:
            _keep(descriptor, before)
        os.fsync(descriptor)
    except OSError as error:
        raise _failed(path, error) from error


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _keep(descriptor: int, before: os.stat_result) -> None:
    """Permissions and, where that is allowed, owner and group of the file that was there."""
    if hasattr(os, "fchown"):
        with suppress(OSError):
            os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _sync_folder(folder: str) -> None:
    """So that the move outlasts a power failure, where folders can be synced."""
    with suppress(OSError):
        descriptor = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _failed(path: str, error: OSError) -> ExportError:
    folder = os.path.dirname(os.path.realpath(path))
    if isinstance(error, FileNotFoundError):
        what = f"there is no folder {folder!r}; make it first"
    elif isinstance(error, IsADirectoryError):
        what = "that is a folder; give the path of a file in it"
    elif isinstance(error, PermissionError):
        what = f"not permitted to write there, or in the folder {folder!r}"
    else:
        what = f"{error.strerror or error}"
    return ExportError(error.errno, f"the export could not be written: {what}", path)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False).encode


def loose_json(value: Any) -> bytes:
    """`value` as JSON (UTF-8) that any parser takes: what JSON has no word for becomes text.

    Mappings may be of any kind; NaN and infinities, lone surrogates, values of unknown types and what is nested too
    deep come out as text that says so. Raises nothing.
    """
    try:
        return _encode(value).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        return _encode(_loose(value, 0)).encode("utf-8")


def _loose(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, int):
        return int(value) if -(1 << 1024) < value < 1 << 1024 else f"<int of {value.bit_length()} bits>"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {_key(key): _loose(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_loose(item, depth + 1) for item in value]
    return f"<{type(value).__qualname__}>".encode("utf-8", "backslashreplace").decode("utf-8")


def _key(key: Any) -> str:
    loose = _loose(key, _MAX_DEPTH)
    return loose if isinstance(loose, str) else json.dumps(loose)
