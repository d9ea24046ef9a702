"""Edges of two runs: of all kinds from finished logs, and unknown where the tasks are not there to tell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made import write_log

from asyncinspect_logging import Config, Inspector, Snapshot
from asyncinspect_logging.analysis.compare import compare
from asyncinspect_logging.analysis.loading import load
from asyncinspect_logging.analysis.pages import read_page
from asyncinspect_logging.analysis.replay import LogTasks, replay
from asyncinspect_logging.cli.commands import commands
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.snapshot import Finding

Tell = Callable[..., dict[str, Any]]


#: A process of its own, whose records are numbered from 1: path, level, and whether there is more to be found.
PROGRAM = """
import asyncio, logging.config, sys
from asyncinspect_logging import install, json_logging
from asyncinspect_logging.detect.sync import Lock, Queue

async def child(lock, queue):
    await asyncio.sleep(0.001)
    if more:
        async with lock:
            await asyncio.sleep(0.001)
        await queue.get()

async def parent():
    # Nobody gave the first lock a name: such are one, whatever their ids.
    async with Lock():
        await asyncio.sleep(0)
    queue = Queue(name="jobs")
    task = asyncio.create_task(child(Lock(name="db"), queue))
    if more:
        asyncio.get_running_loop().call_later(0.01, queue.put_nowait, 1)
        await task
    else:
        done = asyncio.Event()
        task.add_done_callback(lambda task: done.set())
        await done.wait()

async def main():
    with install(sync=True):
        await asyncio.gather(asyncio.create_task(parent()))

path, level, more = sys.argv[1], sys.argv[2], sys.argv[3] == "1"
logging.config.dictConfig(json_logging(path, level=level))
asyncio.run(main())
"""


def _log(path: Path, level: str, more: int) -> Path:
    subprocess.run([sys.executable, "-c", PROGRAM, str(path), level, str(more)], check=True, timeout=60)
    return path


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("logs")
    return {
        f"{level} {more}": _log(folder / f"{level}-{more}.jsonl", level, more)
        for level in ("DEBUG", "TRACE")
        for more in (0, 1)
    }


def _compared(logs: dict[str, Path], before: str, after: str) -> Any:
    return compare(LogTasks(logs[before]), LogTasks(logs[after]))


def test_new_edges_of_all_kinds_in_finished_logs(logs: dict[str, Path]) -> None:
    """Awaited, held and sent, too, where both logs are of level TRACE."""
    found = _compared(logs, "TRACE 0", "TRACE 1")
    assert found.gone_edges == ()
    assert set(found.new_edges) == {
        ("child", "lock db", "held"),
        ("parent", "child", "awaited"),
        ("queue jobs", "child", "sent"),
    }
    assert _compared(logs, "TRACE 1", "TRACE 0").gone_edges == found.new_edges
    same = _compared(logs, "TRACE 0", "TRACE 0")
    assert (same.new_edges, [verdict.failed for verdict in same.judge(["new edges > 0"])]) == ((), [False])


def test_a_log_without_steps_is_not_taken_for_a_program_without_locks(logs: dict[str, Path]) -> None:
    """Of levels that differ, only what was begun in what is compared, and that is said."""
    for pair in (("DEBUG 0", "TRACE 1"), ("TRACE 1", "DEBUG 0")):
        found = _compared(logs, *pair)
        assert found.new_edges == found.gone_edges == ()
        assert [verdict.failed for verdict in found.judge(["new edges > 0", "gone edges > 0"])] == [None, None]
    found = _compared(logs, "DEBUG 0", "DEBUG 1")
    assert [verdict.failed for verdict in found.judge(["new edges > 0"])] == [False]


@pytest.fixture
def family(tmp_path: Path, tell: Tell) -> Path:
    parent = tell("enter", 1, name="parent")
    child = tell("enter", 2, name="child", parent=parent["id"], trace=parent["trace"])
    payloads = [parent, child, tell("exit", 2, name="child"), tell("exit", 1, name="parent")]
    return write_log(tmp_path / "family.jsonl", payloads)


def _saved(log: Path, folder: Path) -> Path:
    page = folder / "page.txt"
    page.write_text(PrometheusExporter(replay(log)).gather())
    return page


def _page(path: Path) -> Snapshot:
    return read_page(PrometheusExporter(replay(path)).gather().encode())


def test_edges_of_a_page_are_unknown(family: Path) -> None:
    """Neither new nor gone, by either way of asking, and null in JSON."""
    for before, after in ((family, None), (None, family), (None, None)):
        found = compare(*(_page(family) if side is None else LogTasks(side) for side in (before, after)))
        new, gone = found.judge(["new edges > 0", "gone edges > 0"])
        assert (found.new_edges is None) == (before is None)
        assert (found.gone_edges is None) == (after is None)
        assert new.failed is gone.failed is None
        told = found.to_dict()
        assert (told["new"]["edges"] is None, told["gone"]["edges"] is None) == (before is None, after is None)
        assert "edges are unknown" in found.render()
        assert found.new_names == found.gone_names == ()


def test_a_snapshot_of_the_last_tasks_knows_some_edges(family: Path, tmp_path: Path) -> None:
    """What it has is new if the other does not have it; what it lacks is not gone."""
    other = replay(family, inspector=Inspector(Config(max_tasks=1))).snapshot()
    assert len(other.tasks) == 1
    found = compare(LogTasks(family), other)
    assert (found.new_edges, found.gone_edges) == ((), None)
    assert [verdict.failed for verdict in found.judge(["new edges > 0", "new edges < 1"])] == [None, None]
    # An export of the whole log has them all.
    JsonExporter.export_to_file(LogTasks(family), tmp_path / "whole.json")
    found = compare(load(tmp_path / "whole.json"), LogTasks(family))
    assert (found.new_edges, found.gone_edges) == ((), ())


def test_deadlocks_that_a_page_only_counts(family: Path) -> None:
    """New where there was none; unnamed, and so neither new nor gone where there was one."""
    none = replay(family).snapshot()
    page = none._replace(deadlocks=1)
    named = none._replace(findings=(Finding("deadlock", "parent", (), "", (), 0.0),), deadlocks=1)
    assert compare(none, page).new_findings == (("deadlock", ""),)
    assert [verdict.failed for verdict in compare(none, page).judge(["new findings > 0"])] == [True]
    assert "new finding: deadlock\n" in compare(none, page).render()
    for before, after in ((page, named), (named, page), (page, page)):
        found = compare(before, after)
        assert found.new_findings == found.gone_findings == ()


def test_a_quantile_in_the_last_bucket_is_more_than_its_bound(
    tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown to be above what is below the bound, and unknown above that, either way round."""
    path = tmp_path / "slow.jsonl"
    hour = 3600 * 10**9
    payloads = [tell("enter"), tell("exit", duration=hour)]
    payloads[1]["t"], payloads[1]["wall"] = (payloads[0][key] + hour for key in ("t", "wall"))
    write_log(path, payloads)
    page = _page(path)
    bound = page.names["job"].durations["completed"].bounds[-1]
    found = compare(LogTasks(path), page)
    conditions = {f"p50 {order} {value:g}s": failed for order, value, failed in (
        (">", bound / 2, True), (">", bound, True), (">", bound * 2, None), (">=", bound, True),
        ("<", bound / 2, False), ("<=", bound, False), ("<", bound * 2, None),
    )}  # fmt: skip
    assert {verdict.condition: verdict.failed for verdict in found.judge(conditions)} == conditions
    ratio = found.to_dict()["names"][0]["p50"]
    assert (ratio["before"], ratio["after"], ratio["more_than"]) == (3600.0, bound, ["after"])
    assert f"3.6e+03 s -> > {bound:g} s" in found.render()
    monkeypatch.delenv("COLUMNS", raising=False)
    result = CliRunner().invoke(commands, ["stats", str(_saved(path, tmp_path))])
    assert f"> {bound:.1f} s" in result.stdout
