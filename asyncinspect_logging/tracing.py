"""A step of a driven coroutine in which several spans are open, and the records of single steps (level TRACE)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from .opened import open_of
from .spans import Span
from .steps import FIRST_BOUND, count_slow

__all__ = ["resume_all", "suspend_all", "trace_resume", "trace_suspend", "trace_wake"]


def _opened(key: int) -> Iterator[Span]:
    span = open_of.get(key)
    while span is not None:
        yield span
        span = span._below


def suspend_all(key: int, t: int) -> None:
    """A step ends at `t` (ns): each open span has its part of it."""
    for span in _opened(key):
        tally = span.tally
        if tally is not None:
            span._end_part(tally, t)
            tally.part_from = t
            if tally.folded and span._audience is not None:
                tally.folded = False
                span._announce_steps(span._audience)


def resume_all(key: int, t: int, woken: int, self_woken: bool) -> None:
    """A step begins at `t`, after a wake at `woken` (ns, 0 where there was none)."""
    for span in _opened(key):
        tally = span.tally
        if tally is None:
            continue
        tally.polls += 1
        tally.part_from = t
        if woken:
            tally.wakes += 1
            tally.self_wakes += self_woken
            tally.scheduled += t - woken
            if t - woken > FIRST_BOUND:
                tally.slow_waits = count_slow(tally.slow_waits, t - woken)


def _emit(key: int, kind: str, t: int, more: Mapping[str, Any] | None = None) -> None:
    for span in _opened(key):
        audience = span._audience
        if audience is not None and audience.steps:
            span._emit(audience, kind, more, t)


def trace_suspend(key: int, awaited: object, inner: Any, t: int) -> None:
    more: dict[str, Any] = {"on": _what(awaited)}
    at = _innermost(inner)
    if at is not None:
        more["at"] = at
    _emit(key, "suspend", t, more)
    if awaited is None:
        _emit(key, "wake", t)


def trace_wake(key: int, t: int) -> None:
    _emit(key, "wake", t)


def trace_resume(key: int, t: int) -> None:
    _emit(key, "resume", t)


def _what(awaited: object) -> str:
    """What a coroutine waits for, as far as that can be seen from what it yielded."""
    if awaited is None:
        return "sleep"
    if isinstance(awaited, asyncio.Task):
        return f"task:{getattr(awaited.get_coro(), '__qualname__', 'task')}"
    return "future" if asyncio.isfuture(awaited) else type(awaited).__qualname__


def _innermost(coro: Any) -> str | None:
    """`file:line` of the innermost frame of a suspended coroutine."""
    frame = None
    for _ in range(1000):
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None) or getattr(coro, "ag_frame", None) or frame
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None) or getattr(coro, "ag_await", None)
        if coro is None:
            break
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
