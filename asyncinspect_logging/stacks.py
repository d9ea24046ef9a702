"""What the threads of this interpreter are at, and the frames of coroutines that another thread may be running.

`sys._current_frames()` gives the threads of all interpreters of the process. One with a GIL of its own (PEP 684;
Python 3.12 and later) goes on meanwhile, and a frame object made of its frame, or freed, takes the process down. So
while there are several interpreters, nothing is asked.

Python makes a frame's object when it is first asked for. Before 3.12, that may begin a garbage collection, during
which the thread whose frame it is may go on and return: the object is then made of memory that something else is in by
then, or what is in there is taken for one. So the collector is off meanwhile, and all of it is done in C, where no
other thread, which would find it off, has its turn.

A frame holds its variables, and one that can be reached from a variable of its own is only freed by the collector, with
all that it holds. So no frame of this package is among those of the thread that asks.
"""

from __future__ import annotations

import gc
import sys
import threading
from _thread import get_ident
from collections.abc import Callable
from functools import partial
from itertools import accumulate, dropwhile, repeat, takewhile
from operator import call, eq, is_not
from pathlib import Path
from types import FrameType
from typing import Any, Final

__all__ = ["current_frames", "frame_of", "is_ours", "locals_of", "outwards", "stack_of", "thread_idents"]

_COLLECTS_ANYWHERE: Final = sys.version_info < (3, 12)
_OURS: Final = str(Path(__file__).resolve().parent)
_is_something: Final = partial(is_not, None)


def current_frames() -> dict[int, FrameType]:
    """The innermost frame of each other thread, by its id; {} where that cannot be asked safely."""
    if _COLLECTS_ANYWHERE:
        found: Any = _in_one_go(sys._current_frames)
    elif _MODULE not in sys.modules:
        found = sys._current_frames()
    elif sys.version_info < (3, 13):
        # Asking which ones there are is no better: that makes ids, and an interpreter ends with the last of its own.
        return {}
    else:
        # Both in one go, in C: between two calls from Python another thread might make an interpreter. What is not
        # dropped is the first answer where it is not the expected one, and else the second.
        found = next(dropwhile(_is_main_alone, map(call, (sys.modules[_MODULE].list_all, sys._current_frames))))
        if type(found) is not dict:
            return {}
    found.pop(get_ident(), None)
    frames: dict[int, FrameType] = found
    return frames


def stack_of(ident: int) -> list[FrameType]:
    """The frames of a thread, innermost first; of this one from what called this package."""
    if ident == get_ident():
        return list(dropwhile(is_ours, outwards(sys._getframe(1))))
    return outwards(current_frames().get(ident))


def is_ours(frame: FrameType) -> bool:
    """Whether a frame is of this package, and so nothing that the application has to know of."""
    return frame.f_code.co_filename.startswith(_OURS)


def outwards(frame: FrameType | None) -> list[FrameType]:
    """A frame and those that called it, itself first."""
    if frame is None:
        return []
    frames: Any = takewhile(_is_something, accumulate(repeat("f_back"), getattr, initial=frame))
    return _in_one_go(partial(list, frames)) if _COLLECTS_ANYWHERE else list(frames)


def frame_of(thing: Any, attribute: str) -> Any:
    """`cr_frame`, `gi_frame` or `ag_frame` of what has one; None where it has none, or is over."""
    if _COLLECTS_ANYWHERE:
        return _in_one_go(partial(getattr, thing, attribute, None))
    return getattr(thing, attribute, None)


def locals_of(frame: FrameType) -> Any:
    """`f_locals` of a frame."""
    return _in_one_go(partial(getattr, frame, "f_locals")) if _COLLECTS_ANYWHERE else frame.f_locals


def _in_one_go(function: Callable[[], Any]) -> Any:
    """What a function written in C returns, with the collector off; it is on again if it was."""
    if not gc.isenabled():
        return function()
    try:
        was_on, _, result, _ = map(call, (gc.isenabled, gc.disable, function, gc.enable))
    except BaseException:
        gc.enable()
        raise
    if not was_on:  # by another thread, in the moment since it was asked
        gc.disable()
    return result


#: What makes interpreters.
_MODULE: Final = "_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters"
#: Whether a list of interpreters, each an id and what made it, has but the main one.
_is_main_alone: Final = partial(eq, [(0, 1)])


def thread_idents() -> list[int]:
    """The ids of all threads that are known."""
    others = list(current_frames()) or [thread.ident for thread in threading.enumerate() if thread.ident is not None]
    return list({*others, get_ident()})
