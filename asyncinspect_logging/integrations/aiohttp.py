"""Middleware for aiohttp's server: one span for each request and each websocket, named by its route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from aiohttp import web

from ..diagnostics import warn_once
from ..driver import qualname_of
from ..routing import route_of
from ..spans import LOGGER
from .options import check_call, check_metrics, metrics_exporter, paths_pattern
from .serving import ClientDisconnected, ServedSpan, ServerError, is_closed_well, parent_of, request_fields, serve

__all__ = ["asyncinspect_middleware"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

#: A string where aiohttp has no keys yet.
_MARK: Any = web.RequestKey("asyncinspect", bool) if hasattr(web, "RequestKey") else "asyncinspect"


def asyncinspect_middleware(
    *,
    exclude: Iterable[str] = (),
    metrics: str | None = None,
    exporter: Any = None,
    fields: Callable[[web.Request], Mapping[str, Any]] | None = None,
    remote_parent: bool = True,
    logger: Any = None,
) -> Middleware:
    """A middleware for `web.Application(middlewares=[asyncinspect_middleware()])`.

    A span is named by the canonical path of the resource, "GET /users/{user_id}", or "WS /rooms/{room}" of a
    websocket, and "HTTP unmatched" where there is none. It sees every step of the handler, and of the middlewares
    after this one, and ends when they have returned: what a handler streams is in it, what aiohttp sends afterwards
    (the body of a `web.Response`, a file) is not. It is cancelled if the client goes away first, whether aiohttp
    cancels the handler or not; failed if an exception leaves it that is no answer, or the status is 5xx; and else
    completed.

    exclude: paths without spans; "*" in them stands for anything.
    metrics: a path at which the application answers with the metrics of `exporter`, and which has no spans.
    exporter: a PrometheusExporter; default one of `Inspector.default()`.
    fields: more fields, from the request.
    remote_parent: whether a `traceparent` header makes the request a part of the caller's trace.
    logger: as of `span`.
    Raises ConfigError for a value that cannot be used.
    """
    check_call("fields", fields, "the request")
    excluded = paths_pattern(exclude)
    metrics_path = check_metrics(metrics, exporter)
    page = None if metrics is None else metrics_exporter(exporter).asgi_app()
    route = route_of(LOGGER if logger is None else logger)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if page is not None and request.path.removesuffix("/") == metrics_path:
            return await _answer(page, request)
        if _MARK in request or route.audience() is None or (excluded is not None and excluded(request.path)):
            return await handler(request)
        request[_MARK] = True
        exchange = _Exchange(request)
        names: dict[str, Any] = {}
        if fields is not None:
            try:
                names.update(fields(request))
            except Exception:
                warn_once("aiohttp fields", qualname_of(handler), "the fields were not found out", exc_info=True)
        name = _name(request, names)
        headers = request.headers.getall
        parent = parent_of(headers("traceparent", ()), headers("tracestate", ())) if remote_parent else parent_of(())
        exchange.span = ServedSpan.new(name, qualname_of(handler), route, names, parent, exchange.verdict)
        response: web.StreamResponse = await serve(exchange.handle(handler), exchange.span)
        return response

    return middleware


def _name(request: web.Request, fields: dict[str, Any]) -> str:
    """The name of the span, and into `fields` what it says."""
    method, own = request_fields(request.method)
    fields |= own
    if request.headers.get("Upgrade", "").lower() == "websocket":
        method = "WS"
    resource = request.match_info.route.resource
    if resource is None:
        return "WS unmatched" if method == "WS" else "HTTP unmatched"
    fields["http.route"] = resource.canonical
    return f"{method} {resource.canonical}"


class _Exchange:
    """What is seen of a request and its response."""

    __slots__ = ("_request", "_response", "span")

    span: ServedSpan

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response: web.StreamResponse | None = None

    async def handle(self, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(self._request)
        except web.HTTPException as answer:
            self._response = answer
            self.span.add({"http.response.status_code": answer.status})
            raise
        if isinstance(response, web.StreamResponse):
            # Or else aiohttp is going to complain.
            self._response = response
            self.span.add({"http.response.status_code": response.status})
        return response

    def _is_gone(self) -> bool:
        response = self._response
        if isinstance(response, web.WebSocketResponse):
            return response.close_code is not None and not is_closed_well(response.close_code)
        if response is not None and getattr(response, "_eof_sent", False):
            return False
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def verdict(self, error: BaseException | None) -> BaseException | None:
        response = self._response
        answer: object = response  # which an HTTPException is, too
        if error is not None and error is not answer:
            return ClientDisconnected() if isinstance(error, ConnectionError) and self._is_gone() else error
        if self._is_gone():
            return ClientDisconnected()
        if response is None:
            return ServerError("no response")
        return ServerError.of(response.status) if response.status >= 500 else None


async def _answer(page: Any, request: web.Request) -> web.Response:
    """What the ASGI app of the metrics answers."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()]
    scope = {"type": "http", "method": request.method, "headers": headers}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await page({**scope, "query_string": request.query_string.encode()}, receive, send)
    answer = web.Response(status=sent[0]["status"], body=b"".join(message.get("body", b"") for message in sent[1:]))
    for name, value in sent[0]["headers"]:
        if name.lower() != b"content-length":
            answer.headers[name.decode("latin-1")] = value.decode("latin-1")
    return answer
