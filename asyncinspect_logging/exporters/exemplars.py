"""Exemplars: beside a bucket's count, the trace of the last task that fell into it, so that from a slow bucket one gets
to a slow trace (OpenMetrics 1.0, section "Exemplars").

They are found when a page is made, among the finished tasks that the inspector keeps, and cost the application nothing.
What a page once had is remembered: the task of a rare bucket is an example of it for longer than the inspector keeps
it. Names beyond `Config.max_names`, which are counted as one, have none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from .families import DURATIONS, FAMILIES, Labels

__all__ = ["Example", "Exemplars", "Found"]

#: Series whose exemplars are remembered; those go first of which nothing was seen for longest.
_MOST: Final = 5000
_PREFIX: Final = "async_inspect_"


class Example(NamedTuple):
    """A task as an example of a bucket: of which value, and when that was (Unix time in s)."""

    trace_id: str
    span_id: str
    value: float
    at: float

    def text(self) -> str:
        return f' # {{span_id="{self.span_id}",trace_id="{self.trace_id}"}} {self.value!r} {self.at!r}'


#: By family and label values, the examples of its buckets, by their index.
Found = Mapping[tuple[str, Labels], Mapping[int, Example]]


class Exemplars:
    """`endings` gives the newest finished tasks of each source, newest first; `duration_bounds` are in seconds."""

    def __init__(self, endings: Iterable[Callable[[], Iterable[Any]]], duration_bounds: tuple[float, ...]) -> None:
        self._endings = list(endings)
        bounds = {family.name: family.bounds for family in FAMILIES} | {DURATIONS.name: duration_bounds}
        self._durations = bounds[DURATIONS.name]
        self._polls = bounds[f"{_PREFIX}poll_count"]
        self._steps = bounds[f"{_PREFIX}poll_duration_seconds"]
        self._known: dict[tuple[str, Labels], dict[int, Example]] = {}

    def look(self) -> Found:
        """The examples as of now: to be asked for before the counts that they go with."""
        newest: dict[tuple[str, Labels], dict[int, Example]] = {}
        for endings in self._endings:
            for task in endings():
                duration = task.duration / 1e9
                ids = (task.trace_id, task.span_id)
                name = task.name
                _put(newest, DURATIONS.name, (name, task.state), self._durations, duration, ids, task.at)
                _put(newest, f"{_PREFIX}poll_count", (name,), self._polls, float(task.polls), ids, task.at)
                if task.max_poll:
                    longest = task.max_poll / 1e9
                    _put(newest, f"{_PREFIX}poll_duration_seconds", (name,), self._steps, longest, ids, task.at)
        for series, buckets in newest.items():
            # Last again, so that the first are those that were longest not seen.
            known = self._known.pop(series, {})
            self._known[series] = {**known, **buckets}
        while len(self._known) > _MOST:
            del self._known[next(iter(self._known))]
        return dict(self._known)


def _put(
    into: dict[tuple[str, Labels], dict[int, Example]],
    family: str,
    labels: Labels,
    bounds: tuple[float, ...],
    value: float,
    ids: tuple[str, str],
    at: float,
) -> None:
    buckets = into.setdefault((family, labels), {})
    index = bisect_left(bounds, value)
    if index not in buckets:
        buckets[index] = Example(*ids, value, at)
