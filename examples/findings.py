"""A program with everything wrong with it that the detectors know, each once; and the same program put right.

    python examples/findings.py            every finding once
    python examples/findings.py --clean    none

Needs nothing beyond asyncinspect-logging itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import time
import warnings
from collections.abc import Iterator

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, install, instrument
from asyncinspect_logging.detect.sync import Lock
from asyncinspect_logging.snapshot import Finding
from asyncinspect_logging.spans import LOGGER

#: Quick to find, so that the example is quick to run; the defaults suit services.
CONFIG = Config(slow_poll=0.1, never_yielded=0.5, many_self_wakes=100, leaked_after=0.2, lost_waker_after=0.2)


@contextlib.contextmanager
def inspected(config: Config) -> Iterator[Inspector]:
    inspector = Inspector(config)
    handler = AsyncInspectHandler(inspector)
    LOGGER.addHandler(handler)
    try:
        yield inspector
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


async def in_two_locks(first: Lock, second: Lock) -> None:
    async with first:
        await asyncio.sleep(0.01)
        async with second:
            pass


async def deadlock(clean: bool) -> None:
    """Two tasks take two locks in opposite order. The cure: one order for all."""
    accounts, orders = Lock(name="accounts"), Lock(name="orders")
    one = asyncio.create_task(in_two_locks(accounts, orders))
    other = asyncio.create_task(in_two_locks(accounts, orders) if clean else in_two_locks(orders, accounts))
    await asyncio.wait([one, other], timeout=1)
    for task in one, other:
        task.cancel()
    await asyncio.gather(one, other, return_exceptions=True)


async def compute(clean: bool) -> None:
    """A blocking call: a long poll, a task that never let go, and a loop that did not come back. The cure: a thread."""
    if clean:
        await asyncio.to_thread(time.sleep, 0.6)
    else:
        time.sleep(0.6)  # noqa: ASYNC251 - the fault


async def poll_for(flag: asyncio.Event, clean: bool) -> None:
    if clean:
        await flag.wait()
    while not flag.is_set():  # noqa: ASYNC110 - the fault
        await asyncio.sleep(0)


async def busy_waiting(clean: bool) -> None:
    """Asking again and again. The cure: wait for it."""
    flag = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, flag.set)
    await asyncio.create_task(poll_for(flag, clean))


async def answer(clean: bool) -> None:
    """A future that nobody else knows. The cure: hand it to whoever is to complete it."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if clean:
        asyncio.get_running_loop().call_later(0.5, future.set_result, None)
    await future


async def unanswered(clean: bool) -> None:
    waiting = asyncio.create_task(answer(clean))
    await asyncio.wait([waiting], timeout=1)
    waiting.cancel()


async def refresh() -> None:
    await asyncio.sleep(2)


async def request(clean: bool) -> None:
    """A request that leaves a task behind. The cure: a TaskGroup, or a name for the task."""
    task = asyncio.create_task(refresh())
    if clean:
        task.cancel()


async def leak(clean: bool) -> None:
    await asyncio.create_task(request(clean))
    await asyncio.sleep(1)


async def forgotten() -> None:
    pass


async def forget(clean: bool) -> None:
    """A coroutine that is made, and not awaited."""
    coroutine = instrument(forgotten())
    if clean:
        await coroutine
    del coroutine
    gc.collect()


async def main(clean: bool) -> None:
    with install():
        await asyncio.create_task(deadlock(clean))
        await asyncio.create_task(compute(clean))
        await asyncio.create_task(busy_waiting(clean))
        await asyncio.create_task(unanswered(clean))
        await asyncio.create_task(leak(clean))
        await forget(clean)


if __name__ == "__main__":
    # What these tasks do is what Python itself warns of at times.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    found: list[Finding] = []
    with inspected(CONFIG) as inspector:
        # A deadlock that somebody broke is no longer in a snapshot; so each is written down when it is told.
        inspector.on_finding(found.append)
        asyncio.run(main("--clean" in sys.argv[1:]))
        inspector.look()
    for finding in found:
        print(f"{finding.kind}: {finding.message}\n")
    print(f"findings: {len(found)}")
