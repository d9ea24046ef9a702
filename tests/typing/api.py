"""The public API as users write it. It is type-checked, and never run."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import structlog

from asyncinspect_logging import (
    AsyncInspectHandler,
    AsyncInspectProcessor,
    Config,
    Inspector,
    Snapshot,
    Span,
    TaskState,
    annotate,
    current_span,
    install,
    instrument,
    run,
    span,
)
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.testing import CapturedSpans, FakeClock, capture_spans


def spans() -> None:
    with span("job", user_id=7, logger=logging.getLogger("app"), parent=None, links=["00f067aa0ba902b7"]) as s:
        assert_type(s, Span)
        assert_type(s.id, str)
        assert_type(s.trace_id, str)
        assert_type(s.name, str)
        assert_type(s.traceparent(), str)
        s.record(rows=3)
        annotate("a line", rows=3)
    with span("job", logger=structlog.get_logger(), parent={"traceparent": "…"}):
        pass
    assert_type(current_span(), Span | None)


async def async_spans() -> None:
    async with span("job") as s:
        assert_type(s, Span)


@span("function")
def function(a: int, b: str = "") -> float:
    return a + len(b)


@span("coroutine function")
async def coroutine_function(a: int) -> str:
    return str(a)


@span("generator function")
def generator_function() -> Iterator[int]:
    yield 1


@span("async generator function")
async def async_generator_function() -> AsyncIterator[int]:
    yield 1


class Shop:
    @span("method")
    def method(self, a: int) -> str:
        return str(a)

    @classmethod
    @span("class method")
    def class_method(cls, a: int) -> str:
        return str(a)

    @staticmethod
    @span("static method")
    def static_method(a: int) -> str:
        return str(a)


@instrument
async def instrumented(a: int) -> str:
    return str(a)


@instrument(name="named", skip={"password"}, fields={"kind": "x"})
async def instrumented_with_arguments(user: str, password: str) -> int:
    return len(user + password)


async def decorated() -> None:
    assert_type(function(1, b="x"), float)
    assert_type(await coroutine_function(1), str)
    assert_type(next(generator_function()), int)
    assert_type([item async for item in async_generator_function()], list[int])
    shop = Shop()
    assert_type(shop.method(1), str)
    assert_type(shop.class_method(1), str)
    assert_type(Shop.static_method(1), str)
    assert_type(await instrumented(1), str)
    assert_type(await instrumented_with_arguments("a", "b"), int)
    assert_type(await instrument(coroutine_function(1), name="one"), str)
    undo = install()
    undo()
    with install():
        pass


def programs() -> None:
    assert_type(run(coroutine_function(1)), str)


def front_ends(inspector: Inspector) -> None:
    AsyncInspectHandler()
    AsyncInspectHandler(inspector, level=logging.INFO)
    logging.basicConfig(handlers=[AsyncInspectHandler(inspector=inspector, level="INFO")])
    structlog.configure(
        processors=[AsyncInspectProcessor(inspector, pass_lifecycle=True), structlog.dev.ConsoleRenderer()]
    )


def inspectors() -> None:
    inspector = Inspector(Config(sampling_rate=100, max_tasks=None), clock=FakeClock())
    assert_type(Inspector.default(), Inspector)
    Inspector(Config.production())
    Inspector(Config.from_env())
    inspector.apply({"asyncinspect": {"v": 1}})
    snapshot = inspector.snapshot()
    assert_type(snapshot, Snapshot)
    for task in snapshot.tasks:
        assert_type(task.state, TaskState)
        assert_type(task.duration, float | None)
        assert_type(task.await_chain, tuple[str, ...])
    assert_type(snapshot.names["job"].completed, int)
    assert_type(snapshot.findings[0].kind, str)
    assert_type(snapshot.dropped["max_tasks"], int)
    inspector.reset()


def exporters(inspector: Inspector) -> None:
    exporter = PrometheusExporter(inspector, path="/metrics", port=0, update_interval=0, name_label="task_name")
    with exporter.start_server("127.0.0.1:0") as server:
        assert_type(server.port, int)
    assert_type(exporter.gather(), str)
    exporter.update()
    exporter.start_background_updater(5.0)
    PrometheusExporter.multi([inspector, Inspector()])


def tests(inspector: CapturedSpans, fake_clock: FakeClock) -> None:
    fake_clock.advance(1.5)
    with capture_spans(clock=fake_clock) as captured:
        assert_type(captured, CapturedSpans)
        captured.assert_completed("job", times=3)
        captured.assert_failed("job", error=ValueError)
        captured.assert_cancelled("job")
        captured.assert_no_open_spans()
    assert_type(inspector.inspector, Inspector)
    with fake_clock as same:
        assert_type(same, FakeClock)
