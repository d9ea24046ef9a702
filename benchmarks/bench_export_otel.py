"""What exporting spans costs: the thread that makes them, and the process as a whole, with everything sent over HTTP to
a sink in another process. Beside OpenTelemetry's BatchSpanProcessor and logfire, which uses that.
"""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from measure import Scale

__all__ = ["export_otel", "export_otel_logfire", "keeps_up", "rate"]

#: Spans a second that the exporter has to keep up with beside the application.
_RATE = 20_000
_FIELDS = {"user_id": 7, "method": "GET", "path": "/users/7"}


class _Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def _sink() -> Iterator[str]:
    """The address of a sink in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1/traces"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class _Cost(NamedTuple):
    """Seconds of processor time a span: of the thread that makes it, and of the process until it is delivered."""

    thread: float
    process: float


def _measure(make: Callable[[], AbstractContextManager[Any]], flush: Callable[[], object], count: int) -> _Cost:
    began, own = time.process_time(), time.thread_time()
    for _ in range(count):
        with make():
            pass
    own = time.thread_time() - own
    flush()
    return _Cost(own / count, (time.process_time() - began) / count)


def _rounds(candidates: dict[str, tuple[Any, Any]], scale: Scale) -> dict[str, float]:
    """In µs, the median of the rounds."""
    costs: dict[str, list[_Cost]] = {name: [] for name in candidates}
    for round_ in range(max(2, scale.rounds // 3)):
        for name, (make, flush) in candidates.items():
            cost = _measure(make, flush, scale.loops)
            if round_:
                costs[name].append(cost)
    found = {}
    for name, taken in costs.items():
        if taken:
            found[f"otlp.thread.{name}"] = statistics.median(cost.thread for cost in taken) * 1e6
            found[f"otlp.process.{name}"] = statistics.median(cost.process for cost in taken) * 1e6
    return found


def _ours(endpoint: str | None) -> tuple[Any, Any]:
    """How a span is made and what is made is delivered; without an endpoint, it goes nowhere."""
    from asyncinspect_logging import AsyncInspectHandler, Inspector, span
    from asyncinspect_logging.exporters.opentelemetry import OtelExporter

    inspector = Inspector()
    # A logger of its own, so that nobody else hears.
    logger = logging.getLogger(f"benchmark.{endpoint}")
    logger.propagate = False
    logger.addHandler(AsyncInspectHandler(inspector))

    def make() -> AbstractContextManager[Any]:
        return span("GET /users/{id}", logger=logger, **_FIELDS)

    if endpoint is None:
        return make, inspector.settle
    exporter = OtelExporter("benchmark", inspector, endpoint, queue_size=1 << 20)
    exporter.start_continuous_export()

    def flush() -> None:
        if not exporter.flush(60) or exporter.dropped:
            raise RuntimeError(f"{exporter.waiting} spans are still waiting, {exporter.dropped} were dropped")

    return make, flush


def _processor(endpoint: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint), max_queue_size=1 << 20)


def export_otel(scale: Scale) -> dict[str, float]:
    """Ours with an exporter and without, and OpenTelemetry's SDK."""
    from opentelemetry.sdk.trace import TracerProvider

    with _sink() as endpoint:
        provider = TracerProvider()
        provider.add_span_processor(_processor(endpoint))
        tracer = provider.get_tracer("benchmark")
        candidates = {
            "alone": _ours(None),
            "ours": _ours(endpoint),
            "otel": (
                lambda: tracer.start_as_current_span("GET /users/{id}", attributes=_FIELDS),
                lambda: provider.force_flush(60_000),
            ),
        }
        found = _rounds(candidates, scale)
        provider.shutdown()
    return {
        **found,
        # What is left on the thread beyond the span itself.
        "otlp.append": found["otlp.thread.ours"] / found["otlp.thread.alone"],
        "otlp.rate.ours": 1e6 / found["otlp.process.ours"],
        "otlp.rate.otel": 1e6 / found["otlp.process.otel"],
    }


def export_otel_logfire(scale: Scale) -> dict[str, float]:
    """Logfire, by the same processor."""
    import logfire

    with _sink() as endpoint:
        logfire.configure(
            send_to_logfire=False,
            console=False,
            metrics=False,
            inspect_arguments=False,
            additional_span_processors=[_processor(endpoint)],
        )

        def make() -> AbstractContextManager[Any]:
            return logfire.span("GET /users/{id}", **_FIELDS)

        found = _rounds({"logfire": (make, lambda: logfire.force_flush(60_000))}, scale)
    return {**found, "otlp.rate.logfire": 1e6 / found["otlp.process.logfire"]}


def rate(samples: Sequence[tuple[float, float]]) -> float:
    """Delivered spans a second, of (seconds, delivered until then): from the middle of the second quarter to that
    of the last one. What is delivered goes up by whole batches, so each end is the mean of its quarter.
    """
    quarter = len(samples) // 4
    (began, before), (ended, after) = (
        [statistics.fmean(column) for column in zip(*part, strict=True)]
        for part in (samples[quarter : 2 * quarter], samples[3 * quarter :])
    )
    return (after - before) / (ended - began)


def keeps_up(scale: Scale) -> dict[str, float]:
    """An application that makes 20,000 spans a second for some seconds, in one process, and so on one core as a rule:
    how many of them are delivered each second, in percent how far that is behind (so does one that makes or delivers
    too few, or drops any), the cores that all that takes, and what waits at the end.
    """
    seconds = max(0.2, scale.loops / 1000)
    with _sink() as endpoint:
        from asyncinspect_logging import AsyncInspectHandler, Inspector, span
        from asyncinspect_logging.exporters.opentelemetry import OtelExporter

        inspector = Inspector()
        logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler(inspector))
        exporter = OtelExporter("benchmark", inspector, endpoint)
        with span("the first one has to import and connect"):
            pass
        exporter.flush(30)
        exporter.start_continuous_export()
        samples: list[tuple[float, float]] = []
        made, began, used = 0, time.perf_counter(), time.process_time()
        while (now := time.perf_counter()) < began + seconds:
            while made < (now - began) * _RATE:
                with span("GET /users/{id}", **_FIELDS):
                    pass
                made += 1
            samples.append((now, exporter.exported))
            time.sleep(0.001)
        elapsed, used = time.perf_counter() - began, time.process_time() - used
        waiting = exporter.waiting
        exporter.shutdown(30)
    delivered = rate(samples)
    return {
        "otlp.keeps_up.made": made / elapsed,
        "otlp.keeps_up.delivered": delivered,
        "otlp.keeps_up.behind": max(0.0, 100 * (1 - delivered / _RATE)),
        "otlp.keeps_up.waiting": waiting,
        "otlp.keeps_up.dropped": exporter.dropped,
        "otlp.keeps_up.core": used / elapsed,
    }


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    print(server.server_port, flush=True)
    server.serve_forever()
