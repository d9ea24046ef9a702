"""Spans of ours and of OpenTelemetry are parents of each other, in whatever order they are entered."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

import httpx
import sqlalchemy
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import TraceFlags

from asyncinspect_logging import Inspector, instrument, span
from asyncinspect_logging.bridge import bridge
from asyncinspect_logging.drivers import install
from asyncinspect_logging.exporters.opentelemetry import OtelExporter
from asyncinspect_logging.spans import Span, outside

Listen = Callable[..., Inspector]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(kept: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return provider


@pytest.fixture
def tracer(provider: TracerProvider) -> Any:
    return provider.get_tracer("test")


@pytest.fixture(autouse=True)
def _bridged() -> Iterator[None]:
    undo = bridge()
    yield
    undo()
    undo()
    assert outside.parent is None


def ids(theirs: Any) -> tuple[str, str]:
    found = theirs.get_span_context()
    return f"{found.trace_id:032x}", f"{found.span_id:016x}"


def parent_of(theirs: Any) -> str | None:
    return None if theirs.parent is None else f"{theirs.parent.span_id:016x}"


def test_nested_either_way(listen: Listen, tracer: Any) -> None:
    """Theirs in ours in theirs in ours; and afterwards all is as before."""
    listen()
    with span("a") as a:
        with tracer.start_as_current_span("b") as b:
            assert (ids(b)[0], parent_of(b)) == (a.trace_id, a.id)
            with span("c") as c:
                assert (c.trace_id, c.parent_id) == ids(b)
                with tracer.start_as_current_span("d") as d:
                    assert (ids(d)[0], parent_of(d)) == (a.trace_id, c.id)
                with tracer.start_as_current_span("e") as e:
                    assert parent_of(e) == c.id
            with span("f") as f:
                assert f.parent_id == ids(b)[1]
            with tracer.start_as_current_span("g") as g:
                assert parent_of(g) == ids(b)[1]
        with span("h") as h:
            assert h.parent_id == a.id
        with tracer.start_as_current_span("i") as i:
            assert parent_of(i) == a.id
    assert not trace.get_current_span().get_span_context().is_valid
    with span("j") as j:
        assert j.parent_id is None
    with tracer.start_as_current_span("k") as k, span("l") as last:
        assert (last.trace_id, last.parent_id) == ids(k)
        assert last.traceparent() == f"00-{ids(k)[0]}-{last.id}-01"


def test_an_explicit_parent_goes_before(listen: Listen, tracer: Any) -> None:
    """Ours, or a header, or none."""
    listen()
    with span("a") as a, tracer.start_as_current_span("b"):
        with span("c", parent=a) as c:
            assert c.parent_id == a.id
        with span("d", parent=None) as d:
            assert d.parent_id is None
        with span("e", parent=f"00-{TRACE}-{PARENT}-00") as e, tracer.start_as_current_span("f") as f:
            assert e.parent_id == PARENT
            assert ids(f)[0] == TRACE
            assert not f.is_recording(), "the caller does not sample the trace"


def test_what_somebody_attaches(listen: Listen, tracer: Any) -> None:
    """Such as a context out of a request's headers, or an empty one."""
    listen()
    with span("a") as a:
        token = otel_context.attach(propagate.extract({"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "x=y"}))
        with span("b") as b:
            assert (b.trace_id, b.parent_id, b.tracestate()) == (TRACE, PARENT, "x=y")
        otel_context.detach(token)
        token = otel_context.attach(otel_context.Context())
        with tracer.start_as_current_span("c") as c:
            assert parent_of(c) is None
        otel_context.detach(token)
        token = otel_context.attach(otel_context.set_value("key", "value"))
        assert otel_context.get_value("key") == "value"
        with tracer.start_as_current_span("d") as d, span("e") as e:
            assert otel_context.get_value("key") == "value"
            assert parent_of(d) == a.id
            assert e.parent_id == ids(d)[1]
        otel_context.detach(token)
        headers: dict[str, str] = {}
        propagate.inject(headers)
        assert headers == {"traceparent": a.traceparent()}


def test_across_tasks_and_threads(listen: Listen, tracer: Any) -> None:
    """Wherever contexts are copied to."""
    listen()
    seen: dict[str, Any] = {}

    def in_a_thread() -> Span:
        with span("in a thread") as one:
            return one

    async def child(name: str) -> None:
        await asyncio.sleep(0)
        with span(f"{name} ours") as ours:
            await asyncio.sleep(0)
            with tracer.start_as_current_span(f"{name} theirs") as theirs:
                await asyncio.sleep(0)
                seen[name] = ours, theirs

    async def main() -> None:
        with span("a") as a, tracer.start_as_current_span("b") as b:
            seen["a"], seen["b"] = a, b
            await asyncio.gather(child("task"), instrument(child("driven"), name="driver"))
            seen["thread"] = await asyncio.to_thread(in_a_thread)
            context = contextvars.copy_context()
            with ThreadPoolExecutor(1) as pool:
                seen["pool"] = pool.submit(context.run, in_a_thread).result()

    asyncio.run(main())
    a, b = seen["a"], seen["b"]
    assert seen["task"][0].parent_id == ids(b)[1]
    assert parent_of(seen["task"][1]) == seen["task"][0].id
    assert seen["thread"].parent_id == seen["pool"].parent_id == ids(b)[1]
    driven: Span = seen["driven"][0]
    assert driven.trace_id == a.trace_id
    assert driven.parent_id not in (a.id, ids(b)[1])  # the driver's own span is between


def test_under_install(listen: Listen, tracer: Any) -> None:
    """Each task has a span, whose parent is what was current where the task was made."""
    inspector = listen()
    finished = inspector.finished()
    found = {}

    async def child() -> None:
        await asyncio.sleep(0)
        with tracer.start_as_current_span("theirs") as theirs:
            found["theirs"] = theirs

    async def main() -> None:
        with install(), tracer.start_as_current_span("outer") as outer:
            found["outer"] = outer
            await asyncio.create_task(child())
            own = contextvars.copy_context()
            await asyncio.create_task(child(), context=own)

    asyncio.run(main())
    tasks = [task.view for task in finished.take() if task.view.name.endswith("child")]
    assert [(task.trace_id, task.parent_id) for task in tasks] == [ids(found["outer"])] * 2
    assert parent_of(found["theirs"]) == tasks[1].id


def test_httpx_under_ours(listen: Listen, provider: TracerProvider, kept: InMemorySpanExporter) -> None:
    """OpenTelemetry's own instrumentation of httpx: its span is a child of ours, the server sees its traceparent, and a
    span there that takes the headers as its parent is a child of that, so it is one trace through and through.
    """
    inspector = listen()
    received: list[dict[str, str]] = []
    remote: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(dict(self.headers))
            with span("server", parent=dict(self.headers)) as server:
                remote.append(server)
                self.send_response(204)
                self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    exporter = OtelExporter("shop", inspector, span_exporter=kept)
    ours: list[Span] = []

    async def fetch(client: Any) -> None:
        with span("fetch") as one:
            ours.append(one)
            await client.get(f"http://127.0.0.1:{server.server_port}/")

    async def main() -> None:
        async with httpx.AsyncClient() as client, asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(fetch(client))

    try:
        asyncio.run(main())
    finally:
        instrumentor.uninstrument()
        server.shutdown()
        server.server_close()
        thread.join()
    theirs = {parent_of(one): ids(one) for one in kept.get_finished_spans()}
    exporter.shutdown()
    assert len(theirs) == 3
    for one in ours:
        trace_id, client_id = theirs[one.id]
        assert trace_id == one.trace_id
        assert [s.parent_id for s in remote if s.trace_id == trace_id] == [client_id]
    spans = {one.name: one for one in kept.get_finished_spans()}
    assert spans["server"].parent is not None
    assert spans["server"].parent.is_remote
    assert spans["server"].kind.name == "SERVER"


def test_logs_carry_the_ids(listen: Listen, provider: TracerProvider) -> None:
    """Of OpenTelemetry's logging handler, and its instrumentation of logging: those of our span."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    try:
        from opentelemetry.instrumentation.logging.handler import LoggingHandler
    except ImportError:
        from opentelemetry.sdk._logs import LoggingHandler  # type: ignore[attr-defined, no-redef]

    listen()
    logs = LoggerProvider()
    exporter = InMemoryLogRecordExporter()
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = logging.getLogger("shop")
    handler = LoggingHandler(logger_provider=logs)
    logger.addHandler(handler)
    try:
        with span("work") as ours:
            logger.warning("in a span")
    finally:
        logger.removeHandler(handler)
    (found,) = exporter.get_finished_logs()
    assert (f"{found.log_record.trace_id:032x}", f"{found.log_record.span_id:016x}") == (ours.trace_id, ours.id)
    assert found.log_record.trace_flags == TraceFlags.SAMPLED


def test_without_anybody_who_listens(tracer: Any) -> None:
    """A span that nobody hears of is a parent all the same."""
    with tracer.start_as_current_span("a") as a, span("b") as b, tracer.start_as_current_span("c") as c:
        assert ids(c)[0] == b.trace_id
        assert parent_of(c) == b.id
        assert a.is_recording()


def test_an_async_generator_that_is_broken_off(listen: Listen, tracer: Any) -> None:
    """Its span is closed in another context: what it leaves behind is nobody's parent."""
    listen()

    async def numbers() -> Any:
        with span("numbers"):
            yield 1
            yield 2

    async def main() -> None:
        async for _ in numbers():
            break
        for _ in range(3):
            await asyncio.sleep(0)
        with tracer.start_as_current_span("after") as after:
            assert parent_of(after) is None

    asyncio.run(main())


def test_theirs_inside_a_generator_that_is_broken_off(listen: Listen, tracer: Any) -> None:
    """What is left behind as current of ours does not hide theirs, which was there before."""
    listen()

    async def numbers() -> Any:
        with span("numbers"):
            yield 1

    async def main() -> None:
        with span("a"), tracer.start_as_current_span("b") as b:
            async for _ in numbers():
                break
            for _ in range(3):
                await asyncio.sleep(0)
            with span("c") as c, tracer.start_as_current_span("d") as d:
                assert c.parent_id == ids(b)[1]
                assert parent_of(d) == c.id

    asyncio.run(main())


@pytest.mark.parametrize("early", [True, False])
def test_a_task_that_outlives_the_span_it_was_made_in(listen: Listen, tracer: Any, early: bool) -> None:
    """Theirs nest in each other there, whether the outer one was begun before that span ended or after."""
    listen()

    async def child(over: asyncio.Event) -> None:
        if not early:
            await over.wait()
        with tracer.start_as_current_span("b") as b:
            await over.wait()
            with tracer.start_as_current_span("c") as c, span("d") as d:
                assert parent_of(c) == ids(b)[1]
                assert d.parent_id == ids(c)[1]

    async def main() -> None:
        over = asyncio.Event()
        with span("outer"):
            with span("inner"):
                task = asyncio.create_task(child(over))
                await asyncio.sleep(0)
            over.set()
            await task

    asyncio.run(main())


def test_out_of_order(listen: Listen, tracer: Any) -> None:
    """Theirs that goes on when ours, in which it was begun, is over, stays the innermost."""
    listen()
    with span("a"):
        theirs = tracer.start_as_current_span("c")
        with span("b") as b:
            c = theirs.__enter__()
            assert parent_of(c) == b.id
        with span("d") as d, tracer.start_as_current_span("e") as e:
            assert d.parent_id == ids(c)[1]
            assert parent_of(e) == d.id
        theirs.__exit__(None, None, None)


def test_sqlalchemy_under_ours(listen: Listen, provider: TracerProvider, kept: InMemorySpanExporter) -> None:
    """OpenTelemetry's own instrumentation of SQLAlchemy: statements are children of the span of ours around them, also
    in a thread.
    """
    listen()
    engine = sqlalchemy.create_engine(
        "sqlite://", poolclass=sqlalchemy.StaticPool, connect_args={"check_same_thread": False}
    )
    instrumentor = SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=engine, tracer_provider=provider)
    ours: dict[str, Span] = {}

    def query(number: int) -> None:
        with span("query") as ours[f"SELECT {number}"], engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SELECT {number}"))

    async def main() -> None:
        query(1)
        await asyncio.to_thread(query, 2)

    try:
        with span("request") as request:
            asyncio.run(main())
    finally:
        instrumentor.uninstrument()
        engine.dispose()
    statements = {
        (one.attributes or {}).get("db.statement", (one.attributes or {}).get("db.query.text")): one
        for one in kept.get_finished_spans()
        if one.name.startswith("SELECT")
    }
    assert set(statements) == set(ours)
    for text, one in ours.items():
        assert one.parent_id == request.id
        assert (ids(statements[text]), parent_of(statements[text])) == (
            (request.trace_id, ids(statements[text])[1]),
            one.id,
        )


def test_by_the_exporter(listen: Listen) -> None:
    """`bridge=True` is the same, until it is shut down."""
    exporter = OtelExporter("shop", listen(), span_exporter=InMemorySpanExporter(), bridge=True)
    assert outside.parent is not None
    exporter.shutdown()
    assert outside.parent is not None, "somebody else has it on"
