"""A receiver that is killed again and again under load, at any moment, and not only when it has nothing to do."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk")

import otlp_sink

from asyncinspect_logging import Inspector, span
from asyncinspect_logging.exporters.opentelemetry import OtelExporter

pytestmark = pytest.mark.real

Listen = Callable[..., Inspector]
KILLS = 4


def _start(protocol: str, port: int, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(otlp_sink.__file__)), protocol, str(port), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_killed_at_any_moment(listen: Listen, tmp_path: Path, protocol: str) -> None:
    """Nothing is missing, whenever that is. Twice comes at most the one request of each kill whose answer got lost, and
    that as it was: the same spans by the same ids.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "taken"
    process = _start(protocol, port, path)
    exporter = OtelExporter(
        "shop", listen(), f"http://127.0.0.1:{port}", protocol=protocol, batch_size=100, timeout=30.0
    )
    exporter.start_continuous_export(0.02)
    made: list[str] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            for _ in range(30):
                with span("work") as one:
                    pass
                made.append(one.id)
            time.sleep(0.004)

    def taken() -> list[tuple[str, ...]]:
        lines = path.read_text().splitlines()
        return [tuple(line.split()[:-1]) for line in lines if line.endswith(" end")]

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for kill in range(KILLS):
            before, until = len(taken()), time.monotonic() + 20
            # By then what was under way at the last kill has its answer, which the next request waits for.
            while len(taken()) < before + 5 + kill:
                assert time.monotonic() < until, "nothing comes any more"
            _kill(process)
            process = _start(protocol, port, path)
    finally:
        done.set()
        thread.join()
        ok = exporter.shutdown(30)
        _kill(process)
    assert ok
    requests = Counter(taken())
    again = [request for request, count in requests.items() if count > 1]
    assert len(again) <= KILLS
    assert all(requests[request] == 2 for request in again)
    ids = Counter(id for request in requests for id in request)
    assert set(ids) == set(made)
    assert set(ids.values()) == {1}, "what comes again is the same request"
    assert (exporter.exported, exporter.dropped, exporter.waiting) == (len(made), 0, 0)
