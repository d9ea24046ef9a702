"""The lines of StatsD and of DogStatsD, each as its own client writes them; none of them is sent from here."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import chain
from typing import Any, Final, Literal, Protocol

from ..errors import ConfigError, MissingExtraError

__all__ = ["Dialect", "Lines", "Shape", "lines_of", "packets"]

Dialect = Literal["statsd", "dogstatsd"]
Shape = Literal["timing", "histogram", "distribution"]

#: What a component of a name may have; a dot would make two of it.
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_\-]")
_NOT_IN_TAGS: Final = re.compile(r"[^\w\-:/.]")
#: Datadog cuts a tag there; and a line has to fit into a packet.
_LONGEST: Final = 200

Labels = Iterable[tuple[str, str]]


class Lines(Protocol):
    """Makes lines. `labels` are names and values: tags, or else components of the name, in that order."""

    def count(self, name: str, labels: Labels, value: float) -> list[bytes]: ...
    def gauge(self, name: str, labels: Labels, value: float) -> list[bytes]: ...
    def duration(self, name: str, labels: Labels, milliseconds: float, rate: float) -> list[bytes]:
        """None of them, where it is sampled out."""


def lines_of(dialect: Dialect, prefix: str, tags: Sequence[str], shape: Shape) -> Lines:
    """Raises ConfigError for what cannot be used, and MissingExtraError where the client is not installed."""
    if not isinstance(prefix, str) or not re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_\-]*(\.[a-zA-Z0-9_\-]+)*)?", prefix):
        raise ConfigError(f'prefix={prefix!r} is not a name of letters, digits, _, - and dots; write "async_inspect"')
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag for tag in tags):
        raise ConfigError(f'tags={tags!r} is not a list of tags; write for example tags=["env:prod", "service:shop"]')
    if shape not in ("timing", "histogram", "distribution"):
        raise ConfigError(f'durations={shape!r} is no type of metric; write "timing", "histogram" or "distribution"')
    if dialect == "dogstatsd":
        return _DogStatsd(prefix, tags, shape)
    if dialect != "statsd":
        raise ConfigError(f'dialect={dialect!r} is none; write "statsd" or "dogstatsd"')
    if tags:
        raise ConfigError(f'tags={list(tags)!r}: plain StatsD has none; write dialect="dogstatsd", or use prefix=')
    if shape != "timing":
        raise ConfigError(f'durations={shape!r}: plain StatsD has none; write dialect="dogstatsd"')
    return _Statsd(prefix)


class _Statsd:
    def __init__(self, prefix: str) -> None:
        base = _client("statsd.client.base").StatsClientBase
        taken: list[str] = []

        class Client(base):  # type: ignore[misc, valid-type] # of an extra
            _prefix = prefix

            def _send(self, data: str) -> None:
                taken.append(data)

        self._client, self._taken = Client(), taken

    def count(self, name: str, labels: Labels, value: float) -> list[bytes]:
        self._client.incr(_dotted(name, labels), value)
        return self._take()

    def gauge(self, name: str, labels: Labels, value: float) -> list[bytes]:
        self._client.gauge(_dotted(name, labels), value)
        return self._take()

    def duration(self, name: str, labels: Labels, milliseconds: float, rate: float) -> list[bytes]:
        self._client.timing(_dotted(name, labels), milliseconds, rate)
        return self._take()

    def _take(self) -> list[bytes]:
        lines = [line.encode("ascii") for line in self._taken]
        self._taken.clear()
        return lines


def _dotted(name: str, labels: Labels) -> str:
    return ".".join([name, *(_NOT_IN_NAMES.sub("_", value[:_LONGEST]) or "_" for _, value in labels)])


class _Sink:
    """What the client of Datadog takes for a socket."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def getsockopt(self, *_: object) -> int:
        return socket.SOCK_DGRAM

    def send(self, packet: bytes) -> None:
        self.taken.append(packet.rstrip(b"\n"))

    def close(self) -> None:
        pass


class _DogStatsd:
    def __init__(self, prefix: str, tags: Sequence[str], shape: Shape) -> None:
        self._sink = _Sink()
        self._client = _client("datadog.dogstatsd.base").DogStatsd(
            host="127.0.0.1",
            namespace=prefix or None,
            constant_tags=[_tag(tag) for tag in tags],
            disable_buffering=True,
            disable_telemetry=True,
        )
        self._duration = getattr(self._client, shape)

    def count(self, name: str, labels: Labels, value: float) -> list[bytes]:
        return self._lines(self._client.increment, name, value, labels, 1)

    def gauge(self, name: str, labels: Labels, value: float) -> list[bytes]:
        return self._lines(self._client.gauge, name, value, labels, 1)

    def duration(self, name: str, labels: Labels, milliseconds: float, rate: float) -> list[bytes]:
        return self._lines(self._duration, name, milliseconds, labels, rate)

    def _lines(self, method: Any, name: str, value: float, labels: Labels, rate: float) -> list[bytes]:
        # Each time: a fork, or an error, takes it away.
        self._client.socket = self._sink
        method(name, value, tags=[_tag(f"{key}:{text}") for key, text in labels], sample_rate=rate)
        lines, self._sink.taken = self._sink.taken, []
        return lines


def _tag(text: str) -> str:
    return _NOT_IN_TAGS.sub("_", text[:_LONGEST])


def _client(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError("StatsdExporter", "statsd") from error


def packets(lines: Iterable[bytes], size: int) -> Iterable[tuple[bytes, int]]:
    """Lines put together into packets of `size` bytes at most, and how many are in each. A line that is longer by
    itself has a packet of its own.
    """
    waiting: list[bytes] = []
    length = -1
    for line in chain(lines, [None]):
        if waiting and (line is None or length + 1 + len(line) > size):
            yield b"\n".join(waiting), len(waiting)
            waiting, length = [], -1
        if line is not None:
            waiting.append(line)
            length += 1 + len(line)
