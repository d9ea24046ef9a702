"""What a program did, written to files that other programs open.

    python examples/export_trace.py [FOLDER]

It writes trace.json, for https://ui.perfetto.dev and chrome://tracing, flame.json, for https://www.speedscope.app,
tasks.csv, for a spreadsheet, and snapshot.json, which reads back to the snapshot that it was made from.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from asyncinspect_logging import AsyncInspectHandler, Inspector, run, span
from asyncinspect_logging.exporters.chrome_trace import ChromeTraceExporter
from asyncinspect_logging.exporters.csv_file import CsvExporter
from asyncinspect_logging.exporters.flame import FlameExporter
from asyncinspect_logging.exporters.json_file import JsonExporter


async def fetch(page: int) -> int:
    with span("query", page=page):
        await asyncio.sleep(0.005)
    with span("parse"):
        return sum(number * number for number in range(20_000))


async def main() -> None:
    async with asyncio.TaskGroup() as group:
        for page in range(4):
            group.create_task(fetch(page))


def export(inspector: Inspector, folder: Path) -> None:
    snapshot = inspector.snapshot()
    ChromeTraceExporter.export_to_file(snapshot, folder / "trace.json")
    FlameExporter.export_to_file(snapshot, folder / "flame.json")
    CsvExporter.export_to_file(snapshot, folder / "tasks.csv")
    JsonExporter.export_to_file(snapshot, folder / "snapshot.json")
    print("snapshot.json reads back equal:", JsonExporter.read(folder / "snapshot.json") == snapshot)
    for path in sorted(folder.iterdir()):
        print(path.name)
    print("stacks that were busy:")
    for line in FlameExporter.export_to_string(snapshot, form="collapsed").splitlines():
        print(" ", line.rpartition(" ")[0])


if __name__ == "__main__":
    inspector = Inspector()
    logging.basicConfig(handlers=[AsyncInspectHandler(inspector)])
    run(main())
    if len(sys.argv) > 1:
        export(inspector, Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            export(inspector, Path(folder))
