"""The span of a piece of work that comes from outside: a request, a websocket, a job of a queue.

Apart from a driven span like any other, it can have a parent in another process, it can end before its coroutine does
(a response is complete, and background work goes on), and what it ended in need not be what its coroutine ended in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final

from ..driven import DrivenSpan
from ..driver import drive
from ..routing import Route
from ..spans import INHERIT, Span, current, current_span
from ..traceparent import parse_traceparent

__all__ = [
    "KIND",
    "METHODS",
    "ClientDisconnected",
    "ServedSpan",
    "ServerError",
    "is_closed_well",
    "parent_of",
    "request_fields",
    "serve",
]

#: The methods that a name may begin with: those that OpenTelemetry's semantic conventions know
#: (https://opentelemetry.io/docs/specs/semconv/http/http-spans/), since a client may send any word.
METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})

#: Codes with which a websocket that ended by the rules was closed (RFC 6455, section 7.4): normally, going away, or
#: without one; and those that are for libraries and applications to give a meaning.
_CLOSED: Final = frozenset({1000, 1001, 1005})
_CLOSED_BY_APPLICATION: Final = range(3000, 5000)
#: The field that the OTLP export takes the kind of a span from.
KIND: Final = "otel.kind"

Verdict = Callable[[BaseException | None], BaseException | None]


class ServerError(Exception):
    """What the error of a span says where no exception came out: the answer was a 5xx, or there was none."""

    @staticmethod
    def of(status: int) -> ServerError:
        try:
            return ServerError(f"{status} {HTTPStatus(status).phrase}")
        except ValueError:
            return ServerError(str(status))


class ClientDisconnected(asyncio.CancelledError):
    """What the error of a span says where the client has gone before it had its answer."""


class ServedSpan(DrivenSpan):
    """A driven span with a parent of its own, and a say in how it ends."""

    __slots__ = ("_parent", "_verdict", "inside")

    _parent: Any
    _verdict: Verdict
    #: What stands for it where a driver steps the task already.
    inside: Span | None

    @staticmethod
    def new(
        name: str, coro_name: str, route: Route, fields: dict[str, Any], parent: Any, verdict: Verdict
    ) -> ServedSpan:
        """A span that is not announced yet. parent: as of `span`. verdict: from the exception that leaves the
        coroutine, or None, to the one that the span ends with.
        """
        span: Any = DrivenSpan.make(name, coro_name, route, fields, ServedSpan)
        span._parent = parent
        span._verdict = verdict
        span.inside = None
        return span  # type: ignore[no-any-return]

    def add(self, fields: Mapping[str, Any]) -> None:
        """`record`, on whichever of the two spans is the one that is heard; after its end, nothing."""
        shown = self.inside or self
        if shown.outcome is None or shown.outcome == "unheard":
            shown.record(**fields)

    def end(self) -> None:
        """End now, wherever this is called, though the coroutine goes on."""
        if self.inside is not None:
            _Inside.leave(self, None)
        else:
            self.finish(None)

    def finish(self, error: BaseException | None) -> None:
        audience = self._audience
        if self.outcome is None and audience is not None:
            error = self._verdict(error)
            if not self.started:
                # Another task says so, between two steps of this one.
                self.part_from = audience.clock.monotonic_ns()
        super().finish(error)

    def again(self) -> Any:
        """What a driver enters where another one steps the task already, and keeps the books."""
        return _Inside(self)


class _Inside:
    __slots__ = ("served",)

    def __init__(self, served: ServedSpan) -> None:
        self.served = served

    def __enter__(self) -> None:
        fresh = self.served.inside = Span.again(self.served)
        fresh.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.leave(self.served, error)

    @staticmethod
    def leave(served: ServedSpan, error: BaseException | None) -> None:
        span = served.inside
        if span is not None and span.is_open:
            error = served._verdict(error)
            span.__exit__(None if error is None else type(error), error, None)


async def serve(awaitable: Awaitable[Any], span: ServedSpan) -> Any:
    """Await it under a driver with that span."""
    around = current.get()
    try:
        return await drive(awaitable, span)
    finally:
        # Ended by another task, whose context is not this one.
        if current.get() in (span, span.inside):
            current.set(around)


def is_closed_well(code: int) -> bool:
    """Whether a websocket that was closed with that code ended by the rules, and not because somebody was gone."""
    return code in _CLOSED or code in _CLOSED_BY_APPLICATION


def request_fields(method: str) -> tuple[str, dict[str, Any]]:
    """What the name of a request begins with, and the fields that it has, by its method."""
    if method in METHODS:
        return method, {KIND: "server", "http.request.method": method}
    return "HTTP", {KIND: "server", "http.request.method": "_OTHER", "http.request.method_original": method}


def parent_of(traceparent: Sequence[str | bytes], tracestate: Sequence[str | bytes] = ()) -> Any:
    """The parent of work that came with those headers: the span that the only `traceparent` names. Without one, or one
    that is none: the current span, if it is one that the application has opened; what `install` sees of the server's
    tasks is not, or all that a server does were a single trace. Else None.
    """
    if len(traceparent) == 1:
        header = _text(traceparent[0])
        if parse_traceparent(header) is not None:
            # It may be in several headers, which are one list.
            return {"traceparent": header, "tracestate": ",".join(map(_text, tracestate))} if tracestate else header
    around = current_span()
    if around is None or (isinstance(around, DrivenSpan) and around.own_task):
        return None
    return INHERIT


def _text(header: str | bytes) -> str:
    return header.decode("latin-1") if isinstance(header, bytes) else header
