"""What is counted under one span name, in O(1) for each span, and its frozen view.

The tally of a live span is read while its coroutine may be stepped in another thread. Nothing is locked for that, so
each read takes the numbers in an order in which it can only see too little, never too much: a counter never falls, and
the reading at the span's end makes up for the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final, Protocol

from .catalogue import POLL_COUNT_BOUNDS, STEP_BOUNDS
from .snapshot import Histogram, NameView
from .states import OUTCOMES
from .steps import pack, unpack

__all__ = ["Cell", "Folded", "NameTotals", "Tallied", "nanoseconds"]

_NS: Final = 1e9
_POLL_BOUNDS: Final = tuple(float(bound) for bound in POLL_COUNT_BOUNDS)
#: A number modulo its base less one is the sum of its digits: here, of the counts packed into it (see `steps.slow`).
_SUMMING: Final = pack([(1, 1)]) - 1


def nanoseconds(bounds: Sequence[float]) -> list[int]:
    return [round(bound * _NS) for bound in bounds]


class Tallied(Protocol):
    """The tally of a span, known at first hand or told. Times in ns, slow steps and waits packed (see `steps.slow`)."""

    polls: int
    wakes: int
    self_wakes: int
    busy: int
    scheduled: int
    max_poll: int
    slow_polls: int
    slow_waits: int


class Cell:
    """A histogram being filled: observations per bucket, and their sum in ns (or polls)."""

    __slots__ = ("counts", "sum")

    def __init__(self, bounds: int) -> None:
        self.counts = [0] * (bounds + 1)
        self.sum = 0

    def observe(self, value: int, bounds: list[int]) -> None:
        """Count a value (ns) in its bucket; `bounds` in ns."""
        self.counts[bisect_left(bounds, value)] += 1
        self.sum += value

    def histogram(self, bounds: tuple[float, ...]) -> Histogram:
        """As it is now, `bounds` in seconds."""
        return Histogram(bounds, tuple(self.counts), self.sum / _NS)


class Folded:
    """What of a live span's tally has been added to the totals already."""

    __slots__ = (
        "busy",
        "fast_polls",
        "fast_waits",
        "idle",
        "polls",
        "scheduled",
        "self_wakes",
        "slow_polls",
        "slow_waits",
        "wakes",
    )

    def __init__(self) -> None:
        self.polls = self.wakes = self.self_wakes = self.busy = self.idle = self.scheduled = 0
        self.fast_polls = self.fast_waits = self.slow_polls = self.slow_waits = 0


class NameTotals:
    """Counts only ever go up, whatever order they are read in, so that no scrape sees a counter fall."""

    __slots__ = (
        "busy",
        "cancelled",
        "completed",
        "driven",
        "failed",
        "fast_polls",
        "fast_waits",
        "idle",
        "name",
        "observed",
        "outcomes",
        "poll_counts",
        "polls",
        "scheduled",
        "self_wakes",
        "slow_polls",
        "slow_waits",
        "spawned",
        "wakes",
    )

    def __init__(self, name: str, bounds: int) -> None:
        self.name = name
        self.spawned = 0
        # Spans whose steps are seen; the others have one poll each, which is therefore not counted one by one.
        self.driven = 0
        # Durations by final state, and the same cells by outcome.
        self.completed, self.failed, self.cancelled = Cell(bounds), Cell(bounds), Cell(bounds)
        self.outcomes: dict[str, Cell] = {outcome: getattr(self, state.value) for outcome, state in OUTCOMES.items()}
        self.polls = self.wakes = self.self_wakes = self.busy = self.idle = self.scheduled = 0
        # Finished driven spans, by polls.
        self.observed = 0
        self.poll_counts = Cell(len(_POLL_BOUNDS))
        # Finished steps and waits: those in the first bucket, and those above it by bucket, packed.
        self.fast_polls = self.fast_waits = self.slow_polls = self.slow_waits = 0

    def fold_live(self, tally: Any, steps: Any, began: int, folded: Folded) -> None:
        """Add what the tally of a live driven span has beyond what was `folded` before, and note it there.

        steps: the driven coroutine; `began`: when the span was entered, in ns.
        """
        # See the module's docstring: a step counts its poll and its wake first, and its time when it is over.
        polls, wakes = tally.polls, tally.wakes
        started = steps.started
        if started:
            # The span may be over, and the coroutine in a later step.
            idle = min(started, tally.part_from) - began - tally.busy
            done, waited = polls - 1, wakes - 1
        else:
            idle = tally.part_from - began - tally.busy
            if tally.polls != polls:
                idle = 0  # the next step began meanwhile
            done, waited = polls, wakes
        self._add(tally, folded, polls, wakes, idle, done, waited)

    def fold_told(self, tally: Tallied, folded: Folded) -> None:
        """Add what step records told of a live span since."""
        self._add(tally, folded, tally.polls, tally.wakes, 0, 0, 0)

    def fold_finished(self, tally: Tallied, folded: Folded, duration: int, *, stepped: bool = True) -> None:
        """Add the rest of a finished span's tally. `stepped`: whether anybody saw its steps."""
        polls, wakes = tally.polls, tally.wakes
        if stepped:
            self._add(tally, folded, polls, wakes, duration - tally.busy, polls, wakes)
        else:
            self._add(tally, folded, polls, wakes, 0, 0, 0)
        self._observe(polls)

    def _add(self, tally: Tallied, folded: Folded, polls: int, wakes: int, idle: int, done: int, waited: int) -> None:
        if polls > folded.polls:
            self.polls += polls - folded.polls
            folded.polls = polls
        if wakes > folded.wakes:
            self.wakes += wakes - folded.wakes
            folded.wakes = wakes
        busy, scheduled, self_wakes = tally.busy, tally.scheduled, tally.self_wakes
        if busy > folded.busy:
            self.busy += busy - folded.busy
            folded.busy = busy
        if scheduled > folded.scheduled:
            self.scheduled += scheduled - folded.scheduled
            folded.scheduled = scheduled
        if self_wakes > folded.self_wakes:
            self.self_wakes += self_wakes - folded.self_wakes
            folded.self_wakes = self_wakes
        if idle > folded.idle:
            self.idle += idle - folded.idle
            folded.idle = idle
        slow = tally.slow_polls
        if slow:
            self.slow_polls += slow - folded.slow_polls
            folded.slow_polls = slow
            done -= slow % _SUMMING
        slow = tally.slow_waits
        if slow:
            self.slow_waits += slow - folded.slow_waits
            folded.slow_waits = slow
            waited -= slow % _SUMMING
        if done > folded.fast_polls:
            self.fast_polls += done - folded.fast_polls
            folded.fast_polls = done
        if waited > folded.fast_waits:
            self.fast_waits += waited - folded.fast_waits
            folded.fast_waits = waited

    def add_finished(self, tally: Tallied, duration: int) -> None:
        """Add the tally of a finished driven span of which nothing was folded before: what most are, and so written
        out.
        """
        fast = polls = tally.polls
        # A clock that was set back makes it negative.
        busy = max(0, tally.busy)
        self.polls += polls
        self.busy += busy
        if duration > busy:
            self.idle += duration - busy
        slow = tally.slow_polls
        if slow:
            self.slow_polls += slow
            fast -= slow % _SUMMING
        self.fast_polls += fast
        wakes = tally.wakes
        if wakes:
            self.wakes += wakes
            self.self_wakes += tally.self_wakes
            self.scheduled += max(0, tally.scheduled)
            slow = tally.slow_waits
            if slow:
                self.slow_waits += slow
                wakes -= slow % _SUMMING
            self.fast_waits += wakes
        self._observe(polls)

    def _observe(self, polls: int) -> None:
        self.observed += 1
        counts = self.poll_counts
        counts.counts[bisect_left(_POLL_BOUNDS, polls) if polls > 1 else 0] += 1
        counts.sum += polls

    def rebucket(self, positions: list[int], bounds: int) -> None:
        """Go over to finer duration buckets: what is in bucket i goes to bucket `positions[i]`."""
        for cell in (self.completed, self.failed, self.cancelled):
            counts = [0] * (bounds + 1)
            for position, count in zip(positions, cell.counts, strict=True):
                counts[position] += count
            cell.counts = counts

    def view(self, bounds: tuple[float, ...]) -> NameView:
        completed, failed, cancelled = (
            sum(self.completed.counts),
            sum(self.failed.counts),
            sum(self.cancelled.counts),
        )
        durations = {}
        if completed:
            durations["completed"] = self.completed.histogram(bounds)
        if failed:
            durations["failed"] = self.failed.histogram(bounds)
        if cancelled:
            durations["cancelled"] = self.cancelled.histogram(bounds)
        # Those that nobody stepped: one poll each.
        alone = completed + failed + cancelled - self.observed
        counts = self.poll_counts.counts
        return NameView(
            self.name,
            self.spawned,
            completed,
            failed,
            cancelled,
            self.spawned - self.driven + self.polls,
            self.wakes,
            self.self_wakes,
            self.busy / _NS,
            self.idle / _NS,
            self.scheduled / _NS,
            durations,
            Histogram(_POLL_BOUNDS, (counts[0] + alone, *counts[1:]), self.poll_counts.sum + alone),
            _steps(self.fast_polls, self.slow_polls, self.busy),
            _steps(self.fast_waits, self.slow_waits, self.scheduled),
        )


def _steps(fast: int, slow: int, summed: int) -> Histogram:
    counts = unpack(slow) if slow else _NONE_SLOW
    return Histogram(STEP_BOUNDS, (fast, *counts[1:]), summed / _NS)


_NONE_SLOW: Final = unpack(0)
