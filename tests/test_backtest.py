"""A log as samples over time, and what an alert makes of an expression's values. (All of it: real/test_backtest.)"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from asyncinspect_logging.analysis.backtest import run as backtests
from asyncinspect_logging.analysis.backtest.alerts import AlertRule, Episode, Timeline
from asyncinspect_logging.analysis.backtest.processes import Processes
from asyncinspect_logging.analysis.backtest.run import Backtest
from asyncinspect_logging.analysis.backtest.samples import NOT_IN_LOGS, Wanted, replay_into
from asyncinspect_logging.analysis.files import sources
from asyncinspect_logging.analysis.replay import ReplayError, Report, replay
from asyncinspect_logging.cli.commands import commands
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

#: Seconds, at a moment of any interval here.
T0 = 1_700_000_040


class Process:
    """Writes the records of one process, each at a second after T0."""

    def __init__(self, pid: int, base: int) -> None:
        self.pid, self.base, self.seq = pid, base, 0
        self.lines: list[str] = []

    def tell(self, at: float, kind: str, number: int, **more: Any) -> None:
        self.seq += 1
        wall = round((T0 + at) * 1e9)
        head = {"v": 1, "kind": kind, "id": f"{(self.base << 32) + number:016x}", "t": wall - 10**18, "wall": wall}
        self.lines.append(json.dumps({"asyncinspect": {**head, "pid": self.pid, "seq": self.seq, **more}}) + "\n")

    def job(self, begin: float, end: float | None, number: int, outcome: str = "completed", name: str = "job") -> None:
        trace = f"{(self.base << 32) + number:032x}"
        self.tell(begin, "enter", number, name=name, trace=trace, thread=1, fields={})
        if end is not None:
            more = {"duration": round((end - begin) * 1e9), "polls": 3, "busy": 1000, "max_poll": 1000, "wakes": 2}
            self.tell(end, "exit", number, name=name, outcome=outcome, **more)


def pages(
    paths: list[Path], step: int = 15, names: set[str] | None = None, strict: bool = False, **more: Any
) -> tuple[dict[int, dict[tuple[str, tuple[tuple[str, str], ...]], float]], Report]:
    """Samples by moment; and what was met."""
    found, processes, written = sources([str(path) for path in paths]), Processes(), {}
    processes.find(found, None)

    def write(moment: int, text: str) -> None:
        samples = {}
        for line in text.splitlines():
            line, _, at = line.rpartition(" ")
            assert int(at) == moment
            for family in text_string_to_metric_families(line + "\n"):
                for sample in family.samples:
                    key = (sample.name, tuple(sorted(sample.labels.items())))
                    assert key not in samples
                    samples[key] = sample.value
        assert moment not in written
        written[moment] = samples

    options: dict[str, Any] = {"start": processes.first // 10**9 // step * step, "end": processes.last // 10**9 + step}
    options |= more
    report = replay_into(
        write, found, processes, Wanted(names), job="shop", step=step, strict=strict, progress=None, **options
    )
    return written, report


def value(samples: dict[Any, float], of: str, /, **labels: str) -> list[float]:
    """The values of series with these labels."""
    return [
        value for (name, had), value in sorted(samples.items()) if name == of and labels.items() <= dict(had).items()
    ]


# -- samples ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 30), st.integers(0, 3)), min_size=1, max_size=20))
def test_each_moment_is_what_a_replay_gives(tmp_path_factory: pytest.TempPathFactory, jobs: list[Any]) -> None:
    """All samples, of all families, are those on the page of a replay up to then."""
    path, process = tmp_path_factory.mktemp("log") / "service.jsonl", Process(7, 0x1111_2222)
    told = [(at, "enter", n, length) for n, (at, length, _) in enumerate(jobs, 1)]
    told += [(at + length, "exit", n, length) for n, (at, length, _) in enumerate(jobs, 1)]
    for at, kind, number, length in sorted(told):
        outcome = ("completed", "failed", "cancelled", "completed")[jobs[number - 1][2]]
        more: dict[str, Any] = {"trace": f"{number:032x}", "thread": 1, "fields": {}}
        if kind == "exit":
            more = {"outcome": outcome, "duration": round(length * 1e9), "polls": 2, "busy": 5000, "max_poll": 4000}
        process.tell(at, kind, number, name=f'a "quoted"\n\\name {number % 2}', **more)
    path.write_text("".join(process.lines), "utf-8")
    written, report = pages([path])
    assert report.records == report.lines == 2 * len(jobs)
    assert len(written) >= 2
    for moment, samples in written.items():
        page = PrometheusExporter(replay(path, at=moment)).gather()
        expected = {}
        for family in text_string_to_metric_families(page):
            if family.name not in NOT_IN_LOGS:
                for sample in family.samples:
                    labels = {**sample.labels, "job": "shop", "instance": "service.jsonl"}
                    expected[sample.name, tuple(sorted(labels.items()))] = sample.value
        up = ("up", (("instance", "service.jsonl"), ("job", "shop")))
        assert samples.pop(up) == 1
        assert samples == pytest.approx(expected)


def test_a_restart_begins_at_zero(tmp_path: Path) -> None:
    """A process that comes after another one in the same file has its labels, and nothing of what it had."""
    first, second = Process(7, 0x1111_2222), Process(8, 0x3333_4444)
    for n in range(10):
        first.job(n + 0.1, n + 0.5, n + 1)
    first.job(10, None, 50)
    second.job(40, 41, 1)
    path = tmp_path / "service.jsonl"
    path.write_text("".join(first.lines + second.lines), "utf-8")
    written, _ = pages([path])
    begun = [value(samples, "async_inspect_tasks_total", name="job") for samples in written.values()]
    assert begun == [[], [11], [11], [1]]
    # The task that was open when the first process ended is gone with it.
    assert [value(samples, "async_inspect_active_tasks") for samples in written.values()] == [[0], [1], [1], [0]]
    assert {dict(labels)["instance"] for samples in written.values() for _, labels in samples} == {"service.jsonl"}


def test_processes_at_a_time_are_targets_of_their_own(tmp_path: Path) -> None:
    """In one file, lines mixed, or in several, which are read side by side."""
    one, two = Process(7, 0x1111_2222), Process(8, 0x3333_4444)
    for n in range(20):
        one.job(n, n + 0.5, n + 1, name="one")
        two.job(n + 0.2, n + 0.7, n + 1, "failed", name="two")
    together = tmp_path / "all.jsonl"
    together.write_text("".join(line for pair in zip(one.lines, two.lines, strict=True) for line in pair), "utf-8")
    apart = [tmp_path / "worker-7.jsonl", tmp_path / "worker-8.jsonl"]
    for path, process in zip(apart, (one, two), strict=True):
        path.write_text("".join(process.lines), "utf-8")
    for paths, names in (
        ([together], ["all.jsonl", "all.jsonl#2"]),
        (apart, ["worker-{pid}.jsonl", "worker-{pid}.jsonl#2"]),
    ):
        written, report = pages(paths, step=5)
        assert report.records == 80
        for moment, samples in written.items():
            if moment > T0:
                for name, instance in zip(("one", "two"), names, strict=True):
                    expected = min(20, moment - T0 + (name == "one"))
                    assert value(samples, "async_inspect_tasks_total", name=name, instance=instance) == [expected]


def test_only_what_is_asked_for_is_written(tmp_path: Path) -> None:
    """Of a histogram, single series."""
    process = Process(7, 0x1111_2222)
    process.job(1, 2, 1)
    path = tmp_path / "service.jsonl"
    path.write_text("".join(process.lines), "utf-8")
    names = {"async_inspect_task_duration_seconds_count", "async_inspect_active_tasks", "rate"}
    written, _ = pages([path], names=names)
    assert {name for samples in written.values() for name, _ in samples} == names - {"rate"}


def test_lines_of_all_kinds(tmp_path: Path) -> None:
    """Broken ones, those of others, and those inside spans are told of, with their numbers; strict bears none."""
    process = Process(7, 0x1111_2222)
    process.job(1, 2, 1)
    process.job(3, 4, 2)
    inside = json.dumps({"span_id": f"{(0x1111_2222 << 32) + 1:016x}", "message": "hello", "levelname": "INFO"}) + "\n"
    lines = ["hello\n", *process.lines[:2], inside, '{"asyncinspect": {"v": 1\n', *process.lines[2:], "bye\n"]
    path = tmp_path / "service.jsonl"
    path.write_text("".join(lines), "utf-8")
    written, report = pages([path])
    assert (report.lines, report.records, report.annotations, report.foreign, report.broken) == (8, 4, 1, 2, 1)
    assert [(file, line) for file, line, _ in report.problems] == [(str(path), 5)]
    assert value(written[T0 + 15], "async_inspect_events_total", type="log") == [1]
    assert value(written[T0 + 15], "async_inspect_dropped_total", reason="malformed") == [1]
    with pytest.raises(ReplayError, match=r"service.jsonl:5: "):
        pages([path], strict=True)


def test_missing_records_are_told_of(tmp_path: Path) -> None:
    """Also of processes that are gone."""
    first, second = Process(7, 0x1111_2222), Process(8, 0x3333_4444)
    for n in range(4):
        first.job(n, n + 0.5, n + 1)
    second.job(40, 41, 1)
    path = tmp_path / "service.jsonl"
    path.write_text("".join(first.lines[:2] + first.lines[4:] + second.lines), "utf-8")
    assert pages([path])[1].missing == 2


def gaps(written: dict[int, Any]) -> list[float]:
    return [sum(value(each, "async_inspect_dropped_total", reason="gap")) for each in written.values()]


def test_missing_records_are_counted_when_they_went(tmp_path: Path) -> None:
    """Once they have been missing for as long as a record may be late, and never fewer than before."""
    process = Process(7, 0x1111_2222)
    for n in range(200):
        process.job(n, n + 0.5, n + 1)
    lines, path = process.lines, tmp_path / "service.jsonl"
    # Seconds 50 to 69 are lost; two lines are out of order, and one comes half a minute late, when it was given up.
    kept = [*lines[:20], *lines[24:28], *lines[20:24], *lines[28:100], *lines[140:241], lines[242], lines[243]]
    kept += [*lines[244:320], lines[241], *lines[320:]]
    path.write_text("".join(kept), "utf-8")
    written, report = pages([path])
    assert report.missing == 40
    # At T0 + 75 they are seen to be missing, and 15 seconds later still.
    seen = dict(zip(written, gaps(written), strict=True))
    assert {at - T0: count for at, count in seen.items() if count != seen.get(at - 15, 0.0)} == {90: 40, 150: 41}
    # A page that is made of the whole log knows of what came late.
    assert replay(path).snapshot().dropped["gap"] == 40


def test_missing_records_at_either_end_of_a_log(tmp_path: Path) -> None:
    """Nobody knows when the ones before it went; and at its end, nothing is late any more."""
    process = Process(7, 0x1111_2222)
    for n in range(60):
        process.job(n, n + 0.5, n + 1)
    path = tmp_path / "service.jsonl"
    path.write_text("".join([*process.lines[20:110], *process.lines[116:]]), "utf-8")
    written, report = pages([path])
    assert report.missing == 26
    assert gaps(written) == [0, 0, 0, 0, 6]
    # What is after the end that was asked for may be late.
    assert gaps(pages([path], end=T0 + 59)[0]) == [0, 0, 0, 0]
    assert gaps(pages([path], end=T0 + 75)[0]) == [0, 0, 0, 0, 6, 6]


def test_a_range_is_written_with_what_came_before(tmp_path: Path) -> None:
    """And what is later is not read."""
    process = Process(7, 0x1111_2222)
    for n in range(100):
        process.job(n, n + 0.5, n + 1)
    path = tmp_path / "service.jsonl"
    path.write_text("".join(process.lines), "utf-8")
    written, _ = pages([path], start=T0 + 30, end=T0 + 60)
    assert list(written) == [T0 + 30, T0 + 45, T0 + 60]
    assert [value(each, "async_inspect_tasks_total") for each in written.values()] == [[31], [46], [61]]


def test_a_quiet_process_stays_as_it_is(tmp_path: Path) -> None:
    """Until the end that is asked for."""
    process = Process(7, 0x1111_2222)
    process.job(1, None, 1)
    path = tmp_path / "service.jsonl"
    path.write_text("".join(process.lines), "utf-8")
    written, _ = pages([path], end=T0 + 150)
    assert [value(each, "async_inspect_active_tasks") for each in written.values()] == [[0], *[[1]] * 10]


# -- which process came in whose place -------------------------------------------------------------------------------


def places(tmp_path: Path, files: dict[str, list[tuple[int, float, float]]]) -> dict[int, str]:
    """The instances of processes: by file, the pid, the first and the last second of each."""
    paths = []
    for name, processes in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines: list[str] = []
        for pid, first, last in processes:
            process = Process(pid, 0x1000 + pid)
            process.job(first, last, 1)
            lines += process.lines
        path.write_text("".join(lines), "utf-8")
        paths.append(str(path))
    found = Processes()
    found.find(sources(paths), None)
    return {pid: process.instance for (pid, _), process in found.by_key.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # One after the other; and two at a time.
        ({"s.log": [(1, 0, 9), (2, 10, 19), (3, 20, 29)]}, {1: "s.log", 2: "s.log", 3: "s.log"}),
        ({"s.log": [(1, 0, 9), (2, 5, 19)]}, {1: "s.log", 2: "s.log#2"}),
        # The place of the one that ended last.
        ({"s.log": [(1, 0, 5), (2, 1, 20), (3, 30, 40)]}, {1: "s.log", 2: "s.log#2", 3: "s.log#2"}),
        # A file of its own, and rotated.
        ({"s-1.log": [(1, 0, 9)], "s-2.log": [(2, 10, 19)]}, {1: "s-{pid}.log", 2: "s-{pid}.log"}),
        ({"s.log.1": [(1, 0, 9)], "s.log": [(2, 10, 19)]}, {1: "s.log", 2: "s.log"}),
        ({"s.log-20300101": [(1, 0, 9)], "s.log": [(2, 10, 19)]}, {1: "s.log", 2: "s.log"}),
        ({"s.log.2030-01-01_00": [(1, 0, 9)], "s.log": [(2, 10, 19)]}, {1: "s.log", 2: "s.log"}),
        # Of other programs.
        ({"a.log": [(1, 0, 9)], "b.log": [(2, 10, 19)]}, {1: "a.log", 2: "b.log"}),
    ],
)
def test_places(tmp_path: Path, files: dict[str, Any], expected: dict[int, str]) -> None:
    """A process takes the place of one that wrote to the same file and is gone."""
    assert places(tmp_path, files) == expected


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By their folders."""
    found = places(tmp_path, {"a/s.log": [(1, 0, 9)], "b/s.log": [(2, 10, 19)]})
    assert found == {1: str(tmp_path / "a" / "s.log"), 2: str(tmp_path / "b" / "s.log")}


def test_too_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are refused, one after the other and at a time."""
    monkeypatch.setattr("asyncinspect_logging.analysis.backtest.processes._MAX_INSTANCES", 2)
    assert len(places(tmp_path, {"s.log": [(n, n, n + 0.5) for n in range(1, 9)]})) == 8
    with pytest.raises(ConfigError, match="more than 2 processes wrote these logs at a time"):
        places(tmp_path, {"s.log": [(n, 0, 9) for n in range(1, 5)]})
    monkeypatch.setattr("asyncinspect_logging.analysis.backtest.processes._MAX_PROCESSES", 3)
    with pytest.raises(ConfigError, match="more than 3 processes"):
        places(tmp_path, {"s.log": [(n, n, n + 0.5) for n in range(1, 9)]})


# -- alerts ----------------------------------------------------------------------------------------------------------


def as_prometheus_does(given: list[float | None], wait: int, keep: int) -> list[tuple[int, int | None, int | None]]:
    """Evaluation by evaluation, as in rules/alerting.go: (active since, fired at, over at) of each time."""
    found: list[list[int | None]] = []
    state, since, kept = "inactive", 0, None
    for now, value in enumerate(given):
        if value is None:
            if state == "inactive":
                continue
            keep_firing = False
            if state == "firing" and keep > 0:
                kept = now if kept is None else kept
                keep_firing = now - kept < keep
            if not keep_firing:
                found[-1][2] = now
                state = "inactive"
                continue
        else:
            kept = None
            if state == "inactive":
                state, since = "pending", now
                found.append([now, None, None])
        if state == "pending" and now - since >= wait:
            state = "firing"
            found[-1][1] = now
    return [(a or 0, b, c) for a, b, c in found]


@given(
    st.lists(st.none() | st.floats(-9, 9), min_size=1, max_size=60),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(1, 20),
)
def test_alerts_are_those_of_prometheus(given: list[float | None], wait: int, keep: int, at_once: int) -> None:
    """For any values, `for` and `keep_firing_for`, and however many moments are asked of at a time."""
    rule = AlertRule("A", "g", "x", {"severity": "page"}, 15_000, wait * 15_000, keep * 15_000)
    timeline = Timeline(rule)
    for begin in range(0, len(given), at_once):
        part = range(begin, min(begin + at_once, len(given)))
        values = [[T0 + 15 * n, str(given[n])] for n in part if given[n] is not None]
        series = [{"metric": {"__name__": "x", "job": "shop"}, "values": values}] if values else []
        timeline.take(series, (T0 + 15 * part[-1]) * 1000)
    found = [
        tuple(None if at is None else round((at - T0) / 15) for at in (each.since, each.start, each.end))
        for each in timeline.finish()
    ]
    assert found == as_prometheus_does(given, wait, keep)
    for each in timeline.episodes:
        assert each.labels == {"job": "shop", "severity": "page"}
        assert each.value == given[round(((each.start or each.since) - T0) / 15)]


def test_labels_of_an_alert() -> None:
    """Those of the rule come before those of the series, which may stand in them. An empty one is none."""
    labels = {"team": "{{ $labels.job }}-ops", "name": "all", "none": "{{ $labels.nothing }}"}
    rule = AlertRule("A", "g", "x", labels, 1000, 0, 0)
    timeline = Timeline(rule)
    timeline.take([{"metric": {"job": "shop", "name": "a"}, "values": [[T0, "1"]]}], T0 * 1000)
    assert [each.labels for each in timeline.finish()] == [{"job": "shop", "name": "all", "team": "shop-ops"}]


# -- rules -----------------------------------------------------------------------------------------------------------


def group(*rules: tuple[str, str, str]) -> backtests._Group:
    return backtests._Group("g", 15, [{"type": kind, "name": name, "query": query} for kind, name, query in rules])


def test_recording_rules_come_in_the_order_of_their_needs() -> None:
    """And those in a circle come last, together."""
    rules = [
        ("recording", "c", "b + 1"),
        ("recording", "a", "rate(async_inspect_tasks_total[1m])"),
        ("recording", "b", "a * 2"),
        ("recording", "x", "y"),
        ("recording", "y", "x"),
        ("alerting", "A", "c > 1"),
    ]
    levels = [
        [rule["record"] for each in level for rule in each["rules"]] for level in backtests._levels([group(*rules)])
    ]
    assert levels == [["a"], ["b"], ["c"], ["x", "y"]]


@pytest.mark.parametrize(
    ("expr", "note"),
    [
        ('up{job="shop"} == 0', "reads up, which is 1 here"),
        ("async_inspect_event_loop_lag_seconds_count > 1", "a log does not tell"),
        ("sum(async_inspect_memory_bytes) by (job) > 1", "a log does not tell"),
        ('sum by (le, name) (rate(node_cpu_total{mode=~"a|b"}[5m] offset 1d)) > bool 2', "node_cpu_total, which is no"),
        ("async_inspect_blocked_tasks > 50", "no steps (level TRACE)"),
        ('async_inspect_active_tasks{job="other"} > 1', "about the job 'other', and this is 'shop'"),
        ("rec:a > 5 and on (job) histogram_quantile(0.99, async_inspect_poll_count_bucket) > Inf", ""),
        (
            'label_replace(async_inspect_active_tasks, "a", "$1", "b", "(.*)") > 1e3 or absent(up{a="b"})',
            "reads up",
        ),
    ],
)
def test_notes(expr: str, note: str) -> None:
    """What is not in a log is told of, for each rule that reads it, and nothing else is."""
    groups = [group(("recording", "rec:a", "vector(1)"), ("alerting", "A", expr))]
    found = list(backtests._notes(groups, Processes(), "shop"))
    assert len(found) == bool(note), found
    assert all("A" in each and note in each for each in found)


def test_the_job_is_the_one_that_is_asked_for() -> None:
    """If that is one."""
    assert backtests._job_of(['up{job="shop"} == 0', 'x{a="b", job = "shop"}']) == "shop"
    assert backtests._job_of(['up{job="shop"}', 'up{job="other"}']) == "asyncinspect"
    assert backtests._job_of(["up"]) == "asyncinspect"


# -- the command -----------------------------------------------------------------------------------------------------


def refused(*arguments: str, env: dict[str, str] | None = None) -> str:
    result = CliRunner(env=env).invoke(commands, ["backtest", *arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def test_without_promtool(tmp_path: Path) -> None:
    """It says how to get it."""
    said = refused("rules.yml", "service.jsonl", env={"PATH": str(tmp_path)})
    assert "there is no 'promtool' on PATH" in said
    assert "apt-get install prometheus" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0"),
        ({"interval": True}, "interval=True"),
        ({"job": ""}, "job=''"),
        ({"job": "a\nb"}, "job='a\\\\nb'"),
        ({"start": 5.0, "end": 4.0}, "start=5.0 is not before end=4.0"),
    ],
)
def test_settings_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    """Are refused at once."""
    with pytest.raises(ConfigError, match=message):
        Backtest("rules.yml", "log", **options)


@pytest.mark.parametrize("last", [4e9, 9e9])
def test_a_log_with_an_odd_time_is_refused(tmp_path: Path, last: float) -> None:
    """Instead of a scrape each 15 s of a hundred years; it helps to say from when to when."""
    process = Process(7, 0x1111_2222)
    process.job(1, 2, 1)
    process.job(last - T0, None, 2)
    path = tmp_path / "service.jsonl"
    path.write_text("".join(process.lines), "utf-8")
    processes = Processes()
    processes.find(sources(str(path)), None)
    with pytest.raises(ConfigError, match=r"say from when to when"):
        Backtest("rules.yml", str(path))._range(processes, 15)
    assert Backtest("rules.yml", str(path), end=T0 + 60.0)._range(processes, 15) == (T0, T0 + 60)
    with pytest.raises(ConfigError, match=r"nothing of that is asked for"):
        Backtest("rules.yml", str(path), end=5.0)._range(processes, 15)


def range_of(tmp_path: Path, last: float, shortest: int, **options: Any) -> tuple[int, int]:
    """From when to when a log is looked at, that has a job at T0 and one at `last`, seconds later."""
    process = Process(7, 0x1111_2222)
    process.job(0, None, 1)
    if last:
        process.job(last, None, 2)
    path = tmp_path / "service.jsonl"
    path.write_text("".join(process.lines), "utf-8")
    processes = Processes()
    processes.find(sources(str(path)), None)
    return Backtest("rules.yml", str(path), **options)._range(processes, shortest)


def test_a_log_of_a_moment(tmp_path: Path) -> None:
    """Is met by the scrape after it."""
    assert range_of(tmp_path, 0, 15) == (T0, T0 + 15)


def test_a_group_that_is_evaluated_too_often_is_refused(tmp_path: Path) -> None:
    """Few scrapes, and very many evaluations: a year, each second."""
    assert range_of(tmp_path, 365 * 86400, 3600, interval=3600)
    with pytest.raises(ConfigError, match=r"3[12],\d{3},\d{3} evaluations; say from when to when"):
        range_of(tmp_path, 365 * 86400, 1, interval=3600)


@pytest.mark.parametrize(("interval", "hours"), [(1, 2), (3, 6), (15, 18), (60, 162), (3600, 4374)])
def test_blocks_hold_few_enough_moments(interval: int, hours: int) -> None:
    """As Prometheus has them, 2 h times a power of three, with at most 10,000 moments where that is possible; so that
    what is in silent months costs few calls of promtool.
    """
    assert backtests._block_of(interval) == hours * 3600


def shown(capsys: pytest.CaptureFixture[str], **more: Any) -> str:
    from asyncinspect_logging.cli.backtest import _show

    episode = Episode("A", {"job": "shop"}, T0, None, None, 1.0, 1.0)._replace(**more)
    _show(backtests.Result(T0, T0 + 60, 15, "shop", {"A": 0, "B": 0}, (), (episode,), ("x",), 5, ()), [])
    return capsys.readouterr().out


def test_what_is_pending_at_the_end_is_not_over(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told apart from what was over before it fired, and neither is called quiet."""
    said = shown(capsys)
    assert "Pending at the end: A, 1 times; --to" in said
    assert "over before" not in said
    assert "Never: B\n" in said
    said = shown(capsys, end=T0 + 30)
    assert "Pending, and over before it fired: A, 1 times" in said
    assert "at the end" not in said


def test_a_signal_is_not_lost_in_a_finaliser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops what is raised there and goes on; the back-test ends a moment later, as it was told to."""
    from asyncinspect_logging.cli.backtest import _ended

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    class Broken:
        def __del__(self) -> None:
            raise ZeroDivisionError

    went_on: list[bool] = []
    said: list[Any] = []

    def stopped() -> None:
        with _ended():
            Broken()
            Dropped()
            went_on.append(True)
            time.sleep(60)

    monkeypatch.setattr(sys, "unraisablehook", lambda told: said.append(told.exc_type))
    hook = sys.unraisablehook
    # A handler of somebody else's, which test runners may have, would be left as it is.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            stopped()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code, went_on, said) == (128 + signal.SIGTERM, [True], [ZeroDivisionError])
    assert sys.unraisablehook is hook


def test_memory_does_not_grow_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are held until they are taken in, and no longer, and few of them."""
    process, numbers = Process(7, 0x1111_2222), list(range(1, 5001))
    random.Random(1).shuffle(numbers)
    for at, number in enumerate(numbers):
        process.job(at / 1000, at / 1000 + 0.0005, number)
    path = tmp_path / "service.jsonl"
    path.write_text("".join(process.lines), "utf-8")
    from asyncinspect_logging.analysis.backtest import samples

    held: list[int] = []
    take_in: Callable[..., None] = samples._Instance.take_in

    def watched(self: Any) -> None:
        held.append(len(self._held))
        take_in(self)

    monkeypatch.setattr(samples._Instance, "take_in", watched)
    _, report = pages([path])
    assert report.records == 10_000
    assert 0 < max(held) <= samples._HELD
    assert os.path.getsize(path) > 1_000_000
