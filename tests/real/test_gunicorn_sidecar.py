"""Real gunicorn with uvicorn workers under load: one sidecar counts every request that was answered, whichever worker
answered it, while workers are ended and killed and replaced, and the sidecar itself is killed.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from servers import Load, children, free_port, running, under, until

pytest.importorskip("gunicorn")
pytest.importorskip("uvicorn_worker")
pytestmark = [pytest.mark.real, pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs a POSIX system")]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sidecar"
WORKERS = 3


class Service:
    """gunicorn and its workers."""

    def __init__(self, stack: ExitStack, folder: Path, mode: str, preload: bool) -> None:
        self.port = free_port()
        # Room for what comes while the sidecar is away, at several thousand requests a second.
        environment = dict(os.environ, SIDECAR_LOGS=str(folder), SIDECAR_CAPACITY="200000")
        if mode == "socket":
            environment["SIDECAR_ADDRESS"] = f"unix:{folder / 's'}"
        command = [sys.executable, "-m", "gunicorn", "app:app", "--chdir", str(EXAMPLE), "-w", str(WORKERS)]
        command += ["-k", "uvicorn_worker.UvicornWorker", "-b", f"127.0.0.1:{self.port}", "--graceful-timeout", "10"]
        self.process = stack.enter_context(
            running([*command, *(["--preload"] if preload else [])], env=environment, stderr=subprocess.DEVNULL)
        )
        until(self._answers)
        until(lambda: len(self.workers()) == WORKERS)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def workers(self) -> list[int]:
        return children(self.process.pid)


class Metrics:
    """What the sidecar serves."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.seen: list[dict[str, float]] = []
        self.url = ""

    def start(self, stack: ExitStack) -> subprocess.Popen[str]:
        process = stack.enter_context(running(self.command, stdout=subprocess.PIPE))
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()
        return process

    def scrape(self) -> dict[str, float]:
        with urllib.request.urlopen(self.url) as answer:
            page = answer.read().decode()
        found = re.findall(r'^async_inspect_(tasks\w*_total)\{name="request"\} (\S+)', page, re.M)
        found += re.findall(r"^async_inspect_(active_tasks) (\S+)", page, re.M)
        found += re.findall(r'^async_inspect_dropped_total\{reason="(gap|malformed|duplicate)"\} (\S+)', page, re.M)
        now = {name: float(value) for name, value in found}
        for name, value in self.seen[-1].items() if self.seen else ():
            assert name == "active_tasks" or now.get(name, 0) >= value, f"{name} fell"
        self.seen.append(now)
        return now

    def settled(self, answered: int = 0) -> dict[str, float]:
        """Once so many were answered, it does not change any more, and nothing is live."""
        until(lambda: self.scrape().get("tasks_completed_total", 0) >= answered, lambda: (answered, self.seen[-1]))

        def still() -> bool:
            before = self.scrape()
            time.sleep(1.0)
            return before == self.scrape() and not before["active_tasks"]

        until(still)
        return self.seen[-1]


@contextmanager
def everything(
    tmp_path: Path, mode: str, *, preload: bool = False, grace: int = 2
) -> Iterator[tuple[Service, Load, Metrics, ExitStack]]:
    folder = tmp_path / "l"
    folder.mkdir()
    source = ["--listen", f"unix:{folder / 's'}"] if mode == "socket" else [str(folder / "*.jsonl"), "--local"]
    command = [sys.executable, str(EXAMPLE / "serve.py"), *source]
    command += ["--state", str(tmp_path / "state"), "--grace", str(grace), "--metrics", "127.0.0.1:0"]
    with ExitStack() as stack:
        metrics = Metrics(command)
        metrics.process = metrics.start(stack)  # type: ignore[attr-defined]
        service = Service(stack, folder, mode, preload)
        yield service, Load(service.port, keep=sys.maxsize), metrics, stack


def report(mode: str, load: Load, now: dict[str, float]) -> None:
    print(f"{mode}: answered {load.answered}, broken off {load.failed}; {now}")


@pytest.mark.parametrize("mode", ["files", "socket"])
@pytest.mark.parametrize("preload", [False, True])
def test_workers_that_end(tmp_path: Path, mode: str, preload: bool) -> None:
    """Workers end by SIGTERM, and all of them are replaced by SIGHUP: the count is that of the answers, to the one."""
    with everything(tmp_path, mode, preload=preload) as (service, load, metrics, _):
        before = set(service.workers())
        asyncio.run(
            under(
                load,
                lambda: os.kill(service.workers()[0], signal.SIGTERM),
                metrics.scrape,
                lambda: service.process.send_signal(signal.SIGHUP),
                metrics.scrape,
                lambda: os.kill(service.workers()[-1], signal.SIGTERM),
                apart=1.0,
            )
        )
        until(lambda: not before & set(service.workers()))
        now = metrics.settled(load.answered)
    report(mode, load, now)
    assert load.answered > 200
    assert now["tasks_completed_total"] == load.answered
    assert now["tasks_total"] == now["tasks_completed_total"] + now["tasks_cancelled_total"]
    assert now["tasks_failed_total"] == 0
    assert now["gap"] == now["malformed"] == now["duplicate"] == 0


def test_workers_that_are_killed_with_files(tmp_path: Path) -> None:
    """SIGKILL: whatever was answered is in the file and counted; of what was not, some was completed just before, and
    the rest was open, and is interrupted.
    """
    with everything(tmp_path, "files") as (service, load, metrics, _):
        killed = []
        for_each = [lambda: killed.append(service.workers()[0]) or os.kill(killed[-1], signal.SIGKILL)] * 3
        asyncio.run(under(load, *for_each, apart=1.0))
        now = metrics.settled(load.answered)
    report("files", load, now)
    assert len(set(killed)) == 3
    assert load.answered <= now["tasks_completed_total"] <= load.answered + load.failed
    assert now["tasks_total"] == now["tasks_completed_total"] + now["tasks_cancelled_total"]
    assert 0 < now["tasks_cancelled_total"] <= load.failed
    assert now["gap"] == now["malformed"] == now["duplicate"] == 0


def test_workers_that_are_killed_with_sockets(tmp_path: Path) -> None:
    """SIGKILL takes along what was in the worker's queue: some milliseconds of it, and nothing stays open."""
    with everything(tmp_path, "socket") as (service, load, metrics, _):
        kills = [lambda: os.kill(service.workers()[0], signal.SIGKILL)] * 3
        asyncio.run(under(load, *kills, apart=1.0))
        now = metrics.settled()
    report("socket", load, now)
    lost = load.answered - now["tasks_completed_total"]
    print(f"lost with 3 killed workers: at least {max(0, lost):.0f}")
    assert -load.failed <= lost <= 3 * 100
    assert now["tasks_total"] == now["tasks_completed_total"] + now["tasks_cancelled_total"]


@pytest.mark.parametrize("mode", ["files", "socket"])
def test_a_sidecar_that_is_killed(tmp_path: Path, mode: str) -> None:
    """SIGKILL of the sidecar, twice, under load: no counter falls, and in the end all is counted, and nothing twice."""
    # Long enough for the workers to come back.
    with everything(tmp_path, mode, grace=10) as (_, load, metrics, stack):

        def again() -> None:
            metrics.scrape()
            metrics.process.kill()  # type: ignore[attr-defined]
            metrics.process.wait()  # type: ignore[attr-defined]
            # What was scraped last may be newer than what was saved last; it is read again.
            metrics.process = metrics.start(stack)  # type: ignore[attr-defined]
            reached = metrics.seen[-1]
            metrics.seen.clear()
            until(lambda: metrics.scrape().get("tasks_total", 0) >= reached.get("tasks_total", 0))

        asyncio.run(under(load, again, again, apart=1.0))
        now = metrics.settled(load.answered)
    report(mode, load, now)
    assert now["tasks_completed_total"] == load.answered
    assert now["gap"] == now["malformed"] == 0
