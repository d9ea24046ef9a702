"""What the threads of this interpreter are at, and the frames of coroutines that another thread may be running.

`sys._current_frames()` gives the threads of all interpreters of the process. One with a GIL of its own (PEP 684;
Python 3.12 and later) goes on meanwhile, and a frame object made of its frame, or freed, takes the process down. So
while there are several interpreters, nothing is asked.

Python makes a frame's object when it is first asked for. Before 3.12, that may begin a garbage collection, during
which the thread whose frame it is may go on and return: the object is then made of memory that something else is in by
then, or what is in there is taken for one. So the collector is off meanwhile, and all of it is done in C, where no
other thread, which would find it off, has its turn.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import accumulate, dropwhile, repeat, takewhile
from operator import call, eq, is_not
from types import FrameType
from typing import Any, Final

__all__ = ["current_frames", "frame_of", "locals_of", "outwards", "thread_idents"]

_COLLECTS_ANYWHERE: Final = sys.version_info < (3, 12)
_is_something: Final = partial(is_not, None)


def current_frames() -> dict[int, FrameType]:
    """The innermost frame of each thread, by its id; {} where that cannot be asked safely."""
    if _COLLECTS_ANYWHERE:
        found: dict[int, FrameType] = _in_one_go(sys._current_frames)
        return found
    if _MODULE not in sys.modules:
        return sys._current_frames()
    if sys.version_info < (3, 13):
        # Asking which ones there are is no better: that makes ids, and an interpreter ends with the last of its own.
        return {}
    # Both in one go, in C: between two calls from Python another thread might make an interpreter. What is not dropped
    # is the first answer where it is not the expected one, and else the second.
    asked = (sys.modules[_MODULE].list_all, sys._current_frames)
    answer: Any = next(dropwhile(_is_main_alone, map(call, asked)))
    return answer if type(answer) is dict else {}


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
    frames = current_frames()
    return list(frames) if frames else [thread.ident for thread in threading.enumerate() if thread.ident is not None]
