"""The scrape server: an HTTP server in its own threads, so that a blocked event loop can still be looked at."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from contextvars import Context
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from ..diagnostics import warn_once
from ..errors import ConfigError
from .scrape import Pages, Response, respond

__all__ = ["MetricsServer", "check_path"]

_TIMEOUT: Final = 30.0  # seconds for a client to send the next bytes, or to take them
_MAX_CONNECTIONS: Final = 64  # then the oldest is closed, so idle clients cannot keep the scraper out


def check_path(path: object) -> str:
    """A URL path. Raises ConfigError unless it begins with "/" and has no space, control character, "?" or "#"."""
    usable = isinstance(path, str) and path.startswith("/") and path.isprintable() and not set(path) & set(" ?#")
    if not isinstance(path, str) or not usable:
        raise ConfigError(
            f'path={path!r} cannot be served; write a path that begins with "/" and has no white space, "?" or "#", '
            'for example "/metrics"'
        )
    return path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT
    wbufsize = 1 << 16  # head and body leave together
    disable_nagle_algorithm = True
    server: _Listener

    def version_string(self) -> str:
        return "asyncinspect"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: stderr is the application's."""

    def do_GET(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that nobody reads would be taken for the next request
        try:
            target = urlsplit(self.path)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        path = unquote(target.path)
        if path == self.server.path:
            accept = ",".join(self.headers.get_all("Accept", []))
            encoding = ",".join(self.headers.get_all("Accept-Encoding", []))
            self._send(respond(self.server.pages, self.command, target.query, accept, encoding))
        elif path == "/":
            self._send(Response.plain(HTTPStatus.OK, f"asyncinspect_logging: the metrics are at {self.server.path}\n"))
        else:
            self._send(Response.plain(HTTPStatus.NOT_FOUND, f"Not here: the metrics are at {self.server.path}\n"))

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer without a word of the request, which the inherited page would quote."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:  # how the base class answers a method without do_METHOD
            self._send(respond(self.server.pages, "", "", "", ""))
        else:
            self._send(Response.plain(HTTPStatus(code), f"{HTTPStatus(code).phrase}\n"))

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for header in response.headers:
            self.send_header(*header)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)


class _Listener(socketserver.ThreadingTCPServer):
    # http.server's own server asks the name service for its host name on start, which can take for ever.
    daemon_threads = True
    allow_reuse_address = os.name == "posix"
    request_queue_size = 128

    def __init__(self, family: int, address: tuple[Any, ...], pages: Pages, path: str) -> None:
        self.address_family = family
        self.pages = pages
        self.path = path
        self.lock = threading.Lock()
        self.connections: dict[Any, threading.Thread] = {}
        super().__init__(address, _Handler)
        self.socket.setblocking(False)

    def process_request(self, request: Any, client_address: Any) -> None:
        work = (self.process_request_thread, request, client_address)
        thread = threading.Thread(target=Context().run, args=work, name="asyncinspect-scrape", daemon=True)
        with self.lock:
            if len(self.connections) >= _MAX_CONNECTIONS:
                oldest = next(iter(self.connections))
                del self.connections[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self.connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away, and print nothing, as the inherited method would."""
        error = sys.exception()
        if not isinstance(error, OSError):
            warn_once("scrape server", type(error).__name__, "a request to the metrics server failed", exc_info=True)


def _listen(host: str, port: int, pages: Pages, path: str) -> _Listener:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        message = f"cannot listen on {where}: the host {host!r} is not known ({error}); write 127.0.0.1 or 0.0.0.0"
        raise ConfigError(message) from error
    problem: Exception | None = None
    # IPv4 first: "localhost" is to be where a scraper that was told 127.0.0.1 looks.
    for family, _, _, _, address in sorted(found, key=lambda info: info[0] != socket.AF_INET):
        try:
            return _Listener(family, address, pages, path)
        except OSError as error:
            problem = error
    fixes = {
        errno.EADDRINUSE: "the port is in use; choose another one, or 0 for any free port",
        errno.EACCES: "the port needs privileges; choose one from 1024 on",
        errno.EADDRNOTAVAIL: "no network interface here has this address; write 127.0.0.1 or 0.0.0.0",
    }
    fix = fixes.get(getattr(problem, "errno", None) or 0, f"{problem}; choose another address")
    raise ConfigError(f"cannot listen on {where}: {fix}") from problem


class MetricsServer:
    """A running server of the metrics, for use in `with`; `close` ends it.

    It listens on `host` and `port` (0: any free port) from the moment it exists, and serves `path`. Raises ConfigError
    where it cannot listen. In the child of a fork it is closed: the parent's goes on.
    """

    def __init__(self, pages: Pages, host: str, port: int, path: str) -> None:
        self._listener = _listen(host, port, pages, path)
        #: The host and the TCP port that it listens on.
        self.host: str
        self.port: int
        self.host, self.port = self._listener.socket.getsockname()[:2]
        self._closing = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(
            target=Context().run, args=(self._run,), name="asyncinspect-server", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """The "host:port" that it listens on."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where the metrics are, for a client on this machine."""
        return f"http://{self.address}{self._listener.path}"

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, let answers that are under way end (for a second), and end the threads. May be repeated."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.send(b"x")
        self._thread.join()
        self._listener.server_close()
        with self._listener.lock:
            connections = dict(self._listener.connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # it reads the end of its requests, and has its answer sent
        deadline = time.monotonic() + 1
        for thread in connections.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def abandon(self) -> None:
        """Let go of what a fork copied, without a word on the sockets, which are the parent's."""
        self._closing.set()
        with suppress(OSError):
            self._selector.close()
        for copied in (self._listener.socket, self._wake, self._woken, *self._listener.connections):
            # Not close(): that waits for files made of the socket, which dead threads hold for ever.
            with suppress(OSError):
                os.close(copied.detach())

    def _run(self) -> None:
        with self._selector, self._wake, self._woken:
            while True:
                self._selector.select()
                if self._closing.is_set():
                    return
                self._accept()

    def _accept(self) -> None:
        try:
            request, peer = self._listener.get_request()
        except (BlockingIOError, ConnectionError):  # the client is gone already
            return
        except OSError as error:
            # Out of file descriptors, most likely: the client stays in the queue, so wait instead of asking at once.
            warn_once("scrape server", f"accept {error.errno}", "the metrics server cannot accept: %s", error)
            self._closing.wait(0.1)
            return
        try:
            self._listener.process_request(request, peer)
        except Exception:
            self._listener.handle_error(request, peer)
            self._listener.shutdown_request(request)
