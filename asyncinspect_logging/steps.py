"""The books of a driven coroutine: what its steps add up to, for each span open in it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from .catalogue import STEP_BOUNDS

if TYPE_CHECKING:
    from .driven import DrivenSpan

__all__ = ["FIRST_BOUND", "STEP_BOUNDS_NS", "Tally", "end_part", "pack", "slow", "stepping", "unpack"]

STEP_BOUNDS_NS: Final = [round(bound * 1e9) for bound in STEP_BOUNDS]
#: Steps and waits up to this, which are most, fall into the one bucket that is not counted: it is what remains.
FIRST_BOUND: Final = STEP_BOUNDS_NS[0]
_BITS: Final = 48
_MASK: Final = (1 << _BITS) - 1


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
        self.wakes = self.self_wakes = self.busy = self.scheduled = self.max_poll = 0
        #: When the part of the step going on that belongs to the span began; between steps, when the last one ended.
        self.part_from = part_from
        #: Whether the audience has been told that there is something to be read here.
        self.folded = True
        # Counts of steps and waits above `FIRST_BOUND`, packed; see `slow`.
        self.slow_polls = self.slow_waits = 0


def slow(duration: int) -> int:
    """One count in the bucket of a duration (ns) above the first bound, to be added to a packed number.

    The counts of all buckets are packed into one int, `_BITS` for each: an addition counts, a difference is the
    difference of all, and an int is nothing to the garbage collector.
    """
    return 1 << bisect_left(STEP_BOUNDS_NS, duration) * _BITS


def pack(counts: Iterable[tuple[int, int]]) -> int:
    """(bucket, count) pairs as a packed number."""
    return sum(count << bucket * _BITS for bucket, count in counts)


def unpack(packed: int) -> list[int]:
    """The count of each bucket, the first (which is not counted) at 0."""
    return [packed >> bucket * _BITS & _MASK for bucket in range(len(STEP_BOUNDS_NS) + 1)]


#: The driven coroutine that was stepped last in a thread, by thread id: just now, if its `started` is not 0.
stepping: Final[dict[int, DrivenSpan]] = {}


def end_part(tally: Tally, t: int) -> None:
    """The part of the step going on in which a span is open ends at `t` (ns)."""
    part = t - tally.part_from
    tally.part_from = t
    if part > 0:
        tally.busy += part
        if part > tally.max_poll:
            tally.max_poll = part
        if part > FIRST_BOUND:
            tally.slow_polls += slow(part)
