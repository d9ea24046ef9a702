"""How the files in this folder were made: `python tests/golden/make.py VERSION` writes logs of a version of the
protocol, where there are none yet, and beside each log the snapshot that it must give.

A log is never made again: what was written by an older release is to be read for ever. Where the snapshot changes, for
there is something more in it, `python tests/golden/make.py --snapshots` writes those alone; look at the difference.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import logging
import re
import sys
from pathlib import Path
from types import MappingProxyType

from pythonjsonlogger.json import JsonFormatter

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, annotate, install, process, span
from asyncinspect_logging.analysis.replay import replay
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.records import TRACE
from asyncinspect_logging.snapshot import Snapshot
from asyncinspect_logging.testing import FakeClock

HERE = Path(__file__).parent
SUFFIX = ".snapshot.json"


def logs() -> list[Path]:
    return [path for path in sorted(HERE.glob("v*.jsonl*")) if not path.name.endswith(SUFFIX)]


def snapshot_of(path: Path) -> Snapshot:
    """Without the memory that it takes, which is another one on each Python."""
    snapshot = replay(path).snapshot()
    return snapshot._replace(memory=MappingProxyType(dict.fromkeys(snapshot.memory, 0)))


async def service(clock: FakeClock) -> None:
    log = logging.getLogger("shop")

    async def query(table: str) -> None:
        with span("query", table=table) as current:
            await asyncio.sleep(0)
            clock.advance(0.003)
            current.record(rows=3, größe=1.5)

    async def request(number: int) -> None:
        with span(f"GET /{'users' if number % 2 else 'orders'}", number=number, password="hunter2"):
            clock.advance(0.02)
            await query("users")
            log.info("got user %d", number)
            if number == 3:
                annotate("about to fail")
                raise LookupError('no such "user"\n💡')
            if number == 4:
                await asyncio.sleep(1000)
            clock.advance(0.3)

    async def numbers() -> object:
        with span("numbers"):
            yield 1
            yield 2

    with install():
        tasks = [asyncio.create_task(request(number)) for number in range(1, 6)]
        for _ in range(5):
            await asyncio.sleep(0)
        tasks[3].cancel()
        made = numbers()
        async for _ in made:  # type: ignore[attr-defined]
            break
        await made.aclose()  # type: ignore[attr-defined]
        await asyncio.gather(*tasks, return_exceptions=True)
        log.warning("done")


def log_of(level: int, *, last: bool = True) -> list[str]:
    """The lines of a process of its own. Without `last`, it is killed before it is done."""
    process._begin()
    text = io.StringIO()
    handlers = [logging.StreamHandler(text), AsyncInspectHandler(Inspector(Config(slow_poll=1e6)))]
    handlers[0].setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s %(created)f"))
    root, logger = logging.getLogger(), logging.getLogger("asyncinspect")
    root.setLevel(logging.INFO)
    logger.setLevel(level)
    for handler in handlers:
        root.addHandler(handler)
    with FakeClock() as clock:
        asyncio.run(service(clock))
    for handler in handlers:
        root.removeHandler(handler)
    # Where this machine keeps its files is nobody's business.
    lines = re.sub(r'("at": ")/[^"]*/([^/"]+:\d+")', r"\1/srv/shop/\2", text.getvalue()).splitlines(keepends=True)
    return lines if last else lines[: len(lines) * 2 // 3]


def make(version: int) -> None:
    texts = {
        "debug.jsonl": log_of(logging.DEBUG),
        "trace.jsonl.gz": log_of(TRACE),
        # Killed in the middle of a line; others' lines, lines that come twice or not at all, and a second process.
        "mixed.jsonl": [*log_of(TRACE, last=False), '{"message": "cut of', "\n", "GET / 200\n", *log_of(logging.DEBUG)],
    }
    mixed = texts["mixed.jsonl"]
    del mixed[20]
    mixed.insert(30, mixed[10])
    for name, lines in texts.items():
        path = HERE / f"v{version}-{name}"
        if not path.exists():
            data = "".join(lines).encode()
            path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)


if __name__ == "__main__":
    if sys.argv[1:] != ["--snapshots"]:
        make(int(sys.argv[1]))
    for log in logs():
        JsonExporter.export_to_file(snapshot_of(log), log.with_name(log.name + SUFFIX))
