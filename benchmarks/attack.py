"""What clients that mean harm cost an application with /metrics: the figures of docs/security.md.

    python benchmarks/attack.py [--seconds 6] [--clients 1000]

An application of 100 names, whose event loop sleeps 5 ms again and again and says how late it came back, is asked by
wrk as fast as that can, and by slowhttptest's slow clients; meanwhile its page is scraped. All on one machine, so the
rows are to be compared with the first one. Needs `wrk` and `slowhttptest` on PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

NAMES = 100
#: Seconds that the event loop asks to sleep.
TICK = 0.005
SCRAPES = 5
HEADINGS = ("", "answers/s", "late, p50", "late, p99", "memory", "threads", "a scrape meanwhile")
SLOW = {"-H": "slow headers", "-B": "slow bodies", "-X": "slow readers"}


class Row(NamedTuple):
    """`late`: ms that sleeps took too long, p50 and p99. `memory`: MB. `threads`: the most. `scrapes`: seconds that
    each took, None for one that got no page. `answers`: of wrk, a second; `refused`: those of them that were no page.
    """

    what: str
    late: tuple[float, float]
    memory: int
    threads: int
    scrapes: list[float | None]
    answers: float | None = None
    refused: int = 0


class Application:
    """`python benchmarks/attack.py --application`. It tells its port, and of the time since it was last asked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--application"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{self._answer()['port']}/metrics"

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def told(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def attacks(seconds: int, clients: int) -> Iterator[Row]:
    """Each attack in its turn, for so many seconds."""
    with Application() as application:
        application.told()
        yield _row(application, "nobody", lambda: time.sleep(seconds), 0)
        for connections, *more in (("1",), ("32",), ("8", "-H", "Accept-Encoding: gzip")):
            command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *more, application.url]
            what = f"wrk, {connections} connection{'s'[: int(connections) > 1]}{', gzip' if more else ''}"
            said: list[str] = []
            row = _row(application, what, lambda run=command, to=said: to.append(_run(run)), 0)  # type: ignore[misc]
            yield row._replace(answers=_number(r"Requests/sec:\s*([\d.]+)", said[0]), refused=_refused(said[0]))
        for flag, what in SLOW.items():
            # All of them within two thirds of the time, and the scrapes after half of it.
            command = ["slowhttptest", flag, "-c", str(clients), "-r", str(3 * clients // (2 * seconds)), "-i", "2"]
            command += ["-l", str(seconds), "-p", "3", "-u", application.url]
            yield _row(application, f"{what}, {clients} clients", lambda run=command: _run(run), seconds / 2)  # type: ignore[misc]


def _row(application: Application, what: str, attack: Callable[[], object], after: float) -> Row:
    """after: seconds after which scrapes begin, or 0 for none."""
    application.told()
    attacker = threading.Thread(target=attack)
    attacker.start()
    took = []
    if after:
        attacker.join(after)
        took = [scrape(application.url) for _ in range(SCRAPES)]
    attacker.join()
    told = application.told()
    return Row(what, (told["p50"], told["p99"]), told["memory"], told["threads"], took)


def scrape(url: str) -> float | None:
    """Seconds, or None where no page came."""
    began = time.monotonic()
    with suppress(OSError), urllib.request.urlopen(url, timeout=20) as response:
        if b"async_inspect_tasks_total" in response.read():
            return time.monotonic() - began
    return None


def _run(command: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:  # slowhttptest may write where it is
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout[-500:]}")
    return done.stdout


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def _refused(said: str) -> int:
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    return int(_number(r"Non-2xx or 3xx responses: (\d+)", said)) + sum(map(int, errors.groups() if errors else ()))


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    good = [took for took in row.scrapes if took is not None]
    lost = len(row.scrapes) - len(good)
    scrapes = f"{min(good):.3f} to {max(good):.3f} s" if good else "–"
    answers = "–" if row.answers is None else f"{row.answers:.0f}"
    return (
        row.what,
        answers + (f", {row.refused} without a page" if row.refused else ""),
        *(f"{late:.1f} ms" for late in row.late),
        f"{row.memory} MB",
        str(row.threads),
        scrapes + (f", {lost} of {len(row.scrapes)} let go" if lost else ""),
    )


# -- the application -------------------------------------------------------------------------------------------------


async def _serve() -> None:
    from asyncinspect_logging import AsyncInspectHandler, Inspector, install, span
    from asyncinspect_logging.exporters.prometheus import PrometheusExporter
    from asyncinspect_logging.spans import LOGGER

    inspector = Inspector()
    LOGGER.addHandler(AsyncInspectHandler(inspector))
    late: list[float] = []
    threads = 0

    def tell() -> None:
        nonlocal threads
        for _ in sys.stdin:
            found, most = sorted(late) or [0.0], threads
            late.clear()
            threads = 0
            p99 = found[int(len(found) * 0.99)]
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            told = {"p50": statistics.median(found) * 1e3, "p99": p99 * 1e3, "memory": pages * 4096 // 10**6}
            print(json.dumps({**told, "threads": most}), flush=True)

    for number in range(NAMES * 3):
        with span(f"name {number % NAMES}"):
            pass
    with PrometheusExporter(inspector).start_server("127.0.0.1:0") as server, install():
        print(json.dumps({"port": server.port}), flush=True)
        threading.Thread(target=tell, daemon=True).start()
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK)
            late.append(time.monotonic() - began - TICK)
            threads = max(threads, threading.active_count())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--application", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.application:
        asyncio.run(_serve())
    for program in ("wrk", "slowhttptest"):
        if shutil.which(program) is None:
            raise SystemExit(f"there is no {program!r} on PATH; `apt-get install {program}`, or `make setup`")
    print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}")
    for row in attacks(given.seconds, given.clients):
        print(f"| {' | '.join(cells(row))} |", flush=True)


if __name__ == "__main__":
    main()
