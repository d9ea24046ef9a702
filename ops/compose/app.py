"""The service of compose.yaml: FastAPI, every request a span, every task of the loop driven, /metrics on its own port.

    python app.py

`PORT` is the port that it serves on, `ASYNC_INSPECT_METRICS_PORT` that of the metrics.
"""

from __future__ import annotations

import asyncio
import logging.config
import os
import random
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException

from asyncinspect_logging import install, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.integrations.asgi import AsyncInspectMiddleware

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line"},
        "asyncinspect": {"class": "asyncinspect_logging.AsyncInspectHandler"},
    },
    "root": {"level": "INFO", "handlers": ["console", "asyncinspect"]},
}

app = FastAPI()
app.add_middleware(AsyncInspectMiddleware)
pool = asyncio.Semaphore(3)


@app.get("/orders/{order}")
async def get_order(order: int) -> dict[str, int]:
    """One order in twenty is not there, and one in fifty makes the service fail."""
    with span("query", table="orders"):
        async with pool:
            await asyncio.sleep(random.uniform(0.005, 0.05))
    if order % 50 == 49:
        raise RuntimeError(f"order {order} cannot be read")
    if order % 20 == 19:
        raise HTTPException(404)
    return {"order": order}


async def main() -> None:
    install()
    config = uvicorn.Config(app, host="0.0.0.0", port=int(os.environ.get("PORT", "8000")), log_config=None)
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    logging.config.dictConfig(LOGGING)
    with PrometheusExporter() as exporter:
        server = exporter.start_server()
        logging.getLogger("app").info("metrics at %s", server.url)
        asyncio.run(main())
