"""Logs, exports and the pages of running processes are told apart and read."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import write_log

from asyncinspect_logging import Inspector
from asyncinspect_logging.analysis import pages
from asyncinspect_logging.analysis.files import LogFileError
from asyncinspect_logging.analysis.loading import LoadError, load
from asyncinspect_logging.analysis.pages import PageError, fetch_page, read_page
from asyncinspect_logging.analysis.replay import LogTasks
from asyncinspect_logging.exporters.json_file import FormatError, JsonExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.snapshot import Snapshot

Tell = Callable[..., dict[str, Any]]
HOSTILE = 'a"b\\c\nd\x1b[31m'


@pytest.fixture
def inspector(tell: Tell) -> Inspector:
    """A few tasks of three names, one of them still open."""
    inspector = Inspector()
    for payload in payloads(tell):
        inspector.apply(payload)
    return inspector


def payloads(tell: Tell) -> list[dict[str, Any]]:
    found = []
    for number, name in enumerate(["job", "job", HOSTILE, "open"], 1):
        found.append(tell("enter", number, name=name, fields={"number": number}))
        if name != "open":
            more = {"polls": 3, "busy": 1_000_000, "wakes": 2, "scheduled": 30_000, "slow_waits": [[1, 1]]}
            outcome = "failed" if number == 2 else "completed"
            found.append(tell("exit", number, name=name, outcome=outcome, **more))
    return found


@pytest.fixture
def log(tmp_path: Path, tell: Tell) -> Path:
    return write_log(tmp_path / "service.jsonl", payloads(tell))


class _Answer(http.server.BaseHTTPRequestHandler):
    body = b""
    moved = False

    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(307)
            self.send_header("Location", "/metrics")
            self.end_headers()
        elif self.path == "/metrics":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.body)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.001)
        else:
            self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], str]]:
    """A function that serves a body at /metrics, and gives the address."""
    servers = []

    def serve(body: bytes) -> str:
        handler = type("Answer", (_Answer,), {"body": body})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


# -- pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["name", "task_name"])
@pytest.mark.parametrize("path", ["", "/", "/metrics", "/elsewhere"])
def test_the_page_of_a_process_gives_its_counters(
    inspector: Inspector, serve: Callable[[bytes], str], label: str, path: str
) -> None:
    """Everything that the page has, whatever its label is called."""
    address = serve(PrometheusExporter(inspector, name_label=label).gather().encode())
    found, live = load(address + path), inspector.snapshot()
    assert isinstance(found, Snapshot)
    assert found.tasks == ()
    assert set(found.names) == set(live.names) == {"job", HOSTILE, "open"}
    for name, view in live.names.items():
        # What a page does not have: which wakes were of the task itself.
        assert found.names[name] == view._replace(self_wakes=0), name
    assert dict(found.states) == dict(live.states)
    assert dict(found.events) == dict(live.events)
    assert dict(found.dropped) == dict(live.dropped)
    assert (found.deadlocks, dict(found.lints)) == (live.deadlocks, dict(live.lints))
    assert found.loop_lag == live.loop_lag
    assert abs(found.taken_at - time.time()) < 60


def test_a_real_server_is_read(inspector: Inspector) -> None:
    """The exporter's own."""
    with PrometheusExporter(inspector, port=0).start_server() as server:
        found = load(f"http://127.0.0.1:{server.port}")
    assert isinstance(found, Snapshot)
    assert found.names["job"].failed == 1


def test_a_saved_page_is_read(inspector: Inspector, tmp_path: Path) -> None:
    """Also a compressed one."""
    page = PrometheusExporter(inspector).gather().encode()
    (tmp_path / "page.txt").write_bytes(page)
    (tmp_path / "page.txt.gz").write_bytes(gzip.compress(page))
    first, second = load(tmp_path / "page.txt"), load(tmp_path / "page.txt.gz")
    assert isinstance(first, Snapshot)
    assert isinstance(second, Snapshot)
    assert first.names == second.names == read_page(page).names


def test_several_processes_on_one_page_are_summed_up() -> None:
    """As they are behind a federating Prometheus."""
    page = b"".join(
        b'async_inspect_tasks_total{instance="%s",name="job"} %d\n'
        b'async_inspect_task_duration_seconds_bucket{instance="%s",name="job",state="failed",le="1"} %d\n'
        b'async_inspect_task_duration_seconds_bucket{instance="%s",name="job",state="failed",le="+Inf"} %d\n'
        % (process, count, process, count, process, count + 1)
        for process, count in ((b"a", 3), (b"b", 4))
    )
    view = read_page(page).names["job"]
    assert view.spawned == 7
    assert (view.durations["failed"].bounds, view.durations["failed"].counts) == ((1.0,), (7, 2))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"", "no metrics of asyncinspect-logging there"),
        (b"<html></html>", "no metrics of asyncinspect-logging there"),
        (b"python_info 1\n", "no metrics of asyncinspect-logging there"),
        (b"\xff", "not a page"),
        (b"async_inspect_tasks_total{", "not a page"),
        (b'async_inspect_tasks_total{name="x"} many', "not a page"),
        (b'async_inspect_tasks_total{name="x"} NaN', "is nan"),
        (b'async_inspect_tasks_total{name="x"} -1', r"is -1"),
        (b'async_inspect_tasks_total{name="x"} +Inf', "is inf"),
        (b'async_inspect_tasks_total{one="x",two="y"} 1', "which of the labels"),
        (b"async_inspect_tasks_total 1", "which of the labels"),
        (b'async_inspect_poll_count_bucket{name="x"} 1', "without a bound"),
        (b'async_inspect_tasks_total{name="' + b"x" * 20000 + b'"} 1', "a line of 2"),
    ],
)
def test_what_is_no_page_is_refused(page: bytes, message: str, serve: Callable[[bytes], str]) -> None:
    """Each says what it is, and the address."""
    with pytest.raises(PageError, match=message) as caught:
        fetch_page(serve(page))
    assert str(caught.value).startswith("http://127.0.0.1:")


def test_a_page_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch, serve: Callable[[bytes], str]) -> None:
    """By size, and by time."""
    address = serve(b"")
    with pytest.raises(PageError, match=r"not all there after 0\.2 s"):
        fetch_page(address + "/endless", timeout=0.2)
    monkeypatch.setattr(pages, "_MAX_PAGE", 100)
    with pytest.raises(PageError, match="more than 0 MB"):
        fetch_page(address + "/endless")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://", "not an address"),
        ("http://[::1", "not an address"),
        ("http://127.0.0.1:99999", "not an address"),
        ("http://127.0.0.1:1", "is the process there"),
        ("http://127.0.0.1:1/a b\n", "no page"),
        ("ftp://127.0.0.1", None),
    ],
)
def test_an_address_that_does_not_answer(address: str, message: str | None) -> None:
    """Says so. What is no address is a file that is not there."""
    with pytest.raises(PageError if message else ValueError, match=message or "there is no file"):
        load(address)


def test_another_path_of_a_process(serve: Callable[[bytes], str]) -> None:
    """The status is told."""
    with pytest.raises(PageError, match="answered 404 Not Found; give the address of /metrics"):
        load(serve(b"") + "/other")


# -- logs and exports ----------------------------------------------------------------------------------------------


def read(where: Any) -> Snapshot:
    """The snapshot, of a stream with its tasks."""
    found = load(where)
    if isinstance(found, Snapshot):
        return found
    tasks = tuple(found)
    return found.rest()._replace(tasks=tasks)


def test_a_log_and_its_export_give_the_same(log: Path, tmp_path: Path) -> None:
    """However they are compressed, and whatever they are called."""
    expected = read(log)
    assert len(expected.tasks) == 4
    export = JsonExporter.export_to_string(LogTasks([log])).encode()
    for number, data in enumerate([log.read_bytes(), export, json.dumps(json.loads(export), indent=1).encode()]):
        for packed in (data, gzip.compress(data), zstandard.compress(data)):
            path = tmp_path / f"file{number}"
            path.write_bytes(packed)
            assert read(path) == expected


def test_what_goes_alone_goes_alone(log: Path, tmp_path: Path) -> None:
    """And only logs have a time, rules, and lines that can be broken."""
    export = tmp_path / "export.json"
    JsonExporter.export_to_file(LogTasks([log]), export)
    assert read([log, log]) == read(log)
    for where in ([str(log), str(export)], [str(log), "http://127.0.0.1:1"]):
        with pytest.raises(LoadError, match="goes alone"):
            load(where)
    for options in ({"at": 1.0}, {"strict": True}):
        with pytest.raises(LoadError, match="for logs only"):
            load(export, **options)
        with pytest.raises(LoadError, match="for logs only"):
            load("http://127.0.0.1:1", **options)


PIECES = st.sampled_from(
    [
        b"async_inspect_tasks_total",
        b"async_inspect_poll_count_bucket",
        b"async_inspect_task_duration_seconds_bucket",
        b'{name="a"}',
        b'{name="a",le="1"}',
        b'{name="a',
        b"le=",
        b" 1",
        b" 1e400",
        b" -1",
        b" NaN",
        b"\\",
        b'"',
        b"\n",
        b"# TYPE ",
        b"{",
        b'{"format":"asyncinspect_logging snapshot","version":1,"tasks":[',
        b'\n],\n"rest":',
        b"}",
        b'{"asyncinspect":',
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"\0",
        b"\xff",
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=50))
def test_whatever_is_in_a_file_it_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    """With one of four errors, each of which says which file it is."""
    path = tmp_path / "file"
    path.write_bytes(data)
    try:
        read(path)
    except (LoadError, LogFileError, FormatError, PageError) as error:
        assert str(path) in str(error)
