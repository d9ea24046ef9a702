"""A small service with something of everything that the dashboard shows, told what to do on standard input.

Started as a program it prints the port of its /metrics; then, for each line that it reads, one line of JSON:

- `busy SECONDS HELD`: orders that complete, fail and are cancelled, pages, reports that hold the event loop (for HELD
  seconds), restless tasks, log lines; then nothing more happens. Answers {}.
- `deadlock`: two tasks that wait for each other's lock, for good. Answers {} once it is found.
- `hold SECONDS`: a task holds the event loop. Answers {} when it does; what is read next has to be `snapshot`.
- `snapshot`: answers what the inspector has.

It ends with standard input. Between the commands nothing but the heartbeat of the loop goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import sys
import time
from typing import Any

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, Snapshot, instrument, run, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

#: So few that some are let go, and that the last of the names counts under `_other_`.
CONFIG = Config(max_tasks=500, max_events=40, max_names=13)
inspector = Inspector(CONFIG)
logger = logging.getLogger("shop")


@instrument(name="GET /users/{id}")
async def user(rng: random.Random) -> None:
    await asyncio.sleep(rng.lognormvariate(-5, 0.7))


@instrument(name="GET /search")
async def search(rng: random.Random) -> None:
    for _ in range(rng.randrange(2, 9)):
        await asyncio.sleep(rng.lognormvariate(-4, 0.6))


@instrument(name="POST /orders")
async def order(rng: random.Random) -> None:
    logger.info("an order")
    await asyncio.sleep(rng.lognormvariate(-3.2, 0.8))
    if rng.random() < 0.08:
        raise ValueError("out of stock")


@instrument(name="quote")
async def quote(rng: random.Random) -> None:
    """The shop next door answers late, or never."""
    await asyncio.sleep(0.03 if rng.random() < 0.6 else 3600)


@instrument(name="report")
async def report(held: float) -> None:
    await asyncio.sleep(0.01)
    time.sleep(held)  # noqa: ASYNC251 - as is done by mistake


@instrument(name="index")
async def restless() -> None:
    for _ in range(130):
        await asyncio.sleep(0)


@instrument(name="subscription")
async def subscription(end: asyncio.Event) -> None:
    await end.wait()


@instrument(name="worker")
async def worker(jobs: asyncio.Queue[float]) -> None:
    while True:
        time.sleep(await jobs.get())  # noqa: ASYNC251 - of those that are woken together, each waits for the one before


@instrument(name="transfer")
async def transfer(first: asyncio.Lock, second: asyncio.Lock) -> None:
    async with first:
        await asyncio.sleep(0.01)
        async with second:
            pass


@instrument(name="hold")
async def hold(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - as is done by mistake


class Shop:
    def __init__(self) -> None:
        self.rng = random.Random(7)
        self.end = asyncio.Event()
        self.kept: list[asyncio.Task[None]] = []
        self.jobs: asyncio.Queue[float] = asyncio.Queue()

    async def busy(self, seconds: float, held: float = 0.12) -> None:
        began = time.monotonic()
        beat = 0
        running: list[asyncio.Task[Any]] = []
        while (passed := time.monotonic() - began) < seconds or beat == 0:
            beat += 1
            for _ in range(3):
                self.jobs.put_nowait(0.007)
            # Traffic comes and goes.
            often = 2 + round(2 * abs((passed / 20) % 2 - 1))
            running += [asyncio.create_task(user(self.rng)) for _ in range(often)]
            running += [asyncio.create_task(search(self.rng))]
            running += [asyncio.create_task(order(self.rng)) for _ in range(often // 2)]
            running += [asyncio.create_task(self.quoted())]
            if beat % 60 == 1:
                running.append(asyncio.create_task(report(held)))
            if beat % 90 == 31:
                running.append(asyncio.create_task(restless()))
            if beat % 40 == 1 and len(self.kept) < 12:
                self.kept.append(asyncio.create_task(subscription(self.end)))
            if beat % 20 == 1:
                # What a name is not to be made of.
                with span(f"job {beat}"):
                    await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            running = [task for task in running if not task.done()]
        await asyncio.gather(*running, return_exceptions=True)

    @instrument(name="GET /quotes")
    async def quoted(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(quote(self.rng), 0.2)

    async def deadlock(self) -> None:
        found = asyncio.Event()
        loop = asyncio.get_running_loop()
        inspector.on_deadlock(lambda finding: loop.call_soon_threadsafe(found.set))
        locks = [asyncio.Lock(), asyncio.Lock()]
        self.kept += [asyncio.create_task(transfer(*order)) for order in (locks, locks[::-1])]
        await found.wait()

    async def hold(self, seconds: float) -> None:
        self.kept.append(asyncio.create_task(hold(seconds)))

    @instrument(name="service")
    async def main(self) -> None:
        # An order that fails is no news here.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        await transfer(asyncio.Lock(), asyncio.Lock())
        await hold(0)
        await restless()
        self.kept += [asyncio.create_task(worker(self.jobs)) for _ in range(3)]
        await self.busy(0)
        print(server.port, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            command, *arguments = line.split()
            if command == "hold":
                seconds = float(arguments[0])
                await self.hold(seconds)
                # While it does, this thread's loop answers nothing.
                await asyncio.to_thread(self.answer_while_held)
                continue
            if command == "snapshot":
                # In a thread: the loop's time is counted.
                await asyncio.to_thread(tell)
            else:
                await getattr(self, command)(*map(float, arguments))
                print("{}", flush=True)
        for task in self.kept:
            task.cancel()

    def answer_while_held(self) -> None:
        while not inspector.snapshot().states["running"]:
            time.sleep(0.01)
        # Long enough for what there is to find to have been found: never_yielded takes a second.
        time.sleep(1.5)
        print("{}", flush=True)
        if sys.stdin.readline():
            tell()


def tell() -> None:
    print(json.dumps(plain(inspector.snapshot())), flush=True)


def plain(snapshot: Snapshot) -> dict[str, Any]:
    """Its totals."""

    def histogram(one: Any) -> dict[str, Any]:
        return {"bounds": one.bounds, "counts": one.counts, "sum": one.sum}

    return {
        "at": snapshot.taken_at,
        "names": {
            name: {
                **{
                    field: getattr(view, field)
                    for field in ("spawned", "completed", "failed", "cancelled", "polls", "busy")
                },
                "live": view.live,
                "durations": {state: histogram(one) for state, one in view.durations.items()},
                **{
                    field: histogram(getattr(view, field))
                    for field in ("poll_counts", "poll_durations", "scheduled_delays")
                },
            }
            for name, view in snapshot.names.items()
        },
        "states": dict(snapshot.states),
        "events": dict(snapshot.events),
        "dropped": dict(snapshot.dropped),
        "memory": dict(snapshot.memory),
        "lints": [[lint, name, count] for (lint, name), count in snapshot.lints.items()],
        "deadlocks": snapshot.deadlocks,
        "loop_lag": histogram(snapshot.loop_lag),
    }


if __name__ == "__main__":
    logging.basicConfig(level="INFO", handlers=[AsyncInspectHandler(inspector)])
    for name in ("asyncinspect.findings", "asyncio"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    with PrometheusExporter(inspector, update_interval=0).start_server(0) as server:
        run(Shop().main(), sync=True)
