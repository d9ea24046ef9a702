"""All tasks of asyncio's: of every loop, in every thread (`asyncio.all_tasks` knows those of one)."""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from ..opened import heard_loops, heard_roots, open_of
from .waits import is_task

__all__ = ["all_tasks", "task_references", "trio_tasks"]

_COPY_ATTEMPTS: Final = 1000


def all_tasks() -> Iterator[Any]:
    """The tasks that are there when it begins, as far as they are still there when it comes to them."""
    for reference in task_references():
        task = reference()
        if task is not None:
            yield task


def trio_tasks() -> Iterator[Any]:
    """The tasks of the trio programs in which some are driven."""
    found = _copied(heard_roots)
    while found:
        task = found.pop()
        yield task
        for nursery in task.child_nurseries:
            found += nursery.child_tasks


def task_references() -> list[Callable[[], Any]]:
    """The same as weak references: before Python 3.14 those that asyncio's own sets are made of, since new ones would
    take memory for each task.
    """
    # By Python version: 3.11 has the first. From 3.14 on the second has only tasks of others than asyncio.
    found: list[Callable[[], Any]] = []
    for name in ("_all_tasks", "_scheduled_tasks"):
        kept = getattr(asyncio.tasks, name, None)
        if kept is not None:
            found += _copied(kept.data)
    # In their first step, from 3.12 on.
    found += map(weakref.ref, _copied(getattr(asyncio.tasks, "_eager_tasks", ())))
    if sys.version_info >= (3, 14):
        known = {id(reference()) for reference in found}
        for loop in _loops():
            found += (weakref.ref(task) for task in asyncio.all_tasks(loop) if id(task) not in known)
    return found


def _loops() -> list[asyncio.AbstractEventLoop]:
    """Those that are known of, where asyncio does not tell which ones there are."""
    loops = {id(loop): loop for loop in _copied(heard_loops)}
    for top in list(open_of.values()):
        task = None if top._owner is None else top._owner()
        if task is not None and is_task(task):
            loops[id(task.get_loop())] = task.get_loop()
    return list(loops.values())


def _copied(kept: Iterable[Any]) -> list[Any]:
    for _ in range(_COPY_ATTEMPTS):
        try:
            return list(kept)
        except RuntimeError:  # another thread, or the garbage collector, makes or ends a task
            continue
    return []
