"""A small web shop on aiohttp, observed through its logging.

    python examples/demo/service.py

Two things make it visible: the handler in `LOGGING`, and one span a request in `spans`. The rest is an ordinary
service. When it listens it prints one line of JSON with its ports. It ends on SIGTERM and on SIGINT, and with
--until-eof also when its standard input closes, so that it does not outlive whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import logging.config
import os
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from asyncinspect_logging import instrument, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.json_logging import json_logging

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "level": "ERROR", "formatter": "line"},
        "asyncinspect": {"class": "asyncinspect_logging.AsyncInspectHandler"},
    },
    "root": {"level": "INFO", "handlers": ["console", "asyncinspect"]},
}

logger = logging.getLogger("shop")
STOCK = 90


class OutOfStockError(Exception):
    """More was ordered than there is."""


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn an exception into a 500. It stands outside `spans`, so the span has seen the exception leave it."""
    try:
        return await handler(request)
    except OutOfStockError as error:
        return web.json_response({"error": str(error)}, status=500)


def route_of(request: web.Request) -> str:
    """The span's name: the route's pattern and never the path, which would make a metric label of every item."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource else "unmatched"


@web.middleware
async def spans(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One span a request."""
    with span(route_of(request), **request.match_info):
        return await handler(request)


@web.middleware
async def driven_spans(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One span a request, under a driver: each step of the handler is seen too."""
    return await instrument(handler(request), name=route_of(request))


async def database(seconds: float) -> None:
    """Stand in for a query: it takes its time, and somewhat more or less of it at each call."""
    await asyncio.sleep(seconds * random.uniform(0.5, 1.5))


async def get_item(request: web.Request) -> web.StreamResponse:
    await database(0.002)
    return web.json_response({"id": request.match_info["id"], "stock": STOCK})


async def post_order(request: web.Request) -> web.StreamResponse:
    """Fails with OutOfStockError where the quantity is above the stock."""
    order = await request.json()
    await database(0.004)
    if order["quantity"] > STOCK:
        raise OutOfStockError(f"{order['quantity']} ordered, {STOCK} in stock")
    await database(0.004)
    logger.info("order of %d accepted", order["quantity"])
    return web.json_response({"accepted": order["quantity"]})


async def get_report(request: web.Request) -> web.StreamResponse:
    """A streamed answer: a heading at once, the body after `wait` seconds, in which the client may hang up."""
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"report\n")
    await asyncio.sleep(float(request.query.get("wait", "0")))
    await response.write(b"all is well\n")
    await response.write_eof()
    return response


def make_app(style: str) -> web.Application:
    app = web.Application(middlewares=[errors, driven_spans if style == "instrument" else spans])
    app.add_routes(
        [
            web.get("/items/{id}", get_item),
            web.post("/orders", post_order),
            web.get("/reports/{id}", get_report),
        ]
    )
    return app


@contextlib.asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve the app; yields the port."""
    # Without handler_cancellation aiohttp lets a handler run on after its client has gone.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def serve(options: argparse.Namespace) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)

    def end_at_eof() -> None:
        if not os.read(0, 4096):
            done.set()

    # update_interval=0: each scrape shows the moment it is made, so the last one after the load is the whole truth.
    exporter = PrometheusExporter(update_interval=0)
    with exporter.start_server(f"{options.host}:{options.metrics_port}") as metrics:
        async with serving(make_app(options.style), options.host, options.port) as port:
            print(json.dumps({"port": port, "metrics_port": metrics.port}), flush=True)
            if options.until_eof:
                loop.add_reader(0, end_at_eof)
            await done.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo's web service.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--metrics-port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--style", choices=["span", "instrument"], default="instrument", help="what makes the spans")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--log", help="also write what spans say to this file, for asyncinspect replay")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input closes")
    options = parser.parse_args()

    logging.config.dictConfig(
        json_logging(options.log, level="TRACE", others=True, into=LOGGING) if options.log else LOGGING
    )
    if options.loop == "uvloop":
        import uvloop

        uvloop.run(serve(options))
    else:
        asyncio.run(serve(options))


if __name__ == "__main__":
    main()
