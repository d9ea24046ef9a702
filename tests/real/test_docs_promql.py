"""The queries of the documentation, asked of a real Prometheus that scrapes a small real service."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.real

DOCS = Path(__file__).resolve().parents[2] / "docs"

#: Under a driver, until standard input closes: tasks that complete, fail, are cancelled, hold the loop, are polled very
#: often, write log lines, and stay; and in a thread, spans that nobody drives. Few are kept, so that some are let go.
SERVICE = """
import asyncio, contextlib, logging, sys, threading, time
from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, run, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

async def order(number):
    logging.info("order %d", number)
    await asyncio.sleep(0.002)
    if number % 4 == 0:
        raise ValueError(number)
    if number % 4 == 1:
        await asyncio.sleep(60)

async def report():
    await asyncio.sleep(0)
    time.sleep(0.015)

async def restless():
    for _ in range(1200):
        await asyncio.sleep(0)

async def subscription():
    await asyncio.Event().wait()

async def main():
    ends = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    subscriptions = [asyncio.create_task(subscription()) for _ in range(3)]
    number = 0
    while not ends.done():
        orders = [asyncio.create_task(order(number + i)) for i in range(4)]
        number += 4
        await asyncio.wait([*orders, asyncio.create_task(report()), asyncio.create_task(restless())], timeout=0.05)
        for task in orders:
            task.cancel()
        await asyncio.gather(*orders, return_exceptions=True)
        with span("round"):
            await asyncio.sleep(0.05)

inspector = Inspector(Config(max_tasks=20, max_events=20))
logging.basicConfig(level="INFO", handlers=[AsyncInspectHandler(inspector)])
with PrometheusExporter(inspector, update_interval=0).start_server(0) as server:
    print(server.port, flush=True)
    run(main())
"""


#: What the queries that are known from elsewhere ask for: a task that takes more than 10 s (told by somebody else),
#: more than 1000 live tasks, one with more than 1000 polls, failures, and, when told to on stdin, a deadlock.
BUSY_SERVICE = """
import asyncio, itertools, logging, sys, time
from asyncinspect_logging import AsyncInspectHandler, Inspector, run
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

inspector = Inspector()
logging.basicConfig(level="INFO", handlers=[AsyncInspectHandler(inspector)])
logging.getLogger("asyncinspect.findings").setLevel("CRITICAL")
number = itertools.count(1)

def told():
    span, ns = next(number), 10**9
    record = {"v": 1, "pid": 1, "id": f"{(7 << 32) + span:016x}", "t": span * ns, "wall": time.time_ns()}
    begin = {"kind": "enter", "seq": 2 * span - 1, "trace": f"{span:032x}", "thread": 1, "fields": {}}
    end = {"kind": "exit", "seq": 2 * span, "t": (span + 12) * ns, "outcome": "completed", "duration": 12 * ns}
    inspector.apply({**record, "name": "slow", **begin})
    inspector.apply({**record, "name": "slow", **end})

async def patient():
    await asyncio.Event().wait()

async def restless():
    for _ in range(1200):
        await asyncio.sleep(0)

async def order():
    raise ValueError

async def hold(first, second, both):
    async with first:
        await both.wait()
        async with second:
            pass

async def main():
    ends = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    tasks = [asyncio.create_task(patient()) for _ in range(1100)]
    while True:
        told()
        await asyncio.wait([asyncio.create_task(restless()), asyncio.create_task(order())])
        await asyncio.sleep(0.3)
        if ends.done() and len(tasks) == 1100:
            one, other, both = asyncio.Lock(), asyncio.Lock(), asyncio.Barrier(2)
            tasks += [asyncio.create_task(hold(one, other, both)), asyncio.create_task(hold(other, one, both))]

with PrometheusExporter(inspector, update_interval=0).start_server(0) as server:
    print(server.port, flush=True)
    run(main(), sync=True)
"""


class Query(NamedTuple):
    """A query, where it stands, the comment above it, and whether that says that it is empty."""

    place: str
    comment: str
    promql: str

    @property
    def is_empty(self) -> bool:
        return self.comment.startswith("Empty")

    def __str__(self) -> str:
        return self.place


def queries_of(page: Path) -> Iterator[Query]:
    """The queries of a page: in blocks of promql, an empty line between two, each with a comment above it or none."""
    text = page.read_text("utf-8")
    for block in re.finditer(r"^```promql\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        at = block.start(1)
        for part in re.split(r"\n\n", block[1]):
            lines = part.strip().splitlines()
            comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
            promql = "\n".join(line for line in lines if not line.startswith("#"))
            yield Query(f"{page.name}:{text.count(chr(10), 0, at) + 1}", comment, promql)
            at += len(part) + 2


class Known(NamedTuple):
    """A query that is known from elsewhere: as it is documented there, what it gives, and what is to be written."""

    documented: str
    here: str
    instead: str

    def __str__(self) -> str:
        return re.sub(r"\W+", "-", self.documented)[:60]


def known_queries() -> Iterator[Known]:
    """The rows of the table."""
    text = (DOCS / "metrics.md").read_text("utf-8")
    table = text.partition("\n| documented | here | write instead |\n")[2].partition("\n\n")[0]
    for row in table.splitlines()[1:]:
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        documented, here, instead = cells
        yield Known(documented.strip("`"), here, instead.strip("`"))


KNOWN = list(known_queries())
QUERIES = [query for page in sorted(DOCS.glob("*.md")) for query in queries_of(page)]


@contextlib.contextmanager
def scraped(module: ModuleType, folder: Path, program: str) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """A Prometheus of its own, so that an answer can only come from this service, after its first scrape of it."""
    with (
        module.Prometheus(folder) as prometheus,
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as service,
    ):
        try:
            assert service.stdout is not None
            prometheus.add_target("shop", f"127.0.0.1:{int(service.stdout.readline())}")
            prometheus.wait_for_scrape("shop", after=0)
            yield prometheus, service
        finally:
            service.kill()


@pytest.fixture(scope="module")
def server(needs_prometheus: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prometheus after some ten scrapes of the service."""
    with scraped(needs_prometheus, tmp_path_factory.mktemp("prometheus"), SERVICE) as (prometheus, service):
        prometheus.wait_for_scrape("shop", after=time.time() + 8)
        assert service.poll() is None
        yield prometheus


@pytest.fixture(scope="module")
def busy_server(needs_prometheus: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prometheus that has scraped a service which has all that the known queries ask for."""
    with scraped(needs_prometheus, tmp_path_factory.mktemp("prometheus"), BUSY_SERVICE) as (prometheus, service):
        assert service.stdin is not None
        service.stdin.write("\n")
        service.stdin.flush()
        deadline = time.monotonic() + 60
        while prometheus.value("async_inspect_deadlocks_total") != 1:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        prometheus.wait_for_scrape("shop", after=time.time() + 3)
        assert service.poll() is None
        yield prometheus


def test_there_are_known_queries() -> None:
    """Every row is read; each says that it works, or that it is empty and what to write instead."""
    assert len(KNOWN) == 23
    for known in KNOWN:
        assert known.documented.count("async_inspect_") >= 1
        assert known.here.startswith(("works as written", "empty: "))
        assert known.instead or known.here.startswith("works")


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_a_known_query_gives_what_is_said_of_it(busy_server: Any, known: Known) -> None:
    """As documented elsewhere, data or none; and data as it is to be written here."""
    documented, instead = known.documented, known.instead
    if "above 1 GB" in known.here:
        # The service does not keep that much: nothing above the bound, and data above another one.
        assert not busy_server.query(documented)
        documented, instead = (query.replace("1e9", "1e3") for query in (documented, instead))
    found = busy_server.query(documented)
    assert bool(found) == known.here.startswith("works as written"), found
    if instead:
        assert busy_server.query(instead)


def test_there_are_queries() -> None:
    """Every block is found and cut into queries, none of them without text."""
    assert len(QUERIES) > 30
    assert all(query.promql for query in QUERIES)
    assert 5 <= sum(query.is_empty for query in QUERIES) < len(QUERIES) / 3


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_a_documented_query_returns_what_it_says(server: Any, query: Query) -> None:
    """Prometheus parses it, and it returns data, or none if its comment says that it is empty."""
    found = server.query(query.promql)
    assert (not found) == query.is_empty, found


def test_the_service_has_tasks_of_every_kind(server: Any) -> None:
    """The queries are asked of a service with live, completed, failed and cancelled tasks, and nothing is lost."""
    for outcome in ("completed", "failed", "cancelled"):
        assert server.value(f'sum(async_inspect_tasks_{outcome}_total{{name="order"}})') > 10
    assert server.value("async_inspect_blocked_tasks") >= 3
    assert server.value('sum(async_inspect_dropped_total{reason!~"max_tasks|max_events"})') == 0


def test_the_two_ways_to_the_share_of_blocked_tasks_agree(server: Any) -> None:
    """What is written in place of the query without an answer is a percentage, and is the same in both spellings."""
    beginnings = ("Percentage of the live tasks that wait, over", "The same for each process")
    everywhere, each = (query.promql for query in QUERIES if query.comment.startswith(beginnings))
    assert 0 < server.value(everywhere) <= 100
    # In one query, and so of one moment.
    assert server.value(f"vector(scalar({each}) - scalar({everywhere}))") == pytest.approx(0, abs=1e-9)


def test_polls_beyond_a_bucket_are_those_of_the_restless_task(server: Any) -> None:
    """What is written in place of `poll_count > 1000` names the one task with more than 1000 polls, and no other."""
    for query in QUERIES:
        if "more than 1000 polls" in query.comment:
            assert [labels["name"] for labels, _ in server.query(query.promql)] == ["restless"]


def test_promtool_accepts_the_scrape_configuration(promtool: str, tmp_path: Path) -> None:
    """Each block of YAML in the documentation that is a configuration of Prometheus is one that it takes."""
    blocks = [
        block
        for page in DOCS.glob("*.md")
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ]
    blocks = [
        block for block in blocks if re.search(r"^(scrape_configs|rule_files|remote_write):", block, re.MULTILINE)
    ]
    # Debian's Prometheus is built without this one.
    blocks = [block for block in blocks if "kubernetes_sd_configs" not in block]
    assert len(blocks) >= 2
    for block in blocks:
        file = tmp_path / "prometheus.yml"
        file.write_text(block, "utf-8")
        done = subprocess.run(
            [promtool, "check", "config", str(file)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
