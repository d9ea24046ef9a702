"""ASGI middleware: one span for each request and each websocket, named by its route, in FastAPI, Starlette, Litestar
or any other ASGI 3 application. It needs none of them.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

from ..diagnostics import warn_once
from ..driver import qualname_of
from ..errors import ConfigError
from ..routing import route_of
from ..spans import LOGGER
from .options import check_call, check_metrics, metrics_exporter, paths_pattern
from .routes import Resolver, path_in_app
from .serving import ClientDisconnected, ServedSpan, ServerError, is_closed_well, parent_of, request_fields, serve

__all__ = ["UNMATCHED", "AsyncInspectMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: What stands for the route in the name of a request that no route is for.
UNMATCHED: Final = "unmatched"

_MARK: Final = "asyncinspect"
#: How the exceptions are called by which frameworks tell an endpoint that its client has gone.
_GONE: Final = frozenset({"ClientDisconnect", "WebSocketDisconnect", "WebSocketDisconnected"})
_BODY: Final = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})


class AsyncInspectMiddleware:
    """Wraps an ASGI application, or is one of its middlewares: `app.add_middleware(AsyncInspectMiddleware)`.

    A span is named "GET /users/{user_id}", or "WS /rooms/{room}" of a websocket, and "HTTP unmatched" or "WS
    unmatched" where no route is for it; it begins with the request, ends with the last message of the response's body,
    and sees every step of the coroutine in between. It is cancelled if the client goes away first, failed if an
    exception leaves the application or the status is 5xx, and else completed. It has the fields http.request.method,
    http.route and http.response.status_code. Within an application that has this middleware already, it does nothing.

    exclude: paths without spans, as the application sees them; "*" in them stands for anything.
    metrics: a path at which the application answers with the metrics of `exporter`, and which has no spans.
    exporter: a PrometheusExporter; default one of `Inspector.default()`.
    route: finds the template of a request for frameworks that are not known, from its ASGI scope; its results become
        names, so there must be few. None: no route.
    fields: more fields, from the ASGI scope.
    remote_parent: whether a `traceparent` header makes the request a part of the caller's trace.
    logger: as of `span`.
    Raises ConfigError for a value that cannot be used.
    """

    def __init__(
        self,
        app: App,
        *,
        exclude: Iterable[str] = (),
        metrics: str | None = None,
        exporter: Any = None,
        route: Callable[[Scope], str | None] | None = None,
        fields: Callable[[Scope], Mapping[str, Any]] | None = None,
        remote_parent: bool = True,
        logger: Any = None,
    ) -> None:
        if not callable(app):
            raise ConfigError(f"app={app!r} is no ASGI application; write AsyncInspectMiddleware(app)")
        check_call("route", route, "the ASGI scope")
        check_call("fields", fields, "the ASGI scope")
        self.app = app
        self._excluded = paths_pattern(exclude)
        self._metrics = check_metrics(metrics, exporter)
        self._page: App | None = None if metrics is None else metrics_exporter(exporter).asgi_app()
        self._find = Resolver(app).template if route is None else route
        self._fields = fields
        self._remote = remote_parent
        self._route = route_of(LOGGER if logger is None else logger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if self._page is not None or self._excluded is not None:
            path = path_in_app(scope) if "path" in scope else ""
            if self._page is not None and kind == "http" and path.removesuffix("/") == self._metrics:
                await self._page(scope, receive, send)
                return
            if self._excluded is not None and self._excluded(path):
                await self.app(scope, receive, send)
                return
        if _MARK in scope or self._route.audience() is None:
            await self.app(scope, receive, send)
            return
        scope[_MARK] = True
        exchange = _Http(receive, send) if kind == "http" else _WebSocket(receive, send)
        exchange.span = self._span(scope, exchange)
        await serve(self.app(scope, exchange.receive, exchange.send), exchange.span)

    def _span(self, scope: Scope, exchange: _Exchange) -> ServedSpan:
        fields: dict[str, Any] = {}
        template = None
        try:
            # A scope that lacks what the specification asks for is for the application to complain of.
            template = self._find(scope) if "path" in scope else None
            if self._fields is not None:
                fields.update(self._fields(scope))
        except Exception:
            warn_once("asgi route", type(self.app).__qualname__, "the route was not found out", exc_info=True)
        method, own = request_fields(scope.get("method", "GET"))
        fields |= own
        is_http = scope["type"] == "http"
        if template is None:
            name = f"{'HTTP' if is_http else 'WS'} {UNMATCHED}"
        else:
            fields["http.route"] = template
            name = f"{method if is_http else 'WS'} {template}"
        parent = _parent(scope if self._remote else {})
        return ServedSpan.new(name, qualname_of(self.app), self._route, fields, parent, exchange.verdict)


def _parent(scope: Scope) -> Any:
    headers = scope.get("headers") or ()
    found = [value for name, value in headers if name == b"traceparent"]
    return parent_of(found, [value for name, value in headers if name == b"tracestate"] if found else ())


class _Exchange:
    """What is seen of a request and its response as they pass."""

    __slots__ = ("_receive", "_send", "complete", "gone", "send_error", "span", "status")

    span: ServedSpan

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.status = 0
        self.complete = self.gone = False
        self.send_error: OSError | None = None

    async def _sent(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError as error:
            # From version 2.4 of the specification on, this is how a server says that the client has gone.
            self.gone = True
            self.complete = False
            self.send_error = error
            raise

    def _answered(self, status: int) -> None:
        self.status = status
        self.span.add({"http.response.status_code": status})

    def _is_of_gone(self, error: BaseException) -> bool:
        """Whether that is how the application was told that the client has gone."""
        ours = self.send_error
        if ours is not None and (error is ours or error.__context__ is ours or error.__cause__ is ours):
            return True
        return any(cls.__name__ in _GONE for cls in type(error).__mro__)

    async def send(self, message: Message) -> None:
        raise NotImplementedError

    async def receive(self) -> Message:
        raise NotImplementedError

    def verdict(self, error: BaseException | None) -> BaseException | None:
        raise NotImplementedError


class _Http(_Exchange):
    __slots__ = ("_taken", "trailers")

    def __init__(self, receive: Receive, send: Send) -> None:
        super().__init__(receive, send)
        self.trailers = False
        #: Messages that were taken from the server to look at, for the application to receive.
        self._taken: list[Message] | None = None

    def _is_gone(self) -> bool:
        """Whether the client has gone, as far as the application was told, or could have been if it had asked."""
        server = getattr(self._receive, "__self__", None)
        if server is not None and not self.gone:
            if not self.complete:
                self._take(server)
            # Uvicorn's `receive` is a method of what knows.
            self.gone = self.gone or getattr(server, "disconnected", False) is True
        return self.gone

    def _take(self, queue: Any) -> None:
        """Look through what waits for the application, where that is a queue: Hypercorn's `receive` is a method of one,
        of asyncio's or of trio's.
        """
        take = getattr(queue, "get_nowait", None) or getattr(queue, "receive_nowait", None)
        if take is not None:
            taken = self._taken = self._taken or []
            with contextlib.suppress(Exception):  # the queue's own, when it is empty
                while True:
                    taken.append(take())
            self.gone = any(message["type"] == "http.disconnect" for message in taken)

    async def receive(self) -> Message:
        message = self._taken.pop(0) if self._taken else await self._receive()
        if message["type"] == "http.disconnect" and not self.complete:
            self.gone = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        complete = self.complete
        if kind == "http.response.start":
            self.trailers = bool(message.get("trailers"))
            self._answered(message.get("status", 0))
        elif kind == "http.response.trailers":
            complete = not message.get("more_trailers")
        elif kind in _BODY:
            complete = not (message.get("more_body") or self.trailers)
        if complete:
            # Before the last message, after which Hypercorn says that of every client.
            self._is_gone()
        self.complete = complete
        await self._sent(message)
        # After a 5xx an exception may follow, which says more: Starlette answers first, and raises then.
        if self.complete and self.status < 500:
            self.span.end()

    def verdict(self, error: BaseException | None) -> BaseException | None:
        gone = self._is_gone()
        if error is not None:
            return ClientDisconnected() if gone and self._is_of_gone(error) else error
        if gone:
            return ClientDisconnected()
        if not self.complete:
            return ServerError("no response" if not self.status else f"{self.status}, and then no end of the body")
        return ServerError.of(self.status) if self.status >= 500 else None


class _WebSocket(_Exchange):
    __slots__ = ("code",)

    def __init__(self, receive: Receive, send: Send) -> None:
        super().__init__(receive, send)
        self.code = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect" and not self.complete:
            self._closed(message)
        return message

    def _closed(self, message: Message) -> None:
        self.code = message.get("code") or 1005
        # Uvicorn says 1005 of a connection that was lost, too, but then without a reason.
        self.gone = not is_closed_well(self.code) or (self.code == 1005 and "reason" not in message)
        self.complete = True

    def _look(self) -> None:
        """How the client has closed what the application only sent to, and so was not told: from uvicorn, whose
        `receive` is a method of what knows. Nothing is taken: a task of the application's may still receive.
        """
        server = getattr(self._receive, "__self__", None)
        waiting = getattr(getattr(server, "queue", None), "_queue", None)
        seen = tuple(waiting) if isinstance(waiting, deque) else ()
        told = [one for one in seen if isinstance(one, dict) and one.get("type") == "websocket.disconnect"]
        code = getattr(server, "close_code", None)
        if told:
            self._closed(told[0])
        elif isinstance(code, int):
            self._closed({"code": code, "reason": ""})

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            self._answered(101)
        elif kind == "websocket.close":
            if not self.status:
                self._answered(403)
            self.complete = True
        elif kind == "websocket.http.response.start":
            self._answered(message.get("status", 0))
        await self._sent(message)

    def verdict(self, error: BaseException | None) -> BaseException | None:
        if self.send_error is not None and not self.code:
            self._look()
        if error is not None:
            if not ((self.gone or self.code) and self._is_of_gone(error)):
                return error
            error = None
        if self.gone:
            return ClientDisconnected()
        if not self.status and not self.code:
            return ServerError("neither accepted nor closed")
        return ServerError.of(self.status) if self.status >= 500 else None
