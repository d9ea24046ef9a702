"""Records of spans, put in their places: each counted once, however often and in whatever order they come.

What one is told of twice is known by process and seq. A record that comes before the one that begins its span waits for
that, and one that comes after its span's end is still placed as long as the span is remembered.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from .books import Books
from .fields import FieldPolicy
from .records import STEP_KINDS
from .retention import Note
from .sequence import Seen
from .spans import Span
from .telling import Telling, read
from .told import ToldSpan
from .totals import Folded

__all__ = ["Placing"]

#: Records that wait for their span's beginning; ends of told spans remembered; processes whose seqs are remembered.
_MAX_WAITING: Final = 10_000
_MAX_OVER: Final = 10_000
_MAX_STREAMS: Final = 1024
#: A process numbers its spans upwards from a random base, and so these are the same bits in all its ids, and others
#: in those of a process that has the same pid on another machine, or had it before.
_BASE_SHIFT: Final = 32


class Placing:
    """Enters records into the books. `announced`: numbers of the spans known at first hand."""

    def __init__(self, books: Books, policy: FieldPolicy, announced: Seen) -> None:
        self._books = books
        self._policy = policy
        self._announced = announced
        self._streams: OrderedDict[tuple[int, int], Seen] = OrderedDict()
        self._stream: tuple[int, int] | None = None
        self._waiting: OrderedDict[int, list[Telling]] = OrderedDict()
        self._waiting_count = 0
        self._gaps = 0
        # Told spans that are over: only as long as they are retained is there anything to be told of them.
        self._over: OrderedDict[int, weakref.ref[ToldSpan]] = OrderedDict()

    def place(self, payload: Mapping[str, Any]) -> None:
        books = self._books
        try:
            telling = read(payload, self._policy)
        except Exception:
            telling = None
        if telling is None:
            books.dropped["malformed"] += 1
            return
        number, kind = telling.number, telling.kind
        if not self._seqs_of(telling).add(telling.seq):
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

    def _seqs_of(self, telling: Telling) -> Seen:
        stream = (telling.pid, telling.number >> _BASE_SHIFT)
        seqs = self._streams.get(stream)
        if seqs is None:
            seqs = self._streams[stream] = Seen()
            if len(self._streams) > _MAX_STREAMS:
                self._streams.popitem(last=False)
        elif stream != self._stream:
            self._streams.move_to_end(stream)
        self._stream = stream
        return seqs

    def _begin(self, telling: Telling) -> None:
        books, number = self._books, telling.number
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
        books = self._books
        before = span.state
        if not span.apply(telling):
            books.dropped["duplicate"] += 1
            return
        self._note(telling)
        if before is not None:
            books.told_states[before] -= 1
        if span.outcome is not None:
            self._end(span, (f"{telling.pid}:{telling.seq}",))
            return
        assert span.state is not None
        books.told_states[span.state] += 1
        books.total_of(span.name, again=True).fold_told(span, books.folded[span.number])

    def _end(self, span: ToldSpan, evidence: tuple[str, ...]) -> None:
        books, number = self._books, span.number
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
        if span.outcome == "abandoned" or books.is_suspicious(span):
            books.suspects.append((span, evidence))
        self._over[number] = weakref.ref(span)
        if len(self._over) > _MAX_OVER:
            self._over.popitem(last=False)

    def _tell_late(self, telling: Telling) -> None:
        span = self._over[telling.number]()
        if span is None:
            if telling.kind in ("spawn", "enter", "exit"):
                self._books.dropped["duplicate"] += 1
        elif span.apply(telling):
            self._note(telling)
        else:
            self._books.dropped["duplicate"] += 1

    def _wait(self, telling: Telling) -> None:
        """Keep a record whose span has not been heard of: its beginning may come from another file."""
        self._waiting.setdefault(telling.number, []).append(telling)
        self._waiting_count += 1
        while self._waiting_count > _MAX_WAITING:
            _, oldest = self._waiting.popitem(last=False)
            self._waiting_count -= len(oldest)
            self._books.dropped["gap"] += len(oldest)

    def _note(self, telling: Telling) -> None:
        kind, config = telling.kind, self._books.config
        if kind not in STEP_KINDS or (kind == "wake" and not config.track_wakes):
            return
        if kind in ("suspend", "resume") and not config.track_polls:
            return
        span = self._books.live.get(telling.number)
        if kind in ("wait", "acquire", "release"):
            waits = self._books.waits
            if not (waits.at_first_hand and telling.number in self._announced):
                waits.tell(telling, "" if span is None else span.name)
                if kind == "wait":
                    self._books.quiet_looks = 0
        if span is None or self._books.retention.samples(span):
            resource = telling.said.get("resource", ())
            detail = telling.said.get("on") or " ".join(part for part in resource[:2] if part)
            self._books.retention.note(Note(telling.wall, telling.number, kind, detail))

    @property
    def gaps(self) -> int:
        """Records without a span: those given up, and those that wait; where one is placed after all, the number stays
        what it was, for a counter never falls.
        """
        self._gaps = max(self._gaps, self._books.dropped["gap"] + self._waiting_count)
        return self._gaps

    def carry_over(self, before: Books, books: Books) -> None:
        """Go on in new books, where the live spans count as begun, without what was told of them by now."""
        self._books = books
        for number, span in before.live.items():
            if isinstance(span, ToldSpan) and span.state is not None:
                books.live[number] = span
                books.told_states[span.state] += 1
                books.folded[number] = before.folded[number]
                total = books.total_of(span.name)
                total.spawned += 1
                total.driven += 1
        self._waiting.clear()
        self._waiting_count = self._gaps = 0

    def __sizeof__(self) -> int:
        """Bytes of what is remembered of records, roughly."""
        return (
            sum(seqs.__sizeof__() for seqs in self._streams.values())
            + 600 * self._waiting_count
            + 300 * len(self._over)
        )
