"""Drivers: they step a coroutine in the event loop's place, and so see each of its steps.

A driver is a generator between the task and the coroutine. It has to be invisible: what goes in and comes out is
handed through as it is, and the generator's own frame is taken off each exception that passes.
"""

from __future__ import annotations

import asyncio
import sys
from _thread import get_ident
from collections.abc import Coroutine, Generator
from itertools import islice
from types import CoroutineType
from typing import Any, Final

from .driven import DrivenSpan, resume_all, suspend_all
from .opened import end_all, note_root, open_of
from .steps import FIRST_BOUND, slow, stepping
from .tracing import trace_resume, trace_suspend
from .wakes import driven_by_hand, hear

__all__ = ["WRAPPED", "Driver", "drive", "qualname_of", "take_off_one", "wrapped_name"]

_new: Any = islice.__new__


class Driver(islice):  # type: ignore[type-arg] # which it takes for mypy only
    """Stands for a coroutine, or any other awaitable, whose steps are to be seen: await it, or make a task of it.

    It answers to what the tools of asyncio ask a coroutine (name, code, frame, what it awaits, whether it runs) with
    the answers of the one inside.
    """

    # An `islice` of all of the generator: a task steps what is an iterator in C by its C function, and that one goes
    # on to the generator's, so that no frame of ours is in between, which would show in every traceback. (A slot
    # `send` with the generator's own method does as well, for one object more for each task, and 5 % of a step.)
    __slots__ = ("__weakref__", "_awaitable", "_gen", "_inner", "span")

    _awaitable: Any
    _gen: Generator[Any, Any, Any]
    _inner: Any
    span: DrivenSpan

    @property
    def send(self) -> Any:
        return self._gen.send

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._gen

    @property
    def throw(self) -> Any:
        return self._gen.throw

    def close(self) -> None:
        # The coroutine first: one that has not begun must be told, and if it has, the generator finds it closed.
        getattr(self._inner, "close", bool)()
        self._gen.close()

    def __getattr__(self, name: str) -> Any:
        # __name__, __qualname__, cr_frame, gi_code, …: whatever the kind of awaitable has.
        return getattr(self._awaitable, name)

    @property  # type: ignore[misc] # an object's may be set
    def __class__(self) -> type:
        return CoroutineType if type(self._awaitable) is CoroutineType else Driver

    def __repr__(self) -> str:
        return repr(self._awaitable)


Coroutine.register(Driver)


def drive(awaitable: Any, span: DrivenSpan) -> Driver:
    """A driver of a coroutine, or any other awaitable, that keeps the books in `span`. Raises TypeError for what
    cannot be awaited.
    """
    inner = awaitable if type(awaitable) is CoroutineType else _stepper(awaitable)
    # The generator does not know the driver, or dropping an unfinished one would take the garbage collector.
    gen = _drive(inner, span)
    # Up to its first yield, from where on it notices what happens to it: thrown into, closed, or collected.
    next(gen)
    driver: Driver = _new(Driver, gen, None)
    driver._awaitable = awaitable
    driver._inner = inner
    driver._gen = gen
    driver.span = span
    return driver


def qualname_of(awaitable: object) -> str:
    """Qualified name of the coroutine, or of the type of what is awaited: bounded, unlike "Task-17"."""
    if isinstance(awaitable, asyncio.Task):
        awaitable = awaitable.get_coro()
    name = getattr(awaitable, "__qualname__", None)
    return name if isinstance(name, str) else type(awaitable).__qualname__


#: What anyio makes every task of since version 4.14, around the coroutine that it was given.
WRAPPED: Final = "TaskHandle._run_coro"


def wrapped_name(coro: Any) -> str:
    """Qualified name of the coroutine inside of anyio's, that has not begun yet."""
    frame = getattr(coro, "cr_frame", None)
    inner = getattr(frame and frame.f_locals.get("self"), "_coro", None)
    return WRAPPED if inner is None else qualname_of(inner)


def _stepper(awaitable: Any) -> Any:
    """What has `send` and `throw` for an awaitable. Raises TypeError for what cannot be awaited."""
    if isinstance(awaitable, Coroutine | Generator):
        return awaitable
    try:
        iterator = type(awaitable).__await__(awaitable)
    except AttributeError:
        kind = type(awaitable).__qualname__
        hint = "; for a plain function write @span('name')" if callable(awaitable) else ""
        raise TypeError(
            f"instrument() takes a coroutine function or an awaitable, not {kind}: {awaitable!r:.100}{hint}"
        ) from None
    return iterator if hasattr(iterator, "send") and hasattr(iterator, "throw") else _iterate(iterator)


def _stand_in(span: DrivenSpan) -> int:
    """Have the wakes of the current asyncio task noted on `span`; returns the task's id, or 0 outside one."""
    loop = asyncio._get_running_loop()
    if loop is None:
        if "trio" in sys.modules:
            note_root()
        return 0
    task = asyncio.current_task(loop)
    if task is None or id(task) in driven_by_hand:
        return 0
    hear(loop)
    driven_by_hand[id(task)] = span
    return id(task)


def _throw(inner: Any, box: list[BaseException]) -> Any:
    """Throw the exception in the box in, taking it out: no frame of ours may hold it while the coroutine goes on."""
    if isinstance(box[0], GeneratorExit):
        getattr(inner, "close", bool)()
        raise box.pop()
    try:
        # `map` calls from C, and holds what it calls with only for that call.
        return next(map(inner.throw, iter(box.pop, None)))
    except BaseException as passing:
        take_off_one(passing)
        raise


def _iterate(iterator: Any) -> Generator[Any, Any, Any]:
    return (yield from iterator)


def take_off_one(error: BaseException) -> None:
    """Take this module's frame, through which an exception passes, off its traceback."""
    tb = error.__traceback__
    if tb is not None:
        error.__traceback__ = tb.tb_next


def _drive(inner: Any, span: DrivenSpan) -> Generator[Any, Any, Any]:
    """Step `inner`, and keep the books of the spans that are open in it.

    It is one long function of plain statements because it runs at each step of each task.
    """
    arg: Any = None
    thrown: list[BaseException] | None = None
    ident = 0
    around: DrivenSpan | None = None
    task_id = 0
    try:
        try:
            yield  # to `drive`
        except GeneratorExit:
            # Dropped before the first step. The coroutine itself will say that nobody awaited it.
            span.drop(closed=getattr(inner, "cr_frame", None) is None)
            raise
        except BaseException as error:
            take_off_one(error)
            thrown = [error]

        ident = get_ident()
        around = stepping.get(ident)
        if around is not None and not around.started:
            around = None
        if around is not None and not span.number and _is_in_its_task(around):
            # A driver steps this task already: it keeps the books of this span too.
            around = None
            with span.again():
                return (yield from _handed_through(inner, thrown))
        audience = span.start(ident)
        if audience is None:
            around = None
            return (yield from _handed_through(inner, thrown))
        if not span.own_task:
            task_id = _stand_in(span)

        clock, key = audience.clock, span._key
        self_woken = False
        while True:
            # No bound method is kept between the steps: it would be one more object for the garbage collector.
            awaited = inner.send(arg) if thrown is None else _throw(inner, thrown)

            t = clock.monotonic_ns()
            if open_of.get(key) is span:
                part = t - span.part_from
                span.part_from = t
                span.busy += part
                if part > span.max_poll:
                    span.max_poll = part
                if part > FIRST_BOUND:
                    span.slow_polls += slow(part)
                if span.folded:
                    span.folded = False
                    audience.announce(span)
            else:
                suspend_all(key, t)
            span.started = 0
            if around is not None:
                # An eager task takes its first step inside a step of its parent, which now goes on.
                stepping[ident] = around
                around = None
            if awaited is None:
                # A bare yield: the task has itself called again at once.
                self_woken = True
                span.woken_at = t
            else:
                self_woken = False
                span.woken_at = 0
            if span.traced:
                trace_suspend(key, awaited, inner, t)

            thrown = None
            try:
                arg = yield awaited
            except BaseException as error:
                take_off_one(error)
                thrown = [error]
            # A future, and the exception in it, must not live on here while the coroutine has let go of it.
            awaited = None

            span.started = t = clock.monotonic_ns()
            stepping[ident] = span
            if open_of.get(key) is span:
                span.polls += 1
                span.part_from = t
                woken = span.woken_at
                if woken:
                    span.wakes += 1
                    wait = t - woken
                    span.scheduled += wait
                    if wait > FIRST_BOUND:
                        span.slow_waits += slow(wait)
                    if self_woken:
                        span.self_wakes += 1
            else:
                resume_all(key, t, span.woken_at, self_woken)
            if span.traced:
                trace_resume(key, t)
    except StopIteration as stop:
        span.finish(None)
        return stop.value
    except BaseException as passing:
        take_off_one(passing)
        span.finish(passing)
        raise
    finally:
        # Nothing of an exception may stay in this frame, or the two would keep each other alive.
        arg = thrown = None
        span.started = 0
        if task_id:
            driven_by_hand.pop(task_id, None)
        if span._key in open_of:
            # Entered by hand, and never left.
            end_all(open_of[span._key], "abandoned")
        if around is not None:
            stepping[ident] = around


def _is_in_its_task(around: DrivenSpan) -> bool:
    """Whether the current task is the one that `around` is in, and not an eager one that begins in its step."""
    loop = None if sys.version_info < (3, 12) else asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return task is None or driven_by_hand.get(id(task)) is around or getattr(task.get_coro(), "span", None) is around


def _handed_through(inner: Any, thrown: list[BaseException] | None) -> Generator[Any, Any, Any]:
    """Await `inner` without looking, or throw into it where it begins."""
    try:
        if thrown is not None:
            awaited = _throw(inner, thrown)
            while True:
                awaited = inner.send((yield awaited))
        return (yield from (inner.__await__() if hasattr(inner, "__await__") else inner))
    except StopIteration as stop:
        return stop.value
    except BaseException as error:
        take_off_one(error)
        raise
