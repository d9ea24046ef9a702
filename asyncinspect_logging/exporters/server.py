"""The scrape server: an HTTP server in its own threads, so that a blocked event loop can still be looked at.

It reads and does nothing else, and what anybody can make it use is bounded: connections, and so threads, the bytes of a
request, the time for each part of one, and the bytes of answers that slow clients have not taken yet.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final

from ..diagnostics import warn_once
from ..errors import ConfigError
from .head import END, MAX_HEAD, Refused, Request, parse_head
from .protection import Protection, is_loopback
from .scrape import Pages, Response, respond

__all__ = ["HEALTHY", "READY", "MetricsServer", "check_path"]

#: What Prometheus calls its own (https://prometheus.io/docs/prometheus/latest/management_api/).
HEALTHY: Final = "/-/healthy"
READY: Final = "/-/ready"

#: Seconds: from connecting, or the first byte of a further request, to its head, TLS included; from one request to the
#: next; and for taking an answer.
_HEAD_TIME: Final = 10.0
_IDLE_TIME: Final = 60.0
_SEND_TIME: Final = 30.0
#: Seconds, and bytes, for which a client that was refused is listened to, or it might not see why.
_LINGER_TIME: Final = 1.0
_LINGER: Final = 1 << 20
_MAX_CONNECTIONS: Final = 64
#: Seconds between two connections that others had to make room for: a flood of them costs that much and no more, and
#: each has the time in which this many come to say what it wants.
_PACE: Final = 0.002
#: Bytes of answers that are being sent, beyond which the slowest client is let go; and seconds after which one is slow.
_MAX_SENDING: Final = 64 << 20
_SLOW: Final = 2.0
#: Bytes that are worth copying, so that head and body leave together.
_TOGETHER: Final = 1 << 16

# In order of who is let go first to make room: who has had its last answer, who has asked for nothing yet, who waits
# between two requests, and who is slow to take an answer. Who waits for an answer stays.
_LEAVING, _NEW, _IDLE, _SENDING, _WORKING = range(5)


def check_path(path: object) -> str:
    """A URL path. Raises ConfigError unless it begins with "/" and has no space, control character, "?" or "#", and is
    none that the server answers itself.
    """
    usable = isinstance(path, str) and path.startswith("/") and path.isprintable() and not set(path) & set(" ?#")
    if not isinstance(path, str) or not usable or path in (HEALTHY, READY):
        raise ConfigError(
            f'path={path!r} cannot be served; write a path that begins with "/", has no white space, "?" or "#", and '
            f'is not {HEALTHY} or {READY}, for example "/metrics"'
        )
    return path


class _Connection:
    """One client, served by a thread of its own."""

    def __init__(self, listener: _Listener, sock: socket.socket) -> None:
        self.listener = listener
        self.sock = sock
        self.state = _NEW
        #: Since when it is in this state, and bytes that are being sent.
        self.since = time.monotonic()
        self.sending = 0
        self.let_go = False
        self.trusted = not listener.protection.client_certificates
        self.buffer = bytearray()
        self.thread = threading.Thread(target=Context().run, args=(self._run,), name="asyncinspect-scrape", daemon=True)

    def leave(self) -> None:
        """From another thread: have the connection end at once."""
        self.let_go = True
        with suppress(OSError):
            # Not the method of a TLS socket, after which what is still sent would not be encrypted.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def _become(self, state: int, sending: int = 0) -> None:
        self.state, self.since, self.sending = state, time.monotonic(), sending

    def _run(self) -> None:
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._secure():
                while not self.let_go and self._serve_one():
                    pass
        except OSError:
            pass  # the client went away, took too long, or speaks no TLS
        except Exception as error:
            warn_once("metrics server", type(error).__name__, "a request to the metrics server failed", exc_info=True)
        finally:
            self.listener.forget(self)
            self.sock.close()

    def _secure(self) -> bool:
        context = self.listener.protection.context()
        if context is None:
            return True
        self._until(self.since + _HEAD_TIME)
        self.sock = secured = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        if self.let_go:
            return False
        secured.do_handshake()
        self.trusted = self.trusted or bool(secured.getpeercert())
        return True

    def _until(self, deadline: float) -> None:
        """Have the next call on the socket end by then."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)

    def _serve_one(self) -> bool:
        """Read a request and answer it; returns whether there may be another one."""
        request: Request | None
        try:
            head = self._read_head()
            if head is None:
                return False
            self._become(_WORKING)
            request = parse_head(head)
            answer = self.listener.answer(request, self.trusted)
        except Refused as refused:
            request, answer = None, Response.plain(refused.status, f"{refused.status.phrase}\n")
        if self._send(request, answer):
            return True
        self._linger()
        return False

    def _read_head(self) -> bytes | None:
        """Up to the empty line after it; None at the end of what the client sends. Raises Refused where it is too long,
        and TimeoutError.
        """
        buffer, looked = self.buffer, 0
        until = self.since + (_HEAD_TIME if self.state == _NEW else _IDLE_TIME)
        while True:
            if buffer and self.state == _IDLE:
                self._become(_NEW)
                until = self.since + _HEAD_TIME
            while buffer.startswith(b"\r\n"):  # after a body that should not have had it (RFC 9112, section 2.2)
                del buffer[:2]
            end = buffer.find(END, looked)
            if end >= 0:
                if end > MAX_HEAD:
                    break
                head = bytes(buffer[:end])
                del buffer[: end + len(END)]
                return head
            looked = max(0, len(buffer) - len(END) + 1)
            if len(buffer) > MAX_HEAD:
                break
            self._until(until)
            received = self.sock.recv(MAX_HEAD)
            if not received:
                return None
            buffer += received
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _send(self, request: Request | None, response: Response) -> bool:
        usual = response.status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND)
        # Where others wait for a place nobody keeps one, or those who have one could shut them out.
        stays = not self.listener.closing and not self.listener.crowded
        keep = usual and request is not None and request.keep and stays
        lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}", f"Date: {formatdate(usegmt=True)}"]
        lines += [f"{name}: {value}" for name, value in response.headers]
        lines += ["Content-Security-Policy: default-src 'none'; frame-ancestors 'none'"]
        if not keep:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        body = b"" if request is not None and request.method == "HEAD" else response.body
        self._become(_SENDING, len(body))
        self.listener.make_room_for_sending()
        until = self.since + _SEND_TIME
        for part in (head + body,) if len(body) < _TOGETHER else (head, body):
            self._until(until)
            self.sock.sendall(part)
        self._become(_IDLE)
        return keep

    def _linger(self) -> None:
        """Take what the client sends on, for a while: closed with bytes unread, the answer would be taken back."""
        self._become(_LEAVING)
        until, taken = self.since + _LINGER_TIME, 0
        socket.socket.shutdown(self.sock, socket.SHUT_WR)
        while taken < _LINGER:
            self._until(until)
            received = self.sock.recv(1 << 16)
            if not received:
                return
            taken += len(received)


class _Listener:
    """The listening socket, and who has connected to it."""

    def __init__(
        self,
        family: int,
        address: tuple[Any, ...],
        pages: Pages,
        path: str,
        protection: Protection,
        unready: Callable[[], str],
    ) -> None:
        self.pages = pages
        self.path = path
        self.protection = protection
        self.unready = unready
        self.closing = False
        self.crowded_at = float("-inf")
        self.lock = threading.Lock()
        #: In order of arrival.
        self.connections: dict[_Connection, None] = {}
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(address)
            self.socket.listen(128)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise
        self.loopback = is_loopback(self.socket.getsockname()[0])

    @property
    def crowded(self) -> bool:
        """Whether clients have come lately for which there was no place left."""
        return time.monotonic() - self.crowded_at < 1

    def _full(self) -> bool:
        if len(self.connections) < _MAX_CONNECTIONS:
            return False
        self.crowded_at = time.monotonic()
        return True

    def accept(self) -> bool:
        """Take in the next client, whoever has to go for that; returns whether there was no place left. Where nobody
        can go it stays in the queue.
        """
        with self.lock:
            if self._full() and self._least(_SLOW) is None:
                return True
        accepted, _ = self.socket.accept()
        connection = _Connection(self, accepted)
        with self.lock:
            full = self._full()
            if full:
                oldest = self._least(_SLOW)
                if oldest is None:  # it has asked for something meanwhile
                    accepted.close()
                    return True
                del self.connections[oldest]
                oldest.leave()
            self.connections[connection] = None
        try:
            connection.thread.start()
        except BaseException:
            self.forget(connection)
            accepted.close()
            raise
        return full

    def _least(self, slow: float) -> _Connection | None:
        """Who is to make room for others."""
        slow_since = time.monotonic() - slow
        able = [
            one for one in self.connections if one.state <= _IDLE or (one.state == _SENDING and one.since <= slow_since)
        ]
        return min(able, key=lambda one: (one.state, one.since), default=None)

    def make_room_for_sending(self) -> None:
        """Let go of those that have been taking their answers for longest, while there is too much to be sent."""
        with self.lock:
            sending = [one for one in self.connections if one.state == _SENDING]
            excess = sum(one.sending for one in sending) - _MAX_SENDING
            # The last one has only begun.
            for one in sorted(sending, key=lambda one: one.since)[:-1]:
                if excess <= 0:
                    return
                excess -= one.sending
                del self.connections[one]
                one.leave()

    def forget(self, connection: _Connection) -> None:
        with self.lock:
            self.connections.pop(connection, None)

    def answer(self, request: Request, trusted: bool) -> Response:
        """What to say to a request. Nothing of it is ever repeated."""
        protection, reading = self.protection, request.method in ("GET", "HEAD")
        if not protection.answers_to(request.host, loopback=self.loopback):
            text = "This server does not go by that name; see its option allowed_hosts.\n"
            return Response.plain(HTTPStatus.MISDIRECTED_REQUEST, text)
        if reading and request.path == HEALTHY:
            return Response.plain(HTTPStatus.OK, "healthy\n")
        if reading and request.path == READY:
            why = self.unready()
            status = HTTPStatus.SERVICE_UNAVAILABLE if why else HTTPStatus.OK
            return Response.plain(status, f"not ready: {why}\n" if why else "ready\n")
        if not trusted:
            return Response.plain(HTTPStatus.FORBIDDEN, "A client certificate is needed.\n")
        if not protection.admits(request.headers.get("authorization", "")):
            text = "The metrics are for those who show that they may read them.\n"
            return Response.plain(HTTPStatus.UNAUTHORIZED, text, *protection.challenges())
        if request.path == self.path or not reading:
            headers = request.headers
            accept, encoding = headers.get("accept", ""), headers.get("accept-encoding", "")
            return respond(self.pages, request.method, request.query, accept, encoding)
        if request.path == "/":
            return Response.plain(HTTPStatus.OK, f"asyncinspect_logging: the metrics are at {self.path}\n")
        return Response.plain(HTTPStatus.NOT_FOUND, f"Not here: the metrics are at {self.path}\n")


def _listen(host: str, port: int, *of: Any) -> _Listener:
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
            return _Listener(family, address, *of)
        except OSError as error:
            problem = error
    fixes = {
        errno.EADDRINUSE: "the port is in use; choose another one, or 0 for any free port",
        errno.EACCES: "the port needs privileges; choose one from 1024 on",
        errno.EADDRNOTAVAIL: "no network interface here has this address; write 127.0.0.1 or 0.0.0.0",
    }
    fix = fixes.get(getattr(problem, "errno", None) or 0, f"{problem}; choose another address")
    raise ConfigError(f"cannot listen on {where}: {fix}") from problem


def _always_ready() -> str:
    return ""


class MetricsServer:
    """A running server of the metrics, for use in `with`; `close` ends it.

    It listens on `host` and `port` (0: any free port) from the moment it exists, and serves `path` to whom `protection`
    lets; and to everybody whether it is healthy, which it is as long as it answers, and whether it is ready: `unready`
    returns why not, or "". Raises ConfigError where it cannot listen. In the child of a fork it is closed: the parent's
    goes on.
    """

    def __init__(
        self,
        pages: Pages,
        host: str,
        port: int,
        path: str,
        protection: Protection | None = None,
        unready: Callable[[], str] = _always_ready,
    ) -> None:
        protection = Protection({}, {}) if protection is None else protection
        self._listener = _listen(host, port, pages, path, protection, unready)
        #: The host and the TCP port that it listens on.
        self.host: str
        self.port: int
        self.host, self.port = self._listener.socket.getsockname()[:2]
        #: Whether only this machine reaches it.
        self.loopback = self._listener.loopback
        self._closing = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener.socket, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(
            target=Context().run, args=(self._run,), name="asyncinspect-server", daemon=True
        )
        self._thread.start()
        self._warn(protection)

    def _warn(self, protection: Protection) -> None:
        """Say it where the metrics, or what gives access to them, are open to more than this machine."""
        if self.loopback:
            return
        if not protection.authenticates:
            message = (
                "the metrics at %s can be read by whoever reaches this address; that is as meant where a firewall or a "
                "network policy says who that is, and else give start_server() bearer_token_file=, basic_auth_file= or "
                "client_cafile=, or listen on 127.0.0.1"
            )
        elif not protection.tls:
            message = (
                "the metrics at %s are protected by a secret that everybody on the way can read, since it is sent "
                "without TLS; give start_server() certfile= and keyfile= too"
            )
        else:
            return
        warn_once("open server", self.address, message, self.address)

    @property
    def address(self) -> str:
        """The "host:port" that it listens on."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where the metrics are, for a client on this machine."""
        scheme = "https" if self._listener.protection.tls else "http"
        return f"{scheme}://{self.address}{self._listener.path}"

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
        self._listener.closing = True
        self._wake.send(b"x")
        self._thread.join()
        self._listener.socket.close()
        with self._listener.lock:
            connections = list(self._listener.connections)
        for connection in connections:
            with suppress(OSError):
                # It reads the end of its requests, and has its answer sent.
                socket.socket.shutdown(connection.sock, socket.SHUT_RD)
        deadline = time.monotonic() + 1
        for connection in connections:
            connection.thread.join(max(0.0, deadline - time.monotonic()))
            if connection.thread.is_alive():
                connection.leave()

    def abandon(self) -> None:
        """Let go of what a fork copied, without a word on the sockets, which are the parent's."""
        self._closing.set()
        with suppress(OSError):
            self._selector.close()
        connected = [connection.sock for connection in self._listener.connections]
        for copied in (self._listener.socket, self._wake, self._woken, *connected):
            # Not close(): that waits for files made of the socket, which dead threads hold for ever.
            with suppress(OSError):
                os.close(socket.socket.detach(copied))

    def _run(self) -> None:
        with self._selector, self._wake, self._woken:
            while True:
                self._selector.select()
                if self._closing.is_set():
                    return
                self._accept()

    def _accept(self) -> None:
        try:
            if self._listener.accept():
                self._closing.wait(_PACE)
        except (BlockingIOError, ConnectionError):  # the client is gone already
            return
        except OSError as error:
            # Out of file descriptors, most likely: the client stays in the queue, so wait instead of asking at once.
            warn_once("metrics server", f"accept {error.errno}", "the metrics server cannot accept: %s", error)
            self._closing.wait(0.1)
        except Exception as error:
            # Out of threads, most likely.
            message = "the metrics server cannot serve a client: %r"
            warn_once("metrics server", type(error).__name__, message, error)
            self._closing.wait(_PACE)
