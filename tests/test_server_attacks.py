"""The metrics server against those who mean it harm, and who may read what."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, diagnostics, install
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters import protection as protection_module
from asyncinspect_logging.exporters import server as server_module
from asyncinspect_logging.exporters.bounded import Bounded
from asyncinspect_logging.exporters.head import MAX_HEAD, Refused, parse_head
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.exporters.protection import Protection, is_loopback
from asyncinspect_logging.exporters.scrape import Overdue
from asyncinspect_logging.exporters.server import MetricsServer, check_path

SECRET = "correct-horse-battery-staple"


class Pages:
    """A page of so many bytes, after a gate if there is one."""

    def __init__(self, size: int = 3, gate: threading.Event | None = None) -> None:
        self.page = b"m 1"[:size].ljust(size, b"#")
        self.gate = gate
        self.asked = 0

    def serve(self, *, openmetrics: bool, compress: bool, names: Sequence[str]) -> bytes:
        self.asked += 1
        if self.gate is not None:
            assert self.gate.wait(30)
        return self.page


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test hears the warnings that are given once a process, and no variable of whoever runs it."""
    monkeypatch.setattr(diagnostics, "_told", set())
    for name in list(os.environ):
        if name.startswith("ASYNC_INSPECT_METRICS"):
            monkeypatch.delenv(name)


def serve(pages: Any = None, **options: Any) -> MetricsServer:
    return MetricsServer(pages or Pages(), "127.0.0.1", 0, "/metrics", Protection(options))


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with serve() as server:
        yield server


def connect(server: MetricsServer, timeout: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=timeout)


def rest_of(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def raw(server: MetricsServer, *parts: bytes) -> bytes:
    """What the server answers to these bytes, until it closes the connection, or until there are no more of them."""
    with connect(server) as connection:
        with suppress(OSError):
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        return rest_of(connection)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def get(server: MetricsServer, path: str = "/metrics", context: ssl.SSLContext | None = None, **headers: str) -> Any:
    """Status, headers and body of one request."""
    kind: Any = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
    more = {} if context is None else {"context": context}
    with closing(kind("127.0.0.1", server.port, timeout=10, **more)) as client:
        client.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        response = client.getresponse()
        return response.status, response.headers, response.read().decode()


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET /metrics HTTP/1.1\nHost: localhost\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\nX: y",
        b"GET /metrics HTTP/1.1\r\nX: a\r b",
        b"GET /metrics HTTP/1.1\r\nX : y",
        b"GET /metrics HTTP/1.1\r\n X: folded",
        b"GET /metrics HTTP/1.1\r\nX: y\r\n\tfolded",
        b"GET /metrics HTTP/1.1\r\nno colon",
        b"GET /metrics HTTP/1.1\r\n: no name",
        b"GET /metrics HTTP/1.1\r\nX: nul\0",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b",
        b"GET /metrics HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
        b"GET /metrics HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4",
        b"GET /metrics HTTP/1.1\r\nContent-Length: +3",
        b"GET /metrics HTTP/1.1\r\nContent-Length: 0x3",
        b"GET /metrics HTTP/1.1\r\nContent-Length: " + b"9" * 5000,
        b"GET /metrics  HTTP/1.1",
        b"GET /met rics HTTP/1.1",
        b"GET /m\xc3\xa4trics HTTP/1.1",
        b"GET\t/metrics HTTP/1.1",
        b"GET /metrics HTTP/1.10",
        b"GET /metrics",
        b" GET /metrics HTTP/1.1",
        b"G(T /metrics HTTP/1.1",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(head: bytes) -> None:
    """Line ends, names, lengths: what hides one request in another is none."""
    with pytest.raises(Refused) as refused:
        parse_head(head)
    assert refused.value.status == 400


def test_what_is_read_of_a_request() -> None:
    """The path is decoded once, an absolute target names the host, and a body ends the connection."""
    request = parse_head(b"GET /a%2562?name[]=x HTTP/1.1\r\nHost: h:1\r\nAccept: a\r\naccept:\tb ")
    assert request[:4] == ("GET", "/a%62", "name[]=x", "h:1")
    assert (request.headers["accept"], request.keep) == ("a,b", True)
    absolute = parse_head(b"GET HTTP://Other.Host/p?q=1 HTTP/1.1\r\nHost: localhost")
    assert absolute[:4] == ("GET", "/p", "q=1", "Other.Host")
    for more in (b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: Keep-Alive, Close"):
        assert not parse_head(b"GET / HTTP/1.1\r\n" + more).keep
    assert parse_head(b"GET / HTTP/1.1\r\nContent-Length: 0").keep
    assert not parse_head(b"GET / HTTP/1.0\r\nConnection: keep-alive").keep


@settings(max_examples=300)
@given(st.binary(max_size=300) | st.lists(st.sampled_from(
    [b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\n", b"Host:", b"a", b"%00", b"[", b":", b"Content-Length: 1", b"\0"]
), max_size=20).map(b"".join))  # fmt: skip
def test_any_head_is_read_or_refused(head: bytes) -> None:
    """Nothing else comes out, whatever comes in; and what was read has no control character in its headers."""
    try:
        request = parse_head(head)
    except Refused:
        return
    assert not re.search("[\r\n\0]", "".join(request.headers.values()))


@pytest.mark.parametrize(
    "target", ["/<script>alert(1)</script>", "/%0d%0aX-Injected:%201", "/metrics%00", "/../metrics"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "<script>"])
def test_nothing_of_a_request_is_repeated(
    server: MetricsServer, caplog: Any, capfd: Any, target: str, method: str
) -> None:
    """Neither in an answer, nor in its headers, nor in a log, nor on the terminal."""
    answer = raw(server, f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nX: script\r\n\r\n".encode())
    assert status_of(answer) in (400, 404, 405)
    assert b"script" not in answer
    assert b"Injected" not in answer
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_every_answer_is_safe_in_a_browser(server: MetricsServer) -> None:
    """It is nothing but the text that it says, may load nothing, stand in no frame, and is kept nowhere."""
    for path in ("/metrics", "/", "/nowhere", "/-/healthy", "/-/ready"):
        headers = get(server, path)[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Type"].startswith(("text/plain", "application/openmetrics-text"))
        assert "Server" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
@pytest.mark.parametrize("path", ["/metrics", "/", "/nowhere", "/-/healthy", "/-/ready", "/-/quit"])
def test_it_can_only_be_read(server: MetricsServer, method: str, path: str) -> None:
    """There is nothing that a request could change, and HEAD has no body."""
    answer = raw(server, f"{method} {path} HTTP/1.1\r\n\r\n".encode())
    assert status_of(answer) == 405
    assert b"Allow: GET, HEAD" in answer
    head = raw(server, f"HEAD {path} HTTP/1.1\r\n\r\n".encode())
    assert head.endswith(b"\r\n\r\n")
    assert status_of(head) in (200, 404)


def test_a_smuggled_request_is_not_answered(server: MetricsServer) -> None:
    """What stands in a body is no request, whatever says how long the body is."""
    inner = b"GET /-/healthy HTTP/1.1\r\n\r\n"
    for length in (b"Content-Length: 27", b"Transfer-Encoding: chunked", b"Content-Length: 0\r\nTransfer-Encoding: x"):
        answer = raw(server, b"GET /metrics HTTP/1.1\r\n" + length + b"\r\n\r\n" + inner)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close" in answer
        assert b"healthy" not in answer


def test_requests_that_come_together_are_answered_in_turn(server: MetricsServer) -> None:
    """Several in one packet, cut anywhere, are several."""
    requests = b"GET /metrics HTTP/1.1\r\n\r\n\r\nGET /-/healthy HTTP/1.1\r\n\r\nHEAD /metrics HTTP/1.1\r\n\r\n"
    whole = re.sub(b"Date: .*\r\n", b"", raw(server, requests))
    assert whole.count(b"HTTP/1.1 200 OK") == 3
    assert re.sub(b"Date: .*\r\n", b"", raw(server, *(requests[i : i + 1] for i in range(len(requests))))) == whole


# -- how much --------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
@pytest.mark.parametrize("begin", [b"GET /metrics HTTP/1.1\r\nX: ", b"GET /", b"", b"GET /metrics HTTP/1.1\r\n"])
def test_a_header_of_a_gigabyte(server: MetricsServer, begin: bytes) -> None:
    """It ends after 16 kB, with an answer that says why, and takes no memory."""
    before = resident()
    filling = b"a: b\r\n" * 10_000 if begin.endswith(b"1.1\r\n") else b"a" * 60_000
    sent = 0
    with connect(server) as attacker, suppress(ConnectionError):
        attacker.sendall(begin)
        while sent < 1 << 30:
            attacker.sendall(filling)
            sent += len(filling)
    assert sent < 32 << 20
    assert resident() - before < 20 << 20
    assert status_of(raw(server, begin, filling)) == 431
    assert get(server)[0] == 200


def test_a_head_of_just_that_size(server: MetricsServer) -> None:
    """16 kB are read, and not a byte more."""
    begin = b"GET /metrics HTTP/1.1\r\nX: "
    assert status_of(raw(server, begin + b"x" * (MAX_HEAD - len(begin)) + b"\r\n\r\n")) == 200
    assert status_of(raw(server, begin + b"x" * (MAX_HEAD - len(begin) + 1) + b"\r\n\r\n")) == 431
    assert status_of(raw(server, b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n")) == 431


def test_a_slow_head_ends_in_time(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps no connection: the time is that of the whole head, also of a later request's."""
    monkeypatch.setattr(server_module, "_HEAD_TIME", 0.2)
    for before in (b"", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with connect(server) as slow:
            slow.sendall(before)
            began, ended = time.monotonic(), False
            while not ended and time.monotonic() - began < 5:
                try:
                    slow.sendall(b"G")
                except ConnectionError:
                    break
                slow.settimeout(0.02)
                with suppress(TimeoutError):
                    ended = slow.recv(65536) == b""
            assert time.monotonic() - began < 4


def test_a_slow_reader_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not take the answer is let go."""
    monkeypatch.setattr(server_module, "_SEND_TIME", 0.2)
    with serve(Pages(64 << 20)) as server, connect(server) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: not server._listener.connections)
        assert len(rest_of(slow)) < 64 << 20


def wait_until(true: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_slow_readers_hold_no_more_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are not taken are bounded in bytes: the slowest goes."""
    monkeypatch.setattr(server_module, "_MAX_SENDING", 40 << 20)
    with serve(Pages(16 << 20)) as server, ExitStack() as stack:
        readers = [stack.enter_context(connect(server)) for _ in range(6)]
        for reader in readers:
            reader.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: len(server._listener.connections) == 2)
        assert get(server, "/-/healthy")[0] == 200


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_a_thousand_idle_clients(server: MetricsServer) -> None:
    """They take no more than so many threads and bytes, and a scraper has its answer among them."""
    before, threads = resident(), threading.active_count()
    worst = 0.0
    with ExitStack() as stack:
        for count in range(1000):
            idle = stack.enter_context(socket.socket())
            idle.setblocking(False)
            idle.connect_ex(("127.0.0.1", server.port))
            if count % 250 == 0:
                began = time.monotonic()
                assert get(server)[0] == 200
                worst = max(worst, time.monotonic() - began)
        assert len(server._listener.connections) <= 64
        assert threading.active_count() - threads <= 64 + 8
        assert get(server)[0] == 200
    assert resident() - before < 50 << 20
    assert worst < 5


def test_who_has_asked_for_nothing_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then who waits between two requests; never who waits for an answer."""
    monkeypatch.setattr(server_module, "_MAX_CONNECTIONS", 3)
    gate = threading.Event()
    pages = Pages(gate=gate)
    with serve(pages) as server, ExitStack() as stack:
        waiting, kept, new = (stack.enter_context(connect(server)) for _ in range(3))
        kept.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
        assert b"healthy" in kept.recv(65536)
        waiting.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: pages.asked)
        stack.enter_context(connect(server))
        assert new.recv(1) == b""
        others = [stack.enter_context(connect(server)) for _ in range(5)]
        for other in others:
            other.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: pages.asked == 3)
        # All are waiting for answers by now: whoever comes now has one after that.
        with connect(server) as late:
            late.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
            late.settimeout(0.05)
            with pytest.raises(TimeoutError):
                late.recv(1)
            assert len(server._listener.connections) == 3
            gate.set()
            late.settimeout(10)
            assert b"healthy" in late.recv(65536)
        assert b"m 1" in waiting.recv(65536)


_FLOOD = """
import socket, sys, threading

def flood():
    while True:
        try:
            with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5) as attacker:
                attacker.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n" * 200)
                while attacker.recv(65536):
                    attacker.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n" * 200)
        except OSError:
            pass

for _ in range(int(sys.argv[2])):
    threading.Thread(target=flood, daemon=True).start()
print("flooding", flush=True)
sys.stdin.read()
"""


def test_who_keeps_all_places_busy_shuts_nobody_out(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others wait for a place no connection serves another request, so that everybody's turn comes."""
    monkeypatch.setattr(server_module, "_MAX_CONNECTIONS", 32)
    command = [sys.executable, "-c", _FLOOD, str(server.port), "48"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as attacker:
        try:
            assert attacker.stdout is not None
            attacker.stdout.readline()
            wait_until(lambda: len(server._listener.connections) == 32)
            for _ in range(5):
                assert get(server)[0] == 200
        finally:
            attacker.kill()
    wait_until(lambda: not server._listener.connections and not server._listener.crowded)
    with connect(server) as kept:
        for _ in range(2):
            kept.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"Connection" not in kept.recv(65536)


def test_the_slowest_is_let_go_and_not_the_last_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scraper that has kept its connection since before a slow reader came has its answer."""
    monkeypatch.setattr(server_module, "_MAX_SENDING", 20 << 20)
    with serve(Pages(16 << 20)) as server, connect(server) as scraper:
        scraper.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
        assert b"healthy" in scraper.recv(65536)
        with connect(server) as slow:
            slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            # Not the scraper's own "healthy", which may still be in the hands of the thread that sent it.
            wait_until(lambda: any(one.sending >= 16 << 20 for one in server._listener.connections))
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert len(rest_of(scraper)) > 16 << 20
            assert len(rest_of(slow)) < 16 << 20


def test_no_thread_is_left_after_close() -> None:
    """Whoever does not take its answer is let go after a second; port and names can be had again at once."""
    server = serve(Pages(64 << 20))
    with connect(server) as slow, connect(server):
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: any(one.sending for one in server._listener.connections))
        threads = [one.thread for one in server._listener.connections]
        server.close()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
    files, running = len(os.listdir("/dev/fd")), threading.active_count()
    for _ in range(20):
        with MetricsServer(Pages(), "127.0.0.1", server.port, "/metrics") as again, connect(again) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"m 1" in client.recv(65536)
    assert len(os.listdir("/dev/fd")) <= files
    assert threading.active_count() <= running


_NO_FILES = """
import logging, resource, socket, sys, time
from asyncinspect_logging.exporters.server import MetricsServer

class Pages:
    def serve(self, *, openmetrics, compress, names):
        return b"m 1"

logging.basicConfig(stream=sys.stdout, format="%(message)s")
with MetricsServer(Pages(), "127.0.0.1", 0, "/metrics") as server:
    client = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    client.connect(("127.0.0.1", server.port))
    client.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
    began = time.process_time()
    time.sleep(1)
    print("busy" if time.process_time() - began > 0.3 else "calm")
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    client.settimeout(10)
    print(client.recv(65536).split(b"\\r\\n")[0].decode())
    client.close()
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of files are those of POSIX")
def test_out_of_files(tmp_path: Path) -> None:
    """The server waits without being busy, says so once, and answers when there are some again."""
    (tmp_path / "program.py").write_text(_NO_FILES)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, check=True, timeout=30
    )
    told, calm, answer = done.stdout.splitlines()
    assert "cannot accept: [Errno 24]" in told
    assert (calm, answer) == ("calm", "HTTP/1.1 200 OK")


# -- how long --------------------------------------------------------------------------------------------------------


def serve_page(bounded: Bounded) -> bytes:
    return bounded.serve(openmetrics=False, compress=False, names=())


def test_a_stuck_page_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """In time, with a line in the log that says where it is stuck; after four of them at once; and not for ever."""
    gate = threading.Event()
    pages = Pages(gate=gate)
    bounded = Bounded(pages, 0.05)
    for _ in range(4):
        with pytest.raises(Overdue):
            serve_page(bounded)
    assert bounded.is_overdue
    began = time.monotonic()
    bounded.limit = 30
    assert not bounded.is_overdue
    bounded.limit = 0.01
    for _ in range(100):
        with pytest.raises(Overdue):
            serve_page(bounded)
    assert pages.asked == 4
    assert time.monotonic() - began < 5
    (told,) = caplog.messages
    assert "takes longer than 0.05 s" in told
    assert "threading.py" in told
    bounded.limit = 30
    gate.set()
    assert serve_page(bounded) == b"m 1"
    wait_until(lambda: not bounded.is_overdue and not bounded._making)
    assert [thread for thread in threading.enumerate() if thread.name == "asyncinspect-page"] == []


def test_a_page_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be had the scrape fails, and the place is given back."""
    bounded = Bounded(Pages(), 1)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(10):
            with pytest.raises(RuntimeError):
                serve_page(bounded)
    assert serve_page(bounded) == b"m 1"


class Stuck:
    """A collector of the application's that does not come back."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        self.gate.wait(30)
        return []


def test_a_stuck_collector_of_others_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Scrapes are a 503, readiness says no and why, the loop goes on, and all is well when it comes back."""
    stuck = Stuck()
    inspector = Inspector()
    with PrometheusExporter(inspector, scrape_timeout=0.1) as exporter, exporter.start_server(0) as server:
        exporter.registry.register(stuck)
        inspector.is_fed = inspector.is_given = True
        assert get(server, "/-/ready")[0] == 200
        for _ in range(6):
            status, _, body = get(server)
            assert status == 503
            assert "asyncinspect.internal" in body

        async def mounted() -> tuple[int, float]:
            app, sent, longest = exporter.asgi_app(), list[Any](), 0.0

            async def send(message: Any) -> None:
                sent.append(message)

            async def receive() -> Any:
                raise AssertionError

            asked = asyncio.ensure_future(app({"type": "http", "method": "GET", "headers": []}, receive, send))
            while not asked.done():
                began = time.monotonic()
                await asyncio.sleep(0.005)
                longest = max(longest, time.monotonic() - began)
            return sent[0]["status"], longest

        assert asyncio.run(mounted())[0] == 503
        assert get(server, "/-/ready")[::2] == (503, "not ready: the metrics take too long to collect\n")
        assert get(server, "/-/healthy")[0] == 200
        stuck.gate.set()
        wait_until(lambda: get(server)[0] == 200)
        wait_until(lambda: get(server, "/-/ready")[0] == 200)
    assert any("Stuck.collect" in message for message in caplog.messages)


# -- health ----------------------------------------------------------------------------------------------------------


def test_not_ready_while_the_metrics_cannot_be_collected(caplog: pytest.LogCaptureFixture) -> None:
    """Until they can again."""

    class Failing:
        def describe(self) -> list[Any]:
            return []

        def collect(self) -> list[Any]:
            raise ValueError(SECRET)

    inspector, failing = Inspector(), Failing()
    inspector.is_fed = inspector.is_given = True
    with PrometheusExporter(inspector, update_interval=0) as exporter, exporter.start_server(0) as server:
        exporter.registry.register(failing)
        status, _, body = get(server)
        assert status == 500
        assert SECRET not in body
        assert get(server, "/-/ready")[::2] == (503, "not ready: the metrics cannot be collected\n")
        exporter.registry.unregister(failing)
        assert get(server)[0] == 200
        assert get(server, "/-/ready")[0] == 200


def test_not_ready_while_the_loop_does_not_come_back() -> None:
    """Beyond the limit that was set; and without one, it does not count."""
    inspector = Inspector(Config(slow_poll=0.05))
    handler = AsyncInspectHandler(inspector)
    logging.getLogger("asyncinspect").addHandler(handler)
    seen: list[tuple[int, int, str]] = []
    try:
        with (
            PrometheusExporter(inspector) as exporter,
            exporter.start_server(0, ready_lag=0.1) as strict,
            exporter.start_server(0) as lax,
        ):

            def look() -> None:
                until = time.monotonic() + 10
                while time.monotonic() < until and not (seen and seen[-1][0] == 503):
                    status, _, body = get(strict, "/-/ready")
                    seen.append((status, get(lax, "/-/ready")[0], body))
                blocked.set()

            async def main() -> None:
                with install():
                    await asyncio.sleep(0.3)  # the loop has a beat by then
                    looker = threading.Thread(target=look)
                    looker.start()
                    blocked.wait(10)  # in the loop's own thread
                    await asyncio.to_thread(looker.join)
                    await asyncio.sleep(0)

            blocked = threading.Event()
            asyncio.run(main())
            assert seen[-1] == (503, 200, "not ready: an event loop does not come back\n")
            assert get(strict, "/-/ready")[0] == 200
    finally:
        logging.getLogger("asyncinspect").removeHandler(handler)
        handler.close()


def test_health_cannot_be_what_the_metrics_are_called() -> None:
    """The path of the metrics is not one of these."""
    for path in ("/-/healthy", "/-/ready"):
        with pytest.raises(ConfigError, match="/-/ready"):
            check_path(path)


# -- by which name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        *((host, True) for host in ("localhost", "LocalHost:9", "a.localhost.", "127.0.0.1", "[::1]:80", "10.1.2.3")),
        *((host, False) for host in ("evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil")),
        *((host, False) for host in ("a@b", "localhost:9:1", "[::1", "::1", "local host", "[evil.example]", "\xff")),
    ],
)  # fmt: skip
def test_on_the_loopback_only_some_names_are_answered(server: MetricsServer, host: str, answered: bool) -> None:
    """A page of somebody else's whose name leads here reads nothing, in either form of a target; and no health."""
    for request in ("GET {} HTTP/1.1\r\nHost: {host}", "GET http://{host}{} HTTP/1.1\r\nHost: localhost"):
        if "http://" in request and not re.fullmatch(r"[!-~]+", host):
            continue
        for path in ("/metrics", "/-/healthy"):
            answer = raw(server, f"{request.format(path, host=host)}\r\n\r\n".encode("latin-1"))
            assert status_of(answer) == (200 if answered else 421)
            assert answered or b"evil" not in answer


def test_names_may_be_allowed() -> None:
    """By name, or all of them; other addresses than the loopback's answer to any unless some are named."""
    with serve(allowed_hosts=["Metrics.Example.com"]) as server:
        assert get(server, Host="metrics.example.com:9090")[0] == 200
        assert get(server, Host="other.example.com")[0] == 421
    assert Protection({"allowed_hosts": ["*"]}).answers_to("evil.example", loopback=True)
    assert Protection({}).answers_to("service.namespace.svc", loopback=False)
    assert not Protection({"allowed_hosts": "a, b"}).answers_to("c", loopback=False)  # type: ignore[typeddict-item]
    assert Protection({"allowed_hosts": "a, b"}).answers_to("b", loopback=False)  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("fe80::1%eth0", False)],
)  # fmt: skip
def test_loopback_addresses(host: str, loopback: bool) -> None:
    """All of 127.0.0.0/8, and ::1."""
    assert is_loopback(host) is loopback


# -- who -------------------------------------------------------------------------------------------------------------


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("by_file", [False, True])
def test_tokens_and_passwords(tmp_path: Path, by_file: bool) -> None:
    """One of them opens, nothing else does, and health needs none."""
    options: dict[str, Any] = {"bearer_token": SECRET, "basic_auth": {"prometheus": "pässwört:1"}}
    if by_file:
        (tmp_path / "tokens").write_text(f"\n{SECRET}\nsecond\n")
        (tmp_path / "users").write_text("other:x\r\nprometheus:pässwört:1\n", "utf-8")
        options = {"bearer_token_file": tmp_path / "tokens", "basic_auth_file": tmp_path / "users"}
    with serve(**options) as server:
        for good in (f"Bearer {SECRET}", f"bearer  {SECRET}", basic("prometheus:pässwört:1")):
            assert get(server, Authorization=good)[0] == 200
        bad = ["", SECRET, f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}", "Bearer", "Bearer ", f"Basic {SECRET}"]
        bad += [basic("prometheus:"), basic(":pässwört:1"), basic("Prometheus:pässwört:1"), "Basic ====", "Digest x"]
        bad += [f"Bearer {base64.b64encode(b'prometheus:p').decode()}", "\xff\xfe", f"Bearer {SECRET},Bearer {SECRET}"]
        for header in bad:
            for path in ("/metrics", "/", "/nowhere", "/metrics?name[]=x"):
                status, headers, body = get(server, path, Authorization=header)
                assert (status, headers["Connection"]) == (401, "close")
                assert "metrics at" not in body
        ways = headers.get_all("WWW-Authenticate")
        assert ways == ['Bearer realm="metrics"', 'Basic realm="metrics", charset="UTF-8"']
        assert get(server, "/-/healthy")[0] == get(server, "/-/ready")[0] == 200
        assert (get(server, Authorization="Bearer second")[0] == 200) is by_file
        assert (get(server, Authorization=basic("other:x"))[0] == 200) is by_file


def test_secrets_are_compared_all_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with `compare_digest`, equally long, also after one was right: the time tells nothing of them."""
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    protection = Protection({"basic_auth": {"a": "1", "b": "2" * 500}, "bearer_token": "t"})
    monkeypatch.setattr(protection_module.hmac, "compare_digest", compare)
    for header, admitted in ((basic("a:1"), True), (basic("b:" + "2" * 500), True), ("", False), ("Bearer t", True)):
        compared.clear()
        assert protection.admits(header) is admitted
        assert compared == [(32, 32)] * 3


def test_secrets_are_nowhere_to_be_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in what the objects say of themselves, nor in what they hold, nor in an error."""
    protection = Protection({"bearer_token": SECRET, "basic_auth": {"user": SECRET}})
    with MetricsServer(Pages(), "0.0.0.0", 0, "/metrics", protection) as server:
        assert SECRET not in repr(protection) + repr(server) + caplog.text
        assert SECRET not in str(vars(protection)) + str(vars(protection._secrets))
    (tmp_path / "bad").write_text(f"{SECRET} with blanks")
    (tmp_path / "binary").write_bytes(SECRET.encode() + b"\xff")
    for options in (
        {"bearer_token": f"{SECRET} x"}, {"basic_auth": {SECRET: ""}}, {"basic_auth": {"a:" + SECRET: "b"}},
        {"bearer_token_file": tmp_path / "bad"}, {"basic_auth_file": tmp_path / "bad"},
        {"bearer_token_file": tmp_path / "binary"},
    ):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            Protection(options)  # type: ignore[arg-type]
        assert SECRET not in str(error.value)
        assert error.value.__cause__ is None


def test_a_new_token_holds_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """The file is read again when it changes; while it is empty or gone, the former token holds, and that is told."""
    monkeypatch.setattr(protection_module, "_LOOK", 0)
    path = tmp_path / "token"
    path.write_text("first")
    protection = Protection({"bearer_token_file": path})
    assert protection.admits("Bearer first")
    path.write_text("second, it is")
    assert protection.admits("Bearer first")
    assert "cannot be used; the former stays" in caplog.text
    assert "second" not in caplog.text
    path.write_text("second")
    assert protection.admits("Bearer second")
    assert not protection.admits("Bearer first")
    path.unlink()
    assert protection.admits("Bearer second")
    assert not protection.admits("")


def test_the_environment_protects_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Each option has a variable; one that is given comes first; and none of them is taken for a misspelt one."""
    (tmp_path / "users").write_text("u:p")
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_BEARER_TOKEN", SECRET)
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_BASIC_AUTH_FILE", str(tmp_path / "users"))
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_READY_LAG", "2.5")
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_ALLOWED_HOSTS", "a.example,b.example")
    assert Config.from_env() == Config()
    assert caplog.text == ""
    with PrometheusExporter(Inspector()) as exporter:
        with exporter.start_server(0) as server:
            assert get(server)[0] == 401
            assert get(server, Authorization=f"Bearer {SECRET}", Host="b.example")[0] == 200
            assert get(server, Authorization=basic("u:p"))[0] == 200
        with exporter.start_server(0, bearer_token="own", allowed_hosts=["c.example"]) as server:
            assert get(server, Authorization=f"Bearer {SECRET}")[0] == 401
            assert get(server, Authorization="Bearer own", Host="b.example")[0] == 421
    assert Protection({}).ready_lag == 2.5
    monkeypatch.delenv("ASYNC_INSPECT_METRICS_BASIC_AUTH_FILE")
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_BASIC_AUTH", "v:w:x")
    assert Protection({}).admits(basic("v:w:x"))


@pytest.mark.parametrize(
    "variable", ["BEARER_TOKEN", "BEARER_TOKEN_FILE", "BASIC_AUTH", "BASIC_AUTH_FILE", "CLIENT_CAFILE"]
)
def test_an_empty_secret_opens_nothing(variable: str) -> None:
    """What a variable was to be made of is missing: an error, and not metrics for everybody."""
    for empty in ("", " "):
        with pytest.raises(ConfigError, match=f"ASYNC_INSPECT_METRICS_{variable} is empty"):
            Protection({}, {f"ASYNC_INSPECT_METRICS_{variable}": empty})
    assert not Protection({}, {"ASYNC_INSPECT_METRICS_READY_LAG": "", "ASYNC_INSPECT_METRICS_CERTFILE": ""}).tls


@pytest.mark.parametrize(
    "target",
    ["/metrics", "//metrics", "/%6detrics", "/%2Fmetrics", "/metrics/", "/METRICS", "/-/healthy/../metrics", "*",
     "/-/healthy/", "/-/healthy%2f..%2fmetrics", "/metrics?/-/healthy", "/metrics%23/-/healthy", "/-/HEALTHY",
     "http://localhost/metrics", "http://localhost", "/;/-/healthy", "/metrics#/-/healthy"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "get", "POST"])
def test_no_way_around_the_token(target: str, method: str) -> None:
    """However the path is written, whatever came before on the connection: who shows nothing reads nothing."""
    with serve(bearer_token=SECRET) as server:
        for version in ("1.0", "1.1"):
            request = f"{method} {target} HTTP/{version}\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n"
            assert status_of(raw(server, request.encode())) == 401
        before = f"GET /metrics HTTP/1.1\r\nAuthorization: Bearer {SECRET}\r\n\r\nGET /-/healthy HTTP/1.1\r\n\r\n"
        answers = raw(server, before.encode() + request.replace("1.0", "1.1").encode())
        assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"200", b"401"]


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pem(authority: trustme.CA, tmp_path: Path) -> Path:
    """A folder with the files that a server needs, and a client's."""
    issue(authority, tmp_path)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    client = authority.issue_cert("client@example.com")
    client.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    return tmp_path


def issue(authority: trustme.CA, folder: Path) -> None:
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"open")
    )
    (folder / "locked.pem").write_bytes(locked)
    (folder / "password").write_text("open\n")


def trusting(authority: trustme.CA, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def test_tls(authority: trustme.CA, pem: Path) -> None:
    """The metrics are read over TLS 1.2 or later, and not without; large pages too."""
    with serve(Pages(2 << 20), certfile=pem / "cert.pem", keyfile=pem / "key.pem") as server:
        assert server.url == f"https://127.0.0.1:{server.port}/metrics"
        context = trusting(authority)
        status, _, body = get(server, context=context)
        assert (status, len(body)) == (200, 2 << 20)
        assert raw(server, b"GET /metrics HTTP/1.1\r\n\r\n")[:4] != b"HTTP"
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert get(server, context=context)[0] == 200
        made = server._listener.protection.context()
        assert made is not None
        assert made.minimum_version == ssl.TLSVersion.TLSv1_2
        assert made.options & ssl.OP_NO_RENEGOTIATION
        assert made.options & ssl.OP_NO_COMPRESSION
    with serve(certfile=pem / "cert.pem", keyfile=pem / "locked.pem", key_password_file=pem / "password") as server:
        assert get(server, context=trusting(authority))[0] == 200


def test_client_certificates(authority: trustme.CA, pem: Path) -> None:
    """Without one there is health and nothing else; one that somebody else signed is as bad."""
    options = {"certfile": pem / "cert.pem", "keyfile": pem / "key.pem", "client_cafile": pem / "ca.pem"}
    with serve(**options, bearer_token=SECRET) as server:
        nobody, known = trusting(authority), trusting(authority, pem / "client.pem")
        token = f"Bearer {SECRET}"
        assert get(server, context=known, Authorization=token)[0] == 200
        assert get(server, context=known)[0] == 401
        assert get(server, context=nobody, Authorization=token)[0] == 403
        assert get(server, "/nowhere", context=nobody)[0] == 403
        assert get(server, "/-/healthy", context=nobody)[0] == get(server, "/-/ready", context=nobody)[0] == 200
        stranger = trustme.CA().issue_cert("client@example.com")
        stranger.private_key_and_cert_chain_pem.write_to_path(str(pem / "stranger.pem"))
        with pytest.raises(OSError):  # noqa: PT011
            get(server, context=trusting(authority, pem / "stranger.pem"), Authorization=token)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_that_goes_on_is_whose_it_was(authority: trustme.CA, pem: Path, version: ssl.TLSVersion) -> None:
    """A session that is resumed shows no certificate, and needs none if it did."""
    options = {"certfile": pem / "cert.pem", "keyfile": pem / "key.pem", "client_cafile": pem / "ca.pem"}
    with serve(**options) as server:
        for certificate, status in ((None, 403), (pem / "client.pem", 200)):
            context, session = trusting(authority, certificate), None
            context.minimum_version = context.maximum_version = version
            for resumed in (False, True):
                with context.wrap_socket(connect(server), server_hostname="localhost", session=session) as secured:
                    secured.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                    assert status_of(secured.recv(65536)) == status
                    assert secured.session_reused is resumed
                    session = secured.session


def test_a_handshake_that_does_not_come_ends_in_time(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, and garbage, keep no thread."""
    monkeypatch.setattr(server_module, "_HEAD_TIME", 0.2)
    with serve(certfile=pem / "cert.pem", keyfile=pem / "key.pem") as server:
        with connect(server) as silent:
            assert rest_of(silent) == b""
        assert b"HTTP" not in raw(server, b"\x16\x03\x01\x40\x00" + b"\0" * 20_000)
        wait_until(lambda: not server._listener.connections)


def test_who_is_let_go_gets_nothing_in_the_clear(authority: trustme.CA, pem: Path) -> None:
    """A TLS connection that ends early sends no byte that is not encrypted."""
    gate = threading.Event()
    pages = Pages(1 << 20, gate)
    with serve(pages, certfile=pem / "cert.pem", keyfile=pem / "key.pem") as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        inside = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with connect(server) as outside:
            while True:
                try:
                    inside.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    outside.sendall(outgoing.read())
                    incoming.write(outside.recv(65536))
            inside.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            outside.sendall(outgoing.read())
            wait_until(lambda: pages.asked)
            (connection,) = server._listener.connections
            connection.leave()
            gate.set()
            assert b"#####" not in rest_of(outside)


def test_a_new_certificate_is_shown(authority: trustme.CA, pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the next client; while key and certificate do not fit each other, the former stay."""
    monkeypatch.setattr(protection_module, "_LOOK", 0)

    def shown(server: MetricsServer) -> Any:
        with trusting(authority).wrap_socket(connect(server), server_hostname="localhost") as secured:
            certificate: Any = secured.getpeercert()
            return certificate["serialNumber"]

    with serve(certfile=pem / "cert.pem", keyfile=pem / "key.pem") as server:
        first = shown(server)
        key = (pem / "key.pem").read_bytes()
        issue(authority, pem)
        new_key = (pem / "key.pem").read_bytes()
        (pem / "key.pem").write_bytes(key)
        assert shown(server) == first
        (pem / "key.pem").write_bytes(new_key)
        assert shown(server) != first


# -- options that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"certfile": "none.pem"}, r"certfile='none\.pem' cannot be read: No such file"),
        ({"certfile": "cert.pem"}, "certfile='cert.pem' cannot be used"),
        ({"certfile": "cert.pem", "keyfile": "none.pem"}, "keyfile='none.pem' cannot be read"),
        ({"certfile": "cert.pem", "keyfile": "locked.pem"}, "is encrypted; give key_password_file="),
        (
            {"certfile": "cert.pem", "keyfile": "locked.pem", "key_password_file": "wrong"},
            "cannot be decrypted with the password in key_password_file",
        ),
        ({"certfile": "cert.pem", "keyfile": "locked.pem", "key_password_file": "none"}, "key_password_file='none'"),
        ({"certfile": "cert.pem", "keyfile": "client.pem"}, "not the key of the certificate"),
        ({"certfile": "junk", "keyfile": "key.pem"}, "cannot be used"),
        (
            {"certfile": "cert.pem", "keyfile": "key.pem", "client_cafile": "junk"},
            "client_cafile='junk' cannot be used",
        ),
        (
            {"certfile": "cert.pem", "keyfile": "key.pem", "client_cafile": "none"},
            "client_cafile='none' cannot be read",
        ),
        ({"keyfile": "key.pem"}, "keyfile='key.pem' is of no use without a certificate; give certfile="),
        ({"client_cafile": "ca.pem"}, "give certfile="),
        ({"key_password_file": "password"}, "give certfile="),
        ({"bearer_token": ""}, "bearer_token has a token that no client could send"),
        ({"bearer_token": 7}, "bearer_token has a token"),
        ({"bearer_token": "a", "bearer_token_file": "password"}, "both given"),
        ({"basic_auth": {"a": "b"}, "basic_auth_file": "password"}, "both given"),
        ({"bearer_token_file": "none"}, "bearer_token_file='none' cannot be read"),
        ({"bearer_token_file": "empty"}, "has 0 lines"),
        ({"bearer_token_file": "big"}, "longer than"),
        ({"basic_auth_file": "password"}, "not USER:PASSWORD"),
        ({"basic_auth": {}}, "no table of passwords"),
        ({"basic_auth": "nocolon"}, "not USER:PASSWORD"),
        ({"allowed_hosts": ["http://a"]}, "'http://a', which is no name of a host"),
        ({"allowed_hosts": 7}, "which is no name of a host"),
        ({"ready_lag": 0}, "ready_lag=0 is not a number of seconds"),
        ({"ready_lag": "soon"}, "ready_lag='soon'"),
    ],
)
def test_options_that_cannot_be_used(pem: Path, monkeypatch: Any, options: dict[str, Any], said: str) -> None:
    """Each has an error that says which option, its value unless it is a secret, and what to do instead."""
    monkeypatch.chdir(pem)
    Path("wrong").write_text("guess")
    Path("junk").write_text("junk")
    Path("empty").write_text(" \n\n")
    Path("big").write_text("a" * 70_000)
    with pytest.raises(ConfigError, match=said):
        Protection(options)  # type: ignore[arg-type]


def test_an_option_that_there_is_not() -> None:
    """Is named, as for any function; one of a variable is named by that."""
    with (
        PrometheusExporter(Inspector()) as exporter,
        pytest.raises(TypeError, match=r"'cert_file'; it takes an address.* or a port, and certfile, keyfile"),
    ):
        exporter.start_server(0, cert_file="x")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="ASYNC_INSPECT_METRICS_READY_LAG='x'"):
        Protection({}, {"ASYNC_INSPECT_METRICS_READY_LAG": "x"})
    with pytest.raises(ConfigError, match="ASYNC_INSPECT_METRICS_KEYFILE='x'"):
        Protection({}, {"ASYNC_INSPECT_METRICS_KEYFILE": "x"})


@pytest.mark.parametrize(
    ("host", "options", "warned"),
    [
        ("127.0.0.1", {}, None),
        ("0.0.0.0", {}, "can be read by whoever reaches this address"),
        ("0.0.0.0", {"certfile": "cert.pem", "keyfile": "key.pem"}, "can be read by whoever"),
        ("0.0.0.0", {"bearer_token": SECRET}, "without TLS"),
        ("0.0.0.0", {"bearer_token": SECRET, "certfile": "cert.pem", "keyfile": "key.pem"}, None),
        ("0.0.0.0", {"client_cafile": "ca.pem", "certfile": "cert.pem", "keyfile": "key.pem"}, None),
    ],
)
def test_what_is_open_is_told(
    pem: Path, monkeypatch: Any, caplog: Any, host: str, options: dict[str, Any], warned: str | None
) -> None:
    """Once for each address, where more than this machine can read the metrics, or a secret on its way to them."""
    monkeypatch.chdir(pem)
    with MetricsServer(Pages(), host, 0, "/metrics", Protection(options)) as server:  # type: ignore[arg-type]
        server._warn(server._listener.protection)
    assert len(caplog.messages) == (0 if warned is None else 1)
    assert warned is None or warned in caplog.messages[0]


@pytest.mark.slow
def test_the_command_serves_the_same_way(authority: trustme.CA, pem: Path) -> None:
    """`asyncinspect serve` takes these options, and says what is wrong with one in a line."""
    (pem / "token").write_text(SECRET)
    (pem / "app.jsonl").write_text("")
    command = [sys.executable, "-m", "asyncinspect_logging", "serve", str(pem / "app.jsonl"), "--follow"]
    tls = ["--certfile", str(pem / "cert.pem"), "--keyfile", str(pem / "key.pem")]
    protected = [*tls, "--bearer-token-file", str(pem / "token"), "--allowed-host", "metrics.example"]
    with subprocess.Popen(
        [*command, *protected, "--address", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            url = json.loads(process.stdout.readline())["metrics"]
            request = urllib.request.Request(
                url, headers={"Authorization": f"Bearer {SECRET}", "Host": "metrics.example"}
            )
            with urllib.request.urlopen(request, context=trusting(authority), timeout=10) as response:
                assert b"async_inspect" in response.read()
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(url, context=trusting(authority), timeout=10)
            refused.value.close()
        finally:
            process.terminate()
    failed = subprocess.run([*command, "--certfile", "none.pem"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "certfile='none.pem' cannot be read" in failed.stderr
    assert "Traceback" not in failed.stderr
