"""Who hears a span: the way from a logger to the handlers on its path.

The protocol's rules: a lifecycle record reaches every handler that accepts spans, whatever the levels; it reaches
ordinary handlers as the level rules allow; and who hears a span is decided once, when it begins, until it ends.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from . import clock, process
from .diagnostics import troubles, warn_once
from .fields import FieldPolicy
from .records import LEVELS, TRACE, SpanRecord

if TYPE_CHECKING:
    from .spans import Span

__all__ = [
    "DEFAULT_POLICY",
    "Audience",
    "Clock",
    "Listener",
    "Route",
    "deliver_held",
    "delivering",
    "report",
    "route_of",
]


class Clock(Protocol):
    """A source of monotonic time in ns, such as the module `clock`."""

    def monotonic_ns(self) -> int: ...


class Listener(NamedTuple):
    """How a handler hears of spans of this process without a record for each of them. The calls must be quick, never
    raise, and be safe in any thread and in a finaliser.

    `announce(span)`: the span begins, or its tally has grown; or it is over, if its `listed` was set since it began.
    `settle()`: called now and then after an end, for what takes longer.
    """

    announce: Callable[[Any], None]
    settle: Callable[[], None]
    clock: Clock


class _Careful:
    """A clock of the application's, which may fail, or run backwards. Where it does, time stands still."""

    __slots__ = ("_clock", "_last", "time_ns")

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._last = 0
        self.time_ns = clock.time_ns

    def monotonic_ns(self) -> int:
        try:
            t = int(self._clock.monotonic_ns())
        except Exception as error:
            warn_once("clock", type(self._clock).__qualname__, "a clock failed: %r", error)
            return self._last
        if t > self._last:
            self._last = t
        return self._last


DEFAULT_POLICY: Final = FieldPolicy()


class _Delivering(threading.local):
    """True while a record is being delivered in this thread: a span begun inside a handler must not be heard."""

    now = False


delivering = _Delivering()


class Audience:
    """Those who hear a span.

    `announce`, `settle`: see `Listener`; they do nothing where nobody listens that way.
    `accepting`: all handlers that accept spans. `receivers`: handlers that get records.
    `steps`: those handlers that get the records of single steps too (level TRACE); empty when those are off.
    `policy`: what the fields must go through.
    """

    __slots__ = ("accepting", "announce", "clock", "logger_name", "policy", "receivers", "settle", "steps")

    def __init__(
        self,
        listeners: Sequence[Listener],
        accepting: tuple[logging.Handler, ...],
        receivers: tuple[logging.Handler, ...],
        steps: tuple[logging.Handler, ...],
        policy: FieldPolicy,
        logger_name: str,
    ) -> None:
        self.announce = _chorus([listener.announce for listener in listeners])
        self.settle = _chorus([listener.settle for listener in listeners])
        # A listener with a clock of its own (a test's) sets the time for the spans that it hears.
        own = next((x.clock for x in listeners if x.clock is not clock), None)
        self.clock: Clock = clock if own is None else _Careful(own)
        self.accepting = accepting
        self.receivers = receivers
        self.steps = steps
        self.policy = policy
        self.logger_name = logger_name

    def narrowed(self, record: SpanRecord) -> Audience:
        """The audience of one span after its first record has been delivered: handlers whose filters refused it are
        not asked again and hear no more of the span.
        """
        deliver_held()
        step = LEVELS[record.kind] == TRACE
        heard = tuple(
            handler
            for handler in self.receivers
            if _deliver(handler, record, first=True, silent=step and handler not in self.steps)
        )
        refused = [handler for handler in self.receivers if handler not in heard]
        if not refused:
            return self
        steps = tuple(handler for handler in self.steps if handler not in refused)
        accepting = tuple(handler for handler in self.accepting if handler not in refused)
        narrowed = Audience((), accepting, heard, steps, self.policy, self.logger_name)
        for name in ("announce", "settle", "clock"):
            setattr(narrowed, name, getattr(self, name))
        return narrowed

    def receive(self, record: SpanRecord) -> None:
        """Deliver a later record of a span to its audience."""
        if _held:
            deliver_held()
        self._hand_out(record)

    def _hand_out(self, record: SpanRecord) -> None:
        for handler in self.steps if LEVELS[record.kind] == TRACE else self.receivers:
            _deliver(handler, record, first=False)

    def receive_later(self, record: SpanRecord) -> None:
        """Deliver a record before the next one, and not now: a finaliser may run while its thread holds a lock that a
        handler, or a queue behind one, would wait for.
        """
        _held.append((self, record))

    def annotate(self, record: logging.LogRecord) -> None:
        """Deliver an ordinary record to every handler that hears of the span."""
        deliver_held()
        for handler in dict.fromkeys(self.accepting + self.receivers):
            _deliver(handler, record, first=True)


_held: Final[deque[tuple[Audience, SpanRecord]]] = deque()
_NOBODY: Final = logging.NullHandler()


def deliver_held() -> None:
    """Deliver what finalisers had to say."""
    while _held and not delivering.now:
        try:
            audience, record = _held.popleft()
        except IndexError:  # another thread is at it too
            return
        audience._hand_out(record)


@process.after_fork
def _forget_held() -> None:
    """The parent delivers them."""
    _held.clear()


def _nobody(span: object = None) -> None:
    pass


def _deliver(handler: logging.Handler, record: logging.LogRecord, *, first: bool, silent: bool = False) -> bool:
    """Hand a record over, or only ask the filters (`silent`). Returns whether they let it pass. Raises nothing."""
    if delivering.now:
        return False
    try:
        delivering.now = True
        if type(handler).handle is not logging.Handler.handle:
            if not silent:
                handler.handle(record)
            return True
        if first:
            # Since 3.12 a filter may return another record in place of the one that it was given.
            verdict: Any = handler.filter(record)
            if not verdict:
                return False
            if isinstance(verdict, logging.LogRecord):
                record = verdict
        if silent:
            return True
        handler.acquire()
        try:
            handler.emit(record)
        finally:
            handler.release()
    except Exception as error:
        report(handler, record, error)
    finally:
        delivering.now = False
    return True


def report(handler: logging.Handler, record: logging.LogRecord, error: Exception) -> None:
    """An error while a record was handled: once to the handler's own `handleError`, counted every time.

    Called inside the `except` clause, since `handleError` looks at the exception being handled.
    """
    kind = f"handler {type(handler).__qualname__} raised {type(error).__qualname__}"
    troubles[kind] += 1
    if troubles[kind] == 1:
        try:
            handler.handleError(record)
        except Exception:
            troubles["handleError raised"] += 1


def accepts_spans(handler: logging.Handler) -> bool:
    """Whether a handler wants lifecycle records whatever the levels.

    A queue handler that knows its listener (as `dictConfig` makes it since Python 3.12) does when all handlers behind
    the listener do; on others, set `accepts_spans = True`.
    """
    accepts = getattr(handler, "accepts_spans", None)
    if accepts is None:
        behind = getattr(getattr(handler, "listener", None), "handlers", ())
        return bool(behind) and all(getattr(h, "accepts_spans", False) for h in behind)
    return bool(accepts)


class Route:
    """The path from one logger up to the root, with the audience found there and what it was found from."""

    __slots__ = (
        "_enabled",
        "_filters",
        "_handlers",
        "_more",
        "_propagates",
        "_root",
        "_root_handlers",
        "_whose",
        "asked",
        "logger",
    )

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        #: Whether a span was ever told this way.
        self.asked = False
        self._whose: Audience | None = None
        # What the audience was worked out from: compared, not trusted, since logging changes all of it in place and
        # tells nobody. Copies of the lists of handlers at both ends of the path; the filters of the first listener;
        # and whatever else there is, as pairs of a list and its copy, and of a logger and whether it propagates. A
        # change of a level anywhere shows in `Logger._cache`, which logging empties then.
        self._handlers: list[logging.Handler] | None = None
        self._root = logger
        self._root_handlers: list[logging.Handler] = []
        self._filters: list[Any] = []
        self._more: tuple[list[tuple[list[Any], list[Any]]], list[tuple[logging.Logger, bool]]] | None = None
        self._propagates = True
        self._enabled: bool | None = None

    def audience(self) -> Audience | None:
        """Who hears a span that begins now, or None."""
        own = self.logger
        try:
            if (
                own.handlers != self._handlers
                or self._root.handlers != self._root_handlers
                or own._cache[10] is not self._enabled  # type: ignore[attr-defined]
                or own.propagate is not self._propagates
                or own.disabled
                or own.filters
                or self._filters
            ):
                return self._look()
        except KeyError:
            # Emptied, since some level was set.
            return self._look()
        if self._more is not None:
            lists, loggers = self._more
            for live, copy in lists:
                if live != copy:
                    return self._look()
            for logger, propagates in loggers:
                if logger.propagate is not propagates:
                    return self._look()
        return self._whose

    def _look(self) -> Audience | None:
        """Work the audience out anew."""
        self.asked = True
        own = self.logger
        loggers: list[logging.Logger] = []
        path: list[logging.Handler] = []
        node: logging.Logger | None = own
        while node is not None:
            loggers.append(node)
            if not (node is own and own.disabled):
                # What dictConfig disables keeps its handlers, which the application wanted off.
                path.extend(handler for handler in node.handlers if handler not in path)
            node = node.parent if node.propagate else None
        debug, trace = own.isEnabledFor(logging.DEBUG), own.isEnabledFor(TRACE)

        listeners: list[Listener] = []
        accepting: list[logging.Handler] = []
        receivers: list[logging.Handler] = []
        steps: list[logging.Handler] = []
        policies: list[FieldPolicy] = []
        ordinary = False
        filters: list[list[Any]] = []
        for handler in path:
            if accepts_spans(handler):
                accepting.append(handler)
                listener = None if own.filters else _listener(handler)
                if listener is None:
                    receivers.append(handler)
                else:
                    filters.append(handler.filters)
                    if listener not in listeners:
                        listeners.append(listener)
                policy = getattr(handler, "field_policy", None)
                if isinstance(policy, FieldPolicy):
                    policies.append(policy)
                if trace:
                    steps.append(handler)
            elif debug:
                ordinary = True
                if handler.level <= logging.DEBUG:
                    receivers.append(handler)
                    if trace and handler.level <= TRACE:
                        steps.append(handler)
        # With ordinary handlers the level of each counts too, and on a disabled logger whether it still is: to watch
        # all that would cost as much as to look again.
        # The first is set last: with an exception on the way, out of stack perhaps, this is asked again.
        self._handlers = None
        handlers = None if ordinary or own.disabled else list(own.handlers)
        self._root = loggers[-1]
        self._root_handlers = list(loggers[-1].handlers)
        self._filters = filters.pop() if filters else []
        watched = [logger.handlers for logger in loggers[1:-1]] + filters
        others = [(logger, logger.propagate) for logger in loggers[1:] if logger.parent is not None]
        self._more = ([(live, list(live)) for live in watched], others) if watched or others else None
        self._propagates = own.propagate
        self._enabled = own._cache.get(logging.DEBUG)  # type: ignore[attr-defined]
        if receivers and accepting:
            # What goes to another process has its ordinary records stamped here: there is no handler of ours for it.
            from .stamping import use_for

            use_for(accepting)
        if own.filters and receivers:
            # A filter on the logger has its say like one on a handler: once, on the span's first record.
            receivers = [_Filtered(own, handler) for handler in receivers]
            steps = [_Filtered(own, handler) for handler in steps]
        if steps and not receivers:
            # Steps are those of spans that are told in records, which a listener alone does without.
            receivers.append(_NOBODY)
        if not listeners and not receivers:
            self._whose = None
            self._handlers = handlers
            return None
        policy = policies[0] if policies else DEFAULT_POLICY
        for other in policies[1:]:
            policy = policy.merge(other)
        self._whose = Audience(
            listeners,
            tuple(accepting),
            tuple(receivers),
            tuple(steps),
            policy,
            own.name,
        )
        self._handlers = handlers
        return self._whose


class _Filtered(logging.Handler):
    """A handler behind the filters of the logger that its records come through."""

    def __init__(self, logger: logging.Logger, handler: logging.Handler) -> None:
        # Not Handler.__init__: that would enter this one in logging's list of handlers to be flushed at exit.
        logging.Filterer.__init__(self)
        self.level = handler.level
        self.lock = None
        self._logger = logger
        self._handler = handler

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Filtered) and other._handler is self._handler and other._logger is self._logger

    def __hash__(self) -> int:
        return hash(self._handler)

    def filter(self, record: logging.LogRecord) -> Any:
        return self._logger.filter(record) and self._handler.filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        handler = self._handler
        handler.acquire()
        try:
            handler.emit(record)
        finally:
            handler.release()

    def handleError(self, record: logging.LogRecord) -> None:
        self._handler.handleError(record)


def _listener(handler: logging.Handler) -> Listener | None:
    """The handler's way to hear of spans without records, if it has one just now."""
    span_listener = getattr(handler, "span_listener", None)
    return span_listener() if callable(span_listener) else None


def _chorus(calls: list[Callable[..., None]]) -> Callable[..., None]:
    """One callable for all of them."""
    if not calls:
        return _nobody
    if len(calls) == 1:
        return calls[0]
    together = tuple(calls)

    def call_all(*told: Span) -> None:
        for call in together:
            call(*told)

    return call_all


_routes: dict[logging.Logger, Route] = {}


def route_of(logger: logging.Logger) -> Route:
    """The route that begins at `logger`; one for each, kept (loggers live as long as the process)."""
    if not isinstance(logger, logging.Logger):
        kind = type(logger)
        return _kinds[kind](logger) if kind in _kinds else _other_route(logger)
    route = _routes.get(logger)
    if route is None:
        route = _routes[logger] = Route(logger)
    return route


#: How the routes of structlog's loggers are made, by their type.
_kinds: dict[type, Callable[[Any], Route]] = {}


def _other_route(logger: Any) -> Route:
    if isinstance(logger, logging.LoggerAdapter):
        return route_of(logger.logger)
    if "structlog" in sys.modules and hasattr(logger, "bind") and hasattr(logger, "_context"):
        from .structlog_route import StructlogRoute

        _kinds[type(logger)] = StructlogRoute
        return StructlogRoute(logger)
    kind = type(logger).__qualname__
    warn_once("bad logger", kind, "span(logger=<%s>): not a logger; using the default", kind)
    return route_of(logging.getLogger("asyncinspect"))
