"""The critical path: what a task's end hung on, at each moment of its life.

It is found backwards, as in Z. Zhang et al., "CRISP: Critical Path Analysis of Large-Scale Microservice Architectures"
(USENIX ATC 2022): from the end of a task, the path goes into the one that ended last of those it began or awaited, and
from the beginning of that on in the task itself, or in the one that had ended last by then. What outlives a task is not
waited for, and not on its path. So the stretches follow each other without a gap, and add up to the time of the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from .timeline import Times

__all__ = ["Member", "Stretch", "critical_path"]

#: Unix times as floats are exact to a fourth of this.
_BLUR: Final = 1e-6


class Member(NamedTuple):
    """A task that may be on the path."""

    id: str
    parent_id: str | None
    name: str
    state: str
    times: Times


class Stretch(NamedTuple):
    member: Member
    start: float
    end: float


class _Frame:
    """A task on whose path we are: back to `low`, and at `at`. `ahead`: those it began or awaited, last to end last."""

    __slots__ = ("ahead", "at", "low", "member")

    def __init__(self, member: Member, low: float, at: float, ahead: list[Member]) -> None:
        self.member = member
        self.low = low
        self.at = at
        self.ahead = ahead


def critical_path(root: Member, hung_on: Callable[[Member], Iterable[Member]]) -> list[Stretch]:
    """The stretches of the critical path of `root`, in order of time. `hung_on` gives the tasks that one began, or
    awaited. Each is on the path once at most, so that it ends whatever a log says.
    """
    met = {root.id}
    path: list[Stretch] = []
    frames = [_Frame(root, root.times.began, root.times.ended, _by_end(hung_on(root)))]
    while frames:
        frame = frames[-1]
        found = None
        while frame.ahead and frame.at > frame.low and found is None:
            last = frame.ahead.pop()
            if last.id not in met and frame.low < last.times.ended <= frame.at + _BLUR:
                found = last
        if found is None:
            _append(path, frame.member, frame.low, frame.at)
            frames.pop()
            continue
        met.add(found.id)
        end = min(found.times.ended, frame.at)
        _append(path, frame.member, end, frame.at)
        low = min(max(found.times.began, frame.low), end)
        frame.at = low
        frames.append(_Frame(found, low, end, _by_end(hung_on(found))))
    return path[::-1]


def _by_end(members: Iterable[Member]) -> list[Member]:
    # Of those that end together, the longest is to come first.
    return sorted(members, key=lambda each: (each.times.ended, -each.times.began, each.id))


def _append(path: list[Stretch], member: Member, start: float, end: float) -> None:
    if end > start:
        path.append(Stretch(member, start, end))
