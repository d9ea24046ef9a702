"""The open spans of the process, by owner.

An owner is a driver, an asyncio (or trio) task that nobody drives, or a thread outside any task. Its innermost open
span is kept here, and the others hang below that one. Keys are ids of objects, so that nothing is kept alive.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from . import process
from .routing import deliver_held
from .stacks import thread_idents
from .steps import stepping

if TYPE_CHECKING:
    from .spans import Span

__all__ = [
    "asyncio_task",
    "close_collected",
    "current_tasks",
    "end_all",
    "ended_for_their_owner",
    "heard_loops",
    "heard_roots",
    "note_root",
    "open_of",
    "open_spans",
    "other_task",
    "pending",
    "pending_numbers",
    "running_spans",
]

#: Innermost open span by owner: of the driver's span, id of the task, or minus the thread id.
open_of: Final[dict[int, Span]] = {}
#: Spans of tasks that were created and not yet stepped, by number.
pending: Final[dict[int, Span]] = {}


def pending_numbers() -> list[int]:
    return list(pending) if pending else []


def open_spans() -> Iterator[Span]:
    """Every open, heard span of the process, innermost first within its owner."""
    for top in list(open_of.values()):
        current: Span | None = top
        while current is not None:
            yield current
            current = current._below


def running_spans() -> list[Span]:
    """The open spans whose coroutine is being stepped at this moment, in any thread, and those outside any task.

    At most a few, whatever the number of open spans: it costs the same with ten as with a million.
    """
    tops: list[Span | None] = [open_of.get(steps._key) for steps in list(stepping.values()) if steps.started]
    tops += [open_of.get(id(task)) for task in _tasks_running()]
    tops += [open_of.get(-ident) for ident in thread_idents()]
    running: list[Span] = []
    for top in tops:
        while top is not None:
            running.append(top)
            top = top._below
    return running


def _tasks_running() -> list[Any]:
    """The asyncio task of each thread's loop that is being stepped now."""
    running = getattr(asyncio.tasks, "_current_tasks", None)
    if sys.version_info < (3, 14) and running is not None:
        return list(dict(running).values())
    return [task for task in (asyncio.current_task(loop) for loop in list(heard_loops)) if task is not None]


#: Loops in which tasks are driven, as `wakes` knows them: from 3.14 on asyncio does not tell which loops there are.
heard_loops: Final[weakref.WeakSet[asyncio.AbstractEventLoop]] = weakref.WeakSet()
#: The task that each loop is at, where asyncio keeps it so (before 3.12, as far as this is used).
current_tasks: Final[dict[Any, Any]] = getattr(asyncio.tasks, "_current_tasks", {})


def asyncio_task(ident: int) -> Any:
    """The asyncio task of this thread, `ident`, or None, before Python 3.12: there `current_task()` is written in
    Python, and asks for the running loop, each time a system call. Where there is but one loop, or none, this does not.
    """
    if not current_tasks:
        return None
    if len(current_tasks) == 1:
        try:
            (loop,) = current_tasks
            if loop.__class__ is asyncio.SelectorEventLoop and loop._thread_id == ident:  # type: ignore[attr-defined]
                return current_tasks[loop]
        except (KeyError, RuntimeError, ValueError):
            pass  # another thread was at it meanwhile
    return current_tasks.get(asyncio._get_running_loop())


def other_task() -> Any:
    """The task of another framework than asyncio, or None."""
    trio: Any = sys.modules.get("trio")
    try:
        return trio.lowlevel.current_task()
    except (RuntimeError, AttributeError):  # outside trio's loop, or trio half imported
        return None


#: Of each trio program in which tasks are driven, the task that all others are below: trio tells its own thread alone.
heard_roots: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def note_root() -> None:
    """A task of the trio program that runs in this thread, if one does, is driven."""
    trio: Any = sys.modules.get("trio")
    try:
        root = trio.lowlevel.current_root_task()
    except (RuntimeError, AttributeError):  # as above
        return
    if root is not None:
        heard_roots.add(root)


def close_collected(at_most: int) -> None:
    """End, as abandoned, spans whose task was collected without leaving them: entered by hand, never exited.

    Looks at the oldest `at_most` owners. Those closed by GeneratorExit have ended by themselves.
    """
    for top in _oldest(at_most):
        owner = top._owner
        if owner is not None and owner() is None:
            end_all(top, "abandoned")


def _oldest(at_most: int) -> list[Span]:
    while True:
        try:
            return list(itertools.islice(open_of.values(), at_most))
        except RuntimeError:  # another thread began or ended a span meanwhile
            continue


#: Spans that ended with their owner. One in a generator is exited once more when that is closed, which is no mistake.
ended_for_their_owner: Final[weakref.WeakSet[Span]] = weakref.WeakSet()


def end_all(top: Span | None, outcome: str) -> None:
    """End a span and those of its owner that are open around it, innermost first."""
    while top is not None:
        below = top._below
        if top.outcome is None:
            top._token = None
            ended_for_their_owner.add(top)
            audience = top._audience
            if audience is not None:
                top._end(audience, audience.clock.monotonic_ns(), None, outcome)
        top = below


def _at_exit() -> None:
    deliver_held()
    for top in list(open_of.values()):
        end_all(top, "interrupted")


def _after_fork() -> None:
    """The spans that were open belong to the parent process, which will tell how they end."""
    for opened in open_spans():
        opened._audience = None
    open_of.clear()
    stepping.clear()


atexit.register(_at_exit)
process.after_fork(_after_fork)
