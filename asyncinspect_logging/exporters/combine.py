"""Sums of snapshots, and histograms read at other bounds than they were counted at.

Both are exact where the bounds allow it: a cumulative count at a bound that a histogram has is known, and so is its
sum over several histograms that all have it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any

from ..snapshot import Histogram, NameView, Snapshot

__all__ = ["combine", "cumulative", "printable"]


@lru_cache(maxsize=128)
def _picker(have: tuple[float, ...], want: tuple[float, ...]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """Picks, from (0, running totals at `have`, grand total), the totals at `want` and the grand total."""
    return itemgetter(*(bisect_right(have, bound) for bound in want), -1)


def cumulative(histogram: Histogram, bounds: tuple[float, ...]) -> tuple[int, ...]:
    """Observations <= each of `bounds`, then all of them.

    At a bound the histogram does not have, it is the count at the next lower bound it has: the observations that are
    known to be that small.
    """
    if histogram.bounds == bounds:
        return tuple(accumulate(histogram.counts))
    return _picker(histogram.bounds, bounds)(tuple(accumulate(histogram.counts, initial=0)))


def _rebucket(histogram: Histogram, bounds: tuple[float, ...]) -> Histogram:
    running = (0, *cumulative(histogram, bounds))
    return Histogram(bounds, tuple(b - a for a, b in pairwise(running)), histogram.sum)


def _add_histograms(a: Histogram, b: Histogram) -> Histogram:
    if a.bounds != b.bounds:
        common = tuple(sorted(set(a.bounds) & set(b.bounds)))
        a, b = _rebucket(a, common), _rebucket(b, common)
    return Histogram(a.bounds, tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)), a.sum + b.sum)


def _add(a: Any, b: Any) -> Any:
    """Two values of the same field added up; of two names, the first."""
    if isinstance(a, Histogram):
        return _add_histograms(a, b)
    if isinstance(a, NameView):
        return NameView(*map(_add, a, b))
    if isinstance(a, Mapping):
        return _add_mappings(a, b)
    return a if isinstance(a, str) else a + b


def _add_mappings(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> dict[Any, Any]:
    total = dict(a)
    for key, value in b.items():
        total[key] = _add(total[key], value) if key in total else value
    return total


def combine(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot that holds the sum of all: the same name, state or label adds up, tasks and findings are listed one
    inspector after the other, and `taken_at` is the latest. Histograms keep the bounds that all of them share.
    """

    def both(a: Snapshot, b: Snapshot) -> Snapshot:
        return Snapshot(*map(_add, a, b))._replace(taken_at=max(a.taken_at, b.taken_at))

    return reduce(both, snapshots)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(snapshot: Snapshot) -> Snapshot:
    """The snapshot with names that UTF-8 can carry: a lone surrogate becomes its backslash escape.

    Names that become equal by it add up, because a page may hold each label set only once.
    """
    try:
        "".join((*snapshot.names, *(text for pair in snapshot.lints for text in pair))).encode()
    except UnicodeEncodeError:
        names: dict[str, NameView] = {}
        for name, view in snapshot.names.items():
            names = _add_mappings(names, {_encodable(name): view._replace(name=_encodable(name))})
        lints: dict[tuple[str, str], int] = {}
        for (lint, name), count in snapshot.lints.items():
            lints = _add_mappings(lints, {(_encodable(lint), _encodable(name)): count})
        return snapshot._replace(names=names, lints=lints)
    return snapshot
