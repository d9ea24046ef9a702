"""Primitives that say who waits for them and who holds them: drop-in subclasses of asyncio's, which take a `name=`.

    from asyncinspect_logging.detect.sync import Lock

    lock = Lock(name="db")

`install(sync=True)` has asyncio's own classes (and anyio's Lock and Semaphore on asyncio) report as well, also those
that exist already. A primitive does what asyncio's does, by asyncio's own code: what is here stands in front of it.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import weakref
from _thread import get_ident
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from .. import clock, process
from ..diagnostics import warn_once
from ..notices import Waiting
from ..opened import current_tasks
from ..routing import Audience, route_of
from ..spans import LOGGER, Span, current, current_span
from .held import HELD, Hold, LockResource, Owner, Place, Resource, Wait
from .owners import acquire_codes, current_owner, owners, task_here
from .saying import owner_said, resource_said, wait_said
from .timers import has_timeout

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
_route: Final = route_of(LOGGER)
#: Through these modules a call comes here from the place where the application waits.
_PASSED: Final = frozenset(
    {
        __name__,
        "asyncio.locks",
        "asyncio.queues",
        "asyncio.tasks",
        "contextlib",
        "anyio._backends._asyncio",
        "anyio._core._synchronization",
    }
)
#: Those remembered who have set an event, put into a queue, and so on. Where there are more, anybody may.
_MAX_FREERS: Final = 32
#: An inspector is asked to look into what was announced at most once in so many ns for each primitive: that has it
#: watch, and then it looks by itself.
_OFTEN: Final = 100_000_000

_OLD: Final = sys.version_info < (3, 12)
_frame: Final = sys._getframe
_ident: Final = get_ident
_task: Final = asyncio.current_task


class _Known:
    """What is known of a primitive. `ref` leads to it."""

    __slots__ = ("complete", "name", "ours", "ref", "resources")

    def __init__(self, ref: weakref.ref[Any], name: str | None, complete: bool, ours: bool) -> None:
        self.ref = ref
        self.name = name
        #: Whether it was seen from its beginning.
        self.complete = complete
        #: Whether it is of a class of this module, whose methods report.
        self.ours = ours
        self.resources: dict[str, Resource] = {}


_known: Final[dict[int, _Known]] = {}
#: The locks that were used while they reported, by id: asyncio's own, and those of this module.
_locks: Final[tuple[dict[int, LockResource], dict[int, LockResource]]] = ({}, {})


def _know(primitive: Any, name: str | None = None, complete: bool = False, ours: bool = False) -> _Known:
    key = id(primitive)

    # The dicts' methods, and not ours, since it runs when the primitive is gone, in the middle of anything.
    def forget(gone: object, forget_it: Any = _known.pop, forget_lock: Any = _locks[ours].pop) -> None:
        forget_it(key, None)
        forget_lock(key, None)

    known = _known[key] = _Known(weakref.ref(primitive, forget), name, complete, ours)
    return known


def _resource(primitive: Any, kind: str) -> Resource:
    """What is waited for of a primitive: of most there is one such thing, of a queue there are three."""
    known = _known.get(id(primitive)) or _know(primitive)
    found = known.resources.get(kind)
    if found is None:
        made: Resource = LockResource(kind, known.name) if kind == "lock" else Resource(kind, known.name)
        found = known.resources[kind] = made
        if known.complete:
            pass
        elif kind == "lock":
            found.unknown = int(primitive.locked())
        elif kind == "semaphore" and not _patches.fresh:
            bound = getattr(primitive, "_bound_value", None)
            # Of how many a plain one had at first, nothing can be found out any more.
            found.unknown = bound - primitive._value if bound is not None else sys.maxsize
    if isinstance(found, LockResource) and _is_plain(primitive, known.ours):
        _locks[known.ours][id(primitive)] = found
    return found


def _is_plain(lock: Any, ours: bool) -> bool:
    """Whether a lock is taken and given back by what is here, and by nobody's own methods."""
    methods = _OURS if ours else _patches.ours
    return all(
        getattr(getattr(lock, name), "__func__", None) is methods.get((asyncio.Lock, name))
        for name in ("acquire", "release", "__aenter__", "__aexit__")
    )


def _place(frame: Any) -> tuple[Place, bool]:
    """Where the application is that called what runs in `frame`, and whether it came by an `async with`."""
    outermost, scoped = frame, False
    while frame is not None and frame.f_globals.get("__name__") in _PASSED:
        outermost = frame
        scoped = scoped or frame.f_code.co_name == "__aenter__"
        frame = frame.f_back
    frame = frame or outermost
    return Place(frame.f_code, frame.f_lasti), scoped


# -- what is told ----------------------------------------------------------------------------------------------------


class _Report(NamedTuple):
    """A wait, and those who were told of it, by way of `span` if there was one."""

    wait: Wait
    audience: Audience
    span: Span | None


def _heard_span() -> Span | None:
    """The current span, if anybody hears of it."""
    span = current.get()
    if span is not None and (span.outcome is not None or not span.number):
        span = current_span()
    return span if span is not None and span.number > 0 and span._audience is not None else None


def _begin_wait(resource: Resource) -> _Report | None:
    """The current task is about to wait. Raises nothing."""
    try:
        span = _heard_span()
        audience = _route.audience() if span is None else span._audience
        owner = current_owner()
        if audience is None or owner is None:
            return None
        t = audience.clock.monotonic_ns()
        place, _ = _place(sys._getframe(1))
        number, name = (0, "") if span is None else (span.number, span.name)
        wait = Wait(owner, resource, t, place, number, name)
        audience.announce(Waiting(wait, False))
        if span is not None and audience.steps:
            wait.timed = has_timeout(owner.task())
            span._emit(audience, "wait", wait_said(wait), t)
        if resource.heard is not audience or t - resource.settled > _OFTEN:
            resource.heard, resource.settled = audience, t
            audience.settle()
        return _Report(wait, audience, span)
    except Exception as error:
        _failed(error)
        return None


def _end_wait(report: _Report, got: bool) -> None:
    """It waits no longer, and has `got` what it waited for, or not. Raises nothing."""
    try:
        wait, audience, span = report
        audience.announce(Waiting(wait, True))
        if span is not None and audience.steps and not (got and wait.resource.kind in HELD):
            _emit(span, audience, "acquire" if got else "release", wait.owner, wait.resource, wait.at)
    except Exception as error:
        _failed(error)


def _taken(resource: Resource) -> None:
    """The current task has got it: called by the method that took it. Raises nothing.

    No more is done than to note who, when and where. What that says is worked out when somebody waits.
    """
    try:
        owner = current_owner()
        if owner is None or owner.for_others:
            resource.unknown += 1
            return
        (code, instruction), scoped = _place(_frame(1))
        span, number, name, steps = current.get(), 0, "", None
        if span is not None:
            span = span if span.outcome is None and span._audience is not None else _heard_span()
        if span is None:
            t = clock.monotonic_ns()
        else:
            audience: Any = span._audience
            number, name, steps = span.number, span.name, audience.steps
            t = audience.clock.monotonic_ns()
        if isinstance(resource, LockResource):
            resource.taken = (owner, t, code, instruction, number, name, scoped)
            resource.code, resource.told = code, bool(steps)
        else:
            hold = resource.holders.get(owner.number)
            if hold is None:
                hold = Hold(owner, t, code, instruction, number, name, scoped)
            else:
                hold = hold._replace(permits=hold.permits + 1, scoped=hold.scoped and scoped)
            resource.holders[owner.number] = hold
        if steps:
            assert span is not None
            _emit(span, audience, "acquire", owner, resource, Place(code, instruction), t)
    except Exception as error:
        _failed(error)


def _let_go(resource: Resource) -> None:
    """One hold was given back. Raises nothing."""
    try:
        owner = current_owner()
        hold = None if owner is None else resource.holders.get(owner.number)
        if hold is not None:
            resource.paired = True
            if isinstance(resource, LockResource):
                resource.taken = None
            elif hold.permits > 1:
                resource.holders[hold.owner.number] = hold._replace(permits=hold.permits - 1)
            else:
                del resource.holders[hold.owner.number]
        elif resource.unknown:
            resource.unknown -= 1
        else:
            # One gives back what another took, and so whose turn that is cannot be told by who has it.
            resource.open = True
            if isinstance(resource, LockResource):
                resource.taken = None
        if owner is None or current.get() is None:
            return
        span = _heard_span()
        audience = None if span is None else span._audience
        if span is not None and audience is not None and audience.steps:
            _emit(span, audience, "release", owner, resource)
    except Exception as error:
        _failed(error)


def _freed(resource: Resource) -> None:
    """The current task did what one that waits for this needs somebody to do. Raises nothing."""
    try:
        owner = current_owner()
        holders = resource.holders
        if resource.open or (owner is not None and owner.number in holders):
            return
        if owner is None or len(holders) >= _MAX_FREERS:
            resource.open = True
            holders.clear()
            return
        place, _ = _place(sys._getframe(1))
        span = _heard_span()
        number, name = (0, "") if span is None else (span.number, span.name)
        holders[owner.number] = Hold(owner, clock.monotonic_ns(), *place, number, name)
    except Exception as error:
        _failed(error)


def _failed(error: Exception) -> None:
    warn_once("sync", type(error).__qualname__, "a synchronisation primitive could not be followed: %r", error)


def _emit(
    span: Span, audience: Audience, kind: str, owner: Owner, resource: Resource, at: object = None, t: int = 0
) -> None:
    more = {"resource": resource_said(resource), **owner_said(owner)}
    if at is not None:
        more["at"] = str(at)
    span._emit(audience, kind, more, t)


# -- the methods in front of asyncio's -------------------------------------------------------------------------------

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
        known = _known.get(id(primitive))
        if not always and (not _patches.count or (known is not None and known.ours)):
            return None
        if _inside:
            owner = current_owner()
            if owner is not None and owner.number in _inside:
                return None
        found = None if known is None else known.resources.get(kind)
        return found or _resource(primitive, kind)
    except Exception as error:
        _failed(error)
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
                report = _begin_wait(resource)
            got = await original(self)
        except BaseException as error:
            _leave(number, report, False)
            _strip(error)
            raise
        _leave(number, report, True)
        _taken(resource)
        return got

    acquire_codes.add(acquire.__code__)  # type: ignore[attr-defined]
    return acquire


def _leave(number: int, report: _Report | None, got: bool) -> None:
    """A method of a primitive is through; see `_go_inside` and `_begin_wait`."""
    if number:
        _inside.discard(number)
    if report is not None:
        _end_wait(report, got)


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
            _taken(resource)
        return got

    return acquire_nowait


def _releasing(original: Any, kind: str, always: bool) -> Any:
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
            _let_go(resource)
        return given

    return release


def _methods_of_locks(always: bool) -> list[tuple[type, str, Any]]:
    """Those of asyncio's lock. They take and give back what is free and known, and note who, when and where: what that
    says is worked out when somebody waits. All else is left to `_acquiring` and `_releasing`.

    A lock is set as asyncio's own methods do it, since to call these takes as long as all that is noted.
    """
    Lock, locks = asyncio.Lock, _locks[always]
    acquire_slowly = _acquiring(Lock.acquire, "lock", _lock_busy, always)
    release_slowly = _releasing(Lock.release, "lock", always)
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
                report = _begin_wait(resource)
            if inside:
                number = _go_inside()
            got = await original(self, *args, **kwargs)
        except BaseException as error:
            _leave(number, report, False)
            _strip(error)
            raise
        _leave(number, report, True)
        if joins:
            _freed(resource)
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
            _freed(resource)
        return given

    return free


def _beginning(original: Any) -> Any:
    """`__init__` of a semaphore: what is taken of it is known from the beginning."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except BaseException as error:
            _strip(error)
            raise
        if _patches.count and id(self) not in _known:
            _know(self, complete=True)

    return __init__


def _aenter(original: Any) -> Any:
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


def _methods(always: bool) -> list[tuple[type, str, Any]]:
    """(class of asyncio, name of a method, what stands in front of it)."""
    from asyncio import Barrier, Condition, Event, Queue, Semaphore

    return [
        *_methods_of_locks(always),
        (Semaphore, "acquire", _acquiring(Semaphore.acquire, "semaphore", _semaphore_busy, always)),
        (Semaphore, "release", _releasing(Semaphore.release, "semaphore", always)),
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


def _methods_of_anyio() -> list[tuple[type, str, Any]]:
    """The same for anyio, if it is there and runs on asyncio."""
    anyio: Any = sys.modules.get("anyio._backends._asyncio")
    lock, semaphore = getattr(anyio, "Lock", None), getattr(anyio, "Semaphore", None)
    methods: list[tuple[type, str, Any]] = []
    if lock is not None and hasattr(lock, "acquire_nowait"):
        methods += [
            (lock, "acquire", _acquiring(lock.acquire, "lock", _anyio_lock_busy, False, inside=True)),
            (lock, "acquire_nowait", _acquiring_at_once(lock.acquire_nowait, "lock", False)),
            (lock, "release", _releasing(lock.release, "lock", False)),
        ]
    if semaphore is not None and hasattr(semaphore, "acquire_nowait"):
        methods += [
            (semaphore, "acquire", _acquiring(semaphore.acquire, "semaphore", _no_value, False, inside=True)),
            (semaphore, "acquire_nowait", _acquiring_at_once(semaphore.acquire_nowait, "semaphore", False)),
            (semaphore, "release", _releasing(semaphore.release, "semaphore", False)),
        ]
    return methods


def _anyio_lock_busy(lock: Any) -> bool:
    return bool(lock._owner_task is not None or lock._waiters)


def _no_value(semaphore: Any) -> bool:
    return not semaphore.value


class _Patches:
    """What stands in front of asyncio's methods while `count` installs are in force."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        self.count = 0
        #: Whether there was but one task when it began, so that nobody had taken anything before.
        self.fresh = False
        self.done: list[tuple[type, str, Any, Any]] = []
        #: What is in front, by class and name.
        self.ours: dict[tuple[type, str], Any] = {}

    def add(self) -> None:
        with self.lock:
            self.count += 1
            if self.count == 1:
                loop = asyncio._get_running_loop()
                self.fresh = loop is None or len(asyncio.all_tasks(loop)) <= 1
                for cls, name, ours in [
                    *_methods(always=False),
                    (asyncio.Semaphore, "__init__", _beginning(asyncio.Semaphore.__init__)),
                    (asyncio.Condition, "__aenter__", _aenter(asyncio.Condition.__aenter__)),
                    *_methods_of_anyio(),
                ]:
                    self.ours[cls, name] = ours
                    self.done.append((cls, name, ours, cls.__dict__.get(name)))
                    setattr(cls, name, ours)

    def take_off(self) -> None:
        with self.lock:
            self.count -= 1
            if self.count:
                return
            _locks[False].clear()
            self.ours.clear()
            while self.done:
                cls, name, ours, before = self.done.pop()
                if cls.__dict__.get(name) is not ours:
                    continue  # Somebody has put their own over it since. Ours does no more than hand on.
                if before is None:
                    delattr(cls, name)
                else:
                    setattr(cls, name, before)


_patches: Final = _Patches()


def install_sync() -> Callable[[], None]:
    """Have asyncio's own classes report, and anyio's if it was imported. Returns what undoes it; the last one does."""
    _patches.add()
    undone = False

    def undo() -> None:
        nonlocal undone
        if not undone:
            undone = True
            _patches.take_off()

    return undo


@process.after_fork
def _after_fork() -> None:
    """The parent's tasks do not go on here, and its lock may be held."""
    _patches.lock = threading.Lock()
    _known.clear()
    for locks in _locks:
        locks.clear()
    _inside.clear()


# -- the drop-in classes ---------------------------------------------------------------------------------------------

_OURS: Final = {(cls, name): ours for cls, name, ours in _methods(always=True)}


class Lock(asyncio.Lock):
    """`asyncio.Lock` that reports. `name`: what reports call it."""

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__()
        _know(self, name, complete=True, ours=True)

    acquire = _OURS[asyncio.Lock, "acquire"]
    release = _OURS[asyncio.Lock, "release"]
    __aenter__ = _OURS[asyncio.Lock, "__aenter__"]
    __aexit__ = _OURS[asyncio.Lock, "__aexit__"]


class Semaphore(asyncio.Semaphore):
    """`asyncio.Semaphore` that reports. `name`: what reports call it."""

    def __init__(self, value: int = 1, *, name: str | None = None) -> None:
        super().__init__(value)
        _know(self, name, complete=True, ours=True)

    acquire = _OURS[asyncio.Semaphore, "acquire"]
    release = _OURS[asyncio.Semaphore, "release"]


class BoundedSemaphore(asyncio.BoundedSemaphore):
    """`asyncio.BoundedSemaphore` that reports. `name`: what reports call it."""

    def __init__(self, value: int = 1, *, name: str | None = None) -> None:
        super().__init__(value)
        _know(self, name, complete=True, ours=True)

    acquire = _OURS[asyncio.Semaphore, "acquire"]
    release = _releasing(asyncio.BoundedSemaphore.release, "semaphore", True)


class Condition(asyncio.Condition):
    """`asyncio.Condition` that reports. `lock`: default a `Lock` of this module, by the same name."""

    def __init__(self, lock: asyncio.Lock | None = None, *, name: str | None = None) -> None:
        super().__init__(Lock(name=name) if lock is None else lock)
        _know(self, name, complete=True, ours=True)

    wait = _OURS[asyncio.Condition, "wait"]
    notify = _OURS[asyncio.Condition, "notify"]


class Event(asyncio.Event):
    """`asyncio.Event` that reports. `name`: what reports call it."""

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__()
        _know(self, name, complete=True, ours=True)

    wait = _OURS[asyncio.Event, "wait"]
    set = _OURS[asyncio.Event, "set"]


class Barrier(asyncio.Barrier):
    """`asyncio.Barrier` that reports. `name`: what reports call it."""

    def __init__(self, parties: int, *, name: str | None = None) -> None:
        super().__init__(parties)
        _know(self, name, complete=True, ours=True)

    wait = _OURS[asyncio.Barrier, "wait"]


class Queue(asyncio.Queue[_T]):
    """`asyncio.Queue` that reports. `name`: what reports call it."""

    def __init__(self, maxsize: int = 0, *, name: str | None = None) -> None:
        super().__init__(maxsize)
        _know(self, name, complete=True, ours=True)

    get = _OURS[asyncio.Queue, "get"]
    put = _OURS[asyncio.Queue, "put"]
    join = _OURS[asyncio.Queue, "join"]
    get_nowait = _OURS[asyncio.Queue, "get_nowait"]
    put_nowait = _OURS[asyncio.Queue, "put_nowait"]
    task_done = _OURS[asyncio.Queue, "task_done"]


class PriorityQueue(Queue[_T], asyncio.PriorityQueue[_T]):  # type: ignore[type-var]
    """`asyncio.PriorityQueue` that reports. `name`: what reports call it."""


class LifoQueue(Queue[_T], asyncio.LifoQueue[_T]):
    """`asyncio.LifoQueue` that reports. `name`: what reports call it."""


def holders_of(primitive: object) -> list[str]:
    """Names of those who hold a primitive as far as is known: of the span each was in, or else of its task."""
    known = _known.get(id(primitive))
    if known is None:
        return []
    holds = [hold for kind in HELD if kind in known.resources for hold in known.resources[kind].holders.values()]
    return [hold.span_name or hold.owner.name for hold in holds]


def name_of(primitive: object) -> str | None:
    """The `name=` that a primitive was made with, if any."""
    known = _known.get(id(primitive))
    return None if known is None else known.name
