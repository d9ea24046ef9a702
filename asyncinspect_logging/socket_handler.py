"""The front end of a process whose spans are counted elsewhere: what they say goes over a socket to a sidecar.

The application only ever appends to a bounded queue. A daemon thread makes lines of what is in it and sends them, and
keeps those that the sidecar has not yet said to have for good, so that they can be sent again.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import Any, Final

from . import process, stamping
from .config import Config
from .diagnostics import log, warn_once
from .endpoint import CONTROL, MAX_LINE, Endpoint, parse_endpoint
from .errors import ConfigError
from .fields import text_of
from .handler import NoLock, text_of_record
from .records import KEY, SpanRecord, payload_of_span
from .routing import delivering, report

__all__ = ["AsyncInspectSocketHandler"]

#: Seconds: to connect, and for the sidecar to answer or to take what is sent.
_PATIENCE: Final = 10.0
#: Seconds from one attempt to connect to the next, at first and at most.
_SOON: Final = 0.05
_LATEST: Final = 2.0
#: Seconds after which a silent connection says that it is there, and during which lines gather to be sent together.
_QUIET: Final = 10.0
_GATHER: Final = 0.01
#: Records made into lines before they are sent.
_BATCH: Final = 500

_encode: Final = json.JSONEncoder(separators=(",", ":"), default=lambda value: text_of(value, 1024)).encode
#: Of its own: the application may have seeded the one that all share.
_jitter: Final = random.SystemRandom().uniform


class _Stop:
    """The last thing in a queue: nothing comes after it, and nobody waits beyond `until` (monotonic seconds)."""

    def __init__(self, until: float) -> None:
        self.until = until


class _Sender:
    """The thread's side of a handler in one process: `queue` in, lines out.

    Lines are numbered from 1, and the sidecar says up to which number it `have`s them.
    """

    def __init__(self, endpoint: Endpoint, capacity: int) -> None:
        self.endpoint = endpoint
        self.capacity = capacity
        # Its put() is one step for a signal handler or a finaliser, too.
        self.queue: SimpleQueue[Any] = SimpleQueue()
        #: Records that did not become lines, and were counted by the application's threads under the lock.
        self.dropped = 0
        self.lock = threading.RLock()
        self.socket: socket.socket | None = None
        #: Lines to be sent; and those sent, of which the sidecar may yet say that it has lost them.
        self.unsent: deque[bytes] = deque()
        self._sent: deque[bytes] = deque()
        self._last = 0
        self._client = secrets.token_hex(16)
        self._base: str | None = None
        self._told_dropped = 0
        self._retry_at = 0.0
        self._pause = _SOON
        self._spoke_at = 0.0
        self._answers = b""
        self._flushed: list[threading.Event] = []
        self._stop: _Stop | None = None

    def drop(self, records: int = 1) -> None:
        with self.lock:
            self.dropped += records

    # -- in the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        # What is done here is not to be heard.
        delivering.now = True
        try:
            while self._work():
                pass
        except Exception as error:
            warn_once("socket handler", type(error).__qualname__, "nothing is sent any more: %r", error)
        finally:
            self._close()

    def _work(self) -> bool:
        """One round. Returns whether there is to be another."""
        self._take()
        now = time.monotonic()
        if self.socket is None and (now >= self._retry_at or self._stop is not None):
            self._connect(now)
        if self.socket is not None:
            try:
                self._send(now)
                self._listen()
            except OSError:
                self._close()
        if not self.unsent:
            while self._flushed:
                self._flushed.pop().set()
        if self._stop is None:
            return True
        return bool(self.unsent or not self.queue.empty()) and time.monotonic() < self._stop.until and self._rest()

    def _rest(self) -> bool:
        if self.socket is None:
            time.sleep(_SOON)
        return True

    def _take(self) -> None:
        """Make lines of what is in the queue, once there is something, and what was taken before is sent."""
        try:
            # Not connected: it is time to try again every now and then, whether there is something or not.
            wait = 1.0 if self.socket is not None else min(1.0, max(_GATHER, self._retry_at - time.monotonic()))
            if self.unsent:
                if self.socket is None and self._stop is None:
                    time.sleep(wait)
                if len(self.unsent) >= _BATCH:
                    return
            item = self.queue.get(timeout=wait) if self._stop is None and not self.unsent else self.queue.get_nowait()
            if self.queue.empty() and not isinstance(item, _Stop | threading.Event):
                time.sleep(_GATHER)
            for _ in range(_BATCH):
                self._take_one(item)
                item = self.queue.get_nowait()
            self._take_one(item)
        except Empty:
            pass

    def _take_one(self, item: Any) -> None:
        if isinstance(item, _Stop):
            self._stop = item
        elif isinstance(item, threading.Event):
            self._flushed.append(item)
        else:
            try:
                self.unsent.append(self._line(item))
                self._last += 1
            except Exception as error:
                self.drop()
                warn_once("socket line", type(error).__qualname__, "a record could not be sent: %r", error)

    def _line(self, item: Any) -> bytes:
        if isinstance(item, SpanRecord):
            payload = payload_of_span(item)
            if self._base is None:
                self._base = payload["id"]
            item = {KEY: payload}
        line = _encode(item).encode("ascii") + b"\n"
        if len(line) > MAX_LINE:
            raise ValueError(f"a line of {len(line)} bytes; the limit is {MAX_LINE}")
        return line

    # -- the connection ----------------------------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        patience = _PATIENCE if self._stop is None else min(_PATIENCE, max(0.05, self._stop.until - now))
        try:
            self.socket = self.endpoint.connect(patience)
            oldest = self._last - len(self.unsent) - len(self._sent) + 1
            self._say({"next": oldest})
            while b"\n" not in self._answers:
                answer = self.socket.recv(4096)
                if not answer or len(self._answers) > 1 << 16:
                    raise ConnectionError("no answer")
                self._answers += answer
            have = self._read_answers()
            if have is None:
                raise ConnectionError("not the answer of a sidecar")
        except (OSError, ValueError):
            self._close()
            return
        # What it has not, is sent again.
        self.unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        for _ in range(min(max(0, have - oldest + 1), len(self.unsent))):
            self.unsent.popleft()
        self._pause = _SOON

    def _say(self, more: dict[str, Any]) -> None:
        """Send a line about the connection."""
        assert self.socket is not None
        dropped = self.dropped
        said = {"client": self._client, "pid": process.pid, "dropped": dropped, **more}
        if self._base is not None:
            said["span"] = self._base
        self.socket.sendall(_encode({CONTROL: said}).encode("ascii") + b"\n")
        self._told_dropped, self._spoke_at = dropped, time.monotonic()

    def _send(self, now: float) -> None:
        assert self.socket is not None
        if self.dropped != self._told_dropped or now - self._spoke_at > _QUIET:
            self._say({})
        while self.unsent:
            some = [self.unsent[index] for index in range(min(_BATCH, len(self.unsent)))]
            self.socket.sendall(b"".join(some))
            self._spoke_at = time.monotonic()
            for line in some:
                self.unsent.popleft()
                self._sent.append(line)
            while len(self._sent) > self.capacity:
                self._sent.popleft()
            if self._stop is not None and self._spoke_at > self._stop.until:
                return

    def _listen(self) -> None:
        """Read what the sidecar has said meanwhile, if anything."""
        assert self.socket is not None
        self.socket.setblocking(False)
        try:
            answer = self.socket.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        finally:
            self.socket.settimeout(_PATIENCE)
        if not answer:
            raise ConnectionError("closed by the sidecar")
        self._answers += answer
        have = self._read_answers()
        if have is not None:
            first = self._last - len(self.unsent) - len(self._sent) + 1
            for _ in range(min(max(0, have - first + 1), len(self._sent))):
                self._sent.popleft()

    def _read_answers(self) -> int | None:
        """Up to which number the sidecar has the lines, as it said last. Raises ConnectionError for anything else."""
        *lines, self._answers = self._answers.split(b"\n")
        have = None
        try:
            for line in lines:
                have = json.loads(line)["have"]
                if type(have) is not int:
                    raise ValueError(line)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ConnectionError("not the answer of a sidecar") from error
        return have

    def _close(self) -> None:
        """Close the connection, if there is one, and try again later."""
        connected, self.socket = self.socket, None
        if connected is not None:
            with suppress(OSError):
                if self._stop is not None and not self.unsent:
                    # To close with answers unread would take back what the sidecar has not read yet.
                    connected.shutdown(socket.SHUT_WR)
                    connected.settimeout(max(0.01, self._stop.until - time.monotonic()))
                    while connected.recv(1 << 16):
                        pass
            connected.close()
        self._answers = b""
        self._retry_at = time.monotonic() + self._pause * _jitter(0.5, 1.0)
        self._pause = min(_LATEST, self._pause * 2)

    def abandon(self) -> None:
        """In the child of a fork: let go of the connection, which is the parent's, without a word on it."""
        if self.socket is not None:
            with suppress(OSError):
                os.close(self.socket.detach())


class AsyncInspectSocketHandler(logging.Handler):
    """A logging handler that sends what spans say to a sidecar (`asyncinspect serve --listen`, or `sidecar.Sidecar`),
    and never blocks the application: lifecycle records, whatever the levels, and ordinary records inside spans.

    address: "unix:/path/of/a.sock", "host:port", or a port of 127.0.0.1.
    level: of ordinary records; lifecycle records come whatever the levels.
    capacity: records that may wait to be sent, and at most so many of those sent that are kept to be sent again.
        What comes beyond that is dropped, counted (`dropped`), and reported to the sidecar. Ordinary records take
        no more than half of it.
    timeout: seconds that `flush` and `close`, and so the end of the process, wait for what is not sent yet.
    config: how fields are cut and secrets hidden; default: `Config.from_env()`.

    In the child of a fork it goes on with a queue, a thread and a connection of its own. Raises ConfigError where a
    setting cannot be used. That nobody listens at the address is no error: it tries again, every 2 s in the end.
    """

    accepts_spans = True

    def __init__(
        self,
        address: str | int | os.PathLike[str],
        level: int | str = logging.NOTSET,
        *,
        capacity: int = 10_000,
        timeout: float = 2.0,
        config: Config | None = None,
    ) -> None:
        # Whatever may fail comes first: logging lists all handlers, half-made ones too, to close them at exit.
        self.endpoint = parse_endpoint(address)
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ConfigError(f"capacity={capacity!r} is not a number of records; write for example capacity=10_000")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout <= 3600:
            raise ConfigError(f"timeout={timeout!r} is not a number of seconds; write for example timeout=2.0")
        if config is not None and not isinstance(config, Config):
            raise ConfigError(f"config={config!r} is not a Config; write config=Config(max_field_length=…)")
        config = Config.from_env() if config is None else config
        super().__init__(level)
        self.capacity = capacity
        self.timeout = float(timeout)
        self.field_policy = config.field_policy()
        self._gave_up = False
        self._begin()
        stamping.use(self)
        process.after_fork(self._in_child)

    def _begin(self) -> None:
        self._sender = _Sender(self.endpoint, self.capacity)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stamps = True

    def createLock(self) -> None:
        """No lock: the queue takes records from any thread."""
        self.lock = NoLock()  # type: ignore[assignment]

    @property
    def dropped(self) -> int:
        """Records of this process that found no room in the queue, or could not be made into a line."""
        return self._sender.dropped

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._sender.socket is not None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if isinstance(record, SpanRecord):
                self._put(record, self.capacity)
            elif KEY in record.__dict__:
                self._put({KEY: record.__dict__[KEY]}, self.capacity)
            else:
                self._emit_ordinary(record)
        except Exception as error:
            report(self, record, error)

    def _emit_ordinary(self, record: logging.LogRecord) -> None:
        # What a structlog chain hands to ProcessorFormatter: the event dict is the message.
        event: Any = record.msg if isinstance(record.msg, dict) else {}
        if KEY in event:
            self._put({KEY: event[KEY]}, self.capacity)
            return
        if not self._stamps:
            # Closed, and yet on some logger; see AsyncInspectHandler.
            self._stamps = True
            stamping.use(self)
        mark = stamping.mark_of(record)
        if mark is None or record.name == log.name or not stamping.first_sight(mark, self):
            return
        # Made into text here: what the arguments are may have changed by the time that it is sent.
        text = event.get("event", "") if event else text_of_record(record)
        line = {
            "created": record.created,
            "levelname": record.levelname,
            "name": record.name,
            "message": self.field_policy.text(str(text)),
            "span_id": process.span_id(mark.number),
        }
        self._put(line, self.capacity // 2 or 1)

    def _put(self, item: Any, room: int) -> None:
        sender = self._sender
        if sender.queue.qsize() >= room:
            sender.drop()
        else:
            sender.queue.put(item)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            return  # somebody is at it
        try:
            if self._thread is None:
                # A context of its own: a thread may inherit that of the one who starts it.
                thread = threading.Thread(
                    target=Context().run, args=(self._sender.run,), name="asyncinspect-socket", daemon=True
                )
                thread.start()
                self._thread = thread
        except RuntimeError as error:  # No more threads are to be had, or Python is shutting down.
            warn_once("socket handler", "start", "nothing can be sent: %r", error)
        finally:
            self._starting.release()

    def flush(self) -> None:
        """Wait until everything was sent, at most `timeout` seconds."""
        if self._thread is not None and self._thread.is_alive():
            flushed = threading.Event()
            self._sender.queue.put(flushed)
            self._gave_up = not flushed.wait(self.timeout)

    def close(self) -> None:
        """Send what there is, wait at most `timeout` seconds for that, and end the connection and the thread."""
        stamping.release(self)
        self._stamps = False
        thread, sender = self._thread, self._sender
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            # Python flushes and then closes its handlers, and one wait is enough.
            timeout = 0.1 if self._gave_up else self.timeout
            sender.queue.put(_Stop(time.monotonic() + timeout))
            thread.join(timeout + 0.2)
        if thread is not None:
            # Closed, and yet on some logger, it would go on with a new one.
            self._begin()
            self._stamps = False
        super().close()

    def _in_child(self) -> None:
        """The parent sends what is in its queue; the child begins with an empty one."""
        before, stamps = self._sender, self._stamps
        self._begin()
        self._stamps = stamps
        before.abandon()
