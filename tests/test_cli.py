"""The command: what each of its parts prints, for people and for machines, and the status that it ends with."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import zstandard
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from made import write_log

from asyncinspect_logging import Config, Inspector, __version__, cli
from asyncinspect_logging.analysis.profile import profile
from asyncinspect_logging.analysis.replay import LogTasks, replay
from asyncinspect_logging.cli.commands import _MODULES, commands
from asyncinspect_logging.cli.text import clean, moment, seconds
from asyncinspect_logging.exporters.csv_file import CsvExporter
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

Tell = Callable[..., dict[str, Any]]
#: What must not reach a terminal: a window title, a colour, markup of rich, a mark of direction, a newline.
HOSTILE = "\x1b]0;title\x07\x1b[31m[red]x[/red]\u202ey\nz\x9b\r"


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(commands, [*map(str, arguments)], **options)


def ok(*arguments: object, **options: Any) -> str:
    result = run(*map(str, arguments), **options)
    assert result.exit_code == 0, result.output
    # `result.stdout` has no carriage returns.
    return result.stdout_bytes.decode()


def machine(*arguments: object, **options: Any) -> dict[str, Any]:
    """The one object that a command prints with --json."""
    document = json.loads(ok(*arguments, "--json", **options))
    assert isinstance(document, dict)
    assert document["version"] == 1
    return document


def refused(*arguments: object, status: int = 2, **options: Any) -> str:
    result = run(*map(str, arguments), **options)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert result.stderr
    return result.stderr


def lines(tell: Tell) -> list[str]:
    """The log of five spans: three of `job`, of which one fails, one with a hostile name, and one that stays open."""
    found = []
    for number, name in enumerate(["job", "job", "job", HOSTILE, "open"], 1):
        fields = {"number": number, "text": HOSTILE}
        found.append({"asyncinspect": tell("enter", number, name=name, at="shop.py:7", fields=fields)})
        if name == "open":
            found.append({"asyncinspect": tell("suspend", number, on="lock:db", at="shop.py:9")})
            continue
        more = {"polls": 3, "busy": 1_000_000, "duration": number * 10_000_000}
        if number == 2:
            more |= {"outcome": "failed", "error": {"type": "ValueError", "message": HOSTILE}}
        found.append({"asyncinspect": tell("exit", number, name=name, **more)})
    return [json.dumps(line) + "\n" for line in found]


@pytest.fixture
def log(tmp_path: Path, tell: Tell) -> Path:
    path = tmp_path / "service.jsonl"
    path.write_text("".join(lines(tell)))
    return path


@pytest.fixture
def broken(tmp_path: Path, tell: Tell) -> Path:
    """The same with a broken line and without a record of the job that failed."""
    path = tmp_path / "broken.jsonl"
    written = lines(tell)
    written[3] = '{"asyncinspect": {"v": 1, "kind": "exit", ' + HOSTILE.replace("\n", "") + "\n"
    path.write_text("".join(written))
    return path


# -- all commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, *_MODULES])
def test_help_has_examples(name: str | None) -> None:
    """Of each command, and each example begins with the command's name."""
    text = ok(*([] if name is None else [name]), "--help")
    examples = text.partition("Examples:\n")[2].split("\n\n")[0].splitlines()
    assert len(examples) >= 2
    for line in examples:
        assert "asyncinspect" in line
        assert len(line) <= 110
    if name is not None:
        assert "--json" in text


def test_the_help_lists_every_command() -> None:
    """With one line each."""
    text = ok("--help")
    for name in _MODULES:
        assert re.search(rf"^  {name} +[A-Z].{{10}}", text, re.MULTILINE), name


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["replay"],
        ["export"],
        ["stats"],
        ["graph"],
        ["serve"],
        ["check"],
        ["diff", "x"],
        ["diff", "-", "-"],
        ["diff", "x", "y", "--confidence", "1"],
        ["replay", "--nonsense", "x"],
        ["replay", "x", "--at", "noon"],
        ["replay", "x", "--metrics", "--json"],
        ["export", "x", "--what", "events"],
        ["export", "x", "--time", "busy"],
        ["export", "x", "--format", "png"],
        ["export", "x", "--json"],
        ["serve", "x", "--follow", "--at", "0"],
        ["serve", "x", "--grace", "1"],
        ["serve", "x", "--not-local"],
        ["demo", "--seconds", "0"],
    ],
)
def test_a_command_that_is_wrong_ends_with_2(arguments: list[str]) -> None:
    """And says how to get help."""
    assert "--help" in refused(*arguments)


@pytest.mark.parametrize("command", ["replay", "export", "stats", "graph", "serve", "check"])
def test_input_that_cannot_be_read_ends_with_2(command: str, tmp_path: Path) -> None:
    """One line says what it is."""
    assert refused(command, tmp_path / "nowhere").count("\n") == 1
    assert refused(command, tmp_path / "*.jsonl").startswith("asyncinspect: no file matches")
    assert refused(command, tmp_path).startswith("asyncinspect: ")
    if command not in ("replay", "serve"):
        assert "is the process there" in refused(command, "http://127.0.0.1:1")


@pytest.mark.parametrize("command", ["replay", "export", "stats", "graph", "serve", "check"])
def test_strict_ends_with_1_at_a_broken_line(command: str, broken: Path) -> None:
    """With the file and the line."""
    assert f"{clean(broken)}:4: " in refused(command, broken, "--strict", status=1)


def test_rules_that_cannot_be_read_end_with_2(log: Path, tmp_path: Path) -> None:
    """No such file, and no TOML."""
    assert "there is no file" in refused("replay", log, "--rules", tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[[")
    assert "not TOML" in refused("replay", log, "--rules", tmp_path / "bad.toml")


# -- replay ----------------------------------------------------------------------------------------------------------


def row(text: str, name: str) -> list[str]:
    """The cells of a row of a table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_replay_shows_counts_and_open_spans(log: Path) -> None:
    """What was begun and how it ended, and where the open one was."""
    text = ok("replay", log)
    assert "10 lines: 10 records, 0 inside spans, 0 of others, 0 broken; 0 records missing" in text
    assert row(text, "job")[1:6] == ["3", "0", "2", "1", "0"]
    assert "Open at the end: 1" in text
    found = [line for line in text.splitlines() if "lock:db" in line]
    assert len(found) == 1
    assert "shop.py:7" in found[0]


def test_replay_as_json(log: Path) -> None:
    """The same, with the whole of each open span."""
    found = machine("replay", log)
    assert found["names"]["job"] | {"completed": 2, "failed": 1, "spawned": 3} == found["names"]["job"]
    assert found["report"]["records"] == 10
    (task,) = found["open"]
    assert (task["name"], task["state"], task["at"], task["waiting_on"]) == ("open", "blocked", "shop.py:7", "lock:db")
    assert task["fields"] == {"number": 5, "text": HOSTILE}
    assert set(found) == {
        "command", "version", "taken_at", "report", "names", "states", "events", "dropped", "findings", "open",
    }  # fmt: skip


def test_replay_lists_all_open_spans_only_when_asked(tmp_path: Path, tell: Tell) -> None:
    """Else the first few, and how many more there are."""
    path = write_log(tmp_path / "open.jsonl", [tell("enter", n) for n in range(1, 31)])
    assert ok("replay", path).count("running") == 5
    assert "and 25 more" in ok("replay", path)
    assert ok("replay", path, "--open").count("running") == 30


@pytest.mark.parametrize("form", ["{:.6f}", "iso", "iso+2"])
def test_replay_at_a_time(log: Path, form: str) -> None:
    """As Unix time, in UTC and in another zone: the third job has not ended."""
    import datetime

    at = 1_700_000_000 + 1 + 0.0055
    zone = datetime.timezone(datetime.timedelta(hours=2)) if form == "iso+2" else None
    text = form.format(at) if "{" in form else datetime.datetime.fromtimestamp(at, zone or datetime.UTC).isoformat()
    if form == "iso":
        text = text.removesuffix("+00:00")
    found = machine("replay", log, "--at", text)
    assert [task["name"] for task in found["open"]] == ["job"]
    assert found["names"]["job"]["spawned"] == 3
    assert set(found["names"]) == {"job"}


def test_replay_at_a_time_before_the_log(log: Path) -> None:
    """It is said that the records came later, and not that there are none."""
    assert "came after --at: name a later time" in refused("replay", log, "--at", "1000000000", status=2)


def test_replay_prints_the_page(log: Path) -> None:
    """Byte for byte that of the exporter."""
    assert ok("replay", log, "--metrics") == PrometheusExporter(replay([log])).gather()


def test_replay_tells_of_broken_lines_and_holes(broken: Path) -> None:
    """On stderr; and the numbers are called lower bounds."""
    result = run("replay", str(broken))
    assert result.exit_code == 0
    assert "Spans: at least 5" in result.stdout
    assert f"{clean(broken)}:4: " in result.stderr
    assert "1 broken lines were left out" in result.stderr
    assert "1 records are missing" in result.stderr
    found = json.loads(run("replay", str(broken), "--json").stdout)
    assert (found["report"]["broken"], found["report"]["missing"]) == (1, 1)
    assert found["report"]["problems"][0]["line"] == 4


def test_replay_reads_what_is_compressed_and_what_comes_through_a_pipe(log: Path) -> None:
    """All give the same names."""
    data = log.read_bytes()
    (log.parent / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (log.parent / "a.jsonl.zst").write_bytes(zstandard.compress(data))
    expected = machine("replay", log)["names"]
    assert machine("replay", log.parent / "a.jsonl.gz")["names"] == expected
    assert machine("replay", log.parent / "*.zst")["names"] == expected
    assert machine("replay", "-", input=data)["names"] == expected
    # The same three times: each record counts once.
    assert machine("replay", log, log.parent / "*.gz", log.parent / "*.zst")["names"] == expected


def test_replay_with_rules(tmp_path: Path) -> None:
    """The lines of another program become spans."""
    (tmp_path / "rules.toml").write_text(
        "[[rule]]\nname = 'job'\nstart = '^start (?P<id>\\d+)$'\nend = '^end (?P<id>\\d+)$'\nkey = ['id']\n"
    )
    (tmp_path / "old.log").write_text("start 1\nstart 2\nend 1\n")
    found = machine("replay", tmp_path / "old.log", "--rules", tmp_path / "rules.toml")
    assert (found["names"]["job"]["spawned"], found["names"]["job"]["completed"]) == (2, 1)


# -- export ----------------------------------------------------------------------------------------------------------


def test_export_json_is_that_of_the_exporter(log: Path, tmp_path: Path) -> None:
    """To a file and to stdout, and reads back."""
    out = tmp_path / "out.json"
    assert ok("export", log, "-o", out) == ""
    assert out.read_text() == ok("export", log) == JsonExporter.export_to_string(LogTasks([log]))
    again = JsonExporter.read(out)
    assert again.names["job"].failed == 1
    assert len(again.tasks) == 5
    # An export is exported.
    assert ok("export", out) == out.read_text()
    assert ok("export", "-", input=out.read_bytes()) == out.read_text()
    (tmp_path / "out.json.gz").write_bytes(gzip.compress(out.read_bytes()))
    assert ok("export", tmp_path / "out.json.gz") == out.read_text()


def test_export_csv(log: Path) -> None:
    """Tasks, or entries of timelines."""
    tasks = list(csv.DictReader(io.StringIO(ok("export", log, "--format", "csv"), newline="")))
    assert len(tasks) == 5
    assert ok("export", log, "--format", "csv") == CsvExporter.export_to_string(LogTasks([log]))
    events = ok("export", log, "--format", "csv", "--what", "events")
    assert events == CsvExporter.export_to_string(LogTasks([log]), what="events")
    assert events != ok("export", log, "--format", "csv")


def test_export_for_other_tools(log: Path) -> None:
    """Chrome's traces, speedscope, and collapsed stacks of each kind of time."""
    assert json.loads(ok("export", log, "--format", "chrome"))["traceEvents"]
    assert json.loads(ok("export", log, "--format", "speedscope"))["$schema"]
    found = {time: ok("export", log, "--format", "collapsed", "--time", time) for time in ("busy", "blocked", "all")}
    assert len(set(found.values())) == 3
    assert re.fullmatch(r"(.+ \d+\n)+", found["all"])


def test_export_says_what_it_wrote(log: Path, tmp_path: Path) -> None:
    """With --json, and a file."""
    found = machine("export", log, "-o", tmp_path / "x.csv", "--format", "csv")
    assert (found["file"], found["format"], found["report"]["records"]) == (str(tmp_path / "x.csv"), "csv", 10)


@pytest.mark.parametrize(
    ("name", "form", "warned"),
    [
        ("x.csv", "json", True),
        ("x.JSON", "csv", True),
        ("x.json", "chrome", False),
        ("x.csv", "csv", False),
        ("x", "csv", False),
    ],
)
def test_an_export_whose_name_says_another_format(
    log: Path, tmp_path: Path, name: str, form: str, warned: bool
) -> None:
    """Is written as was asked, with a warning."""
    result = run("export", str(log), "-o", str(tmp_path / name), "--format", form)
    assert result.exit_code == 0
    assert (tmp_path / name).exists()
    assert ("its name says" in result.stderr) == warned


def test_replay_reads_several_files_at_a_time(log: Path, stream: Callable[..., Tell]) -> None:
    """With the same result."""
    other = log.parent / "other.jsonl"
    other.write_text("".join(lines(stream(pid=7, base=0x77 << 40))))
    expected = machine("replay", log, other)
    assert expected["names"]["job"]["spawned"] == 6
    found = machine("replay", log, other, "--processes", 2)
    assert (found["names"], found["report"]) == (expected["names"], expected["report"])


def test_an_export_that_fails_leaves_what_was_there(broken: Path, tmp_path: Path) -> None:
    """No half file, and no temporary one."""
    out = tmp_path / "out.json"
    out.write_text("before")
    refused("export", broken, "--strict", "-o", out, status=1)
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "out.json"]
    assert "there is no folder" in refused("export", broken, "-o", tmp_path / "none" / "x.json")


# -- stats -----------------------------------------------------------------------------------------------------------


def test_stats_of_a_log(log: Path) -> None:
    """Counts and quantiles by name, those of the profile."""
    text = ok("stats", log)
    assert row(text, "job")[1:8] == ["3", "0", "1", "0", "20.0 ms", "29.0 ms", "29.8 ms"]
    found = machine("stats", log)
    expected = profile(LogTasks([log])).to_dict()["names"]
    for each in expected:
        if each["efficiency"] is None:
            each |= {"busy": None, "idle": None, "scheduled": None}
    assert found["names"] == json.loads(json.dumps(expected))
    assert "and 2 more names" in ok("stats", log, "--top", "1")


def test_stats_in_detail(log: Path) -> None:
    """Distributions and rankings."""
    text = ok("stats", log, "--detailed")
    for part in ("p99", "slowest", "hot paths", "2 completed, 1 failed"):
        assert part in text


def test_stats_as_json_says_null_of_what_nobody_told(tmp_path: Path, tell: Tell) -> None:
    """No driver, no step records; of a page, no tasks. What was told is a number, and 0 where it is 0."""
    path = tmp_path / "plain.jsonl"
    steps = [tell("suspend", 2, on="lock:db"), tell("resume", 2)]
    plain, driven = (
        [tell("enter", n, name=name), tell("exit", n, name=name, **more)]
        for n, name, more in ((1, "plain", {}), (2, "driven", {"busy": 1_000_000, "polls": 2}))
    )
    write_log(path, [*plain, *driven])

    def told(where: object) -> dict[str, list[Any]]:
        fields = ("busy", "idle", "scheduled", "self", "waited")
        return {each["name"]: [each[field] for field in fields] for each in machine("stats", where)["names"]}

    assert told(path) == {"plain": [None, None, None, 0.002, None], "driven": [0.001, 0.001, 0.0, 0.002, None]}
    with PrometheusExporter(replay([path]), port=0).start_server() as server:
        found = told(f"http://127.0.0.1:{server.port}")
    assert found == {"plain": [None] * 5, "driven": [0.001, 0.001, 0.0, None, None]}
    write_log(path, [*plain, *driven, *steps])
    assert [each[4] is None for each in told(path).values()] == [False, False]


def test_top_has_an_effect_on_json(tmp_path: Path, tell: Tell) -> None:
    """On rankings; names are all there."""
    path = tmp_path / "many.jsonl"
    payloads = [tell(kind, n, name=f"job {n}") for n in range(1, 31) for kind in ("enter", "exit")]
    write_log(path, payloads)
    counts = {}
    for top in (None, 3, 20):
        found = machine("stats", path, *([] if top is None else ["--top", top]))
        counts[top] = [len(found[key]) for key in ("names", "slowest", "hot_paths")]
    assert counts == {None: [30, 10, 30], 3: [30, 3, 3], 20: [30, 20, 20]}


def test_stats_of_a_running_process(log: Path) -> None:
    """The same counts; times are estimates, and said to be."""
    with PrometheusExporter(replay([log]), port=0).start_server() as server:
        text = ok("stats", f"http://127.0.0.1:{server.port}")
        found = machine("stats", f"http://127.0.0.1:{server.port}/metrics")
    assert row(text, "job")[1:5] == ["3", "0", "1", "0"]
    assert row(text, "job")[5].startswith("~")
    (job,) = [name for name in found["names"] if name["name"] == "job"]
    assert job["durations"]["basis"] == "buckets"


def test_other_commands_on_a_running_process(log: Path, tmp_path: Path) -> None:
    """It can be exported and compared, and has no tasks to look at."""
    with PrometheusExporter(replay([log]), port=0).start_server() as server:
        address = f"http://127.0.0.1:{server.port}"
        ok("export", address, "-o", tmp_path / "x.json")
        assert machine("diff", address, log)["new"]["names"] == []
        for command in ("graph", "check"):
            assert f"no tasks, which {command} needs" in refused(command, address)
    assert machine("stats", tmp_path / "x.json")["names"]


def test_only_logs_can_be_several(log: Path) -> None:
    """An address or an export goes alone, and has no time to be looked at."""
    assert "goes alone" in refused("stats", log, "http://127.0.0.1:1")
    assert "at is for logs only" in refused("stats", "http://127.0.0.1:1", "--at", "0")
    out = log.parent / "x.json"
    ok("export", log, "-o", out)
    assert "goes alone" in refused("stats", log, out)
    assert "strict is for logs only" in refused("stats", out, "--strict")


# -- graph -----------------------------------------------------------------------------------------------------------


def test_graph_in_each_format(log: Path) -> None:
    """All of them name the spans."""
    assert "job" in ok("graph", log)
    assert ok("graph", log, "--format", "dot").startswith("digraph")
    assert re.match(r"(flowchart|graph) ", ok("graph", log, "--format", "mermaid"))
    found = machine("graph", log)
    assert {node["name"] for node in found["nodes"]} >= {"job", "open"}
    assert json.loads(ok("graph", log, "--format", "json")) == found


def test_graph_of_one_span(tmp_path: Path, tell: Tell) -> None:
    """What it depends on, and nothing else."""
    parent = tell("enter", 1, name="parent")
    child = tell("enter", 2, name="child", parent=parent["id"], trace=parent["trace"])
    other = tell("enter", 3, name="other")
    ends = [tell("exit", 2, name="child"), tell("exit", 1, name="parent"), tell("exit", 3, name="other")]
    path = write_log(tmp_path / "family.jsonl", [parent, child, other, *ends])
    text = ok("graph", path, "--of", "parent")
    assert "child" in text
    assert "other" not in text
    dot = ok("graph", path, "--of", "parent", "--format", "dot")
    assert "child" in dot
    assert "other" not in dot
    assert [node["name"] for node in machine("graph", path, "--of", "parent")["dependencies"]] == ["child"]
    assert "no node 'nobody'" in refused("graph", path, "--of", "nobody")


# -- diff, check -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "status", "verdict"),
    [
        ([], 0, None),
        (["failed > 0"], 1, True),
        (["failed > 1"], 0, False),
        (["p50(job) > 5ms"], 1, True),
        (["failed > 1", "p99(job) > 1s", "completed < 2"], 0, False),
        (["failed > 1", "completed < 9"], 1, True),
        (["p99(job) > 1.2x"], 0, None),
    ],
)
def test_diff_fails_on_conditions(log: Path, conditions: list[str], status: int, verdict: bool | None) -> None:
    """With exit status 1 where one of them holds; where too little is known to say, it does not."""
    options = [part for condition in conditions for part in ("--fail-on", condition)]
    result = run("diff", str(log), str(log), *options)
    assert result.exit_code == status
    assert "3 spans, 2 completed, 1 failed" in result.stdout
    assert ("FAILED: " in result.stdout) == (verdict is True)
    assert ("passed: " in result.stdout) == (verdict is False or len(conditions) > 1)
    assert ("unknown: " in result.stdout) == (verdict is None and bool(conditions))
    found = json.loads(run("diff", str(log), str(log), *options, "--json").stdout)
    assert found["failed"] is (status == 1)
    assert {each["condition"] for each in found["conditions"]} <= set(conditions)


def test_diff_of_what_differs(log: Path, tmp_path: Path, tell: Tell) -> None:
    """Names that are new or gone; a log and an export may be compared."""
    other = write_log(tmp_path / "other.jsonl", [tell(kind, 9, name="new") for kind in ("enter", "exit")])
    ok("export", log, "-o", tmp_path / "log.json")
    found = machine("diff", tmp_path / "log.json", other)
    assert (found["new"]["names"], sorted(found["gone"]["names"])) == (["new"], sorted(["job", HOSTILE, "open"]))
    text = ok("diff", tmp_path / "log.json", other)
    assert "new name: new" in text
    assert "\x1b" not in text


def test_a_condition_that_cannot_be_read_ends_with_2(log: Path) -> None:
    """Before anything is read."""
    assert "fast" in refused("diff", "nowhere", "nowhere", "--fail-on", "fast > 1x")
    assert "no span is called 'jobs'" in refused("diff", log, log, "--fail-on", "p99(jobs) > 1x")
    assert f"{clean(log)}" not in refused("diff", log, "nowhere")


def test_check_finds_what_cannot_be(log: Path, tmp_path: Path, tell: Tell) -> None:
    """With exit status 1; nothing is found where all is well."""
    assert ok("check", log) == "Nothing was found.\n"
    assert machine("check", log)["flaws"] == []
    parent = tell("enter", 1, name="parent")
    child = tell("enter", 2, name=HOSTILE, parent=parent["id"], trace=parent["trace"])
    ends = [tell("exit", 1, name="parent"), tell("exit", 2, name=HOSTILE)]
    path = write_log(tmp_path / "flawed.jsonl", [parent, child, *ends])
    result = run("check", str(path))
    assert result.exit_code == 1
    assert "outlives_parent" in result.stdout
    assert "\x1b" not in result.output
    result = run("check", str(path), "--json")
    assert result.exit_code == 1
    assert [flaw["kind"] for flaw in json.loads(result.stdout)["flaws"]] == ["outlives_parent"]


# -- config, info, version ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ASYNC_INSPECT_")]:
        monkeypatch.delenv(name)
    # Workers of pytest-xdist have a terminal of 80 columns.
    monkeypatch.delenv("COLUMNS", raising=False)


def test_narrow_terminals_lose_nothing(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are folded; before, the names of the spans had no column left."""
    monkeypatch.setenv("COLUMNS", "60")
    table = [line.split("│")[1:-1] for line in run("stats", log).output.splitlines() if line.startswith("│")]
    texts = ["".join(cells).replace(" ", "") for cells in zip(*table, strict=True)]
    assert texts[0].startswith("span")
    assert "job" in texts[0]
    assert "cancelled" in "".join(texts)


def test_config_says_where_each_setting_comes_from() -> None:
    """From a variable, the preset, or the default; an empty variable is none."""
    env = {"ASYNC_INSPECT_PRESET": "production", "ASYNC_INSPECT_MAX_TASKS": "7", "ASYNC_INSPECT_SLOW_POLL": ""}
    found = machine("config", env=env)
    settings = {each["setting"]: (each["value"], each["source"]) for each in found["settings"]}
    assert list(settings) == list(Config.__dataclass_fields__)
    assert settings["max_tasks"] == (7, "ASYNC_INSPECT_MAX_TASKS")
    assert settings["sampling_rate"] == (100, "preset production")
    assert settings["slow_poll"] == (0.1, "default")
    assert (found["errors"], found["warnings"]) == ([], [])
    assert row(ok("config", env=env), "sampling_rate") == ["sampling_rate", "100", "preset production"]


def test_config_tells_of_everything_that_is_wrong() -> None:
    """All of it at once, with exit status 1, beside the settings that are left."""
    env = {
        "ASYNC_INSPECT_MAX_TASKS": "many\x1b[31m",
        "ASYNC_INSPECT_SLOW_POLL": "-1",
        "ASYNC_INSPECT_MAX_TASK": "7",
        "ASYNC_INSPECT_PRESET": "fast",
    }
    result = run("config", env=env)
    assert result.exit_code == 1
    for part in ("MAX_TASKS='many\\x1b[31m' is not a number", "slow_poll=-1", "preset", "ASYNC_INSPECT_MAX_TASKS?"):
        assert part in result.stderr
    assert "\x1b" not in result.output
    found = json.loads(run("config", "--json", env=env).stdout)
    assert (len(found["errors"]), len(found["warnings"])) == (3, 1)
    assert {each["source"] for each in found["settings"]} == {"default"}


def test_config_shows_the_presets() -> None:
    """Those settings in which they differ."""
    text = ok("config", "--presets")
    assert row(text, "max_events") == ["max_events", "1000", "10000", "none"]
    assert "redact" not in text
    assert machine("config", "--presets")["presets"]["debug"]["max_tasks"] is None


def test_version() -> None:
    """Of the package, the protocol and Python."""
    assert ok("version").startswith(f"asyncinspect {__version__} (record protocol 1, Python 3.")
    assert machine("version")["asyncinspect_logging"] == __version__


def test_info_shows_what_a_logging_config_makes_of_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handlers of a module that sets up logging, and which of them hear spans."""
    (tmp_path / "shop_settings.py").write_text(
        "import logging\n"
        "from asyncinspect_logging import AsyncInspectHandler, Inspector\n"
        "logging.getLogger().handlers[:] = [AsyncInspectHandler(Inspector()), logging.StreamHandler()]\n"
        "logging.getLogger('asyncinspect').setLevel('DEBUG')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    found = machine("info", "--import", "shop_settings")
    monkeypatch.delitem(sys.modules, "shop_settings")
    root, spans, internal = found["loggers"]
    assert [handler["spans"] for handler in root["handlers"]] == ["all", "begin and end"]
    assert (spans["level"], internal["name"]) == ("DEBUG", "asyncinspect.internal")
    assert "AsyncInspectHandler" in ok("info")
    assert "No module named" in refused("info", "--import", "no_such_module")


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "--open"],
        ["replay", "--strict"],
        ["stats"],
        ["stats", "--detailed"],
        ["graph"],
        ["check"],
        ["replay", "--json"],
        ["stats", "--json"],
        ["graph", "--json"],
    ],
    ids=" ".join,
)
def test_nothing_a_log_says_is_taken_for_a_command(arguments: list[str], log: Path, broken: Path) -> None:
    """No control character, mark of direction or markup of a log comes out as such, on stdout or stderr."""
    for path in (log, broken):
        result = run(arguments[0], str(path), *arguments[1:])
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.output), ascii(result.output)
        assert "red]x" in result.output or arguments[-1] in ("--strict", "check")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b\x00\x7f", "\\x9b\\x00\\x7f"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202e\u2028", "\\u202e\\u2028"),
        ("\ud800", "\\ud800"),
        ("x" * 300, "x" * 199 + "…"),
        (None, "None"),
    ],
)
def test_clean(text: object, shown: str) -> None:
    """Whatever cannot be shown is spelled out."""
    assert clean(text) == shown


@given(st.text(st.characters(codec=None), max_size=50))
def test_clean_leaves_nothing_to_a_terminal(text: str) -> None:
    """Nor a lone surrogate, which could not be written."""
    shown = clean(text, limit=1000)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert clean(shown, limit=1000) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1.5e-8, "15 ns"),
        (1.234e-6, "1.23 µs"),
        (0.00999, "9.99 ms"),
        (0.0999, "99.9 ms"),
        (0.9996, "1.00 s"),
        (59.94, "59.9 s"),
        (119.6, "120 s"),
        (7500, "2 h 05 min"),
        (7199.9, "2 h 00 min"),
        (1e8, "1,157 d"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_seconds(value: float | None, shown: str) -> None:
    """Three digits, and a unit."""
    assert seconds(value) == shown


def test_moment() -> None:
    """In UTC; what no calendar has is said in seconds."""
    assert moment(1_700_000_000.25) == "2023-11-14T22:13:20.250+00:00"
    assert moment(1e300).endswith("s after 1970")


def test_inspector_of_this_process_is_left_alone(log: Path) -> None:
    """The command counts in inspectors of its own."""
    before = Inspector.default().snapshot().names
    ok("replay", log)
    assert Inspector.default().snapshot().names == before


@pytest.mark.parametrize(
    "arguments", [["replay"], ["stats"], ["stats", "--detailed"], ["graph"], ["check"]], ids=" ".join
)
def test_a_terminal_that_knows_ascii_only(arguments: list[str], log: Path) -> None:
    """Gets no box of Unicode, and no error."""
    result = CliRunner(charset="ascii").invoke(commands, [arguments[0], str(log), *arguments[1:]])
    assert result.exit_code == 0
    assert result.stdout_bytes.isascii()
    assert b"job" in result.stdout_bytes or arguments == ["check"]


def test_nothing_but_the_command_imports_it() -> None:
    """It stands at the end of the way from a span to what is shown."""
    package = Path(cli.__file__).parent.parent
    for path in package.rglob("*.py"):
        if path.parent.name != "cli" and path.name != "__main__.py":
            assert not re.search(r"^\s*(from|import) .*\bcli\b", path.read_text("utf-8"), re.MULTILINE), path


# -- documentation -----------------------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


def section(name: str) -> str:
    return PAGE.read_text("utf-8").partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", _MODULES)
def test_every_option_is_documented(name: str) -> None:
    """In the section of its command, or in the table of those that commands share; and no others are."""
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    options = {option for each in command.params for option in each.opts if option.startswith("-")}
    documented = set(re.findall(r"^\| `(--?[a-z-]+)", section(name), re.MULTILINE))
    shared = {"--json", "--strict", "--at", "--rules", "--output"}
    assert documented == {option for option in options - shared if option.startswith("--") or option == "-o"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("replay", ["LOG"]),
        ("export", ["LOG", "-o", "OUT"]),
        ("stats", ["LOG"]),
        ("graph", ["LOG"]),
        ("diff", ["LOG", "LOG"]),
        ("check", ["LOG"]),
        ("rules", []),
        ("info", []),
        ("config", []),
        ("version", []),
    ],
)
def test_every_key_is_documented(name: str, arguments: list[str], log: Path, tmp_path: Path) -> None:
    """Those of the object, and those of the objects in it."""
    arguments = [{"LOG": str(log), "OUT": str(tmp_path / "out")}.get(each, each) for each in arguments]
    found = machine(name, *arguments)
    rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \| (.*) \|$", section(name), re.MULTILINE)
    documented = {key: text for keys, text in rows for key in re.findall("`([a-z_]+)`", keys)}
    assert set(found) - {"command", "version"} == set(documented) - {"presets"}
    for key, value in found.items():
        inner = value[0] if isinstance(value, list) and value else value
        if documented.get(key, "").startswith("of a log, as"):
            continue
        if key in ("open", "findings", "nodes", "edges", "flaws", "settings", "report", "loggers"):
            assert isinstance(inner, dict | list)
            assert not isinstance(inner, dict) or set(inner) <= set(re.findall("`([a-z_]+)`", documented[key])), key


def test_every_exit_status_is_documented() -> None:
    """Each of those that there are."""
    rows = re.findall(r"^\| (\d+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert list(map(int, rows)) == [0, cli.FAILED, cli.UNUSABLE, cli.INTERNAL, cli.INTERRUPTED, cli.BROKEN_PIPE]


def test_an_export_never_takes_the_place_of_its_source(log: Path) -> None:
    """By whatever name."""
    before = log.read_bytes()
    for where in (str(log), str(log.parent / "*.jsonl")):
        result = run("export", where, "--format", "csv", "-o", str(log))
        assert result.exit_code == 2
        assert "is what is to be read" in result.output
    assert log.read_bytes() == before


def test_names_that_utf8_has_not_are_compared(tmp_path: Path, tell: Tell) -> None:
    """A lone surrogate comes out of JSON as it went in."""
    path = tmp_path / "odd.jsonl"
    lines = [
        tell(kind, name="\ud800", **({"outcome": "completed"} if kind == "exit" else {})) for kind in ("enter", "exit")
    ]
    write_log(path, lines)
    assert run("diff", str(path), str(path), "--fail-on", "count > 1x").exit_code == 0
