"""Which tasks a task waits for: read from asyncio itself, at the moment somebody asks."""

from __future__ import annotations

import asyncio
import asyncio.tasks
from typing import Any, Final

from ..stacks import frame_of, locals_of
from .chains import enclosed
from .tasks import all_tasks

__all__ = ["awaited_by", "is_blocked", "tasks_awaiting_tasks"]

_Needs = list[list[Any]]
_GATHERING: Final = getattr(asyncio.tasks, "_GatheringFuture", ())
_TASKS: Final = (asyncio.Task, _GATHERING)
_AEXITS: Final = {
    getattr(asyncio.TaskGroup, name).__code__ for name in ("__aexit__", "_aexit") if hasattr(asyncio.TaskGroup, name)
}
_WAIT: Final = getattr(getattr(asyncio.tasks, "_wait", None), "__code__", None)
_DEEPEST: Final = 1000


def is_blocked(task: Any) -> bool:
    """Whether a task waits for a future that is not done: it does not run, and is not about to."""
    future = getattr(task, "_fut_waiter", None)
    return future is not None and not future.done()


def awaited_by(task: Any, plain: set[int]) -> _Needs | None:
    """The tasks that a task waits for, as requirements all of which must be met, each by one of those that it lists;
    None where it waits for something else, or for nothing. `plain`: futures behind which there is no task, by id, as
    far as that was found out by now.
    """
    future = getattr(task, "_fut_waiter", None)
    if future is None or future.done():
        return None
    found = None if id(future) in plain else _behind(future, _DEEPEST)
    if found is None:
        plain.add(id(future))
        found = _by_frames(task)
    return found or None


def _behind(future: Any, deep: int) -> _Needs | None:
    """The tasks behind a future; [] where something else is, None where that does not show."""
    if isinstance(future, asyncio.Task):
        return [[future]]
    if isinstance(future, _GATHERING):
        children: list[Any] = [child for child in future._children if not child.done()]
        return [need for child in children for need in (_behind(child, deep - 1) or ())] if deep else []
    shielded = _shielded(future)
    return None if shielded is None or not deep else _behind(shielded, deep - 1)


def _shielded(future: Any) -> Any:
    """What a future of `asyncio.shield` shields."""
    # The callback that knows was the first. Others may be there by the thousand.
    for callback, _ in (getattr(future, "_callbacks", None) or ())[:1]:
        if getattr(callback, "__qualname__", "") == "shield.<locals>._outer_done_callback":
            return enclosed(callback, "inner")
    return None


def _by_frames(task: Any) -> _Needs:
    """The tasks of a TaskGroup that is being left, or of an `asyncio.wait`."""
    coro = task.get_coro()
    for _ in range(_DEEPEST):
        frame = frame_of(coro, "cr_frame")
        code = getattr(frame, "f_code", None)
        if code in _AEXITS:
            return [[each] for each in list(locals_of(frame)["self"]._tasks) if not each.done()]
        if code is not None and code is _WAIT:
            return _of_wait(locals_of(frame))
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None) or getattr(coro, "ag_await", None)
        if coro is None:
            break
    return []


def _of_wait(local: dict[str, Any]) -> _Needs:
    futures = list(local["fs"])
    if local["return_when"] == asyncio.FIRST_COMPLETED:
        tasks = all(isinstance(future, asyncio.Task) for future in futures)
        return [futures] if tasks else []
    return [[future] for future in futures if isinstance(future, asyncio.Task) and not future.done()]


def tasks_awaiting_tasks() -> list[Any]:
    """The tasks of this process from which a circle of tasks that wait for tasks can be found: those whose future shows
    at a glance that they wait for one, plainly, by `gather` or by `shield`; and those that wait by `asyncio.wait` or in
    a `TaskGroup`, where that may be a circle by itself.
    """
    found: list[Any] = []
    # By id of a task: those that wait for it by `asyncio.wait` or in a TaskGroup.
    waiters: dict[int, list[Any]] = {}
    # Many may wait for one future, and its callbacks are a new list each time.
    plain: set[int] = set()
    for task in all_tasks():
        future = getattr(task, "_fut_waiter", None)
        if future is None:
            continue
        callbacks = task._callbacks
        if callbacks:
            by = [waiter for waiter in map(_waiter_behind, callbacks) if waiter is not None]
            if by:
                waiters[id(task)] = by
        if id(future) in plain:
            continue
        if future.__class__ is asyncio.Future and len(future._callbacks or ()) < 2:
            continue  # by far the most: nobody but the task waits for it, and it shields nothing
        if isinstance(future, _TASKS) or _shielded(future) is not None:
            found.append(task)
        else:
            plain.add(id(future))
    return found + _in_circles(waiters) if waiters else found


def _waiter_behind(callback: tuple[Any, Any]) -> Any:
    """The task that waits, by `asyncio.wait` or in a TaskGroup, for the one of which this is a callback; or None."""
    function = callback[0]
    owner = getattr(function, "__self__", None)
    if owner is not None:
        return getattr(owner, "_parent_task", None) if isinstance(owner, asyncio.TaskGroup) else None
    if getattr(function, "__qualname__", "") != "_wait.<locals>._on_completion":
        return None
    waiter = enclosed(function, "waiter")
    wakeups = (getattr(waiter, "_callbacks", None) or ())[:1]
    return next((getattr(wakeup, "__self__", None) for wakeup, _ in wakeups), None)


def _in_circles(waiters: dict[int, list[Any]]) -> list[Any]:
    """The waiters that somebody waits for, whom again somebody waits for, and so on: in a tree of tasks, none."""
    left = {id(waiter): waiter for by in waiters.values() for waiter in by if id(waiter) in waiters}
    while True:
        awaited = {key: waiter for key, waiter in left.items() if any(id(each) in left for each in waiters[key])}
        if len(awaited) == len(left):
            return list(left.values())
        left = awaited
