"""What a scrape costs: the page of many names, and the page with many live tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bench_spans import our_handler
from measure import Scale, ratios
from prometheus_client import generate_latest

from asyncinspect_logging import Inspector, install, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

__all__ = ["live_tasks", "pages"]


def _each_name(names: int) -> None:
    """A span of every name, so that no line of the next page is what it was on the last."""
    for number in range(names):
        with span(f"service.operation_{number}"):
            pass


def pages(scale: Scale) -> dict[str, float]:
    """`gather` against prometheus_client's `generate_latest` of the same exporter; milliseconds for both too."""
    with our_handler() as inspector:
        exporter = PrometheusExporter(inspector)

        def after_change(render: Callable[[], object]) -> Callable[[int], object]:
            def run(loops: int) -> None:
                render()

            return run

        def latest() -> bytes:
            return generate_latest(exporter.registry)

        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(max(2, scale.rounds // 3)):
            for render, taken in ((exporter.gather, ours), (latest, theirs)):
                _each_name(scale.names)
                inspector.settle()
                one = scale._replace(rounds=1, loops=1)
                taken += _once(after_change(render), one)
    times = {"ours": ours, "generate_latest": theirs}
    return {
        "page": ratios(times, "generate_latest")["ours"],
        "page.ours_ms": min(ours) * 1e3,
        "page.latest_ms": min(theirs) * 1e3,
    }


def _once(render: Callable[[int], object], scale: Scale) -> list[float]:
    import time

    started = time.perf_counter()
    render(1)
    return [time.perf_counter() - started]


async def _scrape_times(inspector: Inspector, live: int, rounds: int, *, driven: bool) -> list[float]:
    """Seconds for a scrape with so many live tasks, each of them with an open span."""
    released = asyncio.Event()

    async def plain() -> None:
        with span("waiting"):
            await released.wait()

    async def waiting() -> None:
        await released.wait()

    async def make() -> list[asyncio.Task[None]]:
        if not driven:
            return [asyncio.create_task(plain()) for _ in range(live)]
        with install():
            return [asyncio.create_task(waiting()) for _ in range(live)]

    exporter = PrometheusExporter(inspector)
    tasks = await make()
    await asyncio.sleep(0)
    exporter.gather()
    scale = Scale(rounds, 1, 0, 0, 0)

    def scrape(loops: int) -> None:
        exporter.gather()

    times = []
    for _ in range(rounds):
        # A service goes on working between two scrapes.
        for _ in range(100):
            with span("request"):
                pass
        times += _once(scrape, scale)
    released.set()
    await asyncio.gather(*tasks)
    return times


def live_tasks(scale: Scale) -> dict[str, float]:
    """The scrape with many live tasks against the scrape with ten."""
    rounds = scale.rounds * 2
    found: dict[str, float] = {}
    for name, driven in (("scrape.plain", False), ("scrape.driven", True)):
        with our_handler() as inspector:
            few = asyncio.run(_scrape_times(inspector, 10, rounds, driven=driven))
        with our_handler() as inspector:
            many = asyncio.run(_scrape_times(inspector, scale.live_tasks, rounds, driven=driven))
        few.sort()
        many.sort()
        found[name] = many[rounds // 2] / few[rounds // 2]
        found[f"{name}_ms"] = many[rounds // 2] * 1e3
    return found
