"""The watcher: one thread a process, which has the inspectors look, a few times a second, at what no record can say.

It runs only while something is watched: an event loop with a heartbeat, or tasks that wait for one another.
"""

from __future__ import annotations

import contextvars
import os
import select
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from .. import process
from ..diagnostics import warn_once
from .loop import collections, hearts, rest

if TYPE_CHECKING:
    from ..inspector import Inspector

__all__ = ["watch"]

#: By id. A dict, because it is copied in one go whatever other threads and finalisers do meanwhile.
_watched: Final[dict[int, weakref.ref[Inspector]]] = {}
# Re-entrant: a finaliser that runs in the middle of what is done under it may have something to be watched, too.
_lock = threading.RLock()
_thread: threading.Thread | None = None
#: Held while the thread is to stay: it waits for it between two looks.
_bell = threading.Lock()
#: Those watched before a fork.
_before: list[weakref.ref[Inspector]] = []
#: Seconds between two looks, at most and at least.
_LONGEST: Final = 0.25
_SHORTEST: Final = 0.01
#: Seconds that a fork waits for the thread to leave.
_JOIN: Final = 0.1
#: Seconds by which the thread may be late without the process having stood still.
_LATE: Final = 0.05


def watch(inspector: Inspector) -> None:
    """Have an inspector look a few times a second from now on, for as long as it lives and has something to watch.

    Raises nothing.
    """
    global _thread, _bell
    key = id(inspector)
    if key in _watched:
        return
    with _lock:
        _watched[key] = weakref.ref(inspector, lambda _, forget=_watched.pop: forget(key, None))  # type: ignore[misc]
        if _thread is not None:
            return
        # A context of its own: a thread may inherit that of the one who starts it.
        _thread = threading.Thread(
            target=contextvars.Context().run, args=(_run,), name="asyncinspect-watcher", daemon=True
        )
        collections.begin_timing()
        _bell = threading.Lock()
        _bell.acquire()
        try:
            _thread.start()
        except RuntimeError as error:  # No more threads are to be had, or Python is shutting down.
            _thread = None
            collections.end_timing()
            _watched.clear()
            warn_once("watcher", "start", "what is stuck cannot be watched: %r", error)


def _run() -> None:
    me, bell = threading.current_thread(), _bell
    used = time.process_time()
    while _stays(me):
        try:
            used = _look_and_wait(bell, used)
        except BaseException as error:
            # Also what would end a thread without a word, such as a callback's SystemExit: nobody would look any more.
            warn_once("watcher", type(error).__qualname__, "a look at what is stuck failed: %r", error, exc_info=True)
            bell.acquire(timeout=_LONGEST)


def _look_and_wait(bell: threading.Lock, used: float) -> float:
    """Have each of them look, and wait for the next time. `used`, and what is returned: the processor time that the
    process had used at the last look, and at this one, in seconds.
    """
    interval = min(max(_look_all(), _SHORTEST), _LONGEST)
    began = time.monotonic()
    bell.acquire(timeout=interval)
    late = time.monotonic() - began - interval
    before, used = used, time.process_time()
    if late > _LATE and used - before < late / 2:
        # Suspended, or on a machine that slept. Had it been kept from running by its own threads, it would have used
        # the time.
        for heart in hearts():
            heart.excuse()
    return used


def _look_all() -> float:
    """Have each of them look; returns the seconds until the next time."""
    interval = _LONGEST
    for reference in list(_watched.values()):
        inspector = reference()
        if inspector is None:
            continue
        try:
            inspector.look(sparing=True)
            interval = min(interval, inspector.pause())
            if not inspector.has_something_to_watch():
                _watched.pop(id(inspector), None)
                rest()
                # It may have been told of something just now, and have found itself watched still.
                if inspector.has_something_to_watch():
                    watch(inspector)
        except Exception as error:
            warn_once("watcher", type(error).__qualname__, "a look at what is stuck failed: %r", error, exc_info=True)
    return interval


def _stays(me: threading.Thread) -> bool:
    """Whether the thread has something to do; else it is not the watcher any more."""
    global _thread
    with _lock:
        if _thread is me and not _watched:
            _thread = None
            collections.end_timing()
            if _watched:  # by a finaliser, in this moment
                _thread = me
                collections.begin_timing()
        return _thread is me


def _before_fork() -> None:
    """The thread leaves: Python warns of a fork in a process with several, and it might hold a lock in the child."""
    global _thread
    thread = _thread
    if thread is None or thread is threading.current_thread():
        return
    for heart in hearts():
        heart.ask()
    with _lock:
        _thread = None
        _before[:] = _watched.values()
        _watched.clear()
        collections.end_timing()
        _bell.release()
    _wait_for_end(thread)


def _wait_for_end(thread: threading.Thread) -> None:
    """Wait until a thread is over, for a short while at most: it may need what this one holds.

    Without join(): before Python 3.13 that waits for a lock, and what looks for blocking calls in event loops, some of
    which fork, has them raise.
    """
    end = time.monotonic() + _JOIN
    while thread.is_alive() and time.monotonic() < end:
        select.select((), (), (), 0.0002)


def _after_fork_in_parent() -> None:
    """The thread comes back: with the first beat of a loop, since Python 3.13 counts threads only after this."""
    watched = [reference() for reference in _before]
    _before.clear()
    rest()
    if not any(heart.asked and heart.running() for heart in hearts()):
        for inspector in watched:
            if inspector is not None:
                watch(inspector)


def _after_fork() -> None:
    """The thread stayed behind, and the lock may be held by it."""
    global _thread, _lock
    _lock = threading.RLock()
    _thread = None
    _watched.clear()
    _before.clear()


process.after_fork(_after_fork)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
