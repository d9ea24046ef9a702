"""Records taken in as fast as can be: those of spans whose records come whole and in order, which are nearly all.

Every other record goes the general way (`placing`), and takes along what is known of its span: so both ways always come
to the same, and this one only needs to know what is usual. It is written for speed. What it saves, against the general
way: a span is not made an object of its own until somebody asks for one; it is counted once, at its end, and not at
each of its records; and its details are read if and when it is shown.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final

from ..catalogue import POLL_COUNT_BOUNDS
from ..fields import FieldPolicy
from ..placing import MAX_OVER, UNNUMBERED, Placing
from ..steps import pack
from ..telling import Telling, read, read_slow
from ..told import ToldSpan
from ..totals import Folded
from .decoding import Begin, Enter, Exit, Line, More, Resume, Spawn, Wake, decoded, payload_in

if TYPE_CHECKING:
    from ..books import Books

__all__ = ["Bulk", "Open", "unfold"]

_BASE: Final = re.compile(r"(?!0{8})[0-9a-f]{8}")
_ID: Final = re.compile(r"[0-9a-f]{16}")
#: Bytes: what is taken in has to be readable once more, later and with more on the stack. No shorter line is nested too
#: deep for that, and none shorter than the other has a number of more digits than Python reads.
_LONG: Final = 1000
_TOO_LONG: Final = 4000
_NESTED: Final = 100
_NO_ID: Final = "0" * 16
_NO_TRACE: Final = "0" * 32
_POLL_BOUNDS: Final = list(POLL_COUNT_BOUNDS)
#: The buckets of the poll counts that most spans have.
_FEW: Final = 100
_BUCKETS: Final = tuple(bisect_left(_POLL_BOUNDS, polls) for polls in range(_FEW))
_SUMMING: Final = pack([(1, 1)]) - 1  # see `totals`
_MAX_MORE: Final = 16
_MAX_PACKED: Final = 10_000


class Open:
    """A span that has begun, and of which more is known than that."""

    __slots__ = ("enter", "last", "more", "name", "polls", "spawn", "trace", "wakes")

    def __init__(self, spawn: Spawn | None, enter: Enter) -> None:
        self.spawn, self.enter = spawn, enter
        self.name = (spawn or enter).name
        self.trace = enter.trace or (spawn.trace if spawn else "")
        #: The line of the last suspend or resume, and how often it was resumed and woken.
        self.last: bytes | None = None
        self.polls = self.wakes = 0
        #: The lines of its records of kind "record".
        self.more: tuple[bytes, ...] = ()


def telling_in(line: bytes, policy: FieldPolicy) -> Telling:
    telling = read(payload_in(line), policy)
    assert telling is not None  # or it would have gone the general way
    return telling


def span_of(begun: Begin | Open, policy: FieldPolicy) -> ToldSpan:
    """The same span as the general way would have made."""
    if isinstance(begun, Open):
        spawn = () if begun.spawn is None else (begun.spawn.line,)
        lines = (*spawn, begun.enter.line, *begun.more)
    else:
        lines = (begun.line,)
    first, *others = (telling_in(line, policy) for line in lines)
    span = ToldSpan(first.number, first.name)
    for telling in (first, *others):
        span.apply(telling)
    if isinstance(begun, Open):
        last = None if begun.last is None else telling_in(begun.last, policy)
        span.catch_up(begun.polls, begun.wakes, last)
    return span


def unfold(exit: Exit, policy: FieldPolicy) -> ToldSpan:
    """The finished span of an exit that was taken in here. Asked again, the same object."""
    begun: Begin | Open | ToldSpan = exit.begun
    if isinstance(begun, ToldSpan):
        return begun
    span = span_of(begun, policy)
    span.apply(telling_in(exit.line, policy))
    exit.begun = span
    return span


def _is_odd(line: bytes) -> bool:
    """Whether a long line may be one that cannot be read a second time."""
    return len(line) > _TOO_LONG or line.count(b"[") + line.count(b"{") > _NESTED


class Bulk:
    """What comes in bulk for one inspector. `latest`: the latest time taken in, `limit`: the time after which records
    are passed over, both Unix time in ns.
    """

    def __init__(self, placing: Placing, limit: int) -> None:
        self.placing = placing
        self.latest = 0
        self.limit = limit
        #: Records that were later than the limit.
        self.later = 0
        self._begun: dict[str, Begin | Open] = {}
        # By id, the place among the retained tasks, counted from the first that there ever was; -1: not retained.
        self._ended: dict[str, int] = {}
        # The process whose record came last.
        self._pid, self._base = -1, ""
        self._packed: dict[Any, tuple[int, int, bool]] = {}
        placing.bulk = self

    # -- the general way ---------------------------------------------------------------------------------------------

    def hand_over(self, number: int) -> None:
        """A span goes the general way from now on."""
        if not self._begun and not self._ended:
            return
        id = f"{number:016x}"
        begun = self._begun.pop(id, None)
        if begun is not None:
            self._hand_over(begun)
            return
        place = self._ended.pop(id, None)
        if place is not None:
            retention = self.placing.books.retention
            retention.trim()
            place -= retention.dropped_tasks
            found: Any = retention.tasks[place] if 0 <= place < len(retention.tasks) else None
            is_it = isinstance(found, Exit) and found.id == id
            self.placing.remember(number, unfold(found, self.placing.policy) if is_it else None)

    def _hand_over(self, begun: Begin | Open) -> None:
        books, span = self.placing.books, span_of(begun, self.placing.policy)
        assert span.state is not None
        books.live[span.number] = span
        books.told_states[span.state] += 1
        folded = books.folded[span.number] = Folded()
        total = books.total_of(span.name, again=True)
        total.spawned += 1
        total.driven += 1
        total.fold_told(span, folded)

    def hand_over_all(self) -> None:
        """All open spans: somebody wants to see them."""
        begun, self._begun = self._begun, {}
        for each in begun.values():
            self._hand_over(each)

    def unfold(self, task: Exit) -> ToldSpan:
        """A retained task as a span."""
        return unfold(task, self.placing.policy)

    def unfold_all(self) -> None:
        """Leave nothing here: all goes the general way from now on."""
        retention = self.placing.books.retention
        for id in list(self._ended)[-MAX_OVER:]:
            self.hand_over(int(id, 16))
        self._ended.clear()
        retention.tasks = deque(map(self.placing.unfolded, retention.tasks))
        retention.notes = deque(map(retention.note_of, retention.notes))

    def trace_of(self, number: int) -> Any:
        """Something with the `trace` of an open span, or None."""
        return self._begun.get(f"{number:016x}")

    # -- the quick way -----------------------------------------------------------------------------------------------

    def take(self, lines: list[bytes], odd: Callable[[bytes, int], None]) -> None:
        """Take in lines. `odd` is called with those that are to go the general way, and their index."""
        retention = self.placing.books.retention
        retention.payload_in = payload_in
        if self.placing.books.readers:
            # Who is given each task that is over is given it by the general way.
            self.hand_over_all()
            for index, told in enumerate(lines):
                odd(told, index)
            return
        each, count = iter(lines), len(lines)
        left = zip(each, decoded(lines), strict=True)
        while True:
            line = self._take(left)
            if line is None:
                break
            odd(line, count - length_hint(each) - 1)
        retention.trim()
        if len(self._ended) > 2 * MAX_OVER:
            # Not one by one: what is taken off the front of a dict leaves a gap that the next search walks over.
            self._ended = dict(islice(self._ended.items(), len(self._ended) - MAX_OVER, None))

    def _take(self, lines: Iterator[tuple[bytes, Line | None]]) -> bytes | None:
        """Take in what is usual; returns the first line that is not, or None at the end."""
        placing = self.placing
        books: Books = placing.books
        retention, total_of, totals = books.retention, books.total_of, books.totals
        begun, ended, packed_get, buckets = self._begun, self._ended, self._packed.get, _BUCKETS
        begun_get, begun_pop, total_get = begun.get, begun.pop, totals.get
        fromhex = bytes.fromhex
        everything, samples, shortest_kept = retention.everything, retention.samples, retention.slow
        keep, note = retention.tasks.append, retention.notes.append
        notes_polls, notes_wakes = books.config.track_polls, books.config.track_wakes
        bounds = books.bounds_ns
        shortest = bounds[0]
        long_step, many_wakes = books.long_step, books.many_wakes
        limit, latest = self.limit, self.latest
        is_known = placing.knows if placing.knows_any() else None
        place = retention.dropped_tasks + len(retention.tasks)
        pid, base = self._pid, self._base
        seen = placing.seqs_of(pid, int(base, 16)) if base else None
        high = seen.high if seen is not None else -2
        later = 0
        entry: Any
        name: Any
        record: Any
        try:
            for line, record in lines:
                if record is None or (len(line) > _LONG and _is_odd(line)):
                    return line
                record = record.asyncinspect
                kind, id, of = type(record), record.id, record.pid
                seq, wall = record.seq, record.wall
                if of != pid or id[:8] != base:
                    if of == UNNUMBERED or _BASE.match(id) is None:
                        return line
                    if seen is not None:
                        seen.high = high
                    pid, base = of, id[:8]
                    seen = placing.seqs_of(pid, int(base, 16))
                    high = seen.high
                if seq != high + 1:
                    if seq <= high or seen is None:
                        # Too late, or there already.
                        return line
                    seen.high = high
                    seen.skip_to(seq)
                    high = seen.high
                if wall > limit:
                    if _ID.match(id) is None:
                        return line
                    high += 1
                    later += 1
                    continue

                if kind is Exit:
                    entry = begun_pop(id, None)
                    self_wakes = record.self_wakes
                    max_poll = record.max_poll
                    if entry is None:
                        return line
                    began_as = type(entry)
                    duration = record.duration
                    if (
                        max_poll >= long_step
                        or self_wakes >= many_wakes
                        or began_as is Spawn
                        or (duration < 0 and not (entry.enter if began_as is Open else entry).t)
                    ):
                        begun[id] = entry
                        return line
                    polls = record.polls
                    wakes = record.wakes
                    if began_as is Enter:
                        if not polls:
                            polls = 1
                        if duration < 0:
                            duration = max(0, record.t - entry.t)
                    else:
                        if entry.polls >= polls:
                            polls = entry.polls + 1
                        if entry.wakes > wakes:
                            wakes = entry.wakes
                        if duration < 0:
                            duration = max(0, record.t - entry.enter.t)
                    slow = count = slow_waits = waits = 0
                    timed = False
                    pairs = record.slow_polls
                    if pairs is not None:
                        slow, count, timed = packed_get(pairs) or self._pack(pairs)
                    pairs = record.slow_waits
                    if pairs is not None:
                        slow_waits, waits, _ = packed_get(pairs) or self._pack(pairs)

                    # As `NameTotals.fold_finished` does where nothing was folded before.
                    name = entry.name
                    total = total_get(name) or total_of(name, again=True)
                    total.spawned += 1
                    total.driven += 1
                    outcome = record.outcome
                    cell = total.completed if outcome == "completed" else total.outcomes[outcome]
                    cell.sum += duration
                    cell.counts[0 if duration <= shortest else bisect_left(bounds, duration)] += 1
                    total.polls += polls
                    busy = record.busy
                    if busy:
                        total.busy += busy
                    if timed or max_poll or polls > 1:
                        if duration > busy:
                            total.idle += duration - busy
                        if slow:
                            total.slow_polls += slow
                        if polls > count:
                            total.fast_polls += polls - count
                        if wakes > waits:
                            total.fast_waits += wakes - waits
                    if wakes:
                        total.wakes += wakes
                    if self_wakes:
                        total.self_wakes += self_wakes
                    if record.scheduled:
                        total.scheduled += record.scheduled
                    if slow_waits:
                        total.slow_waits += slow_waits
                    total.observed += 1
                    cell = total.poll_counts
                    cell.counts[buckets[polls] if polls < _FEW else bisect_left(_POLL_BOUNDS, polls)] += 1
                    cell.sum += polls

                    if outcome != "completed":
                        record.line = line
                        record.begun = entry
                        retention.keep(record)
                        ended[id] = place
                        place += 1
                    elif everything or duration >= shortest_kept or samples(entry):
                        record.line = line
                        record.begun = entry
                        keep(record)
                        ended[id] = place
                        place += 1
                    else:
                        ended[id] = -1

                elif kind is Enter or kind is Spawn:
                    if id in ended:
                        return line
                    trace, parent = record.trace, record.parent
                    entry = None if parent is None else begun_get(parent)
                    if entry is not None and entry.trace == trace:
                        # Those of its parent are as they should be.
                        digits = id
                    else:
                        digits = id + trace
                        if parent is not None:
                            digits += parent
                        if trace == _NO_TRACE or parent == _NO_ID:
                            return line
                    try:
                        # Not all that it takes is written as ids are, by which they are looked up: spaces, capitals.
                        if fromhex(digits).hex() != digits:
                            return line
                    except ValueError:
                        return line
                    entry = begun_get(id)
                    if entry is None:
                        if is_known is not None and is_known(int(id, 16)):
                            return line
                        begun[id] = record
                        name = record.name
                        if name not in totals:
                            total_of(name)
                    elif kind is Enter and type(entry) is Spawn:
                        begun[id] = Open(entry, record)
                    else:
                        return line
                    record.line = line

                else:
                    entry = begun_get(id)
                    if type(entry) is not Open:
                        if type(entry) is not Enter:
                            return line
                        entry = begun[id] = Open(None, entry)
                    if kind is Wake:
                        entry.wakes += 1
                        if notes_wakes and (everything or samples(entry)):
                            note(line)
                    elif kind is More:
                        if len(entry.more) >= _MAX_MORE:
                            return line
                        entry.more += (line,)
                    else:
                        entry.last = line
                        if kind is Resume:
                            entry.polls += 1
                        if notes_polls and (everything or samples(entry)):
                            note(line)
                # Of a line that was taken in, and no other.
                if wall > latest:
                    latest = wall
                high += 1
            return None
        finally:
            if seen is not None:
                seen.high = high
            self._pid, self._base = pid, base
            self.latest = latest
            self.later += later

    def _pack(self, pairs: Any) -> tuple[int, int, bool]:
        """Counts of slow steps as `telling` reads them, their sum, and whether they could be read. They are remembered:
        there are few different ones.
        """
        if len(self._packed) > _MAX_PACKED:
            self._packed.clear()
        packed = read_slow(pairs)
        found = self._packed[pairs] = (0, 0, False) if packed is None else (packed, packed % _SUMMING, True)
        return found
