"""A real collector, rotel, between the exporter and a receiver: what goes in comes out, over gRPC and HTTP, also when
the collector is killed, or told to go, and comes back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("rotel")

import otlp_receiver as otlp

from asyncinspect_logging import Inspector, annotate, instrument, span
from asyncinspect_logging.exporters.opentelemetry import OtelExporter

pytestmark = pytest.mark.real

Listen = Callable[..., Inspector]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Collector:
    """rotel on two ports of its own, which passes on to `receiver`."""

    def __init__(self, receiver: Any, folder: Path) -> None:
        import rotel

        self._agent = Path(rotel.__file__).with_name("rotel-agent")
        self._receiver, self._folder = receiver, folder
        self.grpc, self.http = (f"127.0.0.1:{_free_port()}" for _ in range(2))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "rotel.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._agent),
                    "start",
                    "--pid-file",
                    str(self._folder / "rotel.pid"),
                    "--otlp-grpc-endpoint",
                    self.grpc,
                    "--otlp-http-endpoint",
                    self.http,
                    "--exporter",
                    "otlp",
                    "--otlp-exporter-endpoint",
                    f"http://{self._receiver.http}",
                    "--otlp-exporter-protocol",
                    "http",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Some of its builds are linked against Python's library.
                env={**os.environ, "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or ""},
            )
        for address in (self.grpc, self.http):
            host, _, port = address.rpartition(":")
            until = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection((host, int(port)), 1).close()
                    break
                except OSError:
                    if self._process.poll() is not None:
                        why = f"rotel cannot run here: {(self._folder / 'rotel.log').read_text().strip()}"
                        if os.environ.get("CI", "").lower() in {"true", "1"}:
                            pytest.fail(f"{why}, and CI accepts no skip for it")
                        pytest.skip(why)
                    assert time.monotonic() < until, (self._folder / "rotel.log").read_text()
                    time.sleep(0.02)

    def stop(self, how: signal.Signals) -> None:
        """SIGKILL, or SIGTERM, on which it passes on what it has first."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def receiver() -> Iterator[Any]:
    with otlp.Receiver() as receiver:
        yield receiver


@pytest.fixture
def collector(receiver: Any, tmp_path: Path) -> Iterator[Collector]:
    collector = Collector(receiver, tmp_path)
    collector.start()
    yield collector
    collector.stop(signal.SIGKILL)


@pytest.fixture(params=["grpc", "http/protobuf"])
def to(request: pytest.FixtureRequest, collector: Collector) -> dict[str, str]:
    address = collector.grpc if request.param == "grpc" else collector.http
    return {"endpoint": f"http://{address}", "protocol": request.param}


def test_every_field_comes_through(listen: Listen, receiver: Any, to: dict[str, str]) -> None:
    """What a collector makes of it is what was meant."""
    exporter = OtelExporter(
        "shop", listen(), service_version="1.2", resource_attributes={"team": "blue"}, compression="gzip", **to
    )
    made: dict[str, Any] = {}

    async def query() -> None:
        await asyncio.sleep(0.001)
        annotate("half way")
        raise LookupError("no such user")

    async def main() -> None:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=abc"}
        linked = f"00-{'1' * 32}-{'2' * 16}-01"
        with span("request", parent=headers, links=[linked], user=7, ok=True, ratio=0.5, tags=["a", "b"]) as request:
            made["request"] = request
            await asyncio.gather(instrument(query(), name="query"), return_exceptions=True)
            waiting = asyncio.ensure_future(instrument(asyncio.sleep(60), name="waiting"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(main())
    with exporter:
        assert exporter.flush(20)
    found = {one.name: one for one in receiver.wait_for(3)}
    request, ours = found["request"], made["request"]
    assert receiver.resource.items() >= {"service.name": "shop", "service.version": "1.2", "team": "blue"}.items()
    scopes = {
        (s.scope.name, s.scope.version) for r in receiver.requests for a in r.resource_spans for s in a.scope_spans
    }
    assert [name for name, _ in scopes] == ["asyncinspect_logging"]
    assert (request.trace_id.hex(), request.span_id.hex(), request.parent_span_id.hex()) == (TRACE, ours.id, PARENT)
    assert (request.trace_state, request.kind, request.status.code) == ("vendor=abc", 2, 0)
    assert request.end_time_unix_nano - request.start_time_unix_nano == ours.exited_at - ours.entered_at
    assert abs(request.end_time_unix_nano - time.time_ns()) < 60e9
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in request.links] == [("1" * 32, "2" * 16)]
    assert (
        otlp.attributes_of(request).items()
        >= {
            "task.name": "request",
            "task.state": "completed",
            "task.duration_ms": (ours.exited_at - ours.entered_at) / 1e6,
            "user": 7,
            "ok": True,
            "ratio": 0.5,
        }.items()
    )
    assert otlp.attributes_of(request)["tags"] == ["a", "b"]
    query_span = found["query"]
    assert (query_span.trace_id, query_span.parent_span_id, query_span.kind) == (request.trace_id, request.span_id, 1)
    assert (query_span.status.code, query_span.status.message) == (2, "no such user")
    assert otlp.attributes_of(query_span).items() >= {"error.type": "LookupError", "task.poll_count": 2}.items()
    assert [(event.name, otlp.attributes_of(event)) for event in query_span.events] == [
        ("log", {"log.severity": "DEBUG", "log.message": "half way"}),
        ("exception", {"exception.type": "LookupError", "exception.message": "no such user"}),
    ]
    waiting = found["waiting"]
    assert (waiting.status.code, otlp.attributes_of(waiting)["task.state"]) == (0, "cancelled")


def test_more_than_a_message_may_hold(listen: Listen, receiver: Any, to: dict[str, str]) -> None:
    """A batch of 7 MB, where the collector takes 4 MB over gRPC, goes in parts, and holds nothing up."""
    exporter = OtelExporter("shop", listen(), **to)
    fields = {f"field{number}": "x" * 1000 for number in range(100)}
    for _ in range(70):
        with span("work", **fields):
            pass
    assert exporter.flush(20)
    receiver.wait_for(70)
    assert set(receiver.counts().values()) == {1}
    assert (exporter.exported, exporter.dropped) == (70, 0)
    assert exporter.shutdown()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_collector_that_goes_and_comes_back(
    listen: Listen, receiver: Any, collector: Collector, to: dict[str, str], how: signal.Signals
) -> None:
    """Under load, three times: every finished task arrives once. It is told to go at any moment; killed, while it has
    nothing that it has taken and not passed on, which nobody could get back.
    """
    exporter = OtelExporter("shop", listen(), batch_size=50, timeout=2.0, **to)
    exporter.start_continuous_export(0.05)
    made: list[str] = []
    pause, paused, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        while not done.is_set():
            if pause.is_set():
                paused.set()
                time.sleep(0.005)
                continue
            for _ in range(20):
                with span("work", number=len(made)) as one:
                    pass
                made.append(one.id)
            time.sleep(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            before = len(made)
            receiver.wait_for(before + 100)
            if how == signal.SIGKILL:
                paused.clear()
                pause.set()
                assert paused.wait(10)
                assert exporter.flush(20)
                receiver.wait_for(len(made))
                collector.stop(how)
                pause.clear()
            else:
                collector.stop(how)
            waited = len(made)
            while len(made) < waited + 200:
                time.sleep(0.01)
            collector.start()
    finally:
        pause.clear()
        done.set()
        thread.join()
    assert exporter.shutdown(60)
    receiver.wait_for(len(made))
    counts = receiver.counts()
    assert {id.hex() for id in counts} == set(made)
    assert set(counts.values()) == {1}
    assert (exporter.exported, exporter.dropped, exporter.waiting) == (len(made), 0, 0)
