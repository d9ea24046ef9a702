"""`@span("name")`: one fresh span for each call of a function of any kind.

What is decorated stays of its kind (`inspect.iscoroutinefunction` and its like say so), and the frame that is put in
between is taken off the traceback of each exception that passes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import Token
from typing import Any, ParamSpec, TypeVar, cast

from .spans import Span, current

__all__ = ["decorate"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def decorate(span: Span, function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wrap a function, coroutine function, generator function or async generator function; of a class, its `__init__`.

    Raises TypeError for what cannot be called.
    """
    decorated: Any
    kind: Any = function
    while isinstance(kind, functools.partial):
        kind = kind.func
    if isinstance(function, staticmethod | classmethod):
        return type(function)(decorate(span, function.__func__))
    if not callable(function):
        raise TypeError(
            f"@span({span.name!r}) on {function!r:.100}, which is not callable; write it directly above the `def`, "
            "and other decorators, such as @property, above it"
        )
    if isinstance(kind, type):
        return cast(Callable[_P, _R], _class(span, function))
    if not inspect.isroutine(kind):
        # An object that can be called: what its calls give is said by its class.
        kind = type(kind).__call__
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(kind):
        decorated = _coroutine_function(span, function)
    elif inspect.isasyncgenfunction(kind):
        decorated = _async_generator_function(span, function)
    elif inspect.isgeneratorfunction(kind):
        decorated = _generator_function(span, function)
    else:
        decorated = _function(span, function)
    return cast(Callable[_P, _R], functools.wraps(function)(decorated))


def _take_off_one(error: BaseException) -> None:
    """Take the wrapper's frame, the outermost so far, off the traceback."""
    tb = error.__traceback__
    if tb is not None:
        error.__traceback__ = tb.tb_next


def _function(span: Span, function: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with span.again():
                return function(*args, **kwargs)
        except BaseException as error:
            _take_off_one(error)
            raise

    return wrapper


def _class(span: Span, cls: Any) -> Any:
    """The class itself, so that it can still be inherited from and asked about: a call makes an object of it."""
    init = cls.__init__
    if init is object.__init__:
        # It takes no arguments of those that `__new__` may take.
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            pass

    cls.__init__ = functools.wraps(cls.__init__)(_function(span, init))
    return cls


def _coroutine_function(span: Span, function: Any) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with span.again():
                return await function(*args, **kwargs)
        except BaseException as error:
            _take_off_one(error)
            raise

    return wrapper


class _Inside:
    """The span of a generator, current while the generator's body runs and at no other time.

    A generator runs in the context of whoever resumes it, and so its callers would see its spans between two yields.
    """

    __slots__ = ("_at_yield", "_before", "closing", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        #: What was current in the body when it yielded: the span, or one that was begun in it.
        self._at_yield: Span | None = None
        self._before: Token[Span | None] | None = None
        #: Whether the body has been asked to close, which it may obey without raising anything.
        self.closing = False

    def __enter__(self) -> None:
        if self.span.number:
            self._before = current.set(self._at_yield)
        else:
            self._before = current.set(current.get())
            self.span.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if isinstance(error, StopIteration | StopAsyncIteration):
            self.span.__exit__(None, GeneratorExit() if self.closing else None, None)
        elif error is not None:
            self.span.__exit__(type(error), error, None)
        inside = current.get()
        before = self._before
        self._before = None
        assert before is not None
        try:
            current.reset(before)
        except ValueError:
            # An async generator was waiting for something when it was closed from another context, which has nothing
            # to be put right.
            return
        self._at_yield = inside


def _generator_function(span: Span, function: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        inside = _Inside(span.again())
        try:
            generator = function(*args, **kwargs)
            resume, value = generator.send, None
            while True:
                try:
                    with inside:
                        item = resume(value)
                except StopIteration as stop:
                    return stop.value
                value = None
                try:
                    value = yield item
                    resume = generator.send
                except BaseException as thrown:
                    _take_off_one(thrown)
                    inside.closing = isinstance(thrown, GeneratorExit)
                    resume, value = generator.throw, thrown
        except BaseException as error:
            _take_off_one(error)
            raise

    return wrapper


def _async_generator_function(span: Span, function: Any) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        inside = _Inside(span.again())
        try:
            generator = function(*args, **kwargs)
            resume, value = generator.asend, None
            while True:
                try:
                    with inside:
                        item = await resume(value)
                except StopAsyncIteration:
                    return
                value = None
                try:
                    value = yield item
                    resume = generator.asend
                except BaseException as thrown:
                    _take_off_one(thrown)
                    inside.closing = isinstance(thrown, GeneratorExit)
                    resume, value = generator.athrow, thrown
        except BaseException as error:
            _take_off_one(error)
            raise

    return wrapper
