"""Batch jobs: what is sent to a Pushgateway, and the file for the node exporter."""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from asyncinspect_logging import Inspector, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.exporters.push import PushJob, delete, push, write_textfile


class Gateway(HTTPServer):
    """Keeps what it is asked; `status` is what it answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.status = 200
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                gateway.requests.append((self.command, self.path, body))
                self.send_response(gateway.status)
                self.end_headers()

            do_DELETE = do_PUT

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server_port}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as gateway:
        thread = threading.Thread(target=gateway.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield gateway
        gateway.shutdown()
        thread.join()


@pytest.fixture
def exporter(listen: Callable[..., Inspector]) -> PrometheusExporter:
    exporter = PrometheusExporter(listen())
    with span("load"):
        pass
    return exporter


def test_push(gateway: Gateway, exporter: PrometheusExporter) -> None:
    """The page of the registry, in the place of what was there under the job and the key."""
    Gauge("job_last_success_unixtime", "When it last succeeded.", registry=exporter.registry).set(7)
    push(gateway.address, "import", exporter=exporter, grouping_key={"instance": "a/b"})
    ((method, path, page),) = gateway.requests
    assert (method, path) == ("PUT", "/metrics/job/import/instance@base64/YS9i")
    # Memory may have changed meanwhile.
    kept = [line for line in exporter.gather().splitlines() if "memory" not in line]
    assert sorted(line for line in page.splitlines() if "memory" not in line) == sorted(kept)
    delete(f"http://{gateway.address}/", "import", grouping_key={"instance": "a/b"})
    assert gateway.requests[1][:2] == ("DELETE", path)


def test_push_of_the_default_inspector(gateway: Gateway) -> None:
    """Without an exporter."""
    push(gateway.address, "job")
    assert "async_inspect_tasks_total" in gateway.requests[0][2]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("deletes", [False, True])
def test_a_job(gateway: Gateway, exporter: PrometheusExporter, fails: bool, deletes: bool) -> None:
    """Is pushed when it ends, or deleted if it succeeded and that is wanted; its exception goes on."""
    job = PushJob(gateway.address, "job", exporter=exporter, delete_on_success=deletes)
    ended = False
    with suppress(LookupError):
        with job:
            if fails:
                raise LookupError
        ended = True
    assert ended is not fails
    assert [method for method, _, _ in gateway.requests] == ["DELETE" if deletes and not fails else "PUT"]
    assert job.errors == 0


def test_a_job_of_the_default_inspector(gateway: Gateway) -> None:
    """Has an exporter of its own, which others may use meanwhile."""
    with PushJob(gateway.address, "job") as job:
        Gauge("rows", "Rows.", registry=job.exporter.registry).set(3)
    assert "rows 3.0" in gateway.requests[0][2]


def test_pushed_meanwhile(gateway: Gateway, exporter: PrometheusExporter) -> None:
    """Every so often, from a thread that ends with the job."""
    with PushJob(gateway.address, "job", exporter=exporter, interval=0.01):
        while len(gateway.requests) < 3:
            time.sleep(0.001)
        assert any(thread.name == "asyncinspect-update" for thread in threading.enumerate())
    assert not any(thread.name == "asyncinspect-update" for thread in threading.enumerate())


def test_a_gateway_that_refuses(
    gateway: Gateway, exporter: PrometheusExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Does not fail the job, but whoever pushes by hand."""
    gateway.status = 400
    with PushJob(gateway.address, "job", exporter=exporter) as job:
        job.push()
    assert job.errors == 2
    assert "the push to" in caplog.text
    with pytest.raises(OSError, match="400"):
        push(gateway.address, "job", exporter=exporter)


@pytest.mark.parametrize("status", [301, 302, 307, 401, 503])
def test_answers_that_are_no_success(gateway: Gateway, exporter: PrometheusExporter, status: int) -> None:
    """Also one that sends elsewhere: nothing that was not taken passes for pushed, or goes where nobody said."""
    gateway.status = status
    with PushJob(gateway.address, "job", exporter=exporter) as job:
        pass
    assert job.errors == 1
    with pytest.raises(OSError, match=str(status)) as caught:
        delete(gateway.address, "job")
    caught.value.close()  # type: ignore[attr-defined]
    assert [method for method, _, _ in gateway.requests] == ["PUT", "DELETE"]


def test_a_gateway_that_says_nothing(exporter: PrometheusExporter) -> None:
    """The job waits for it no longer than it may, and its own exception goes on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(LookupError), PushJob(address, "job", exporter=exporter, timeout=0.05) as job:
            raise LookupError
        assert time.monotonic() - began < 5
    assert job.errors == 1


@pytest.mark.parametrize("gateway", ["http://me:secret@localhost:9091", "me:secret@localhost:9091"])
def test_a_password_is_not_shown(gateway: str) -> None:
    """Nor passed over: it would not be sent."""
    with pytest.raises(ConfigError, match="basic_auth_handler") as caught:
        PushJob(gateway, "job")
    assert "secret" not in str(caught.value)


def test_nobody_there(exporter: PrometheusExporter) -> None:
    """No more does that."""
    with PushJob("127.0.0.1:1", "job", exporter=exporter) as job:
        pass
    assert job.errors == 1


def test_a_handler(gateway: Gateway, exporter: PrometheusExporter) -> None:
    """It is given what there is to send, as prometheus_client has it."""
    asked = []

    def handler(url: str, method: str, timeout: float, headers: Any, data: bytes) -> Callable[[], None]:
        asked.append((url, method, timeout))
        return lambda: None

    push("https://gateway.example", "job", exporter=exporter, timeout=3, handler=handler)
    assert asked == [("https://gateway.example/metrics/job/job", "PUT", 3.0)]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no umask to speak of")
def test_textfile(tmp_path: Path, exporter: PrometheusExporter) -> None:
    """Whole, readable for all, and nothing beside it; a second one takes its place."""
    path = tmp_path / "import.prom"
    before = os.umask(0o077)
    try:
        for _ in range(2):
            write_textfile(path, exporter=exporter)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]
    families = {family.name for family in text_string_to_metric_families(path.read_text())}
    assert "async_inspect_tasks" in families
    write_textfile(str(path))


def test_textfile_that_fails(tmp_path: Path, exporter: PrometheusExporter) -> None:
    """Leaves what was there, and nothing else."""
    path = tmp_path / "import.prom"
    path.write_text("before")

    class Broken:
        def collect(self) -> Any:
            yield from ()
            raise LookupError

    registry = CollectorRegistry()
    broken = PrometheusExporter(Inspector(), registry=registry)
    registry.register(Broken())
    with pytest.raises(LookupError):
        write_textfile(path, exporter=broken)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "before"
    with pytest.raises(FileNotFoundError):
        write_textfile(tmp_path / "nowhere" / "a.prom", exporter=exporter)


@pytest.mark.parametrize(
    "options",
    [
        {"gateway": ""},
        {"gateway": 9091},
        {"gateway": "ftp://host"},
        {"gateway": "host name:9091"},
        {"gateway": "host:port"},
        {"job": ""},
        {"job": 1},
        {"grouping_key": {"name": "x"}},
        {"grouping_key": {"job": "x"}},
        {"grouping_key": {"a-b": "x"}},
        {"grouping_key": "a=b"},
        {"grouping_key": {"__a": "x"}},
        {"grouping_key": {"a": 1}},
        {"timeout": 0},
        {"interval": -1},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    """What cannot be used is named, with its value and the fix."""
    given = {"gateway": "localhost:9091", "job": "job"} | options
    with pytest.raises(ConfigError):
        PushJob(given.pop("gateway"), given.pop("job"), exporter=PrometheusExporter(Inspector()), **given)


@pytest.mark.parametrize("path", ["metrics.txt", ".prom\0", b"a.prom"])
def test_paths(path: Any) -> None:
    """The node exporter would not read it."""
    with pytest.raises(ConfigError, match=r"ends with \.prom"):
        write_textfile(path)
