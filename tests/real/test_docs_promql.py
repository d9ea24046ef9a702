"""The queries of the documentation, asked of a real Prometheus that scrapes a small real service."""

from __future__ import annotations

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


QUERIES = [query for page in sorted(DOCS.glob("*.md")) for query in queries_of(page)]


@pytest.fixture(scope="module")
def server(needs_prometheus: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prometheus of its own, so that an answer can only come from this service, after some ten scrapes of it."""
    with (
        needs_prometheus.Prometheus(tmp_path_factory.mktemp("prometheus")) as prometheus,
        subprocess.Popen(
            [sys.executable, "-c", SERVICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as service,
    ):
        try:
            assert service.stdout is not None
            prometheus.add_target("shop", f"127.0.0.1:{int(service.stdout.readline())}")
            prometheus.wait_for_scrape("shop", after=0)
            prometheus.wait_for_scrape("shop", after=time.time() + 8)
            assert service.poll() is None
            yield prometheus
        finally:
            service.kill()


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
    """Each block of YAML in the documentation is a configuration that Prometheus takes."""
    blocks = [
        block
        for page in DOCS.glob("*.md")
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ]
    assert blocks
    for block in blocks:
        file = tmp_path / "prometheus.yml"
        file.write_text(block, "utf-8")
        done = subprocess.run(
            [promtool, "check", "config", str(file)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
