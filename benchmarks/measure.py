"""How everything here is measured: candidates take turns, round by round, in one process, and what counts is the
median of the ratios to the floor of the same round. A machine that slows down for a while slows both, and one bad round
is no more than that.

What is timed is processor time, all threads together, so that other programs on the machine count for little. The
garbage collector stays on: what a library leaves to it is part of its cost.
"""

from __future__ import annotations

import contextvars
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

__all__ = [
    "FULL",
    "QUICK",
    "Floor",
    "Scale",
    "Times",
    "floor_loop",
    "interleaved",
    "interleaved_async",
    "ratios",
    "young_gcs",
]

Times = dict[str, list[float]]

_current: contextvars.ContextVar[Any] = contextvars.ContextVar("benchmark_floor", default=None)
_clock = time.perf_counter_ns


class Scale(NamedTuple):
    """How much is measured. `loops`: operations in one timing of something as quick as the floor."""

    rounds: int
    loops: int
    open_spans: int
    live_tasks: int
    names: int

    def of(self, part: float) -> Scale:
        """The same with a part of the loops, for what takes longer."""
        return self._replace(loops=max(2, round(self.loops * part)))


FULL = Scale(rounds=25, loops=8000, open_spans=10_000, live_tasks=100_000, names=1000)
QUICK = Scale(rounds=2, loops=20, open_spans=50, live_tasks=100, names=10)


class Floor:
    """The least that a span can be: it becomes current, reads the clock, and takes both back."""

    __slots__ = ("duration", "name", "started", "token")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Floor:
        self.token = _current.set(self)
        self.started = _clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.duration = _clock() - self.started
        _current.reset(self.token)


def floor_loop(loops: int) -> None:
    for _ in range(loops):
        with Floor("work"):
            pass


def interleaved(candidates: Mapping[str, Callable[[int], object]], scale: Scale) -> Times:
    """Seconds for an operation, by candidate and round. A candidate does the operation as often as it is told.

    A candidate whose name ends in "/N" does N operations fewer at a time, because each of them takes that much longer.
    """
    times: Times = {name: [] for name in candidates}
    for round_ in range(scale.rounds + 2):
        for name, candidate in candidates.items():
            loops = _loops(name, scale)
            started = time.process_time()
            candidate(loops)
            taken = time.process_time() - started
            if round_ >= 2:  # the first two warm up caches, and the specialising interpreter
                times[name].append(taken / loops)
    return {_plain(name): taken for name, taken in times.items()}


async def interleaved_async(candidates: Mapping[str, Callable[[int], Awaitable[object]]], scale: Scale) -> Times:
    """The same for coroutine functions."""
    times: Times = {name: [] for name in candidates}
    for round_ in range(scale.rounds + 2):
        for name, candidate in candidates.items():
            loops = _loops(name, scale)
            started = time.process_time()
            await candidate(loops)
            taken = time.process_time() - started
            if round_ >= 2:
                times[name].append(taken / loops)
    return {_plain(name): taken for name, taken in times.items()}


def _plain(name: str) -> str:
    return name.partition("/")[0]


def _loops(name: str, scale: Scale) -> int:
    _, slash, slower = name.partition("/")
    return max(1, scale.loops // int(slower)) if slash else scale.loops


def per_record(candidates: Mapping[str, Callable[[Path], object]], path: Path, scale: Scale) -> Times:
    """Processor seconds that each candidate takes for a line of a file, by round, in turns. The first round does not
    count.
    """
    with path.open("rb") as lines:
        records = sum(1 for _ in lines)
    times: Times = {name: [] for name in candidates}
    for round_ in range(max(2, scale.rounds // 2) + 1):
        for name, read in candidates.items():
            started = time.process_time()
            read(path)
            taken = time.process_time() - started
            if round_:
                times[name].append(taken / records)
    return times


def ratios(times: Times, base: str) -> dict[str, float]:
    """Median over the rounds of each candidate's time against that of `base` in the same round."""
    return {
        name: statistics.median(own / floor for own, floor in zip(taken, times[base], strict=True))
        for name, taken in times.items()
        if name != base
    }


@contextmanager
def young_gcs() -> Iterator[list[int]]:
    """Count the collections of the youngest generation, in the list's only item."""
    count = [0]

    def count_one(phase: str, info: Mapping[str, int]) -> None:
        if phase == "start" and info["generation"] == 0:
            count[0] += 1

    gc.collect()
    gc.callbacks.append(count_one)
    try:
        yield count
    finally:
        gc.callbacks.remove(count_one)
