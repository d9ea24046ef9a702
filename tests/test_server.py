"""The scrape server and the apps, over fixed pages."""

import asyncio
import errno
import gzip
import http.client
import json
import socket
import threading
from contextlib import closing
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest
from fastapi import FastAPI

from asyncinspect_logging import diagnostics
from asyncinspect_logging.config import parse_address
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters import server as server_module
from asyncinspect_logging.exporters.scrape import OPENMETRICS, TEXT, asgi_app, respond, wsgi_app
from asyncinspect_logging.exporters.server import MetricsServer, check_path


class Pages:
    """Pages that say what was asked for."""

    def __init__(self, fail=None):
        self.fail = fail
        self.threads = []

    def serve(self, *, openmetrics, compress, names):
        self.threads.append(threading.current_thread())
        if self.fail:
            raise self.fail
        text = json.dumps([openmetrics, compress, list(names)]).encode()
        return gzip.compress(text) if compress else text


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    """Each test hears the warnings that are given once a process."""
    monkeypatch.setattr(diagnostics, "_told", set())


@pytest.fixture
def pages():
    return Pages()


@pytest.fixture
def server(pages):
    with MetricsServer(pages, "127.0.0.1", 0, "/metrics") as server:
        yield server


@pytest.fixture
def client(server):
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as client:
        yield client


def ask(client, method="GET", target="/metrics", body=None, **headers):
    client.request(
        method, target, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    response = client.getresponse()
    return response, response.read()


def raw(server, data):
    """What the server answers to these bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def test_get_gives_the_page(client):
    """Without an Accept header it is text 0.0.4, uncompressed, with its length."""
    response, body = ask(client)
    assert (response.status, json.loads(body)) == (200, [False, False, []])
    assert response.headers["Content-Type"] == TEXT
    assert response.headers["Content-Length"] == str(len(body))


def test_head_gives_the_headers_of_the_page(client):
    """HEAD has GET's length and no body, and leaves the connection usable."""
    length = ask(client)[0].headers["Content-Length"]
    response, body = ask(client, "HEAD")
    assert (response.status, response.headers["Content-Length"], body) == (200, length, b"")
    assert ask(client)[0].status == 200


def test_connections_are_kept_alive(client):
    """Several scrapes use one connection."""
    ask(client)
    connection = client.sock
    ask(client, target="/nowhere")
    ask(client)
    assert client.sock is connection is not None


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; Version=1.0.0", True),
        ("application/openmetrics-text; version=2.0.0", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.7", False),
        ("application/openmetrics-text;q=0.7, text/plain;q=0.3", True),
        ("application/openmetrics-text;q=nonsense", False),
        ("application/openmetrics-text;q=nan", False),
        (",;=,;;q", False),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
    ],
)
def test_the_format_is_negotiated(client, accept, openmetrics):
    """OpenMetrics goes to those who ask for it and do not prefer something else."""
    response, body = ask(client, Accept=accept)
    assert response.headers["Content-Type"] == (OPENMETRICS if openmetrics else TEXT)
    assert json.loads(body)[0] is openmetrics


@pytest.mark.parametrize(
    ("encoding", "compressed"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("*", True), ("gzip;q=0", False), ("identity", False), ("", False)],
)
def test_gzip_is_negotiated(client, encoding, compressed):
    """The page is compressed for those who accept gzip."""
    response, body = ask(client, Accept_Encoding=encoding)
    assert response.headers["Content-Encoding"] == ("gzip" if compressed else None)
    assert json.loads(gzip.decompress(body) if compressed else body)[1] is compressed


def test_names_are_handed_on(client):
    """name[] may be given more than once, percent-encoded or not; other parameters mean nothing."""
    assert json.loads(ask(client, target="/metrics?name[]=a&x=1&name%5B%5D=b")[1])[2] == ["a", "b"]


def test_too_many_names_are_a_bad_request(client):
    """An endless query is refused instead of taken apart."""
    assert ask(client, target="/metrics?" + "&".join(["a=b"] * 2000))[0].status == 400


def test_the_root_says_where_the_metrics_are(client):
    """A person who opens the address in a browser is told where to look."""
    response, body = ask(client, target="/")
    assert response.status == 200
    assert b"/metrics" in body


@pytest.mark.parametrize(
    "target", ["/other<script>", "/metrics/x", "/METRICS", "//metrics2", "http://localhost/elsewhere"]
)
def test_other_paths_are_not_found(client, target):
    """A 404 tells the way and repeats nothing of the request."""
    response, body = ask(client, target=target)
    assert response.status == 404
    assert body == b"Not here: the metrics are at /metrics\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_not_allowed(client, method):
    """A 405 lists the methods, ends the connection (there may be a body on it) and repeats nothing of the request."""
    response, body = ask(client, method, body=b"GET /metrics HTTP/1.1\r\n\r\n")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert response.headers["Connection"] == "close"
    assert b"BREW" not in body


def test_the_body_of_a_get_is_not_taken_for_a_request(server):
    """A body that comes with a GET ends the connection after the answer."""
    answer = raw(server, b"GET /metrics HTTP/1.1\r\nContent-Length: 24\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"\0\xff" * 100,
        b"GET /metrics HTTP/1.1\r\nHalf",
    ],
)
def test_garbage_does_no_harm(server, client, capfd, data):
    """A request that makes no sense gets a short answer or none, nothing on stderr, and the server goes on."""
    answer = raw(server, data)
    assert len(answer) < 500
    assert b"nonsense" not in answer
    assert ask(client)[0].status == 200
    assert capfd.readouterr() == ("", "")


def test_a_failed_scrape_is_a_500(client, pages):
    """The reason stays out of the answer, and the next scrape may succeed."""
    pages.fail = RuntimeError("secret")
    response, body = ask(client)
    assert response.status == 500
    assert b"secret" not in body
    pages.fail = None
    assert ask(client)[0].status == 200


def test_pages_are_made_in_daemon_threads(client, pages):
    """Neither the application's threads nor the end of the process wait for a scrape."""
    ask(client)
    assert pages.threads[0].daemon
    assert pages.threads[0] is not threading.current_thread()


def test_the_oldest_connection_makes_room(server, client, monkeypatch):
    """Idle clients past the limit cannot keep a scraper out."""
    monkeypatch.setattr(server_module, "_MAX_CONNECTIONS", 2)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle,
        socket.create_connection(("127.0.0.1", server.port), timeout=10),
    ):
        assert ask(client)[0].status == 200
        assert idle.recv(1) == b""


def test_an_idle_connection_times_out(server, monkeypatch):
    """A client that sends nothing is let go."""
    monkeypatch.setattr(server_module, "_HEAD_TIME", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle:
        assert idle.recv(1) == b""


def test_a_failing_accept_is_told_once_and_tried_again(server, client, monkeypatch, caplog):
    """Out of file descriptors, say: one warning, and the client that waited is served."""
    accept = server._listener.accept
    failures = [OSError(errno.EMFILE, "too many open files"), OSError(errno.EMFILE, "again"), ConnectionAbortedError()]

    def failing():
        if failures:
            raise failures.pop(0)
        return accept()

    monkeypatch.setattr(server._listener, "accept", failing)
    assert ask(client)[0].status == 200
    assert failures == []
    assert len(caplog.records) == 1


def test_a_connection_without_a_thread_is_closed(server, client, monkeypatch, caplog):
    """When no thread can be started, the client is let go, one warning says so, and the server goes on."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as refused:
            assert refused.recv(1) == b""
    assert ask(client)[0].status == 200
    assert len(caplog.records) == 1


def test_close_ends_everything(pages):
    """After close the port is free, kept connections have ended and no thread is left; closing again does nothing."""
    before = set(threading.enumerate())
    server = MetricsServer(pages, "127.0.0.1", 0, "/metrics")
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as client:
        ask(client)
        server.close()
        server.close()
        assert client.sock.recv(1) == b""
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=10)
    MetricsServer(pages, "127.0.0.1", server.port, "/metrics").close()


def test_another_path_can_be_served(pages):
    """The path is the one that was chosen, percent-encoded or not."""
    with MetricsServer(pages, "127.0.0.1", 0, "/eigene/zähler") as server:
        assert server.url == f"http://127.0.0.1:{server.port}/eigene/zähler"
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as client:
            assert ask(client, target="/eigene/z%C3%A4hler")[0].status == 200
            assert ask(client, target="/metrics")[0].status == 404


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_ipv6(pages):
    """It listens on IPv6 addresses, and writes them in brackets."""
    with MetricsServer(pages, "::1", 0, "/metrics") as server:
        assert server.address == f"[::1]:{server.port}"
        with closing(http.client.HTTPConnection("::1", server.port, timeout=10)) as client:
            assert ask(client)[0].status == 200


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        (" localhost:0 ", ("localhost", 0)),
        (":9090", ("127.0.0.1", 9090)),
        ("9090", ("127.0.0.1", 9090)),
        (9090, ("127.0.0.1", 9090)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(address, expected):
    """Host and port, a port alone, IPv6 in brackets; the default host is the loopback's."""
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        *("", "host", "host:", "::1:9090", "::1", "a:b", "host:70000", "host:-1", "host:٣", "http://host:90", b"1"),
        *(-1, 65536, True, 1.5, None),
    ],
)
def test_bad_addresses(address):
    """The error names the value and shows what to write."""
    with pytest.raises(ConfigError) as caught:
        parse_address(address)
    assert "65535" in str(caught.value)
    assert str(address).rpartition(":")[2] in str(caught.value)


@pytest.mark.parametrize("path", ["", "metrics", "/a b", "/a?b", "/a#b", "/a\n", "/a\u2003b", None, 1])
def test_bad_paths(path):
    """The error names the value and shows what to write."""
    with pytest.raises(ConfigError, match="/metrics") as caught:
        check_path(path)
    assert repr(path) in str(caught.value)


def test_a_port_in_use(server, pages):
    """The error says so, with the address and the way out."""
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{server.port}: the port is in use; choose another"):
        MetricsServer(pages, "127.0.0.1", server.port, "/metrics")


@pytest.mark.parametrize("host", ["192.0.2.1", "no\0host", "x" * 300, "a..b"])
def test_hosts_that_are_not_here(pages, host):
    """The error names the host and hosts that work."""
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 or 0\.0\.0\.0"):
        MetricsServer(pages, host, 0, "/metrics")


def wsgi(pages, **environ):
    environ = {"SCRIPT_NAME": "", "PATH_INFO": "/", "QUERY_STRING": "", **environ}
    setup_testing_defaults(environ)
    seen = []
    # The validator raises at whatever a WSGI server might trip over.
    body = validator(wsgi_app(pages))(environ, lambda status, headers, error=None: seen.append((status, dict(headers))))
    with closing(body):
        return *seen[0], b"".join(body)


def test_wsgi(pages):
    """The WSGI app answers under any path, negotiates, filters, and refuses other methods."""
    status, headers, body = wsgi(
        pages, PATH_INFO="/any", QUERY_STRING="name[]=a", HTTP_ACCEPT=PROMETHEUS_3, HTTP_ACCEPT_ENCODING="gzip"
    )
    assert (status, headers["Content-Type"], headers["Content-Encoding"]) == ("200 OK", OPENMETRICS, "gzip")
    assert json.loads(gzip.decompress(body)) == [True, True, ["a"]]
    assert wsgi(pages, REQUEST_METHOD="HEAD")[2] == b""
    status, headers, _ = wsgi(pages, REQUEST_METHOD="POST")
    assert (status, headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")
    assert wsgi(Pages(ValueError()))[0] == "500 Internal Server Error"


def asgi(app, method, target, **headers):
    async def request():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            return await client.request(method, target)

    return asyncio.run(request())


@pytest.mark.parametrize("target", ["/metrics/", "/metrics/deeper"])
def test_asgi_mounted(pages, target):
    """Mounted in an application, it answers under its prefix, and makes the page off the loop's thread."""
    app = FastAPI()
    app.mount("/metrics", asgi_app(pages))
    response = asgi(app, "GET", target + "?name[]=a", accept=PROMETHEUS_2)
    assert (response.status_code, response.headers["content-type"]) == (200, OPENMETRICS)
    assert response.json() == [True, True, ["a"]]
    assert pages.threads[0] is not threading.current_thread()


def test_asgi_methods_and_failures(pages):
    """HEAD has no body, other methods a 405, and a failure is a 500."""
    app = asgi_app(pages)
    head = asgi(app, "HEAD", "/")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    assert asgi(app, "POST", "/").headers["allow"] == "GET, HEAD"
    assert asgi(asgi_app(Pages(ValueError())), "GET", "/").status_code == 500


def run_without_a_loop(coroutine):
    """Step a coroutine that never has to wait, as another framework's loop would."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_asgi_without_asyncio(pages):
    """On another framework's loop the page is made in place."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("nothing to be read")

    run_without_a_loop(asgi_app(pages)({"type": "http", "method": "GET", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert pages.threads == [threading.current_thread()]


def test_asgi_lifespan_and_websocket(pages):
    """As the whole application it completes the lifespan; a websocket is closed."""
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}, {"type": "websocket.connect"}]
    sent = []

    async def receive():
        return incoming.pop(0)

    async def send(message):
        sent.append(message["type"])

    run_without_a_loop(asgi_app(pages)({"type": "lifespan"}, receive, send))
    run_without_a_loop(asgi_app(pages)({"type": "websocket"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
    with pytest.raises(ValueError, match="'other'"):
        asgi_app(pages)({"type": "other"}, receive, send).send(None)


def test_respond_needs_no_server(pages):
    """The answer itself is plain data."""
    response = respond(pages, "GET", "", "", "")
    assert (response.status, response.body) == (200, b"[false, false, []]")


def test_the_server_is_silent(client, capfd):
    """No request is logged on stderr."""
    ask(client)
    ask(client, target="/nowhere")
    assert capfd.readouterr() == ("", "")
