"""The records of single steps (level TRACE) of a driven coroutine, one for each span in it that is heard so closely."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from .driven import opened_in

__all__ = ["trace_resume", "trace_suspend", "trace_wake"]


def _emit(key: int, kind: str, t: int, more: Mapping[str, Any] | None = None) -> None:
    for span in opened_in(key):
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
        frame = (
            getattr(coro, "cr_frame", None)
            or getattr(coro, "gi_frame", None)
            or getattr(coro, "ag_frame", None)
            or frame
        )
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None) or getattr(coro, "ag_await", None)
        if coro is None:
            break
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
