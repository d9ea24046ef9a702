"""One program and all that can hear of it, each by itself; what is not installed is left out, and the rest goes on.

    python examples/ecosystem_integration.py
    pip install "asyncinspect-logging[full]" fastapi httpx    # for all parts

Nothing has to listen anywhere: who does not is told. Where they are, if not at their usual places:

    OTEL_EXPORTER_OTLP_ENDPOINT    a collector, Jaeger, a Datadog agent    http://localhost:4317
    DOGSTATSD                      a Datadog agent                         127.0.0.1:8125
    PUSHGATEWAY                    a Pushgateway                           localhost:9091

Queries for Grafana are in docs/metrics.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from asyncinspect_logging import Inspector, install, json_logging, span
from asyncinspect_logging.exporters.chrome_trace import ChromeTraceExporter
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.exporters.push import PushJob, write_textfile
from asyncinspect_logging.integrations.asgi import AsyncInspectMiddleware
from asyncinspect_logging.integrations.console import active_tools, print_integration_info

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "inspect": {"class": "asyncinspect_logging.AsyncInspectHandler"},
        "console": {"class": "logging.StreamHandler", "level": "WARNING", "stream": "ext://sys.stdout"},
    },
    "root": {"level": "INFO", "handlers": ["inspect", "console"]},
}
COMPLETED = "async_inspect_tasks_completed_total{"


async def checkout(order: int) -> None:
    with span("charge", order=order):
        await asyncio.sleep(0.002)
        if order % 10 == 3:
            raise LookupError(f"order {order} has no card")


async def work() -> None:
    with install():
        await asyncio.gather(*(checkout(order) for order in range(20)), return_exceptions=True)


# -- the parts: each begins before the work, and goes on after it ------------------------------------------------------


def log_file(folder: Path) -> Iterator[None]:
    """A log that everything can be had from again, with `asyncinspect replay` too."""
    from asyncinspect_logging.analysis.replay import replay

    path = folder / "orders.jsonl"
    logging.config.dictConfig(json_logging(path, into=LOGGING))
    yield
    name = replay(str(path)).snapshot().names["charge"]
    print(f"replayed: {name.completed} completed, {name.failed} failed")


def fastapi(folder: Path) -> Iterator[None]:
    """Requests as spans, and /metrics in the same application."""
    try:
        from fastapi import FastAPI
        from httpx import ASGITransport, AsyncClient
    except ImportError as error:
        raise ImportError("a service needs something to serve it: pip install fastapi httpx") from error

    yield
    app = FastAPI()
    app.add_middleware(AsyncInspectMiddleware, metrics="/metrics")

    @app.get("/orders/{order}")
    async def get_order(order: int) -> int:
        await checkout(order)
        return order

    async def requests() -> str:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
            await asyncio.gather(*(client.get(f"/orders/{order}") for order in range(20, 23)))
            return (await client.get("/metrics")).text

    page = asyncio.run(requests())
    print(next(line for line in page.splitlines() if line.startswith(f'{COMPLETED}name="GET ')))


def structlog(folder: Path) -> Iterator[None]:
    """Events with the ids of the span that they happen in."""
    from asyncinspect_logging import AsyncInspectProcessor  # isort: skip
    from structlog import configure, get_logger
    from structlog.processors import JSONRenderer

    configure(processors=[AsyncInspectProcessor(), JSONRenderer()])
    yield
    with span("refund", order=3):
        get_logger().info("refunded", order=3)


def opentelemetry(folder: Path) -> Iterator[None]:
    """Each task as a span over OTLP, and OpenTelemetry's own spans as children of ours; metrics too."""
    from asyncinspect_logging.exporters.opentelemetry import OtelExporter

    exporter = OtelExporter("shop", service_version="1.0", timeout=1.0, bridge=True)
    exporter.start_continuous_export(10.0)
    meters = exporter.meter_provider(60.0)
    yield
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

    with span("pay") as ours, TracerProvider().get_tracer("bank").start_as_current_span("POST /payments") as theirs:
        assert isinstance(theirs, ReadableSpan)
        assert theirs.parent is not None
        print("a child of ours:", f"{theirs.parent.span_id:016x}" == ours.id)
    if not exporter.shutdown(1.0):
        print("not reached:", exporter.endpoint)
    meters.shutdown(1000)
    print(f"{exporter.exported} spans delivered, {exporter.dropped} lost")


def dogstatsd(folder: Path) -> Iterator[None]:
    """Counters, gauges and durations. `dialect="statsd"` is for servers that know no tags."""
    from asyncinspect_logging.exporters.statsd import StatsdExporter

    address = os.environ.get("DOGSTATSD", "127.0.0.1:8125")
    exporter = StatsdExporter(address=address, dialect="dogstatsd", tags=["service:shop"], durations="distribution")
    exporter.start(10.0)
    yield
    exporter.close()
    print("not reached:" if exporter.errors else "sent to", address)


def prometheus(folder: Path) -> Iterator[None]:
    """/metrics on a port of its own, with trace ids as exemplars; and as a file for the node exporter."""
    exporter = PrometheusExporter(exemplars=True)
    # Any free port, for the example. A service has a fixed one, which Prometheus scrapes.
    with exporter.start_server(0) as server:
        yield
        page = urllib.request.urlopen(server.url).read().decode()
    print(next(line for line in page.splitlines() if line.startswith(f'{COMPLETED}name="charge"')))
    write_textfile(folder / "orders.prom", exporter=exporter)
    print("textfile:", COMPLETED in (folder / "orders.prom").read_text())


def pushgateway(folder: Path) -> Iterator[None]:
    """For a job that is over before anybody scrapes it."""
    gateway = os.environ.get("PUSHGATEWAY", "localhost:9091")
    with PushJob(gateway, job="orders", timeout=2.0) as job:
        yield
    print("not reached:" if job.errors else "pushed to", gateway)


def files(folder: Path) -> Iterator[None]:
    """trace.json is for https://ui.perfetto.dev, and snapshot.json reads back."""
    yield
    snapshot = Inspector.default().snapshot()
    ChromeTraceExporter.export_to_file(snapshot, folder / "trace.json")
    JsonExporter.export_to_file(snapshot, folder / "snapshot.json")
    events = json.loads((folder / "trace.json").read_bytes())["traceEvents"]
    print("charges in the trace:", sum(event["name"] == "charge" and event["ph"] == "b" for event in events))
    print("the snapshot reads back:", JsonExporter.read(folder / "snapshot.json") == snapshot)


def live_tools(folder: Path) -> Iterator[None]:
    """Which of Python's live tools are on, what each can and cannot do, and what to do now."""
    yield
    print("on:", ", ".join(tool.name for tool in active_tools()) or "none")
    print_integration_info()


PARTS: list[Callable[[Path], Iterator[None]]] = [
    log_file,
    fastapi,
    structlog,
    prometheus,
    pushgateway,
    opentelemetry,
    dogstatsd,
    files,
    live_tools,
]


def main(folder: Path) -> None:
    begun = {}
    for part in PARTS:
        going = part(folder)
        try:
            next(going)
        except ImportError as error:  # a MissingExtraError is one, and says what to install
            print(f"{part.__name__} is left out: {error}")
        else:
            begun[part.__name__] = going
    asyncio.run(work())
    for name, going in begun.items():
        print(f"-- {name}")
        try:
            next(going, None)
        except ImportError as error:
            print(f"left out: {error}")


if __name__ == "__main__":
    logging.config.dictConfig(LOGGING)
    with tempfile.TemporaryDirectory() as where:
        main(Path(where))
