"""What looking for deadlocks costs, with many tasks that wait, and what a primitive that reports costs."""

from __future__ import annotations

import asyncio
import statistics
import time

from bench_spans import our_handler
from measure import Scale, Times, ratios

from asyncinspect_logging import Inspector, install
from asyncinspect_logging.detect.sync import Lock

__all__ = ["deadlocks"]


async def _looks(inspector: Inspector, waiting: int, looks: int) -> tuple[list[float], float]:
    """Seconds of processor time for a look while so many tasks wait, ten for each lock; and the part of a core that
    the process takes when all it does is to have the watcher look.
    """
    released = asyncio.get_running_loop().create_future()

    async def hold(lock: asyncio.Lock) -> None:
        async with lock:
            await released

    async def want(lock: asyncio.Lock) -> None:
        async with lock:
            pass

    locks = [asyncio.Lock() for _ in range(max(1, waiting // 10))]
    tasks = [asyncio.create_task(hold(lock)) for lock in locks]
    tasks += [asyncio.create_task(want(lock)) for _ in range(10) for lock in locks]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    taken = []
    for _ in range(looks):
        started = time.process_time()
        inspector.look()
        taken.append(time.process_time() - started)
    started, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(looks / 10)
    core = (time.process_time() - used) / (time.perf_counter() - started)
    released.set_result(None)
    await asyncio.gather(*tasks)
    return taken, core


async def _uncontended(lock: asyncio.Lock, count: int) -> float:
    started = time.process_time()
    for _ in range(count):
        async with lock:
            pass
    return time.process_time() - started


def deadlocks(scale: Scale) -> dict[str, float]:
    """A look with many who wait, in ms, and the part of a core, in %, that all looking takes; and a free lock that
    reports against one that does not.
    """
    times: Times = {"plain": [], "reporting": [], "drop-in": []}

    async def main(inspector: Inspector) -> tuple[list[float], float]:
        with install(sync=True):
            looks = await _looks(inspector, scale.open_spans, scale.rounds)
        for _ in range(scale.rounds):
            times["plain"].append(await _uncontended(asyncio.Lock(), scale.loops))
            times["drop-in"].append(await _uncontended(Lock(), scale.loops))
            with install(sync=True):
                times["reporting"].append(await _uncontended(asyncio.Lock(), scale.loops))
        return looks

    with our_handler() as inspector:
        looks, core = asyncio.run(main(inspector))
    against = ratios(times, "plain")
    return {
        "deadlocks.look_ms": statistics.median(looks) * 1e3,
        "deadlocks.core": core * 100,
        "deadlocks.lock": against["reporting"],
        "deadlocks.drop_in": against["drop-in"],
        "deadlocks.lock_us": statistics.median(times["reporting"]) / scale.loops * 1e6,
    }
