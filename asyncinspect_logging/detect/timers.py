"""Whether a timer will end a wait: what the loop has scheduled, and what that will touch.

That is asked where a wait must not be taken for one that never ends. It finds the timers of anybody, in whatever way
they lead to the task, and takes a walk over all of a loop's timers. When the timeout ends that a task stands in, by its
own frames, is a question of `waits.seconds_left`: cheap for one task, and blind to what is not in them.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
from collections.abc import Iterator
from itertools import compress, repeat
from operator import is_
from types import FunctionType
from typing import Any, Final

from .chains import enclosed

__all__ = ["cancelled_with", "has_timeout", "reached_by_timers"]

#: Attributes by which timeouts and cancel scopes (asyncio, async_timeout, anyio) know what they cancel.
_LEADING_ON: Final = ("_task", "_host_task", "_tasks", "_child_scopes")
_DEEPEST: Final = 6
_GATHERING: Final = getattr(asyncio.tasks, "_GatheringFuture", ())


def has_timeout(task: Any) -> bool:
    """Whether a timer is set that will cancel an asyncio task, or wake it."""
    if task is None:
        return False
    return bool(reached_by_timers(task.get_loop(), {id(task), id(getattr(task, "_fut_waiter", None) or task)}))


def cancelled_with(task: Any) -> Iterator[Any]:
    """What takes an asyncio task with it when it is cancelled: the task, those that await it, by `gather` and from a
    `TaskGroup` too, and what `wait_for` waits for in its place before Python 3.12. A `shield` stops that.
    """
    seen: set[int] = set()
    to_do = [task]
    while to_do:
        future = to_do.pop()
        if id(future) in seen:
            continue
        seen.add(id(future))
        yield future
        for callback, _ in getattr(future, "_callbacks", None) or ():
            owner = getattr(callback, "__self__", None)
            if isinstance(owner, asyncio.Task):
                to_do.append(owner)
            elif isinstance(owner, asyncio.TaskGroup):
                to_do.append(owner._parent_task)  # type: ignore[attr-defined]
            elif isinstance(callback, functools.partial):
                to_do += [each for each in callback.args if isinstance(each, asyncio.Future)]
            elif isinstance(callback, FunctionType):
                to_do += [each for each in _all_enclosed(callback) if isinstance(each, _GATHERING)]


def reached_by_timers(loop: Any, wanted: set[int]) -> set[int]:
    """Of objects given by their ids, those that some timer of the loop refers to."""
    reached: set[int] = set()
    for callback, args in _timers(loop):
        for value in (callback, *args):
            reached.update(id(found) for found in _within(value, _DEEPEST) if id(found) in wanted)
    return reached


def _timers(loop: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Callback and arguments of each timer that is set."""
    if isinstance(loop, asyncio.BaseEventLoop):
        for handle in list(loop._scheduled):  # type: ignore[attr-defined]
            if not handle._cancelled and handle._callback is not None:
                yield handle._callback, handle._args or ()
        return
    timer = getattr(sys.modules.get("uvloop.loop"), "TimerHandle", None)
    if timer is None:
        return
    # uvloop's can be had from nowhere else. Of a heap of a million, a loop in Python would take a tenth of a second.
    everything = gc.get_objects()
    for found in compress(everything, map(is_, map(type, everything), repeat(timer))):
        if not found.cancelled():
            for inside in gc.get_referents(found):
                if isinstance(inside, tuple):
                    yield None, inside
                else:
                    yield inside, ()


def _within(value: Any, deep: int) -> Iterator[Any]:
    """What a callback, or an argument of one, refers to."""
    yield value
    if deep == 0:
        return
    inside: list[Any] = []
    if isinstance(value, functools.partial):
        inside = [value.func, *value.args, *value.keywords.values()]
    elif getattr(value, "__self__", None) is not None:
        inside = [value.__self__]
    elif isinstance(value, FunctionType):
        inside = _all_enclosed(value)
    else:
        for name in _LEADING_ON:
            held = getattr(value, name, None)
            if isinstance(held, set | frozenset):
                inside += list(held)
            elif held is not None:
                inside.append(held)
    for each in inside:
        yield from _within(each, deep - 1)


def _all_enclosed(function: FunctionType) -> list[Any]:
    return [enclosed(function, name) for name in function.__code__.co_freevars]
