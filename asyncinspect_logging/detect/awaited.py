"""Which tasks a task waits for: read from asyncio itself, at the moment somebody asks."""

from __future__ import annotations

import asyncio
import asyncio.tasks
from typing import Any, Final

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


def awaited_by(task: Any) -> _Needs | None:
    """The tasks that a task waits for, as requirements all of which must be met, each by one of those that it lists;
    None where it waits for something else, or for nothing.
    """
    future = getattr(task, "_fut_waiter", None)
    if future is None or future.done():
        return None
    found = _behind(future, _DEEPEST)
    return (_by_frames(task) if found is None else found) or None


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
    for callback, _ in getattr(future, "_callbacks", None) or ():
        if getattr(callback, "__qualname__", "") == "shield.<locals>._outer_done_callback":
            names = callback.__code__.co_freevars
            if "inner" in names:
                return callback.__closure__[names.index("inner")].cell_contents
    return None


def _by_frames(task: Any) -> _Needs:
    """The tasks of a TaskGroup that is being left, or of an `asyncio.wait`."""
    coro = task.get_coro()
    for _ in range(_DEEPEST):
        frame: Any = getattr(coro, "cr_frame", None)
        code = getattr(frame, "f_code", None)
        if code in _AEXITS:
            return [[each] for each in list(frame.f_locals["self"]._tasks) if not each.done()]
        if code is not None and code is _WAIT:
            return _of_wait(frame.f_locals)
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


def _shows_tasks(future: Any) -> bool:
    return future is not None and (
        isinstance(future, _TASKS) or _shielded(future) is not None
    )


def tasks_awaiting_tasks() -> list[Any]:
    """The tasks of this process whose future shows at a glance that they wait for a task, plainly, by `gather` or by
    `shield`.
    """
    found: list[Any] = []
    for name in ("_scheduled_tasks", "_all_tasks"):
        tasks: Any = getattr(asyncio.tasks, name, None)
        if tasks is not None:
            for _ in range(10):
                try:
                    found = [task for task in tasks if _shows_tasks(getattr(task, "_fut_waiter", None))]
                    break
                except RuntimeError:  # a task was made or has ended meanwhile
                    continue
            break
    return found
