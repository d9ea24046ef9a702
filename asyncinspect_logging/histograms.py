"""Histograms added up, and read at other bounds than they were counted at.

Both are exact where the bounds allow it: a cumulative count at a bound that a histogram has is known, and so is its
sum over several histograms that all have it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import itemgetter

from .snapshot import Histogram

__all__ = ["added", "cumulative"]


@lru_cache(maxsize=128)
def _picker(have: tuple[float, ...], want: tuple[float, ...]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """Picks, from (0, running totals at `have`, grand total), the totals at `want` and the grand total."""
    if not want:
        return lambda totals: (totals[-1],)
    return itemgetter(*(bisect_right(have, bound) for bound in want), -1)


def cumulative(histogram: Histogram, bounds: tuple[float, ...]) -> tuple[int, ...]:
    """Observations <= each of `bounds`, then all of them.

    At a bound the histogram does not have, it is the count at the next lower bound it has: the observations that are
    known to be that small.
    """
    if histogram.bounds == bounds:
        return tuple(accumulate(histogram.counts))
    return _picker(histogram.bounds, bounds)(tuple(accumulate(histogram.counts, initial=0)))


def added(a: Histogram, b: Histogram) -> Histogram:
    """Both in one, with the bounds that they share; where they share none, only their number and sum are left."""
    if a.bounds != b.bounds:
        common = tuple(sorted(set(a.bounds) & set(b.bounds)))
        a, b = _rebucket(a, common), _rebucket(b, common)
    return Histogram(a.bounds, tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)), a.sum + b.sum)


def _rebucket(histogram: Histogram, bounds: tuple[float, ...]) -> Histogram:
    running = (0, *cumulative(histogram, bounds))
    return Histogram(bounds, tuple(b - a for a, b in pairwise(running)), histogram.sum)
