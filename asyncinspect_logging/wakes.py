"""When a task that waited is woken: the moment in which the future it waits on completes.

A future has its callbacks queued by `loop.call_soon`, at once, and the loop calls them when it gets to it; the time in
between is what a task waits although it could run. So the loop's `call_soon` is heard: where it is given the wakeup of
a task that is driven, the time is noted in passing. Nothing is added to the future, where its `repr` would show it.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from types import BuiltinMethodType
from typing import Any, Final

from .driven import DrivenSpan
from .tracing import trace_wake

__all__ = ["driven_by_hand", "hear", "unhear"]

_heard: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

#: The driven coroutine in a task that is not itself made of a driver, by id of the task.
driven_by_hand: Final[dict[int, DrivenSpan]] = {}


def hear(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop's `call_soon` note wakes. Does nothing where that is not possible."""
    if loop in _heard:
        return
    try:
        loop.call_soon = _hearing(loop)  # type: ignore[method-assign]
        _heard.add(loop)
    except (AttributeError, TypeError):
        pass


def unhear(loop: asyncio.AbstractEventLoop) -> None:
    """Take that back, unless somebody else has put something over it since."""
    ours = vars(loop).get("call_soon")
    if loop in _heard and getattr(ours, "_asyncinspect", False):
        before = ours._before  # type: ignore[union-attr]
        if before is None:
            del loop.call_soon
        else:
            loop.call_soon = before  # type: ignore[method-assign]
        _heard.discard(loop)


def _note(callback: Any) -> None:
    """Note the time on the driven coroutine of the task whose wakeup `callback` may be."""
    task = callback.__self__
    if not isinstance(task, asyncio.Task) or callback.__name__ != "task_wakeup":
        return
    span = getattr(task.get_coro(), "span", None)
    if span.__class__ is not DrivenSpan:
        span = driven_by_hand.get(id(task))
    if span is not None and not span.woken_at and not span.started:
        audience = span._audience
        if audience is not None:
            span.woken_at = t = audience.clock.monotonic_ns()
            if span.traced:
                trace_wake(span._key, t)


def _hearing(loop: asyncio.AbstractEventLoop) -> Any:
    # Only a weak reference to the loop: kept in an attribute of its own, any other would be a cycle.
    cls, loop_ref, before = type(loop), weakref.ref(loop), vars(loop).get("call_soon")

    if before is None and cls.call_soon is asyncio.BaseEventLoop.call_soon:
        # asyncio's own: the body of its `call_soon` again, since a second Python call for each callback of the program
        # would cost more than everything else here.
        def call_soon(callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
            if callback.__class__ is BuiltinMethodType:
                _note(callback)
            own: Any = loop_ref()
            if own._closed or own._debug:
                return cls.call_soon(own, callback, *args, context=context)
            return own._call_soon(callback, args, context)

    else:

        def call_soon(callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
            if callback.__class__ is BuiltinMethodType:
                _note(callback)
            if before is not None:
                return before(callback, *args, context=context)
            return cls.call_soon(loop_ref(), callback, *args, context=context)  # type: ignore[arg-type]

    call_soon._asyncinspect = True  # type: ignore[attr-defined]
    call_soon._before = before  # type: ignore[attr-defined]
    return call_soon
