"""A small shop under load, for `asyncinspect demo`: orders that wait for stock, for a bank and for each other."""

from __future__ import annotations

import asyncio
import logging
import random

from asyncinspect_logging import current_span, install, span

__all__ = ["run_shop"]

_log = logging.getLogger("shop")


class CardDeclinedError(Exception):
    """The bank said no."""


class Shop:
    """What orders share: few lines to the bank, one book of the stock, and chance, which is the same in each run."""

    def __init__(self) -> None:
        self.bank = asyncio.Semaphore(4)
        self.stock = asyncio.Lock()
        self.parcels: asyncio.Queue[int] = asyncio.Queue(50)
        self.chance = random.Random(4)

    async def takes(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.chance.uniform(0.5, 1.5))

    async def order(self, number: int) -> None:
        if (task := current_span()) is not None:
            task.record(number=number)
        try:
            async with asyncio.timeout(0.25):
                await self.reserve(number)
                await self.charge(number)
        except TimeoutError:
            _log.warning("order %d took too long and was given up", number)
        except CardDeclinedError:
            _log.info("order %d was declined", number)
        else:
            await self.parcels.put(number)

    @span("reserve")
    async def reserve(self, number: int) -> None:
        async with self.stock:
            await self.takes(0.002)

    @span("charge")
    async def charge(self, number: int) -> None:
        async with self.bank:
            await self.takes(0.5 if number % 97 == 0 else 0.02)
        if number % 23 == 0:
            raise CardDeclinedError(f"the card of order {number} was declined")

    async def ship(self) -> None:
        """Pack what has been paid, for as long as there is a shop."""
        while True:
            number = await self.parcels.get()
            with span("ship", number=number):
                await self.takes(0.003)


async def run_shop(seconds: float, rate: float = 100.0) -> None:
    """Take `rate` orders a second for so many seconds; the shop then closes over what is still under way."""
    loop = asyncio.get_running_loop()
    with install(sync=True):
        shop = Shop()
        shipping = asyncio.create_task(shop.ship())
        orders: set[asyncio.Task[None]] = set()
        end, number = loop.time() + seconds, 0
        while loop.time() < end:
            number += 1
            task = asyncio.create_task(shop.order(number))
            orders.add(task)
            task.add_done_callback(orders.discard)
            await asyncio.sleep(shop.chance.expovariate(rate))
        for task in [*orders, shipping]:
            task.cancel()
        await asyncio.gather(*orders, shipping, return_exceptions=True)
