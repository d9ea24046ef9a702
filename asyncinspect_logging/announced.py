"""Spans of this process, known at first hand: announced when they begin, when their tally has grown, and when they end.

The two loops are the hot path's other half, paid for each span, only in batches: they are written for speed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from .books import Books
from .driven import DrivenSpan
from .sequence import Seen
from .spans import Span
from .totals import Folded, NameTotals

__all__ = ["Announced"]


class Announced:
    """Enters announced spans into the books."""

    def __init__(self, books: Books) -> None:
        self._books = books
        #: Numbers of all spans that were ever announced here.
        self.numbers = Seen()

    def begin(self, announcements: Iterable[Any]) -> None:
        """Each announcement is a span that begins, or whose tally has grown since; or else a misuse of one."""
        books, seen = self._books, self.numbers
        live, totals, dropped = books.live, books.totals.get, books.dropped
        expected = seen.high + 1
        for span in announcements:
            if not isinstance(span, Span):
                dropped["duplicate"] += 1
                continue
            number = span.number
            if number == expected:
                seen.high = number
                expected = number + 1
            elif number in live:
                # Or announced twice, by two handlers, which does no harm.
                self._fold(span)
                continue
            elif seen.add(number):
                expected = seen.high + 1
            else:
                dropped["duplicate"] += 1
                continue
            total = totals(span.name) or books.total_of(span.name)
            total.spawned += 1
            if span.tally is not None:
                total.driven += 1
            live[number] = span

    def end(self, spans: Iterable[Span]) -> None:
        books, retention = self._books, self._books.retention
        left, totals, bounds = books.live.pop, books.totals.get, books.bounds_ns
        first = bounds[0]
        everything, keep = retention.everything, retention.tasks.append
        for span in spans:
            number, outcome = span.number, span.outcome
            # A driven span is its own tally; asked for it, it would have to answer by a Python call.
            tally = span if span.__class__ is DrivenSpan else span.tally
            duration = span.exited_at - span.entered_at
            if left(number, None) is None:
                books.dropped["duplicate"] += 1
                continue
            total = totals(span.name) or books.total_of(span.name, again=True)
            if outcome == "completed":
                cell = total.completed
                if everything or retention.wants(span):
                    keep(span)
            else:
                cell = total.outcomes[outcome]  # type: ignore[index]
                retention.keep(span)
            cell.sum += duration
            if duration <= first:
                cell.counts[0] += 1
            else:
                cell.counts[bisect_left(bounds, duration)] += 1
            if tally is not None:
                folded = books.folded.pop(number, None)
                if folded is None:
                    total.add_finished(tally, duration)
                else:
                    total.fold_finished(tally, folded, duration)

    def _fold(self, span: Span) -> None:
        if span.tally is not None:
            folded = self._books.folded.get(span.number)
            if folded is None:
                folded = self._books.folded[span.number] = Folded()
            self._fold_into(self._books.total_of(span.name, again=True), span, folded)

    def _fold_into(self, total: NameTotals, span: Span, folded: Folded) -> None:
        tally = span.tally
        assert tally is not None
        # Before reading, so that what comes after is announced again.
        tally.folded = True
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
                    folded = books.folded[number] = Folded()
                    self._fold_into(NameTotals("", 0), span, folded)
