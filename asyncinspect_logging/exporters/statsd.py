"""StatsD: counters, gauges and the duration of each task, sent now and then from a thread of its own.

A counter is sent as the difference between what was counted and what was sent, and what a packet had is noted as sent
only when the packet was taken: nothing is lost while nobody listens, and nothing is sent twice.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple

from ..diagnostics import warn_once
from ..errors import ConfigError
from ..process import after_fork, at_exit
from ..unheard import Unheard
from .families import DURATIONS, FAMILIES, Family
from .options import check_seconds
from .statsd_lines import Dialect, Lines, Shape, lines_of, packets
from .statsd_sockets import Sender, parse_target

__all__ = ["StatsdExporter"]

#: Durations that wait to be sent.
_WAITING: Final = 50_000
#: Tasks taken at a time; and of the room for them, the part from which on they are taken between two exports.
_BATCH: Final = 5_000
#: Seconds from one look at them to the next.
_LOOK: Final = 0.5
_FULL: Final = 4
_LEAST_PACKET: Final = 512
_MOST_PACKET: Final = 65_507
_PREFIX: Final = "async_inspect_"
_Key = tuple[str, tuple[str, ...]]


class _Count(NamedTuple):
    """A line of a counter, and what it says: in ns where it is a time."""

    line: bytes
    key: _Key
    difference: int


class StatsdExporter:
    """Sends an inspector's metrics to a StatsD server, or to a Datadog agent.

    inspector: what to export; None is `Inspector.default()`.
    address: "host:port" (UDP), "unix:///path", or "unixgram:///path" or "unixstream:///path" where it has to be one
        of these.
    dialect: "statsd" makes labels components of the name, "dogstatsd" tags.
    prefix: what all names begin with. tags: constant tags, such as "env:prod" (DogStatsD only).
    durations: as what the duration of each finished task is sent, in ms: "timing", or with DogStatsD "histogram" or
        "distribution"; None: not at all. sample_rate: the part of the tasks whose duration is sent (0.1: one in ten,
        marked `@0.1`); counters are never sampled.
    max_packet: bytes of a packet; default: 1432 over UDP, 8192 through a Unix socket.
    max_waiting: finished tasks, and durations, that wait to be sent; beyond that they are counted in `dropped`.
    timeout: seconds that sending one packet may take.

    Raises ConfigError where an option cannot be used, and MissingExtraError without the extra `statsd`.
    """

    def __init__(
        self,
        inspector: Any = None,
        address: str = "127.0.0.1:8125",
        *,
        dialect: Dialect = "statsd",
        prefix: str = "async_inspect",
        tags: Sequence[str] = (),
        durations: Shape | None = "timing",
        sample_rate: float = 1.0,
        max_packet: int | None = None,
        max_waiting: int = _WAITING,
        timeout: float = 1.0,
    ) -> None:
        target = parse_target(address)
        if isinstance(sample_rate, bool) or not isinstance(sample_rate, int | float) or not 0 < sample_rate <= 1:
            raise ConfigError(f"sample_rate={sample_rate!r} is not a part above 0 and up to 1; write for example 0.1")
        if max_packet is not None and (
            isinstance(max_packet, bool)
            or not isinstance(max_packet, int)
            or not _LEAST_PACKET <= max_packet <= _MOST_PACKET
        ):
            raise ConfigError(
                f"max_packet={max_packet!r} is not a number of bytes from {_LEAST_PACKET} to {_MOST_PACKET}; "
                f"write {target.packet}"
            )
        if isinstance(max_waiting, bool) or not isinstance(max_waiting, int) or max_waiting < 1:
            raise ConfigError(f"max_waiting={max_waiting!r} is not a number of tasks above 0; write {_WAITING}")
        timeout = check_seconds("timeout", timeout, zero=False)
        shape: Shape = "timing" if durations is None else durations
        self._make_lines = partial(lines_of, dialect, prefix, tags if isinstance(tags, str) else tuple(tags), shape)
        self._lines: Lines = self._make_lines()
        self._sender = Sender(target, timeout, framed=dialect == "dogstatsd")
        self._target = target
        self._packet = target.packet if max_packet is None else max_packet
        self._rate = 1 if sample_rate == 1 else float(sample_rate)
        self._limit = max_waiting
        self._source = _default_inspector() if inspector is None else inspector
        self._finished = None if durations is None else _finished_of(self._source, max_waiting)
        self._unheard = Unheard(f"metrics without any span were sent to {target}", [self._source])
        #: Packets that could not be sent.
        self.errors = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._interval = 0.0
        self._begin()
        after_fork(self._in_child)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failing = False
        # What was sent of each counter.
        self._sent: dict[_Key, int] = {}
        # Lines of durations that wait.
        self._waiting: deque[bytes] = deque()

    @property
    def dropped(self) -> int:
        """Durations that were not sent, for want of room while nobody took them."""
        return self._dropped + (self._finished.dropped if self._finished is not None else 0)

    def export(self) -> int:
        """Send what was counted since the last time, the gauges, and the durations. Returns the number of lines that
        were sent; what was not, is sent next time. Raises nothing of the network's, which is logged and counted in
        `errors`; it raises what the inspector raised.
        """
        with self._lock:
            return self._export()

    def start(self, interval: float = 10.0) -> None:
        """Call `export` every `interval` seconds, in a daemon thread, until `close`. Calling it again changes the
        interval. In the child of a fork it goes on, with what the child counts.

        Raises ConfigError unless `interval` is a finite number of seconds above 0.
        """
        self._interval = check_seconds("interval", interval, zero=False)
        if self._thread is None:
            self._start_thread()
            at_exit(self.close)

    def close(self) -> None:
        """Export a last time, if it was started, and let go of everything. May be repeated."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            if thread is not threading.current_thread():
                thread.join(5)
            self._try()
        with self._lock:
            self._sender.close()
            if self._finished is not None:
                self._finished.close()

    def __enter__(self) -> StatsdExporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- in its thread -----------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        self._thread = threading.Thread(
            target=Context().run, args=(self._run, self._stop), name="asyncinspect-statsd", daemon=True
        )
        self._thread.start()

    def _run(self, stop: threading.Event) -> None:
        due = time.monotonic() + self._interval
        while not stop.wait(max(0.0, min(_LOOK, due - time.monotonic()))):
            if time.monotonic() >= due:
                due = max(due + self._interval, time.monotonic())
                self._try()
            elif self._finished is not None and len(self._finished) * _FULL > self._limit:
                with self._lock:
                    self._send_durations()

    def _try(self) -> None:
        try:
            self.export()
        except Exception as error:
            warn_once("statsd", type(error).__qualname__, "metrics could not be sent to %s: %r", self._target, error)

    # -- under the lock ----------------------------------------------------------------------------------------------

    def _export(self) -> int:
        snapshot = self._source.snapshot(tasks=False)
        if not snapshot.names:
            self._unheard.tell()
        counts = list(self._counts(snapshot))
        sent = 0
        for packet, size in packets((count.line for count in counts), self._packet):
            if not self._send(packet):
                return sent
            for count in counts[sent : sent + size]:
                self._sent[count.key] = self._sent.get(count.key, 0) + count.difference
            sent += size
        for packet, size in packets(list(self._gauges(snapshot)), self._packet):
            if not self._send(packet):
                return sent
            sent += size
        return sent + self._send_durations()

    def _send_durations(self) -> int:
        if self._finished is None:
            return 0
        sent = 0
        while True:
            tasks = self._finished.take_spans(_BATCH)
            for task in tasks:
                labels = (("name", task.name), ("state", task.state))
                milliseconds = (task.ended - task.started) / 1e6
                self._waiting.extend(self._lines.duration("task_duration", labels, milliseconds, self._rate))
            while len(self._waiting) > self._limit:
                self._waiting.popleft()
                self._dropped += 1
            for packet, size in packets(list(self._waiting), self._packet):
                if not self._send(packet):
                    return sent
                for _ in range(size):
                    self._waiting.popleft()
                sent += size
            if len(tasks) < _BATCH:
                return sent

    def _counts(self, snapshot: Any) -> Iterator[_Count]:
        for name, names, labels, value, scale in _numbers(snapshot):
            now, key = round(value * scale), (name, labels)
            before = self._sent.get(key, 0)
            if now < before:
                # It was reset.
                before = self._sent[key] = 0
            if now > before:
                said = now - before if scale == 1 else (now - before) / scale
                for line in self._lines.count(name, zip(names, labels, strict=True), said):
                    yield _Count(line, key, now - before)

    def _gauges(self, snapshot: Any) -> Iterator[bytes]:
        for family in FAMILIES:
            if family.type == "gauge" and family.labels != ("version",):
                for labels, value in family.rows(snapshot):
                    if math.isfinite(value):
                        yield from self._lines.gauge(_name(family), zip(family.labels, labels, strict=True), value)

    def _send(self, packet: bytes) -> bool:
        try:
            self._sender.send(packet)
        except (OSError, socket.gaierror) as error:
            self.errors += 1
            if not self._failing:
                self._failing = True
                what = "metrics could not be sent to %s; it is tried again, and further failures are counted: %s"
                warn_once("statsd", f"{self._target} {type(error).__qualname__}", what, self._target, error)
            return False
        self._failing = False
        return True

    def _in_child(self) -> None:
        """In the child of a fork: what was counted before is the parent's, and so is the socket."""
        self._sender.close()
        self._begin()
        self._lines = self._make_lines()
        self.errors = self._dropped = 0
        if self._thread is not None:
            self._start_thread()


def _numbers(snapshot: Any) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...], float, int]]:
    """Whatever only goes up: name, names and values of the labels, number, and its parts that are whole in one.

    A histogram is a counter for each bucket, without those in the buckets below, and one for the sum.
    """
    for family in FAMILIES:
        name, scale = _name(family), 10**9 if family.unit == "seconds" else 1
        if family.type == "counter":
            for labels, value in family.rows(snapshot):
                if math.isfinite(value):
                    yield name, family.labels, labels, value, scale
        elif family.type == "histogram" and family is not DURATIONS:
            for labels, histogram in family.rows(snapshot):
                yield f"{name}.sum", family.labels, labels, histogram.sum, scale
                for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
                    if count:
                        yield f"{name}.bucket", (*family.labels, "upper_bound"), (*labels, f"{bound:g}"), count, 1


def _name(family: Family) -> str:
    return family.name.removeprefix(_PREFIX)


def _default_inspector() -> Any:
    from ..inspector import Inspector

    return Inspector.default()


def _finished_of(source: Any, limit: int) -> Any:
    finished = getattr(source, "finished", None)
    if finished is None:
        raise ConfigError(
            f"inspector={source!r} cannot say which tasks finish; write durations=None, or give an Inspector"
        )
    return finished(limit)
