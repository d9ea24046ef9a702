"""The example of the whole ecosystem, with all of it there, with parts not installed, and with nobody listening."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dogstatsd import Agent
from otlp_receiver import Receiver
from prometheus_client.parser import text_string_to_metric_families
from vendors import flaws_of

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "ecosystem_integration.py"
#: Imports that fail as those of packages that are not there do.
_WITHOUT = (
    "import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv[2:])); runpy.run_path(sys.argv[1], None, '__main__')"
)
#: What a part says that is left out; and the packages without which it is.
EXTRAS = {
    "log_file": ("asyncinspect-logging[json]", ["pythonjsonlogger"]),
    "fastapi": ("fastapi httpx", ["fastapi"]),
    "structlog": ("asyncinspect-logging[structlog]", ["structlog"]),
    "opentelemetry": ("asyncinspect-logging[opentelemetry]", ["opentelemetry", "grpc"]),
    "dogstatsd": ("asyncinspect-logging[statsd]", ["datadog", "statsd"]),
    "live_tools": ("asyncinspect-logging[cli]", ["rich"]),
}
PARTS = [
    "log_file",
    "fastapi",
    "structlog",
    "prometheus",
    "pushgateway",
    "opentelemetry",
    "dogstatsd",
    "files",
    "live_tools",
]


def run(hidden: list[str], **addresses: str) -> dict[str, str]:
    """What each part prints, and under "" what is printed before them."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "ASYNC_INSPECT_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _WITHOUT, str(EXAMPLE), *hidden],
        env=inherited | addresses,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    before, *rest = re.split(r"^-- (\w+)\n", done.stdout, flags=re.M)
    return {"": before} | dict(zip(rest[::2], rest[1::2], strict=True))


@contextmanager
def pushgateway(pushed: dict[str, bytes]) -> Iterator[str]:
    """Takes what is pushed."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            pushed[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nobody() -> Iterator[dict[str, str]]:
    """Addresses at which nobody listens, and nobody else can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        yield {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{place}",
            "PUSHGATEWAY": place,
            "DOGSTATSD": "unix:///nonexistent/dsd.socket",
        }


def test_with_everything_there(tmp_path: Path) -> None:
    """Every part does what it is for, and what arrives is what happened."""
    pushed: dict[str, bytes] = {}
    with Receiver() as collector, Agent("udp", tmp_path) as agent, pushgateway(pushed) as gateway:
        told = run(
            [], OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.grpc}", DOGSTATSD=agent.address, PUSHGATEWAY=gateway
        )
        agent.wait_for(lambda: agent.counts("name:charge")["async_inspect.tasks_failed"] == 2)
    assert list(told) == ["", *PARTS]
    assert told[""] == ""
    assert told["log_file"] == "replayed: 18 completed, 2 failed\n"
    assert told["fastapi"] == 'async_inspect_tasks_completed_total{name="GET /orders/{order}"} 3.0\n'
    event = json.loads(told["structlog"])
    assert (event["event"], event["span"], len(event["span_id"])) == ("refunded", "refund", 16)
    assert told["prometheus"] == 'async_inspect_tasks_completed_total{name="charge"} 21.0\ntextfile: True\n'
    assert told["pushgateway"] == f"pushed to {gateway}\n"
    assert told["dogstatsd"] == f"sent to {agent.address}\n"
    assert told["files"] == "charges in the trace: 23\nthe snapshot reads back: True\n"
    assert told["live_tools"].startswith("on: none\n")
    assert "deadlocks found" in told["live_tools"]

    # 20 orders in tasks of their own, and three by the service.
    spans = collector.spans
    names = Counter(span.name.rpartition(".")[2] for span in spans)
    assert {name: names[name] for name in ("charge", "checkout", "refund", "pay")} == {
        "charge": 23,
        "checkout": 20,
        "refund": 1,
        "pay": 1,
    }
    assert names["GET /orders/{order}"] == 3
    assert set(collector.counts().values()) == {1}
    assert [flaw for request in collector.requests for flaw in flaws_of(request)] == []
    failed = {span.name.rpartition(".")[2]: span.status.message for span in spans if span.status.code == 2}
    assert set(failed) == {"charge", "checkout"}
    assert "has no card" in failed["charge"]
    parents = {span.span_id: span.name.rpartition(".")[2] for span in spans}
    assert {parents.get(span.parent_span_id) for span in spans if span.name == "charge"} == {
        "checkout",
        "GET /orders/{order}",
    }
    assert told["opentelemetry"] == f"a child of ours: True\n{len(spans)} spans delivered, 0 lost\n"
    assert (collector.resource["service.name"], collector.resource["service.version"]) == ("shop", "1.0")
    metrics = {
        metric.name
        for request in collector.metric_requests
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert any(name.startswith("async_inspect_tasks_completed") for name in metrics)

    assert not agent.flaws
    assert agent.counts("service:shop", "name:charge")["async_inspect.tasks_completed"] == 21
    durations = [metric for metric in agent.metrics if metric.type == "d" and "name:charge" in metric.tags]
    assert len(durations) == 23

    ((path, page),) = pushed.items()
    assert path == "/metrics/job/orders"
    samples = [sample for family in text_string_to_metric_families(page.decode()) for sample in family.samples]
    (completed,) = [
        sample.value
        for sample in samples
        if sample.name == "async_inspect_tasks_completed_total" and sample.labels == {"name": "charge"}
    ]
    assert completed == 21


@pytest.mark.parametrize(
    "without",
    [list(EXTRAS), ["opentelemetry", "dogstatsd", "fastapi", "live_tools"], ["log_file", "structlog"]],
    ids=["all", "senders", "readers"],
)
def test_with_extras_missing_and_nobody_listening(without: list[str], nobody: dict[str, str]) -> None:
    """A part that is left out says what to install; who cannot be reached is named; and the rest goes on."""
    told = run([package for part in without for package in EXTRAS[part][1]], **nobody)
    for part in PARTS:
        # What only prints is begun all the same.
        said = told[part] if part == "live_tools" else told.get(part, "") + told[""]
        left_out = re.search(rf"^({part} is )?left out: .*pip install '?([^'\n]+)", said, re.M)
        assert bool(left_out) == (part in without), (part, told)
        if left_out:
            assert left_out[2] == EXTRAS[part][0]
    unreached = {part for part, text in told.items() if "not reached: " in text}
    assert unreached == {"pushgateway", "opentelemetry", "dogstatsd"} - set(without)
    if "opentelemetry" in unreached:
        assert re.search(r"^0 spans delivered, [1-9]\d* lost$", told["opentelemetry"], re.M)
    served = 0 if "fastapi" in without else 3
    assert told["prometheus"].startswith(f'async_inspect_tasks_completed_total{{name="charge"}} {18 + served}.0\n')
    assert told["files"] == f"charges in the trace: {20 + served}\nthe snapshot reads back: True\n"
