"""Records of spans, put in their places: each counted once, however often and in whatever order they come.

What one is told of twice is known by process and seq. A record that comes before the one that begins its span waits for
that, and one that comes after its span's end is still placed as long as the span is remembered.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from .books import Books
from .detect.lints import judge_told, symptoms
from .fields import FieldPolicy
from .records import STEP_KINDS
from .retention import Note
from .sequence import Seen
from .spans import Span
from .telling import Telling, read
from .told import ToldSpan
from .totals import Folded

__all__ = ["UNNUMBERED", "Placing"]

#: The `pid` of records that no process has numbered, such as those made by retrofit rules: their seqs say nothing of
#: what came twice or is missing, and whoever makes them sees to it that each comes once.
UNNUMBERED: Final = 0

#: Records that wait for their span's beginning; ends of told spans remembered; processes whose seqs are at hand.
_MAX_WAITING: Final = 10_000
MAX_OVER: Final = 10_000
_MAX_STREAMS: Final = 1024
#: Of other processes, what is remembered in all: so many of them, if their records came whole (200 bytes each). One
#: with holes weighs as much as it takes memory.
_MAX_PAST: Final = 1 << 18
_BYTES_OF_ONE: Final = 200
#: A process numbers its spans upwards from a random base, and so these are the same bits in all its ids, and others
#: in those of a process that has the same pid on another machine, or had it before.
_BASE_SHIFT: Final = 32
_MAX_BASE: Final = (1 << _BASE_SHIFT) - 1
#: Seqs fit 63 bits.
_NUMBER_BITS: Final = 64
_MAX_NUMBER: Final = (1 << _NUMBER_BITS) - 1


def _gone() -> None:
    pass


def _weight(past: int | Seen) -> int:
    return 1 if isinstance(past, int) else 1 + past.__sizeof__() // _BYTES_OF_ONE


def _holes(past: int | Seen) -> int:
    return max(0, (past >> _NUMBER_BITS) - 1) if isinstance(past, int) else past.holes(1)


class Placing:
    """Enters records into the books. `announced`: numbers of the spans known at first hand."""

    def __init__(self, books: Books, policy: FieldPolicy, announced: Seen) -> None:
        self.books = books
        self.policy = policy
        #: What takes records in by the thousand (`analysis.bulk`), and knows spans that are not known here.
        self.bulk: Any = None
        #: Records found to be missing by what reads whole logs.
        self.missing = 0
        # By process, the lowest seq, and the highest one when those were looked for.
        self._reached: dict[tuple[int, int], tuple[int, int]] = {}
        self._announced = announced
        self._streams: OrderedDict[tuple[int, int], Seen] = OrderedDict()
        self._stream: tuple[int, int] | None = None
        # The processes from which nothing came for longest, by pid and base in one number: their only run, likewise, or
        # whatever else was seen of them.
        self._past: OrderedDict[int, int | Seen] = OrderedDict()
        self._past_weight = 0
        self._waiting: OrderedDict[int, list[Telling]] = OrderedDict()
        self._waiting_count = 0
        self.max_waiting = _MAX_WAITING
        self._gaps = self._holes = 0
        # Told spans that are over: only as long as they are retained is there anything to be told of them.
        self._over: OrderedDict[int, Callable[[], ToldSpan | None]] = OrderedDict()

    def place(self, payload: Mapping[str, Any]) -> None:
        books = self.books
        try:
            telling = read(payload, self.policy)
        except Exception:
            telling = None
        if telling is None:
            books.dropped["malformed"] += 1
            return
        number, kind = telling.number, telling.kind
        if self.bulk is not None:
            self.bulk.hand_over(number)
        pid = telling.pid
        if pid != UNNUMBERED and not self.seqs_of(pid, number >> _BASE_SHIFT).add(telling.seq):
            books.dropped["duplicate"] += 1
        elif number in self._announced:
            # Of this process, and known at first hand: only the timeline has use for it, and of what a processor in a
            # formatter comes across beside a handler, nothing is lost.
            self._note(telling)
        elif number in books.live:
            self._tell(books.live[number], telling)
        elif number in self._over:
            self._tell_late(telling)
        elif kind in ("spawn", "enter"):
            self._begin(telling)
        else:
            self._wait(telling)

    def annotate(self, note: Note) -> None:
        """Count a log line inside a span, and keep it if the span's trace is kept."""
        books, policy = self.books, self.policy
        books.logs += 1
        shown = policy.hide(note.detail, cut=len(note.detail) >= policy.max_length)
        if shown != note.detail:
            note = note._replace(detail=shown)
        task: Any = books.live.get(note.number)
        if task is None and self.bulk is not None:
            task = self.bulk.trace_of(note.number)
        if task is None or books.retention.samples(task):
            books.retention.note(note)

    def knows_any(self) -> bool:
        """Whether any span is known here."""
        return bool(self.books.live or self._over or self._waiting or self._announced.high >= 0)

    def knows(self, number: int) -> bool:
        """Whether a span is known here, or waited for."""
        return number in self.books.live or number in self._over or number in self._waiting or number in self._announced

    def remember(self, number: int, over: ToldSpan | None) -> None:
        """A span came in bulk and is over; None: and nothing of it was retained."""
        self._over[number] = _gone if over is None else weakref.ref(over)
        if len(self._over) > MAX_OVER:
            self._over.popitem(last=False)

    def unfolded(self, task: Any) -> Span | ToldSpan:
        """A retained task, which may have come in bulk, as a span."""
        return task if isinstance(task, Span | ToldSpan) else self.bulk.unfold(task)

    def complete(self, *, thoroughly: bool = False) -> None:
        """Have everything in the books: somebody wants to see them. `thoroughly`: and nothing folded up."""
        if self.bulk is not None:
            self.bulk.hand_over_all()
            if thoroughly:
                self.bulk.unfold_all()

    def holes(self) -> int:
        """Records that are missing, by their numbers: those of a process begin at 1."""
        past = (_holes(past) for past in self._past.values())
        return self._holes + sum(seqs.holes(1) for seqs in self._streams.values()) + sum(past)

    def find_missing(self, *, late: bool = True) -> bool:
        """Count as missing what was so the last time too: until then it may only be `late`. Returns whether there is
        more of it. Not what comes before all that was seen of a process: nobody knows when that went.

        What comes after all stays counted, for a counter never falls. It takes a time that grows with the holes of the
        processes at hand.
        """
        reached: dict[tuple[int, int], tuple[int, int]] = {}
        missing = 0
        for stream, seqs in self._streams.items():
            low, high = self._reached.get(stream, (seqs.lowest, 0))
            reached[stream] = low, seqs.high
            missing += seqs.holes(low, high if late else seqs.high) if high or not late else 0
        self._reached = reached
        before, self.missing = self.missing, max(self.missing, missing)
        return self.missing > before

    def seqs_of(self, pid: int, base: int) -> Seen:
        """What was seen of a process. `base`: the higher half of its span ids."""
        stream = (pid, base)
        seqs = self._streams.get(stream)
        if seqs is None:
            seqs = self._streams[stream] = self._recall(pid << _BASE_SHIFT | base)
            if len(self._streams) > _MAX_STREAMS:
                (pid, base), oldest = self._streams.popitem(last=False)
                self.put_by(pid, base, oldest)
        elif stream != self._stream:
            self._streams.move_to_end(stream)
        self._stream = stream
        return seqs

    def _recall(self, process: int) -> Seen:
        past = self._past.pop(process, None)
        if past is None:
            return Seen(1)
        self._past_weight -= _weight(past)
        return past if isinstance(past, Seen) else Seen.of_run(past >> _NUMBER_BITS, past & _MAX_NUMBER)

    def put_by(self, pid: int, base: int, seqs: Seen) -> None:
        """Remember what was seen of a process that is not at hand; the oldest of those may go for it."""
        process, run = pid << _BASE_SHIFT | base, seqs.only_run()
        past = seqs if run is None else run[0] << _NUMBER_BITS | run[1]
        if process in self._past:
            self._past_weight -= _weight(self._past[process])
        self._past[process] = past
        self._past_weight += _weight(past)
        while self._past_weight > _MAX_PAST:
            _, oldest = self._past.popitem(last=False)
            self._past_weight -= _weight(oldest)
            self._holes += _holes(oldest)

    def streams(self) -> Iterator[tuple[int, int, Seen]]:
        """Pid, base and what was seen of all processes, the ones of long ago first. Those are copies."""
        for process, past in self._past.items():
            seqs = past if isinstance(past, Seen) else Seen.of_run(past >> _NUMBER_BITS, past & _MAX_NUMBER)
            yield process >> _BASE_SHIFT, process & _MAX_BASE, seqs
        for (pid, base), seqs in self._streams.items():
            yield pid, base, seqs

    def _begin(self, telling: Telling) -> None:
        books, number = self.books, telling.number
        span = ToldSpan(number, telling.name)
        total = books.total_of(span.name)
        total.spawned += 1
        # A told span's polls are counted one by one.
        total.driven += 1
        books.live[number] = span
        books.folded[number] = Folded()
        self._tell(span, telling)
        waited = self._waiting.pop(number, ())
        self._waiting_count -= len(waited)
        for later in sorted(waited, key=lambda waiting: waiting.seq):
            if span.outcome is None:
                self._tell(span, later)
            else:
                self._tell_late(later)

    def _tell(self, span: Span | ToldSpan, telling: Telling) -> None:
        assert isinstance(span, ToldSpan)
        books = self.books
        before = span.state
        if not span.apply(telling):
            books.dropped["duplicate"] += 1
            return
        self._note(telling)
        if before is not None:
            books.told_states[before] -= 1
        if span.outcome is not None:
            self._end(span, telling.pid)
            return
        assert span.state is not None
        books.told_states[span.state] += 1
        books.total_of(span.name, again=True).fold_told(span, books.folded[span.number])

    def _end(self, span: ToldSpan, pid: int) -> None:
        books, number = self.books, span.number
        assert span.outcome is not None
        del books.live[number]
        duration = span.exited_at - span.entered_at
        total = books.total_of(span.name, again=True)
        cell = total.outcomes[span.outcome]
        cell.counts[bisect_left(books.bounds_ns, duration)] += 1
        cell.sum += duration
        total.fold_finished(span, books.folded.pop(number), duration, stepped=span.stepped)
        if span.outcome != "completed" or books.retention.wants(span):
            books.retention.keep(span)
        for reader in books.readers:
            reader.add(span)
        if span.outcome == "abandoned" or books.is_suspicious(span):
            judge_told(books, span, pid)
        self._over[number] = weakref.ref(span)
        if len(self._over) > MAX_OVER:
            self._over.popitem(last=False)

    def _tell_late(self, telling: Telling) -> None:
        # What is kept beyond the limits is so until the end of what is read together, which is nobody's business.
        self.books.retention.trim()
        span = self._over[telling.number]()
        if span is None:
            if telling.kind in ("spawn", "enter", "exit"):
                self.books.dropped["duplicate"] += 1
            return
        before = {lint for lint, _ in symptoms(span, self.books.config)}
        if span.apply(telling):
            self._note(telling)
            judge_told(self.books, span, telling.pid, before)
        else:
            self.books.dropped["duplicate"] += 1

    def _wait(self, telling: Telling) -> None:
        """Keep a record whose span has not been heard of: its beginning may come from another file."""
        self._waiting.setdefault(telling.number, []).append(telling)
        self._waiting_count += 1
        while self._waiting_count > self.max_waiting:
            _, oldest = self._waiting.popitem(last=False)
            self._waiting_count -= len(oldest)
            self.books.dropped["gap"] += len(oldest)

    def _note(self, telling: Telling) -> None:
        kind, config = telling.kind, self.books.config
        if kind not in STEP_KINDS or (kind == "wake" and not config.track_wakes):
            return
        if kind in ("suspend", "resume") and not config.track_polls:
            return
        span = self.books.live.get(telling.number)
        if kind in ("wait", "acquire", "release"):
            waits = self.books.waits
            if not (waits.at_first_hand and telling.number in self._announced):
                if self.bulk is not None:
                    for owner in (telling.said, *telling.said.get("holders", ())):
                        self.bulk.hand_over(owner.get("root", 0))
                waits.tell(telling, "" if span is None else span.name)
                if kind == "wait":
                    self.books.quiet_looks = 0
        if span is None or self.books.retention.samples(span):
            self.books.retention.note(Note(telling.wall, telling.number, kind, _detail(telling)))

    @property
    def gaps(self) -> int:
        """Records without a span: those given up, and those that wait; where one is placed after all, the number stays
        what it was, for a counter never falls. And those known to be missing.
        """
        self._gaps = max(self._gaps, self.books.dropped["gap"] + self._waiting_count)
        return self._gaps + self.missing

    def carry_over(self, before: Books, books: Books) -> None:
        """Go on in new books, where the live spans count as begun, without what was told of them by now."""
        self.books = books
        for number, span in before.live.items():
            if isinstance(span, ToldSpan) and span.state is not None:
                books.live[number] = span
                books.told_states[span.state] += 1
                books.folded[number] = before.folded[number]
                total = books.total_of(span.name)
                total.spawned += 1
                total.driven += 1
        self._waiting.clear()
        self._waiting_count = self._gaps = self.missing = 0

    def __sizeof__(self) -> int:
        """Bytes of what is remembered of records, roughly."""
        return (
            sum(seqs.__sizeof__() for seqs in self._streams.values())
            + _BYTES_OF_ONE * self._past_weight
            + 600 * self._waiting_count
            + 300 * len(self._over)
        )


def _detail(telling: Telling) -> str:
    """What a timeline says of a step: what it waited for; with the resource's id, and the spans that held it."""
    said = telling.said
    kind, name, id = said.get("resource", ("", None, 0))
    text = said.get("on") or " ".join(part for part in (kind, name) if part)
    if id:
        text += f" #{id:016x}"
        held = ",".join(f"{holder['id']:016x}" for holder in said.get("holders", ()) if holder.get("id"))
        if held and telling.kind == "wait":
            text += f" held by {held}"
    return str(text)
