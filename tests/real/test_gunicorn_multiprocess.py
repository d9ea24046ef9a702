"""Real gunicorn with uvicorn workers under load: whichever worker is asked, its /metrics has the sum over all, to the
last request that was answered, while workers are killed and replaced.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gunicorn")
pytest.importorskip("uvicorn_worker")
pytestmark = [pytest.mark.real, pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs a POSIX system")]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "many_processes"
WORKERS = 3
CLIENTS = 24


def until(true: Callable[[], Any], state: Callable[[], Any] = lambda: "") -> None:
    end = time.monotonic() + 40
    while not true():
        assert time.monotonic() < end, f"it did not happen: {state()}"
        time.sleep(0.02)


class Service:
    """gunicorn and its workers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.pages: list[dict[str, float]] = []

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def kill(self, place: int = 0) -> None:
        os.kill(self.workers()[place], signal.SIGKILL)

    def page(self) -> str:
        """A page of whichever worker answers; asked again where that one is killed meanwhile."""
        for _ in range(50):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
                    return str(answer.read().decode())
            except urllib.error.HTTPError:
                raise
            except OSError:
                time.sleep(0.02)
        raise AssertionError("nobody answers")

    def scrape(self) -> dict[str, float]:
        """The numbers of a page, none of which may be below one of the pages before, but for the gauges."""
        page = self.page()
        now = {key: float(value) for key, value in re.findall(r"^([a-z][^#\n]*) ([^ \n]+)$", page, re.M)}
        for key, value in self.pages[-1].items() if self.pages else ():
            gauge = re.match("async_inspect_(tasks_by_state|active|blocked|memory|build)|shop_open", key)
            assert gauge or now.get(key, 0) >= value, f"{key} fell from {value} to {now.get(key)}"
        self.pages.append(now)
        return now


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Service]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = dict(os.environ, PROMETHEUS_MULTIPROC_DIR=str(folder))
    command = [sys.executable, "-m", "gunicorn", "shop:app", "--chdir", str(EXAMPLE), "-w", str(WORKERS)]
    command += ["-c", str(EXAMPLE / "conf.py"), "-k", "uvicorn_worker.UvicornWorker", "-b", f"127.0.0.1:{port}"]
    with subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL) as process:
        service = Service(process, port)
        try:
            until(lambda: len(service.workers()) == WORKERS)
            service.page()
            yield service
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


class Load:
    """Clients that keep their connections and count what was answered in full, and what was not."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = self.failed = 0
        self.stop = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        while not self.stop:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            try:
                # Now and then another worker.
                for _ in range(100):
                    if self.stop:
                        break
                    writer.write(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
                    await writer.drain()
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200"), head
                    assert await reader.readexactly(3) == b"ok\n"
                    self.answered += 1
            except (OSError, asyncio.IncompleteReadError):
                self.failed += 1
            finally:
                writer.close()


async def under(load: Load, *steps: Callable[[], Any]) -> None:
    """Take the steps while the clients are at it."""
    clients = asyncio.create_task(load.run())
    for step in steps:
        await asyncio.sleep(0.4)
        await asyncio.to_thread(step)
    await asyncio.sleep(0.4)
    load.stop = True
    await clients


COMPLETED = 'async_inspect_tasks_completed_total{name="request"}'


@pytest.mark.parametrize("preload", [False, True])
def test_killed_and_replaced(tmp_path: Path, preload: bool) -> None:
    """SIGKILL of five workers, and SIGHUP, which replaces all: the sum is that of the answers, and of what was open."""
    with running(tmp_path, *(["--preload"] if preload else [])) as service:
        load, first = Load(service.port), service.workers()

        def kill() -> None:
            service.scrape()
            service.kill()
            service.scrape()

        def replace() -> None:
            service.process.send_signal(signal.SIGHUP)
            service.scrape()

        asyncio.run(under(load, kill, kill, kill, replace, service.scrape, kill, kill, service.scrape))
        until(lambda: not set(first) & set(service.workers()) and len(service.workers()) == WORKERS)

        def settled() -> bool:
            now = service.scrape()
            return not now["async_inspect_active_tasks"] and not now["shop_open_orders"]

        until(settled, lambda: service.pages[-1])
        # Each of them tells the same.
        pages = [service.scrape() for _ in range(3 * WORKERS)]
        kept = len(list(tmp_path.glob("asyncinspect-*")))
    now = pages[-1]
    completed, cancelled = now[COMPLETED], now[COMPLETED.replace("completed", "cancelled")]
    print(f"answered {load.answered}, broken off {load.failed}, completed {completed}, cancelled {cancelled}")
    assert len({(page[COMPLETED], page["shop_orders_total"]) for page in pages}) == 1
    assert load.answered > 500
    assert load.answered <= completed <= load.answered + load.failed
    assert now[COMPLETED.replace("_completed", "")] == completed + cancelled
    assert 0 < cancelled <= load.failed
    durations = 'async_inspect_task_duration_seconds_count{name="request",state="completed"}'
    assert now[durations] == completed
    # The application's own: one is counted before the span ends.
    assert completed <= now["shop_orders_total"] <= completed + cancelled
    # Three files a worker, one for those that are gone, and the one of a preloading master.
    assert kept <= 3 * WORKERS + 1 + 3
