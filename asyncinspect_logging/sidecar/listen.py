"""Lines that come over a socket: of `AsyncInspectSocketHandler`, or of anything else that writes JSON lines.

Whoever says what client it is (see docs/sidecar.md) has its lines numbered, and is told up to which number they are
had for good: after a break of the connection, or of this process, each line is taken in once.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import stat
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from ..analysis.decoding import bare
from ..diagnostics import warn_once
from ..endpoint import CONTROL, MAX_LINE, Endpoint
from ..errors import ConfigError
from ..records import is_id, is_whole
from .lines import Reader, parsed
from .processes import BASE_DIGITS, Processes

__all__ = ["Listener"]

#: Connections at a time; one more is closed at once.
_MAX_CONNECTIONS: Final = 512
#: Seconds without the end of a line after which a connection is closed. Our handler says something every 10 s.
_IDLE: Final = 60.0
#: Bytes read from a connection before the next has its turn, and bytes of unfinished lines of all connections.
_CHUNK: Final = 1 << 18
_MAX_PENDING: Final = 1 << 26
#: Clients of which it is known what they have sent, and processes on one connection.
_MAX_CLIENTS: Final = 4096
_MAX_BASES: Final = 1024
_CONTROL: Final = b'{"' + CONTROL.encode() + b'"'


class _Client:
    """`number`: of the last line that was taken in; `saved`: of the last that is had for good; `told`: of the last of
    which it knows that. `dropped`: what it says that it had no room for.
    """

    __slots__ = ("connection", "dropped", "number", "saved", "told")

    def __init__(self, number: int = 0, dropped: int = 0) -> None:
        self.number = self.saved = self.told = number
        self.dropped = dropped
        self.connection: _Connection | None = None


class _Connection:
    __slots__ = ("answer", "bases", "client", "deaf", "heard_at", "next", "pending", "skipping", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        #: The beginning of a line, and whether it is the rest of one that was too long.
        self.pending = bytearray()
        self.skipping = False
        self.heard_at = time.monotonic()
        self.client: _Client | None = None
        #: Number of the next line.
        self.next = 1
        #: What is still to be sent.
        self.answer = b""
        #: Whether nothing can be sent any more.
        self.deaf = False
        self.bases: set[str] = set()


class Listener:
    """Listens at an endpoint from the moment it exists. Raises ConfigError where it cannot.

    mode: permissions of a Unix socket. durable: whether lines are had for good only once `saved` is called.
    """

    def __init__(
        self, endpoint: Endpoint, reader: Reader, processes: Processes, *, mode: int = 0o600, durable: bool = False
    ) -> None:
        self._reader = reader
        self._processes = processes
        self._durable = durable
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._connections: dict[int, _Connection] = {}
        self._pending = 0
        self._resume_at = 0.0
        self._to_confirm = False
        #: Lines taken in that are not had for good yet.
        self.unsaved = 0
        #: Connections that were closed at once, being too many; and those that were closed for being silent.
        self.refused = self.idle = 0
        self._socket, self.endpoint = _listen(endpoint, mode)
        self._inode = os.stat(endpoint.path).st_ino if endpoint.path else 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)

    def __len__(self) -> int:
        return len(self._connections)

    # -- taking in ---------------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> list[Any]:
        """Wait until there is something to be taken in, at most so many seconds. Returns what to `serve`."""
        return self._selector.select(timeout)

    def serve(self, events: list[Any]) -> None:
        """Take in what there is."""
        if self._to_confirm:
            self._to_confirm = False
            for client in list(self._clients.values()):
                self._confirm(client)
        for key, mask in events:
            if key.fileobj is self._socket:
                self._accept()
            elif key.data is not None:
                connection: _Connection = key.data
                if mask & selectors.EVENT_WRITE:
                    self._answer(connection, b"")
                if mask & selectors.EVENT_READ and connection.socket.fileno() in self._connections:
                    self._receive(connection)

    def _accept(self) -> None:
        try:
            connected, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError, InterruptedError):
            return
        except OSError as error:
            # Out of descriptors, most likely: whoever connects waits a little, and so does this.
            warn_once("listen", f"accept {error.errno}", "the sidecar cannot accept: %s", error)
            self._selector.unregister(self._socket)
            self._resume_at = time.monotonic() + 1
            return
        if len(self._connections) >= _MAX_CONNECTIONS:
            self.refused += 1
            connected.close()
            return
        connected.setblocking(False)
        connection = self._connections[connected.fileno()] = _Connection(connected)
        self._selector.register(connected, selectors.EVENT_READ, connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            # The beginning of a line that is left was not meant to be one: its end will come over another connection.
            self._close(connection)
            return
        end = data.rfind(b"\n") + 1
        if not end:
            # In place: a line may come byte by byte.
            connection.pending += data
            self._pending += len(data)
        else:
            # Not for each byte: whoever sends one now and then would keep a place for ever.
            connection.heard_at = time.monotonic()
            lines = (bytes(connection.pending) + data[: end - 1]).split(b"\n")
            self._set_pending(connection, data[end:])
            for line in lines:
                if connection.skipping:
                    connection.skipping = False
                    self._count(connection, None)
                elif line.startswith(_CONTROL):
                    self._control(connection, line)
                else:
                    self._count(connection, line)
        if len(connection.pending) >= MAX_LINE:
            connection.skipping = True
        if connection.skipping:
            self._set_pending(connection, b"")
        if self._pending > _MAX_PENDING:
            self._close(max(self._connections.values(), key=lambda each: len(each.pending)))
        if not self._durable and connection.client is not None:
            connection.client.saved = connection.client.number
            self._confirm(connection.client)

    def _set_pending(self, connection: _Connection, pending: bytes) -> None:
        self._pending += len(pending) - len(connection.pending)
        connection.pending = bytearray(pending)

    def _count(self, connection: _Connection, line: bytes | None) -> None:
        """Take a line in, None for one that was too long, unless it was before."""
        client = connection.client
        if client is not None:
            number, connection.next = connection.next, connection.next + 1
            if number <= client.number:
                return
            client.number = number
            self.unsaved += 1
        if line is None:
            self._reader.bad()
        elif line:
            before = self._reader.foreign
            self._reader.read(line, lambda payload: self._heard(connection, payload))
            if self._reader.foreign > before and parsed(bare(line)) is None:
                # In a log anything may stand; here it was meant for us.
                self._reader.bad()

    def _heard(self, connection: _Connection, payload: Mapping[str, Any]) -> None:
        self._processes.heard(payload)
        id = payload.get("id")
        if isinstance(id, str) and id[:BASE_DIGITS] not in connection.bases:
            self._join(connection, id)

    def _join(self, connection: _Connection, id: str) -> None:
        base = id[:BASE_DIGITS]
        if is_id(id) and base not in connection.bases and len(connection.bases) < _MAX_BASES:
            connection.bases.add(base)
            self._processes.connect(base.lower())

    # -- what is said of a connection --------------------------------------------------------------------------------

    def _control(self, connection: _Connection, line: bytes) -> None:
        try:
            said = json.loads(line)[CONTROL]
            name, dropped, first = said["client"], said["dropped"], said.get("next")
            usable = isinstance(name, str) and 16 <= len(name) <= 64 and is_whole(dropped)
            if not usable or not (first is None or (is_whole(first) and first > 0)):
                raise ValueError(name)
        except (RecursionError, LookupError, TypeError, ValueError, AttributeError):
            self._reader.bad()
            return
        known = self._clients.get(name)
        client = known or self._clients.setdefault(name, _Client())
        self._clients.move_to_end(name)
        if len(self._clients) > _MAX_CLIENTS:
            self._clients.popitem(last=False)
        if first is not None:
            before, client.connection = client.connection, connection
            if before is not None and before is not connection:
                self._close(before)
            connection.client = client
            if known is None:
                # What it has had confirmed, it was not by this sidecar, or not in this life.
                client.number = client.saved = first - 1
            elif first > client.number + 1:
                self._reader.inspector.lose(first - client.number - 1)
                client.number = first - 1
            # What is not had for good is sent again, to be kept by the client for as long, and passed over here.
            connection.next = max(first, client.saved + 1)
            client.told = client.saved
            self._answer(connection, b'{"have":%d}\n' % client.saved)
        if dropped > client.dropped:
            self._reader.inspector.lose(dropped - client.dropped)
            client.dropped = dropped
            self.unsaved += 1
        span = said.get("span")
        if isinstance(span, str):
            self._join(connection, span)

    def saved(self) -> None:
        """What was taken in by now is had for good. The clients are told so in the next round, which may be another
        thread's.
        """
        self.unsaved = 0
        self._to_confirm = True
        for client in self._clients.values():
            client.saved = client.number

    def _confirm(self, client: _Client | None) -> None:
        if client is None or client.told == client.saved:
            return
        client.told = client.saved
        connection = client.connection
        if connection is not None and not connection.answer:
            self._answer(connection, b'{"have":%d}\n' % client.saved)

    def _answer(self, connection: _Connection, answer: bytes) -> None:
        if connection.deaf:
            return
        connection.answer += answer
        try:
            sent = connection.socket.send(connection.answer) if connection.answer else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # It is gone, most likely, and what it sent before is still to be read.
            connection.deaf = True
            sent = len(connection.answer)
        connection.answer = connection.answer[sent:]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.answer else 0)
        self._selector.modify(connection.socket, wanted, connection)

    # -- ends --------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Close what has been silent for too long, and listen again after there were no descriptors."""
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if now - connection.heard_at > _IDLE:
                self.idle += 1
                self._close(connection)
        if self._resume_at and now >= self._resume_at:
            self._resume_at = 0.0
            self._selector.register(self._socket, selectors.EVENT_READ)

    def _close(self, connection: _Connection) -> None:
        if self._connections.pop(connection.socket.fileno(), None) is None:
            return
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._set_pending(connection, b"")
        for base in connection.bases:
            self._processes.disconnect(base.lower())
        if connection.client is not None and connection.client.connection is connection:
            connection.client.connection = None

    def close(self) -> None:
        """Stop listening, and close all connections. A Unix socket is removed, unless it is another's by now."""
        for connection in list(self._connections.values()):
            self._close(connection)
        self._selector.close()
        self._socket.close()
        path = self.endpoint.path
        if path:
            with suppress(OSError):
                if os.stat(path).st_ino == self._inode:
                    os.unlink(path)

    # -- from one run to the next ------------------------------------------------------------------------------------

    def dump(self) -> list[list[Any]]:
        """What is known of clients, as values that JSON can hold."""
        return [[name, client.number, client.dropped] for name, client in self._clients.items()]

    def load(self, saved: list[list[Any]]) -> None:
        """Go on from there. Raises ValueError or TypeError for what `dump` never gave."""
        for name, number, dropped in saved:
            self._clients[str(name)] = _Client(int(number), int(dropped))


def _listen(endpoint: Endpoint, mode: int) -> tuple[socket.socket, Endpoint]:
    if endpoint.path:
        return _listen_at(endpoint.path, mode), endpoint
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"listen={str(endpoint)!r}: the host is not known ({error}); write 127.0.0.1") from error
    problem: Exception | None = None
    for family, kind, protocol, _, address in sorted(found, key=lambda info: info[0] != socket.AF_INET):
        listening = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            problem = error
            continue
        return listening, Endpoint("", *listening.getsockname()[:2])
    fix = "the port is in use; choose another one" if getattr(problem, "errno", 0) == errno.EADDRINUSE else str(problem)
    raise ConfigError(f"cannot listen on {endpoint}: {fix}") from problem


def _listen_at(path: str, mode: int) -> socket.socket:
    """A Unix socket. One that a process left behind when it was killed is replaced; one that is in use is not."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ConfigError(f"cannot listen on unix:{path}: there is a file that is no socket; choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            except OSError as error:
                raise ConfigError(f"cannot listen on unix:{path}: {error}") from error
            else:
                raise ConfigError(f"cannot listen on unix:{path}: somebody listens there; choose another path")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before it has a name, where the system allows that, so that there is no moment at which all may connect.
        with suppress(OSError):
            os.fchmod(listening.fileno(), mode)
        listening.bind(path)
        os.chmod(path, mode)
        listening.listen(128)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise ConfigError(f"cannot listen on unix:{path}: {error}; choose another path") from error
    return listening
