"""A stand-in for the Datadog agent: takes what it would take, and checks every byte against the format of DogStatsD.

https://docs.datadoghq.com/developers/dogstatsd/datagram_shell/
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

__all__ = ["Agent", "Metric"]

#: The name begins with a letter; of tags, the agent takes letters, digits and these, and 200 characters.
_LINE = re.compile(
    rb"([a-zA-Z][a-zA-Z0-9_.]*):(-?[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)\|(c|g|ms|h|d)(?:\|@(0\.[0-9]+))?(?:\|#(.+))?"
)
_TAG = re.compile(r"[a-zA-Z][\w\-:./]{0,199}")


class Metric(NamedTuple):
    name: str
    value: float
    type: str
    rate: float
    tags: frozenset[str]


class Agent:
    """Listens until it is closed. `kind`: udp, unixgram or unixstream; `metrics`: what came; `sizes`: of packets."""

    def __init__(self, kind: str, folder: Path, port: int = 0) -> None:
        self.metrics: list[Metric] = []
        self.sizes: list[int] = []
        self.flaws: list[str] = []
        self._arrived = threading.Condition()
        self._kind = kind
        if kind == "udp":
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            self._socket.bind(("127.0.0.1", port))
            self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        else:
            path = str(folder / "dsd.socket")
            Path(path).unlink(missing_ok=True)
            stream = kind == "unixstream"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
            self._socket.bind(path)
            if stream:
                self._socket.listen()
            self.address = f"unix://{path}"
        self._socket.settimeout(0.05)
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._socket.close()

    def counts(self, *tags: str) -> Counter[str]:
        """Sums of the counters with these tags, by name."""
        found: Counter[str] = Counter()
        for metric in list(self.metrics):
            if metric.type == "c" and metric.tags.issuperset(tags):
                found[metric.name] += metric.value  # type: ignore[assignment]
        return found

    def wait_for(self, true: Any) -> None:
        """Until it holds after something came; fails after ten seconds."""
        with self._arrived:
            assert self._arrived.wait_for(true, 10), (self.flaws, self.counts())

    def _run(self) -> None:
        while not self._stop:
            try:
                if self._kind != "unixstream":
                    self._packet(self._socket.recv(1 << 16))
                    continue
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection, connection.makefile("rb") as stream:
                connection.settimeout(None)
                while head := stream.read(4):
                    (length,) = struct.unpack("<I", head)
                    self._packet(stream.read(length))

    def _packet(self, data: bytes) -> None:
        with self._arrived:
            self.sizes.append(len(data))
            for line in data.removesuffix(b"\n").split(b"\n"):
                self._line(line)
            self._arrived.notify_all()

    def _line(self, line: bytes) -> None:
        found = _LINE.fullmatch(line)
        if found is None:
            self.flaws.append(f"not a metric: {line!r}")
            return
        name, value, kind, rate, tags = found.groups()
        texts = tags.decode().split(",") if tags else []
        self.flaws += [f"not a tag: {text!r}" for text in texts if not _TAG.fullmatch(text)]
        if kind == b"c" and rate:
            self.flaws.append(f"a sampled counter: {line!r}")
        self.metrics.append(Metric(name.decode(), float(value), kind.decode(), float(rate or 1), frozenset(texts)))
