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
from typing import TYPE_CHECKING, Any, Final

from ..catalogue import POLL_COUNT_BOUNDS
from ..fields import FieldPolicy
from ..placing import MAX_OVER, UNNUMBERED, Placing
from ..states import TaskState
from ..steps import pack
from ..telling import Telling, read, read_slow
from ..told import ToldSpan
from ..totals import Folded
from .decoding import Record, line_decoder

if TYPE_CHECKING:
    from ..books import Books

__all__ = ["Bulk", "Open", "unfold"]

_BASE: Final = re.compile(r"[0-9a-f]{8}")
_NO_ID: Final = "0" * 16
_NO_TRACE: Final = "0" * 32
_POLL_BOUNDS: Final = list(POLL_COUNT_BOUNDS)
_SUMMING: Final = pack([(1, 1)]) - 1  # see `totals`
_MAX_MORE: Final = 16
_MAX_PACKED: Final = 10_000
_INVALID: Final = -1


class Open:
    """A span that has begun, and of which more is known than that."""

    __slots__ = ("enter", "last", "more", "name", "polls", "spawn", "trace", "wakes")

    def __init__(self, spawn: Record | None, enter: Record) -> None:
        self.spawn, self.enter = spawn, enter
        self.name = (spawn or enter).name
        self.trace = enter.trace or (spawn and spawn.trace) or ""
        #: The last suspend or resume, and how often it was resumed and woken.
        self.last: Record | None = None
        self.polls = self.wakes = 0
        #: Its records of kind "record".
        self.more: list[Record] = []


def telling_of(record: Record, policy: FieldPolicy) -> Telling:
    telling = read(record.payload(), policy)
    assert telling is not None  # or it would have gone the general way
    return telling


def span_of(begun: Record | Open, policy: FieldPolicy) -> ToldSpan:
    """The same span as the general way would have made."""
    records = [begun] if isinstance(begun, Record) else [begun.spawn, begun.enter, *begun.more]
    span: ToldSpan | None = None
    for record in records:
        if record is not None:
            telling = telling_of(record, policy)
            if span is None:
                span = ToldSpan(telling.number, telling.name)
            span.apply(telling)
    assert span is not None
    if isinstance(begun, Open):
        last = None if begun.last is None else telling_of(begun.last, policy)
        span.catch_up(begun.polls, begun.wakes, last)
    return span


def unfold(exit: Record, policy: FieldPolicy) -> ToldSpan:
    """The finished span of an exit that was taken in here. Asked again, the same object."""
    begun: Any = exit.begun
    if isinstance(begun, ToldSpan):
        return begun
    span = span_of(begun, policy)
    span.apply(telling_of(exit, policy))
    exit.begun = span  # type: ignore[assignment]
    return span


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
        self._begun: dict[str, Record | Open] = {}
        # By id, the place among the retained tasks, counted from the first that there ever was; -1: not retained.
        self._ended: dict[str, int] = {}
        # The process whose record came last.
        self._pid, self._base = -1, ""
        self._packed: dict[Any, int] = {(): 0}
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
            place -= retention.dropped_tasks
            found: Any = retention.tasks[place] if 0 <= place < len(retention.tasks) else None
            is_it = isinstance(found, Record) and found.id == id
            self.placing.remember(number, unfold(found, self.placing.policy) if is_it else None)

    def _hand_over(self, begun: Record | Open) -> None:
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

    def unfold(self, task: Record) -> ToldSpan:
        """A retained task as a span."""
        return unfold(task, self.placing.policy)

    def unfold_all(self) -> None:
        """Leave nothing here: all goes the general way from now on."""
        retention = self.placing.books.retention
        for id in list(self._ended)[-MAX_OVER:]:
            self.hand_over(int(id, 16))
        self._ended.clear()
        retention.tasks = deque(map(self.placing.unfolded, retention.tasks))
        retention.notes = deque(
            retention.note_of(note) if isinstance(note, Record) else note for note in retention.notes
        )

    def trace_of(self, number: int) -> Any:
        """Something with the `trace` of an open span, or None."""
        return self._begun.get(f"{number:016x}")

    # -- the quick way -----------------------------------------------------------------------------------------------

    def take(self, lines: list[bytes], odd: Callable[[bytes, int], None]) -> None:
        """Take in lines. `odd` is called with those that are to go the general way, and their index."""
        left = iter(lines)
        count = len(lines)
        while True:
            line = self._take(left)
            if line is None:
                break
            odd(line, count - left.__length_hint__() - 1)  # type: ignore[attr-defined]
        self.placing.books.retention.trim()
        if len(self._ended) > 2 * MAX_OVER:
            # Not one by one: what is taken off the front of a dict leaves a gap that the next search walks over.
            self._ended = dict(islice(self._ended.items(), len(self._ended) - MAX_OVER, None))

    def _take(self, lines: Iterator[bytes]) -> bytes | None:
        """Take in what is usual; returns the first line that is not, or None at the end."""
        placing = self.placing
        books: Books = placing.books
        retention, total_of, totals = books.retention, books.total_of, books.totals
        begun, ended, packed = self._begun, self._ended, self._packed
        begun_get, begun_pop, total_get = begun.get, begun.pop, totals.get
        decode, fromhex = line_decoder.decode, bytes.fromhex
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
        slow: Any
        slow_waits: Any
        name: Any
        record: Any
        try:
            for line in lines:
                try:
                    record = decode(line).asyncinspect
                except Exception:
                    return line
                id = record.id
                if record.pid != pid or id[:8] != base:
                    if record.pid == UNNUMBERED or _BASE.match(id) is None:
                        return line
                    if seen is not None:
                        seen.high = high
                    pid, base = record.pid, id[:8]
                    seen = placing.seqs_of(pid, int(base, 16))
                    high = seen.high
                if record.seq != high + 1:
                    if record.seq <= high or seen is None:
                        # Too late, or there already.
                        return line
                    seen.high = high
                    seen.skip_to(record.seq)
                    high = seen.high
                wall = record.wall
                if wall > latest:
                    if wall > limit:
                        high += 1
                        later += 1
                        continue
                    latest = wall
                kind = record.kind

                if kind == "exit":
                    entry = begun_pop(id, None)
                    outcome = record.outcome
                    self_wakes = record.self_wakes
                    max_poll = record.max_poll
                    if (
                        entry is None
                        or record.name is None
                        or outcome is None
                        or outcome == "abandoned"
                        or max_poll >= long_step
                        or self_wakes >= many_wakes
                    ):
                        if entry is not None:
                            begun[id] = entry
                        return line
                    polls = record.polls
                    wakes = record.wakes
                    if entry.__class__ is Record:
                        if entry.kind != "enter":
                            begun[id] = entry
                            return line
                        began = entry.t
                        if not polls:
                            polls = 1
                    else:
                        began = entry.enter.t
                        if entry.polls >= polls:
                            polls = entry.polls + 1
                        if entry.wakes > wakes:
                            wakes = entry.wakes
                    duration = record.duration
                    if duration is None:
                        if not began:
                            begun[id] = entry
                            return line
                        duration = max(0, record.t - began)
                    slow = slow_waits = 0
                    pairs = record.slow_polls
                    timed = False
                    if pairs is not None:
                        slow = packed.get(pairs)
                        if slow is None:
                            slow = self._pack(pairs)
                        if slow == _INVALID:
                            slow = 0
                        else:
                            timed = True
                    pairs = record.slow_waits
                    if pairs is not None:
                        slow_waits = packed.get(pairs)
                        if slow_waits is None:
                            slow_waits = self._pack(pairs)
                        if slow_waits == _INVALID:
                            slow_waits = 0

                    # As `NameTotals.fold_finished` does where nothing was folded before.
                    name = entry.name
                    total = total_get(name) or total_of(name, again=True)
                    total.spawned += 1
                    total.driven += 1
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
                            fast = polls - slow % _SUMMING
                            if fast > 0:
                                total.fast_polls += fast
                        else:
                            total.fast_polls += polls
                        fast = wakes - slow_waits % _SUMMING if slow_waits else wakes
                        if fast > 0:
                            total.fast_waits += fast
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
                    cell.counts[bisect_left(_POLL_BOUNDS, polls) if polls > 1 else 0] += 1
                    cell.sum += polls

                    record.line = line
                    if outcome != "completed":
                        record.begun = entry
                        retention.keep(record)
                        ended[id] = place
                        place += 1
                    elif everything or duration >= shortest_kept or samples(entry):
                        record.begun = entry
                        keep(record)
                        ended[id] = place
                        place += 1
                    else:
                        ended[id] = -1

                elif kind == "enter" or kind == "spawn":
                    name = record.name
                    if name is None or id in ended:
                        return line
                    trace, parent = record.trace, record.parent
                    digits = id if trace is None else id + trace
                    if parent is not None:
                        digits += parent
                    try:
                        # Not all that it takes is written as ids are, by which they are looked up: spaces, capitals.
                        if fromhex(digits).hex() != digits:
                            return line
                    except ValueError:
                        return line
                    if id == _NO_ID or trace == _NO_TRACE or parent == _NO_ID:
                        return line
                    record.line = line
                    entry = begun_get(id)
                    if entry is None:
                        if is_known is not None and is_known(int(id, 16)):
                            return line
                        begun[id] = record
                        if name not in totals:
                            total_of(name)
                    elif kind == "enter" and entry.__class__ is Record and entry.kind == "spawn":
                        begun[id] = Open(entry, record)
                    else:
                        return line

                elif kind == "suspend" or kind == "resume" or kind == "wake":
                    entry = begun_get(id)
                    if entry is None:
                        return line
                    if entry.__class__ is Record:
                        if entry.kind != "enter":
                            return line
                        entry = begun[id] = Open(None, entry)
                    record.line = line
                    if kind == "wake":
                        entry.wakes += 1
                        if notes_wakes and (everything or samples(entry)):
                            note(record)
                    else:
                        entry.last = record
                        if kind == "resume":
                            entry.polls += 1
                        if notes_polls and (everything or samples(entry)):
                            note(record)

                elif kind == "record":
                    entry = begun_get(id)
                    if entry is None or record.name is None:
                        return line
                    if entry.__class__ is Record:
                        if entry.kind != "enter":
                            return line
                        entry = begun[id] = Open(None, entry)
                    if len(entry.more) >= _MAX_MORE:
                        return line
                    record.line = line
                    entry.more.append(record)

                else:
                    return line
                high += 1
            return None
        finally:
            if seen is not None:
                seen.high = high
            self._pid, self._base = pid, base
            self.latest = latest
            self.later += later

    def _pack(self, pairs: Any) -> int:
        """Counts of slow steps as `telling` reads them, remembered: there are few different ones."""
        if len(self._packed) > _MAX_PACKED:
            self._packed.clear()
        found = read_slow(pairs)
        packed = self._packed[pairs] = _INVALID if found is None else found
        return packed


def state_after(record: Telling) -> TaskState:
    return TaskState.BLOCKED if record.kind == "suspend" else TaskState.RUNNING
