"""What goes wrong around the soak's application: a full disk, collectors that are dead, logging that is set up anew."""

from __future__ import annotations

import ctypes
import errno
import logging
import logging.config
import os
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from asyncinspect_logging import json_logging
from asyncinspect_logging.line_handlers import LineHandler

__all__ = ["ClosedPort", "Disk", "Lines", "Log", "Silent", "Statsd", "configure"]

#: Bytes of the disk under the log.
SMALL = 256 * 1024
_NEWNS, _NEWUSER, _PRIVATE = 0x00020000, 0x10000000, 0x4000 | 0x40000


class Log(LineHandler):
    """The log file, which counts what it could not write."""

    errors: ClassVar[Counter[str]] = Counter()

    def handleError(self, record: logging.LogRecord) -> None:
        import sys

        error = sys.exc_info()[1]
        name = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        Log.errors[name or repr(error)] += 1


class Lines(logging.Handler):
    """Counts what goes to the root logger, and keeps what the library says of its own troubles."""

    counts: ClassVar[Counter[str]] = Counter()
    internal: ClassVar[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        Lines.counts[record.name] += 1
        if record.name == "asyncinspect.internal" and len(Lines.internal) < 100:
            Lines.internal.append(record.getMessage())


def configure(log: str, number: int, *, handler_too: bool) -> None:
    """Set up logging once more. `handler_too`: with a new handler for the inspector, while nobody works, since
    `dictConfig` takes the old one off before it puts the new one on; else that is left where it is.
    """
    config: dict[str, Any] = json_logging(log, level=("DEBUG", "TRACE")[number % 2])
    config["handlers"]["asyncinspect_json"] = {"()": Log, "filename": log, "formatter": "asyncinspect_json"}
    config["handlers"]["lines"] = {"()": Lines}
    config["root"] = {"level": "INFO", "handlers": ["lines"]}
    spans = config["loggers"].pop("asyncinspect")
    if number % 3 == 2:
        spans["level"] = "WARNING"
    config["loggers"]["asyncinspect.soak"] = spans
    if handler_too:
        config["disable_existing_loggers"] = True
        config["handlers"]["inspect"] = {"class": "asyncinspect_logging.AsyncInspectHandler"}
        config["loggers"]["asyncinspect"] = {"handlers": ["inspect"]}
    logging.config.dictConfig(config)


class Disk:
    """A small disk, of this process alone, for the log; or, where none may be mounted, /dev/full. To be made before
    any thread is.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        disk = self.folder / "disk"
        disk.mkdir()
        self.is_mounted = _mount(disk)
        self.log = str(disk / "soak.jsonl") if self.is_mounted else "/dev/full"
        self.kind = f"tmpfs of {SMALL // 1024} kB" if self.is_mounted else "/dev/full"
        self.freed = 0
        #: What is to be done with the log before it goes.
        self.before: Callable[[str], object] = lambda log: None

    def free(self) -> None:
        """Make room, as somebody would: by removing the log, or by emptying it."""
        if self.is_mounted and os.path.exists(self.log):
            self.before(self.log)
            self.freed += 1
            if self.freed % 2:
                os.unlink(self.log)
            else:
                os.truncate(self.log, 0)

    def close(self) -> None:
        if self.is_mounted:
            ctypes.CDLL(None).umount2(os.fsencode(os.path.dirname(self.log)), 2)
        self._folder.cleanup()


def _mount(folder: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return False
    ids = os.getuid(), os.getgid()
    if libc.unshare(_NEWNS):
        if libc.unshare(_NEWUSER | _NEWNS):
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {ids[0]} 1")
        Path("/proc/self/gid_map").write_text(f"0 {ids[1]} 1")
    if libc.mount(b"none", b"/", None, _PRIVATE, None):
        return False
    return not libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={SMALL}".encode())


class ClosedPort:
    """A TCP port that refuses whoever comes."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


class Silent:
    """A server that takes whatever comes and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        #: Connections that were taken.
        self.taken = 0
        self._thread = threading.Thread(target=self._serve, name="silent", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        kept: list[socket.socket] = []
        while True:
            try:
                kept.append(self._socket.accept()[0])
            except OSError:
                break
            self.taken += 1
            if len(kept) > 8:
                kept.pop(0).close()
        for connection in kept:
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


class Statsd:
    """What comes to a Unix socket of datagrams from the moment on that this is there: the sums of counters, and the
    number of durations.
    """

    def __init__(self, path: Path) -> None:
        self.counters: Counter[str] = Counter()
        self.durations = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_000_000)
        self._socket.bind(os.fspath(path))
        self._socket.settimeout(0.5)
        self._thread = threading.Thread(target=self._serve, name="statsd", daemon=True)
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """When all that was sent has been read."""
        self._stop.set()
        self._thread.join(120)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                packet = self._socket.recv(65536)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            for line in packet.decode().split("\n"):
                name, _, said = line.partition(":")
                value, _, kind = said.partition("|")
                if kind == "c":
                    self.counters[name] += float(value)  # type: ignore[assignment]
                elif kind.startswith("ms"):
                    self.durations += 1
