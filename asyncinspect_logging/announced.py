"""Spans of this process, known at first hand: announced when they begin, when their tally has grown, and when they end.

The loop is the hot path's other half, paid for each span, only in batches: it is written for speed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from .books import Books
from .catalogue import LAG_BOUNDS
from .driven import DrivenSpan
from .frames import FrameTally
from .notices import NO_SPAN, Beat, Forgotten, Misuse, Waiting
from .opened import running_spans
from .sequence import Seen
from .spans import Span
from .totals import Folded, NameTotals, nanoseconds

__all__ = ["Announced"]

_LAG_BOUNDS_NS: Final = nanoseconds(LAG_BOUNDS)


class Announced:
    """Enters announced spans into the books."""

    def __init__(self, books: Books) -> None:
        self._books = books
        #: Numbers of all spans that were ever announced here.
        self.numbers = Seen()

    def take(self, announcements: Iterable[Any], over: deque[Span] | None = None) -> None:
        """Each announcement is a span that begins, whose tally has grown, or that is over; or else a notice.

        Most spans are over when this comes to their beginning. They are counted then and there, never enter the live
        ones, and do not announce their end, since nobody has set `listed`. With `over`, those that are over stay live
        and are put there, to be taken a second time: there is more to be read of them.
        """
        books, seen, retention = self._books, self.numbers, self._books.retention
        live, totals, bounds = books.live, books.totals.get, books.bounds_ns
        everything, keep = retention.everything, retention.tasks.append
        shortest, expected = bounds[0], seen.high + 1
        long_step, many_wakes, suspects = books.long_step, books.many_wakes, books.suspects
        readers = books.readers
        for span in announcements:
            number = span.number
            if number == expected:
                seen.high = number
                expected = number + 1
                folded = None
            elif number in live:
                if span.outcome is None:
                    # Or announced twice, by two handlers, which does no harm.
                    self._fold(span)
                    continue
                if over is not None:
                    over.append(span)
                    continue
                folded = books.folded.pop(number, _NOTHING)
            elif number == NO_SPAN:
                self._notice(span)
                continue
            elif seen.add(number):
                expected = seen.high + 1
                folded = None
            else:
                continue  # over, and counted before its end was announced
            # A driven span is its own tally; asked for it, it would have to answer by a Python call.
            tally = span if span.__class__ is DrivenSpan else span.tally
            if folded is None:
                total = totals(span.name) or books.total_of(span.name)
                total.spawned += 1
                if tally is not None:
                    total.driven += 1
                if span.outcome is None:
                    # Asked again: one that ends in between may have missed that, and if it has not, and announces its
                    # end, is passed over here when its turn comes.
                    span.listed = True
                if over is not None and span.outcome is not None:
                    over.append(span)
                if over is not None or span.outcome is None:
                    live[number] = span
                    if tally.__class__ is FrameTally:
                        # Counted among the driven ones already; see `_fold`.
                        books.folded[number] = Folded()
                    continue
            else:
                del live[number]
                total = totals(span.name) or books.total_of(span.name, again=True)

            duration = span.exited_at - span.entered_at
            outcome = span.outcome
            if outcome == "completed":
                cell = total.completed
                if everything or retention.wants(span):
                    keep(span)
            else:
                cell = total.outcomes[outcome]
                retention.keep(span)
                if outcome == "abandoned":
                    suspects.append(span)
            cell.sum += duration
            if duration <= shortest:
                cell.counts[0] += 1
            else:
                cell.counts[bisect_left(bounds, duration)] += 1
            if tally is not None:
                if folded is _NOTHING and tally.__class__ is FrameTally:
                    total.driven += 1
                if folded is None or folded is _NOTHING:
                    total.add_finished(tally, duration)
                else:
                    total.fold_finished(tally, folded, duration)
                # `books.is_suspicious(tally)`, without the call.
                if tally.max_poll >= long_step or tally.self_wakes >= many_wakes:
                    suspects.append(span)
            if readers:
                for reader in readers:
                    reader.add(span)

    def _notice(self, notice: Any) -> None:
        books = self._books
        if notice.__class__ is Beat:
            if notice.lag is not None:
                books.findings.lag.observe(notice.lag, _LAG_BOUNDS_NS)
            books.quiet_looks = 0
        elif notice.__class__ is Waiting:
            books.waits.note(notice)
            books.quiet_looks = 0
        elif notice.__class__ is Forgotten:
            books.suspects.append(notice)
        elif notice.__class__ is Misuse:
            books.dropped["duplicate"] += 1

    def fold_running(self) -> None:
        """Read the tallies of the spans that are being stepped now: they are announced when the step ends, and what was
        announced before this one may have been read before it began.
        """
        for span in running_spans():
            if span.number in self._books.live:
                self._fold(span)

    def _fold(self, span: Span, into: NameTotals | None = None) -> None:
        """Add what the tally of a live span has grown by to the totals of its name, or else to those given."""
        tally = span.tally
        if tally is None:
            return
        books = self._books
        total = into or books.total_of(span.name, again=True)
        folded = books.folded.get(span.number)
        if folded is None:
            folded = books.folded[span.number] = Folded()
            if tally.__class__ is FrameTally:
                # It began without one.
                total.driven += 1
        # Before reading, so that what comes after is announced again.
        tally.folded = True
        if books.is_suspicious(tally):
            books.suspects.append(span)
        total.fold_live(tally, span.steps, span.entered_at, folded)

    def carry_over(self, before: Books, books: Books) -> None:
        """Go on in new books, where the live spans count as begun, without what their tallies hold by now."""
        self._books = books
        for number, span in before.live.items():
            if isinstance(span, Span):
                books.live[number] = span
                total = books.total_of(span.name)
                total.spawned += 1
                if span.tally is not None:
                    total.driven += 1
                    books.folded[number] = Folded()
                    self._fold(span, NameTotals("", 0))


#: Of a live span nothing was folded yet.
_NOTHING = Folded()
