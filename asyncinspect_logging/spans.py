"""Spans: a piece of work with a name, a beginning and an end, current in a context variable while it lasts.

A span knows the logging path that hears of it, and nothing of what stands behind that.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import weakref
from _thread import get_ident
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from . import process
from .diagnostics import warn_once
from .fields import FieldPolicy, error_of, text_of
from .frames import AVAILABLE, FrameTally, held, hold, holders, let_go, passed_through
from .notices import Misuse
from .opened import asyncio_task, ended_for_their_owner, open_of, other_task
from .records import SpanRecord
from .routing import DEFAULT_POLICY, Audience, Route, delivering, route_of
from .steps import Tally, end_part, stepping, unpack
from .traceparent import SAMPLED, SpanId, format_traceparent, parse_parent

__all__ = ["INHERIT", "LOGGER", "REMOTE", "Span", "annotate", "current", "current_span", "span"]

if TYPE_CHECKING:
    from .driven import DrivenSpan

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: The span logger: its handlers, and those above it, hear of the spans that name no logger of their own.
LOGGER: Final = logging.getLogger("asyncinspect")

current: contextvars.ContextVar[Span | None] = contextvars.ContextVar("asyncinspect_span", default=None)
_default_route: Final = route_of(LOGGER)
_weak = weakref.ref
_new: Callable[[type[Span]], Span] = object.__new__
_modules = sys.modules
_frame = sys._getframe
_running_loop = asyncio._get_running_loop

_current_task = asyncio.current_task
_OLD: Final = sys.version_info < (3, 12)

_NO_LINKS: Final = ()
_NO_ROOM: Final = (RecursionError, MemoryError)


class _Outside:
    """Who knows of the spans of another library (`bridge`), and who wants to know more of failures than records say."""

    __slots__ = ("failed", "parent")

    def __init__(self) -> None:
        #: Given the span that is current, and the context to look in (None: this one), the trace and number of the
        #: parent if that is a span of the other library; None where nobody looks.
        self.parent: Callable[[Span | None, contextvars.Context | None], tuple[int | str, int] | None] | None = None
        #: Given a span that fails, and the exception.
        self.failed: Callable[[Span, BaseException, FieldPolicy], None] | None = None


outside: Final = _Outside()


class _Inherit:
    """The parent is the span that is current."""

    def __repr__(self) -> str:
        return "<the current span>"


INHERIT: Final = _Inherit()


class _Remote:
    """The parent came with a request, and was read from its headers."""

    def __repr__(self) -> str:
        return "<a span elsewhere>"


REMOTE: Final = _Remote()


class Span:
    """One task: from enter to exit, made by `span`.

    Entering and leaving raise nothing and change nothing for the code inside, but for `current_span()`.
    """

    name: str
    fields: dict[str, Any]
    links: tuple[str, ...]
    number: int
    #: Whether a listener holds the span as live, and so has to be told of its end.
    listed: bool
    trace: int | str
    parent_number: int
    thread: int
    entered_at: int
    exited_at: int
    outcome: str | None
    error: Mapping[str, Any]
    tally: Tally | None
    steps: DrivenSpan | FrameTally | None
    _audience: Audience | None
    _below: Span | None
    _key: int
    _owner: weakref.ref[Any] | None
    _parent: Any
    _route: Route
    _token: contextvars.Token[Span | None] | None
    _frame: int
    _code: CodeType
    _line: int
    _parent_closed: bool
    _spawned_at: int
    _task_name: str | None

    # No defaults on the class and no dict: every slot that is not needed before enter is set there, because setting
    # a slot is what most of a span's cost is made of.
    __slots__ = (
        "__weakref__",
        "_audience",
        "_below",
        "_code",
        "_frame",
        "_key",
        "_line",
        "_owner",
        "_parent",
        "_parent_closed",
        "_route",
        "_spawned_at",
        "_task_name",
        "_token",
        "entered_at",
        "error",
        "exited_at",
        "fields",
        "links",
        "listed",
        "name",
        "number",
        "outcome",
        "parent_number",
        "steps",
        "tally",
        "thread",
        "trace",
    )

    def __init__(self) -> None:
        raise TypeError("a Span is made by span(); write span('name')")

    # -- enter and exit: the hot path -----------------------------------------------------------------------------

    def __enter__(self) -> Span:
        if self.number:
            self._misused("entered twice")
            return self
        around = current.get()
        try:
            self._audience = audience = self._route.audience()
            if audience is None or (audience.receivers and delivering.now):
                # Nobody listens: be current, and cost as little as that.
                self._audience = None
                self.number = -1
                self.outcome = "unheard"
                self._below = around
                self._token = current.set(self)
                return self
            self.thread = ident = get_ident()
            may_hold: int = False
            steps = stepping.get(ident)
            self.entered_at = t = audience.clock.monotonic_ns()
            if steps is not None and steps.started:
                # Inside a step of a driver: the span is the driver's, and which task that is need not be asked.
                self._key = key = steps._key
                self._owner = None
                self.tally = Tally(t)
                self.steps = steps
            else:
                self.tally = self.steps = None
                if _OLD:
                    task = asyncio_task(ident)
                    if task is None and "trio" in _modules and _running_loop() is None:
                        task = other_task()
                else:
                    loop = _running_loop()
                    task = _current_task(loop) if loop is not None else other_task() if "trio" in _modules else None
                if task is None:
                    self._key = key = -ident
                    self._owner = None
                else:
                    self._key = key = id(task)
                    self._owner = _weak(task)
                    if AVAILABLE:
                        frame = _frame(1)
                        may_hold = holders.get(id(frame.f_code), True)
            self._below = below = open_of.get(key)
            self.listed = False
            self._frame = 0
            self.number = number = process.new_number()
            if around is below and self._parent is INHERIT and outside.parent is None:
                if around is None:
                    self.parent_number = 0
                    self.trace = number
                else:
                    self.parent_number = around.number
                    self.trace = around.trace
            else:
                self._find_parent(around)
            if self.fields:
                self.fields = audience.policy.apply(self.fields)
            open_of[key] = self
            if may_hold:
                if may_hold is True:
                    # Code that is met for the first time.
                    self._frame = hold(self, frame)
                else:
                    self._frame = held_in = id(frame)
                    held[held_in] = self
            audience.announce(self)
            if audience.receivers:
                self._introduce(audience)
            self._token = current.set(self)
            return self
        except BaseException as trouble:
            # Interrupted, out of stack, or something of the application's that was asked has raised. Plain statements,
            # since there may be no stack for a call.
            begun = self.number > 0 and open_of.get(self._key) is self
            current.set(around)
            if not isinstance(trouble, Exception):
                if begun:
                    self._token = current.set(self)
                    self.__exit__(type(trouble), trouble, None)
                raise
            if not begun:
                self._audience = None
                self.number = -1
                self.outcome = "unheard"
                self._below = around
            self._token = current.set(self)
            if trouble.__class__ not in _NO_ROOM:
                warn_once("enter", type(trouble).__qualname__, "span %r is not heard: %r", self.name, trouble)
            return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._token is None:
            self._misused("exited twice" if self.number else "exited without being entered")
            return
        audience = self._audience
        if audience is not None:
            try:
                t = audience.clock.monotonic_ns()
                key = self._key
                if exc is None and self.tally is None and not audience.receivers and open_of.get(key) is self:
                    # What `_end` comes to for most spans.
                    self.exited_at = t if t > self.entered_at else self.entered_at
                    below = self._below
                    if below is None:
                        del open_of[key]
                        if self._frame:
                            held.pop(self._frame, None)
                    else:
                        open_of[key] = below
                        if self._frame:
                            let_go(self)
                    self.outcome = "completed"
                    if self.listed:
                        audience.announce(self)
                    if not self.number % 61:
                        audience.settle()
                else:
                    self._end(audience, t, exc)
            except BaseException as trouble:
                # See `__enter__`. The span ends all the same, told without what there may be no stack to find out.
                if self.outcome is None:
                    if getattr(self, "exited_at", 0) < self.entered_at:
                        self.exited_at = self.entered_at
                    if self._frame:
                        held.pop(self._frame, None)
                    above = open_of.get(self._key)
                    if above is self:
                        if self._below is None:
                            del open_of[self._key]
                        else:
                            open_of[self._key] = self._below
                    while above is not None:
                        if above._below is self:
                            above._below = self._below
                        above = above._below
                    self.error = {"type": type(exc).__qualname__, "message": ""}
                    cancelled = isinstance(exc, asyncio.CancelledError)
                    self.outcome = "completed" if exc is None else "cancelled" if cancelled else "failed"
                    if self.listed:
                        audience.announce(self)
                if not isinstance(trouble, Exception):
                    self._leave()
                    raise
                if trouble.__class__ not in _NO_ROOM:
                    warn_once(
                        "exit", type(trouble).__qualname__, "the end of span %r is half told: %r", self.name, trouble
                    )
        token = self._token
        self._token = None
        try:
            current.reset(token)
        except (ValueError, RuntimeError):
            _leave_context(self)

    def _leave(self) -> None:
        """Make current again what was before."""
        token = self._token
        self._token = None
        try:
            current.reset(token)  # type: ignore[arg-type]
        except (ValueError, RuntimeError):
            _leave_context(self)

    def _end(self, audience: Audience, t: int, exc: BaseException | None, outcome: str = "completed") -> None:
        if exc is not None:
            outcome = self._explain(exc)
        self.exited_at = t if t > self.entered_at else self.entered_at
        tally = self.tally
        if tally is not None:
            if self.steps.started:  # type: ignore[union-attr]
                end_part(tally, t)
            elif tally.__class__ is FrameTally and (exc is not None or outcome == "completed"):
                tally.polls += 1  # begun by an exception; see `frames`
        if self._frame:
            let_go(self)
        key = self._key
        if open_of.get(key) is self:
            below = self._below
            if below is None:
                del open_of[key]
            else:
                open_of[key] = below
        else:
            self._unlink()
        self.outcome = outcome
        if self.listed:
            audience.announce(self)
        if audience.receivers:
            record = SpanRecord(self, "exit", self.exited_at, audience.logger_name)
            if isinstance(exc, GeneratorExit):
                # Closed, or collected: then this is a finaliser.
                audience.receive_later(record)
            else:
                audience.receive(record)
        if not self.number % 61:
            audience.settle()

    # -- the rest ---------------------------------------------------------------------------------------------------

    def _find_parent(self, around: Span | None, context: contextvars.Context | None = None) -> None:
        """The cases that are not plain nesting within an owner: an explicit parent, a task spawned inside a span, a
        current span that is closed or unheard, and spans of another library around. `context`: where `around` is
        current, if not here.
        """
        self.parent_number = 0
        self.trace = self.number
        parent = self._parent
        if parent is None:
            return
        if parent is INHERIT:
            parent = around
            if outside.parent is not None:
                found = outside.parent(around, context)
                if found is not None:
                    self.trace, self.parent_number = found
                    return
            # What a broken-off async generator left behind in its caller's context is no parent: it was this owner's
            # and is over. The closed span of another owner is one: it is what this task was spawned in.
            while parent is not None and (
                parent.number < 0 or (parent.outcome not in (None, "unheard") and parent._key == self._key)
            ):
                parent = parent._below
        elif not isinstance(parent, Span):
            found = _from_elsewhere(self)
            if found is not None:
                self.trace, self.parent_number = found
            return
        if parent is not None and parent.number:
            if parent.number < 0:
                parent._number_now()
            self.parent_number = parent.number
            self.trace = parent.trace
            self._parent_closed = parent.outcome is not None and parent.outcome != "unheard"

    def _number_now(self) -> None:
        """Give an unheard span, and those around it first, the ids that somebody asks for."""
        unnumbered = [self]
        while True:
            span = unnumbered[-1]
            around = span._below if span._parent is INHERIT else span._parent
            if not isinstance(around, Span) or around.number >= 0 or around in unnumbered:
                break
            unnumbered.append(around)
        for span in reversed(unnumbered):
            around = span._below if span._parent is INHERIT else span._parent
            span.number = span.trace = process.new_number()
            span.parent_number = 0
            if isinstance(around, Span):
                if around.number > 0:
                    span.parent_number, span.trace = around.number, around.trace
            elif around is not None:
                found = _from_elsewhere(span)
                if found is not None:
                    span.trace, span.parent_number = found

    def _introduce(self, audience: Audience, kind: str = "enter") -> None:
        """The first record, and with it the decision who hears of the span from now on."""
        frame = sys._getframe(1)
        # A task is spawned where the application says so, not where asyncio hands that on.
        passed: tuple[str, ...] = (_OWN, "asyncio.") if kind == "spawn" else (_OWN,)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(passed):
            frame = frame.f_back
        self._code = frame.f_code
        self._line = frame.f_lineno
        numbered = kind != "spawn" or bool(audience.steps)
        record = SpanRecord(self, kind, self.spawned_at, audience.logger_name, numbered=numbered)
        # What the log says, a view goes on saying when the task is gone.
        self._task_name = record.of_task
        self._audience = audience.narrowed(record)
        if self.steps is not None and self._audience.steps:
            self.steps.traced = True

    def _unlink(self) -> None:
        """Leave the owner's open spans from somewhere below the top: this span ends before one that began after it."""
        above = open_of.get(self._key)
        while above is not None:
            if above._below is self:
                above._below = self._below
                return
            above = above._below

    def _explain(self, exc: BaseException) -> str:
        """Keep what is to be known of the exception that leaves the span, and return the outcome that it means."""
        audience = self._audience
        policy = DEFAULT_POLICY if audience is None else audience.policy
        self.error = error_of(exc, policy)
        if isinstance(exc, GeneratorExit):
            return "abandoned"
        if is_cancellation(exc):
            return "cancelled"
        if outside.failed is not None:
            outside.failed(self, exc, policy)
        return "failed"

    def _misused(self, how: str) -> None:
        """A span is entered once and exited once. More than that is told and counted, and has no other effect."""
        aside = _tokens_aside.get(self)
        if how == "exited twice" and aside:
            # The exit that belongs to an enter too many.
            self._token = aside.pop()
            return
        if how == "exited twice" and self in ended_for_their_owner:
            ended_for_their_owner.discard(self)
            return
        warn_once("misuse", f"{how} {self.name}", "span %r was %s; a span object serves once", self.name, how)
        audience = self._audience if self.number else None
        if audience is not None:
            audience.announce(Misuse(self.name))
        if how == "entered twice":
            # The `with` that is inside must not close the one outside.
            _tokens_aside.setdefault(self, []).append(self._token)
            self._token = None

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, tb)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorate a function, coroutine function, generator or async generator function: one span a call."""
        from .decorate import decorate

        return decorate(self, function)

    def again(self) -> Span:
        """A fresh span like this one, for the next call of what it decorates."""
        fresh = _new(Span)
        fresh.name = self.name
        fresh.fields = dict(self.fields)
        fresh.outcome = None
        fresh.number = 0
        fresh._token = None
        fresh._parent = self._parent
        fresh.links = self.links
        fresh._route = self._route
        return fresh

    def record(self, /, **fields: Any) -> None:
        """Add to the span's fields, or replace them, while it is open."""
        if self.number == 0 or self.outcome is not None or self._audience is None:
            if self.outcome is None or self.outcome == "unheard":
                self.fields = {**self.fields, **fields}
            else:
                warn_once("late fields", self.name, "span %r is over: record(%s) is lost", self.name, ", ".join(fields))
            return
        audience = self._audience
        fields = audience.policy.apply(fields)
        self.fields = {**self.fields, **fields}
        if audience.receivers:
            self._emit(audience, "record", {"fields": fields})

    def _emit(self, audience: Audience, kind: str, more: Mapping[str, Any] | None = None, t: int = 0) -> None:
        audience.receive(SpanRecord(self, kind, t or audience.clock.monotonic_ns(), audience.logger_name, more))

    def traceparent(self) -> str:
        """The W3C traceparent header that makes work elsewhere a child of this span. Raises nothing."""
        trace_id = self.trace_id
        return format_traceparent(trace_id, self.id, getattr(getattr(self, "trace", None), "flags", SAMPLED))

    def tracestate(self) -> str:
        """The W3C tracestate header that goes with `traceparent()`: that of the request which began the trace, as it
        came in; "" for none.
        """
        return getattr(getattr(self, "trace", None), "state", "")

    # -- what the span says of itself -------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """16 hex digits, unique in the process. A span that was not entered yet gets its id on enter; before, "" ."""
        if self.number <= 0:
            if self.number == 0:
                return ""
            self._number_now()
        return process.span_id(self.number)

    @property
    def trace_id(self) -> str:
        """32 hex digits; "" before enter."""
        if self.number <= 0:
            if self.number == 0:
                return ""
            self._number_now()
        return process.trace_id(self.trace)

    @property
    def parent_id(self) -> str | None:
        """The parent's id, or None for a root."""
        return process.span_id(self.parent_number) if self.number > 0 and self.parent_number else None

    @property
    def is_open(self) -> bool:
        """Whether the span has been entered and not yet exited."""
        return self._token is not None or (self.number > 0 and self.outcome is None) or any(_tokens_aside.get(self, ()))

    @property
    def task_name(self) -> str | None:
        """Qualified name of the coroutine whose task owns the span; None outside a task, or once the task is gone."""
        if self.number <= 0 or self.outcome == "unheard":
            return None
        if self.steps is not None:
            return self.steps.coro_name
        task = None if self._owner is None else self._owner()
        if task is None:
            return getattr(self, "_task_name", None)
        coro = task.get_coro() if isinstance(task, asyncio.Task) else getattr(task, "coro", None)
        return getattr(coro, "__qualname__", None)

    @property
    def at(self) -> str | None:
        """`file:line` where the span was entered, where that is known."""
        code = self.code
        return None if code is None else f"{code.co_filename}:{self.line}"

    # Slots that most spans never set.

    @property
    def code(self) -> CodeType | None:
        return getattr(self, "_code", None)

    @property
    def line(self) -> int:
        return getattr(self, "_line", 0)

    @property
    def parent_closed(self) -> bool:
        """Whether the parent was over already when this span began."""
        return getattr(self, "_parent_closed", False)

    @property
    def spawned_at(self) -> int:
        """Monotonic time in ns: when the task was created, or the span entered where nobody saw that."""
        return getattr(self, "_spawned_at", 0) or getattr(self, "entered_at", 0)

    @property
    def clock(self) -> Any:
        """The clock that the span's times are from."""
        audience = self._audience if self.number else None
        return None if audience is None else audience.clock

    def tallies(self) -> dict[str, Any]:
        """The part of an exit record that closes the span's books; times in ns."""
        tally = self.tally
        found: dict[str, Any] = {"outcome": self.outcome}
        if self.outcome != "completed":
            found["error"] = getattr(self, "error", None)
        found["duration"] = self.exited_at - self.entered_at
        if tally is None:
            return {**found, "polls": 1, "busy": 0, "scheduled": 0, "max_poll": 0, "wakes": 0, "self_wakes": 0}
        for key in ("polls", "busy", "scheduled", "max_poll", "wakes", "self_wakes"):
            found[key] = getattr(tally, key)
        for key in ("slow_polls", "slow_waits"):
            packed = getattr(tally, key)
            if packed:
                found[key] = [[bucket, count] for bucket, count in enumerate(unpack(packed)) if count]
        return found

    def __repr__(self) -> str:
        state = self.outcome or ("open" if self.number else "not entered")
        return f"<Span {self.name!r} {self.id or '-'} {state}>"


passed_through.add(id(Span.__aenter__.__code__))

#: The tokens of spans that were entered more than once, until the exits that belong to the enters too many.
_tokens_aside: weakref.WeakKeyDictionary[Span, list[contextvars.Token[Span | None] | None]] = (
    weakref.WeakKeyDictionary()
)


def span(
    name: str,
    /,
    *,
    logger: Any = None,
    parent: Any = INHERIT,
    links: Iterable[Span | str] = _NO_LINKS,
    **fields: Any,
) -> Span:
    """A span, not entered yet. Use it as a (sync or async) context manager, or as a decorator.

    name: text; the metric label, so keep it to a bounded set and put what varies into fields.
    logger: a stdlib or structlog logger whose handlers or processors hear of the span. Default: "asyncinspect".
    parent: a Span, a traceparent header, the headers of a request (a mapping, or a list of names and values), or None
        for a new root; by default the span that is current.
    links: spans, or their ids or traceparent headers, that this one has to do with.
    fields: any further keywords, kept as the span's own data. Values are cut and secrets redacted on enter.

    Raises TypeError where the name is missing. Of anything else that cannot be used, a warning is logged.
    """
    # A function, because calling the class would build the fields twice: for the call, and again for `__init__`.
    self = _new(Span)
    if name.__class__ is not str:
        name = _name_of(name)
    if name not in _clean_names:
        name = DEFAULT_POLICY.name(name)
    self.name = name
    self.fields = fields
    self.outcome = None
    self.number = 0
    self._token = None
    self._parent = parent
    self.links = () if links is _NO_LINKS else _link_ids(links)
    self._route = _default_route if logger is None else route_of(logger)
    return self


#: Names that have no secret in them.
_clean_names: Final = DEFAULT_POLICY.clean

_OWN: Final = __name__.rpartition(".")[0]


def _from_elsewhere(span: Span) -> tuple[int | str, int] | None:
    """Trace and number of the parent that a request brought along. The headers are let go of, which may be large, and
    hold secrets.
    """
    parent, span._parent = span._parent, REMOTE
    try:
        return None if parent is REMOTE else parse_parent(parent)
    except Exception as error:
        warn_once(
            "bad parent",
            span.name,
            "span(%r, parent=<%s>) begins a trace (%r); give a span, a traceparent, or the headers of a request",
            span.name,
            type(parent).__qualname__,
            error,
        )
        return None


def _name_of(name: object) -> str:
    if callable(name):
        raise TypeError(
            f"span({name!r}): the name is missing; write @span('name'), or @instrument for a coroutine function"
        )
    try:
        return str.__str__(name if isinstance(name, str) else str(name))
    except Exception:
        return text_of(name, DEFAULT_POLICY.max_length)


def _link_ids(links: Iterable[Span | str]) -> tuple[str, ...]:
    try:
        given = (links,) if isinstance(links, Span | str) else tuple(links or ())
        return tuple(
            SpanId(link.id, link.trace_id)
            if isinstance(link, Span)
            else DEFAULT_POLICY.name(str(link), DEFAULT_POLICY.max_length)
            for link in given
        )
    except Exception as error:
        warn_once(
            "bad links",
            type(links).__qualname__,
            "span(links=<%s>): not spans or ids: %r",
            type(links).__qualname__,
            error,
        )
        return ()


def is_cancellation(exc: BaseException) -> bool:
    """Whether an exception is the cancellation of a task, of asyncio's or trio's."""
    if isinstance(exc, asyncio.CancelledError):
        return True
    trio = sys.modules.get("trio")
    return trio is not None and isinstance(exc, trio.Cancelled)


def _leave_context(span: Span) -> None:
    """A span is closed in another context than it was entered in (an async generator closed by somebody else): the
    context of the opener cannot be reached, and is put right when it next looks for a parent. If it is current here
    too, by a copy of the context, then what was current before it becomes so again.
    """
    if current.get() is span:
        below = span._below
        current.set(below if below is not None and below.is_open else None)


def current_span() -> Span | None:
    """The innermost open span of this context, or None."""
    found = current.get()
    while found is not None and not found.is_open:
        found = found._below if found.number else None
    return found


def annotate(message: str, /, **fields: Any) -> None:
    """Put a line on the timeline of the current span: a log record of level DEBUG on the span's logger, that every
    listener to the span gets whatever the levels. Without a current span that is heard, nothing happens.
    """
    inside = current_span()
    if inside is None or inside._audience is None:
        return
    audience = inside._audience
    logger = inside._route.logger
    message = audience.policy.text(message)
    record = logger.makeRecord(logger.name, logging.DEBUG, "", 0, message, (), None, extra=None)
    for key, text in (("span", inside.name), ("span_id", inside.id), ("trace_id", inside.trace_id)):
        # Most likely there already, with the mark by which the line counts once.
        record.__dict__.setdefault(key, text)
    for key, value in audience.policy.apply(fields).items():
        record.__dict__.setdefault(key, value)
    audience.annotate(record)
