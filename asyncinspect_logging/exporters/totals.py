"""Everything that a process has counted, as whole numbers: sums of them come out the same in any order.

With floats they would not, and where the last digit of a counter falls, Prometheus takes it for a restart.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from operator import add
from types import MappingProxyType
from typing import Any, Final, TypeVar

from ..catalogue import DROP_REASONS, EVENT_TYPES, LAG_BOUNDS, MEMORY_COMPONENTS, OTHER, POLL_COUNT_BOUNDS, STEP_BOUNDS
from ..shared import (
    DELAYS,
    HEADER,
    INTERRUPTED,
    MAGIC,
    POLL_COUNTS,
    SPAWNED,
    STEPS,
    SUMS,
    VERSION,
    cells_of,
    durations_at,
    size_in_file,
    size_of,
    unfold,
)
from ..snapshot import Histogram, NameView, Snapshot
from ..states import FINAL, LIVE

__all__ = ["Corrupt", "Totals", "totals_of"]

_K = TypeVar("_K")

_NS: Final = 1e9
_VERSION: Final = 1
_MAX_BOUNDS: Final = 10_000
_HIGHEST: Final = (1 << 63) - 1
_POLL_BOUNDS: Final = tuple(float(bound) for bound in POLL_COUNT_BOUNDS)
_LAG: Final = len(LAG_BOUNDS) + 2


class Corrupt(ValueError):
    """A file is not what was written there."""


class Totals:
    """What was counted. `names` has the cells of each name (see `shared`), durations at `bounds` (seconds).

    `states` and `memory` are gauges, which a process has only while it lives; `lag` is a histogram's counts, and its
    sum in ns.
    """

    def __init__(self, bounds: tuple[float, ...] = ()) -> None:
        self.bounds = bounds
        self.names: dict[str, list[int]] = {}
        self.states: dict[str, int] = {}
        self.memory: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self.lints: dict[tuple[str, str], int] = {}
        self.logs = 0
        self.deadlocks = 0
        self.lag = [0] * _LAG

    def copy(self) -> Totals:
        """One that can be added to: nothing changes a list in place."""
        other = Totals(self.bounds)
        other.names, other.states, other.memory = dict(self.names), dict(self.states), dict(self.memory)
        other.dropped, other.lints = dict(self.dropped), dict(self.lints)
        other.logs, other.deadlocks, other.lag = self.logs, self.deadlocks, self.lag
        return other

    def _at(self, bounds: tuple[float, ...]) -> dict[str, list[int]]:
        """The names with durations at these bounds: what is between two of them counts at the higher one."""
        if self.bounds == bounds:
            return self.names
        return {name: _rebucket(cells, self.bounds, bounds) for name, cells in self.names.items()}

    def add(self, other: Totals) -> None:
        """Add another's. Durations have the bounds of both. At one that a process does not have, its count is that at
        the next lower one (see `histograms.cumulative`), and so no bucket falls when it comes.
        """
        if not self.names:
            self.bounds = other.bounds
        elif other.names and self.bounds != other.bounds:
            both = tuple(sorted({*self.bounds, *other.bounds}))
            if len(both) <= _MAX_BOUNDS:
                self.names, self.bounds = self._at(both), both
        for name, cells in other._at(self.bounds).items() if other.names else ():
            have = self.names.get(name)
            self.names[name] = cells if have is None else list(map(add, have, cells))
        self.states, self.memory = _sums(self.states, other.states), _sums(self.memory, other.memory)
        self.dropped, self.lints = _sums(self.dropped, other.dropped), _sums(self.lints, other.lints)
        self.logs += other.logs
        self.deadlocks += other.deadlocks
        self.lag = list(map(add, self.lag, other.lag))

    def raise_to(self, state: Totals) -> None:
        """Take in the state that the same process wrote: each number under a name is the higher of the two. The counts
        are up to the last span that ended; the state knows of those that are open, and of spans that records told of.
        """
        if state.names and not self.names:
            self.bounds = state.bounds
        if self.bounds == state.bounds:
            for name, cells in state.names.items():
                have = self.names.get(name)
                self.names[name] = cells if have is None else list(map(max, have, cells))
        self.states, self.memory, self.lints = state.states, state.memory, state.lints
        for reason, count in state.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.logs, self.deadlocks, self.lag = state.logs, state.deadlocks, state.lag

    def end(self) -> None:
        """The process is gone: what was open was interrupted, and its gauges go with it."""
        self.states, self.memory = {}, {}
        for name, cells in self.names.items():
            still_open = cells[SPAWNED] - sum(_finished(cells, len(self.bounds))) - cells[INTERRUPTED]
            if still_open > 0:
                self.names[name] = [*cells[:INTERRUPTED], cells[INTERRUPTED] + still_open, *cells[INTERRUPTED + 1 :]]

    def limit(self, names: int | None) -> None:
        """Count names beyond so many together: those that came last."""
        if names is None or len(self.names) - (OTHER in self.names) <= names:
            return
        for name in [name for name in self.names if name != OTHER][names:]:
            cells = self.names.pop(name)
            have = self.names.get(OTHER)
            self.names[OTHER] = cells if have is None else list(map(add, have, cells))
            self.dropped["max_names"] = self.dropped.get("max_names", 0) + cells[SPAWNED]

    # -- out ---------------------------------------------------------------------------------------------------------

    def snapshot(self, taken_at: float) -> Snapshot:
        names = {name: self._view(name, cells) for name, cells in self.names.items() if cells[SPAWNED]}
        events = dict.fromkeys(EVENT_TYPES, 0)
        for view in names.values():
            events["spawn"] += view.spawned
            events["poll"] += view.polls
            events["wake"] += view.wakes
            events["drop"] += view.finished
        events["log"] = self.logs
        return Snapshot(
            taken_at=taken_at,
            tasks=(),
            names=MappingProxyType(names),
            states=MappingProxyType(_with_zeros([state.value for state in (*LIVE, *FINAL)], self.states)),
            events=MappingProxyType(events),
            dropped=MappingProxyType(_with_zeros(DROP_REASONS, self.dropped)),
            memory=MappingProxyType(_with_zeros(MEMORY_COMPONENTS, self.memory)),
            findings=(),
            deadlocks=self.deadlocks,
            lints=MappingProxyType(dict(self.lints)),
            loop_lag=Histogram(LAG_BOUNDS, tuple(self.lag[:-1]), self.lag[-1] / _NS),
        )

    def _view(self, name: str, cells: list[int]) -> NameView:
        size = len(self.bounds)
        finished = _finished(cells, size)
        durations = {}
        for place, (state, count) in enumerate(zip(FINAL, finished, strict=True)):
            if count:
                at = durations_at(place, size)
                durations[state.value] = Histogram(
                    self.bounds, tuple(cells[at : at + size + 1]), cells[at + size + 1] / _NS
                )
        polls, wakes, self_wakes, busy, idle, scheduled = cells[SUMS:INTERRUPTED]
        counts = cells[POLL_COUNTS : STEPS - 1]
        completed, failed, cancelled = finished
        return NameView(
            name=name,
            spawned=cells[SPAWNED],
            completed=completed,
            failed=failed,
            cancelled=cancelled + cells[INTERRUPTED],
            polls=polls,
            wakes=wakes,
            self_wakes=self_wakes,
            busy=busy / _NS,
            idle=idle / _NS,
            scheduled=scheduled / _NS,
            durations=durations,
            poll_counts=Histogram(_POLL_BOUNDS, tuple(counts), float(cells[STEPS - 1])),
            poll_durations=Histogram(STEP_BOUNDS, tuple(cells[STEPS:DELAYS]), busy / _NS),
            scheduled_delays=Histogram(STEP_BOUNDS, tuple(cells[DELAYS : durations_at(0, size)]), scheduled / _NS),
        )

    def dump(self, ids: Iterable[str] = ()) -> bytes:
        """As JSON, with the ids of the processes that it is the sum over, if any."""
        return json.dumps(
            {
                "v": _VERSION,
                "ids": list(ids),
                "bounds": self.bounds,
                "names": self.names,
                "states": self.states,
                "memory": self.memory,
                "dropped": self.dropped,
                "lints": [[*key, count] for key, count in self.lints.items()],
                "logs": self.logs,
                "deadlocks": self.deadlocks,
                "lag": self.lag,
            },
            separators=(",", ":"),
        ).encode()

    # -- in ----------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, data: bytes) -> Totals:
        """What `dump` gave. Raises Corrupt for anything else."""
        return cls.load_with_ids(data)[0]

    @classmethod
    def load_with_ids(cls, data: bytes) -> tuple[Totals, frozenset[str]]:
        try:
            saved = json.loads(data)
            if saved["v"] != _VERSION:
                raise Corrupt(f"its version is {saved['v']!r}, and this is {_VERSION}")
            totals = cls(_bounds(saved["bounds"]))
            size = size_of(len(totals.bounds))
            totals.names = {name: _whole_list(cells, size) for name, cells in saved["names"].items()}
            for key in ("states", "memory", "dropped"):
                setattr(totals, key, {name: _whole(count) for name, count in saved[key].items()})
            totals.lints = {(_text(lint), _text(name)): _whole(count) for lint, name, count in saved["lints"]}
            totals.logs, totals.deadlocks = _whole(saved["logs"]), _whole(saved["deadlocks"])
            totals.lag = _whole_list(saved["lag"], _LAG)
            return totals, frozenset(map(_text, saved["ids"]))
        except Corrupt:
            raise
        except Exception as error:  # whatever comes of what was never dumped
            raise Corrupt(f"{type(error).__name__}: {error}"[:200]) from None

    @classmethod
    def from_counts(cls, data: bytes, names: bytes) -> Totals:
        """What `shared.SharedCounts` wrote. Raises Corrupt for anything else."""
        try:
            magic, version, size, _ = struct.unpack_from("=4q", data)
            if magic != MAGIC or version != VERSION or not 0 <= size <= _MAX_BOUNDS:
                raise Corrupt("it does not begin like a file of counts")
            header = HEADER + size
            totals = cls(_bounds(struct.unpack_from(f"={size}d", data, HEADER * 8)))
            form = struct.Struct(f"={size_in_file(size)}q")
            # The last line may not have been written to its end; then nothing was counted there.
            for place, line in enumerate(names.split(b"\n")[:-1]):
                cells = list(form.unpack_from(data, (header + place * size_in_file(size)) * 8))
                if min(cells) < 0:
                    raise Corrupt("a number is below 0")
                if any(cells):
                    name = _text(json.loads(line))
                    if name in totals.names:
                        raise Corrupt("it has a name twice")
                    totals.names[name] = unfold(cells)
            return totals
        except Corrupt:
            raise
        except Exception as error:
            raise Corrupt(f"{type(error).__name__}: {error}"[:200]) from None


def totals_of(snapshot: Snapshot, bounds: Sequence[float]) -> Totals:
    """What a snapshot has counted, with durations at `bounds` (seconds)."""
    totals = Totals(tuple(bounds))
    totals.names = {name: cells_of(view, bounds) for name, view in snapshot.names.items()}
    totals.states, totals.memory, totals.dropped = dict(snapshot.states), dict(snapshot.memory), dict(snapshot.dropped)
    totals.lints = dict(snapshot.lints)
    totals.logs, totals.deadlocks = snapshot.events["log"], snapshot.deadlocks
    totals.lag = [*snapshot.loop_lag.counts, round(snapshot.loop_lag.sum * _NS)]
    return totals


def _finished(cells: Sequence[int], bounds: int) -> list[int]:
    """Spans that ended, by final state."""
    starts = [durations_at(place, bounds) for place in range(len(FINAL))]
    return [sum(cells[at : at + bounds + 1]) for at in starts]


def _rebucket(cells: list[int], have: tuple[float, ...], want: tuple[float, ...]) -> list[int]:
    """The same cells with durations at the bounds `want`."""
    found = cells[: durations_at(0, len(have))]
    places = [*(bisect_left(want, bound) for bound in have), len(want)]
    for state in range(len(FINAL)):
        at = durations_at(state, len(have))
        counts = [0] * (len(want) + 1)
        for place, count in zip(places, cells[at : at + len(have) + 1], strict=True):
            counts[place] += count
        found += [*counts, cells[at + len(have) + 1]]
    return found


def _sums(a: dict[_K, int], b: dict[_K, int]) -> dict[_K, int]:
    return {**a, **{key: a.get(key, 0) + value for key, value in b.items()}}


def _with_zeros(keys: Iterable[str], counts: Mapping[str, int]) -> dict[str, int]:
    return {**dict.fromkeys(keys, 0), **counts}


def _bounds(saved: Any) -> tuple[float, ...]:
    bounds = tuple(map(float, saved))
    if list(bounds) != sorted(set(bounds)) or len(bounds) > _MAX_BOUNDS or not all(map(isfinite, bounds)):
        raise Corrupt("its bounds are not in order")
    return bounds


def _whole_list(saved: Any, size: int) -> list[int]:
    if type(saved) is not list or len(saved) != size:
        raise Corrupt("a list of numbers has not the length that it must have")
    return [_whole(count) for count in saved]


def _whole(value: Any) -> int:
    # Sums over many processes need not fit into a cell.
    if type(value) is not int or not 0 <= value <= _HIGHEST << 64:
        raise Corrupt(f"{str(value)[:100]} is not a number that was counted")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise Corrupt(f"{str(value)[:100]} is not a text")
    return value
