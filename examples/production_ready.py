"""A service as it would be run in production, under a little load, and shut down in good order.

    python examples/production_ready.py

Settings of production (`ASYNC_INSPECT_*` changes them), a log that everything can be rebuilt from, /metrics on a port
of its own that answers though the loop is blocked, requests as spans, every task of the loop driven, findings as
warnings.

Needs `pip install "asyncinspect-logging[cli,json]" fastapi uvicorn`.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import logging
import logging.config
import os
import socket
import tempfile
import urllib.request
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, install, json_logging, span
from asyncinspect_logging.analysis.replay import replay
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.integrations.asgi import AsyncInspectMiddleware
from asyncinspect_logging.integrations.console import is_console_active

app = FastAPI()
app.add_middleware(AsyncInspectMiddleware, exclude=["/health"])


@app.get("/orders/{order}")
async def get_order(order: int) -> dict[str, int]:
    with span("query", table="orders"):
        await asyncio.sleep(0.001)
    return {"order": order}


@app.get("/health")
async def health() -> str:
    return "ok"


async def serve_until(done: asyncio.Event, listening: socket.socket) -> None:
    # Uvicorn's own log goes through the application's config.
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    await done.wait()
    server.should_exit = True
    await serving


def load(port: int, orders: int = 200) -> None:
    """A client, in a thread of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for path in ("/health", *(f"/orders/{number}" for number in range(orders))):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    connection.close()


async def main(exporter: PrometheusExporter) -> str:
    if is_console_active():
        logging.getLogger("service").warning("a live tool is on; times are not those of production")
    # Port 0 is any free one, for the example: a service says where it is scraped, and on which interface.
    with install(), exporter.start_server("127.0.0.1:0") as metrics:
        listening = socket.create_server(("127.0.0.1", 0))
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(serve_until(done, listening))
            await asyncio.to_thread(load, listening.getsockname()[1])
            url = f"http://127.0.0.1:{metrics.port}/metrics"
            page: str = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
            done.set()
    return page


if __name__ == "__main__":
    os.environ.setdefault("ASYNC_INSPECT_PRESET", "production")
    inspector = Inspector(Config.from_env())
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.jsonl"
        # Every 100 MB a new file; nothing of it on the console, which has warnings alone.
        config = json_logging(log, max_bytes=100_000_000, backups=10)
        config["handlers"]["console"] = {
            "class": "logging.StreamHandler",
            "level": "WARNING",
            "stream": "ext://sys.stdout",
        }
        config["root"] = {"level": "INFO", "handlers": ["console"]}
        config["disable_existing_loggers"] = False
        logging.config.dictConfig(config)
        logging.getLogger().addHandler(AsyncInspectHandler(inspector))
        # What has been imported is there for good: the garbage collector need not look at it while the loop waits.
        gc.freeze()
        page = asyncio.run(main(PrometheusExporter(inspector)))
        logging.shutdown()

        print("\n".join(line for line in page.splitlines() if line.startswith("async_inspect_tasks_completed_total")))
        live = inspector.snapshot()
        again = replay(str(log)).snapshot()
        print(f"details kept of {len(live.tasks)} tasks, counted {sum(name.spawned for name in live.names.values())}")
        print("rebuilt from the log:", again.names["GET /orders/{order}"].completed, "requests")
