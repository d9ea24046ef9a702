"""The books of a driven coroutine: what its steps add up to, for each span open in it."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from .catalogue import STEP_BOUNDS

__all__ = ["FIRST_BOUND", "STEP_BOUNDS_NS", "Steps", "Tally", "count_slow", "stepping"]

STEP_BOUNDS_NS: Final = [round(bound * 1e9) for bound in STEP_BOUNDS]
#: Steps and waits up to this, which are most, fall into the one bucket that is not counted: it is what remains.
FIRST_BOUND: Final = STEP_BOUNDS_NS[0]

class Tally:
    """What the steps of a coroutine added up to while a span was open. Times in ns."""

    __slots__ = (
        "busy",
        "folded",
        "max_poll",
        "part_from",
        "polls",
        "scheduled",
        "self_wakes",
        "slow_polls",
        "slow_waits",
        "wakes",
    )

    def __init__(self, part_from: int) -> None:
        self.polls = 1
        self.wakes = 0
        self.self_wakes = 0
        self.busy = 0
        self.scheduled = 0
        self.max_poll = 0
        #: When the part of the current step that belongs to the span began.
        self.part_from = part_from
        #: Whether the audience knows that there is something to be read here.
        self.folded = True
        # Histograms over the bounds of `catalogue.STEP_BOUNDS`, less their first bucket, which is what is left.
        self.slow_polls: dict[int, int] | None = None
        self.slow_waits: dict[int, int] | None = None


class Steps:
    """A coroutine that is being driven, as its spans see it."""

    __slots__ = ("begun", "key", "name", "own_task", "started", "thrown_first", "traced", "woken_at")

    def __init__(self, name: str) -> None:
        #: Key of its open spans; see `opened`.
        self.key = id(self)
        #: Qualified name of the coroutine.
        self.name = name
        #: Start of the step going on, in ns, or 0 between steps.
        self.started = 0
        #: When the future that it waits for completed, in ns, or 0.
        self.woken_at = 0
        #: Whether the first step was taken; and whether the driver is what a task was made of.
        self.begun = False
        self.own_task = False
        #: An exception to be thrown in as the first step.
        self.thrown_first: BaseException | None = None
        #: Whether the records of single steps are wanted for some span in it.
        self.traced = False


#: The driver that stepped last in a thread, by thread id. It does so just now if its `started` is not 0.
stepping: Final[dict[int, Steps]] = {}


def count_slow(slow: dict[int, int] | None, duration: int) -> dict[int, int]:
    """Count a duration (ns) above the first bound in its bucket."""
    if slow is None:
        slow = {}
    bucket = bisect_left(STEP_BOUNDS_NS, duration)
    slow[bucket] = slow.get(bucket, 0) + 1
    return slow
