"""What a request costs more under a middleware, ours and others', over a bare Starlette application.

The application has twenty routes and answers at once; it is called as a server would call it, without one, so that
what is compared is the middleware and not the network. Each peer is set up as its documentation has it, and what it
would send anywhere is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from measure import Scale, interleaved_async, ratios

__all__ = ["middlewares"]

App = Callable[[Any, Any, Any], Awaitable[None]]


def _application(routes: int = 20) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def endpoint(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route(f"/route{number}/{{item}}", endpoint) for number in range(routes)])


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None: ...


_HEADERS = [(b"host", b"localhost"), (b"user-agent", b"bench"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip")]


def _requests(app: App) -> Callable[[int], Awaitable[None]]:
    async def run(loops: int) -> None:
        for number in range(loops):
            path = f"/route{number % 20}/{number}"
            scope = {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": "1.1",
                "method": "GET",
                "scheme": "http",
                "path": path,
                "raw_path": path.encode(),
                "root_path": "",
                "query_string": b"",
                "headers": list(_HEADERS),
                "server": ("127.0.0.1", 80),
                "client": ("127.0.0.1", 5000),
            }
            await app(scope, _receive, _send)

    return run


def _ours() -> App:
    from asyncinspect_logging import AsyncInspectHandler, Inspector
    from asyncinspect_logging.integrations.asgi import AsyncInspectMiddleware

    logger = logging.getLogger("bench.asgi")
    logger.propagate = False
    logger.addHandler(AsyncInspectHandler(Inspector()))
    app = _application()
    app.add_middleware(AsyncInspectMiddleware, logger=logger)
    return app  # type: ignore[no-any-return]


def _ours_unheard() -> App:
    from asyncinspect_logging.integrations.asgi import AsyncInspectMiddleware

    logger = logging.getLogger("bench.asgi.unheard")
    logger.propagate = False
    app = _application()
    app.add_middleware(AsyncInspectMiddleware, logger=logger)
    return app  # type: ignore[no-any-return]


def _opentelemetry() -> App:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    provider = TracerProvider()
    provider.add_span_processor(SpanProcessor())
    app = _application()
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider)
    return app  # type: ignore[no-any-return]


def _starlette_exporter() -> App:
    from starlette_exporter import PrometheusMiddleware

    app = _application()
    app.add_middleware(PrometheusMiddleware, app_name="bench", group_paths=True)
    return app  # type: ignore[no-any-return]


def _instrumentator() -> App:
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    app = _application()
    Instrumentator(registry=CollectorRegistry()).instrument(app)
    return app  # type: ignore[no-any-return]


def middlewares(scale: Scale) -> dict[str, float]:
    """A request under each middleware, against the same without one."""
    apps = {
        "bare": _application(),
        "asgi": _ours(),
        "asgi.unheard": _ours_unheard(),
        "asgi.otel": _opentelemetry(),
        "asgi.starlette-exporter": _starlette_exporter(),
        "asgi.instrumentator": _instrumentator(),
    }

    async def main() -> dict[str, float]:
        candidates = {f"{name}/40": _requests(app) for name, app in apps.items()}
        return ratios(await interleaved_async(candidates, scale), "bare")

    return asyncio.run(main())
