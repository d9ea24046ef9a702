"""Functions of ours in front of methods of an event loop: set on the loop object, so that other loops are as before."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["forget_our_line", "mark", "our_function", "own_method", "take_off"]


def own_method(loop: asyncio.AbstractEventLoop, name: str) -> Any:
    """What stands on the loop itself in front of its class's method, or None."""
    # Not by `vars(loop)`: once a dict was made of its attributes, a loop is slower for the rest of its life (3.11).
    found = getattr(loop, name)
    return None if found == getattr(type(loop), name).__get__(loop) else found


def mark(ours: Any, before: Any) -> Any:
    """Make a function known as ours, which is put in front of `before`: one that is on the loop already, or None."""
    ours._before = before
    # Somebody's `functools.wraps` gives theirs all attributes of ours, and this one is then wrong.
    ours._itself = id(ours)
    return ours


def our_function(loop: asyncio.AbstractEventLoop, name: str) -> Any:
    """What stands on the loop itself, if it is ours, or None."""
    found = own_method(loop, name)
    return found if getattr(found, "_itself", None) == id(found) else None


def take_off(loop: asyncio.AbstractEventLoop, name: str, ours: Any) -> bool:
    """Have there again what was before `ours`; False if somebody has put their own over it since."""
    if own_method(loop, name) is not ours:
        return False
    if ours._before is None:
        delattr(loop, name)
    else:
        setattr(loop, name, ours._before)
    return True


def forget_our_line(task: Any, filename: str) -> None:
    """In debug mode a task knows where it was made: not in a function of ours."""
    made_at: Any = getattr(task, "_source_traceback", None) or ()
    for index in range(len(made_at) - 1, -1, -1):
        if made_at[index].filename == filename:
            del made_at[index]
            break
