"""Spans: enter and exit, heard and unheard, against the floor, against logging, and by hand with prometheus_client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from measure import Scale, floor_loop, interleaved, ratios
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from asyncinspect_logging import AsyncInspectHandler, Inspector, instrument, span

__all__ = ["logger_without_output", "our_handler", "spans", "structlog_chain", "unheard"]


@contextmanager
def our_handler() -> Iterator[Inspector]:
    """Our handler at the root, as in an application."""
    inspector = Inspector()
    handler = AsyncInspectHandler(inspector)
    logging.getLogger().addHandler(handler)
    try:
        yield inspector
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _NoOp(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        pass


def logger_without_output() -> logging.Logger:
    """A logger that makes records and hands them to a handler that drops them."""
    logger = logging.getLogger("benchmark")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_NoOp())
    return logger


def span_loop(loops: int) -> None:
    for _ in range(loops):
        with span("work"):
            pass


def fields_loop(loops: int) -> None:
    for _ in range(loops):
        with span("work", user=7, path="/items", ratio=0.5):
            pass


def nested_loop(loops: int) -> None:
    with span("outer"):
        span_loop(loops)


def in_task(loop_function: Callable[[int], object]) -> Callable[[int], object]:
    """The same inside a task of a running event loop."""
    event_loop = asyncio.new_event_loop()

    async def task(loops: int) -> None:
        loop_function(loops)

    return lambda loops: event_loop.run_until_complete(task(loops))


def in_driven_task(loop_function: Callable[[int], object]) -> Callable[[int], object]:
    """The same inside a coroutine with a driver."""
    event_loop = asyncio.new_event_loop()

    async def task(loops: int) -> None:
        loop_function(loops)

    return lambda loops: event_loop.run_until_complete(instrument(task(loops)))


def _log_loops(logger: logging.Logger) -> tuple[Callable[[int], None], Callable[[int], None]]:
    def once(loops: int) -> None:
        for _ in range(loops):
            logger.info("work", extra={"user": 7})

    def twice(loops: int) -> None:
        for _ in range(loops):
            logger.info("begin", extra={"user": 7})
            logger.info("end", extra={"user": 7})

    return once, twice


class _ByHand:
    """The four metrics of a span, kept with prometheus_client."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._spawned = Counter("spawned", "tasks", ["name"], registry=registry).labels("work")
        self._live = Gauge("live", "tasks", ["name"], registry=registry).labels("work")
        self._finished = Counter("finished", "tasks", ["name", "state"], registry=registry).labels("work", "completed")
        self._durations = Histogram("duration_seconds", "tasks", ["name"], registry=registry).labels("work")
        self._started = 0.0

    def __enter__(self) -> None:
        self._spawned.inc()
        self._live.inc()
        self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._durations.observe(time.perf_counter() - self._started)
        self._finished.inc()
        self._live.dec()


def spans(scale: Scale) -> dict[str, float]:
    """In multiples of the floor, but for `span.log`: a span against one `logger.info`."""
    once, twice = _log_loops(logger_without_output())
    by_hand = _ByHand()

    def by_hand_loop(loops: int) -> None:
        for _ in range(loops):
            with by_hand:
                pass

    with our_handler():
        times = interleaved(
            {
                "floor": floor_loop,
                "span": span_loop,
                "span.nested": nested_loop,
                "span.task": in_task(span_loop),
                "span.driven": in_driven_task(span_loop),
                "span.fields": fields_loop,
                "by hand/4": by_hand_loop,
                "log/4": once,
                "two logs/8": twice,
            },
            scale,
        )
    return {**ratios(times, "floor"), "span.log": ratios(times, "log")["span"]}


def unheard(scale: Scale) -> dict[str, float]:
    """A span when nobody listens."""
    times = interleaved({"floor": floor_loop, "span.unheard": span_loop}, scale)
    return ratios(times, "floor")


def structlog_chain(scale: Scale) -> dict[str, float]:
    """A span through a structlog chain with our processor, less the same chain with one that drops: in floors.

    The chain does two things before it comes to the processor in question, so that every event runs through it. With
    our processor as the first, nobody else could see a lifecycle event, and none is made: `structlog.first`.
    """
    import structlog

    from asyncinspect_logging import AsyncInspectProcessor

    def drop(logger: Any, method: str, event: Any) -> Any:
        raise structlog.DropEvent

    def loop_with(*processors: Any) -> Callable[[int], None]:
        logger = structlog.wrap_logger(None, processors)

        def loop(loops: int) -> None:
            for _ in range(loops):
                with span("work", logger=logger):
                    pass

        return loop

    before = (structlog.contextvars.merge_contextvars, structlog.processors.add_log_level)
    times = interleaved(
        {
            "floor": floor_loop,
            "structlog.whole/32": loop_with(*before, AsyncInspectProcessor(Inspector())),
            "structlog.dropping/32": loop_with(*before, drop),
            "structlog.first/4": loop_with(AsyncInspectProcessor(Inspector()), *before),
        },
        scale,
    )
    measured = ratios(times, "floor")
    return {**measured, "structlog": measured["structlog.whole"] - measured["structlog.dropping"]}
