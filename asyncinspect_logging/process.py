"""Who this process is: its pid, the counter behind its span ids, and the counter that numbers its records.

A span's number is its id. Numbers are 63 bit: a random base for the process, then counting up; never reused, and never
zero. A record takes its `seq` when it is made for somebody to see.
"""

from __future__ import annotations

import atexit
import itertools
import os
import secrets
import sys
import weakref
from collections.abc import Callable
from typing import Any, Final

__all__ = ["after_fork", "at_exit", "new_number", "new_seq", "pid", "span_id", "spread", "trace_high", "trace_id"]

#: 2**64 / golden ratio; odd, and so no two numbers have the same place.
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1

pid: int
trace_high: int
#: The next number, and the next seq. A fork replaces both, so call them through the module.
new_number: Callable[[], int]
new_seq: Callable[[], int]

#: What to call in a child, by the id of the reference to it.
_after_fork: dict[int, tuple[Callable[[], Any], Callable[..., Any]]] = {}


_at_exit: list[weakref.WeakMethod[Callable[[], None]]] = []
_MANY: Final = 50
_following = False


def _begin() -> None:
    global pid, trace_high, new_number, new_seq
    pid = os.getpid()
    trace_high = secrets.randbits(64) | 1
    new_number = itertools.count(secrets.randbits(62) + (1 << 61)).__next__
    new_seq = itertools.count(1).__next__


def span_id(number: int) -> str:
    """16 hex digits."""
    return f"{number:016x}"


def spread(number: int) -> int:
    """A number's place among all of 64 bits (Knuth, TAOCP 3, section 6.4): those of consecutive ones are far apart.

    Samplers keep a trace by whether the last bits of its id are below a threshold, and numbers that only count up would
    all be on the same side of that.
    """
    return number * _GOLDEN & _MASK


def trace_id(trace: int | str) -> str:
    """32 hex digits: of a trace begun here (the number of its root span), or one that came with a traceparent."""
    return str(trace) if isinstance(trace, str) else f"{trace_high:016x}{spread(trace):016x}"


def after_fork(method: Callable[[], None]) -> None:
    """Call `method` in the child of a fork, after pid and numbers have changed, in the order of registration.

    A bound method's object is held weakly.
    """
    owner = getattr(method, "__self__", None)
    if owner is None:
        _after_fork[id(method)] = (_constant(None), method)
        return

    # Forgotten with its object, by an operation that a finaliser can do at any moment, also while Python shuts down.
    def forget(gone: weakref.ref[Any], forget_it: Any = _after_fork.pop) -> None:
        forget_it(id(gone), None)

    reference = weakref.ref(owner, forget)
    _after_fork[id(reference)] = (reference, method.__func__)  # type: ignore[attr-defined] # it is bound


def at_exit(method: Callable[[], None]) -> None:
    """Call the bound `method` when the interpreter exits, after the spans that are open then have ended. Its object is
    held weakly.
    """
    _at_exit.append(weakref.WeakMethod(method))
    if len(_at_exit) > 2 * _MANY:
        _at_exit[:] = [reference for reference in _at_exit if reference() is not None]


def _exit() -> None:
    for reference in _at_exit:
        method = reference()
        if method is not None:
            try:
                method()
            except Exception:
                pass  # nobody is there any more to be told


def _follow_multiprocessing() -> None:
    """Its children end without what `atexit` has to do, and do what its own list has, which is emptied before."""
    global _following
    util = sys.modules.get("multiprocessing.util")
    if util is None or _following:
        return
    _following = True
    util.register_after_fork(_exit, _exit_in_child)
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        # Imported when that was over.
        _exit_in_child(_exit)


def _exit_in_child(exit: Callable[[], None]) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, exit, exitpriority=0)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _in_child() -> None:
    _begin()
    _follow_multiprocessing()
    for reference, function in list(_after_fork.values()):
        owner = reference()
        if owner is not None:
            function(owner)
        elif not isinstance(reference, weakref.ref):
            function()


_begin()
# Before `opened` registers what ends the open spans, and so run after that.
atexit.register(_exit)
_follow_multiprocessing()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
