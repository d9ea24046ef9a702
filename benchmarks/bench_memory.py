"""Memory of open spans, of driven tasks and of names, as tracemalloc sees it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import tracemalloc
from collections.abc import Callable
from typing import Any

from bench_spans import our_handler
from measure import Floor, Scale

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, install, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

__all__ = ["bytes_each", "memory"]


def bytes_each(make: Callable[[], Any], count: int, settle: Callable[[], object] = gc.collect) -> float:
    """Bytes that stay allocated for each of `count` things made and kept. Each is made in a context of its own, as in
    a task of its own; the context is made before and not counted.
    """
    contexts = [contextvars.copy_context() for _ in range(count)]
    kept: list[Any] = [None] * count
    contexts[0].run(make)
    settle()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for index, context in enumerate(contexts):
        kept[index] = context.run(make)
    settle()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / count


async def _task_bytes(count: int, settle: Callable[[], object]) -> float:
    released = asyncio.Event()

    async def waiting() -> None:
        await released.wait()

    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tasks = [asyncio.create_task(waiting()) for _ in range(count)]
    await asyncio.sleep(0)
    settle()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    released.set()
    await asyncio.gather(*tasks)
    return grown / count


def _name_bytes(count: int) -> tuple[float, float]:
    """Bytes of each name of which a task has completed, and of each that is served on a page too."""
    inspector = Inspector(Config(max_names=count + 2, max_tasks=100))
    handler = AsyncInspectHandler(inspector)
    logger = logging.getLogger("benchmark.names")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    with PrometheusExporter(inspector) as exporter:
        app = exporter.wsgi_app()

        def serve() -> None:
            app({"REQUEST_METHOD": "GET"}, lambda *_: None)
            gc.collect()

        with span("first", logger=logger):
            pass
        serve()
        inspector.settle()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            with span(f"name.{number}", logger=logger):
                pass
        inspector.settle()
        gc.collect()
        counted = tracemalloc.get_traced_memory()[0] - before
        # The page that was made before is as old as the one second for which it may be served.
        exporter.update()
        serve()
        served = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    logger.removeHandler(handler)
    handler.close()
    return counted / count, served / count


def memory(scale: Scale) -> dict[str, float]:
    """Bytes for each open span; for each driven, waiting task beyond what a bare one takes; and for each name."""
    bare = bytes_each(lambda: Floor("work").__enter__(), scale.open_spans)

    async def main(settle: Callable[[], object]) -> tuple[float, float]:
        plain = await _task_bytes(scale.open_spans, settle)
        with install():
            return plain, await _task_bytes(scale.open_spans, settle)

    with our_handler() as inspector:
        ours = bytes_each(lambda: span("work").__enter__(), scale.open_spans, inspector.settle)
        with_fields = bytes_each(
            lambda: span("work", user=7, path="/items", ratio=0.5).__enter__(), scale.open_spans, inspector.settle
        )
    with our_handler() as inspector:
        plain, driven = asyncio.run(main(inspector.settle))
    counted, served = _name_bytes(scale.open_spans)
    return {
        "memory": ours,
        "memory.fields": with_fields,
        "memory.bare": bare,
        "memory.task": driven - plain,
        "memory.task_bare": plain,
        "memory.name": counted,
        "memory.name_served": served,
    }
