"""Which task does something: the one object that stands for each task that uses a primitive which reports."""

from __future__ import annotations

import asyncio
import sys
import weakref
from _thread import get_ident
from types import CodeType
from typing import Any, Final

from .. import process
from ..opened import asyncio_task, open_of
from ..spans import Span
from .held import Owner, new_id

__all__ = ["acquire_codes", "current_owner", "innermost_span", "owner_of", "owners", "task_here"]

#: By id of the task.
owners: Final[dict[int, Owner]] = {}
#: Code of the methods that acquire.
acquire_codes: Final[set[CodeType]] = set()


if sys.version_info >= (3, 12):

    def task_here() -> Any:
        """The current task, or None."""
        try:
            return asyncio.current_task()
        except RuntimeError:
            return None
else:

    def task_here() -> Any:
        """The current task, or None."""
        return asyncio_task(get_ident())


def current_owner() -> Owner | None:
    task = task_here()
    return None if task is None else owners.get(id(task)) or owner_of(task)


def owner_of(task: Any) -> Owner:
    """The one owner that stands for an asyncio task."""
    key = id(task)
    owner = owners.get(key)
    if owner is None:
        coro = task.get_coro()
        span = getattr(coro, "span", None)
        root = span.number if isinstance(span, Span) and getattr(span, "own_task", False) else 0

        def forget(gone: object, forget_it: Any = owners.pop) -> None:
            forget_it(key, None)

        name = getattr(coro, "__qualname__", None) or type(coro).__qualname__
        owner = owners.setdefault(key, Owner(new_id(), name, weakref.ref(task, forget), max(root, 0)))
        # Made by `wait_for` (3.11) or by hand: all that the task does is to acquire, for somebody else.
        owner.for_others = getattr(coro, "cr_code", None) in acquire_codes
    return owner


def innermost_span(task: Any) -> tuple[int, str]:
    """Number and name of the innermost span that is open in a task; 0 and "" where there is none."""
    inside = open_of.get(id(task)) or open_of.get(id(getattr(task.get_coro(), "span", 0)))
    return (0, "") if inside is None else (inside.number, inside.name)


@process.after_fork
def _after_fork() -> None:
    """The parent's tasks do not go on here."""
    owners.clear()
