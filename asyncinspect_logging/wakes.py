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
from .eager import let_be, set_apart
from .in_front import mark, our_function, own_method, take_off
from .opened import heard_loops
from .tracing import trace_wake

__all__ = ["driven_by_hand", "hear", "unhear"]

#: The driven coroutine in a task that is not itself made of a driver, by id of the task.
driven_by_hand: Final[dict[int, DrivenSpan]] = {}


def hear(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop's `call_soon` note wakes. Does nothing where that is not possible."""
    set_apart(loop)
    if loop in heard_loops:
        return
    try:
        ours = our_function(loop, "call_soon")
        if hasattr(ours, "_driven"):
            take_off(loop, "call_soon", ours)  # It was about to leave.
        else:
            loop.call_soon = _hearing(loop)  # type: ignore[method-assign]
        heard_loops.add(loop)
    except (AttributeError, TypeError):
        pass


def unhear(loop: asyncio.AbstractEventLoop) -> None:
    """Take that back as soon as no task under way needs it, unless somebody else has put something over it since."""
    ours = our_function(loop, "call_soon") if loop in heard_loops else None
    if ours is None:
        return
    heard_loops.discard(loop)
    driven = [weakref.ref(task) for task in asyncio.all_tasks(loop) if _is_driven(task)]
    if driven:
        set_apart(loop)
        loop.call_soon = _leaving(loop, ours, driven)  # type: ignore[method-assign]
    else:
        _leave(loop, ours)


def _leave(loop: asyncio.AbstractEventLoop, ours: Any) -> None:
    take_off(loop, "call_soon", ours)
    let_be(loop)


def _is_driven(task: asyncio.Task[Any] | None) -> bool:
    """Whether the task is under way and there are wakes to be noted for it."""
    if task is None or task.done():
        return False
    return id(task) in driven_by_hand or getattr(task.get_coro(), "span", None).__class__ is DrivenSpan


def _note(callback: Any) -> None:
    """Note the time on the driven coroutine of the task whose wakeup `callback` may be."""
    task = callback.__self__
    if not isinstance(task, asyncio.Task) or callback.__name__ != "task_wakeup":
        return
    # What `waits.span_of_task` finds, written out: this is done for each wakeup, and for tasks that are what they seem.
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
    cls, loop_ref, before = type(loop), weakref.ref(loop), own_method(loop, "call_soon")

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

    return mark(call_soon, before)


def _leaving(loop: asyncio.AbstractEventLoop, hearing: Any, driven: list[weakref.ref[asyncio.Task[Any]]]) -> Any:
    """Hears on until the last of the tasks has ended, and leaves with the next callback."""
    loop_ref: Any = weakref.ref(loop)

    def call_soon(callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        if driven:
            while driven and not _is_driven(driven[-1]()):
                driven.pop()
            if not driven:
                own = loop_ref()
                ours = our_function(own, "call_soon")
                if getattr(ours, "_driven", None) is driven:
                    take_off(own, "call_soon", ours)
                    _leave(own, hearing)
        return hearing(callback, *args, context=context)

    call_soon._driven = driven  # type: ignore[attr-defined]
    return mark(call_soon, hearing)
