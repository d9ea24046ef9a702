"""The watcher: one thread a process, which has the inspectors look, a few times a second, at what no record can say.

It runs only while something is watched: an event loop with a heartbeat, or tasks that wait for one another.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from typing import TYPE_CHECKING, Final

from .. import process
from ..diagnostics import warn_once

if TYPE_CHECKING:
    from ..inspector import Inspector

__all__ = ["watch"]

_watched: Final[weakref.WeakSet[Inspector]] = weakref.WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None
_LONGEST: Final = 0.25


def watch(inspector: Inspector) -> None:
    """Have an inspector look a few times a second from now on, for as long as it lives and has something to watch."""
    global _thread
    if inspector in _watched:
        return
    with _lock:
        _watched.add(inspector)
        if _thread is None:
            # A context of its own: a thread may inherit that of the one who starts it.
            _thread = threading.Thread(
                target=contextvars.Context().run, args=(_run,), name="asyncinspect-watcher", daemon=True
            )
            _thread.start()


def _run() -> None:
    global _thread
    me, pause = threading.current_thread(), threading.Event()
    while True:
        inspectors = list(_watched)
        inspector: Inspector | None
        for inspector in inspectors:
            try:
                inspector.look()
                if not inspector.has_something_to_watch():
                    _watched.discard(inspector)
            except Exception as error:
                warn_once("watcher", type(error).__qualname__, "a look at what is stuck failed: %r", error)
        interval = min((inspector.config.slow_poll / 2 for inspector in inspectors), default=_LONGEST)
        inspectors.clear()
        inspector = None  # nothing here keeps one alive meanwhile
        with _lock:
            if not _watched or _thread is not me:
                if _thread is me:
                    _thread = None
                return
        pause.wait(min(max(interval, 0.01), _LONGEST))


def _after_fork() -> None:
    """The thread stayed behind, and the lock may be held by it."""
    global _thread, _lock
    _lock = threading.Lock()
    _thread = None
    _watched.clear()


process.after_fork(_after_fork)
