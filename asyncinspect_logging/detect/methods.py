"""The methods that stand in front of asyncio's and anyio's, and note what a task does with a primitive.

A primitive does what asyncio's does, by asyncio's own code. Which classes have these methods is not known here (`sync`
puts them there): each is made around the method that it is in front of. `always`: whether it is one of a drop-in class,
which reports whether or not an install is in force.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from _thread import get_ident
from collections.abc import Callable
from typing import Any, Final

from .. import clock, process
from ..opened import current_tasks
from ..spans import current
from .held import LockResource, Resource
from .owners import acquire_codes, current_owner, owners, task_here
from .primitives import (
    Report,
    begin_wait,
    end_wait,
    installed,
    know,
    known_primitives,
    note_failure,
    note_freed,
    note_given_back,
    note_taken,
    reporting_locks,
    resource_of,
)

__all__ = ["aenter", "beginning", "methods_of_anyio", "methods_of_asyncio", "releasing"]

_OLD: Final = sys.version_info < (3, 12)
_frame: Final = sys._getframe
_ident: Final = get_ident
_task: Final = asyncio.current_task

#: Tasks inside a primitive that is made of others, which then say nothing.
_inside: Final[set[int]] = set()


def _strip(error: BaseException) -> None:
    """Take our frame, through which an exception passes, off its traceback."""
    tb = error.__traceback__
    if tb is not None:
        error.__traceback__ = tb.tb_next


def _followed(primitive: Any, kind: str, always: bool) -> Resource | None:
    """What is waited for of a primitive; None where a method is to do no more than asyncio's: after an undo, of what
    reports by itself, and inside another primitive. Raises nothing.
    """
    try:
        known = known_primitives.get(id(primitive))
        if not always and (not installed.count or (known is not None and known.ours)):
            return None
        if _inside:
            owner = current_owner()
            if owner is not None and owner.number in _inside:
                return None
        found = None if known is None else known.resources.get(kind)
        return found or resource_of(primitive, kind)
    except Exception as error:
        note_failure(error)
        return None


def _go_inside() -> int:
    """From now on the current task is inside a primitive; returns what to take out of `_inside` afterwards."""
    owner = current_owner()
    if owner is None:
        return 0
    _inside.add(owner.number)
    return owner.number


def _acquiring(original: Any, kind: str, busy: Callable[[Any], bool], always: bool, inside: bool = False) -> Any:
    """`acquire` of what is held. `busy(primitive)`: whether it has to be waited for. `inside`: it calls other methods
    of the primitive.
    """

    @functools.wraps(original)
    async def acquire(self: Any) -> Any:
        number, report = 0, None
        try:
            resource = _followed(self, kind, always)
            if resource is None:
                return await original(self)
            if inside:
                number = _go_inside()
            if busy(self):
                report = begin_wait(resource)
            got = await original(self)
        except BaseException as error:
            _leave(number, report, False)
            _strip(error)
            raise
        _leave(number, report, True)
        note_taken(resource)
        return got

    acquire_codes.add(acquire.__code__)  # type: ignore[attr-defined]
    return acquire


def _leave(number: int, report: Report | None, got: bool) -> None:
    """A method of a primitive is through; see `_go_inside` and `begin_wait`."""
    if number:
        _inside.discard(number)
    if report is not None:
        end_wait(report, got)


def _acquiring_at_once(original: Any, kind: str, always: bool) -> Any:
    """`acquire_nowait` of what is held."""

    @functools.wraps(original)
    def acquire_nowait(self: Any) -> Any:
        try:
            resource = _followed(self, kind, always)
            got = original(self)
        except BaseException as error:
            _strip(error)
            raise
        if resource is not None:
            note_taken(resource)
        return got

    return acquire_nowait


def releasing(original: Any, kind: str, always: bool) -> Any:
    """`release` of what is held."""

    @functools.wraps(original)
    def release(self: Any) -> Any:
        try:
            # Before anything is done, for what is held by then is held by somebody unknown.
            resource = _followed(self, kind, always)
            given = original(self)
        except BaseException as error:
            _strip(error)
            raise
        if resource is not None:
            note_given_back(resource)
        return given

    return release


def _methods_of_locks(always: bool) -> list[tuple[type, str, Any]]:
    """Those of asyncio's lock. They take and give back what is free and known, and note who, when and where: what that
    says is worked out when somebody waits. All else is left to `_acquiring` and `releasing`.

    A lock is set as asyncio's own methods do it, since to call these takes as long as all that is noted.
    """
    Lock, locks = asyncio.Lock, reporting_locks[always]
    acquire_slowly = _acquiring(Lock.acquire, "lock", _lock_busy, always)
    release_slowly = releasing(Lock.release, "lock", always)
    enter, leave = Lock.__aenter__, Lock.__aexit__

    def take_free(lock: Any, resource: LockResource, scoped: bool, frame: Any) -> bool:
        """Take a lock of which `resource` is known, for the application's `frame`; or else do nothing."""
        if lock._locked or lock._waiters or _inside:
            return False
        if _OLD:
            (loop,) = current_tasks
            task = current_tasks[loop] if loop._thread_id == _ident() else None
        else:
            task = _task()
        owner = owners[id(task)]
        code = frame.f_code
        if code is not resource.code or owner.for_others:
            return False
        span = current.get()
        if span is None:
            taken = (owner, clock.monotonic_ns(), code, frame.f_lasti, 0, "", scoped)
        else:
            audience: Any = span._audience
            if span.outcome is not None or audience.steps:
                return False
            taken = (owner, audience.clock.monotonic_ns(), code, frame.f_lasti, span.number, span.name, scoped)
        lock._locked = True
        resource.taken = taken
        return True

    @functools.wraps(Lock.acquire)
    async def acquire(self: Any) -> Any:
        try:
            if take_free(self, locks[id(self)], False, _frame(1)):
                return True
        except Exception:
            pass  # met for the first time; several loops, or none; a span that nobody hears
        try:
            return await acquire_slowly(self)
        except BaseException as error:
            _strip(error)
            raise

    @functools.wraps(Lock.release)
    def release(self: Any) -> Any:
        resource = locks.get(id(self))
        taken = None if resource is None else resource.taken
        if taken is not None and self._locked and not (self._waiters or resource.told or current.get()):  # type: ignore[union-attr]
            task = task_here()
            if task is not None and taken[0].task() is task:
                resource.taken = None  # type: ignore[union-attr]
                self._locked = False
                return None
        try:
            return release_slowly(self)
        except BaseException as error:
            _strip(error)
            raise

    @functools.wraps(enter)
    async def __aenter__(self: Any) -> Any:
        # Somebody may have put their own in front of `acquire`.
        try:
            if self.acquire.__func__ is acquire and take_free(self, locks[id(self)], True, _frame(1)):
                return None
        except Exception:
            pass
        try:
            return await enter(self)
        except BaseException as error:
            _strip(error)
            raise

    @functools.wraps(leave)
    async def __aexit__(self: Any, exc_type: Any, exc: Any, tb: Any) -> Any:
        try:
            resource = locks[id(self)]
            # Taken by `async with`, and so by this task, by a way on which nobody else has put anything.
            if resource.taken[6] and not (resource.told or self._waiters) and self._locked:  # type: ignore[index]
                resource.taken = None
                self._locked = False
                return None
        except Exception:
            pass
        try:
            return await leave(self, exc_type, exc, tb)
        except BaseException as error:
            _strip(error)
            raise

    acquire_codes.update((acquire.__code__, acquire_slowly.__code__))  # type: ignore[attr-defined]
    methods = {"acquire": acquire, "release": release, "__aenter__": __aenter__, "__aexit__": __aexit__}
    return [(Lock, name, method) for name, method in methods.items()]


def _waiting(
    original: Any, kind: str, busy: Callable[[Any], bool], always: bool, inside: bool = False, joins: bool = False
) -> Any:
    """A method that waits until something is done. `inside`: by means of other primitives; `joins`: who has waited
    does for others what they wait for when it comes back.
    """

    @functools.wraps(original)
    async def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        number, report = 0, None
        try:
            resource = _followed(self, kind, always)
            if resource is None:
                return await original(self, *args, **kwargs)
            if joins and (owner := current_owner()) is not None:
                # Who waits itself frees nobody.
                resource.holders.pop(owner.number, None)
            if busy(self):
                report = begin_wait(resource)
            if inside:
                number = _go_inside()
            got = await original(self, *args, **kwargs)
        except BaseException as error:
            _leave(number, report, False)
            _strip(error)
            raise
        _leave(number, report, True)
        if joins:
            note_freed(resource)
        return got

    return wait


def _freeing(original: Any, kind: str, always: bool) -> Any:
    """A method that does what others wait for."""

    @functools.wraps(original)
    def free(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            given = original(self, *args, **kwargs)
        except BaseException as error:
            _strip(error)
            raise
        resource = _followed(self, kind, always)
        if resource is not None:
            note_freed(resource)
        return given

    return free


def beginning(original: Any) -> Any:
    """`__init__` of a semaphore: what is taken of it is known from the beginning."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except BaseException as error:
            _strip(error)
            raise
        if installed.count and id(self) not in known_primitives:
            know(self, complete=True)

    return __init__


def aenter(original: Any) -> Any:
    """`__aenter__` of a condition: one made before has methods of its lock on it that are no longer the lock's."""

    @functools.wraps(original)
    async def __aenter__(self: Any) -> Any:
        if self.acquire is not None and getattr(self.acquire, "__func__", None) is _lock_acquire:
            self.acquire, self.release = self._lock.acquire, self._lock.release
        return await original(self)

    return __aenter__


def _lock_busy(lock: Any) -> bool:
    return bool(lock._locked or (lock._waiters and not all(waiter.cancelled() for waiter in lock._waiters)))


def _always(primitive: Any) -> bool:
    return True


def _semaphore_busy(semaphore: Any) -> bool:
    return bool(semaphore.locked())


def _unset(event: Any) -> bool:
    return not event.is_set()


def _incomplete(barrier: Any) -> bool:
    return bool(barrier.n_waiting + 1 < barrier.parties)


def _unfinished(queue: Any) -> bool:
    return bool(queue._unfinished_tasks)


_lock_acquire: Final = asyncio.Lock.acquire


def methods_of_asyncio(always: bool) -> list[tuple[type, str, Any]]:
    """(class of asyncio, name of a method, what stands in front of it)."""
    from asyncio import Barrier, Condition, Event, Queue, Semaphore

    return [
        *_methods_of_locks(always),
        (Semaphore, "acquire", _acquiring(Semaphore.acquire, "semaphore", _semaphore_busy, always)),
        (Semaphore, "release", releasing(Semaphore.release, "semaphore", always)),
        (Condition, "wait", _waiting(Condition.wait, "condition", _always, always)),
        (Condition, "notify", _freeing(Condition.notify, "condition", always)),
        (Event, "wait", _waiting(Event.wait, "event", _unset, always)),
        (Event, "set", _freeing(Event.set, "event", always)),
        (Barrier, "wait", _waiting(Barrier.wait, "barrier", _incomplete, always, inside=True, joins=True)),
        (Queue, "get", _waiting(Queue.get, "queue get", Queue.empty, always)),
        (Queue, "put", _waiting(Queue.put, "queue put", Queue.full, always)),
        (Queue, "join", _waiting(Queue.join, "queue join", _unfinished, always, inside=True)),
        (Queue, "get_nowait", _freeing(Queue.get_nowait, "queue put", always)),
        (Queue, "put_nowait", _freeing(Queue.put_nowait, "queue get", always)),
        (Queue, "task_done", _freeing(Queue.task_done, "queue join", always)),
    ]


def methods_of_anyio() -> list[tuple[type, str, Any]]:
    """The same for anyio, if it is there and runs on asyncio."""
    anyio: Any = sys.modules.get("anyio._backends._asyncio")
    lock, semaphore = getattr(anyio, "Lock", None), getattr(anyio, "Semaphore", None)
    methods: list[tuple[type, str, Any]] = []
    if lock is not None and hasattr(lock, "acquire_nowait"):
        methods += [
            (lock, "acquire", _acquiring(lock.acquire, "lock", _anyio_lock_busy, False, inside=True)),
            (lock, "acquire_nowait", _acquiring_at_once(lock.acquire_nowait, "lock", False)),
            (lock, "release", releasing(lock.release, "lock", False)),
        ]
    if semaphore is not None and hasattr(semaphore, "acquire_nowait"):
        methods += [
            (semaphore, "acquire", _acquiring(semaphore.acquire, "semaphore", _no_value, False, inside=True)),
            (semaphore, "acquire_nowait", _acquiring_at_once(semaphore.acquire_nowait, "semaphore", False)),
            (semaphore, "release", releasing(semaphore.release, "semaphore", False)),
        ]
    return methods


def _anyio_lock_busy(lock: Any) -> bool:
    return bool(lock._owner_task is not None or lock._waiters)


def _no_value(semaphore: Any) -> bool:
    return not semaphore.value


@process.after_fork
def _after_fork() -> None:
    """The parent's tasks do not go on here."""
    _inside.clear()
