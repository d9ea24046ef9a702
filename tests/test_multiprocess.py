"""Counts of several processes in one folder: each to the last span of one that was killed, and none of them twice."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from asyncinspect_logging import Config, Inspector, instrument, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.exposition import Renderer
from asyncinspect_logging.exporters.multiprocess import Processes
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.testing import FakeClock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no flock()")
if sys.platform != "win32":
    from asyncinspect_logging.exporters.totals import Corrupt, Totals, totals_of

#: It has imported everything, and makes a process of each connection: this does what it is told.
PROGRAM = """
import asyncio, json, logging, os, signal, socket, sys
from asyncinspect_logging import AsyncInspectHandler, Inspector, annotate, instrument, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.testing import FakeClock

def spans(count, name="job"):
    for _ in range(count):
        with span(name):
            pass

def die_at(step, *files):
    # At so many lines of these files, counted from now.
    def line(frame, event, arg):
        nonlocal step
        if event == "line":
            step -= 1
            if step < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return line
    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename.endswith(files) else None)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    if not os.fork():
        break
    connection.close()
listener.close()
lines = connection.makefile("rw")
def say(text):
    print(text, file=lines, flush=True)
say(os.getpid())
os.environ.update(json.loads(next(lines)))
logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler())
exporter = PrometheusExporter()
say("ready")
for line in lines:
    exec(json.loads(line))
    say("done")
"""


class Process:
    """A process that shares the folder."""

    def __init__(self, server: str, folder: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server)
        self._lines = self._connection.makefile("rw")
        self.pid = int(self.line())
        self.tell({"PROMETHEUS_MULTIPROC_DIR": str(folder)})
        assert self.line() == "ready"

    def line(self) -> str:
        return self._lines.readline().strip()

    def tell(self, what: object) -> None:
        self._lines.write(json.dumps(what) + "\n")
        self._lines.flush()

    def do(self, code: str) -> None:
        self.tell(code)
        assert self.line() == "done"

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.gone()

    def end(self) -> None:
        self._connection.shutdown(socket.SHUT_WR)
        self.gone()

    def gone(self) -> None:
        """Until there is nothing of it any more: the kernel takes its locks off last."""
        with suppress(OSError), self._connection:
            self._lines.close()
        end = time.monotonic() + 20
        with suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.kill(self.pid, 0)
                time.sleep(0.001)
            raise AssertionError("it does not end")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    # A path of a socket has to be short.
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": folder}
        path = f"{folder}/s"
        command = [sys.executable, "-c", PROGRAM, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as popen:
            assert popen.stdout is not None
            assert popen.stdout.readline() == b"ready\n"
            yield path
            popen.kill()


@pytest.fixture
def process(tmp_path: Path, server: str) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start() -> Process:
        started.append(Process(server, tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., Inspector]) -> PrometheusExporter:
    """One of this process, which shares the folder."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return PrometheusExporter(listen())


def numbers(page: str) -> dict[str, float]:
    return {key: float(value) for key, value in re.findall(r"^([a-z][^#\n]*) ([^ \n]+)$", page, re.M)}


def count(page: str, what: str = "tasks_completed_total", name: str = "job") -> float:
    return numbers(page).get(f'async_inspect_{what}{{name="{name}"}}', 0.0)


def own_counts(folder: Path) -> Totals:
    """What stands in the file of this process."""
    (path,) = folder.glob(f"asyncinspect-{os.getpid()}-*.counts")
    return Totals.from_counts(path.read_bytes(), path.with_suffix(".names").read_bytes())


def spans(number: int, name: str = "job") -> None:
    for _ in range(number):
        with span(name):
            pass


async def all_kinds() -> None:
    """Spans of every kind and outcome."""

    async def job(seconds: float, error: type[BaseException] | None = None) -> None:
        with span("inner"):
            await asyncio.sleep(seconds)
        if error is not None:
            raise error

    plain = [asyncio.create_task(job(0.001)) for _ in range(5)]
    driven = [asyncio.create_task(instrument(job(0.001), name="driven")) for _ in range(5)]
    failing = [asyncio.create_task(instrument(job(0, ValueError), name="failing")) for _ in range(3)]
    endless = [asyncio.create_task(instrument(job(60), name="endless")) for _ in range(2)]
    # Cancelled before the first step, and while it waits.
    endless.append(asyncio.create_task(instrument(job(60), name="endless")))
    endless[-1].cancel()
    await asyncio.wait([*plain, *driven, *failing])
    for task in endless:
        task.cancel()
    await asyncio.wait(endless)

    async def items() -> Any:
        with span("items"):
            yield 1
            yield 2

    async for _ in items():
        break
    with span("slow"):
        await asyncio.sleep(0.012)


def test_the_file_has_what_the_inspector_has(tmp_path: Path, exporter: PrometheusExporter) -> None:
    """Each number of each name, whatever became of the spans."""
    asyncio.run(all_kinds())
    gc.collect()
    inspector = exporter._pages._source._inspectors[0]  # type: ignore[attr-defined]
    expected = totals_of(inspector.snapshot(), own_counts(tmp_path).bounds)
    found = own_counts(tmp_path)
    views = found.snapshot(0.0).names
    assert totals_of(found.snapshot(0.0), found.bounds).names == expected.names
    assert {view.live for view in views.values()} == {0}
    assert views["endless"].cancelled == 3
    assert views["failing"].failed == 3
    assert views["driven"].polls == 10


def test_pages_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., Inspector]) -> None:
    """A page of one process alone is that without a folder, to the byte, but for what memory is used."""
    inspector = listen()
    asyncio.run(all_kinds())
    alone = PrometheusExporter(inspector, memory_metrics=False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    # What was counted before it was made, too.
    shared = PrometheusExporter(inspector, memory_metrics=False)
    asyncio.run(all_kinds())
    for openmetrics in (False, True):
        expected = alone.gather(openmetrics=openmetrics).splitlines()
        assert sorted(shared.gather(openmetrics=openmetrics).splitlines()) == sorted(expected)


def test_sums(process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """Any of them gives the sum over all of them, at once."""
    one, other = process(), process()
    spans(3)
    one.do("spans(10)")
    other.do("spans(200)")
    assert count(exporter.gather()) == 213
    one.do("assert 'tasks_completed_total{name=\"job\"} 213.0' in exporter.gather()")
    spans(1)
    one.do("assert 'tasks_completed_total{name=\"job\"} 214.0' in exporter.gather()")


def test_killed(tmp_path: Path, process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """SIGKILL takes nothing along: what was over counts, what was open was interrupted, and gauges are gone."""
    one = process()
    one.do("spans(1000)")
    one.do("open = span('open'); open.__enter__(); other = span('open'); other.__enter__()")
    page = exporter.gather()
    # The state of a process is written once a second; this is not waited for.
    assert count(page) == 1000
    assert count(page, "tasks_total", "open") == 2
    one.do("spans(500)")
    one.kill()
    for _ in range(3):
        now = numbers(exporter.gather())
        assert now['async_inspect_tasks_completed_total{name="job"}'] == 1500
        assert now['async_inspect_tasks_cancelled_total{name="open"}'] == 2
        assert now['async_inspect_tasks_total{name="open"}'] == 2
        assert now["async_inspect_active_tasks"] == 0
        assert now['async_inspect_events_total{type="drop"}'] == 1502
        assert now['async_inspect_task_duration_seconds_count{name="job",state="completed"}'] == 1500
        assert 'async_inspect_task_duration_seconds_count{name="open",state="cancelled"}' not in now
    assert sorted(re.sub(r"-\d+-\w+", "", path.name) for path in tmp_path.iterdir()) == [
        "asyncinspect-ended.1",
        "asyncinspect.counts",
        "asyncinspect.lock",
        "asyncinspect.names",
        "asyncinspect.state",
    ]


def test_gauges_of_the_living(process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """Spans that are open in any process are active, as its state says, and its own scrape is up to date."""
    one = process()
    one.do("open = span('open'); open.__enter__()")
    one.do("assert 'active_tasks 1.0' in exporter.gather()")
    assert numbers(exporter.gather())["async_inspect_active_tasks"] == 1
    one.kill()
    assert numbers(exporter.gather())["async_inspect_active_tasks"] == 0


def test_many_lives(tmp_path: Path, process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """The folder does not grow with the processes that were, and an end by itself is no other than a kill."""
    for number in range(3):
        one = process()
        one.do("spans(5)")
        one.kill() if number % 2 else one.end()
        assert count(exporter.gather()) == 5 * (number + 1)
        assert len(list(tmp_path.iterdir())) == 5


def test_many_lives_that_nobody_asks_for(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Without a page, those that begin add up those that are gone."""
    for _ in range(3):
        one = process()
        one.do("from asyncinspect_logging.exporters import multiprocess; multiprocess._MANY = 1")
        one.do("spans(5)")
        end = time.monotonic() + 20
        while len(left := list(tmp_path.glob("*.counts"))) > 1:
            assert time.monotonic() < end, left
            time.sleep(0.005)
        one.kill()
    last = process()
    last.do("assert 'tasks_completed_total{name=\"job\"} 15.0' in exporter.gather()")


def test_killed_while_adding_up(tmp_path: Path, process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """What is in the file of those that are gone, and still has its own files, counts once, and these are deleted."""
    one = process()
    one.do("spans(5); exporter.gather()")
    one.kill()
    saved = {path: path.read_bytes() for path in tmp_path.glob(f"asyncinspect-{one.pid}-*")}
    assert len(saved) == 3
    assert count(exporter.gather()) == 5
    # As if whoever added them up had been killed before it deleted them.
    for path, data in saved.items():
        path.write_bytes(data)
    assert count(exporter.gather()) == 5
    other = process()
    other.do("spans(7)")
    other.kill()
    for _ in range(2):
        assert count(exporter.gather()) == 12
    assert not [path for path in saved if path.exists()]


#: In steps of so many lines.
EACH = [pytest.param(97, id="some"), pytest.param(11, marks=pytest.mark.slow, id="most")]
STATES = ("completed", "failed", "cancelled")


def check(now: dict[str, float], before: dict[str, float]) -> None:
    """No counter fell, and those of a page agree with each other: what had begun is over, once, by some outcome."""
    for key, value in before.items():
        assert re.match("async_inspect_(tasks_by|active|blocked|memory|build)", key) or now.get(key, 0) >= value, key
    begun = ended = 0.0
    for key, value in now.items():
        if key.startswith("async_inspect_tasks_total"):
            begun += value
        elif re.match(rf"async_inspect_tasks_({'|'.join(STATES)})_total", key):
            ended += value
    assert begun == ended == now['async_inspect_events_total{type="spawn"}']
    assert ended == now['async_inspect_events_total{type="drop"}']


@pytest.mark.parametrize("every", EACH)
def test_killed_at_any_line_of_counting(
    process: Callable[..., Process], exporter: PrometheusExporter, every: int
) -> None:
    """While the files are made, a span is counted, gets a name of its own, and the file grows: what was left counts,
    once, and the one span that was being left counts once or not at all.
    """
    total, before, step = 0.0, numbers(exporter.gather()), 0
    while True:
        one = process()
        one.tell(
            f"die_at({step}, 'shared.py')\n"
            "for name in [*'aaab', *map(str, range(20)), *'cab']:\n"
            "    with span(name):\n"
            "        pass\n"
            "    say('left')\n"
            "os._exit(0)"
        )
        left = 0
        while one.line() == "left":
            left += 1
        one.gone()
        now = numbers(exporter.gather())
        check(now, before)
        counted = sum(value for key, value in now.items() if key.startswith("async_inspect_tasks_completed_total"))
        assert total + left <= counted <= total + left + 1
        total, before = counted, now
        if left == 27:
            break
        step += every
        assert step < 5000
    assert step > 500


@pytest.mark.parametrize("every", EACH)
def test_killed_at_any_line_of_a_page(
    process: Callable[..., Process], exporter: PrometheusExporter, every: int
) -> None:
    """Whoever adds up what is gone may be killed at it: nothing is lost, and nothing counts twice."""
    total, before, step = 0, numbers(exporter.gather()), 0
    while True:
        one, other = process(), process()
        one.do("spans(5); open = span('job'); open.__enter__(); exporter.gather()")
        one.kill()
        other.tell(f"die_at({step}, 'exporters/multiprocess.py'); exporter.gather(); say('alive'); os._exit(0)")
        alive = other.line() == "alive"
        other.gone()
        total += 1
        now = numbers(exporter.gather())
        check(now, before)
        assert now['async_inspect_tasks_completed_total{name="job"}'] == 5 * total
        assert now['async_inspect_tasks_cancelled_total{name="job"}'] == total
        before = now
        if alive:
            break
        step += every
        assert step < 5000
    assert step > 100


def test_read_at_any_line_of_counting(tmp_path: Path, exporter: PrometheusExporter) -> None:
    """Nothing that a reader makes of the file is below what one before it made of it."""
    spans(1)
    seen: list[dict[str, float]] = []

    def line(frame: Any, event: str, arg: Any) -> Any:
        sys.settrace(None)
        found = Renderer().metrics(own_counts(tmp_path).snapshot(0.0), {})
        samples = {(one.name, *one.labels.items()): one.value for family in found for one in family.samples}
        seen.append(samples)
        sys.settrace(follow)
        return line

    def follow(frame: Any, event: str, arg: Any) -> Any:
        return line if frame.f_code.co_filename.endswith("/shared.py") else None

    async def twice() -> None:
        with span("job"):
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    try:
        sys.settrace(follow)
        for _ in range(2):
            spans(1)
            loop.run_until_complete(instrument(twice(), name="job"))
    finally:
        sys.settrace(None)
        loop.close()
    assert len(seen) > 100
    for before, after in pairwise(seen):
        assert {key: value for key, value in before.items() if after.get(key, 0) < value} == {}


def test_an_inspector_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not kept by what it shares, nor is its thread."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    before = set(threading.enumerate())
    inspector = Inspector()
    exporter = PrometheusExporter(inspector)
    with span("job"):
        exporter.gather()
    # The watcher, which may begin just then, is everybody's.
    threads = {thread for thread in threading.enumerate() if thread.name == "asyncinspect-shared"} - before
    assert threads
    gone = weakref.ref(inspector)
    del inspector, exporter
    gc.collect()
    deadline = time.monotonic() + 20
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    assert gone() is None
    assert not any(thread.is_alive() for thread in threads)


def test_no_number_is_torn(tmp_path: Path) -> None:
    """Who reads the file while another process changes a number in it, sees one from before or after."""
    low, high, size = (1 << 32) - 1, 1 << 32, 4096
    with (tmp_path / "numbers").open("w+b") as file:
        file.write(bytes(8 * size))
        file.flush()
        cells: Any = memoryview(mmap.mmap(file.fileno(), 8 * size)).cast("q")
        pid = os.fork()
        if not pid:
            while True:
                for number in (high, low):
                    for place in range(size):
                        cells[place] = number
        seen: set[int] = set()
        try:
            deadline, reads = time.monotonic() + 20, 0
            # On a machine that is busy the other process has its turn late.
            while reads < 500 or not ({low, high} <= seen or time.monotonic() > deadline):
                seen.update(memoryview(os.pread(file.fileno(), 8 * size, 0)).cast("q"))
                reads += 1
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert seen <= {0, low, high}
    assert {low, high} <= seen


@pytest.mark.parametrize("first", [False, True])
def test_a_span_that_ends_while_the_files_are_read(
    process: Callable[..., Process], exporter: PrometheusExporter, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """Its polls are first in the state and then in the counts: a reader in between finds them in one of these."""
    one = process()
    one.do("loop = asyncio.new_event_loop(); event = asyncio.Event()")
    one.do("async def long():\n await asyncio.sleep(0)\n await event.wait()")
    one.do("task = loop.create_task(instrument(long(), name='long')); loop.run_until_complete(asyncio.sleep(0.01))")
    one.do("exporter.gather()")
    assert count(exporter.gather(), "task_polls_total", "long") == 2
    source = exporter._pages._source
    read, after = type(source)._read_state, []  # type: ignore[attr-defined]

    def slow(self: Any, id: str) -> Totals:
        before: Totals = read(self, id)
        if id.startswith(f"{one.pid}-") and not after:
            after.append(one.do("event.set(); loop.run_until_complete(task); exporter.gather()"))
        return read(self, id) if first else before

    monkeypatch.setattr(type(source), "_read_state", slow)
    assert count(exporter.gather(), "task_polls_total", "long") >= 2
    assert after
    assert count(exporter.gather(), "task_polls_total", "long") == 3


def test_the_last_second(process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """Of a process that ends by itself, what is not in the counts is there too, and spans that are open end."""
    one = process()
    one.do("exporter.gather(); open = span('open'); open.__enter__(); annotate('a line')")
    one.end()
    now = numbers(exporter.gather())
    assert now['async_inspect_events_total{type="log"}'] == 1
    assert now['async_inspect_task_duration_seconds_count{name="open",state="cancelled"}'] == 1


def link(path: Path) -> None:
    path.symlink_to("/nowhere")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 34)


@pytest.mark.parametrize("name", ["1-a.counts", "1-a.names", "1-a.state", "ended.5"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, link, sparse, Path.touch], ids=lambda make: make.__name__)
def test_what_others_left_there(
    tmp_path: Path,
    process: Callable[..., Process],
    exporter: PrometheusExporter,
    name: str,
    make: Callable[[Path], Any],
) -> None:
    """No page waits for it, or fails, or reads it all; and adding up goes on."""
    spans(3)
    path = tmp_path / f"asyncinspect-{name}"
    if ".counts" not in name and "ended" not in name:
        (tmp_path / "asyncinspect-1-a.counts").touch()
    make(path)
    one = process()
    one.do("spans(5)")
    one.kill()
    for _ in range(2):
        assert count(exporter.gather()) == 8


def test_names_that_were_deleted(tmp_path: Path, process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """As by what cleans up /tmp: the others go on, and it is counted as broken when the process is gone."""
    spans(3)
    one = process()
    one.do("spans(5)")
    for path in tmp_path.glob(f"asyncinspect-{one.pid}-*.names"):
        path.unlink()
    assert count(exporter.gather()) == 3
    one.kill()
    now = numbers(exporter.gather())
    assert now['async_inspect_tasks_completed_total{name="job"}'] == 3
    assert now['async_inspect_dropped_total{reason="malformed"}'] == 1


def test_a_folder_that_is_emptied(
    tmp_path: Path, process: Callable[..., Process], exporter: PrometheusExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """While processes run: it is said, and pages are made of what is there."""
    one = process()
    one.do("spans(5)")
    one.kill()
    spans(3)
    assert count(exporter.gather()) == 8
    for path in tmp_path.iterdir():
        path.unlink()
    spans(3)
    assert count(exporter.gather()) == 0
    assert "somebody deleted the files of this process" in caplog.text
    other = process()
    other.do("spans(2)")
    assert count(exporter.gather()) == 2


def test_a_disk_that_is_full(
    exporter: PrometheusExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Pages are made of the counts, which have their room; and the state is written when there is some again."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spans(3)
    with monkeypatch.context() as patch:
        patch.setattr("asyncinspect_logging.exporters.multiprocess._replace", full)
        with span("open"):
            assert count(exporter.gather()) == 3
            assert numbers(exporter.gather())["async_inspect_active_tasks"] == 0
    assert "the state could not be shared" in caplog.text
    with span("open"):
        assert numbers(exporter.gather())["async_inspect_active_tasks"] == 1


def test_a_folder_without_locks(
    exporter: PrometheusExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As some network drives are: the application goes on, and there is no page that would be wrong."""

    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    spans(3)
    assert "No locks available" in caplog.text
    with pytest.raises(OSError, match="no file of counts could be made"):
        exporter.gather()


def test_left_behind(tmp_path: Path, process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """What a process left that was killed while it made its files goes with the next one that is added up."""
    names = [
        ".asyncinspect-1-a.counts",
        ".asyncinspect-1-a.state.1",
        "asyncinspect-1-a.names",
        "asyncinspect-1-a.state",
    ]
    others = ["asyncinspect-2-b.names", "of.another"]
    for name in [*names, *others]:
        (tmp_path / name).touch()
    for name in [*names, "of.another"]:
        os.utime(tmp_path / name, (0, 0))
    one = process()
    one.do("spans(5)")
    one.kill()
    assert count(exporter.gather()) == 5
    assert [name for name in [*names, *others] if (tmp_path / name).exists()] == others


def test_a_page_while_somebody_else_adds_up(
    tmp_path: Path, process: Callable[..., Process], exporter: PrometheusExporter
) -> None:
    """It waits for nobody: what is gone is read from its own files until it was added up."""
    import fcntl

    one = process()
    one.do("spans(5); open = span('job'); open.__enter__()")
    one.kill()
    with (tmp_path / "asyncinspect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(2):
            page = exporter.gather()
            assert count(page) == 5
            assert count(page, "tasks_cancelled_total") == 1
    assert count(exporter.gather(), "tasks_cancelled_total") == 1


def test_scrapes_in_all_of_them_at_once(process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """While some are killed, nobody's page falls or counts anything twice."""
    scrapers = [process() for _ in range(2)]
    code = "import re, time; end, seen = time.monotonic() + 1.0, []"
    code += "; find = re.compile('completed_total.*job.* (.*)').search"
    code += "\nwhile time.monotonic() < end: seen.append(float((find(exporter.gather()) or [0, 0])[1]))"
    code += "\nassert seen == sorted(seen), seen"
    for one in scrapers:
        one.tell(code)
    total = 0
    for _ in range(4):
        victim = process()
        victim.do("spans(100)")
        victim.kill()
        total += 100
        assert count(exporter.gather()) == total
    for one in scrapers:
        assert one.line() == "done"
        one.do(f"assert 'tasks_completed_total{{name=\"job\"}} {total}.0' in exporter.gather()")


def test_fork(tmp_path: Path, exporter: PrometheusExporter) -> None:
    """The child begins at zero in a file of its own, and the parent's goes on."""
    spans(5)
    assert count(exporter.gather()) == 5
    pid = os.fork()
    if not pid:
        try:
            spans(20)
            assert count(exporter.gather()) == 25
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert count(exporter.gather()) == 25
    spans(1)
    assert count(exporter.gather()) == 26
    assert own_counts(tmp_path).names["job"][0] == 6


#: Three children of multiprocessing, each with an end of its own.
CHILDREN = """
import logging, multiprocessing, os, signal, sys
from asyncinspect_logging import AsyncInspectHandler, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

logging.getLogger().addHandler(AsyncInspectHandler())
exporter = PrometheusExporter()

def work(end):
    for _ in range(100):
        with span("job"):
            logging.warning("a line")
    span("open").__enter__()
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif end == "raise":
        sys.exit("on purpose")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for end in ("kill", "raise", "return"):
        child = context.Process(target=work, args=(end,))
        child.start()
        child.join()
    sys.stdout.write(exporter.gather())
"""


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(x, marks=pytest.mark.slow) for x in ("spawn", "forkserver"))]
)
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    """Its children count to the last span, and those that are not killed to the last line of the log."""
    (tmp_path / "main.py").write_text(CHILDREN)
    (tmp_path / "shared").mkdir()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared")}
    command = [sys.executable, str(tmp_path / "main.py"), method]
    page = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    assert count(page) == 300
    assert count(page, "tasks_cancelled_total", "open") == 3
    assert numbers(page)['async_inspect_events_total{type="log"}'] >= 200


def test_open_while_forked(exporter: PrometheusExporter) -> None:
    """A span that is open over a fork is the parent's."""
    with span("outer"):
        pid = os.fork()
        if not pid:
            spans(1)
            os._exit(0)
        os.waitpid(pid, 0)
    page = exporter.gather()
    assert count(page, "tasks_total", "outer") == count(page, "tasks_completed_total", "outer") == 1
    assert count(page) == 1


def test_threads(tmp_path: Path, exporter: PrometheusExporter) -> None:
    """No span of several threads is lost, though none of them waits for another."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=spans, args=(3000,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert own_counts(tmp_path).snapshot(0.0).names["job"].completed == 12_000
    assert count(exporter.gather()) == 12_000


def test_a_lock_that_nobody_gives_back(tmp_path: Path, exporter: PrometheusExporter) -> None:
    """As when a signal handler raises at the wrong moment: nothing waits for it for ever, and nothing is lost."""
    spans(1)
    inspector = exporter._pages._source._inspectors[0]  # type: ignore[attr-defined]
    inspector._announce.__self__._turn.pop()
    spans(6000)
    assert own_counts(tmp_path).names["job"][0] > 4000
    spans(10)
    assert own_counts(tmp_path).names["job"][0] == 6011


def test_no_room_on_the_stack(tmp_path: Path, exporter: PrometheusExporter) -> None:
    """Spans near the recursion limit harm nobody, and what was begun is ended."""

    def deep() -> None:
        with span("deep"):
            deep()

    with pytest.raises(RecursionError):
        deep()
    spans(3)
    page = exporter.gather()
    assert count(page) == 3
    assert count(page, "tasks_failed_total", "deep") > 100
    assert numbers(page)["async_inspect_active_tasks"] == 0


def test_two_handlers_and_two_exporters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., Inspector]
) -> None:
    """Count nothing twice."""
    from asyncinspect_logging import AsyncInspectHandler

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    inspector = listen()
    listen(handler=lambda _: AsyncInspectHandler(inspector))
    exporters = [PrometheusExporter(inspector), PrometheusExporter(inspector, name_label="task_name")]
    asyncio.run(instrument(all_kinds(), name="all"))
    spans(10)
    assert count(exporters[0].gather()) == 10
    assert 'tasks_completed_total{task_name="job"} 10.0' in exporters[1].gather()
    assert own_counts(tmp_path).names["job"][0] == 10


def test_several_inspectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., Inspector]) -> None:
    """`multi` adds them up, each once."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    exporter = PrometheusExporter.multi([listen(), listen()])
    spans(10)
    assert count(exporter.gather()) == 20


def test_the_end_of_what_was_seen_open(tmp_path: Path, listen: Callable[..., Inspector]) -> None:
    """An inspector that has seen a span open hears of its end, though another one only has to count it."""
    inspectors = [listen(), listen()]
    first, _ = [inspector.share(str(tmp_path)) for inspector in inspectors]
    tell = first._told

    def look(span: Any) -> None:
        # As another thread may at this moment.
        tell(span)
        inspectors[0].snapshot()

    first._told = look
    spans(1)
    assert [inspector.snapshot().names["job"].completed for inspector in inspectors] == [1, 1]


def test_live_polls(process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """Polls of a span that is open are in the state, and what was on a page does not fall when it is killed."""
    one = process()
    one.do("loop = asyncio.new_event_loop()")
    one.do("async def long():\n for seconds in (0.01, 0.01, 60): await asyncio.sleep(seconds)")
    one.do("task = loop.create_task(instrument(long(), name='long')); loop.run_until_complete(asyncio.sleep(0.2))")
    one.do("exporter.gather()")
    assert count(exporter.gather(), "task_polls_total", "long") == 3
    one.kill()
    page = exporter.gather()
    assert count(page, "task_polls_total", "long") == 3
    assert count(page, "tasks_cancelled_total", "long") == 1


def test_records_of_elsewhere(exporter: PrometheusExporter, tell: Any) -> None:
    """Spans that records tell of are in the sum, too."""
    inspector = exporter._pages._source._inspectors[0]  # type: ignore[attr-defined]
    inspector.apply(tell("enter"))
    inspector.apply(tell("exit"))
    spans(2)
    assert count(exporter.gather()) == 3


def test_names_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., Inspector]) -> None:
    """As in the inspector, whose `_other_` is not counted on top; and the file grows with them."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    exporter = PrometheusExporter(listen(Config(max_names=50)))
    for number in range(60):
        spans(2, f"job {number}")
    page = exporter.gather()
    assert count(page, name="job 49") == 2
    assert count(page, name="_other_") == 20
    assert len(own_counts(tmp_path).names) == 51
    assert numbers(page)['async_inspect_events_total{type="drop"}'] == 120


def test_names_of_the_gone_have_a_limit(process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """With names that never come again, those that came last are counted together."""
    exporter._pages._source._limit = 1  # type: ignore[attr-defined]
    for number in range(3):
        one = process()
        one.do(f"spans(2, 'job {number}')")
        one.kill()
        exporter.gather()
    page = exporter.gather()
    assert [count(page, name=f"job {number}") for number in range(3)] == [2, 0, 0]
    assert count(page, name="_other_") == 4
    assert numbers(page)['async_inspect_dropped_total{reason="max_names"}'] == 4


@pytest.mark.parametrize("name", ['a"b\\', "a\nb", "\ud800", "x" * 10_000, "_other_", "ünïcode"])
def test_names(exporter: PrometheusExporter, name: str) -> None:
    """Whatever a span is called."""
    spans(3, name)
    assert exporter._pages._source.snapshot(tasks=False).names[name].completed == 3
    exporter.gather()


def test_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., Inspector], process: Callable[..., Process]
) -> None:
    """Buckets of the application's own; no count falls when a process comes, or goes, that has others."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    bounds = (0.001, 0.3, 2 / 3)
    exporter = PrometheusExporter(listen(clock=(clock := FakeClock())), duration_buckets=bounds)
    for _ in range(4):
        with span("job"):
            clock.advance(0.27)
    keys = [
        f'async_inspect_task_duration_seconds_bucket{{le="{le}",name="job",state="completed"}}'
        for le in ("0.001", "0.3", repr(2 / 3), "+Inf")
    ]

    def buckets() -> list[float]:
        now = numbers(exporter.gather())
        return [now[key] for key in keys]

    assert buckets() == [0, 4, 4, 4]
    assert set(bounds) <= set(own_counts(tmp_path).bounds)
    one = process()
    # Between 0.25 and 0.5, which are the bounds that it has; two inspectors count them.
    one.do("clock = FakeClock(); own = Inspector(clock=clock)")
    one.do("logging.getLogger('asyncinspect').addHandler(AsyncInspectHandler(own)); own = PrometheusExporter(own)")
    one.do("for _ in range(5):\n with span('job'): clock.advance(0.26)")
    for _ in range(2):
        assert buckets() == [0, 4, 14, 14]
        one.kill()


GARBAGE = b"\x00\xffnonsense"


@pytest.mark.parametrize("kind", ["counts", "names", "state"])
@pytest.mark.parametrize("damage", [b"", GARBAGE, "half", "flip"])
def test_files_that_are_broken(
    tmp_path: Path,
    process: Callable[..., Process],
    exporter: PrometheusExporter,
    kind: str,
    damage: Any,
) -> None:
    """Are no reason not to give a page of the others; it is said, and counted once its process is gone."""
    spans(3)
    one = process()
    one.do("spans(5)")
    one.do("exporter.gather()")
    one.kill()
    (path,) = tmp_path.glob(f"asyncinspect-{one.pid}-*.{kind}")
    data = path.read_bytes()
    if damage == "half":
        damage = data[: min(len(data) // 2, 500)]
    elif damage == "flip":
        damage = bytes([data[0] ^ 0x55]) + data[1:]
    path.write_bytes(damage)
    for _ in range(2):
        page = exporter.gather()
        assert count(page) in (3, 8)
    assert len(list(tmp_path.iterdir())) == 5
    if kind == "counts":
        assert numbers(page)['async_inspect_dropped_total{reason="malformed"}'] == 1


def test_the_gone_are_broken(tmp_path: Path, process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """What is not the file of those that are gone is counted as broken, and goes at the next adding up."""
    spans(3)
    (tmp_path / "asyncinspect-ended.7").write_bytes(GARBAGE)
    (tmp_path / "asyncinspect-ended.x").write_bytes(GARBAGE)
    for _ in range(2):
        page = exporter.gather()
        assert count(page) == 3
        assert numbers(page)['async_inspect_dropped_total{reason="malformed"}'] == 1
    one = process()
    one.do("spans(5)")
    one.kill()
    assert count(exporter.gather()) == 8
    assert (tmp_path / "asyncinspect-ended.8").exists()
    assert not (tmp_path / "asyncinspect-ended.7").exists()


_CELLS = st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 1 << 62), min_size=93, max_size=93), max_size=3)


def made_of(names: dict[str, list[int]], logs: int = 0) -> Totals:
    totals = Totals(tuple(float(bound) for bound in range(13)))
    totals.names, totals.logs = names, logs
    return totals


@settings(max_examples=15)
@given(st.lists(_CELLS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_sums_in_any_order(parts: list[dict[str, list[int]]], random: Any) -> None:
    """Come out the same, to the last digit of every number."""

    def total(order: list[dict[str, list[int]]]) -> Any:
        totals = Totals()
        for part in order:
            totals.add(made_of(part, 1))
        return totals

    before = total(parts)
    random.shuffle(parts)
    after = total(parts)
    assert before.names == after.names
    assert dict(before.snapshot(0.0).names) == dict(after.snapshot(0.0).names)
    again, ids = Totals.load_with_ids(before.dump(["a", "b"]))
    assert again.names == before.names
    assert ids == {"a", "b"}


@given(
    st.binary(max_size=300)
    | st.builds(
        lambda x: json.dumps(x).encode(),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=3),
            lambda x: (
                st.lists(x, max_size=3)
                | st.dictionaries(st.sampled_from(["v", "ids", "names", "bounds", "lag"]), x, max_size=5)
            ),
            max_leaves=8,
        ),
    )
)
def test_any_bytes(data: bytes) -> None:
    """Are read, or are corrupt, and nothing else."""
    for read in (Totals.load, lambda data: Totals.from_counts(data, b'"a"\n"b"\n')):
        with pytest.raises(Corrupt):
            read(data)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not there, or is a file, is a clear error; none is as if it were not set."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
        with pytest.raises(ConfigError, match="is not a folder; make the folder"):
            PrometheusExporter(Inspector())
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    assert not isinstance(PrometheusExporter(Inspector())._pages._source, Processes)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_processes_of_other_users(
    server: str, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., Inspector]
) -> None:
    """As where gunicorn's master loads the application as root: who can read a file counts it, and who cannot delete it
    leaves it there.
    """
    become = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", name)
        exporter = PrometheusExporter(listen())
        master, worker, secret = all_of_them = [Process(server, folder) for _ in range(3)]
        try:
            master.do("spans(2); exporter.gather()")
            worker.do(f"{become}; spans(3)")
            for page in (exporter.gather(), exporter.gather()):
                assert count(page) == 5
            worker.do("page = exporter.gather()")
            worker.do("assert 'tasks_completed_total{name=\"job\"} 5.0' in page, page")
            master.kill()
            for _ in range(2):
                worker.do("page = exporter.gather()")
                worker.do("assert 'tasks_completed_total{name=\"job\"} 5.0' in page, page")
            assert count(exporter.gather()) == 5
            for _ in range(2):
                worker.do("page = exporter.gather()")
                worker.do("assert 'tasks_completed_total{name=\"job\"} 5.0' in page, page")
            secret.do("os.umask(0o077); spans(7)")
            worker.do("page = exporter.gather()")
            worker.do("assert 'tasks_completed_total{name=\"job\"} 5.0' in page, page")
            assert count(exporter.gather()) == 12
        finally:
            for one in all_of_them:
                one.kill()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_folders_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one that cannot be written to."""
    tmp_path.chmod(0o500)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be written to"):
        PrometheusExporter(Inspector())


def test_a_folder_that_is_taken_away(
    tmp_path: Path, exporter: PrometheusExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """The application goes on; it is said once."""
    tmp_path.chmod(0o700)
    gone = tmp_path.with_name("elsewhere")
    tmp_path.rename(gone)
    try:
        spans(3)
        assert [record for record in caplog.records if "missing in the sum over all processes" in record.message]
    finally:
        gone.rename(tmp_path)


def test_every_page_is_fresh(exporter: PrometheusExporter) -> None:
    """Whatever the update interval: the next scrape may be another process's."""
    exporter.start_background_updater(60)
    for number in range(1, 4):
        spans(1)
        page = exporter._pages.serve(openmetrics=False, compress=False, names=())
        assert count(page.decode()) == number
    assert exporter._updater is None


def test_an_inspector_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Any) -> None:
    """Has nothing to do with the processes of this service."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    inspector = Inspector()
    inspector.first_hand = False
    inspector.apply(tell("enter"))
    assert count(PrometheusExporter(inspector).gather(), "tasks_total") == 1
    assert not list(tmp_path.iterdir())


def test_beside_the_applications_own(process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """Its counters of all processes are on the page, and a registry that is given is taken as it is."""
    for number in (1, 2):
        one = process()
        one.do(
            f"import prometheus_client; counter = prometheus_client.Counter('shop_orders', ''); counter.inc({number})"
        )
    assert numbers(exporter.gather())["shop_orders_total"] == 3
    assert exporter.registry is not CollectorRegistry()
    one.kill()
    assert numbers(exporter.gather())["shop_orders_total"] == 3
    given = PrometheusExporter(Inspector(), registry=CollectorRegistry())
    assert "shop_orders_total" not in given.gather()


def test_tasks_are_those_of_this_process(process: Callable[..., Process], exporter: PrometheusExporter) -> None:
    """A full snapshot has them beside the sums."""
    one = process()
    one.do("open = span('open'); open.__enter__()")
    with span("here"):
        snapshot = exporter._pages._source.snapshot()
    assert [task.name for task in snapshot.tasks] == ["here"]
    assert set(snapshot.names) == {"here", "open"}
