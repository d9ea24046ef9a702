"""Tasks as OpenTelemetry spans, at a receiver over gRPC and HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

import otlp_receiver as otlp
from opentelemetry.sdk.trace import sampling
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from asyncinspect_logging import Config, Inspector, annotate, diagnostics, instrument, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.opentelemetry import OtelExporter, create_otlp_exporter
from asyncinspect_logging.testing import FakeClock

Listen = Callable[..., Inspector]
Make = Callable[..., OtelExporter]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def _receiver() -> Iterator[Any]:
    with otlp.Receiver() as receiver:
        yield receiver


@pytest.fixture
def receiver(_receiver: Any) -> Any:
    """Of the whole module, and empty."""
    _receiver.empty()
    return _receiver


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    otlp.without_variables(monkeypatch)


@pytest.fixture
def make() -> Iterator[Make]:
    """Exporters that are shut down with the test."""
    made: list[OtelExporter] = []

    def make(*arguments: Any, **options: Any) -> OtelExporter:
        made.append(OtelExporter(*arguments, **options))
        return made[-1]

    yield make
    for exporter in made:
        exporter.shutdown(0)


@pytest.fixture(params=["grpc", "http/protobuf"])
def to(request: pytest.FixtureRequest, receiver: Any) -> dict[str, str]:
    """How to reach the receiver, by each protocol."""
    protocol: str = request.param
    return {"endpoint": f"http://{receiver.grpc if protocol == 'grpc' else receiver.http}", "protocol": protocol}


# -- what arrives ---------------------------------------------------------------------------------------------------


def test_every_field(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Of a tree of tasks: one that completed, one that failed, one that was cancelled; with steps and log lines."""
    inspector = listen()
    exporter = make(
        "shop", inspector, service_version="1.2", resource_attributes={"deployment.environment": "test"}, **to
    )
    logging.getLogger("asyncinspect").setLevel(5)
    spans: dict[str, Any] = {}

    @instrument(name="query")
    async def query() -> None:
        await asyncio.sleep(0.001)
        annotate("half way", rows=3)
        raise LookupError("no such user")

    async def main() -> None:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=abc"}
        other = span("other", parent=None)
        with other:
            pass
        fields = {"user": 7, "http": {"request": {"method": "GET"}}, "ok": True, "ratio": 0.5, "tags": ["a", "b"]}
        with span("request", parent=headers, links=[other, f"00-{'1' * 32}-{'2' * 16}-01"], **fields) as request:
            spans["request"], spans["other"] = request, other
            await asyncio.gather(query(), return_exceptions=True)
            waiting = asyncio.create_task(instrument(asyncio.sleep(60), name="waiting"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    before = time.time_ns()
    asyncio.run(main())
    after = time.time_ns()
    assert exporter.export_tasks() == 4
    assert exporter.export_tasks() == 0
    found = {one.name: one for one in receiver.spans}
    assert set(found) == {"request", "query", "waiting", "other"}
    assert (
        receiver.resource.items()
        >= {
            "service.name": "shop",
            "service.version": "1.2",
            "deployment.environment": "test",
            "telemetry.sdk.name": "opentelemetry",
        }.items()
    )
    (scope,) = {
        sc.scope.name for r in receiver.requests for found_in in r.resource_spans for sc in found_in.scope_spans
    }
    assert scope == "asyncinspect_logging"

    request, ours = found["request"], spans["request"]
    assert request.trace_id.hex() == TRACE == ours.trace_id
    assert request.span_id.hex() == ours.id
    assert request.parent_span_id.hex() == PARENT
    assert request.trace_state == "vendor=abc"
    assert request.kind == 2  # server
    assert request.flags == 0x301  # sampled, and the parent is remote
    assert before <= request.start_time_unix_nano <= request.end_time_unix_nano <= after
    assert request.end_time_unix_nano - request.start_time_unix_nano == ours.exited_at - ours.entered_at
    assert request.status.code == 0
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in request.links] == [
        (spans["other"].trace_id, spans["other"].id),
        ("1" * 32, "2" * 16),
    ]
    attributes = otlp.attributes_of(request)
    assert (
        attributes.items()
        >= {
            "task.name": "request",
            "task.state": "completed",
            "task.poll_count": attributes["task.poll_count"],
            "task.duration_ms": (ours.exited_at - ours.entered_at) / 1e6,
            "code.file.path": __file__,
            "user": 7,
            "http.request.method": "GET",
            "ok": True,
            "ratio": 0.5,
        }.items()
    )
    assert attributes["tags"] == ["a", "b"]
    assert attributes["code.line.number"] > 1
    assert attributes["task.coroutine"].endswith("main")

    query_span = found["query"]
    assert (query_span.trace_id, query_span.parent_span_id) == (request.trace_id, request.span_id)
    assert query_span.kind == 1
    assert (query_span.status.code, query_span.status.message) == (2, "no such user")
    attributes = otlp.attributes_of(query_span)
    assert attributes.items() >= {"task.state": "failed", "error.type": "LookupError", "task.poll_count": 2}.items()
    assert attributes["task.busy_ms"] + attributes["task.idle_ms"] == pytest.approx(attributes["task.duration_ms"])
    events = [(event.name, otlp.attributes_of(event)) for event in query_span.events]
    assert [name for name, _ in events] == ["poll", "blocked", "wake", "poll", "log", "exception"]
    assert events[1][1] == {"task.waiting_on": "sleep"}
    assert events[4][1] == {"log.severity": "DEBUG", "log.message": "half way"}
    assert events[5][1] == {"exception.type": "LookupError", "exception.message": "no such user"}
    times = [event.time_unix_nano for event in query_span.events]
    assert times == sorted(times)
    assert query_span.start_time_unix_nano <= times[0]
    assert times[-1] <= query_span.end_time_unix_nano

    waiting = found["waiting"]
    assert waiting.status.code == 0, "being cancelled is no error"
    assert otlp.attributes_of(waiting)["task.state"] == "cancelled"
    assert "exception" not in [event.name for event in waiting.events]
    assert (exporter.exported, exporter.dropped, exporter.waiting) == (4, 0, 0)


def test_spans_that_are_open_are_pending(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """They end now, and come again when they are over."""
    exporter = make("shop", listen(), **to)

    async def main() -> None:
        with span("outer"):
            task = asyncio.create_task(instrument(asyncio.sleep(0.01), name="inner"))
            await asyncio.sleep(0)
            assert exporter.export_tasks() == 0
            assert exporter.export_tasks(pending=True) == 2
            await task

    asyncio.run(main())
    assert exporter.export_tasks(pending=True) == 2
    states = [(one.name, otlp.attributes_of(one)["task.state"]) for one in receiver.spans]
    assert states[:2] == [("outer", "running"), ("inner", "blocked")]
    assert sorted(states[2:]) == [("inner", "completed"), ("outer", "completed")]
    assert set(receiver.counts().values()) == {2}
    assert all(one.start_time_unix_nano <= one.end_time_unix_nano for one in receiver.spans)


@pytest.mark.parametrize("kind", ["client", "PRODUCER", "consumer", "server", "internal", SpanKind.SERVER])
def test_kinds(listen: Listen, make: Make, receiver: Any, to: dict[str, str], kind: Any) -> None:
    """By a field, which is no attribute then; but `kind` is, which may be the application's."""
    kept = InMemorySpanExporter()
    inspector = listen()
    exporters = make("shop", inspector, span_exporter=kept), make("shop", inspector, **to)
    for key in ("kind", "otel.kind", "otel_kind"):
        with span("call", **{key: kind}):
            pass
    assert [exporter.export_tasks() for exporter in exporters] == [3, 3]
    found = kept.get_finished_spans()
    wanted = kind if isinstance(kind, SpanKind) else SpanKind[kind.upper()]
    assert [one.kind for one in found] == [wanted] * 3
    assert [one.kind for one in receiver.spans] == [wanted.value + 1] * 3
    assert [[key for key in one.attributes or {} if "kind" in key] for one in found] == [["kind"], [], []]


def test_fields_that_are_no_kind(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Are attributes like any other."""
    exporter = make("shop", listen(), **to)
    for field in ({"kind": 7}, {"otel.kind": "web"}, {"kind": "gold"}):
        with span("call", **field):
            pass
    exporter.export_tasks()
    assert [one.kind for one in receiver.spans] == [1, 1, 1]
    attributes = [otlp.attributes_of(one) for one in receiver.spans]
    assert [found.get("kind", found.get("otel.kind")) for found in attributes] == [7, "web", "gold"]


def test_stacktraces(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Where they are asked for: as Python prints them, causes first, and nothing is kept of a span that is gone."""
    from asyncinspect_logging import stacktraces

    inspector = listen(Config(max_tasks=1))
    exporter = make("shop", inspector, stacktraces=True, **to)

    def look_up() -> None:
        try:
            {}["x"]
        except KeyError as error:
            raise LookupError("no such user") from error

    def work(depth: int) -> None:
        with span("work"):
            if depth:
                work(depth - 1)
            look_up()

    for depth in (0, 100):
        with pytest.raises(LookupError) as caught:
            work(depth)
    exporter.export_tasks()
    (text, *_) = (
        otlp.attributes_of(event)["exception.stacktrace"] for one in receiver.spans[:1] for event in one.events
    )
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[2] == '{}["x"]'
    assert lines[3] == "KeyError: 'x'"
    assert "direct cause" in lines[5]
    assert lines[-2:] == ['raise LookupError("no such user") from error', "LookupError: no such user"]
    assert f'File "{__file__}", line {caught.tb.tb_lineno}' not in text, "only what is inside the span"
    assert len(receiver.spans) == 101 + 1
    assert all(text.count("File ") < 2 * 33 for text in lines)
    exporter.shutdown()
    with pytest.raises(LookupError):
        work(0)
    inspector.reset()
    caught = None  # type: ignore[assignment]
    gc.collect()
    assert not stacktraces._known


def test_a_stacktrace_has_no_secrets(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Neither those of messages nor those that stand in the source."""
    exporter = make("shop", listen(), stacktraces=True, **to)
    with pytest.raises(ConnectionError), span("work"):
        raise ConnectionError("postgres://app:hunter2@db refused password='hunter3'")
    exporter.export_tasks()
    (text,) = (otlp.attributes_of(event)["exception.stacktrace"] for event in receiver.spans[0].events)
    assert "hunter" not in text
    assert "ConnectionError: postgres://[redacted]@db refused password=[redacted]" in text
    assert "raise ConnectionError" in text


def test_any_exporter_of_the_sdk(listen: Listen, make: Make) -> None:
    """Is given spans of the SDK, in batches; what it does not take comes again."""
    taken: list[list[str]] = []

    class Exporter(InMemorySpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            taken.append([one.name for one in spans])
            return SpanExportResult.SUCCESS if len(taken) > 1 else SpanExportResult.FAILURE

    exporter = make("shop", listen(), span_exporter=Exporter(), batch_size=2)
    for number in range(3):
        with span(f"work {number}"):
            pass
    assert exporter.export_tasks() == 0
    assert exporter.flush()
    assert taken == [["work 0", "work 1"], ["work 0", "work 1"], ["work 2"]]


def test_a_failed_task_in_the_sdk(listen: Listen, make: Make) -> None:
    """Status and event, as `record_exception` would have made them."""
    kept = InMemorySpanExporter()
    exporter = make("shop", listen(), span_exporter=kept)
    with pytest.raises(ExceptionGroup), span("work"):
        raise ExceptionGroup("several", [ValueError("a"), KeyError("b")])
    exporter.export_tasks()
    (found,) = kept.get_finished_spans()
    assert (found.status.status_code, found.status.description) == (StatusCode.ERROR, "several (2 sub-exceptions)")
    (event,) = found.events
    assert event.name == "exception"
    assert dict(event.attributes or {})["exception.leaves"] == ("ValueError", "KeyError")


def test_limits_of_the_environment(
    listen: Listen, make: Make, receiver: Any, to: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of attributes, events and the length of texts."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "9")
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "4")
    exporter = make("shop", listen(), **to)
    with span("work", long="x" * 100, **{f"field{number}": number for number in range(20)}):
        for _ in range(5):
            annotate("line")
    exporter.export_tasks()
    (found,) = receiver.spans
    assert len(found.attributes) == 9
    assert found.dropped_attributes_count > 10
    assert (len(found.events), found.dropped_events_count) == (2, 3)
    assert otlp.attributes_of(found)["task.name"] == "work"
    assert all(len(value) <= 4 for value in otlp.attributes_of(found).values() if isinstance(value, str))


def test_no_events(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """But for the exception."""
    exporter = make("shop", listen(), events=False, **to)

    def work() -> None:
        with span("work"):
            annotate("line")
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    exporter.export_tasks()
    assert [event.name for event in receiver.spans[0].events] == ["exception"]


# -- delivery -------------------------------------------------------------------------------------------------------


def test_each_task_once_whatever_the_collector_says(
    listen: Listen, make: Make, receiver: Any, to: dict[str, str]
) -> None:
    """It is busy, gone, out of time, and back."""
    receiver.answers.extend(
        [otlp.Refusal(503), otlp.Refusal(429, "RESOURCE_EXHAUSTED", 0.05), otlp.Refusal(504, "DEADLINE_EXCEEDED", 0.0)]
    )
    exporter = make("shop", listen(), batch_size=10, **to)
    for _ in range(25):
        with span("work"):
            pass
    assert exporter.export_tasks() == 0
    assert exporter.waiting == 25
    assert exporter.flush(10)
    assert (len(receiver.counts()), set(receiver.counts().values())) == (25, {1})
    assert [len(r.resource_spans[0].scope_spans[0].spans) for r in receiver.requests] == [10, 10, 5]
    assert (exporter.exported, exporter.dropped, exporter.waiting) == (25, 0, 0)


def test_an_answer_that_got_lost(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """The same spans come again, byte for byte and by the same ids, by which a backend knows them."""
    receiver.answers.append(otlp.Refusal(503, taken=True))
    exporter = make("shop", listen(), **to)
    for _ in range(3):
        with span("work"):
            pass
    assert exporter.flush(10)
    first, second = receiver.requests
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert (len(receiver.counts()), set(receiver.counts().values())) == (3, {2})
    assert (exporter.exported, exporter.dropped) == (3, 0)


def test_the_collector_says_when(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Retry-After, and RetryInfo: not before that."""
    receiver.answers.append(otlp.Refusal(503, after=0.6))
    exporter = make("shop", listen(), **to)
    with span("work"):
        pass
    began = time.monotonic()
    assert exporter.export_tasks() == exporter.export_tasks() == 0
    assert len(receiver.headers) == 1
    assert exporter.flush(5)
    assert time.monotonic() - began >= 0.55


def test_what_is_refused_for_good_is_dropped_and_told(
    listen: Listen,
    make: Make,
    receiver: Any,
    to: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, whatever comes after it."""
    monkeypatch.setattr(diagnostics, "_told", set())
    receiver.answers.extend([otlp.Refusal(400, "INVALID_ARGUMENT")] * 2)
    exporter = make("shop", listen(), batch_size=2, **to)
    for _ in range(5):
        with span("work"):
            pass
    assert exporter.export_tasks() == 1
    assert (exporter.exported, exporter.dropped, exporter.waiting) == (1, 4, 0)
    told = [record for record in caplog.records if "refuses" in record.getMessage()]
    assert len(told) == 1
    assert exporter.drops == {"queue_full": 0, "refused": 4, "shutdown": 0, "unfit": 0}


def test_partial_success(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """What the collector takes no part of is not sent again."""
    receiver.rejected = 2
    exporter = make("shop", listen(), **to)
    for _ in range(5):
        with span("work"):
            pass
    assert exporter.export_tasks() == 3
    assert (exporter.exported, exporter.dropped, exporter.waiting) == (3, 2, 0)


def test_a_batch_that_is_too_large_goes_in_parts(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Down to what fits."""
    receiver.most_spans = 3
    exporter = make("shop", listen(), **to)
    for _ in range(20):
        with span("work"):
            pass
    assert exporter.export_tasks() == 20
    assert (len(receiver.counts()), set(receiver.counts().values())) == (20, {1})


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (7513047 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (7513047 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4194304: 7513047"),
        ("RESOURCE_EXHAUSTED", "Received message exceeds the maximum configured message size."),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 7513287 bytes, the limit is: 4194304 bytes"),
    ],
)
def test_too_large_as_others_say_it(listen: Listen, make: Make, receiver: Any, code: str, details: str) -> None:
    """Tried again as a whole, it would hold up all that comes after it for good."""
    receiver.answers.append(otlp.Refusal(code=code, details=details))
    exporter = make("shop", listen(), f"http://{receiver.grpc}")
    for _ in range(4):
        with span("work"):
            pass
    assert exporter.export_tasks() == 4
    assert [len(r.resource_spans[0].scope_spans[0].spans) for r in receiver.requests] == [2, 2]


def test_a_sampler_that_raises(
    listen: Listen, make: Make, receiver: Any, to: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """The task is dropped, counted and told, and the others go on."""

    class Picky(sampling.StaticSampler):
        def should_sample(self, *arguments: Any, **more: Any) -> Any:
            if arguments[2] == "bad":
                raise RuntimeError(f"at port {to['endpoint']}")
            return super().should_sample(*arguments, **more)

    exporter = make("shop", listen(), sampler=Picky(sampling.Decision.RECORD_AND_SAMPLE), **to)
    for name in ("good", "bad", "good"):
        with span(name):
            pass
    assert exporter.export_tasks() == 2
    assert (exporter.drops["unfit"], exporter.dropped, exporter.waiting) == (1, 1, 0)


def test_a_time_that_is_none(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Of a clock that stands before 1970: nothing is raised, and the others go on."""
    clock = FakeClock(-1e9)
    exporter = make("shop", listen(clock=clock), **to)
    with span("work"):
        pass
    assert exporter.export_tasks() == 0
    assert exporter.drops["unfit"] == 1


def test_an_answer_after_shutdown(listen: Listen, caplog: pytest.LogCaptureFixture) -> None:
    """A collector that takes longer than there is: what it was sent counts as dropped, and the thread ends quietly."""
    began, go = threading.Event(), threading.Event()

    class Slow(InMemorySpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            began.set()
            go.wait(10)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            pass

    exporter = OtelExporter("shop", listen(), span_exporter=Slow())
    exporter.start_continuous_export(0.01)
    with span("work"):
        pass
    assert exporter._thread is not None
    thread = exporter._thread._thread
    assert began.wait(10)
    exporter.start_continuous_export(5)  # does not wait for the request
    assert not exporter.shutdown(0)
    go.set()
    thread.join(10)
    assert not thread.is_alive()
    assert (exporter.exported, exporter.drops["shutdown"], exporter.waiting) == (0, 1, 0)
    assert not [record for record in caplog.records if record.exc_info]
    exporter.start_continuous_export()
    assert exporter._thread is None


@pytest.mark.parametrize("timeout", [float("nan"), None, "5", True])
def test_timeouts_that_are_none(listen: Listen, make: Make, timeout: Any) -> None:
    """Are errors; any number will do, below 0 and beyond what a lock can wait."""
    exporter = make("shop", listen(), span_exporter=InMemorySpanExporter())
    for wait in (exporter.flush, exporter.shutdown):
        with pytest.raises(ConfigError, match="is not a number of seconds"):
            wait(timeout)
    exporter.start_continuous_export()
    assert exporter.flush(float("inf"))
    assert exporter.flush(-1)
    assert exporter.shutdown(float("inf"))


def test_what_waits_has_a_bound(
    listen: Listen, make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens: the queue fills, and the rest is counted, and told once."""
    monkeypatch.setattr(diagnostics, "_told", set())
    inspector = listen()
    exporter = make("shop", inspector, "http://127.0.0.1:9", queue_size=100, batch_size=10)
    for _ in range(50):
        with span("work"):
            pass
    assert exporter.export_tasks() == 0
    for _ in range(500):
        with span("work"):
            pass
    assert exporter.export_tasks() == 0
    inspector.snapshot()
    assert exporter.waiting + exporter.dropped == 550
    assert exporter.waiting <= 110
    began = time.monotonic()
    assert not exporter.shutdown(0.2)
    assert time.monotonic() - began < 1.2
    assert (exporter.waiting, exporter.dropped) == (0, 550)
    assert exporter.drops["queue_full"] + exporter.drops["shutdown"] == 550
    assert len([record for record in caplog.records if "make queue_size (100) larger" in record.getMessage()]) == 1


def test_continuously(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Every so often, and at once when a batch is full; a loop is not held up."""
    exporter = make("shop", listen(), batch_size=50, **to)
    exporter.start_continuous_export(60)
    for _ in range(120):
        with span("work"):
            pass
    exporter._finished.take_spans(0)  # type: ignore[union-attr]
    receiver.wait_for(100)
    exporter.start_continuous_export(0.01)
    receiver.wait_for(120)
    assert set(receiver.counts().values()) == {1}
    assert exporter.shutdown()
    with span("late"):
        pass
    assert exporter.export_tasks() == 0
    assert exporter.flush()
    assert exporter.shutdown()


def test_shutdown_delivers(listen: Listen, receiver: Any, to: dict[str, str]) -> None:
    """And so does the end of a `with`."""
    with OtelExporter("shop", listen(), **to), span("work"):
        pass
    assert [one.name for one in receiver.spans] == ["work"]


def test_at_exit(receiver: Any, to: dict[str, str]) -> None:
    """What finished, and what is open still, which is interrupted."""
    code = f"""
import logging
from asyncinspect_logging import AsyncInspectHandler, span
from asyncinspect_logging.exporters.opentelemetry import OtelExporter
logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler())
exporter = OtelExporter("shop", None, {to["endpoint"]!r}, protocol={to["protocol"]!r})
with span("done"):
    pass
open_still = span("open").__enter__()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
    outcomes = {one.name: otlp.attributes_of(one).get("task.outcome") for one in receiver.spans}
    assert outcomes == {"done": None, "open": "interrupted"}


def test_nobody_there_at_exit() -> None:
    """It takes no longer than it may."""
    code = """
import atexit, logging, time
atexit.register(lambda: print(time.monotonic() - over))  # what is registered first is called last
from asyncinspect_logging import AsyncInspectHandler, span
from asyncinspect_logging.exporters import opentelemetry
opentelemetry._PATIENCE = 0.3
logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler())
exporter = opentelemetry.OtelExporter("shop", None, "http://127.0.0.1:9")
exporter.start_continuous_export(0.01)
with span("done"):
    pass
over = time.monotonic()
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True, text=True)
    assert float(done.stdout) < 1.3
    assert "has not taken 1 tasks until the exporter was shut down" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """The child passes on its own tasks, the parent its own: each once."""
    exporter = make("shop", listen(), interval=0.05, **to)
    exporter.start_continuous_export()
    with span("before"):
        pass
    exporter.flush()
    with span("parent"):
        pass
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(30)
            with span("child"):
                pass
            os._exit(0 if exporter.shutdown(10) and exporter.exported == 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert exporter.flush(10)
    assert sorted(one.name for one in receiver.spans) == ["before", "child", "parent"]


def test_the_sampler_decides_by_trace(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """Whole traces, about that part of them; the caller's decision holds for a trace of its own."""
    inspector = listen()
    exporter = make("shop", inspector, sampler=0.25, **to)
    for _ in range(400):
        with span("root", parent=None), span("child"):
            pass
    exporter.export_tasks()
    traces = {one.trace_id for one in receiver.spans}
    assert len(receiver.spans) == 2 * len(traces)
    assert len(traces) == pytest.approx(100, abs=15)
    assert exporter.unsampled == 800 - len(receiver.spans)
    assert inspector.snapshot().names["root"].completed == 400
    receiver.requests.clear()
    for flags in ("00", "01"):
        for number in range(10):
            with span(f"request {flags}", parent=f"00-{number + 1:032x}-{PARENT}-{flags}"):
                pass
    exporter.export_tasks()
    assert [one.name for one in receiver.spans] == ["request 01"] * 10


def test_the_default_is_what_the_caller_says(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """A trace that the caller does not sample is not exported; one that began here is."""
    exporter = make("shop", listen(), **to)
    for flags in ("00", "01"):
        with span(f"request {flags}", parent=f"00-{TRACE}-{PARENT}-{flags}"), span(f"query {flags}"):
            pass
    with span("root", parent=None):
        pass
    exporter.export_tasks()
    assert sorted(one.name for one in receiver.spans) == ["query 01", "request 01", "root"]
    assert exporter.unsampled == 2


def test_sampling_of_details_has_no_part_in_it(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """`Config.sampling_rate` is about what is kept in memory."""
    exporter = make("shop", listen(Config(sampling_rate=1000, max_tasks=1)), **to)
    for _ in range(50):
        with span("work"):
            pass
    assert exporter.export_tasks() == 50


# -- settings -------------------------------------------------------------------------------------------------------


def test_headers_and_compression(listen: Listen, make: Make, receiver: Any, to: dict[str, str]) -> None:
    """As a vendor's documentation has them."""
    exporter = make("shop", listen(), headers={"x-honeycomb-team": "secret"}, compression="gzip", **to)
    for _ in range(200):
        with span("work", text="x" * 100):
            pass
    assert exporter.export_tasks() == 200
    (headers,) = receiver.headers
    assert headers["x-honeycomb-team"] == "secret"
    if to["protocol"] == "http/protobuf":
        assert headers["content-encoding"] == "gzip"
        assert headers["content-type"] == "application/x-protobuf"
        assert int(headers["content-length"]) < receiver.sizes[0] / 5


def test_the_environment(
    listen: Listen, make: Make, receiver: Any, to: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is asked where no argument is given; a variable of the signal goes before the general one."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", to["endpoint"])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "neither")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", to["protocol"])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=a%20b,other=1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from the environment")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=9,team=blue")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3")
    inspector = listen()
    off = make(None, inspector)
    exporter = make(None, inspector, sampler=sampling.ALWAYS_ON, resource_attributes={"team": "red"})
    for _ in range(4):
        with span("work"):
            pass
    assert off.export_tasks() == 0
    assert exporter.export_tasks() == 4
    assert len(receiver.requests) == 2
    assert receiver.headers[0].items() >= {"x-api-key": "a b", "other": "1"}.items()
    assert (
        receiver.resource.items()
        >= {
            "service.name": "from the environment",
            "service.version": "9",
            "team": "red",
        }.items()
    )
    named = make("by argument", inspector, sampler=1.0)
    with span("work"):
        pass
    named.export_tasks()
    assert receiver.resource["service.name"] == "by argument"


def test_disabled(listen: Listen, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED: nothing is kept, and nothing sent."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    exporter = make("shop", listen(), "http://127.0.0.1:9", bridge=True)
    exporter.start_continuous_export()
    with span("work"):
        pass
    assert exporter.export_tasks(pending=True) == 0
    assert exporter.waiting == 0
    assert exporter.flush()
    assert exporter.shutdown()


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ({}, ("grpc", "localhost:4317", True)),
        ({"endpoint": "http://a:4317"}, ("grpc", "a:4317", True)),
        ({"endpoint": "https://a"}, ("grpc", "a:443", False)),
        ({"endpoint": "http://a"}, ("grpc", "a:4317", True)),
        ({"endpoint": "a:1"}, ("grpc", "a:1", False)),
        ({"endpoint": "a:1", "insecure": True}, ("grpc", "a:1", True)),
        ({"endpoint": "http://[::1]:4317"}, ("grpc", "[::1]:4317", True)),
        ({"endpoint": "http://a:4318"}, ("http/protobuf", "http://a:4318/v1/traces", True)),
        ({"endpoint": "https://a/v1/traces"}, ("http/protobuf", "https://a/v1/traces", False)),
        ({"endpoint": "https://a/otlp/"}, ("http/protobuf", "https://a/otlp/v1/traces", False)),
        ({"protocol": "http/protobuf"}, ("http/protobuf", "http://localhost:4318/v1/traces", True)),
        ({"endpoint": "https://a:1/x?y=z"}, ("http/protobuf", "https://a:1/x/v1/traces?y=z", False)),
    ],
)
def test_addresses(arguments: dict[str, Any], address: tuple[str, str, bool]) -> None:
    """A scheme says whether there is TLS, port and path which protocol."""
    from asyncinspect_logging.exporters.otel.settings import wire

    found = wire("traces", **arguments)
    assert (found.protocol, found.url, found.insecure) == address


def test_an_endpoint_of_the_signal_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the specification has it."""
    from asyncinspect_logging.exporters.otel.settings import wire

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:4318/in")
    assert wire("traces").url == "http://a:4318/in"
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318/in")
    assert wire("traces").url == "http://a:4318/in/v1/traces"
    assert wire("metrics").url == "http://a:4318/in/v1/metrics"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "ftp://a"}, r"endpoint='ftp://a' is not an address .*; write for example"),
        ({"endpoint": "http://a:port"}, "endpoint='http://a:port' is not an address"),
        ({"endpoint": "http://a b"}, "is not an address"),
        ({"endpoint": 7}, "endpoint=7 is not an address"),
        ({"endpoint": "http://me:secret@a"}, "put credentials into headers"),
        ({"endpoint": "http://a/path", "protocol": "grpc"}, "has a path"),
        ({"protocol": "carrier pigeon"}, r'protocol=.* is not a protocol; write "grpc" or "http/protobuf"'),
        ({"headers": 7}, "headers is not a mapping"),
        ({"headers": {"a b": "c"}}, "'a b', which is not the name of a header"),
        ({"headers": {"a": "c\r\nd"}}, "the value of 'a' in headers is not printable"),
        ({"headers": {"a!": "c"}}, "'a!', which gRPC cannot send"),
        ({"timeout": 0}, "timeout=0 is not a number of seconds above 0"),
        ({"interval": float("nan")}, "interval=nan is not a number of seconds above 0"),
        ({"batch_size": 0}, "batch_size=0 is not a number of tasks above 0"),
        ({"queue_size": 1.5}, "queue_size=1.5 is not a number of tasks above 0"),
        ({"compression": "zip"}, 'compression=\'zip\' is not a compression; write "gzip" or "none"'),
        ({"certificate": "/nowhere.pem"}, "certificate='/nowhere.pem' cannot be read"),
        ({"endpoint": "https://a:4318", "client_key": __file__}, "client_key=.* without client_certificate; give both"),
        ({"endpoint": "https://a", "client_certificate": __file__}, "no use to gRPC without client_key; give both"),
        ({"insecure": "yes"}, "insecure='yes' is not a truth value"),
        ({"sampler": 2}, "sampler=2 is not a part of all traces"),
        ({"sampler": "all"}, "sampler='all' is no sampler"),
        ({"service_version": 3}, "service_version=3 is not a text"),
        ({"resource_attributes": "a=b"}, "resource_attributes='a=b' is not a mapping"),
        ({"span_exporter": 3}, r"span_exporter=3 has no export\(\)"),
    ],
)
def test_settings_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    """Each is named, with its value and the fix."""
    with pytest.raises(ConfigError, match=message):
        OtelExporter("shop", Inspector(), **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "some"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "-1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense://"),
    ],
)
def test_variables_that_cannot_be_used(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are named in the error."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        OtelExporter("shop", Inspector())


def test_without_a_service_name_the_interval_is_checked_too(listen: Listen, make: Make) -> None:
    """Of the continuous export."""
    with pytest.raises(ConfigError, match="interval=-1 is not a number of seconds above 0"):
        make("shop", listen(), "http://127.0.0.1:9").start_continuous_export(-1)
    with pytest.raises(ConfigError, match="service_name='' is not a text"):
        create_otlp_exporter("", "http://localhost:4317")


def test_an_address_for_an_inspector() -> None:
    """Is easily given in its place."""
    with pytest.raises(ConfigError, match="'http://localhost:4317' is no Inspector; an address is given as endpoint="):
        OtelExporter("shop", "http://localhost:4317")  # type: ignore[arg-type]


def test_an_address_with_a_secret(
    listen: Listen, make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is not logged with it."""
    monkeypatch.setattr(diagnostics, "_told", set())
    exporter = make("shop", listen(), "http://127.0.0.1:9/in?key=hush", protocol="http/protobuf")
    with span("work"):
        pass
    assert exporter.export_tasks() == 0
    assert "does not take what is exported" in caplog.text
    assert "hush" not in caplog.text + exporter.endpoint


def test_create_otlp_exporter(listen: Listen, receiver: Any, to: dict[str, str]) -> None:
    """By the reference's name, with any other option."""
    with create_otlp_exporter("my-service", inspector=listen(), **to) as exporter:
        with span("work"):
            pass
        assert exporter.export_tasks() == 1
    assert receiver.resource["service.name"] == "my-service"


def test_the_extra_is_missing() -> None:
    """The error says what to install."""
    code = """
import sys
sys.modules["opentelemetry"] = None
try:
    import asyncinspect_logging.exporters.opentelemetry
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "MissingExtraError" in done.stdout
    assert "pip install 'asyncinspect-logging[opentelemetry]'" in done.stdout


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_tls(listen: Listen, make: Make, tmp_path: Path, protocol: str) -> None:
    """Both sides show a certificate; who does not know the collector's, or has none to show, gets nothing through."""
    import grpc

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )
    pem = certificate.read_bytes()
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem)], pem, require_client_auth=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    with otlp.Receiver(credentials, context) as receiver:
        endpoint = f"https://{receiver.grpc if protocol == 'grpc' else receiver.http}"
        inspector = listen()
        known = {"certificate": certificate}
        mine = {"client_key": key, "client_certificate": certificate}
        exporters = [make("shop", inspector, endpoint, protocol=protocol, **how) for how in ({}, known, known | mine)]
        with span("work"):
            pass
        assert [exporter.export_tasks() for exporter in exporters] == [0, 0, 1]
        assert [one.name for one in receiver.spans] == ["work"]


def test_exporter_imports_nothing_in_its_thread() -> None:
    """What it sends with is there when it is made: two threads that import it at once may see half of it."""
    code = """
import sys
from asyncinspect_logging import Inspector
from asyncinspect_logging.exporters.opentelemetry import OtelExporter
for protocol, module in (("grpc", "grpc"), ("http/protobuf", "requests")):
    OtelExporter("a", Inspector(), "http://127.0.0.1:9", protocol=protocol)
    assert module in sys.modules, module
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
