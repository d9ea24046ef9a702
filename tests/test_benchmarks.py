"""The benchmarks run, and what they make of their figures is right. Nothing here depends on how long anything takes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmarks, which are scripts beside each other and no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return __import__(name)

    yield load
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


def test_ratios_are_medians_of_rounds(load: Any) -> None:
    """A ratio is taken within a round, so a round that was slow for all does not count for more."""
    ratios = load("measure").ratios
    times = {"floor": [1.0, 100.0, 1.0], "twice": [2.0, 200.0, 2.5], "same": [1.0, 100.0, 1.0]}
    assert ratios(times, "floor") == {"twice": 2.0, "same": 1.0}
    assert ratios(times, "twice")["same"] == 0.5


def test_interleaved_takes_turns(load: Any) -> None:
    """Each round runs every candidate once, as often as its name says, and warm-up rounds are not kept."""
    measure = load("measure")
    calls: list[tuple[str, int]] = []
    scale = measure.QUICK._replace(rounds=3, loops=100)
    times = measure.interleaved(
        {"a": lambda loops: calls.append(("a", loops)), "b/4": lambda loops: calls.append(("b", loops))}, scale
    )
    assert calls == [("a", 100), ("b", 25)] * 5
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}


def test_interleaved_async_takes_turns(load: Any) -> None:
    """The same for coroutine functions."""
    measure = load("measure")
    calls: list[int] = []

    async def candidate(loops: int) -> None:
        calls.append(loops)

    times = asyncio.run(measure.interleaved_async({"a/1000": candidate}, measure.QUICK))
    assert calls == [1] * (measure.QUICK.rounds + 2)
    assert len(times["a"]) == measure.QUICK.rounds


def a_run(version: str, **figures: float) -> dict[str, Any]:
    return {
        "python": f"{version}.1",
        "build": f"CPython {version}.1",
        "machine": "2 CPUs",
        "figures": figures,
        "missing": {"eliot": "No module named 'eliot'"},
    }


def test_verdicts(load: Any) -> None:
    """Met, missed, missed on one version, not measured; a goal for one version looks at that one only."""
    report = load("report")
    rows = {row.figure: row for row in report.ROWS}
    runs = [
        a_run("3.11", span=4.0, task=1.7, **{"span.log": 0.9}),
        a_run("3.13", span=4.01, task=1.9, **{"span.log": 1.1}),
    ]
    assert report.verdict(rows["span"], runs) == "**missed** on 3.13"
    assert report.verdict(rows["task"], runs) == "**missed**"
    assert report.verdict(rows["span.log"], runs) == "met"
    assert report.verdict(rows["memory"], runs) == "not measured"
    assert report.verdict(rows["span.nested"], runs) == ""


def test_what_is_delivered_a_second(load: Any) -> None:
    """Without the beginning; batches make no difference, a backlog that grows does, one that stays does not."""
    pytest.importorskip("opentelemetry.sdk")
    rate = load("bench_export_otel").rate
    times = [number / 1000 for number in range(8000)]
    in_batches = [(at, 5000.0 * (at // 0.25) - 2000) for at in times]
    assert rate(in_batches) == pytest.approx(20_000, rel=0.002)
    assert rate([(at, 16_000 * at) for at in times]) == pytest.approx(16_000)
    assert rate([(at, 0.0) for at in times]) == 0


def test_markdown(load: Any) -> None:
    """Versions stand in order, figures with their unit and goal, peers and what was left out below."""
    report = load("report")
    runs = [a_run("3.13", span=4.01, otel=30.123, memory=655.4), a_run("3.11", span=3.5)]
    page = report.markdown(runs)
    assert "| what | goal | 3.11 | 3.13 | | peers (3.11 / 3.13) |" in page
    assert "| ≤ 4 F | 3.50 F | 4.01 F | **missed** on 3.13 | OpenTelemetry SDK – / 30.1 F |" in page
    assert "| – | 655 B | met |" in page
    assert "- eliot (3.11): No module named 'eliot'" in page
    assert len({line.count("|") for line in page.splitlines() if line.startswith("|")}) == 1


def test_recall_and_precision(load: Any) -> None:
    """Of faults those that were named, and of alarms those that were right; what was missed is listed by name."""
    report = load("report")
    found = {
        "found/ours/deadlock/ring": 1.0,
        "found/ours/deadlock/two": 0.0,
        "found/ours/astray/two": 1.0,
        "found/ours/leaked/lost task": 1.0,
        "found/ours/correct/slow": 1.0,
        "found/ours/correct/quick": 0.0,
        "found/debug/deadlock/ring": 0.0,
        "found/debug/correct/slow": 0.0,
    }
    page = report.markdown([a_run("3.11", span=3.5), a_run("3.13", **found)])
    assert "| fault | programs | this library | asyncio debug mode |" in page
    assert "| deadlock | 2 | – / 1 | – / 0 |" in page
    assert "| **recall** | 3 | – / 67 % | – / 0 % |" in page
    assert "| false alarms | 2 | – / 2 | – / 0 |" in page
    assert "| **precision** |  | – / 50 % | – / – |" in page
    assert "- Not found by this library: two (3.13)." in page
    assert "- Its false alarms: two (3.13); slow (3.13)." in page
    assert "## Findings" not in report.markdown([a_run("3.11", span=3.5)])


def test_every_row_is_measured_by_some_group(load: Any) -> None:
    """No row of the table asks for a figure under a name that nothing gives."""
    report = load("report")
    sources = "".join(path.read_text("utf-8") for path in BENCHMARKS.glob("bench_*.py"))
    for row in report.ROWS:
        for _, figure in (("", row.figure), *row.peers):
            last = figure.rpartition(".")[2]
            assert any(f'"{name}' in sources or f".{name}" in sources for name in (figure, last)), figure


@pytest.mark.parametrize(
    "group",
    [
        "spans",
        "unheard",
        "structlog",
        "tasks",
        "steps",
        "gc",
        "memory",
        "pages",
        "live",
        "deadlocks",
        "found",
        "export",
        "export tables",
        "export pictures",
    ],
)
def test_group_runs(group: str, load: Any) -> None:
    """Each group of ours gives figures, all of them numbers, and leaves no handler behind."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--quick", "--group", group], capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout.strip().rpartition("\n")[2])["figures"]
    assert figures
    assert all(isinstance(value, float) for value in figures.values())
    assert done.stderr == ""


def test_run_keeps_and_merges(tmp_path: Path) -> None:
    """`--out` keeps the figures next to the table, and a part measured later takes its place among them."""
    out = tmp_path / "RESULTS.md"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "results-2.7.json").write_text(json.dumps(a_run("2.7", span=99.5)))
    for only in ("unheard", "memory"):
        subprocess.run(
            [sys.executable, BENCHMARKS / "run.py", "--quick", "--only", only, "--out", out],
            check=True,
            capture_output=True,
        )
    kept = json.loads((tmp_path / f"results-{version}.json").read_text())
    assert {"span.unheard", "memory"} <= kept["figures"].keys()
    page = out.read_text("utf-8")
    assert f"| what | goal | 2.7 | {version} | |" in page
    assert "99.5 F" in page


def test_figures_of_the_soak_survive(tmp_path: Path) -> None:
    """What `make soak` left beside the table is part of it, whatever is measured later."""
    out = tmp_path / "RESULTS.md"
    told = {"build": "CPython 2.7.1", "machine": "2 CPUs", "at": "2026-11-22, seed 1", "table": [["spans", "7 over 3"]]}
    (tmp_path / "soak-2.7.json").write_text(json.dumps(told))
    command = [sys.executable, BENCHMARKS / "run.py", "--quick", "--only", "unheard", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    page = out.read_text("utf-8")
    assert page.count("## Soak") == 1
    assert (
        "CPython 2.7.1; 2 CPUs; 2026-11-22, seed 1:\n\n| what | figure |\n| --- | --- |\n| spans | 7 over 3 |" in page
    )


def test_what_went_wrong_in_a_soak_is_told(load: Any) -> None:
    """Line by line, below its figures; of one that passed there is nothing."""
    told = {"build": "CPython 2.7.1", "machine": "2 CPUs", "at": "seed 1", "table": [["troubles", "2"]], "troubles": []}
    passed = load("report").markdown([], [told])
    failed = load("report").markdown([], [{**told, "troubles": ["worker 0 ended: Traceback\n  In a file", "a leak"]}])
    assert passed.rstrip().endswith("| troubles | 2 |")
    assert failed.removeprefix(passed.rstrip()).splitlines() == [
        "",
        "",
        "What went wrong:",
        "",
        "    worker 0 ended: Traceback",
        "      In a file",
        "    a leak",
    ]


def test_the_soak_that_is_kept_had_no_troubles() -> None:
    """Ten million spans, and nothing went wrong."""
    kept = [json.loads(path.read_text("utf-8")) for path in sorted(BENCHMARKS.glob("soak-*.json"))]
    assert kept
    for soak in kept:
        assert (soak["figures"]["troubles"], soak.get("troubles", [])) == (0, [])
        assert soak["figures"]["spans"] >= 10_000_000


def test_results_are_those_that_are_kept(load: Any) -> None:
    """RESULTS.md is made of the files beside it."""
    report = load("report")
    page = report.markdown(report.kept_in(BENCHMARKS, "results"), report.kept_in(BENCHMARKS, "soak"))
    assert (BENCHMARKS / "RESULTS.md").read_text("utf-8") == page


def test_unknown_group_is_refused() -> None:
    """A group that does not exist is an error that lists those that do."""
    done = subprocess.run([sys.executable, BENCHMARKS / "run.py", "--only", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown groups: nonsense; there are: spans, unheard" in done.stderr


def test_transparency_compares_test_by_test(load: Any) -> None:
    """A test that ran one way only differs; one that failed both ways now and then is unsteady, not different."""
    transparency = load("transparency")
    plain = {"same": "passed", "changed": "passed", "gone": "passed"}
    assert transparency.differing(plain, {"same": "passed", "changed": "failed"}) == ["changed", "gone"]
    assert transparency.is_different({"plain": ["passed"] * 3, "install": ["failed"] * 3})
    assert not transparency.is_different({"plain": ["passed", "failed"], "install": ["failed", "failed"]})


def test_transparency_table(load: Any) -> None:
    """Counts both ways, differences and unsteady tests each under their own heading."""
    transparency = load("transparency")
    suite = {
        "version": "1.0",
        "on": "2026-11-22",
        "counts": {"plain": {"passed": 1200}, "install": {"passed": 1198, "failed": 2}},
        "spans": 7,
        "again": {
            "test_a": {"plain": ["passed"] * 3, "install": ["failed"] * 3},
            "test_b": {"plain": ["passed"] * 3, "install": ["passed"] * 3},
        },
    }
    page = transparency.markdown([{"python": "3.13.0", "suites": {"peer": suite}}])
    assert "| 3.13.0 | peer 1.0 | 2026-11-22 | as it is | 1,200 | 0 | 0 | 0 | 0 | 0 |" in page
    assert page.index("## Differences") < page.index("`test_a`") < page.index("## Unsteady") < page.index("`test_b`")
    assert "## Findings" not in page
    suite["again"] = {}
    assert "None: every test" in transparency.markdown([{"python": "3.13.0", "suites": {"peer": suite}}])


def test_transparency_of_one_suite(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows take the place of those of before; those of the others stay, unless Python is another."""
    transparency = load("transparency")
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(transparency, "KEPT", kept)
    transparency.keep({"python": "3.13.0", "suites": {"anyio": {"spans": 1}, "aiohttp": {"spans": 1}}})
    transparency.keep({"python": "3.13.0", "suites": {"aiojobs": {"spans": 2}, "anyio": {"spans": 2}}})
    assert json.loads(kept.read_text()) == {
        "python": "3.13.0",
        "suites": {"aiojobs": {"spans": 2}, "anyio": {"spans": 2}, "aiohttp": {"spans": 1}},
    }
    assert list(json.loads(kept.read_text())["suites"]) == ["aiojobs", "anyio", "aiohttp"]
    transparency.keep({"python": "3.13.1", "suites": {"anyio": {"spans": 3}}})
    assert list(json.loads(kept.read_text())["suites"]) == ["anyio"]


def test_transparency_lists_findings(load: Any) -> None:
    """By kind, test function and name, with how often, and why it is true where that is known."""
    transparency = load("transparency")
    spins = {"kind": "self_wakes", "name": "job", "message": "job: 102 of its 104 wakes were its own"}
    found = transparency.distinct(
        [{**spins, "test": f"test_functools.py::test_ttl_sequential[{backend}]"} for backend in ("asyncio", "uvloop")]
        + [{**spins, "kind": "long_poll", "test": "test_other", "message": "job: " + "so long " * 30}]
    )
    assert [(one["kind"], one["times"]) for one in found] == [("long_poll", 1), ("self_wakes", 2)]
    suite = {"version": "1.0", "counts": {"plain": {}, "install": {}}, "spans": 7000, "findings": found, "again": {}}
    page = transparency.markdown([{"python": "3.13.0", "suites": {"peer": suite}}])
    assert "| 3.13.0 | peer | 7,000 | long_poll 1, self_wakes 2 |" in page
    assert (
        "- self_wakes in `test_functools.py::test_ttl_sequential` (peer, Python 3.13.0, 2 times), `job`: "
        "102 of its 104 wakes were its own. True: the test calls checkpoint() a hundred times." in page
    )
    assert page.count("…") == 1
