"""Where the time goes: by span name, by chain of names, and by what was waited for.

A pure function over frozen tasks. Of a stream of millions no more is kept than what is counted: per name a
distribution, of chains of names a tree, and of resources a sum, each up to a limit beyond which they count together.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ..catalogue import OTHER
from ..histograms import added
from ..nesting import Stacks
from ..snapshot import Histogram, NameView, TaskView
from .drawing import ladder
from .quantiles import Distribution, MoreThan, histogram_quantile
from .timeline import Met, Source, Times, rest_of, tasks_of, times_of, uses_of

__all__ = ["Contention", "Durations", "HotPath", "NameProfile", "Profile", "profile"]

#: Names, and resources, that are told apart; those that come later count together. As many as an inspector has.
_MAX_NAMES: Final = 1000
_MAX_RESOURCES: Final = 1000
#: Names told apart among those who waited for, or held, one resource.
_MAX_USERS: Final = 50
#: Chains that a profile has, and names in one of them; what is further in counts as one.
_KEPT_PATHS: Final = 1000
_MAX_DEPTH: Final = 64
_QUANTILES: Final = ("p50", "p95", "p99")
#: A chain that begins in a span that was over long before, or that nobody told of.
_UNKNOWN: Final = "…"


class Durations(NamedTuple):
    """Of so many `finished` tasks, in seconds; None where there is none.

    `basis` says how well the quantiles are known: "samples" (exact), "sketch" (to 1 %, of long streams) or "buckets"
    (estimated within the buckets of a histogram, where not all tasks are at hand). In that case `max` is the longest
    of the tasks at hand, a quantile in the last bucket is a `quantiles.MoreThan` the last bound, and one of histograms
    that have no bound in common is None.
    """

    finished: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None
    basis: str


class NameProfile(NamedTuple):
    """All spans of one name. Times in seconds, added up over its tasks.

    `outcomes` counts the finished ones. `total` is the sum of their durations. `busy`, `idle` and `scheduled` are of
    those whose steps were seen, live ones too. `self_time` is the part of `total` in which no span begun in the task
    was open, as far as tasks are at hand. `waited` is the time spent waiting for locks, queues and the like.
    """

    name: str
    spawned: int
    live: int
    outcomes: Mapping[str, int]
    durations: Durations
    total: float
    self_time: float
    busy: float
    idle: float
    scheduled: float
    waited: float
    histogram: Histogram

    @property
    def efficiency(self) -> float | None:
        """busy / (busy + idle): the part of its time in which it held the loop; None where nobody saw the steps."""
        seen = self.busy + self.idle
        return self.busy / seen if seen > 0 else None


class Contention(NamedTuple):
    """Who waited for a resource. Times in seconds.

    `waits` is how often, `given_up` how many of these ended without it, `waiting` how many go on. `waiters` and
    `holders` have how often and how long by span name; holders where records of acquire and release were there.
    """

    resource: str
    waits: int
    given_up: int
    waiting: int
    total: float
    max: float
    waiters: Mapping[str, tuple[int, float]]
    holders: Mapping[str, tuple[int, float]]


class HotPath(NamedTuple):
    """A chain of names, from a root down to a span, each begun in the one before. Live tasks are in it with their time
    up to now. `total` is the sum of the durations, `self_time` the part in which nothing begun in them was open.
    """

    names: tuple[str, ...]
    tasks: int
    total: float
    self_time: float


class Profile(NamedTuple):
    """`names` are in order of their total time, `paths` and `contention` of self time and of time waited.

    `tasks` counts the tasks that were at hand; `notes` says what was left out.
    """

    tasks: int
    names: tuple[NameProfile, ...]
    paths: tuple[HotPath, ...]
    contention: tuple[Contention, ...]
    notes: tuple[str, ...]

    def busiest(self, most: int = 10) -> list[NameProfile]:
        """Those that held the loop longest, all tasks together."""
        return _ranked((each for each in self.names if each.busy > 0), lambda each: -each.busy, most)

    def slowest(self, most: int = 10) -> list[NameProfile]:
        """Those with the longest p99, the longest maximum deciding between equals."""
        timed = (each for each in self.names if each.durations.p99 is not None)
        return _ranked(timed, lambda each: (-each.durations.p99, -(each.durations.max or 0.0)), most)

    def least_efficient(self, most: int = 10) -> list[NameProfile]:
        """Those with the smallest `efficiency`. To wait is what an asyncio program is for: it says where the time could
        be won by waiting less, and not that something is wrong.
        """
        timed = (each for each in self.names if each.efficiency is not None)
        return _ranked(timed, lambda each: (each.efficiency, -each.idle), most)

    def hot_paths(self, most: int = 10, *, by: str = "self") -> list[HotPath]:
        """The chains with the most self time, or `by="total"` time."""
        if by not in ("self", "total"):
            raise ValueError(f"hot paths are ranked by 'self' or 'total', and not by {by!r}")
        paths = self.paths if by == "self" else sorted(self.paths, key=lambda each: (-each.total, each.names))
        return list(paths[:most])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, times in seconds, NaN nowhere. `more_than` in `durations` lists the quantiles of which
        no more is known than that they are above the value that is given.
        """
        return {
            "tasks": self.tasks,
            "names": [
                {
                    "name": each.name,
                    "spawned": each.spawned,
                    "live": each.live,
                    "outcomes": dict(each.outcomes),
                    "durations": each.durations._asdict()
                    | {"more_than": [q for q in _QUANTILES if isinstance(getattr(each.durations, q), MoreThan)]},
                    "total": each.total,
                    "self": each.self_time,
                    "busy": each.busy,
                    "idle": each.idle,
                    "scheduled": each.scheduled,
                    "waited": each.waited,
                    "efficiency": each.efficiency,
                    "histogram": {"bounds": list(each.histogram.bounds), "counts": list(each.histogram.counts)},
                }
                for each in self.names
            ],
            "busiest": [each.name for each in self.busiest()],
            "slowest": [each.name for each in self.slowest()],
            "least_efficient": [each.name for each in self.least_efficient()],
            "hot_paths": [
                {"names": list(each.names), "tasks": each.tasks, "total": each.total, "self": each.self_time}
                for each in self.paths
            ],
            "contention": [
                each._asdict()
                | {
                    key: {name: {"count": count, "seconds": seconds} for name, (count, seconds) in users.items()}
                    for key, users in (("waiters", each.waiters), ("holders", each.holders))
                }
                for each in self.contention
            ],
            "notes": list(self.notes),
        }

    def render(self, width: int = 80, *, ascii: bool = False, top: int = 10) -> str:
        """The profile as text for a terminal of `width` columns; `ascii` for one without Unicode, `top` entries of
        each ranking.
        """
        from .profile_text import lines_of

        return "\n".join(lines_of(self, max(width, 40), ascii, top)) + "\n"


def _ranked(names: Iterator[NameProfile], key: Any, most: int) -> list[NameProfile]:
    return heapq.nsmallest(most, names, key=lambda each: (key(each), each.name))


def profile(source: Source) -> Profile:
    """What `source`, a Snapshot or a stream of tasks, says of where time goes.

    Counts, busy and idle times are those of the snapshot's names, which are exact; the rest is of the tasks at hand: of
    a snapshot, the live ones and those it kept, of a stream, all. Raises TypeError for another source.
    """
    making = _Making()
    for task in tasks_of(source):
        making.take(task)
    return making.done(rest_of(source).names)


class _OfName:
    """What is counted of the tasks of one name."""

    __slots__ = ("busy", "durations", "idle", "live", "outcomes", "scheduled", "self_ns", "waited")

    def __init__(self) -> None:
        self.durations = Distribution()
        self.outcomes: dict[str, int] = {}
        self.live = 0
        self.self_ns = 0
        self.busy = self.idle = self.scheduled = self.waited = 0.0

    def merge(self, other: _OfName) -> None:
        self.durations.merge(other.durations)
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.live += other.live
        self.self_ns += other.self_ns
        self.busy += other.busy
        self.idle += other.idle
        self.scheduled += other.scheduled
        self.waited += other.waited


class _OfResource:
    __slots__ = ("given_up", "holders", "max", "total", "waiters", "waiting", "waits")

    def __init__(self) -> None:
        self.waits = self.given_up = self.waiting = 0
        self.total = self.max = 0.0
        self.waiters: dict[str, tuple[int, float]] = {}
        self.holders: dict[str, tuple[int, float]] = {}


def _add(users: dict[str, tuple[int, float]], name: str, seconds: float) -> None:
    if name not in users and len(users) >= _MAX_USERS:
        name = OTHER
    count, before = users.get(name, (0, 0.0))
    users[name] = count + 1, before + seconds


class _Making:
    """A profile in the making."""

    def __init__(self) -> None:
        self.tasks = 0
        self.names: dict[str, _OfName] = {}
        self.resources: dict[str, _OfResource] = {}
        self.stacks = Stacks(_MAX_DEPTH, self._alone)
        self.met = Met()

    def take(self, task: TaskView) -> None:
        self.tasks += 1
        times = times_of(task)
        name = task.name if task.name in self.names or len(self.names) < _MAX_NAMES else OTHER
        mine = self.names.get(name)
        if mine is None:
            mine = self.names[name] = _OfName()
        lasted = times.ended - times.began if task.duration is None else task.duration
        self.stacks.add(task, name)
        if task.duration is None:
            mine.live += 1
        else:
            mine.durations.add(lasted)
            outcome = task.outcome or task.state.value
            mine.outcomes[outcome] = mine.outcomes.get(outcome, 0) + 1
        mine.busy += task.busy
        mine.idle += task.idle
        mine.scheduled += task.scheduled
        self._uses(task, name, times, mine)

    def _alone(self, name: str, ns: int) -> None:
        self.names[name].self_ns += ns

    def _uses(self, task: TaskView, name: str, times: Times, mine: _OfName) -> None:
        waits, holds, _, _ = uses_of(task, times, self.met)
        for wait in waits:
            of = self._resource(str(wait.resource), wait.resource.kind)
            of.waits += 1
            of.given_up += wait.got is False
            of.waiting += wait.got is None and not times.over
            of.total += wait.seconds
            of.max = max(of.max, wait.seconds)
            mine.waited += wait.seconds
            _add(of.waiters, name, wait.seconds)
        for hold in holds:
            _add(self._resource(str(hold.resource), hold.resource.kind).holders, name, hold.seconds)

    def _resource(self, shown: str, kind: str) -> _OfResource:
        if shown not in self.resources and len(self.resources) >= _MAX_RESOURCES:
            shown = OTHER
        return self.resources.setdefault(shown, _OfResource())

    # -- in the end --------------------------------------------------------------------------------------------------

    def done(self, totals: Mapping[str, NameView]) -> Profile:
        notes = []
        if OTHER in totals:
            # Names that the inspector had no room for count together there, and so have to here.
            for name in [name for name in self.names if name not in totals]:
                self.names.setdefault(OTHER, _OfName()).merge(self.names.pop(name))
        if OTHER in self.names:
            notes.append(f"names beyond the first {_MAX_NAMES:,} count together, as {OTHER}")
        names = [
            _name_profile(name, self.names.get(name), totals.get(name))
            for name in {**dict.fromkeys(totals), **dict.fromkeys(self.names)}
        ]
        if any(each.durations.basis == "buckets" for each in names):
            notes.append(
                "not all finished tasks are at hand: their quantiles are estimated from histograms, and self times, "
                "paths and waits are of those at hand"
            )
        if any(each.durations.basis == "buckets" and not each.histogram.bounds for each in names):
            notes.append("of names counted at bounds that have none in common, quantiles are unknown")
        paths = [
            HotPath(stack.names, stack.tasks, stack.total / 1e9, stack.time / 1e9)
            for stack in self.stacks.stacks(_UNKNOWN)
        ]
        if self.stacks.folded:
            notes.append(f"chains too many or too long are cut, and what is further in is {OTHER}")
        contention = [
            Contention(
                name,
                of.waits,
                of.given_up,
                of.waiting,
                of.total,
                of.max,
                MappingProxyType(_by_time(of.waiters)),
                MappingProxyType(_by_time(of.holders)),
            )
            for name, of in self.resources.items()
            if of.waits
        ]
        return Profile(
            self.tasks,
            tuple(sorted(names, key=lambda each: (-each.total, each.name))),
            tuple(heapq.nsmallest(_KEPT_PATHS, paths, key=lambda each: (-each.self_time, -each.total, each.names))),
            tuple(sorted(contention, key=lambda each: (-each.total, each.resource))),
            tuple(notes),
        )


def _by_time(users: dict[str, tuple[int, float]]) -> dict[str, tuple[int, float]]:
    return dict(sorted(users.items(), key=lambda each: (-each[1][1], -each[1][0], each[0])))


_NOBODY: Final = _OfName()


def _name_profile(name: str, tasks: _OfName | None, counted: NameView | None) -> NameProfile:
    """`tasks`: what those at hand say. `counted`: what the snapshot counted, which is more where it kept only some."""
    mine = tasks or _NOBODY
    durations = mine.durations
    at_hand = durations.count
    if counted is None or counted.finished <= at_hand:
        low, high = durations.min, durations.max
        histogram = durations.histogram(ladder(low, high)) if at_hand else Histogram((), (0,), 0.0)
        told = Durations(
            at_hand,
            durations.sum / at_hand if at_hand else None,
            durations.quantile(0.5) if at_hand else None,
            durations.quantile(0.95) if at_hand else None,
            durations.quantile(0.99) if at_hand else None,
            high if at_hand else None,
            "samples" if durations.exact else "sketch",
        )
        outcomes, total = mine.outcomes, durations.sum
    else:
        histogram = _together(counted)
        count = histogram.total
        told = Durations(
            count,
            histogram.sum / count if count else None,
            _estimated(histogram, 0.5),
            _estimated(histogram, 0.95),
            _estimated(histogram, 0.99),
            durations.max if at_hand else None,
            "buckets",
        )
        three = {"completed": counted.completed, "failed": counted.failed, "cancelled": counted.cancelled}
        outcomes, total = {outcome: number for outcome, number in three.items() if number}, histogram.sum
    return NameProfile(
        name,
        at_hand + mine.live if counted is None else max(counted.spawned, at_hand + mine.live),
        mine.live if counted is None else max(counted.live, mine.live),
        MappingProxyType(dict(sorted(outcomes.items()))),
        told,
        total,
        mine.self_ns / 1e9,
        mine.busy if counted is None else max(counted.busy, mine.busy),
        mine.idle if counted is None else max(counted.idle, mine.idle),
        mine.scheduled if counted is None else max(counted.scheduled, mine.scheduled),
        mine.waited,
        histogram,
    )


def _estimated(histogram: Histogram, q: float) -> float | None:
    told = histogram_quantile(histogram, q)
    return None if math.isnan(told) else told


def _together(counted: NameView) -> Histogram:
    """The histograms of all final states in one."""
    return reduce(added, counted.durations.values()) if counted.durations else Histogram((), (0,), 0.0)
