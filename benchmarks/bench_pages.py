"""What a scrape costs: the page of many names, and the page with many live tasks."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable

from bench_spans import our_handler
from measure import Scale, Times, ratios
from prometheus_client import generate_latest

from asyncinspect_logging import Inspector, install, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

__all__ = ["live_tasks", "pages"]


def _each_name(names: int) -> None:
    """A span of every name, so that no line of the next page is what it was on the last."""
    for number in range(names):
        with span(f"service.operation_{number}"):
            pass


def _seconds(render: Callable[[], object]) -> float:
    started = time.process_time()
    render()
    return time.process_time() - started


def pages(scale: Scale) -> dict[str, float]:
    """`gather` against prometheus_client's `generate_latest` of the same exporter; milliseconds for both too."""
    times: Times = {"ours": [], "generate_latest": []}
    with our_handler() as inspector:
        exporter = PrometheusExporter(inspector)
        render: dict[str, Callable[[], object]] = {
            "ours": exporter.gather,
            "generate_latest": lambda: generate_latest(exporter.registry),
        }
        for _ in range(max(2, scale.rounds // 3)):
            for name, taken in times.items():
                _each_name(scale.names)
                inspector.settle()
                taken.append(_seconds(render[name]))
    return {
        "page": ratios(times, "generate_latest")["ours"],
        "page.ours_ms": statistics.median(times["ours"]) * 1e3,
        "page.latest_ms": statistics.median(times["generate_latest"]) * 1e3,
    }


async def _with_live(inspector: Inspector, live: int, scrapes: int, *, driven: bool) -> float:
    """Seconds for a scrape (median) with so many live tasks, each of them with an open span."""
    released = asyncio.Event()

    async def plain() -> None:
        with span("waiting"):
            await released.wait()

    async def waiting() -> None:
        await released.wait()

    if driven:
        with install():
            tasks = [asyncio.create_task(waiting()) for _ in range(live)]
    else:
        tasks = [asyncio.create_task(plain()) for _ in range(live)]
    await asyncio.sleep(0)
    exporter = PrometheusExporter(inspector)
    exporter.gather()
    gc.collect()
    taken = []
    for _ in range(scrapes):
        # A service goes on working between two scrapes.
        for _ in range(100):
            with span("request"):
                pass
        taken.append(_seconds(exporter.gather))
    released.set()
    await asyncio.gather(*tasks)
    return statistics.median(taken)


def live_tasks(scale: Scale) -> dict[str, float]:
    """The scrape with many live tasks against the scrape with ten, by turns."""
    found: dict[str, float] = {}
    for name, driven in (("scrape.plain", False), ("scrape.driven", True)):
        times: Times = {"few": [], "many": []}
        with our_handler() as inspector:
            # As in a service that has run for a while: as many finished tasks are kept as the configuration allows.
            asyncio.run(_with_live(inspector, scale.live_tasks // 50, 1, driven=driven))
            for _ in range(max(1, scale.rounds // 5)):
                for key, live in (("few", 10), ("many", scale.live_tasks)):
                    times[key].append(asyncio.run(_with_live(inspector, live, 2 * scale.rounds, driven=driven)))
        found[name] = ratios(times, "few")["many"]
        found[f"{name}_ms"] = statistics.median(times["many"]) * 1e3
    return found
