"""A worker that fetches pages with aiohttp, every task of its loop seen: `run` in place of `asyncio.run`.

    pip install aiohttp
    python examples/aiohttp_worker.py

Nothing but the last lines knows of asyncinspect_logging. Each task is named by its coroutine, and the program says by
itself where it was slow: `parse` keeps the loop busy, `fetch` waits for the network.
"""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from aiohttp import web

PAGES = 12


async def serve_page(request: web.Request) -> web.Response:
    """The other side, to have something to fetch. Every fourth page is missing."""
    number = int(request.match_info["number"])
    await asyncio.sleep(0.01)
    if number % 4 == 3:
        raise web.HTTPNotFound
    return web.Response(text=f"page {number} " * 20_000)


async def fetch(session: aiohttp.ClientSession, url: str, pages: asyncio.Queue[str]) -> None:
    async with session.get(url) as response:
        response.raise_for_status()
        await pages.put(await response.text())


async def parse(pages: asyncio.Queue[str], words: dict[str, int]) -> None:
    while True:
        page = await pages.get()
        for word in page.split():
            words[word] = words.get(word, 0) + 1
        pages.task_done()


async def work() -> None:
    app = web.Application()
    app.add_routes([web.get("/{number}", serve_page)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    pages: asyncio.Queue[str] = asyncio.Queue()
    words: dict[str, int] = {}
    parser = asyncio.create_task(parse(pages, words))
    async with aiohttp.ClientSession() as session:
        fetches = [asyncio.create_task(fetch(session, f"{url}/{number}", pages)) for number in range(PAGES)]
        failed = [error for error in await asyncio.gather(*fetches, return_exceptions=True) if error is not None]
    await pages.join()
    parser.cancel()
    await asyncio.gather(parser, return_exceptions=True)
    await runner.cleanup()
    print(f"{PAGES - len(failed)} pages, {len(failed)} missing, {words['page']} times 'page'")


if __name__ == "__main__":
    from asyncinspect_logging import AsyncInspectHandler, Inspector, run

    logging.basicConfig(handlers=[AsyncInspectHandler()])
    run(work())

    print(f"{'task':22} {'ok':>4} {'failed':>6} {'cancelled':>9} {'polls':>6} {'busy ms':>8} {'waited ms':>9}")
    for name in sorted(Inspector.default().snapshot().names.values(), key=lambda name: -name.busy):
        print(
            f"{name.name.rpartition('.')[2]:22} {name.completed:4} {name.failed:6} {name.cancelled:9} {name.polls:6} "
            f"{name.busy * 1e3:8.1f} {name.idle * 1e3:9.1f}"
        )
