"""What the threads of this interpreter are at.

`sys._current_frames()` gives the threads of all interpreters of the process. One with a GIL of its own (PEP 684;
Python 3.12 and later) goes on meanwhile, and a frame object made of its frame, or freed, takes the process down. So
while there are several interpreters, nothing is asked.
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from itertools import dropwhile
from operator import call, eq
from types import FrameType
from typing import Any, Final

__all__ = ["current_frames", "thread_idents"]


def current_frames() -> dict[int, FrameType]:
    """The innermost frame of each thread, by its id; {} where that cannot be asked safely."""
    if _MODULE is None or _MODULE not in sys.modules:
        return sys._current_frames()
    if sys.version_info < (3, 13):
        # Asking which ones there are is no better: that makes ids, and an interpreter ends with the last of its own.
        return {}
    # Both in one go, in C: between two calls from Python another thread might make an interpreter. What is not dropped
    # is the first answer where it is not the expected one, and else the second.
    asked = (sys.modules[_MODULE].list_all, sys._current_frames)
    answer: Any = next(dropwhile(_is_main_alone, map(call, asked)))
    return answer if type(answer) is dict else {}


#: What makes interpreters.
_MODULE: Final = (
    None if sys.version_info < (3, 12) else "_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters"
)
#: Whether a list of interpreters, each an id and what made it, has but the main one.
_is_main_alone: Final = partial(eq, [(0, 1)])


def thread_idents() -> list[int]:
    """The ids of all threads that are known."""
    frames = current_frames()
    return list(frames) if frames else [thread.ident for thread in threading.enumerate() if thread.ident is not None]
