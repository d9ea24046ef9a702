"""Memory of open spans and of driven tasks, as tracemalloc sees it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

from bench_spans import our_handler
from measure import Floor, Scale

from asyncinspect_logging import install, span

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


def memory(scale: Scale) -> dict[str, float]:
    """Bytes for each open span; for each driven, waiting task beyond what a bare one takes."""
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
    return {
        "memory": ours,
        "memory.fields": with_fields,
        "memory.bare": bare,
        "memory.task": driven - plain,
        "memory.task_bare": plain,
    }
