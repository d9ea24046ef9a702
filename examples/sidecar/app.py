"""A service of several processes that has its spans counted by a sidecar.

    gunicorn --chdir examples/sidecar -w 4 -k uvicorn_worker.UvicornWorker app:app

With SIDECAR_ADDRESS set, such as to unix:/tmp/asyncinspect.sock, each worker sends what its spans say there; else it
writes it to a file of its own, in the folder that SIDECAR_LOGS names.
"""

from __future__ import annotations

import asyncio
import logging.config
import os
from typing import Any

from asyncinspect_logging import json_logging, span

ADDRESS = os.environ.get("SIDECAR_ADDRESS")
LOGS = os.environ.get("SIDECAR_LOGS", "logs")


def configure() -> None:
    if ADDRESS:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {
                    "sidecar": {
                        "class": "asyncinspect_logging.AsyncInspectSocketHandler",
                        "address": ADDRESS,
                        "capacity": int(os.environ.get("SIDECAR_CAPACITY", "10000")),
                    },
                },
                "loggers": {"asyncinspect": {"handlers": ["sidecar"]}},
            }
        )
    else:
        os.makedirs(LOGS, exist_ok=True)
        logging.config.dictConfig(json_logging(os.path.join(LOGS, "worker-{pid}.jsonl")))


configure()


async def lifespan(receive: Any, send: Any) -> None:
    """Send what is left when a worker ends: uvicorn ends by a signal, of which Python's exit handlers hear nothing."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    for handler in logging.getLogger("asyncinspect").handlers:
        await asyncio.to_thread(handler.flush)
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Plain ASGI. The span is over before the answer is sent: whoever has an answer was counted."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    with span("request", path=scope["path"]):
        await asyncio.sleep(0.002)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ok\n"})
