"""A FastAPI service with spans for its requests and /metrics mounted in it, under a little load of its own making.

    pip install fastapi uvicorn httpx
    python examples/fastapi_service.py

The middleware opens one span a request, named by the route's template; a path with its ids would make a metric label of
every user. It sees each step of the request, and where the client goes away first, the span is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import socket
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException

from asyncinspect_logging import span
from asyncinspect_logging.integrations.asgi import AsyncInspectMiddleware

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
app.add_middleware(AsyncInspectMiddleware, metrics="/metrics", exclude=["/health"])


@app.get("/users/{user_id}")
async def get_user(user_id: int) -> dict[str, int | str]:
    with span("query", table="users"):
        await asyncio.sleep(0.002)
    if user_id > 8:
        raise ZeroDivisionError
    if user_id > 7:
        log.warning("no user %d", user_id)
        raise HTTPException(404)
    return {"id": user_id, "name": f"user {user_id}"}


@app.get("/health")
async def health() -> str:
    return "ok"


async def main() -> None:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical"))
    # A socket that listens already: requests wait in it until the server takes them.
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        paths = ["/health", *(f"/users/{user_id}" for user_id in range(10))]
        answers = await asyncio.gather(*(client.get(path) for path in paths))
        print("statuses:", sorted(answer.status_code for answer in answers))
        metrics = (await client.get("/metrics")).text
    print("\n".join(line for line in metrics.splitlines() if "_total{name=" in line))
    server.should_exit = True
    await serving


if __name__ == "__main__":
    logging.config.dictConfig(LOGGING)
    asyncio.run(main())
