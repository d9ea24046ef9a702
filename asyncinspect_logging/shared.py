"""Counts of this process's spans in memory that outlives it: a file, mapped, that other processes read meanwhile.

Each span is counted there when it begins and when it ends, before its `with` block is left: what a process that is
killed had counted stands in the file, to the last span. Every number is eight bytes, aligned, and only goes up, so a
reader that comes in the middle sees a little less and never nonsense.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from operator import gt
from typing import Any, Final

from .catalogue import OTHER, POLL_COUNT_BOUNDS, STEP_BOUNDS
from .diagnostics import warn_once
from .driven import DrivenSpan
from .frames import FrameTally
from .notices import NO_SPAN
from .process import after_fork
from .sequence import Seen
from .snapshot import Histogram, NameView
from .spans import Span
from .states import FINAL, OUTCOMES
from .steps import unpack

if sys.platform != "win32":
    import fcntl

__all__ = [
    "COUNTS",
    "DELAYS",
    "HEADER",
    "INTERRUPTED",
    "MAGIC",
    "NAMES",
    "POLL_COUNTS",
    "PREFIX",
    "SPAWNED",
    "STEPS",
    "SUMS",
    "VERSION",
    "SharedCounts",
    "cells_of",
    "durations_at",
    "size_in_file",
    "size_of",
    "unfold",
]

#: The cells of a name. Times in ns; `SUMS` is the first of polls, wakes, self-wakes, busy, idle and scheduled.
SPAWNED: Final = 0
SUMS: Final = 1
POLLS, WAKES, SELF_WAKES, BUSY, IDLE, SCHEDULED = range(SUMS, SUMS + 6)
#: Spans that were open when their process was killed. Nobody knows for how long; 0 while it lives.
INTERRUPTED: Final = 7
#: Polls of each finished span: a cell for each bucket, and their sum. What is not counted but taken for the difference
#: of two numbers would fall now and then, since a reader may come between them.
POLL_COUNTS: Final = 8
#: Steps, and waits for a turn, by bucket.
STEPS: Final = POLL_COUNTS + len(POLL_COUNT_BOUNDS) + 2
DELAYS: Final = STEPS + len(STEP_BOUNDS) + 1
#: Then for each final state a cell for each bucket of the durations, and their sum.
_DURATIONS: Final = DELAYS + len(STEP_BOUNDS) + 1
#: In the file, cells after all those: spans whose steps nobody sees, which ended and which began. They have one poll
#: each, and so one store stands for two. Those that began are read last: never do fewer begin than end.
_UNSEEN: Final = 2

#: Cells before those of the first name: magic, version, number of bounds, pid; then the bounds, as floats, in seconds.
HEADER: Final = 4
MAGIC: Final = int.from_bytes(b"asyncins", "little")
VERSION: Final = 2
#: Names of the files, which have an id of their own in between.
PREFIX: Final = "asyncinspect-"
COUNTS: Final = ".counts"
NAMES: Final = ".names"

_CELL: Final = 8
#: Names that the file has room for at first.
_FIRST: Final = 16
#: Announcements that wait, from which on nobody is going to count them.
_STUCK: Final = 10_000
_NO_ROOM: Final = (RecursionError, MemoryError)
_POLL_BOUNDS: Final = tuple(POLL_COUNT_BOUNDS)
#: What `listed` of a span is while only the counts have to hear of its end: true, but not True, which an inspector sets
#: when it comes to a span that is open.
_FOR_COUNTS: Final = 2


def size_of(bounds: int) -> int:
    """Cells of a name, with so many bounds of durations."""
    return _DURATIONS + len(FINAL) * (bounds + 2)


def size_in_file(bounds: int) -> int:
    """Those that it has in the file."""
    return size_of(bounds) + _UNSEEN


def unfold(stored: Sequence[int]) -> list[int]:
    """The cells of a name, of those that it has in the file."""
    *cells, ended, began = stored
    cells[SPAWNED] += began
    cells[POLLS] += began
    cells[POLL_COUNTS] += ended
    cells[STEPS - 1] += ended
    return cells


def durations_at(state: int, bounds: int) -> int:
    """The first cell of the durations of a final state, by its place in `FINAL`."""
    return _DURATIONS + state * (bounds + 2)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _histogram(histogram: Histogram, bounds: Sequence[float]) -> list[int]:
    """Counts of a histogram at bounds that it has, among others perhaps."""
    running = [0]
    at = dict(zip(histogram.bounds, histogram.cumulative(), strict=False))
    for bound in bounds:
        running.append(at.get(bound, running[-1]))
    running.append(histogram.total)
    return [after - before for before, after in pairwise(running)]


def cells_of(view: NameView, bounds: Sequence[float]) -> list[int]:
    """What was counted under a name, as cells with the durations at `bounds` (seconds)."""
    sums = (view.busy, view.idle, view.scheduled)
    cells = [view.spawned, view.polls, view.wakes, view.self_wakes, *map(_ns, sums)]
    durations = view.durations.values()
    # Counted as cancelled, and without a duration.
    cells.append(view.finished - sum(histogram.total for histogram in durations))
    cells += [*view.poll_counts.counts, round(view.poll_counts.sum)]
    cells += [*view.poll_durations.counts, *view.scheduled_delays.counts]
    for state in FINAL:
        histogram = view.durations.get(state.value)
        cells += [0] * (len(bounds) + 2) if histogram is None else [*_histogram(histogram, bounds), _ns(histogram.sum)]
    return cells


class _File:
    """The file of counts, held by a lock that the kernel takes off when the process is gone, whatever ended it."""

    def __init__(self, folder: str, bounds: Sequence[float]) -> None:
        self.id = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._size = size_in_file(len(bounds))
        self._header = HEADER + len(bounds)
        self.slots: dict[str, int] = {}
        path = os.path.join(folder, f"{PREFIX}{self.id}")
        # Others know it once it has its name, and by then it has its lock.
        hidden = os.path.join(folder, f".{PREFIX}{self.id}{COUNTS}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._counts = os.open(hidden, flags, 0o644)
        self._names = -1
        try:
            fcntl.flock(self._counts, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._names = os.open(path + NAMES, flags | os.O_APPEND, 0o644)
            self._room = 0
            self.cells: Any
            self._make_room(_FIRST)
            header = struct.pack(f"={HEADER}q{len(bounds)}d", MAGIC, VERSION, len(bounds), os.getpid(), *bounds)
            self.cells[: self._header] = memoryview(header).cast("q")
            self.add(OTHER)
            os.rename(hidden, path + COUNTS)
        except BaseException:
            self.close()
            with suppress(OSError):
                os.unlink(hidden)
            with suppress(OSError):
                os.unlink(path + NAMES)
            raise

    def add(self, name: str) -> int:
        """The first cell of a new name. Raises OSError."""
        if len(self.slots) >= self._room:
            self._make_room(2 * self._room)
        line = json.dumps(name).encode() + b"\n"
        end = os.fstat(self._names).st_size
        written = os.write(self._names, line)
        if written < len(line):
            os.ftruncate(self._names, end)
            raise OSError("no room for the name of a span")
        slot = self.slots[name] = self._header + len(self.slots) * self._size
        return slot

    def _make_room(self, names: int) -> None:
        length = (self._header + names * self._size) * _CELL
        have = os.fstat(self._counts).st_size
        # Written, not only made longer: a page that the disk has no room for later would end the process by SIGBUS.
        while have < length:
            have += os.pwrite(self._counts, bytes(min(1 << 16, length - have)), have)
        mapped = mmap.mmap(self._counts, length)
        # The old one goes with its last reader.
        self.cells = memoryview(mapped).cast("q")
        self._room = names

    def close(self) -> None:
        for descriptor in (self._counts, self._names):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)
        self._counts = self._names = -1


class SharedCounts:
    """Counts spans as they are announced, in a file in `folder`, and passes the announcements on.

    bounds: gives the bounds of the durations in seconds, once, when the file is made: with the first span.
    limit: names counted apart; None: no limit. before: what was counted until now.
    begun: called when the file was made, in this process or in the child of a fork, where all begins again at zero.
    """

    def __init__(
        self,
        folder: str,
        bounds: Callable[[], Sequence[float]],
        limit: int | None,
        before: Mapping[str, NameView],
    ) -> None:
        self._folder = folder
        self._find_bounds = bounds
        self._limit = limit
        self._before = dict(before)
        #: Called when there is a new file.
        self.begun: Callable[[], None] = _nothing
        #: Whether some name could not be given cells of its own, for want of room on the disk.
        self.refused = False
        self._told: Callable[[Any], None] = _nobody
        self._start()
        after_fork(self._in_child)

    def _start(self) -> None:
        # A lock that nobody waits for: who takes the item out may count. Quicker than a `threading.Lock` by a fifth of
        # a span, and as atomic.
        self._turn: list[None] = [None]
        # Announcements that came while somebody else counted, with whether it was of the end.
        self._late: deque[tuple[Span, bool]] = deque()
        # First cell of the name, by number of a span that is open.
        self._open: dict[int, int] = {}
        self._seen = Seen()
        self._file: _File | None = None
        # Those of the file.
        self._slots: dict[str, int] = {}
        self._cells: Any = None
        self._failed = False
        self.bounds: tuple[float, ...] = ()

    def wrap(self, told: Callable[[Any], None]) -> Callable[[Any], None]:
        """What announcements are to be given to; `told` has them next."""
        self._told = told
        return self.announce

    @property
    def id(self) -> str:
        """What the names of its files have in common. Raises OSError where they cannot be made."""
        file = self._file
        while file is None:
            turn = self._turn
            try:
                turn.pop()
            except IndexError:
                time.sleep(0.001)
                continue
            try:
                file = self._begin()
            finally:
                turn.append(None)
            self._catch_up()
        return file.id

    # -- counting ----------------------------------------------------------------------------------------------------

    def announce(self, span: Any) -> None:
        """A span begins, its tally has grown, or it is over; or else it is a notice. Raises nothing, never waits."""
        outcome = None
        try:
            number = span.number
            if number == NO_SPAN:
                return
            outcome = span.outcome
            if not span.listed:
                # To be told of its end, which may come before its beginning is counted.
                span.listed = _FOR_COUNTS
            if self._late:
                self._late.append((span, outcome is not None))
            else:
                turn = self._turn
                try:
                    turn.pop()
                except IndexError:
                    # Another thread is at it; or this one is, and this is a finaliser in the middle of that.
                    self._late.append((span, outcome is not None))
                else:
                    try:
                        if outcome is None:
                            if number not in self._open:
                                self._count_begin(span, number)
                        else:
                            slot = self._open.pop(number, None)
                            if slot is not None:
                                self._count_end(span, slot, outcome)
                    finally:
                        turn.append(None)
            if self._late:
                self._catch_up()
        except Exception as error:
            if error.__class__ not in _NO_ROOM:
                self._say(error)
        finally:
            # The inspector finds most spans over when it comes to their beginning, and need not hear of their end.
            if outcome is None or span.listed != _FOR_COUNTS:
                self._told(span)

    def _catch_up(self) -> None:
        """Count what came while somebody else counted, unless one is at it now, who will look again after it."""
        if len(self._late) > _STUCK:
            # Whoever had its turn was interrupted in the middle, by a signal handler that raised.
            self._turn = [None]
        while self._late:
            turn = self._turn
            try:
                turn.pop()
            except IndexError:
                return
            try:
                while self._late:
                    self._count(*self._late.popleft())
            except Exception as error:
                self._say(error)
            finally:
                turn.append(None)

    def _count(self, span: Any, over: bool) -> None:
        if over:
            slot = self._open.pop(span.number, None)
            if slot is not None:
                self._count_end(span, slot, span.outcome)
        elif span.number not in self._open:
            self._count_begin(span, span.number)

    def _count_begin(self, span: Any, number: int) -> None:
        seen = self._seen
        if number == seen.high + 1:
            seen.high = number
        elif not seen.add(number):
            return
        slot = self._slots.get(span.name)
        if slot is None:
            slot = self._slot_of(span.name)
        self._open[number] = slot
        cells = self._cells
        tally = span if span.__class__ is DrivenSpan else span.tally
        if tally is None or tally.__class__ is FrameTally:
            cells[slot + self._began] += 1
        else:
            cells[slot + SPAWNED] += 1

    def _count_end(self, span: Any, slot: int, outcome: str) -> None:
        duration = span.exited_at - span.entered_at
        cells = self._cells
        at = slot + self._places[outcome]
        cells[at + bisect_left(self._bounds_ns, duration)] += 1
        cells[at + self._sum] += duration
        tally = span if span.__class__ is DrivenSpan else span.tally
        if tally is None:
            cells[slot + self._ended] += 1
            return
        polls, busy, wakes = tally.polls, max(0, tally.busy), tally.wakes
        cells[slot + POLLS] += polls - 1 if tally.__class__ is FrameTally else polls
        cells[slot + POLL_COUNTS + bisect_left(_POLL_BOUNDS, polls)] += 1
        cells[slot + STEPS - 1] += polls
        cells[slot + BUSY] += busy
        if duration > busy:
            cells[slot + IDLE] += duration - busy
        cells[slot + STEPS] += polls - _add_slow(cells, slot + STEPS, tally.slow_polls)
        if wakes:
            cells[slot + WAKES] += wakes
            cells[slot + SELF_WAKES] += tally.self_wakes
            cells[slot + SCHEDULED] += max(0, tally.scheduled)
            cells[slot + DELAYS] += wakes - _add_slow(cells, slot + DELAYS, tally.slow_waits)

    def lacking(self, names: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """Of the cells by name that the inspector comes to, those of which some number is higher than here: of names
        with spans that are open and were polled, or that records told of.
        """
        file = self._file
        if file is None or self.refused:
            return {}
        size = size_in_file(len(self.bounds))
        found = {}
        for name, cells in names.items():
            slot = file.slots.get(name)
            if slot is not None:
                have = unfold(file.cells[slot : slot + size].tolist())
                if not any(map(gt, cells, have)):
                    continue
            found[name] = cells
        if any(name not in names for name in list(file.slots) if name != OTHER):
            # What has no place of its own there may have one here.
            found.pop(OTHER, None)
        return found

    # -- the file ----------------------------------------------------------------------------------------------------

    def _begin(self) -> _File:
        if self._file is not None:
            return self._file
        if self._failed:
            raise OSError(f"no file of counts could be made in {self._folder}")
        self.bounds = tuple(self._find_bounds())
        self._bounds_ns = [round(bound * 1e9) for bound in self.bounds]
        self._sum = len(self.bounds) + 1
        self._ended = size_of(len(self.bounds))
        self._began = self._ended + 1
        places = {state: durations_at(place, len(self.bounds)) for place, state in enumerate(FINAL)}
        self._places = {outcome: places[state] for outcome, state in OUTCOMES.items()}
        try:
            file = self._file = _File(self._folder, self.bounds)
        except OSError:
            self._failed = True
            raise
        self._slots, self._cells = file.slots, file.cells
        for name, view in self._before.items():
            for place, value in enumerate(cells_of(view, self.bounds), self._slot_of(name)):
                self._cells[place] += value
        self._before.clear()
        self.begun()
        return file

    def _slot_of(self, name: str) -> int:
        file = self._begin()
        if name in file.slots:
            return file.slots[name]
        if self._limit is not None and len(file.slots) > self._limit:
            return file.slots[OTHER]
        try:
            slot = file.add(name)
            self._cells = file.cells
            return slot
        except OSError as error:
            self.refused = True
            self._say(error)
            return file.slots[OTHER]

    def _say(self, error: Exception) -> None:
        warn_once(
            "shared counts", type(error).__qualname__, "spans are missing in the sum over all processes: %r", error
        )

    def _in_child(self) -> None:
        """The file is the parent's, and so is its lock, which the parent keeps: the child begins one of its own."""
        if self._file is not None:
            self._file.close()
        self._before.clear()
        self._start()


def _add_slow(cells: Any, at: int, packed: int) -> int:
    """Count slow steps; returns how many these are (see `steps.slow`)."""
    total = 0
    if packed:
        for place, count in enumerate(unpack(packed)):
            if count:
                cells[at + place] += count
                total += count
    return total


def _nothing() -> None:
    pass


def _nobody(span: object) -> None:
    pass
