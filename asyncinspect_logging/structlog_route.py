"""Who hears a span whose logger is one of structlog's.

The rules are those of stdlib loggers (see `routing`), with processors in the place of handlers. A processor with
`accepts_spans = True` hears of the span whatever the level: `AsyncInspectProcessor` directly, another one by being
called with the lifecycle event. As far as the level allows, the event goes through the whole chain besides, at level
debug. If the logger wraps a stdlib logger then the handlers on that one's path hear of the span too.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any, Final

from . import stamping
from .diagnostics import warn_once
from .fields import FieldPolicy
from .records import KEY, TRACE, SpanRecord, _message, payload_of_span
from .routing import DEFAULT_POLICY, Audience, Listener, Route, _listener, report, route_of
from .spans import LOGGER, current_span

__all__ = ["StructlogRoute", "Told", "add_tap", "remove_tap"]

_OWN: Final = __name__.rpartition(".")[0]
_MAX_PLANS: Final = 256


class Told(dict[str, Any]):
    """The payload of a record, with those who know of it already, told of the span at first hand."""

    __slots__ = ("listeners",)

    listeners: tuple[Listener, ...]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (dict(self),)


class StructlogRoute(Route):
    """The way from one structlog logger to the processors of its chain."""

    __slots__ = ("_given",)

    def __init__(self, given: Any) -> None:
        # Not Route.__init__: there is no path of loggers to keep. A line made by `annotate` is made by this logger.
        self.logger = LOGGER
        self._given = given

    def audience(self) -> Audience | None:
        """Who hears a span that begins now, or None."""
        try:
            return _audience(self._given)
        except Exception:
            kind = type(self._given).__qualname__
            warn_once("bad logger", kind, "a span's logger (%s) cannot be used; using the default", kind, exc_info=True)
            return route_of(LOGGER).audience()


def _audience(given: Any) -> Audience | None:
    bound = _bound(given)
    plan = _plan_of(bound)
    heard = None if plan.route is None else plan.route.audience()
    if plan.runs and plan.enabled(bound, logging.DEBUG):
        if plan.route is None:
            # What it wraps may be good for one event only: a PrintLogger writes to what sys.stdout was when made.
            bound = _bound(given, afresh=True)
        return plan.audience(heard, bound, runs=True)
    if plan.quiet_for is not heard:
        quiet = plan.audience(heard, bound, runs=False)
        if plan.asking:
            return quiet
        plan.quiet, plan.quiet_for = quiet, heard
    return plan.quiet


# -- from what was given as `logger=` to a bound logger --------------------------------------------------------------

#: What a lazy proxy was made into last and the configuration that it was made with, by the proxy's id.
_made: dict[int, tuple[weakref.ref[Any], dict[str, Any], Any]] = {}


def _bound(given: Any, *, afresh: bool = False) -> Any:
    """The logger itself: lazy proxies (`structlog.get_logger()`) make one for every event, unless told to cache it."""
    structlog: Any = sys.modules["structlog"]
    known = _made.get(id(given))
    if known is not None and not afresh and known[1] == structlog.get_config() and "bind" not in vars(given):
        return known[2]
    if isinstance(given, structlog.BoundLoggerBase):
        return given
    if hasattr(type(given), "sync_bl"):
        # structlog.stdlib.AsyncBoundLogger, around the one that does the work. (Lazy proxies have any attribute.)
        return given.sync_bl
    if "bind" in vars(given):
        # Cached by structlog itself.
        return _bound(given.bind())
    bound = _bound(_bind(given))
    if "bind" not in vars(given):
        key = id(given)
        # The list of processors is compared later, by what is in it.
        _made[key] = weakref.ref(given, lambda gone: _made.pop(key, None)), structlog.get_config(), bound
    return bound


def _bind(given: Any) -> Any:
    """`given.bind()`, as if called where the span is: structlog's factory for stdlib loggers names them by the module
    of the caller.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OWN):
        frame = frame.f_back
    return FunctionType(_call_bind.__code__, {"__name__": frame.f_globals.get("__name__"), "bind": given.bind})()


def _call_bind() -> Any:
    return bind()  # type: ignore[name-defined]  # noqa: F821 - a global of the function that `_bind` makes


# -- what a chain makes of spans -------------------------------------------------------------------------------------


class _Plan:
    """What is known of all loggers of one class, with the same processors, around the same wrapped logger."""

    def __init__(self, cls: type, processors: Iterable[Any], wrapped: Any) -> None:
        self._processors = processors
        self._then = list(processors)
        self._taps = _taps
        self._cls = cls
        self.wrapped = wrapped
        stdlib = wrapped.logger if isinstance(wrapped, logging.LoggerAdapter) else wrapped
        self.route = route_of(stdlib) if isinstance(stdlib, logging.Logger) else None
        self._asks = getattr(cls, "is_enabled_for", None) or getattr(cls, "isEnabledFor", None)
        self._silent = getattr(getattr(cls, "debug", None), "__name__", "") == "_nop"
        self.listening: list[Any] = []
        #: Processors that accept spans, and have to be called for it.
        self.asking: list[Any] = []
        listeners = []
        for processor in self._then:
            if getattr(processor, "accepts_spans", False):
                listener = _listener(processor)
                if listener is None:
                    self.asking.append(processor)
                else:
                    self.listening.append(processor)
                    listeners.append(listener)
        listeners += [listener for listener in map(_listener, _taps) if listener is not None]
        self.listeners = tuple(dict.fromkeys(listeners))
        #: Whether anybody could see an event in the chain.
        self.runs = not self._ends_unseen()
        # The audience where nothing runs, and the one of the wrapped logger that it goes with.
        self.quiet: Audience | None = None
        self.quiet_for: Any = ...

    def _ends_unseen(self) -> bool:
        """Whether lifecycle events are dropped before any processor that could do more with them than put things in."""
        for processor in self._then:
            if processor in self.listening and not getattr(processor, "pass_lifecycle", True):
                return True
            module = getattr(processor, "__module__", "")
            if not module.startswith("structlog.") or module == "structlog.testing":
                return False
        return False

    def holds(self) -> bool:
        return self._processors == self._then and self._taps is _taps

    def enabled(self, bound: Any, level: int) -> bool:
        """Whether the levels allow the logger an event of this level."""
        if self.route is not None:
            return self.route.logger.isEnabledFor(level)
        if level < logging.DEBUG:
            # structlog knows no such level.
            return False
        return bool(self._asks(bound, level)) if self._asks is not None else not self._silent

    def audience(self, heard: Audience | None, bound: Any, *, runs: bool) -> Audience | None:
        """`heard`: the audience of the stdlib logger that is wrapped."""
        listeners = list(self.listeners)
        accepting: list[logging.Handler] = [_Ear(processor, bound) for processor in self.listening]
        asked: list[logging.Handler] = [] if runs else [_Ear(processor, bound) for processor in self.asking]
        ordinary: list[logging.Handler] = []
        receivers, steps = list(asked), list(asked)
        if not runs:
            accepting.append(_Lines())
        policies: list[FieldPolicy] = [
            p.field_policy for p in (*self.listening, *self.asking, *self._taps) if hasattr(p, "field_policy")
        ]
        if heard is not None and self.route is not None:
            if not self.route.logger.filters:
                listeners += [x for x in map(_listener, heard.accepting) if x is not None and x not in listeners]
            accepting += heard.accepting
            accepts = {*heard.accepting}
            direct = [handler for handler in heard.receivers if _inside(handler) in accepts]
            ordinary = self.ordinary(heard)
            receivers += direct
            steps += [handler for handler in heard.steps if _inside(handler) in accepts]
            policies.append(heard.policy)
        if runs:
            chain = self.chain(bound, ordinary, tuple(listeners))
            receivers.append(chain)
            steps.append(chain)
        if not listeners and not receivers:
            return None
        policy = policies[0] if policies else DEFAULT_POLICY
        for other in policies[1:]:
            policy = policy.merge(other)
        if not self.enabled(bound, TRACE):
            steps = []
        name = LOGGER.name if self.route is None else self.route.logger.name
        return Audience(listeners, (*accepting, *asked), tuple(receivers), tuple(steps), policy, name)

    def ordinary(self, heard: Audience | None) -> list[logging.Handler]:
        """Those handlers of the wrapped logger that get what the chain makes of an event."""
        if heard is None:
            return []
        accepts = {*heard.accepting}
        return [handler for handler in heard.receivers if _inside(handler) not in accepts]

    def chain(self, bound: Any, ordinary: list[logging.Handler], listeners: tuple[Listener, ...]) -> _Chain:
        return _Chain(bound, self._then, ordinary, listeners, stdlib=self.route is not None)


_plans: dict[tuple[type, int, int], _Plan] = {}


def _plan_of(bound: Any) -> _Plan:
    processors, wrapped = bound._processors, bound._logger
    key = type(bound), id(processors), id(wrapped)
    plan = _plans.get(key)
    if plan is None or not plan.holds():
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        # It keeps both objects, so that their ids stay theirs.
        plan = _plans[key] = _Plan(type(bound), processors, wrapped)
    return plan


def _inside(handler: logging.Handler) -> logging.Handler:
    """The handler that accepts spans, or not, where it stands behind a logger's filters."""
    return getattr(handler, "_handler", handler)


# -- who receives records --------------------------------------------------------------------------------------------


class _Receiver(logging.Handler):
    """What an audience takes for a handler."""

    def __init__(self) -> None:
        # Not Handler.__init__: that would enter this one in logging's list of handlers to be flushed at exit.
        logging.Filterer.__init__(self)
        self.level = logging.NOTSET
        self.lock = None


class _Ear(_Receiver):
    """One processor that accepts spans, called without the rest of its chain."""

    def __init__(self, processor: Any, bound: Any) -> None:
        super().__init__()
        self._processor = processor
        self._bound = bound

    def emit(self, record: logging.LogRecord) -> None:
        structlog: Any = sys.modules["structlog"]
        text, fields = _event_of(record, ())
        event = self._bound._context.copy()
        event.update(**fields, event=text)
        try:
            self._processor(self._bound._logger, "debug", event)
        except structlog.DropEvent:
            pass
        finally:
            # No record of the logger's making comes of this.
            stamping.expect(None, None)


class _Lines(_Receiver):
    """The whole chain of the current span's logger, for the lines that `annotate` puts, where span events do not run
    through it. It is found when it is needed, since many spans of different loggers have this audience.
    """

    def emit(self, record: logging.LogRecord) -> None:
        span = current_span()
        route = None if span is None else span._route
        if isinstance(route, StructlogRoute):
            bound = _bound(route._given, afresh=True)
            plan = _plan_of(bound)
            if plan.enabled(bound, record.levelno):
                heard = None if plan.route is None else plan.route.audience()
                plan.chain(bound, plan.ordinary(heard), ()).emit(record)


class _Chain(_Receiver):
    """All processors of a logger and what it wraps, as they were when the span began. The level was asked then: it is
    not asked again, or a change of it would leave the span half told.
    """

    def __init__(
        self,
        bound: Any,
        processors: list[Any],
        ordinary: list[logging.Handler],
        listeners: tuple[Listener, ...],
        *,
        stdlib: bool,
    ) -> None:
        super().__init__()
        in_stdlib: Any = sys.modules.get("structlog.stdlib")
        level_filter = getattr(in_stdlib, "filter_by_level", None)
        processors = [processor for processor in processors if processor is not level_filter]
        self._bound = type(bound)(bound._logger, processors, bound._context)
        self._ordinary = ordinary
        self._listeners = listeners
        self._stdlib = stdlib

    def emit(self, record: logging.LogRecord) -> None:
        structlog: Any = sys.modules["structlog"]
        text, fields = _event_of(record, self._listeners)
        try:
            args, more = self._bound._process_event("debug", text, fields)
        except structlog.DropEvent:
            return
        if self._stdlib:
            self._hand_on(record, args, dict(more))
        else:
            self._bound._logger.debug(*args, **more)

    def _hand_on(self, record: logging.LogRecord, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        """What `logger.debug(*args, **more)` would do for the wrapped stdlib logger, less the question of its level,
        and for those handlers only that have not heard by themselves.
        """
        logger = self._bound._logger
        logger = getattr(logger, "logger", logger)
        text, *args_of_text = args or (more.pop("msg"),)
        where = record.pathname, record.lineno, text, tuple(args_of_text), more.get("exc_info"), record.funcName
        made = logger.makeRecord(logger.name, record.levelno, *where, more.get("extra"))
        if isinstance(record, SpanRecord):
            made.__dict__.update(stamping.counted(record.of_span))
        else:
            made.__dict__.update({key: vars(record)[key] for key in stamping.KEYS[:3] if key in vars(record)})
        first = not isinstance(record, SpanRecord) or record.kind in ("spawn", "enter")
        for handler in list(self._ordinary):
            try:
                if made.levelno < handler.level:
                    continue
                if first and not handler.filter(made):
                    self._ordinary.remove(handler)
                    continue
                handler.acquire()
                try:
                    handler.emit(made)
                finally:
                    handler.release()
            except Exception as error:
                report(handler, made, error)


def _event_of(record: logging.LogRecord, listeners: tuple[Listener, ...]) -> tuple[str, dict[str, Any]]:
    """The event and its keys for a record. `listeners` were told at first hand of where a span begins and ends."""
    if isinstance(record, SpanRecord):
        payload = Told(payload_of_span(record))
        payload.listeners = listeners if record.kind in ("spawn", "enter", "exit") else ()
        return _message(payload), {KEY: payload}
    stamping.mark_of(record)
    plain: Mapping[str, Any] = vars(logging.makeLogRecord({}))
    ids: dict[str, Any] = {key: vars(record)[key] for key in stamping.KEYS[:3] if key in vars(record)}
    extra = {key: value for key, value in vars(record).items() if key not in plain and key != "message"}
    return record.getMessage(), {**ids, **extra}


# -- listeners for tests ---------------------------------------------------------------------------------------------

_taps: tuple[logging.Handler, ...] = ()


def add_tap(handler: logging.Handler) -> None:
    """Let a handler hear of the spans of every structlog logger, as at the root it does of stdlib loggers."""
    global _taps
    _taps = (*_taps, handler)


def remove_tap(handler: logging.Handler) -> None:
    global _taps
    _taps = tuple(tap for tap in _taps if tap is not handler)
