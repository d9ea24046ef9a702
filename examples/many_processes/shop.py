"""A service of several processes, each of which serves one /metrics for all of them.

    mkdir -p /tmp/shop && rm -f /tmp/shop/*
    PROMETHEUS_MULTIPROC_DIR=/tmp/shop gunicorn --chdir examples/many_processes -c examples/many_processes/conf.py \
        -w 4 -k uvicorn_worker.UvicornWorker shop:app

It is at http://127.0.0.1:8000/metrics, whichever worker answers.
"""

from __future__ import annotations

import asyncio
import logging.config
from typing import Any

from prometheus_client import Counter, Gauge

from asyncinspect_logging import span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"inspect": {"class": "asyncinspect_logging.AsyncInspectHandler"}},
        "loggers": {"asyncinspect": {"handlers": ["inspect"]}},
    }
)

# The application's own metrics, in the multiprocess mode of prometheus_client.
ORDERS = Counter("shop_orders", "Orders taken.")
OPEN = Gauge("shop_open_orders", "Orders being taken.", multiprocess_mode="livesum")

metrics = PrometheusExporter().asgi_app()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Plain ASGI. The span is over before the answer is sent: whoever has an answer was counted."""
    if scope["type"] == "lifespan" or scope["path"] == "/metrics":
        await metrics(scope, receive, send)
        return
    with span("request", path=scope["path"]), OPEN.track_inprogress():
        await asyncio.sleep(0.002)
        ORDERS.inc()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ok\n"})
