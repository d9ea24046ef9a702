"""The sidecar: one process that counts for others, out of their logs and over a socket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextvars import Context
from types import TracebackType
from typing import Any, Final

from ..config import Config
from ..diagnostics import warn_once
from ..endpoint import Endpoint, parse_endpoint
from ..errors import ConfigError
from ..inspector import Inspector
from ..snapshot import Snapshot
from .lines import Reader, Rules
from .listen import Listener
from .processes import Processes
from .state import StateFile
from .tail import Files

__all__ = ["Sidecar"]

#: Seconds between two looks at the ends of files, at which files there are, and at who is gone.
_INTERVAL: Final = 0.2
_SCAN: Final = 1.0
#: Lines over sockets after which it is time to save, and seconds that must lie between two saves even so.
_MANY: Final = 2000
_SHORTEST: Final = 0.5
#: Lines without any record after which it is said that this may be another file than was meant.
_NOT_OURS: Final = 1000
#: Of the time, what saving may take; seconds that are not long for it; and seconds that a page may be old otherwise.
_SHARE: Final = 0.05
_QUICK: Final = 0.05
_OLDEST: Final = 2.0


class Sidecar:
    """Follows the JSON logs of running processes, and takes lines over a socket, into one inspector: what
    `PrometheusExporter(sidecar)` serves is exact for all of them.

    paths: logs, as paths or globs. Files that appear later are found, and rotation is followed.
    follow: False reads what is there and looks at no file again.
    listen: where to take lines, for `AsyncInspectSocketHandler`: "unix:PATH", "host:port" or a port of 127.0.0.1.
    state: a file to keep counters and places in, so that a restart goes on from where it was.
    inspector: default: a new one, with `Config.from_env()`. It must not be used before where there is a state.
    rules: retrofit rules (`analysis.rules.load_rules`) for the lines of other programs.
    save_every: seconds between two saves. grace: seconds after which a process that is gone has its open spans ended
        as interrupted. local: whether pids in the files are those of this machine and container; None: those
        of processes that are seen to have their log open.
    socket_mode: permissions of a Unix socket.

    `run` serves until `stop`; `with Sidecar(…)` does that in a thread. It needs the extra `replay`. Raises ConfigError
    where something cannot be used, such as a state that another sidecar uses.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        *,
        follow: bool = True,
        listen: str | int | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        inspector: Inspector | None = None,
        rules: Rules | None = None,
        save_every: float = 5.0,
        grace: float = 10.0,
        local: bool | None = None,
        socket_mode: int = 0o600,
    ) -> None:
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if not paths and listen is None:
            raise ConfigError("neither a log to follow nor an address to listen on; give paths=, or listen=, or both")
        for name, seconds in (("save_every", save_every), ("grace", grace)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 86_400:
                raise ConfigError(f"{name}={seconds!r} is not a number of seconds; write for example {name}=5.0")
        endpoint = None if listen is None else parse_endpoint(listen, "listen")
        self.inspector = Inspector(Config.from_env()) if inspector is None else inspector
        self._follow = follow
        self._save_every = float(save_every)
        self.files = Files(paths)
        self.reader = Reader(self.inspector, rules)
        self.processes = Processes(self.inspector, float(grace), local)
        self.listener: Listener | None = None
        self._state: StateFile | None = None
        # Held while there is work, and not while there is none to wait for.
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        # How often all that the files held had been read, at the end of a round.
        self._rounds = 0
        self._round_over = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._scan_at = self._save_at = self._saved_at = 0.0
        self._saved: tuple[Any, ...] = ()
        # Seconds that it took to save last, and what was seen last, at which time: it was saved before.
        self._took = 0.0
        self._page: Snapshot | None = None
        self._page_at = 0.0
        # Whether it has been said that the files have no records, or is known that they have some.
        self._said = False
        self._closed = False
        try:
            if state is not None:
                self._state = StateFile(state)
            if endpoint is not None:
                self.listener = Listener(
                    endpoint, self.reader, self.processes, mode=socket_mode, durable=self._state is not None
                )
            if self._state is not None:
                self._resume(self._state)
        except BaseException:
            self._close()
            raise

    @property
    def address(self) -> Endpoint | None:
        """Where it listens; None where it does not."""
        return None if self.listener is None else self.listener.endpoint

    # -- what an exporter asks for -----------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        return self.inspector.config

    def snapshot(self, *, tasks: bool = True) -> Snapshot:
        """The inspector's snapshot, from any thread. Where there is a state, it is saved first: what somebody has seen
        of a counter, the next run begins with, and no counter falls. Where saving takes long, a snapshot without tasks
        may be the one before, if that is no more than 2 s old.
        """
        with self._lock:
            if self._state is None or self._closed:
                return self.inspector.snapshot(tasks=tasks)
            if self._page is not None and not tasks and time.monotonic() - self._page_at < self._oldest():
                return self._page
            self._try_to_save()
            snapshot = self.inspector.snapshot(tasks=tasks)
            self._page, self._page_at = snapshot._replace(tasks=()), time.monotonic()
            return snapshot

    def _oldest(self) -> float:
        """Seconds that a page may be old, so that whoever asks again and again does not keep everything waiting."""
        return 0.0 if self._took < _QUICK else min(self._took / _SHARE, _OLDEST)

    def add_duration_bounds(self, bounds: Sequence[float], /) -> None:
        self.inspector.add_duration_bounds(bounds)

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve, in this thread, until `stop` is called; then save, and close what is open. Once only."""
        try:
            while not self._stopping.is_set():
                self.step(_INTERVAL)
        finally:
            with self._lock:
                try:
                    self.save()
                finally:
                    self._close()

    def stop(self) -> None:
        """Have `run` return soon. May be called from any thread, from a signal handler, and again."""
        self._stopping.set()

    def __enter__(self) -> Sidecar:
        self._thread = threading.Thread(
            target=Context().run, args=(self._run_in_thread,), name="asyncinspect-sidecar", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run_in_thread(self) -> None:
        try:
            self.run()
        except BaseException as failure:
            self._failure = failure

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, in another thread than that of `run`, until what the files hold now has been read. Returns whether it
        was, within `timeout` seconds.
        """
        with self._round_over:
            # The round that is under way may have passed a file already.
            wanted = self._rounds + 2
            self.files.moved = True
            over = self._round_over.wait_for(lambda: self._rounds >= wanted, timeout)
        with self._lock:
            # What was waited for is to be seen.
            self._page = None
        return over

    def step(self, timeout: float = 0.0) -> bool:
        """One round: read what was added to the files, and take in what comes over sockets, for which it waits up to
        `timeout` seconds where there is nothing else. Returns whether there is more to be read at once.
        """
        with self._lock:
            more, due = self._read_files()
        events = []
        if self.listener is not None:
            events = self.listener.wait(0.0 if more else timeout)
        elif timeout and not more:
            self._stopping.wait(timeout)
        with self._lock:
            if self.listener is not None:
                self.listener.serve(events)
                if due:
                    self.listener.sweep()
            self._save_if_due()
        return more

    def _read_files(self) -> tuple[bool, bool]:
        """Returns whether there is more to be read, and whether it is time for what is done now and then."""
        now = time.monotonic()
        due = now >= self._scan_at
        looks = (due or self.files.moved) and (self._follow or not self._scan_at)
        if looks:
            self.files.scan()
        if due:
            self._scan_at = now + _SCAN
        bad = self.files.bad
        more = self.files.poll(self._take)
        for _ in range(self.files.bad - bad):
            self.reader.bad()
        if not more and self._follow and self.files.moved:
            # It is looked at once at which files there are now. Where that was done just now, files come and go all
            # the time, and whoever ran after them would do nothing else.
            more = not looks
        elif not more:
            with self._round_over:
                self._rounds += 1
                self._round_over.notify_all()
            if not self._said and len(self.files) and self.reader.lines >= _NOT_OURS:
                self._said = True
                self._say_if_none()
            if due:
                # Not before all is read that they have written.
                self.processes.look()
        return more, due

    def _say_if_none(self) -> None:
        read = self.reader
        if not read.records:
            warn_once(
                "follow",
                f"no records in {self.files.patterns}",
                "%s: no records of spans in %d lines, %d of them inside spans, %d of others and %d broken; follow "
                "another file, or log at level DEBUG",
                " ".join(self.files.patterns)[:1000],
                read.lines,
                read.annotations,
                read.foreign,
                read.broken,
            )

    def _take(self, name: str, first: int, lines: list[bytes]) -> None:
        self.processes.log = self.files.key
        self.reader.read_all(lines, name, first)
        self.processes.heard_in(lines)

    # -- from one run to the next ------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        if self._state is None:
            return
        now = time.monotonic()
        since = now - self._saved_at
        many = self.listener is not None and self.listener.unsaved >= _MANY
        if now >= self._save_at or (many and since >= max(_SHORTEST, self._took / _SHARE)):
            self._try_to_save()

    def _try_to_save(self) -> None:
        assert self._state is not None
        try:
            self.save()
        except OSError as error:
            warn_once("state", str(error.errno), "the state of the sidecar cannot be saved: %s", error)
        self._saved_at = time.monotonic()
        self._save_at = self._saved_at + max(self._save_every, self._took / _SHARE)

    def save(self) -> None:
        """Write the state, if there is a file for it and anything has changed. Raises OSError."""
        if self._state is None:
            return
        done = (self.reader.lines, self.processes.interrupted, self.files.bytes_read, self.files.bad, self._deadlocks())
        unsaved = 0 if self.listener is None else self.listener.unsaved
        if done == self._saved and not unsaved:
            return
        began = time.monotonic()
        try:
            # In one piece: what was counted, and up to where that was read.
            self._state.save(
                {
                    "inspector": self.inspector.checkpoint(),
                    "files": self.files.dump(),
                    "processes": self.processes.dump(),
                    "starts": self.reader.dump(),
                    "clients": [] if self.listener is None else self.listener.dump(),
                }
            )
        finally:
            self._took = time.monotonic() - began
        self._saved = done
        if self.listener is not None:
            self.listener.saved()

    def _deadlocks(self) -> int:
        """How many were found: by looking, and so without any line."""
        found: list[int] = []
        self.inspector.enter(lambda placing: found.append(placing.books.findings.deadlocks))
        return found[0]

    def _resume(self, state: StateFile) -> None:
        saved = state.load()
        if saved is None:
            return
        try:
            self.inspector.resume(saved["inspector"])
            self.files.load(saved["files"])
            self.processes.load(saved["processes"])
            self.reader.load(saved["starts"])
            if self.listener is not None:
                self.listener.load(saved["clients"])
            self._said = True
        except (ConfigError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise state.unusable(f"cannot be gone on from ({type(error).__name__}: {error})") from error

    def _close(self) -> None:
        self._closed = True
        self.files.close()
        if self.listener is not None:
            self.listener.close()
        if self._state is not None:
            self._state.close()
