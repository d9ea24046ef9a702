"""From a log file alone: where the time went, who waited for whom, and what was left undone.

    python examples/analyse_log.py             a profile, the critical path, the graph, and flaws
    python examples/analyse_log.py --mermaid   the graph alone, to be pasted into a Markdown page

Needs `pip install "asyncinspect-logging[replay]"`. The example first writes the log: four requests take one connection
in turn, with step records (level TRACE), which say who waited for what.
"""

from __future__ import annotations

import asyncio
import json
import logging.config
import sys
import tempfile
from pathlib import Path

from asyncinspect_logging import install, span
from asyncinspect_logging.analysis.graph import graph
from asyncinspect_logging.analysis.lifecycle import check, check_payloads
from asyncinspect_logging.analysis.profile import profile
from asyncinspect_logging.analysis.replay import LogTasks
from asyncinspect_logging.detect.sync import Lock
from asyncinspect_logging.json_logging import json_logging


async def query(connection: Lock, number: int) -> None:
    with span("query", number=number):
        async with connection:
            await asyncio.sleep(0.02)


async def request(connection: Lock, number: int) -> None:
    with span("request", number=number):
        await query(connection, number)
        await asyncio.sleep(0.005)


async def refresh() -> None:
    await asyncio.sleep(0.05)


async def serve() -> None:
    connection = Lock(name="connection")
    with span("serve"):
        await asyncio.gather(*(request(connection, number) for number in range(4)))
        # Nobody awaits it, and so it outlives what began it.
        forgotten = asyncio.create_task(refresh())
    await asyncio.wait([forgotten])


async def main() -> None:
    with install():
        await asyncio.create_task(serve())


def analyse(log: str) -> None:
    # Each of these reads the log once, and takes no more memory for a long one.
    print(profile(LogTasks(log)).render(width=100))
    print(graph(LogTasks(log)).to_text())
    with open(log, encoding="utf-8") as lines:
        payloads = (json.loads(line)["asyncinspect"] for line in lines)
        flaws = check(LogTasks(log)) + check_payloads(payloads)
    for flaw in flaws:
        print(f"{flaw.kind}: {flaw.message}. {flaw.advice}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        log = str(Path(folder) / "service.jsonl")
        logging.config.dictConfig(json_logging(log, level="TRACE"))
        asyncio.run(main())
        logging.shutdown()
        if "--mermaid" in sys.argv[1:]:
            print(graph(LogTasks(log)).to_mermaid())
        else:
            analyse(log)
