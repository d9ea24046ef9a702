"""A FastAPI service with /metrics mounted in it, under a little load of its own making.

    python examples/fastapi_service.py

A middleware opens one span a request, named by the route's pattern; a path with its ids would make a metric label of
every user. `instrument` drives the endpoint, so that its polls and its time on the loop are counted too.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from asyncinspect_logging import instrument, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(message)s [%(span)s %(span_id)s]"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"},
        "asyncinspect": {"class": "asyncinspect_logging.AsyncInspectHandler"},
    },
    "root": {"level": "INFO", "handlers": ["console", "asyncinspect"]},
    "loggers": {"httpx": {"level": "WARNING"}},
}

log = logging.getLogger("users")
app = FastAPI()


@app.middleware("http")
async def spans(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """One span a request. Headers with a traceparent make it a part of the caller's trace."""
    with span("request", parent=dict(request.headers), method=request.method) as s:
        response = await call_next(request)
        s.record(status=response.status_code)
        return response


@app.get("/users/{user_id}")
@instrument(name="GET /users/{user_id}")
async def get_user(user_id: int) -> dict[str, int | str]:
    await asyncio.sleep(0.002)
    if user_id > 7:
        log.warning("no user %d", user_id)
        raise HTTPException(404)
    return {"id": user_id, "name": f"user {user_id}"}


app.mount("/metrics", PrometheusExporter(update_interval=0).asgi_app())


async def main() -> None:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning"))
    # A socket that listens already: requests wait in it until the server takes them.
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answers = await asyncio.gather(*(client.get(f"/users/{user_id}") for user_id in range(10)))
        print("statuses:", sorted(answer.status_code for answer in answers))
        metrics = (await client.get("/metrics/")).text
    print("\n".join(line for line in metrics.splitlines() if "_total{name=" in line))
    server.should_exit = True
    await serving


if __name__ == "__main__":
    logging.config.dictConfig(LOGGING)
    asyncio.run(main())
