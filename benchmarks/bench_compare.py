"""How often a comparison of two runs is right on this machine, as noisy as it is.

A small program is run many times in a process of its own, half of the times with its step `hash` made 20 % slower, in
turns. Each run writes a JSON log, and pairs of logs are compared, no run twice; and several runs with several, chosen
at random for each try. Figures, in percent of the tries, by runs a side and condition: `false`, where the same program
failed, and `missed`, where the slower `hash` was not found.

    python benchmarks/bench_compare.py --runs 60      runs of each kind; prints the figures for several conditions
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import itertools
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from measure import Scale

from asyncinspect_logging import Snapshot, span
from asyncinspect_logging.analysis.compare import Comparison, compare
from asyncinspect_logging.analysis.replay import LogTasks
from asyncinspect_logging.exporters.combine import combine
from asyncinspect_logging.snapshot import TaskView

__all__ = ["comparisons"]

#: What is judged: all names, and the one that is made slower.
CONDITIONS = {"p50": "p50 > 1x", "p1": "p1 > 1x", "p1_of_it": "p1(hash) > 1x"}
#: Runs on each side, where there are several.
REPEATS = (4, 8)
_ROUNDS = 1500
#: So much more work makes the step, of which the records of its beginning are a part, take 20 % longer.
_SLOWER = 1.23
_BODY = json.dumps([{"id": n, "name": f"user {n}", "tags": ["a", "b", str(n)]} for n in range(100)])
_NAME = re.compile(r"^user (\d+)$")


async def _request(rounds: int) -> None:
    with span("request"):
        with span("parse"):
            users = json.loads(_BODY)
        with span("validate"):
            assert all(_NAME.match(user["name"]) for user in users)
        with span("query"):
            await asyncio.sleep(0.003)
        with span("hash"):
            hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", rounds)
        with span("render"):
            page = "".join(f"<li id={user['id']}>{user['name']}</li>" for user in users)
        with span("store"):
            await asyncio.sleep(0.002)
        with span("compress"):
            data = zlib.compress(page.encode())
        with span("encode"):
            base64.b85encode(data)


async def _worker(rounds: int, end: float) -> None:
    while time.monotonic() < end:
        await _request(rounds)


async def _program(rounds: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    await asyncio.gather(*(_worker(rounds, end) for _ in range(3)))


def _run_program(log: str, rounds: int, seconds: float) -> None:
    from pythonjsonlogger.json import JsonFormatter

    file = logging.FileHandler(log)
    file.setFormatter(JsonFormatter())
    logging.basicConfig(level="INFO", handlers=[file])
    logging.getLogger("asyncinspect").setLevel("DEBUG")
    asyncio.run(_program(rounds, seconds))


def _logged(folder: Path, number: int, rounds: int, seconds: float) -> Path:
    log = folder / f"{number}-{rounds}.jsonl"
    command = [sys.executable, __file__, "--program", str(log), str(rounds), str(seconds)]
    subprocess.run(command, check=True, timeout=60)
    return log


class _Logs:
    """Several logs as one stream of tasks."""

    def __init__(self, parts: list[tuple[list[TaskView], Snapshot]]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[TaskView]:
        return itertools.chain.from_iterable(tasks for tasks, _ in self._parts)

    def rest(self) -> Snapshot:
        return combine([rest for _, rest in self._parts])


@cache
def _part(log: Path) -> tuple[list[TaskView], Snapshot]:
    tasks = LogTasks(log)
    return list(tasks), tasks.rest()


def _read(*logs: Path) -> _Logs:
    return _Logs([_part(log) for log in logs])


def _all_runs(folder: Path, runs: int, seconds: float) -> tuple[list[Path], list[Path]]:
    """The logs of the program, and of the slower one."""
    source = random.Random(1)
    kinds: tuple[list[Path], list[Path]] = ([], [])
    for number in range(runs):
        order = [0, 1]
        source.shuffle(order)
        for kind in order:
            kinds[kind].append(_logged(folder, number, round(_ROUNDS * (_SLOWER if kind else 1)), seconds))
    return kinds


def _single(kinds: tuple[list[Path], list[Path]]) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons of the same program, and of the program with the slower one."""
    source = random.Random(1)
    kinds = (source.sample(kinds[0], len(kinds[0])), source.sample(kinds[1], len(kinds[1])))
    same = [compare(_read(one), _read(other)) for kind in kinds for one, other in _neighbours(kind)]
    return same, [compare(_read(one), _read(other)) for one, other in zip(*kinds, strict=True)]


def _repeated(
    kinds: tuple[list[Path], list[Path]], repeats: int, tries: int
) -> tuple[list[Comparison], list[Comparison]]:
    """The same with so many runs on each side, chosen at random out of all for each try."""
    source = random.Random(2)
    same, slower = [], []
    for _ in range(tries):
        kind = source.choice(kinds)
        chosen = source.sample(kind, 2 * repeats)
        same.append(compare(_read(*chosen[:repeats]), _read(*chosen[repeats:])))
        slower.append(compare(*(_read(*source.sample(kind, repeats)) for kind in kinds)))
    return same, slower


def _neighbours(logs: list[Path]) -> Iterator[tuple[Path, Path]]:
    return zip(logs[::2], logs[1::2], strict=False)


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def _figures(runs: int, seconds: float, tries: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        kinds = _all_runs(Path(folder), runs, seconds)
        ways = {1: _single(kinds)}
        ways |= {repeats: _repeated(kinds, repeats, tries) for repeats in REPEATS if runs >= 2 * repeats}
    figures = {"compare.runs": 2.0 * runs}
    for repeats, (same, slower) in ways.items():
        figures[f"compare.{repeats}.tries"] = float(len(same))
        for which, condition in CONDITIONS.items():
            false = sum(bool(found.failures([condition])) for found in same)
            missed = sum("hash" not in {each.name for each in found.failures([condition])} for found in slower)
            figures[f"compare.{repeats}.{which}.false"] = _percent(false, len(same))
            figures[f"compare.{repeats}.{which}.missed"] = _percent(missed, len(slower))
    return figures


def comparisons(scale: Scale) -> dict[str, float]:
    """False alarms, and slower steps that were missed, in percent of the tries."""
    quick = scale.rounds < 10
    # So long that each run has the 500 spans of a name without which p1 is not judged.
    return _figures(2, 0.1, 2) if quick else _figures(16, 3.0, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often a comparison of two runs is right on this machine.")
    parser.add_argument("--runs", type=int, default=50, help="runs of each kind")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each of them takes")
    parser.add_argument("--tries", type=int, default=100, help="comparisons of several runs with several")
    parser.add_argument("--program", nargs=3, metavar=("LOG", "ROUNDS", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        log, rounds, seconds = options.program
        _run_program(log, int(rounds), float(seconds))
        return
    for name, value in _figures(options.runs, options.seconds, options.tries).items():
        print(f"{name}: {value:.1f}")


if __name__ == "__main__":
    main()
