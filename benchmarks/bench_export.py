"""What an export costs: against a bare loop of `json.dumps` over the same dicts, and in memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from measure import Scale, Times, ratios

from asyncinspect_logging import Inspector, Snapshot, TaskState
from asyncinspect_logging.exporters.chrome_trace import ChromeTraceExporter
from asyncinspect_logging.exporters.csv_file import CsvExporter
from asyncinspect_logging.exporters.flame import FlameExporter
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.snapshot import Event, TaskView

__all__ = ["export", "pictures", "tables"]

EXPORTERS: dict[str, Any] = {
    "json": JsonExporter,
    "csv": CsvExporter,
    "trace": ChromeTraceExporter,
    "flame": FlameExporter,
}


def generated(count: int) -> Iterator[TaskView]:
    """Requests with a query in each, within a program that goes on to the end, in the order of their ends."""
    for number in range(count):
        request, at, inner = number // 2 * 2 + 3, 1_700_000_000 + number // 2 * 0.001, number % 2 == 0
        yield TaskView(
            id=f"{request + inner:016x}",
            parent_id=f"{request:016x}" if inner else f"{1:016x}",
            trace_id=f"{1:032x}",
            name="query" if inner else "GET /users/{id}",
            state=TaskState.COMPLETED,
            outcome="completed",
            fields=MappingProxyType({"user_id": number, "path": f"/users/{number}"}),
            age=1.25,
            duration=0.000412 if inner else 0.000871,
            polls=3,
            wakes=2,
            self_wakes=0,
            busy=0.000112 if inner else 0.000301,
            idle=0.0003 if inner else 0.00057,
            scheduled=0.000012,
            max_poll=0.0001,
            started_at=at,
            task="serve",
            thread=140_000_000_000_000,
            at="app.py:41",
            error=None,
            waiting_on=None,
            waiting_since=None,
            await_chain=(),
            links=(),
            parent_closed=False,
            events=(Event(at, "spawn", ""), Event(at, "enter", ""), Event(at + 0.0005, "exit", "completed")),
        )


class Stream:
    """So many tasks that are nowhere all at once."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[TaskView]:
        return generated(self._count)

    def rest(self) -> Snapshot:
        return Inspector().snapshot()


def export(scale: Scale) -> dict[str, float]:
    """Each export to a file, and reading one, as a ratio to a loop of `json.dumps`; tasks per second of ours."""
    count = scale.loops
    tasks = tuple(generated(count))
    snapshot = Inspector().snapshot()._replace(tasks=tasks)
    dicts = [{**task._asdict(), "fields": dict(task.fields)} for task in tasks]
    with tempfile.TemporaryDirectory() as folder:

        def dumps() -> None:
            for entry in dicts:
                json.dumps(entry)

        def to_file(exporter: Any, name: str) -> Callable[[], None]:
            return lambda: exporter.export_to_file(snapshot, Path(folder, name))

        candidates = {"dumps": dumps, **{name: to_file(exporter, name) for name, exporter in EXPORTERS.items()}}
        # After the exports, which make the file that it reads.
        candidates["read"] = lambda: JsonExporter.read(Path(folder, "json"))
        times: Times = {name: [] for name in candidates}
        for _ in range(max(2, scale.rounds // 3)):
            for name, candidate in candidates.items():
                started = time.process_time()
                candidate()
                times[name].append(time.process_time() - started)
    return {f"export.{name}": ratio for name, ratio in ratios(times, "dumps").items()}


def tables(scale: Scale) -> dict[str, float]:
    return _memory(scale, ("json", "csv"))


def pictures(scale: Scale) -> dict[str, float]:
    return _memory(scale, ("trace", "flame"))


def _memory(scale: Scale, names: Sequence[str]) -> dict[str, float]:
    """Peak memory in MB of a process that exports a stream of a million tasks, and what that is more than for 40,000.

    The first ones fill what an exporter may hold: 10,000 tasks for a trace, 20,000 names for a flame graph.
    """
    many = scale.live_tasks * 10
    figures = {}
    for name in names:
        command = [sys.executable, __file__, name, str(many // 25), str(many)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        few, all_ = map(float, done.stdout.split())
        figures[f"export.{name}.peak_mb"] = all_
        figures[f"export.{name}.more_mb"] = all_ - few
    return figures


def main(name: str, *counts: str) -> None:
    """Export so many tasks, and then so many, each time printing the most memory that was in use until then (MB)."""
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            EXPORTERS[name].export_to_file(Stream(int(count)), Path(folder, "out"))
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
