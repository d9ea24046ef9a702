"""Eager tasks (Python 3.12+) that nobody drives: they take their first step inside a step of whoever makes them.

A span that begins inside a step of a driver is the driver's, and which task that is is not asked, since that would cost
every such span a quarter more. So the step is put aside while a loop that may make eager tasks makes one.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from _thread import get_ident
from typing import Any

from .in_front import forget_our_line, mark, our_function, own_method, take_off
from .steps import stepping

__all__ = ["let_be", "set_apart"]


def set_apart(loop: asyncio.AbstractEventLoop) -> None:
    """Put steps aside while the loop makes tasks, if it has a task factory: only such a one makes eager tasks."""
    try:
        # A function of ours that is there does that already, or is of `install` and drives what it makes.
        if (
            sys.version_info >= (3, 12)
            and loop.get_task_factory() is not None
            and not hasattr(own_method(loop, "create_task"), "_itself")
        ):
            loop.create_task = _making(loop)  # type: ignore[method-assign]
    except (AttributeError, TypeError, NotImplementedError):
        pass


def let_be(loop: asyncio.AbstractEventLoop) -> None:
    """Take that back, unless somebody else has put something over it since."""
    ours = our_function(loop, "create_task")
    if hasattr(ours, "_sets_apart"):
        take_off(loop, "create_task", ours)


def _making(loop: asyncio.AbstractEventLoop) -> Any:
    cls: Any = type(loop)
    loop_ref, before = weakref.ref(loop), own_method(loop, "create_task")

    def create_task(coro: Any, **kwargs: Any) -> Any:
        ident = get_ident()
        steps = stepping.pop(ident, None)
        try:
            task = cls.create_task(loop_ref(), coro, **kwargs) if before is None else before(coro, **kwargs)
        except BaseException as error:
            tb = error.__traceback__
            error.__traceback__ = tb and tb.tb_next
            raise
        finally:
            if steps is not None:
                stepping[ident] = steps
        forget_our_line(task, __file__)
        return task

    create_task._sets_apart = True  # type: ignore[attr-defined]
    return mark(create_task, before)
