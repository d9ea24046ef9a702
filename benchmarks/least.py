"""The least that a task under `install()` can cost in Python, to hold the library against: it counts what the library
counts (spawned, finished, durations, polls, busy, idle and scheduled time), keeps the last 1,000 spans, and knows which
spans are open and which task is being stepped.

It has none of what makes that safe to use: no cancellation or exception passed on unchanged, no records, no handlers
that come and go, no fields, no close, no drop before the first step, no eager tasks, no second thread, no snapshot of
live tasks, no repeated or missing announcements.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import time
from _thread import get_ident
from bisect import bisect_left
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["least_create_task"]

_islice: Any = itertools.islice
_clock = time.monotonic_ns
_current: contextvars.ContextVar[Any] = contextvars.ContextVar("benchmark_least", default=None)
_number = itertools.count(1).__next__
_begun: deque[Any] = deque()
_ended: deque[Any] = deque()
_live: dict[int, Any] = {}
_open: dict[int, Any] = {}
_stepping: dict[int, Any] = {}
_kept: deque[Any] = deque(maxlen=1000)
_bounds = [round(bound * 1e9) for bound in (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)]
_counts = [0] * (len(_bounds) + 1)
_totals = dict.fromkeys(("spawned", "finished", "polls", "busy", "idle", "wakes", "scheduled"), 0)


class _LeastSpan:
    __slots__ = (
        *("name", "number", "parent", "trace", "thread", "spawned", "entered", "exited", "outcome", "key"),
        *("polls", "busy", "max_poll", "part_from", "started", "woken", "wakes", "scheduled"),
    )


class _LeastDriver(_islice):  # type: ignore[misc]
    __slots__ = ("gen", "inner", "span")

    def __await__(self) -> Any:
        return self.gen


Coroutine.register(_LeastDriver)


def _settle() -> None:
    for _ in range(len(_begun)):
        span = _begun.popleft()
        _live[span.number] = span
        _totals["spawned"] += 1
    for _ in range(len(_ended)):
        span = _ended.popleft()
        del _live[span.number]
        duration = span.exited - span.entered
        _totals["finished"] += 1
        _totals["polls"] += span.polls
        _totals["busy"] += span.busy
        _totals["idle"] += duration - span.busy
        _counts[bisect_left(_bounds, duration)] += 1
        if span.wakes:
            _totals["wakes"] += span.wakes
            _totals["scheduled"] += span.scheduled
        _kept.append(span)


def _drive(inner: Any, span: Any) -> Generator[Any, Any, Any]:
    try:
        yield
        span.thread = ident = get_ident()
        span.entered = span.part_from = span.started = _clock()
        _open[span.key] = _stepping[ident] = span
        _current.set(span)
        argument = None
        while True:
            awaited = inner.send(argument)
            t = _clock()
            part = t - span.part_from
            span.busy += part
            if part > span.max_poll:
                span.max_poll = part
            span.started = 0
            argument = yield awaited
            span.started = span.part_from = _clock()
            _stepping[ident] = span
            span.polls += 1
    except StopIteration as stop:
        span.exited = t = _clock()
        part = t - span.part_from
        span.busy += part
        if part > span.max_poll:
            span.max_poll = part
        span.outcome = "completed"
        span.started = 0
        del _open[span.key]
        _ended.append(span)
        if not span.number & 63:
            _settle()
        return stop.value


def least_create_task(loop: asyncio.AbstractEventLoop) -> Any:
    """What takes the place of the loop's `create_task`."""

    def create_task(coro: Any, *, name: str | None = None, context: contextvars.Context | None = None) -> Any:
        span: Any = object.__new__(_LeastSpan)
        span.name = coro.__qualname__
        span.number = number = _number()
        span.outcome = None
        span.polls = 1
        span.busy = span.max_poll = span.wakes = span.scheduled = span.entered = span.started = span.woken = 0
        span.key = id(span)
        span.spawned = _clock()
        around = _current.get()
        span.parent, span.trace = (0, number) if around is None else (around.number, around.trace)
        _begun.append(span)
        generator = _drive(coro, span)
        next(generator)
        driver = _islice.__new__(_LeastDriver, generator, None)
        driver.inner, driver.gen, driver.span = coro, generator, span
        return asyncio.Task(driver, loop=loop, name=name, context=context)

    return create_task
