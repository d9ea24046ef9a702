"""The peers, each as its documentation would have it used, with whatever it would send anywhere thrown away.

Each function here runs in a process of its own. It gives a span in floors (`<peer>`), and where the peer knows of
tasks, a task against a bare one (`task.<peer>`).
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from bench_memory import bytes_each
from bench_tasks import one_by_one, with_factory
from measure import Scale, floor_loop, interleaved, interleaved_async, ratios, young_gcs

__all__ = ["aiomonitor", "ddtrace", "eliot", "logfire", "otel", "otel_api", "sentry"]


def _loop(make: Callable[[], AbstractContextManager[Any]]) -> Callable[[int], None]:
    def loop(loops: int) -> None:
        for _ in range(loops):
            with make():
                pass

    return loop


def _spans(peer: str, make: Callable[[], AbstractContextManager[Any]], scale: Scale) -> dict[str, float]:
    """A span in floors; bytes for an open span."""
    times = interleaved({"floor": floor_loop, f"{peer}/16": _loop(make)}, scale)
    return {**ratios(times, "floor"), f"memory.{peer}": bytes_each(lambda: _entered(make()), scale.open_spans // 10)}


def _entered(manager: AbstractContextManager[Any]) -> Any:
    return manager, manager.__enter__()


def _collections(peer: str, make: Callable[[], AbstractContextManager[Any]], scale: Scale) -> dict[str, float]:
    """Young garbage collections of tasks with a span each, against those of bare ones."""
    rounds, some = max(1, scale.rounds // 3), min(1000, scale.loops)

    async def bare() -> None:
        await asyncio.sleep(0)

    async def in_span() -> None:
        with make():
            await asyncio.sleep(0)

    async def count(function: Callable[[], Any]) -> int:
        gc.collect()
        with young_gcs() as seen:
            for _ in range(rounds):
                await asyncio.gather(*[asyncio.create_task(function()) for _ in range(some)])
        return seen[0]

    async def main() -> dict[str, float]:
        await count(in_span)
        before = await count(bare)
        return {f"gc.{peer}": await count(in_span) / before} if before else {}

    return asyncio.run(main())


async def _tasks_where(
    peer: str, on: Callable[[], object], off: Callable[[], object], scale: Scale
) -> dict[str, float]:
    """A task while the peer's patches are on, against one while they are off."""

    async def patched(count: int) -> None:
        on()
        try:
            await one_by_one(count)
        finally:
            off()

    times = await interleaved_async({"bare": one_by_one, f"task.{peer}": patched}, scale.of(0.1))
    return ratios(times, "bare")


def _otel_provider() -> Any:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    provider = TracerProvider()
    # The base class's methods do nothing.
    provider.add_span_processor(SpanProcessor())
    return provider


def otel(scale: Scale) -> dict[str, float]:
    """OpenTelemetry's SDK, with a span processor that does nothing; and its asyncio instrumentation."""
    from opentelemetry import trace

    trace.set_tracer_provider(_otel_provider())
    tracer = trace.get_tracer("benchmark")
    make = functools.partial(tracer.start_as_current_span, "work")
    found = {**_spans("otel", make, scale), **_collections("otel", make, scale)}

    from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor

    instrumentor = AsyncioInstrumentor()
    # Which coroutines get a span is told by an environment variable, which run.py sets.
    return {**found, **asyncio.run(_tasks_where("otel", instrumentor.instrument, instrumentor.uninstrument, scale))}


def otel_api(scale: Scale) -> dict[str, float]:
    """OpenTelemetry's API without an SDK."""
    from opentelemetry import trace

    tracer = trace.NoOpTracerProvider().get_tracer("benchmark")
    times = interleaved(
        {"floor": floor_loop, "otel api/4": _loop(functools.partial(tracer.start_as_current_span, "work"))}, scale
    )
    return ratios(times, "floor")


def logfire(scale: Scale) -> dict[str, float]:
    """Logfire, sending nothing and printing nothing."""
    import logfire

    logfire.configure(send_to_logfire=False, console=False, metrics=False, inspect_arguments=False)
    make = functools.partial(logfire.span, "work")
    return {**_spans("logfire", make, scale), **_collections("logfire", make, scale)}


def eliot(scale: Scale) -> dict[str, float]:
    """Eliot, to a destination that drops."""
    import eliot

    eliot.add_destinations(lambda message: None)
    return _spans("eliot", functools.partial(eliot.start_action, action_type="work"), scale)


def ddtrace(scale: Scale) -> dict[str, float]:
    """Datadog's tracer, every trace of which a filter drops; and its asyncio patch, outside and inside a trace."""
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    class Drop(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            return None

    logging.getLogger("ddtrace").setLevel(logging.CRITICAL)
    tracer.configure(trace_processors=[Drop()])
    found = _spans("ddtrace", functools.partial(tracer.trace, "work"), scale)

    from ddtrace.contrib.internal.asyncio.patch import unpatch

    def on() -> None:
        ddtrace.patch(asyncio=True)

    async def inside() -> dict[str, float]:
        with tracer.trace("request"):
            return await _tasks_where("ddtrace in a trace", on, unpatch, scale)

    found.update(asyncio.run(_tasks_where("ddtrace", on, unpatch, scale)))
    found.update(asyncio.run(inside()))
    return found


def sentry(scale: Scale) -> dict[str, float]:
    """Sentry with tracing on and a transport that drops: a transaction, a span in one, and its asyncio integration."""
    import sentry_sdk
    from sentry_sdk.integrations.asyncio import AsyncioIntegration
    from sentry_sdk.transport import Transport

    class Drop(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            pass

    def transactions(loops: int) -> None:
        for _ in range(loops):
            with sentry_sdk.start_transaction(name="work"):
                pass

    def spans(loops: int) -> None:
        with sentry_sdk.start_transaction(name="request"):
            for _ in range(loops):
                with sentry_sdk.start_span(name="work"):
                    pass

    async def main() -> dict[str, float]:
        sentry_sdk.init(
            dsn="http://key@localhost/1",
            transport=Drop,
            traces_sample_rate=1.0,
            default_integrations=False,
            integrations=[AsyncioIntegration()],
        )
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(None)
        found = ratios(
            interleaved({"floor": floor_loop, "sentry/64": spans, "sentry transaction/64": transactions}, scale),
            "floor",
        )

        async def in_transaction(count: int) -> None:
            with sentry_sdk.start_transaction(name="request"):
                await one_by_one(count)

        times = await interleaved_async(
            {
                "bare": one_by_one,
                "task.sentry": with_factory(one_by_one, factory),
                "task.sentry in a transaction": with_factory(in_transaction, factory),
            },
            scale.of(0.05),
        )
        return {**found, **ratios(times, "bare")}

    return asyncio.run(main())


def aiomonitor(scale: Scale) -> dict[str, float]:
    """aiomonitor with its task factory on."""
    from aiomonitor import Monitor

    async def main() -> dict[str, float]:
        loop = asyncio.get_running_loop()
        # Ports 0: whatever is free.
        with Monitor(loop, termui_port=0, webui_port=0, console_port=0, console_enabled=False, hook_task_factory=True):
            factory = loop.get_task_factory()
            loop.set_task_factory(None)
            times = await interleaved_async(
                {"bare": one_by_one, "task.aiomonitor": with_factory(one_by_one, factory)}, scale.of(0.05)
            )
        return ratios(times, "bare")

    return asyncio.run(main())
