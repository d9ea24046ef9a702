"""Primitives that say who waits for them and who holds them: drop-in subclasses of asyncio's, which take a `name=`.

    from asyncinspect_logging.detect.sync import Lock

    lock = Lock(name="db")

`install(sync=True)` has asyncio's own classes (and anyio's Lock and Semaphore on asyncio) report as well, also those
that exist already. This is where the methods that report (`methods`) are put on classes, ours and theirs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from .. import process
from .held import HELD
from .methods import aenter, beginning, methods_of_anyio, methods_of_asyncio, releasing
from .primitives import in_front, installed, know, known_primitives, reporting_locks

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "LifoQueue",
    "Lock",
    "PriorityQueue",
    "Queue",
    "Semaphore",
    "holders_of",
    "install_sync",
    "name_of",
]

_T = TypeVar("_T")


# -- on asyncio's own classes ----------------------------------------------------------------------------------------

_theirs: Final = in_front[False]
#: What was put in front, and what the class itself had there before, in the order in which that was done.
_done: Final[list[tuple[type, str, Any, Any]]] = []
_lock = threading.Lock()


def install_sync() -> Callable[[], None]:
    """Have asyncio's own classes report, and anyio's if it was imported. Returns what undoes it; the last one does."""
    with _lock:
        installed.count += 1
        if installed.count == 1:
            _put_on()
    undone = False

    def undo() -> None:
        nonlocal undone
        if not undone:
            undone = True
            with _lock:
                installed.count -= 1
                if not installed.count:
                    _take_off()

    return undo


def _put_on() -> None:
    loop = asyncio._get_running_loop()
    installed.fresh = loop is None or len(asyncio.all_tasks(loop)) <= 1
    for cls, name, ours in [
        *methods_of_asyncio(always=False),
        (asyncio.Semaphore, "__init__", beginning(asyncio.Semaphore.__init__)),
        (asyncio.Condition, "__aenter__", aenter(asyncio.Condition.__aenter__)),
        *methods_of_anyio(),
    ]:
        _theirs[cls, name] = ours
        _done.append((cls, name, ours, cls.__dict__.get(name)))
        setattr(cls, name, ours)


def _take_off() -> None:
    reporting_locks[False].clear()
    _theirs.clear()
    while _done:
        cls, name, ours, before = _done.pop()
        if cls.__dict__.get(name) is not ours:
            continue  # Somebody has put their own over it since. Ours does no more than hand on.
        if before is None:
            delattr(cls, name)
        else:
            setattr(cls, name, before)


@process.after_fork
def _after_fork() -> None:
    """The lock may be held by a thread that stayed behind."""
    global _lock
    _lock = threading.Lock()


# -- the drop-in classes ---------------------------------------------------------------------------------------------

_ours: Final = in_front[True]
_ours.update(((cls, name), ours) for cls, name, ours in methods_of_asyncio(always=True))


class Lock(asyncio.Lock):
    """`asyncio.Lock` that reports. `name`: what reports call it."""

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__()
        know(self, name, complete=True, ours=True)

    acquire = _ours[asyncio.Lock, "acquire"]
    release = _ours[asyncio.Lock, "release"]
    __aenter__ = _ours[asyncio.Lock, "__aenter__"]
    __aexit__ = _ours[asyncio.Lock, "__aexit__"]


class Semaphore(asyncio.Semaphore):
    """`asyncio.Semaphore` that reports. `name`: what reports call it."""

    def __init__(self, value: int = 1, *, name: str | None = None) -> None:
        super().__init__(value)
        know(self, name, complete=True, ours=True)

    acquire = _ours[asyncio.Semaphore, "acquire"]
    release = _ours[asyncio.Semaphore, "release"]


class BoundedSemaphore(asyncio.BoundedSemaphore):
    """`asyncio.BoundedSemaphore` that reports. `name`: what reports call it."""

    def __init__(self, value: int = 1, *, name: str | None = None) -> None:
        super().__init__(value)
        know(self, name, complete=True, ours=True)

    acquire = _ours[asyncio.Semaphore, "acquire"]
    release = releasing(asyncio.BoundedSemaphore.release, "semaphore", True)


class Condition(asyncio.Condition):
    """`asyncio.Condition` that reports. `lock`: default a `Lock` of this module, by the same name."""

    def __init__(self, lock: asyncio.Lock | None = None, *, name: str | None = None) -> None:
        super().__init__(Lock(name=name) if lock is None else lock)
        know(self, name, complete=True, ours=True)

    wait = _ours[asyncio.Condition, "wait"]
    notify = _ours[asyncio.Condition, "notify"]


class Event(asyncio.Event):
    """`asyncio.Event` that reports. `name`: what reports call it."""

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__()
        know(self, name, complete=True, ours=True)

    wait = _ours[asyncio.Event, "wait"]
    set = _ours[asyncio.Event, "set"]


class Barrier(asyncio.Barrier):
    """`asyncio.Barrier` that reports. `name`: what reports call it."""

    def __init__(self, parties: int, *, name: str | None = None) -> None:
        super().__init__(parties)
        know(self, name, complete=True, ours=True)

    wait = _ours[asyncio.Barrier, "wait"]


class Queue(asyncio.Queue[_T]):
    """`asyncio.Queue` that reports. `name`: what reports call it."""

    def __init__(self, maxsize: int = 0, *, name: str | None = None) -> None:
        super().__init__(maxsize)
        know(self, name, complete=True, ours=True)

    get = _ours[asyncio.Queue, "get"]
    put = _ours[asyncio.Queue, "put"]
    join = _ours[asyncio.Queue, "join"]
    get_nowait = _ours[asyncio.Queue, "get_nowait"]
    put_nowait = _ours[asyncio.Queue, "put_nowait"]
    task_done = _ours[asyncio.Queue, "task_done"]


class PriorityQueue(Queue[_T], asyncio.PriorityQueue[_T]):  # type: ignore[type-var]
    """`asyncio.PriorityQueue` that reports. `name`: what reports call it."""


class LifoQueue(Queue[_T], asyncio.LifoQueue[_T]):
    """`asyncio.LifoQueue` that reports. `name`: what reports call it."""


def holders_of(primitive: object) -> list[str]:
    """Names of those who hold a primitive as far as is known: of the span each was in, or else of its task."""
    known = known_primitives.get(id(primitive))
    if known is None:
        return []
    holds = [hold for kind in HELD if kind in known.resources for hold in known.resources[kind].holders.values()]
    return [hold.span_name or hold.owner.name for hold in holds]


def name_of(primitive: object) -> str | None:
    """The `name=` that a primitive was made with, if any."""
    known = known_primitives.get(id(primitive))
    return None if known is None else known.name
