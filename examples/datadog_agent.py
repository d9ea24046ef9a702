"""Metrics to a Datadog agent, by DogStatsD: counters and gauges every ten seconds, and the duration of each task.

    pip install "asyncinspect-logging[statsd]"
    python examples/datadog_agent.py
    DOGSTATSD=unix:///var/run/datadog/dsd.socket python examples/datadog_agent.py

DOGSTATSD says where the agent is, if not on this machine's UDP port 8125.
"""

from __future__ import annotations

import asyncio
import logging.config
import os

from asyncinspect_logging import span
from asyncinspect_logging.exporters.statsd import StatsdExporter

logging.config.dictConfig(
    {
        "version": 1,
        "handlers": {"inspect": {"class": "asyncinspect_logging.AsyncInspectHandler"}},
        "root": {"level": "INFO", "handlers": ["inspect"]},
    }
)


async def handle(order: int) -> None:
    with span("handle_order", order=order):
        await asyncio.sleep(0.01)
        if order % 10 == 3:
            raise LookupError(order)


async def main() -> None:
    await asyncio.gather(*(handle(order) for order in range(100)), return_exceptions=True)


if __name__ == "__main__":
    address = os.environ.get("DOGSTATSD", "127.0.0.1:8125")
    exporter = StatsdExporter(
        address=address,
        dialect="dogstatsd",
        # Unified service tagging: see "service", "env" and "version" in Datadog's documentation.
        tags=["service:shop", "env:dev", "version:1.0"],
        # Percentiles over all hosts, as the agent cannot make them.
        durations="distribution",
    )
    exporter.start(10.0)
    asyncio.run(main())
    # Also done at the end of the process.
    exporter.close()
    print(f"no agent takes anything at {address}" if exporter.errors else f"sent to {address}")
