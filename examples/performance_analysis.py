"""Find what is slow in a running program, put it right, and compare.

    python examples/performance_analysis.py

The same work is done twice. The first version blocks the loop while it resizes, and takes one connection for all; the
profile of what the inspector saw says so, and the second version does neither.
"""

from __future__ import annotations

import asyncio
import logging
import time

from asyncinspect_logging import AsyncInspectHandler, Inspector, install, instrument, span
from asyncinspect_logging.analysis.profile import Profile, profile
from asyncinspect_logging.detect.sync import Semaphore


@instrument(name="query", skip={"connections"})
async def query(connections: Semaphore, number: int) -> None:
    async with connections:
        await asyncio.sleep(0.005)


def resize(number: int) -> None:
    with span("resize", number=number):
        time.sleep(0.004)  # in place of work for the processor


@instrument(name="request", skip={"connections"})
async def request(connections: Semaphore, number: int, in_thread: bool) -> None:
    await query(connections, number)
    if in_thread:
        await asyncio.to_thread(resize, number)
    else:
        resize(number)


async def work(connections: int, in_thread: bool) -> None:
    pool = Semaphore(connections, name="connections")
    with install():
        await asyncio.gather(*(request(pool, number, in_thread) for number in range(20)))


def measure(connections: int, in_thread: bool) -> Profile:
    inspector = Inspector()
    handler = AsyncInspectHandler(inspector)
    logger = logging.getLogger("asyncinspect")
    logger.setLevel("TRACE")  # with each step, which says who waited for what
    logger.propagate = False
    logger.addHandler(handler)
    try:
        asyncio.run(work(connections, in_thread))
    finally:
        logger.removeHandler(handler)
    return profile(inspector.snapshot())


if __name__ == "__main__":
    before = measure(connections=1, in_thread=False)
    after = measure(connections=10, in_thread=True)
    print(before.render(width=100))
    for name, told in (("before", before), ("after", after)):
        requests = next(each for each in told.names if each.name == "request")
        waited = sum(each.total for each in told.contention)
        print(
            f"{name}: p99 {(requests.durations.p99 or 0) * 1e3:.0f} ms, on the loop {requests.busy * 1e3:.0f} ms, "
            f"waited for connections {waited * 1e3:.0f} ms"
        )
