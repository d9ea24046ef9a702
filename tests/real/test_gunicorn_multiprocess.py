"""Real gunicorn and uvicorn under load: whichever worker is asked, its /metrics has the sum over all, to the last
request that was answered, while workers are killed and replaced.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import Load, children, free_port, running, under, until

pytest.importorskip("gunicorn")
pytest.importorskip("uvicorn_worker")
pytestmark = [pytest.mark.real, pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs a POSIX system")]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "many_processes"
WORKERS = 3
UVICORN = ("-k", "uvicorn_worker.UvicornWorker")


class Service:
    """A server and its workers."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.pages: list[dict[str, float]] = []

    def workers(self) -> list[int]:
        found = children(self.process.pid)
        if "uvicorn" in self.process.args:  # type: ignore[operator]
            # Or else what looks after the semaphores of multiprocessing.
            found = [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return found

    def page(self) -> str:
        """A page of whichever worker answers; asked again where that one is killed meanwhile."""
        end = time.monotonic() + 40
        while time.monotonic() < end:
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

    def kill(self) -> None:
        """A worker, between two pages."""
        self.scrape()
        os.kill(self.workers()[0], signal.SIGKILL)
        self.scrape()

    def replace(self) -> None:
        """All workers, by new ones."""
        self.process.send_signal(signal.SIGHUP)
        self.scrape()


#: Plain WSGI, for workers that have no event loop.
WSGI = """
import logging, time
from asyncinspect_logging import AsyncInspectHandler, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler())
metrics = PrometheusExporter().wsgi_app()

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    with span("request"):
        time.sleep(0.002)
    start_response("200 OK", [("content-length", "3")])
    return [b"ok\\n"]
"""


@contextmanager
def serving(folder: Path, *options: str, server: str = "gunicorn", app: str = "shop:app") -> Iterator[Service]:
    port = free_port()
    (folder / "shared").mkdir()
    (folder / "plain.py").write_text(WSGI)
    where = str(EXAMPLE if app == "shop:app" else folder)
    environment = dict(os.environ, PROMETHEUS_MULTIPROC_DIR=str(folder / "shared"))
    command = [sys.executable, "-m", server, app, *options]
    if server == "gunicorn":
        command += ["--chdir", where, "-w", str(WORKERS), "-c", str(EXAMPLE / "conf.py"), "-b", f"127.0.0.1:{port}"]
    else:
        command += ["--app-dir", where, "--workers", str(WORKERS), "--port", str(port), "--no-access-log"]
    with running(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        service = Service(process, port)
        until(lambda: len(service.workers()) == WORKERS)
        service.page()
        yield service


COMPLETED = 'async_inspect_tasks_completed_total{name="request"}'


def test_a_port_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn's own process serves the sum, and is ready, while each of its workers stands still."""
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_PORT", address)
    with serving(tmp_path, *UVICORN) as service:
        answered = 0
        for _ in range(30):
            with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/", timeout=20):
                answered += 1
        workers = service.workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as page:
                assert f"\n{COMPLETED} {float(answered)}\n" in page.read().decode()
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=20) as ready:
                assert ready.status == 200
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)


@pytest.mark.parametrize("preload", [False, True])
def test_killed_and_replaced(tmp_path: Path, preload: bool) -> None:
    """SIGKILL of five workers, and SIGHUP, which replaces all: the sum is that of the answers, and of what was open."""
    with serving(tmp_path, *UVICORN, *(["--preload"] if preload else [])) as service:
        load, first = Load(service.port), service.workers()
        kill, replace, scrape = service.kill, service.replace, service.scrape
        asyncio.run(under(load, kill, kill, kill, replace, scrape, kill, kill, scrape))
        until(lambda: not set(first) & set(service.workers()) and len(service.workers()) == WORKERS)

        def settled() -> bool:
            now = service.scrape()
            return not now["async_inspect_active_tasks"] and not now["shop_open_orders"]

        until(settled, lambda: service.pages[-1])
        # Each of them tells the same.
        pages = [service.scrape() for _ in range(3 * WORKERS)]
        kept = len(list((tmp_path / "shared").glob("asyncinspect-*")))
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


@pytest.mark.parametrize(
    ("server", "app", "options"),
    [
        pytest.param("gunicorn", "plain:app", ("-k", "sync"), id="sync"),
        pytest.param("gunicorn", "plain:app", ("-k", "gthread", "--threads", "4"), id="gthread"),
        pytest.param("uvicorn", "shop:app", (), id="uvicorn"),
    ],
)
def test_other_servers(tmp_path: Path, server: str, app: str, options: tuple[str, ...]) -> None:
    """The same with gunicorn's own workers, one and several threads each, and with the processes of uvicorn."""
    with serving(tmp_path, *options, server=server, app=app) as service:
        load, first = Load(service.port), service.workers()
        kill, replace, scrape = service.kill, service.replace, service.scrape
        asyncio.run(under(load, kill, replace, scrape, kill, scrape, apart=1.0))
        until(lambda: not set(first) & set(service.workers()) and len(service.workers()) == WORKERS)
        until(lambda: not service.scrape()["async_inspect_active_tasks"], lambda: service.pages[-1])
        pages = [service.scrape() for _ in range(3 * WORKERS)]
    check(load, pages)


def test_workers_that_retire(tmp_path: Path) -> None:
    """Each worker ends by itself after some hundred requests, and leaves neither a gap nor a file."""
    with serving(tmp_path, *UVICORN, "--max-requests", "300", "--max-requests-jitter", "100") as service:
        load, seen = Load(service.port), set(service.workers())

        def look() -> None:
            seen.update(service.workers())
            service.scrape()

        asyncio.run(under(load, *[look] * 8))
        until(lambda: not service.scrape()["async_inspect_active_tasks"], lambda: service.pages[-1])
        pages = [service.scrape() for _ in range(3 * WORKERS)]
        kept = len(list((tmp_path / "shared").glob("asyncinspect-*.counts")))
    check(load, pages)
    assert len(seen) > 2 * WORKERS
    assert kept <= 2 * WORKERS


def check(load: Load, pages: list[dict[str, float]]) -> None:
    """Each page tells what was answered, and of what was broken off what was completed before."""
    completed = pages[-1][COMPLETED]
    print(f"answered {load.answered}, broken off {load.failed}, completed {completed}")
    assert {page[COMPLETED] for page in pages} == {completed}
    assert load.answered > 300
    assert load.answered <= completed <= load.answered + load.failed
