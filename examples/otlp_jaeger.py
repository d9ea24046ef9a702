"""Traces in Jaeger: `docker run -p 4317:4317 -p 16686:16686 jaegertracing/jaeger`, then

    pip install "asyncinspect-logging[opentelemetry]"
    python examples/otlp_jaeger.py http://localhost:4317

and look for the service "shop" at http://localhost:16686. Without an address, the spans are printed here.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from asyncinspect_logging import AsyncInspectHandler, annotate, instrument, span
from asyncinspect_logging.exporters.opentelemetry import OtelExporter, create_otlp_exporter


@instrument(name="charge_card")
async def charge_card(order: int) -> None:
    await asyncio.sleep(0.01)
    if order == 3:
        raise LookupError("no such card")


async def checkout(order: int, headers: dict[str, str]) -> None:
    with span("checkout", parent=headers, order=order):
        annotate("charging")
        await charge_card(order)


async def main() -> None:
    # What a caller sends along: all checkouts are part of its trace.
    with span("load generator") as caller:
        headers = {"traceparent": caller.traceparent()}
        await asyncio.gather(*(checkout(order, headers) for order in range(1, 6)), return_exceptions=True)


def exporter_to(address: str | None) -> OtelExporter:
    if address is not None:
        return create_otlp_exporter("shop", address)
    console = ConsoleSpanExporter(formatter=lambda one: f"{one.name} {one.status.status_code.name} {one.parent}\n")
    return OtelExporter("shop", span_exporter=console)


# Level 5 has each step on the timeline: polls, wakes, and what a task was blocked on.
logging.getLogger("asyncinspect").setLevel(5)
logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler())
with exporter_to(sys.argv[1] if len(sys.argv) > 1 else None) as exporter:
    exporter.start_continuous_export(10.0)
    asyncio.run(main())
print(f"{exporter.exported} spans exported, {exporter.dropped} dropped")
