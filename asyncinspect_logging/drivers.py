"""Seeing each step: of one coroutine (`instrument`), of every task of a loop (`install`), or of a program (`run`)."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from types import CodeType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar, overload

from .diagnostics import warn_once
from .driver import Driver, qualname_of
from .spans import Span
from .wakes import hear, unhear

__all__ = ["Installed", "install", "instrument", "run"]

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
    Raises TypeError for what is neither a coroutine function nor an awaitable.
    """
    if target is None:
        return lambda function: _instrumented(function, name, frozenset(skip), dict(fields or {}), logger)
    if inspect.iscoroutinefunction(target):
        return _instrumented(target, name, frozenset(skip), dict(fields or {}), logger)
    if isinstance(target, Driver):
        return target
    return Driver(target, Span(name or qualname_of(target), logger=logger, **dict(fields or {})))


def _instrumented(function: Any, name: str | None, skip: frozenset[str], fields: dict[str, Any], logger: Any) -> Any:
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"@instrument is for coroutine functions; for {function!r} write @span('name')")
    span_name = name or function.__qualname__
    arguments = _arguments_of(function, skip)

    @functools.wraps(function)
    async def instrumented(*args: Any, **kwargs: Any) -> Any:
        try:
            found = {**arguments(args, kwargs), **fields}
            span = Span(span_name, logger=logger)
            span.fields = found
            return await Driver(function(*args, **kwargs), span)
        except BaseException as error:
            tb = error.__traceback__
            error.__traceback__ = tb and tb.tb_next
            raise

    # `await` and `return` on one line of one function: every instrumented coroutine shares this code object.
    _own_code.add(instrumented.__code__)  # type: ignore[attr-defined]
    return instrumented


_own_code: Final[set[CodeType]] = set()


def _arguments_of(function: Any, skip: frozenset[str]) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """A function from a call's arguments to the fields that they make. `Signature.bind` would take longer than the span."""
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


class Installed:
    """What `install` returns: call it, or leave its `with` block, to undo. Tasks under way keep their drivers."""

    # Not by a task factory: the loop keeps the one that the application has set or sets later, and Python 3.13.0 names
    # every task of a factory "None".

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._on = not _is_ours(vars(loop).get("create_task"))
        if self._on:
            self._before = vars(loop).get("create_task")
            self._ours = _driving_create_task(loop)
            loop.create_task = self._ours  # type: ignore[method-assign]
            hear(loop)

    def __call__(self) -> None:
        if not self._on:
            return
        self._on = False
        self._ours._asyncinspect = False
        if vars(self._loop).get("create_task") is self._ours:
            if self._before is None:
                del self._loop.create_task
            else:
                self._loop.create_task = self._before  # type: ignore[method-assign]
        unhear(self._loop)

    def __enter__(self) -> Installed:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self()


def _is_ours(create_task: Any) -> bool:
    return getattr(create_task, "_asyncinspect", False)


def _driving_create_task(loop: asyncio.AbstractEventLoop) -> Any:
    plain = loop.create_task

    def create_task(coro: Any, **kwargs: Any) -> Any:
        # Somebody may have put their own `create_task` over this one since: it stays, and only hands on once undone.
        if create_task._asyncinspect:  # type: ignore[attr-defined]
            try:
                coro = _driven(coro, kwargs.get("context"))
            except Exception:
                warn_once("install", type(coro).__qualname__, "a task could not be driven, and runs as it is", exc_info=True)
        task = plain(coro, **kwargs)
        if getattr(task, "_source_traceback", None):
            # In debug mode a task knows where it was made: not here.
            del task._source_traceback[-1]
        return task

    create_task._asyncinspect = True  # type: ignore[attr-defined]
    return create_task


def _driven(coro: Any, context: Any) -> Any:
    """What the task is to be made of: a driver with a span around `coro`."""
    if type(coro) is Driver:
        if not coro.span.number:
            coro.spawned(context)
        return coro
    if not asyncio.iscoroutine(coro) or getattr(coro, "cr_code", None) in _own_code:
        # Nothing that a task can be made of, which is for asyncio to say; or instrumented by itself.
        return coro
    driver: Driver[Any] = Driver(coro, Span(qualname_of(coro)))
    driver.spawned(context)
    return driver


def install(loop: asyncio.AbstractEventLoop | None = None) -> Installed:
    """Give every task that the loop makes from now on a span, named by its coroutine, with every step seen.

    loop: default the running one. Returns what undoes it. Raises RuntimeError without a loop.
    A task factory, there already or set later, goes on making the tasks. On a loop where this is installed it does nothing.
    """
    if loop is None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("install() needs a running event loop; call it in a coroutine, or write install(loop)") from None
    return Installed(loop)


def run(
    main: Coroutine[Any, Any, _T],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> _T:
    """`asyncio.run` with `install()` from the first task on. Raises what that raises."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("run() cannot be called from a running event loop; write `await main()` or install()")
    with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
        install(runner.get_loop())
        return runner.run(main)
