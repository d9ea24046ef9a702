"""Seeing each step: of one coroutine (`instrument`), of every task of a loop (`install`), or of a program (`run`)."""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from asyncio import tasks
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from types import CodeType, CoroutineType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar, overload

from .detect import loop as heartbeat
from .detect.sync import install_sync
from .diagnostics import warn_once
from .driven import DrivenSpan
from .driver import WRAPPED, Driver, drive, qualname_of, take_off_one, wrapped_name
from .in_front import forget_our_line, mark, own_method, take_off
from .routing import delivering, route_of
from .spans import LOGGER
from .wakes import hear, unhear

__all__ = ["Installed", "install", "instrument", "run"]

_route: Final = route_of(LOGGER)

_P = ParamSpec("_P")
_T = TypeVar("_T")


@overload
def instrument(
    target: Callable[_P, Coroutine[Any, Any, _T]], /, *, logger: Any = ...
) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
@overload
def instrument(
    target: Awaitable[_T], /, *, name: str | None = ..., logger: Any = ..., fields: Mapping[str, Any] | None = ...
) -> Coroutine[Any, Any, _T]: ...
@overload
def instrument(
    *, name: str | None = ..., skip: Iterable[str] = ..., fields: Mapping[str, Any] | None = ..., logger: Any = ...
) -> Callable[[Callable[_P, Coroutine[Any, Any, _T]]], Callable[_P, Coroutine[Any, Any, _T]]]: ...
def instrument(
    target: Any = None,
    /,
    *,
    name: str | None = None,
    skip: Iterable[str] = (),
    fields: Mapping[str, Any] | None = None,
    logger: Any = None,
) -> Any:
    """One span for each call of a coroutine function, or for one awaitable, with every step seen.

    As a decorator, bare or with arguments, the call's arguments become fields, but for `self`, `cls` and those named
    in `skip`. Of an awaitable (a coroutine, a future, a task, anything with `__await__`) it makes a coroutine.

    name: default the qualified name of the coroutine. fields: more fields. logger: as of `span`.
    Raises TypeError for what is neither a coroutine function nor an awaitable, for a name in `skip` that the function
    has no parameter of, and for options of the wrong type.
    """
    skipped, more = check_options("instrument", name, skip, fields)
    if target is None:
        return lambda function: _instrumented(function, name, skipped, more, logger)
    if inspect.iscoroutinefunction(target) or isinstance(target, staticmethod | classmethod):
        return _instrumented(target, name, skipped, more, logger)
    if isinstance(target, Driver):
        return target
    qualname = qualname_of(target)
    return drive(target, DrivenSpan.make(name or qualname, qualname, _route_to(logger), more))


def check_options(
    of: str, name: object, skip: Iterable[str], fields: Mapping[str, Any] | None
) -> tuple[frozenset[str], dict[str, Any]]:
    """The names to `skip`, and `fields`, of a decorator called `of`. Raises TypeError for the wrong type of one."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name={name!r} is no text; write @{of}(name='checkout')")
    # One name by itself is not the letters that it is made of.
    names = (skip,) if isinstance(skip, str) else tuple(skip) if isinstance(skip, Iterable) else (skip,)
    if not all(isinstance(one, str) for one in names):
        raise TypeError(f"skip={skip!r} are no names of parameters; write @{of}(skip={{'body'}})")
    if fields is not None and not isinstance(fields, Mapping):
        raise TypeError(f"fields={fields!r} is no mapping; write @{of}(fields={{'service': 'shop'}})")
    return frozenset(names), dict(fields or {})


def check_skipped(function: Any, skip: frozenset[str]) -> None:
    """Raises TypeError where `function` takes no argument of a name in `skip`: what was meant would be shown."""
    parameters = inspect.signature(function).parameters.values()
    unknown = sorted(skip.difference(parameter.name for parameter in parameters))
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        has = ", ".join(parameter.name for parameter in parameters) or "none"
        raise TypeError(f"skip={unknown[0]!r}: {qualname_of(function)} has no parameter of that name; it has {has}")


def _instrumented(function: Any, name: str | None, skip: frozenset[str], fields: dict[str, Any], logger: Any) -> Any:
    if isinstance(function, staticmethod | classmethod):
        return type(function)(_instrumented(function.__func__, name, skip, fields, logger))
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"@instrument is for coroutine functions; for {function!r} write @span('name')")
    named: Any = function
    while isinstance(named, functools.partial):
        named = named.func
    qualname = qualname_of(named)
    span_name = name or qualname
    check_skipped(function, skip)
    arguments = arguments_of(function, skip)
    route = _route_to(logger)

    @functools.wraps(function)
    async def instrumented(*args: Any, **kwargs: Any) -> Any:
        try:
            span = DrivenSpan.make(span_name, qualname, route, {**arguments(args, kwargs), **fields})
            return await drive(function(*args, **kwargs), span)
        except BaseException as error:
            tb = error.__traceback__
            error.__traceback__ = tb and tb.tb_next
            raise

    return instrumented


def _route_to(logger: Any) -> Any:
    return _route if logger is None else route_of(logger)


def arguments_of(function: Any, skip: frozenset[str]) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """From a call's arguments to the fields that they make. (`Signature.bind` would take longer than the span.)"""
    parameters = list(inspect.signature(function).parameters.values())
    kinds = inspect.Parameter
    positional = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is kinds.VAR_POSITIONAL), None)
    defaults = {p.name: p.default for p in parameters if p.default is not kinds.empty and p.name not in skip}
    skipped = skip | (set(positional[:1]) & {"self", "cls"})

    def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        found = {**defaults, **dict(zip(positional, args, strict=False)), **kwargs}
        if rest is not None and len(args) > len(positional):
            found[rest] = args[len(positional) :]
        for key in skipped:
            found.pop(key, None)
        return found

    return arguments


async def _nothing() -> None: ...


# Every function that is instrumented has the code of the same inner function.
_OWN_CODE: Final[CodeType] = _instrumented(_nothing, "", frozenset(), {}, None).__code__


class Installed:
    """What `install` returns: call it, or leave its `with` block, to undo. Tasks under way keep their drivers."""

    # Not by a task factory: the loop keeps the one that the application has set or sets later, and Python 3.13.0 names
    # every task of a factory "None".

    def __init__(self, loop: asyncio.AbstractEventLoop, sync: bool = False) -> None:
        self._undo_sync = install_sync() if sync else None
        self._loop = loop
        self._ours: Any = None
        if not hasattr(own_method(loop, "create_task"), "_stop_driving"):
            self._ours = _driving(loop)
            loop.create_task = self._ours  # type: ignore[method-assign]
            hear(loop)
            heartbeat.start(loop)

    def undo_sync(self) -> None:
        """Undo what concerns primitives, which are not of one loop alone."""
        undo, self._undo_sync = self._undo_sync, None
        if undo is not None:
            undo()

    def __call__(self) -> None:
        self.undo_sync()
        ours = self._ours
        if ours is None:
            return
        self._ours = None
        # Somebody may have put their own over ours since: then it stays, and only hands on.
        ours._stop_driving()
        take_off(self._loop, "create_task", ours)
        unhear(self._loop)
        heartbeat.stop(self._loop)

    def __enter__(self) -> Installed:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self()


def _driving(loop: asyncio.AbstractEventLoop) -> Any:
    """What takes the place of a loop's `create_task`."""
    # A function, because an object that can be called takes longer to call. The reference is weak, because the loop
    # holds this.
    cls: Any = type(loop)
    loop_ref: Any = weakref.ref(loop)
    before = own_method(loop, "create_task")
    plain = before is None and cls.create_task is asyncio.BaseEventLoop.create_task
    drives = True

    def create_task(coro: Any, **kwargs: Any) -> Any:
        if drives:
            try:
                coro = _driven(coro, kwargs.get("context") if kwargs else None)
            except Exception:
                warn_once(
                    "install", type(coro).__qualname__, "a task could not be driven, and runs as it is", exc_info=True
                )
        loop = loop_ref()
        try:
            if plain and type(coro) is Driver and loop._task_factory is None and not (loop._debug or loop._closed):
                # What asyncio's own `create_task` comes to then: a second Python call would be a fifth of making a
                # task.
                return tasks.Task(coro, loop=loop, **kwargs)
            task = cls.create_task(loop, coro, **kwargs) if before is None else before(coro, **kwargs)
        except BaseException as error:
            if type(coro) is Driver:
                coro.span.own_task = False  # no task came of it
            take_off_one(error)
            raise
        forget_our_line(task, __file__)
        return task

    def stop_driving() -> None:
        nonlocal drives
        drives = False

    create_task._stop_driving = stop_driving  # type: ignore[attr-defined]
    return mark(create_task, before)


def _driven(coro: Any, context: Any) -> Any:
    """What the task is to be made of: a driver with a span around `coro`, or `coro` itself."""
    if type(coro) is CoroutineType:
        if coro.cr_code is _OWN_CODE:
            return coro  # instrumented by itself
        name = coro.__qualname__
        if name == WRAPPED:
            name = wrapped_name(coro)
    elif type(coro) is Driver:
        if not coro.span.number:
            audience = coro.span._route.audience()
            if audience is not None:
                coro.span.spawn(audience, context)
        return coro
    elif asyncio.iscoroutine(coro):
        name = qualname_of(coro)
    else:
        return coro  # nothing that a task can be made of, which is for asyncio to say
    audience = _route.audience()
    if audience is None or (audience.receivers and delivering.now):
        return coro
    if audience is not heartbeat.known:
        heartbeat.meet(audience)
    span = DrivenSpan.make(name, name, _route)
    span.spawn(audience, context)
    return drive(coro, span)


def install(loop: asyncio.AbstractEventLoop | None = None, *, sync: bool = False) -> Installed:
    """Give every task that the loop makes from now on a span, named by its coroutine, with every step seen.

    loop: default the running one. Returns what undoes it. Raises RuntimeError without a loop.
    sync: have asyncio's locks, semaphores, conditions, events, barriers and queues, and anyio's locks and semaphores,
    report who waits for them and who holds them, in all of the process.
    A task factory, there already or set later, goes on making the tasks. A second time on one loop does nothing.
    """
    if loop is None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "install() needs a running event loop; call it in a coroutine, or write install(loop)"
            ) from None
    elif not callable(getattr(loop, "create_task", None)):
        raise TypeError(f"loop={loop!r:.100} is not an event loop; call install() in a coroutine, without one")
    return Installed(loop, sync)


def run(
    main: Coroutine[Any, Any, _T],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    sync: bool = False,
) -> _T:
    """`asyncio.run` with `install(sync=sync)` from the first task on. Raises what `asyncio.run` raises."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("run() cannot be called from a running event loop; write `await main()` or install()")
    with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
        installed = install(runner.get_loop(), sync=sync)
        try:
            return runner.run(main)
        finally:
            installed.undo_sync()
