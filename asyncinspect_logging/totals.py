"""What is counted under one span name, in O(1) for each span, and its frozen view."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .catalogue import POLL_COUNT_BOUNDS, STEP_BOUNDS
from .snapshot import Histogram, NameView
from .states import OUTCOMES, TaskState
from .steps import STEP_BOUNDS_NS

if TYPE_CHECKING:
    from .steps import Tally

__all__ = ["Cell", "Folded", "NameTotals", "nanoseconds"]

_NS: Final = 1e9


def nanoseconds(bounds: Sequence[float]) -> list[int]:
    return [round(bound * _NS) for bound in bounds]


_POLL_BOUNDS: Final = tuple(float(bound) for bound in POLL_COUNT_BOUNDS)


class Cell:
    """A histogram being filled: observations per bucket, and their sum in ns (or polls)."""

    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.sum = 0


class Folded:
    """What of a live span's tally has been added to the totals already."""

    __slots__ = ("busy", "done", "idle", "polls", "scheduled", "self_wakes", "slow_polls", "slow_waits", "wakes")

    def __init__(self) -> None:
        self.polls = self.done = self.wakes = self.self_wakes = self.busy = self.idle = self.scheduled = 0
        self.slow_polls: dict[int, int] = {}
        self.slow_waits: dict[int, int] = {}


class NameTotals:
    """Counts only ever go up, whatever order they are read in, so that no scrape sees a counter fall."""

    __slots__ = (
        "busy",
        "done",
        "driven",
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

    def __init__(self, name: str, buckets: int) -> None:
        self.name = name
        self.spawned = 0
        # Spans whose steps are seen; the others have one poll each, which is therefore not counted one by one.
        self.driven = 0
        cells = {state: Cell(buckets) for state in OUTCOMES.values()}
        self.outcomes = {outcome: cells[state] for outcome, state in OUTCOMES.items()}
        self.polls = self.done = self.wakes = self.self_wakes = self.busy = self.idle = self.scheduled = 0
        # Finished driven spans, by polls; and steps above the first bucket, by bucket.
        self.observed = 0
        self.poll_counts = Cell(len(_POLL_BOUNDS))
        self.slow_polls = [0] * (len(STEP_BOUNDS_NS) + 1)
        self.slow_waits = [0] * (len(STEP_BOUNDS_NS) + 1)

    def fold(self, tally: Tally, folded: Folded, idle: int, *, done: int) -> None:
        """Add what a span's tally has beyond what was `folded` before, and note it there. `done`: finished steps."""
        for key in ("polls", "wakes", "self_wakes", "busy", "scheduled"):
            value = getattr(tally, key)
            before = getattr(folded, key)
            if value > before:
                setattr(self, key, getattr(self, key) + value - before)
                setattr(folded, key, value)
        if idle > folded.idle:
            self.idle += idle - folded.idle
            folded.idle = idle
        if done > folded.done:
            self.done += done - folded.done
            folded.done = done
        if tally.slow_polls:
            _fold_buckets(tally.slow_polls, folded.slow_polls, self.slow_polls)
        if tally.slow_waits:
            _fold_buckets(tally.slow_waits, folded.slow_waits, self.slow_waits)

    def finish_driven(self, polls: int) -> None:
        self.observed += 1
        self.poll_counts.counts[bisect_left(_POLL_BOUNDS, polls)] += 1
        self.poll_counts.sum += polls

    def rebucket(self, positions: list[int], buckets: int) -> None:
        """Go over to finer duration buckets: what is in bucket i goes to bucket `positions[i]`."""
        for cell in {id(cell): cell for cell in self.outcomes.values()}.values():
            counts = [0] * (buckets + 1)
            for position, count in zip(positions, cell.counts, strict=True):
                counts[position] += count
            cell.counts = counts

    def view(self, bounds: tuple[float, ...]) -> NameView:
        by_state = {OUTCOMES[outcome]: cell for outcome, cell in self.outcomes.items()}
        finished = {state: sum(cell.counts) for state, cell in by_state.items()}
        total = sum(finished.values())
        alone = total - self.observed
        poll_counts = list(self.poll_counts.counts)
        poll_counts[0] += alone
        undriven = self.spawned - self.driven
        return NameView(
            self.name,
            self.spawned,
            finished[TaskState.COMPLETED],
            finished[TaskState.FAILED],
            finished[TaskState.CANCELLED],
            undriven + self.polls,
            self.wakes,
            self.self_wakes,
            self.busy / _NS,
            self.idle / _NS,
            self.scheduled / _NS,
            {
                state.value: Histogram(bounds, tuple(cell.counts), cell.sum / _NS)
                for state, cell in by_state.items()
                if finished[state]
            },
            Histogram(_POLL_BOUNDS, tuple(poll_counts), self.poll_counts.sum + alone),
            _steps(self.slow_polls, self.done, self.busy),
            _steps(self.slow_waits, self.wakes, self.scheduled),
        )


def _fold_buckets(slow: dict[int, int], folded: dict[int, int], into: list[int]) -> None:
    for bucket, count in list(slow.items()):
        into[bucket] += count - folded.get(bucket, 0)
        folded[bucket] = count


def _steps(slow: list[int], total: int, summed: int) -> Histogram:
    fast = max(0, total - sum(slow))
    return Histogram(STEP_BOUNDS, (fast, *slow[1:]), summed / _NS)
