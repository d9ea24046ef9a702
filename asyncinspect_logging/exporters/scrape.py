"""One answer to one scrape: format by negotiation, filter, gzip; and the WSGI and ASGI apps around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from contextvars import Context
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qs

__all__ = ["OPENMETRICS", "TEXT", "Overdue", "Pages", "Response", "asgi_app", "respond", "wsgi_app"]

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# A scrape names a handful of series; a longer list would only cost time.
_MAX_NAMES: Final = 1000

# What a browser is told: take it for nothing else than what it is called, and keep no copy.
_ALWAYS: Final = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))

Environ = MutableMapping[str, Any]
StartResponse = Callable[..., Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Overdue(Exception):
    """A page was not made in time."""


class Pages(Protocol):
    """Where pages come from."""

    def serve(self, *, openmetrics: bool, compress: bool, names: Sequence[str]) -> bytes:
        """A page for a scrape; with `names`, only the samples of these names. Raises what went wrong, after logging,
        and Overdue where it takes too long.
        """


class Response(NamedTuple):
    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def plain(cls, status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
        return cls.of(status, text.encode(), ("Content-Type", "text/plain; charset=utf-8"), *headers)

    @classmethod
    def of(cls, status: HTTPStatus, body: bytes, *headers: tuple[str, str]) -> Response:
        return cls(status, [*headers, *_ALWAYS, ("Content-Length", str(len(body)))], body)


def _accepted(header: str) -> Iterable[tuple[str, dict[str, str], float]]:
    """Each entry of an Accept header: its name, parameters and weight (0 if that cannot be read)."""
    for entry in header.lower().split(","):
        name, *parts = (part.strip() for part in entry.split(";"))
        parameters = {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts)}
        try:
            weight = float(parameters.pop("q", "1"))
        except ValueError:
            weight = 0.0
        yield name, parameters, weight if 0 <= weight <= 1 else 0.0


def _wants_openmetrics(accept: str) -> bool:
    openmetrics = text = 0.0
    for name, parameters, weight in _accepted(accept):
        if name == "application/openmetrics-text":
            if parameters.get("version", "1.0.0") in ("0.0.1", "1.0.0"):
                openmetrics = max(openmetrics, weight)
        elif name in ("text/plain", "text/*", "*/*"):
            text = max(text, weight)
    return openmetrics > 0 and openmetrics >= text


def _wants_gzip(accept_encoding: str) -> bool:
    weights = {name: weight for name, _, weight in _accepted(accept_encoding)}
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def respond(pages: Pages, method: str, query: str, accept: str, accept_encoding: str) -> Response:
    """The answer to a request of the metrics: GET and HEAD give a page (its body too: leave it out for HEAD), `name[]`
    in the query selects samples by name. A page that cannot be made is a 500, and one that takes too long a 503, so
    that the failure shows in the `up` of the scraper: a page with parts missing would look like counters that are gone.
    """
    if method not in ("GET", "HEAD"):
        text = "The metrics are read with GET or HEAD.\n"
        return Response.plain(HTTPStatus.METHOD_NOT_ALLOWED, text, ("Allow", "GET, HEAD"))
    try:
        names = parse_qs(query, errors="replace", max_num_fields=_MAX_NAMES).get("name[]", [])
    except ValueError:
        return Response.plain(HTTPStatus.BAD_REQUEST, f"The query has more than {_MAX_NAMES} fields.\n")
    openmetrics, compress = _wants_openmetrics(accept), _wants_gzip(accept_encoding)
    try:
        body = pages.serve(openmetrics=openmetrics, compress=compress, names=names)
    except Overdue:
        text = 'The metrics take too long to collect; the logger "asyncinspect.internal" says where.\n'
        return Response.plain(HTTPStatus.SERVICE_UNAVAILABLE, text)
    except Exception:
        text = 'The metrics could not be collected; the logger "asyncinspect.internal" has the reason.\n'
        return Response.plain(HTTPStatus.INTERNAL_SERVER_ERROR, text)
    headers = [("Content-Type", OPENMETRICS if openmetrics else TEXT), ("Vary", "Accept, Accept-Encoding")]
    if compress:
        headers.append(("Content-Encoding", "gzip"))
    return Response.of(HTTPStatus.OK, body, *headers)


def wsgi_app(pages: Pages) -> Callable[[Environ, StartResponse], list[bytes]]:
    """A WSGI app that answers with the metrics under whatever path it is mounted at."""

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        method = environ["REQUEST_METHOD"]
        accept, encoding = environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
        response = respond(pages, method, environ.get("QUERY_STRING", ""), accept, encoding)
        start_response(f"{response.status.value} {response.status.phrase}", response.headers)
        return [] if method == "HEAD" else [response.body]

    return app


def asgi_app(pages: Pages) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI 3 app that answers with the metrics under whatever path it is mounted at.

    It makes the page in a thread of the loop's executor, so a large one does not hold the loop; where the loop is not
    asyncio's, in place.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            await _http(pages, scope, send)
        else:
            raise ValueError(
                f"an ASGI scope of type {scope['type']!r} reached the metrics app, which answers http only"
            )

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _http(pages: Pages, scope: Scope, send: Send) -> None:
    def header(name: bytes) -> str:
        return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name)

    query = scope.get("query_string", b"").decode("latin-1")
    request = (pages, scope["method"], query, header(b"accept"), header(b"accept-encoding"))
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        response = respond(*request)
    else:
        # An empty context: the spans of the request that asks are not ours to be counted under.
        response = await loop.run_in_executor(None, Context().run, respond, *request)
    headers = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in response.headers]
    await send({"type": "http.response.start", "status": response.status.value, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})
