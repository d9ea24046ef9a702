"""The inspector: what all the records of spans add up to.

Spans of this process are announced by a single append, at begin and at end, and everything is worked out in batches
later, under a lock that the application never waits for. That makes a span cheap, keeps threads, and finalisers that
run in the middle of anything, from meeting half-changed numbers, and needs no lock on the way in.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from . import clock as system_clock
from . import opened, process
from .announced import Announced
from .books import QUIET, Books
from .checkpoint import dump, load
from .config import Config
from .detect.blocked import Watchdog
from .detect.findings import DEADLOCK, tell
from .detect.lints import Lints
from .detect.waiting import tell_dissolved
from .detect.watch import watch
from .diagnostics import warn_once
from .errors import ConfigError
from .finished import WAITING, Ending, Finished, endings
from .placing import Placing
from .records import SpanRecord, payload_of
from .retention import Note
from .routing import Clock, Listener, deliver_held
from .snapshot import Finding, Snapshot
from .spans import Span
from .summary import summarize

if TYPE_CHECKING:
    from .shared import SharedCounts

__all__ = ["Inspector"]

#: Announcements after which they are worked off; spans of this process see to that by `Listener.settle`.
_BATCH: Final = 128
_Callback = Callable[[Finding], object]
#: Owners looked at in a scrape for having been collected; a full snapshot looks at all.
_OWNERS_A_SCRAPE: Final = 100


def _has_room(frames: int) -> bool:
    """Whether the stack has room for what a batch may need: the application may be near its recursion limit, where
    whatever is in hand when that is met would be lost.
    """
    try:
        return frames == 0 or _has_room(frames - 1)
    except RecursionError:
        return False


class _Annotation(NamedTuple):
    note: Note


class Inspector:
    """Counts everything, keeps some of it, and gives frozen snapshots. Safe to use from any thread.

    config: limits and sampling; default: `Config()`.
    clock: an object with `monotonic_ns()` and `time_ns()`, both in ns, such as `testing.FakeClock`; it then also sets
        the time of the spans whose handler feeds this inspector. Default: the system's clock.

    Raises ConfigError for what is no config or no clock.
    """

    _default: ClassVar[Inspector | None] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: Config | None = None, *, clock: Any = None) -> None:
        if config is not None and not isinstance(config, Config):
            raise ConfigError(f"config={config!r} is not a Config; write Inspector(Config(max_tasks=…))")
        if clock is not None and not (hasattr(clock, "monotonic_ns") and hasattr(clock, "time_ns")):
            raise ConfigError(
                f"clock={clock!r} has no monotonic_ns() and time_ns(); write Inspector(clock=FakeClock())"
            )
        self.config = Config() if config is None else config
        self.clock: Clock = system_clock if clock is None else clock
        #: Whether it is about this process. If it is about a log, the tasks and threads that are here are none of its
        #: business, and what it finds is news to nobody's log.
        self.first_hand = True
        #: Whether there ever was somebody who feeds it: a handler or a processor made for it, or who gave records.
        #: (`feeding.is_fed` says whether there is.)
        self.is_fed = False
        #: Whether records were given by `apply`, other than those that a logger hands to its handlers.
        self.is_given = False
        self.field_policy = self.config.field_policy()
        # What spans of this process and front ends append to, in any thread, without a lock.
        self._told: deque[Any] = deque()
        self._inbox: deque[Any] = deque()
        self._announce: Callable[[Any], None] = self._told.append
        # Re-entrant, and not alone: a finaliser or a signal handler may run in the middle of anything done under it.
        self._lock = threading.RLock()
        self._busy = False
        self._failure: Exception | None = None
        self._on_finding: list[_Callback] = []
        self._on_deadlock: list[_Callback] = []
        self._start()
        process.after_fork(self._after_fork)

    def _start(self) -> None:
        self._books = Books(self.config)
        self._announced = Announced(self._books)
        self._watchdog = Watchdog(self.config.slow_poll, self.clock)
        self._placing = Placing(self._books, self.field_policy, self._announced.numbers)
        self._lints = Lints(self.config, self.clock, self._announced.numbers)

    @classmethod
    def default(cls) -> Inspector:
        """The process-wide inspector, made on first use from the environment (`Config.from_env`).

        Raises ConfigError where the environment holds a setting that cannot be used.
        """
        with Inspector._default_lock:
            if Inspector._default is None:
                Inspector._default = cls(Config.from_env())
            return Inspector._default

    # -- in ----------------------------------------------------------------------------------------------------------

    def listener(self) -> Listener:
        """How spans of this process are announced here."""
        return Listener(self._announce, self.settle, self.clock)

    def announce(self, span: Span) -> None:
        """A span of this process begins, its tally has grown, or it is over."""
        self._announce(span)
        if len(self._told) >= _BATCH:
            self.settle()

    def apply(self, record: logging.LogRecord | Mapping[str, Any]) -> None:
        """Take in a lifecycle record: a LogRecord, an event dict, a parsed JSON line, or the payload itself.

        What is no lifecycle record is ignored; a malformed one is counted as dropped. Raises nothing.
        """
        try:
            payload = payload_of(record)
        except Exception:
            payload = {"flaw": True}
        if payload is not None:
            if record.__class__ is not SpanRecord:
                self.is_given = True
            self._receive(payload)

    def annotate(self, span_id: int, text: str, wall: int) -> None:
        """Note a log line inside a span, given by the number of its id. `wall`: Unix time in ns."""
        self._receive(_Annotation(Note(wall, span_id, "log", text)))

    def _receive(self, item: Any) -> None:
        self.is_fed = True
        self._inbox.append(item)
        if len(self._inbox) >= _BATCH:
            self.settle()

    def enter(self, records: Callable[[Placing], None]) -> None:
        """Have `records` enter what it has by itself: it is called with the places, alone and in its turn."""
        with self._lock:
            self._work()
            busy, self._busy = self._busy, True
            try:
                records(self._placing)
            finally:
                self._busy = busy
            self._work()
        self._after_work()

    def settle(self) -> None:
        """Work off what was announced, unless somebody is at it already. Never waits, never raises."""
        lock = self._lock
        if lock.acquire(blocking=False):
            try:
                self._work()
            finally:
                lock.release()
            self._after_work()

    # -- working off: only ever under the lock -----------------------------------------------------------------------

    def _work(self) -> None:
        if self._busy or not _has_room(30 if self._inbox else 12):
            return
        self._busy = True
        try:
            # The records first: whatever is read of a span of this process, its beginning has been announced by then.
            records = len(self._inbox)
            if not records:
                self._take(self._announced.take, self._told, len(self._told))
            else:
                over: deque[Span] = deque()
                self._take(lambda spans: self._announced.take(spans, over), self._told, len(self._told))
                self._take(self._read, self._inbox, records)
                self._take(self._announced.take, over, len(over))
            self._books.retention.trim()
            suspects = self._books.suspects
            if suspects:
                self._take(lambda found: self._lints.judge(self._books, found), suspects, len(suspects))
        finally:
            self._busy = False

    def _take(self, enter: Callable[[Iterable[Any]], None], queue: deque[Any], count: int) -> None:
        """Have the first `count` of a queue entered into the books. One that cannot be holds up none of the others."""
        left = repeat((), count)
        items = starmap(queue.popleft, left)
        before = count + 1
        # Each failure has cost one item at least, or else the next attempt would end like this one.
        while 0 < left.__length_hint__() < before:
            before = left.__length_hint__()
            try:
                enter(items)
            except Exception as failure:
                self._books.dropped["malformed"] += 1
                self._failure = failure

    def _read(self, items: Iterable[Any]) -> None:
        place = self._placing.place
        for item in items:
            if item.__class__ is _Annotation:
                self._placing.annotate(item.note)
            else:
                place(item)

    def _after_work(self) -> None:
        """Tell of a failure, after the lock was given back: whoever is told may need it."""
        if self._books.quiet_looks == 0 and self.first_hand:
            watch(self)
        failure, self._failure = self._failure, None
        if failure is not None:
            warn_once("inspector", type(failure).__qualname__, "a span could not be counted: %r", failure)

    # -- out ---------------------------------------------------------------------------------------------------------

    def on_finding(self, callback: Callable[[Finding], object]) -> Callable[[], None]:
        """Call `callback` with each finding from now on, in the thread that tells it (the watcher's, or that of a
        snapshot). Returns what takes the callback off again.
        """
        return self._call_back(self._on_finding, callback)

    def on_deadlock(self, callback: Callable[[Finding], object]) -> Callable[[], None]:
        """The same for deadlocks alone."""
        return self._call_back(self._on_deadlock, callback)

    def _call_back(self, callbacks: list[_Callback], callback: _Callback) -> Callable[[], None]:
        if not callable(callback):
            raise ConfigError(f"callback={callback!r} cannot be called; write a function that takes a Finding")
        callbacks.append(callback)
        return lambda: callbacks.remove(callback) if callback in callbacks else None

    def look(self, *, sparing: bool = False) -> None:
        """Have the detectors look at what no record can say, and tell of what was found. `sparing`: but not at once
        again at what takes long.

        Every full snapshot does that, and while tasks are driven or wait for each other, a thread does it a few times a
        second. Raises nothing.
        """
        deliver_held()
        with self._lock:
            self._books.quiet_looks += 1
            self._work()
            self._placing.complete()
            self._look_for_lints()
            self._look_for_deadlocks(sparing=sparing)
            if self.first_hand:
                self._watchdog.look(self._books)
        self._after_work()
        self._tell()
        if self.first_hand:
            self._watchdog.speak()

    def _look_for_lints(self) -> None:
        if not self.first_hand:
            return
        try:
            self._lints.look(self._books)
        except Exception as failure:
            self._failure = failure

    def _look_for_deadlocks(self, *, sparing: bool) -> None:
        books = self._books
        try:
            found, gone = books.waits.look(self._wall_ns, sparing=sparing)
        except Exception as failure:
            self._failure = failure
            return
        for finding in gone:
            books.findings.withdraw(finding)
            books.waits.dissolved.append(finding)
        for finding in found:
            books.findings.add(finding)
        if books.waits.by_owner:
            books.quiet_looks = 0

    def _wall_ns(self) -> int:
        """Unix time in ns, by the inspector's clock."""
        return system_clock.wall_ns(self.clock.monotonic_ns(), self.clock)

    def pause(self) -> float:
        """Seconds until it may be worth looking again."""
        return self._watchdog.pause()

    def loop_late(self) -> float:
        """Seconds for which an event loop of this process, that `install` knows of, has not come back by now."""
        return self._watchdog.late() if self.first_hand else 0.0

    def has_something_to_watch(self) -> bool:
        """Whether looking again may show what looking now has not."""
        return self._books.quiet_looks < QUIET

    def _tell(self) -> None:
        """Tell of the findings, without the lock: whoever is told may need it."""
        untold = self._books.findings.untold
        while untold:
            try:
                finding = untold.popleft()
            except IndexError:  # another thread is at it too
                return
            callbacks = self._on_finding + (self._on_deadlock if finding.kind == DEADLOCK else [])
            tell(finding, callbacks, logged=self.first_hand)
        dissolved = self._books.waits.dissolved
        while dissolved:
            try:
                gone = dissolved.popleft()
                if self.first_hand:
                    tell_dissolved(gone)
            except IndexError:
                return

    def finished(self, limit: int = WAITING) -> Finished:
        """The tasks that finish from now on, each given once, for what passes them on. `limit`: how many are kept until
        they are taken. Raises ConfigError for what is no number of tasks.
        """
        return Finished(self.enter, self.clock, limit)

    def endings(self) -> list[Ending]:
        """How the newest finished tasks ended, of those that are kept; the newest first. For exemplars."""
        found: list[Ending] = []
        self.enter(lambda placing: found.extend(endings(placing, self.clock)))
        return found

    def snapshot(self, *, tasks: bool = True) -> Snapshot:
        """Everything as of now. Without `tasks`, `.tasks` is empty, and the cost is the same however many there are:
        findings are those of earlier looks.
        """
        deliver_held()
        opened.close_collected(sys.maxsize if tasks else _OWNERS_A_SCRAPE)
        with self._lock:
            self._work()
            self._placing.complete()
            if tasks:
                self._look_for_lints()
                self._look_for_deadlocks(sparing=False)
            self._announced.fold_running()
            # Nothing may be worked off meanwhile, by a finaliser that runs in this thread.
            busy, self._busy = self._busy, True
            try:
                snapshot = summarize(self._books, self._placing, self.clock, tasks=tasks)
            finally:
                self._busy = busy
        self._after_work()
        self._tell()
        return snapshot

    # -- settings ----------------------------------------------------------------------------------------------------

    def add_duration_bounds(self, bounds: Sequence[float]) -> None:
        """Count task durations at these bounds (seconds) too, from now on; what was counted before stays in the
        buckets that it was put into. Raises ConfigError for what is not a number of seconds above 0.
        """
        for bound in bounds:
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound <= 1e9:
                raise ConfigError(f"bound {bound!r} is not a number of seconds above 0; write for example 0.25")
        with self._lock:
            self._work()
            self._books.add_bounds(tuple(float(bound) for bound in bounds))

    def reset(self) -> None:
        """Forget everything but the tasks that are live, which count as spawned again."""
        with self._lock:
            self._work()
            self._placing.complete()
            books = Books(self.config, self._books.bounds)
            books.quiet_looks, books.readers = self._books.quiet_looks, self._books.readers
            self._announced.carry_over(self._books, books)
            self._placing.carry_over(self._books, books)
            books.waits = self._books.waits
            books.waits.carry_over(books.live)
            self._books = books

    # -- outliving the process ---------------------------------------------------------------------------------------

    def share(self, folder: str) -> SharedCounts:
        """Count the spans of this process in a file in `folder` too, as they begin and end, for other processes to
        read: see `shared`. What spans that are open now come to is not in it.
        """
        from .shared import SharedCounts

        # The counts are kept for as long as there is this inspector, and so must not keep it.
        reference = weakref.ref(self)

        def bounds() -> Sequence[float]:
            inspector = reference()
            return () if inspector is None else inspector._books.bounds

        shared = SharedCounts(folder, bounds, self.config.max_names, self.snapshot(tasks=False).names)
        self._announce = shared.wrap(self._told.append)
        # Routes look again at who hears when a level is set.
        root = logging.getLogger()
        root.setLevel(root.level)
        return shared

    def checkpoint(self) -> dict[str, Any]:
        """Everything counted, and what is known of records, as plain values that JSON can hold: see `resume`. Of the
        spans of this process that are live or kept, only the counts are in it.
        """
        with self._lock:
            self._work()
            self._placing.complete(thoroughly=True)
            return dump(self._books, self._placing)

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Forget everything, and go on from a `checkpoint()`, of another process perhaps: as if this inspector had been
        told all that, and records that were taken in then count as seen.

        Raises ConfigError for what is no checkpoint; nothing is changed then.
        """
        with self._lock:
            self._work()
            books = Books(self.config, self._books.bounds)
            placing = Placing(books, self.field_policy, self._announced.numbers)
            load(checkpoint, books, placing)
            try:
                # Nothing that was saved stands in the way of a snapshot; what somebody wrote himself may.
                summarize(books, placing, self.clock, tasks=True)
            except Exception as error:
                raise ConfigError(f"this is no checkpoint of an inspector: {type(error).__name__}: {error}") from error
            self._announced.carry_over(self._books, books)
            books.waits.take_over(self._books.waits)
            books.quiet_looks = 0 if books.waits.by_owner else self._books.quiet_looks
            books.readers = self._books.readers
            self._books, self._placing = books, placing
        self._after_work()

    def lose(self, records: int) -> None:
        """Count records of which somebody says that they never arrived, as dropped for the reason `gap`."""
        with self._lock:
            self._books.dropped["gap"] += records

    def _after_fork(self) -> None:
        """The parent goes on counting what it counted; the child begins at zero, with a lock that nobody holds."""
        self._lock = threading.RLock()
        self._busy = False
        self._told.clear()
        self._inbox.clear()
        readers = self._books.readers
        self._start()
        self._books.readers = readers
        for reader in readers:
            reader.forget()


def _default_after_fork() -> None:
    Inspector._default_lock = threading.Lock()


process.after_fork(_default_after_fork)
