"""What comes through a pipe is told by its content, however slowly it comes, and whatever it is compressed with."""

from __future__ import annotations

import gzip
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from made import write_log

from asyncinspect_logging.analysis.files import Source
from asyncinspect_logging.analysis.loading import load
from asyncinspect_logging.analysis.replay import LogTasks, replay
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.snapshot import Snapshot

Tell = Callable[..., dict[str, Any]]
PACKED = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}


class _Slow(io.RawIOBase):
    """Gives three bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(memoryview(buffer)[:3])


@pytest.fixture
def log(tmp_path: Path, tell: Tell) -> Path:
    payloads = [tell(kind, n, name=f"job {n}") for n in range(1, 100) for kind in ("enter", "exit")]
    return write_log(tmp_path / "service.jsonl", payloads)


@pytest.fixture(params=["log", "export", "page"])
def data(request: pytest.FixtureRequest, log: Path) -> bytes:
    if request.param == "log":
        return log.read_bytes()
    if request.param == "export":
        return JsonExporter.export_to_string(LogTasks(log)).encode()
    return PrometheusExporter(replay(log)).gather().encode()


def names(where: Any) -> dict[str, int]:
    found = load(where)
    if not isinstance(found, Snapshot):
        list(found)
        found = found.rest()
    return {name: view.completed for name, view in found.names.items()}


@pytest.mark.parametrize("pack", PACKED)
def test_standard_input_that_comes_slowly(pack: str, data: bytes, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log, an export and a page; the first read gives less than what tells them apart."""
    packed = PACKED[pack](data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(_Slow(packed))))
    assert names("-") == names(log)


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    threads = []

    def feed(data: bytes) -> Path:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        threads.append(threading.Thread(target=path.write_bytes, args=(data,)))
        threads[-1].start()
        return path

    yield feed
    for thread in threads:
        thread.join()


def test_a_pipe_with_a_name(data: bytes, log: Path, fed: Callable[[bytes], Path]) -> None:
    """As of `<(zcat …)` in a shell."""
    assert names(fed(gzip.compress(data))) == names(log)


def test_a_stream_is_read_on_after_a_look_at_it(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, and bytes are counted as they are stored; damage is told of after what comes before it."""
    text = log.read_bytes()
    packed = gzip.compress(text)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
    source = Source("-")
    assert source.peek(10) == text[:10]
    tasks = LogTasks(source)
    assert len(list(tasks)) == 99
    assert tasks.report.bytes_read == len(packed)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(b'{"x": 1}\n')[:-4])))
    source = Source("-")
    assert source.peek(4096) == b'{"x": 1}\n'
    lines = [(batch.lines, batch.problem[:30]) for batch in source.batches()]
    assert lines == [([b'{"x": 1}\n'], ""), ([], "the file cannot be read on: Co")]
