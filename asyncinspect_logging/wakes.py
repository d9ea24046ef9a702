"""When a task that waited is woken: the moment in which the future it waits on completes.

A future tells its callbacks through `loop.call_soon`, at once, and the loop calls them when it gets to it; the time in
between is what a task waits although it could run. So a driver leaves a `Waker` among the callbacks, and the loop's
`call_soon` stamps the time on it in passing, instead of queueing it.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .routing import Clock
    from .steps import Steps

__all__ = ["EMPTY_CONTEXT", "Waker", "hear", "unhear"]

EMPTY_CONTEXT: Final = contextvars.Context()
_heard: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


class Waker:
    """A callback for the futures that one driver waits on, one at a time."""

    __slots__ = ("_clock", "_on_wake", "_steps")

    def __init__(self, steps: Steps, clock: Clock, on_wake: Callable[[int, int], None]) -> None:
        self._steps = steps
        self._clock = clock
        self._on_wake = on_wake

    def __call__(self, _future: Any = None) -> None:
        """The wait is over. Called late, by the loop itself, only on a loop whose `call_soon` is not heard."""
        steps = self._steps
        if not steps.woken_at:
            steps.woken_at = t = self._clock.monotonic_ns()
            if steps.traced:
                self._on_wake(steps.key, t)


def hear(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop's `call_soon` stamp wakers. Does nothing where that is not possible."""
    if loop in _heard:
        return
    try:
        loop.call_soon = _heard_call_soon(loop)  # type: ignore[method-assign]
        _heard.add(loop)
    except (AttributeError, TypeError):
        pass


def unhear(loop: asyncio.AbstractEventLoop) -> None:
    """Take that back, unless somebody else has put something over it since."""
    if getattr(vars(loop).get("call_soon"), "_asyncinspect", False):
        del loop.call_soon
        _heard.discard(loop)


def _heard_call_soon(loop: asyncio.AbstractEventLoop) -> Any:
    plain = loop.call_soon
    loop_ref = weakref.ref(loop)
    if type(loop).call_soon is not asyncio.BaseEventLoop.call_soon or "call_soon" in vars(loop):

        def call_soon(callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
            if callback.__class__ is Waker:
                return callback()
            return plain(callback, *args, context=context)

    else:
        # asyncio's own loop: the body of its `call_soon` again, since a second Python call for every callback of the
        # program would cost more than all that is measured by it.
        del plain

        def call_soon(callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
            if callback.__class__ is Waker:
                return callback()
            own: Any = loop_ref()
            if own._closed or own._debug:
                return type(own).call_soon(own, callback, *args, context=context)
            return own._call_soon(callback, args, context)

    call_soon._asyncinspect = True  # type: ignore[attr-defined]
    return call_soon
