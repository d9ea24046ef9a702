"""Drivers: they step a coroutine in the event loop's place, and so see each of its steps.

A driver is a generator between the task and the coroutine. It has to be invisible: what goes in and comes out is
handed through as it is, and the generator's own frame is taken off each exception that passes.
"""

from __future__ import annotations

import types
from _thread import get_ident
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from .opened import open_of
from .spans import Span, Stepped, enter_spawned, spawn
from .steps import FIRST_BOUND, Steps, count_slow, stepping
from .tracing import resume_all, suspend_all, trace_resume, trace_suspend, trace_wake
from .wakes import EMPTY_CONTEXT, Waker, hear

__all__ = ["Driver", "qualname_of"]

_T = TypeVar("_T")


class Driver(Coroutine[Any, Any, _T]):
    """Stands for a coroutine, or any other awaitable, whose steps are to be seen: await it, or make a task of it.

    It answers to what the tools of asyncio ask a coroutine (name, code, frame, what it awaits, whether it runs) with
    the answers of the one inside.
    """

    __slots__ = ("__weakref__", "_awaitable", "_gen", "_inner", "send", "span", "steps")

    def __init__(self, awaitable: Awaitable[_T], span: Span) -> None:
        self._awaitable = awaitable
        self._inner = inner = _stepper(awaitable)
        self.span = span
        self.steps = steps = Steps(qualname_of(awaitable))
        # The generator does not know this object, or dropping an unfinished one would take the garbage collector.
        self._gen = gen = _drive(inner, span, steps)
        # A slot that holds the generator's own method: so the loop steps the generator, and no frame of ours is in
        # between. A Python method here would be in every traceback, and cost as much as all the rest.
        self.send = gen.send

    def __await__(self) -> Generator[Any, Any, _T]:
        return self._gen

    def spawned(self, context: Any) -> None:
        """A task is being made of it, to be run in `context` (None: a copy of the current one)."""
        self.steps.own_task = True
        spawn(self.span, self.steps, context)

    @property
    def throw(self) -> Any:
        return self._gen.throw if self.steps.begun else self._throw_first

    def _throw_first(self, error: Any, value: Any = None, tb: Any = None) -> Any:
        """Throw into a coroutine that has not begun: like any other it ends right there, and with it the span."""
        if isinstance(error, type):
            error = value if isinstance(value, error) else error() if value is None else error(value)
        self.steps.thrown_first = error if tb is None else error.with_traceback(tb)
        try:
            return self._gen.send(None)
        except BaseException as passing:
            _take_off_one(passing)
            raise

    @property
    def close(self) -> Any:
        return self._gen.close if self.steps.begun else self._close_first

    def _close_first(self) -> None:
        try:
            self._throw_first(GeneratorExit())
        except (GeneratorExit, StopIteration):
            pass

    def __del__(self) -> None:
        if not self.steps.begun and self.span.number > 0:
            # Spawned, and collected before its first step. The coroutine tells by itself that it was never awaited.
            self.steps.begun = True
            self.span.end_unstarted()

    def __getattr__(self, name: str) -> Any:
        # __name__, __qualname__, cr_frame, gi_code, …: whatever the kind of awaitable has.
        return getattr(self._awaitable, name)

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return type(self._awaitable) if type(self._awaitable) is types.CoroutineType else Driver

    def __repr__(self) -> str:
        return repr(self._awaitable)


def qualname_of(awaitable: object) -> str:
    """Qualified name of the coroutine, or of the type of what is awaited: bounded, unlike "Task-17"."""
    get_coro = getattr(awaitable, "get_coro", None)
    if get_coro is not None:
        awaitable = get_coro()
    name = getattr(awaitable, "__qualname__", None)
    return name if isinstance(name, str) else type(awaitable).__qualname__


def _stepper(awaitable: Any) -> Any:
    """What has `send` and `throw` for an awaitable. Raises TypeError for what cannot be awaited."""
    if isinstance(awaitable, Coroutine | Generator):
        return awaitable
    try:
        iterator = type(awaitable).__await__(awaitable)
    except AttributeError:
        kind = type(awaitable).__qualname__
        raise TypeError(f"instrument() takes a coroutine function or an awaitable, not {kind}: {awaitable!r:.100}") from None
    return iterator if hasattr(iterator, "send") and hasattr(iterator, "throw") else _iterate(iterator)


def _iterator(inner: Any) -> Any:
    return inner.__await__() if hasattr(inner, "__await__") else inner


def _closing(inner: Any) -> Callable[[BaseException], Any]:
    def close(error: BaseException) -> Any:
        getattr(inner, "close", bool)()
        raise error

    return close


def _iterate(iterator: Any) -> Generator[Any, Any, Any]:
    return (yield from iterator)


def _take_off_one(error: BaseException) -> None:
    """Take this module's frame, through which an exception passes, off its traceback."""
    tb = error.__traceback__
    if tb is not None:
        error.__traceback__ = tb.tb_next


def _drive(inner: Any, span: Span, steps: Steps) -> Generator[Any, Any, Any]:
    """Step `inner`, and keep the books of the spans that are open in it.

    It is one long function of plain statements because it runs at each step of each task.
    """
    steps.begun = True
    ident = get_ident()
    around = stepping.get(ident)
    if around is not None and not around.started:
        around = None
    if steps.thrown_first is None and around is not None and not steps.own_task:
        # A driver steps this task already: it keeps the books of this span too.
        try:
            with span:
                return (yield from _iterator(inner))
        except BaseException as error:
            _take_off_one(error)
            raise

    steps.started = 1
    stepping[ident] = steps
    audience = enter_spawned(span, ident) if span.number else span.__enter__()._audience
    if audience is None:
        steps.started = 0
        if around is not None:
            stepping[ident] = around
        try:
            if steps.thrown_first is not None:
                inner.throw(steps.thrown_first)
            return (yield from _iterator(inner))
        except BaseException as error:
            _take_off_one(error)
            raise
        finally:
            span.__exit__(None, None, None)

    clock, tally, key = audience.clock, span.tally, steps.key
    assert tally is not None
    send, waker = inner.send, None
    step, arg = (send, None) if steps.thrown_first is None else (inner.throw, steps.thrown_first)
    steps.thrown_first = None
    steps.started = tally.part_from
    self_woken = False
    error: BaseException | None = None
    try:
        while True:
            awaited = step(arg)

            t = clock.monotonic_ns()
            if open_of.get(key) is span:
                part = t - tally.part_from
                tally.busy += part
                if part > tally.max_poll:
                    tally.max_poll = part
                    if part > FIRST_BOUND:
                        tally.slow_polls = count_slow(tally.slow_polls, part)
                elif part > FIRST_BOUND:
                    tally.slow_polls = count_slow(tally.slow_polls, part)
                tally.part_from = t
            else:
                suspend_all(key, t)
            steps.started = 0
            if around is not None:
                # An eager task takes its first step inside a step of its parent, which now goes on.
                stepping[ident] = around
                around = None
            if tally.folded:
                tally.folded = False
                audience.begun(Stepped(span))
            if awaited is None:
                # A bare yield: the task has itself called again at once.
                self_woken = True
                steps.woken_at = t
            else:
                self_woken = False
                steps.woken_at = 0
                if getattr(awaited, "_asyncio_future_blocking", False):
                    if waker is None:
                        hear(awaited.get_loop())
                        waker = Waker(steps, clock, trace_wake)
                    awaited.add_done_callback(waker, context=EMPTY_CONTEXT)
            if steps.traced:
                trace_suspend(key, awaited, inner, t)

            try:
                arg = yield awaited
                step = send
            except BaseException as thrown:
                _take_off_one(thrown)
                arg, step = thrown, _closing(inner) if isinstance(thrown, GeneratorExit) else inner.throw
                if waker is not None and not steps.woken_at and not self_woken:
                    # Thrown into by somebody else than the loop, while the future is still to come.
                    awaited.remove_done_callback(waker)

            steps.started = t = clock.monotonic_ns()
            stepping[ident] = steps
            woken = steps.woken_at
            if open_of.get(key) is span:
                tally.polls += 1
                tally.part_from = t
                if woken:
                    tally.wakes += 1
                    wait = t - woken
                    tally.scheduled += wait
                    if wait > FIRST_BOUND:
                        tally.slow_waits = count_slow(tally.slow_waits, wait)
                    if self_woken:
                        tally.self_wakes += 1
            else:
                resume_all(key, t, woken, self_woken)
            if steps.traced:
                trace_resume(key, t)
    except StopIteration as stop:
        return stop.value
    except BaseException as passing:
        _take_off_one(passing)
        error = passing
        raise
    finally:
        arg = thrown = None
        try:
            span.__exit__(None, error, None)
        finally:
            # Nothing of the exception may stay in this frame, or the two would keep each other alive.
            error = None
            steps.started = 0
            if around is not None:
                stepping[ident] = around
