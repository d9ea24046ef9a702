"""What it costs to read a log back: against a bare loop of `orjson.loads` over the lines of the same file, by turns."""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson
from measure import Scale, per_record, ratios
from pythonjsonlogger.json import JsonFormatter

from asyncinspect_logging import install, span
from asyncinspect_logging.analysis.lifecycle import check
from asyncinspect_logging.analysis.log_lifecycle import LogRecords
from asyncinspect_logging.analysis.profile import profile
from asyncinspect_logging.analysis.replay import LogTasks, Replay
from asyncinspect_logging.records import TRACE

__all__ = ["replay"]


async def _service(tasks: int) -> None:
    async def job(number: int) -> None:
        with span("fetch_user", user_id=number, path=f"/users/{number}"):
            await asyncio.sleep(0)

    with install():
        for first in range(0, tasks, 50):
            await asyncio.gather(*(job(number) for number in range(first, min(tasks, first + 50))))


def write_log(path: Path, tasks: int, level: int) -> None:
    """The log of a small service, as python-json-logger writes it."""
    logger = logging.getLogger("asyncinspect")
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp=True))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        asyncio.run(_service(tasks))
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def _bare(path: Path) -> None:
    with path.open("rb") as lines:
        for line in lines:
            orjson.loads(line)


def _tasks(path: Path) -> None:
    for _ in LogTasks(path):
        pass


def _check(path: Path) -> None:
    tasks = LogTasks(path)
    records = LogRecords(tasks)
    records.flaws(check(tasks))


def replay(scale: Scale) -> dict[str, float]:
    """Ratios to the bare loop, and µs for a record, of a log at level DEBUG and of one at level TRACE; of what `stats`
    and `check` do with the log, ratios to its replay.
    """
    found: dict[str, float] = {}
    candidates: dict[str, Callable[[Path], object]] = {
        "bare": _bare,
        "replay": lambda path: Replay(path).run(),
        "tasks": _tasks,
        "stats": lambda path: profile(LogTasks(path)),
        "check": _check,
    }
    with tempfile.TemporaryDirectory() as folder:
        for key, us, level in (
            ("replay.debug", "replay.debug_us", logging.DEBUG),
            ("replay.trace", "replay.trace_us", TRACE),
        ):
            path = Path(folder) / key
            write_log(path, scale.loops // (1 if level == logging.DEBUG else 3), level)
            times = per_record(candidates, path, scale)
            of_bare = ratios(times, "bare")
            found[key], found[f"{key}.tasks"] = of_bare["replay"], of_bare["tasks"]
            of_replay = ratios(times, "replay")
            for name, name_us in (("stats", "stats_us"), ("check", "check_us")):
                found[f"{key}.{name}"] = of_replay[name]
                found[f"{key}.{name_us}"] = statistics.median(times[name]) * 1e6
            found[us] = statistics.median(times["replay"]) * 1e6
            found[f"{key}.bare_us"] = statistics.median(times["bare"]) * 1e6
    return found
