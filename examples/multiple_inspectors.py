"""Two inspectors in one program: one for the parts that users wait for, one for what goes on in the background.

    python examples/multiple_inspectors.py

Which inspector hears of a span is a matter of logging: the span's logger, and the handlers on its path. Each has its
own limits, and its own page of metrics; a third page adds both up.
"""

from __future__ import annotations

import asyncio
import logging

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

requests_log = logging.getLogger("shop.requests")
jobs_log = logging.getLogger("shop.jobs")

requests = Inspector(Config.development())
jobs = Inspector(Config(sampling_rate=10, max_tasks=5))
requests_log.addHandler(AsyncInspectHandler(requests))
jobs_log.addHandler(AsyncInspectHandler(jobs))


@span("load", logger=requests_log)
async def load(number: int) -> None:
    await asyncio.sleep(0.001)


async def request(number: int) -> None:
    with span("request", logger=requests_log, number=number):
        await load(number)


async def job(number: int) -> None:
    with span("job", logger=jobs_log, number=number):
        await asyncio.sleep(0)


async def main() -> None:
    await asyncio.gather(*(request(number) for number in range(20)), *(job(number) for number in range(200)))


def show(title: str, exporter: PrometheusExporter) -> None:
    print(title)
    for line in exporter.gather().splitlines():
        if line.startswith(("async_inspect_tasks_total", "async_inspect_tasks_completed_total")):
            print("  ", line)


if __name__ == "__main__":
    asyncio.run(main())
    show("requests:", PrometheusExporter(requests))
    show("jobs, every one counted, the details of 1 in 10 kept:", PrometheusExporter(jobs))
    print("   details kept:", len(jobs.snapshot().tasks))
    show("both:", PrometheusExporter.multi([requests, jobs]))
