"""One page for all processes of a service: any of them gives the sums over all.

In a folder that they share, each process has a file that its spans are counted in (`shared`), and beside it one with
whatever else it counts, written once a second and at its own scrapes. What a process has counted that is gone is added
to one file for all that are gone, and its own files are deleted: the folder does not grow.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from ..diagnostics import warn_once
from ..errors import ConfigError
from ..process import at_exit
from ..shared import COUNTS, NAMES, PREFIX, SharedCounts
from ..snapshot import Snapshot
from .totals import Corrupt, Totals, totals_of

if sys.platform != "win32":
    import fcntl

__all__ = ["VARIABLE", "Processes", "join", "shared_folder"]

#: Names the folder; prometheus_client has its files there too.
VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"

_STATE: Final = ".state"
_LOCK: Final = "asyncinspect.lock"
_ENDED: Final = "asyncinspect-ended."
#: Seconds from one writing of the state to the next; and how many times longer than the writing itself takes.
_EVERY: Final = 1.0
_SPARING: Final = 50
#: Times that a reading is begun again because something was added up meanwhile.
_ATTEMPTS: Final = 100
#: Processes from which on one that begins looks for those that are gone.
_MANY: Final = 64
#: Seconds after which nobody is still making a file.
_MAKING: Final = 60
#: Bytes beyond which a file is none of these.
_LARGEST: Final = 1 << 30
#: Errors of opening what is no file, or not for this process; others, such as too many open files, are of the process.
_NO_FILE: Final = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV}


def shared_folder() -> str | None:
    """The folder that PROMETHEUS_MULTIPROC_DIR names, or None. Raises ConfigError where it cannot be used."""
    folder = os.environ.get(VARIABLE, "")
    if not folder:
        return None
    fix = f"make the folder before the service starts, or unset {VARIABLE}"
    if not os.path.isdir(folder):
        raise ConfigError(f"{VARIABLE}={folder!r} is not a folder; {fix}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"{VARIABLE}={folder!r} cannot be written to; {fix}")
    if sys.platform == "win32":
        raise ConfigError(f"{VARIABLE}={folder!r}: this system has no flock(); unset {VARIABLE}")
    return os.path.abspath(folder)


class _Member:
    """What an inspector of this process contributes."""

    def __init__(self, folder: str, inspector: Any) -> None:
        self._folder = folder
        self._inspector = weakref.ref(inspector)
        self._pid = 0
        self._counts: SharedCounts = inspector.share(folder)
        self._counts.begun = self._begin
        #: Adds up who is gone.
        self.tidy: Callable[[], Callable[[], object] | None] = _nothing
        self._writing = threading.Lock()
        at_exit(self._end)

    def _begin(self) -> None:
        """The file of counts was made, here or in the child of a fork."""
        self._writing = threading.Lock()
        self._written = b""
        self._pid = os.getpid()
        thread = threading.Thread(target=Context().run, args=(self._run,), name="asyncinspect-shared", daemon=True)
        # It cannot be started while Python shuts down; then there is nothing more to tell.
        with suppress(RuntimeError):
            thread.start()

    def _run(self) -> None:
        pid = self._pid
        # Where nobody asks for a page, those that come in the place of others add these up.
        tidy = self.tidy()
        if tidy is not None:
            with suppress(OSError, RuntimeError):
                tidy()
        del tidy
        while True:
            began = time.monotonic()
            try:
                if os.getpid() != pid or not self.write():
                    return
            except Exception as error:
                warn_once("shared state", type(error).__qualname__, "the state could not be shared: %r", error)
            time.sleep(max(_EVERY, _SPARING * (time.monotonic() - began)))

    def _end(self) -> None:
        """The process ends by itself, and so nothing of its last second has to be missing."""
        if self._pid == os.getpid():
            self.write()

    def write(self) -> bool:
        """Write what is not in the counts; False if there is no inspector any more. Raises OSError where there is no
        file of counts.
        """
        inspector = self._inspector()
        if inspector is None:
            return False
        name = self._counts.id
        with self._writing:
            totals = totals_of(inspector.snapshot(tasks=False), self._counts.bounds)
            totals.names = self._counts.lacking(totals.names)
            data = totals.dump()
            path = os.path.join(self._folder, f"{PREFIX}{name}")
            if not os.path.exists(path + COUNTS):
                deleted = "somebody deleted the files of this process in %s: what it counts is missing in all sums"
                warn_once("shared files", name, deleted, self._folder)
            elif data != self._written:
                try:
                    _replace(path + _STATE, data)
                    self._written = data
                except OSError as error:
                    # The page is made of what is there, as anybody else's is.
                    warn_once("shared state", str(error.errno), "the state could not be shared: %r", error)
        return True


#: One for each inspector and folder: several exporters of an inspector count it once.
_members: weakref.WeakKeyDictionary[Any, dict[str, _Member]] = weakref.WeakKeyDictionary()


class _File(NamedTuple):
    id: str
    alive: bool
    totals: Totals


class Processes:
    """The sum over all processes that share `folder`, this one's `inspectors` among them: a source for an exporter."""

    def __init__(self, folder: str, inspectors: Sequence[Any]) -> None:
        self.config = getattr(inspectors[0], "config", None)
        self._folder = folder
        self._inspectors = tuple(inspectors)
        self._members = [
            _members.setdefault(inspector, {}).get(folder) or _join(folder, inspector) for inspector in inspectors
        ]
        for member in self._members:
            member.tidy = weakref.WeakMethod(self._tidy)
        limit = getattr(self.config, "max_names", None)
        self._limit: int | None = limit
        # The totals of those that are gone, by the number of their file; such a file never changes.
        self._ended: tuple[int, Totals, frozenset[str]] = (0, Totals(), frozenset())

    def registry(self) -> CollectorRegistry:
        """A new one, with the application's own metrics of all processes."""
        registry = CollectorRegistry()
        registry.register(_Applications(self._folder))
        return registry

    def add_duration_bounds(self, bounds: Sequence[float], /) -> None:
        for inspector in self._inspectors:
            inspector.add_duration_bounds(bounds)

    def snapshot(self, *, tasks: bool = True) -> Snapshot:
        """The sum over all processes. Tasks and findings are those of this process."""
        for member in self._members:
            # Before anything is read: whoever reads next must not see less.
            member.write()
        total = self._read().snapshot(time.time())
        if tasks:
            own = [inspector.snapshot() for inspector in self._inspectors]
            total = total._replace(
                tasks=tuple(task for snapshot in own for task in snapshot.tasks),
                findings=tuple(finding for snapshot in own for finding in snapshot.findings),
            )
        return total

    def _tidy(self) -> None:
        if len(self._ids()) > _MANY:
            self._read()

    def _read(self) -> Totals:
        """Everything in the folder: what is counted in several files at a time is read again."""
        for attempt in range(_ATTEMPTS):
            if attempt > 10:
                time.sleep(0.01)
            try:
                serial, total, merged = self._read_ended()
                files = [self._read_file(id) for id in self._ids() if id not in merged]
            except FileNotFoundError:
                if not os.path.isdir(self._folder):
                    raise
                continue  # added up and deleted meanwhile
            if self._serial() != serial:
                continue
            dead = [file for file in files if not file.alive]
            if dead and self._merge(serial, dead):
                continue
            total = total.copy()
            for file in files:
                total.add(file.totals)
            return total
        raise RuntimeError(f"{self._folder} changes too fast to be read")

    # -- files of one process ----------------------------------------------------------------------------------------

    def _ids(self) -> list[str]:
        return [
            name[len(PREFIX) : -len(COUNTS)]
            for name in sorted(os.listdir(self._folder))
            if name.startswith(PREFIX) and name.endswith(COUNTS)
        ]

    def _path(self, id: str, kind: str) -> str:
        return os.path.join(self._folder, f"{PREFIX}{id}{kind}")

    def _read_file(self, id: str) -> _File:
        """Raises FileNotFoundError where it was deleted."""
        try:
            descriptor = _open(self._path(id, COUNTS))
        except Corrupt as error:
            self._tell(id + COUNTS, error)
            return _File(id, True, Totals())
        with open(descriptor, "rb") as file:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                alive = False
            except BlockingIOError:
                alive = True
            # Before the counts: what it leaves out, since it is in the counts by now, is in what is read of them. But
            # after the look whether somebody still writes it.
            state = self._read_state(id)
            # The numbers first: of each name that has some, the name was written before.
            counts = file.read(_LARGEST)
        try:
            totals = Totals.from_counts(counts, self._read_names(id))
        except Corrupt as error:
            self._tell(id + COUNTS, error)
            totals = Totals()
            totals.dropped["malformed"] = 0 if alive else 1
        totals.raise_to(state)
        if not alive:
            totals.end()
        return _File(id, alive, totals)

    def _read_names(self, id: str) -> bytes:
        try:
            return _read(self._path(id, NAMES))
        except FileNotFoundError:
            # Or else it is being deleted, after its counts were added up: that is seen afterwards.
            raise Corrupt("the names are gone") from None

    def _read_state(self, id: str) -> Totals:
        try:
            return Totals.load(_read(self._path(id, _STATE)))
        except FileNotFoundError:
            return Totals()  # not written yet
        except Corrupt as error:
            self._tell(id + _STATE, error)
            return Totals()

    def _tell(self, name: str, error: Exception) -> None:
        warn_once("shared file", name, "%s in %s is left out: %s", name, self._folder, error)

    # -- those that are gone -----------------------------------------------------------------------------------------

    def _serials(self) -> list[int]:
        found = (name.removeprefix(_ENDED) for name in os.listdir(self._folder) if name.startswith(_ENDED))
        return sorted(int(serial) for serial in found if serial.isdecimal() and len(serial) < 19)

    def _serial(self) -> int:
        return max(self._serials(), default=0)

    def _read_ended(self) -> tuple[int, Totals, frozenset[str]]:
        serial = self._serial()
        if serial == self._ended[0]:
            return self._ended
        if not serial:
            # Somebody deleted them.
            self._ended = (0, Totals(), frozenset())
            return self._ended
        path = os.path.join(self._folder, f"{_ENDED}{serial}")
        try:
            totals, ids = Totals.load_with_ids(_read(path))
        except Corrupt as error:
            self._tell(os.path.basename(path), error)
            totals, ids = Totals(), frozenset()
            totals.dropped["malformed"] = 1
        self._ended = (serial, totals, ids)
        return self._ended

    def _merge(self, serial: int, dead: list[_File]) -> bool:
        """Add those that are gone to the file `serial`; False where another process is at it, or this one may not."""
        try:
            with self._alone() as alone:
                # Or else another one has done so since these were read, and may have deleted what says so.
                if alone and self._serial() == serial:
                    self._merge_alone(dead)
                return alone
        except OSError as error:
            warn_once("shared folder", self._folder, "what is over in %s cannot be added up: %s", self._folder, error)
            return False

    def _merge_alone(self, dead: list[_File]) -> None:
        serial, ended, merged = self._read_ended()
        ended = ended.copy()
        for file in dead:
            ended.add(file.totals)
        ended.states.clear()
        ended.memory.clear()
        ended.limit(self._limit)
        # First all at once, then what is in it goes; whoever comes in between knows by the ids.
        gone = [*(id for id in self._ids() if id in merged), *(file.id for file in dead)]
        _replace(os.path.join(self._folder, f"{_ENDED}{serial + 1}"), ended.dump(gone))
        for old in self._serials():
            if old <= serial:
                with suppress(OSError):
                    os.unlink(os.path.join(self._folder, f"{_ENDED}{old}"))
        for id in gone:
            # The counts last: as long as they are there, the others are looked for.
            for kind in (_STATE, NAMES, COUNTS):
                with suppress(OSError):
                    os.unlink(self._path(id, kind))
        self._sweep(gone)

    def _sweep(self, gone: list[str]) -> None:
        """Delete what processes left that were killed while they made a file."""
        there = set(self._ids())
        for name in os.listdir(self._folder):
            stem, kind = os.path.splitext(name.removeprefix(PREFIX))
            half_made = name.startswith(f".{PREFIX}")
            over = half_made and name.removeprefix(f".{PREFIX}").startswith(tuple(gone))
            alone = name.startswith(PREFIX) and kind in (NAMES, _STATE) and stem not in there
            path = os.path.join(self._folder, name)
            with suppress(OSError):
                if over or ((half_made or alone) and time.time() - os.stat(path).st_mtime > _MAKING):
                    os.unlink(path)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(os.path.join(self._folder, _LOCK), flags, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


def _nothing() -> None:
    pass


def _join(folder: str, inspector: Any) -> _Member:
    member = _members[inspector][folder] = _Member(folder, inspector)
    return member


def _open(path: str) -> int:
    """A descriptor to read from. Raises Corrupt for what is no file that a process of this service wrote."""
    try:
        # Not what a link points to; and a pipe must not be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise Corrupt(str(error)) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
        os.close(descriptor)
        raise Corrupt("it is no file, or too large")
    return descriptor


def _read(path: str) -> bytes:
    with open(_open(path), "rb") as file:
        return file.read(_LARGEST)


def _replace(path: str, data: bytes) -> None:
    """Write a file that is there as a whole or not at all. It need not outlast the machine."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


class _Applications:
    """A collector of the application's own metrics, which prometheus_client has in the same folder."""

    def __init__(self, folder: str) -> None:
        self._collector: Any = MultiProcessCollector(CollectorRegistry(), folder)  # type: ignore[no-untyped-call]

    def collect(self) -> list[Metric]:
        for _ in range(_ATTEMPTS):
            try:
                return list(self._collector.collect())
            except (struct.error, FileNotFoundError):
                time.sleep(0.01)  # a file that is being made, or was deleted meanwhile
        return list(self._collector.collect())


def join(sources: Sequence[Any]) -> Processes | None:
    """The sum over all processes, if that is asked for and these are inspectors of this process. Raises ConfigError
    where the folder cannot be used.
    """
    folder = shared_folder()
    if folder is None or not all(getattr(inspector, "first_hand", False) for inspector in sources):
        return None
    return Processes(folder, sources)
