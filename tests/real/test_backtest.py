"""The back-test as the command does it, with a real promtool and a real Prometheus."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner, Result

from asyncinspect_logging.cli.commands import commands

pytestmark = pytest.mark.real

#: Seconds, at a moment of 15 s and at the beginning of a block of Prometheus.
T0 = 1_699_999_200
MAIN = "import sys; from asyncinspect_logging.cli import main; main(sys.argv[1:])"
RULES = """
groups:
  - name: g
    rules:
      - record: job:failed:rate1m
        expr: sum by (job) (rate(async_inspect_tasks_failed_total[1m]))
      - record: job:failed:share1m
        expr: job:failed:rate1m / sum by (job) (rate(async_inspect_tasks_total[1m]))
      - alert: Failing
        expr: job:failed:share1m > 0.5
        for: 1m
        labels: {severity: page, team: "{{ $labels.job }}-ops"}
      - alert: FailingForLong
        expr: job:failed:share1m > 0.5
        for: 30m
      - alert: Restarted
        expr: resets(async_inspect_tasks_total[5m]) > 0
      - alert: Never
        expr: async_inspect_active_tasks > 100
"""


@pytest.fixture(autouse=True)
def _programs(needs_prometheus: Any, promtool: str) -> None:
    pass


def record(pid: int, seq: int, wall: float, kind: str, number: int, **more: Any) -> str:
    ns = round(wall * 1e9)
    head = {"v": 1, "kind": kind, "id": f"{((0x1000_0000 + pid) << 32) + number:016x}", "t": ns - 10**18, "wall": ns}
    return json.dumps({"asyncinspect": {**head, "pid": pid, "seq": seq, "name": "job", **more}}) + "\n"


def lines(pid: int, start: int, end: int, failing: range) -> list[str]:
    """A job each second, from start to end (seconds after T0), which fail in `failing`."""
    found = []
    for number, at in enumerate(range(start, end), 1):
        outcome = "failed" if at in failing else "completed"
        more = {"trace": f"{number:032x}", "thread": 1, "fields": {}}
        found.append(record(pid, 2 * number - 1, T0 + at + 0.1, "enter", number, **more))
        ended = {"outcome": outcome, "duration": 10**8, "polls": 2, "busy": 1000, "max_poll": 1000}
        found.append(record(pid, 2 * number, T0 + at + 0.2, "exit", number, **ended))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rules, and a log of 40 minutes: failures from minute 10 to 15, and another process from minute 30 on."""
    folder = tmp_path_factory.mktemp("backtest")
    (folder / "rules.yml").write_text(RULES, "utf-8")
    told = lines(1, 0, 1800, range(600, 900)) + lines(2, 1830, 2400, range(0))
    (folder / "service.jsonl").write_text("".join(told), "utf-8")
    return folder


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(commands, ["backtest", *map(str, arguments)], **options)


def machine(*arguments: object, **options: Any) -> dict[str, Any]:
    result = run(*arguments, "--json", **options)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_when_alerts_would_have_fired(folder: Path) -> None:
    """From, to, labels and value; of recorded values of recorded values; before and after a restart."""
    found = machine(folder / "rules.yml", folder / "service.jsonl")
    assert (found["start"], found["end"], found["interval"]) == (T0, T0 + 2400, 15)
    assert found["alerts"] == {"Failing": 1, "FailingForLong": 0, "Restarted": 1, "Never": 0}
    assert found["recorded"] == ["job:failed:rate1m", "job:failed:share1m"]
    assert found["samples"] == 2400 // 15 + 1
    assert found["report"]["records"] == 2 * (1800 + 570)
    assert not found["notes"]
    failing, long, restarted = found["episodes"]
    assert failing["labels"] == {"job": "asyncinspect", "severity": "page", "team": "asyncinspect-ops"}
    # More than half of a minute fails from the 31st second on; what is recorded is up to an interval old, and the rate
    # of what is recorded another one.
    assert 630 <= failing["since"] - T0 <= 630 + 3 * 15
    assert failing["start"] == failing["since"] + 60
    assert 930 <= failing["end"] - T0 <= 930 + 3 * 15
    assert 0.5 < failing["value"] <= 1
    assert (long["alert"], long["start"], long["since"], long["end"]) == (
        "FailingForLong",
        None,
        failing["since"],
        failing["end"],
    )
    assert restarted["labels"] == {"instance": "service.jsonl", "job": "asyncinspect", "name": "job"}
    # The counter of the second process is below that of the first one until five minutes later.
    assert 1830 <= restarted["start"] - T0 <= 1830 + 15
    assert 1830 + 285 <= restarted["end"] - T0 <= 1830 + 315


def test_lines_that_were_lost_fire_our_alert(folder: Path, tmp_path: Path) -> None:
    """When they went, which increase() sees, and for as long as it looks back."""
    told = (folder / "service.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "service.jsonl").write_text("".join([*told[:1200], *told[1600:]]), "utf-8")
    rules = Path(__file__).parents[2] / "ops" / "alerts.yml"
    found = machine(rules, tmp_path / "service.jsonl")
    assert found["report"]["missing"] == 400
    (dropped,) = [episode for episode in found["episodes"] if episode["alert"] == "RecordsDropped"]
    assert dropped["labels"]["reason"] == "gap"
    # Seconds 600 to 799 are lost: what comes after says so.
    assert 800 <= dropped["start"] - T0 <= 800 + 3 * 15
    assert 585 <= dropped["end"] - dropped["start"] <= 615
    assert dropped["value"] == pytest.approx(400, rel=0.05)


@pytest.mark.parametrize("how", ["gzip", "zstd", "stdin", "rotated"])
def test_logs_of_all_kinds(folder: Path, tmp_path: Path, how: str) -> None:
    """Packed, through a pipe, and in several files: the same."""
    text, options = (folder / "service.jsonl").read_bytes(), {}
    paths: list[object] = [tmp_path / "service.jsonl"]
    if how == "gzip":
        paths = [tmp_path / "service.jsonl.gz"]
        (tmp_path / "service.jsonl.gz").write_bytes(gzip.compress(text))
    elif how == "zstd":
        paths = [tmp_path / "service.jsonl.zst"]
        (tmp_path / "service.jsonl.zst").write_bytes(zstandard.compress(text))
    elif how == "rotated":
        told = text.splitlines(keepends=True)
        (tmp_path / "service.jsonl.1").write_bytes(b"".join(told[:1000]))
        (tmp_path / "service.jsonl").write_bytes(b"".join(told[1000:]))
        paths = [tmp_path / "service.jsonl*"]
    else:
        paths, options = ["-"], {"input": io.BytesIO(text)}
    expected, found = (
        machine(folder / "rules.yml", folder / "service.jsonl"),
        machine(folder / "rules.yml", *paths, **options),
    )
    for each in (expected, found):
        for episode in each["episodes"]:
            episode["labels"].pop("instance", None)
    assert found["episodes"] == expected["episodes"]
    assert found["report"]["records"] == expected["report"]["records"]


def test_for_people(folder: Path) -> None:
    """A table of what fired, and what did not."""
    result = run(folder / "rules.yml", folder / "service.jsonl", "--job", "shop", env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "Fired: 2" in result.stdout
    assert "161 scrapes of 1 targets of the job shop" in result.stdout
    assert "job=shop severity=page team=shop-ops" in result.stdout
    assert "Pending, and over before it fired: FailingForLong, 1 times" in result.stdout
    assert "Never: Never" in result.stdout
    assert "2023-11-14T22:" in result.stdout


def test_fail(folder: Path) -> None:
    """With --fail, an alert that fires is an exit status, and one that is only pending is none."""
    arguments = (folder / "rules.yml", folder / "service.jsonl", "--fail")
    assert run(*arguments).exit_code == 1
    assert run(*arguments, "--to", T0 + 300).exit_code == 0
    assert run(*arguments, "--to", T0 + 650).exit_code == 0


def test_from_when_to_when(folder: Path) -> None:
    """What was before counts, and what is open at the end is told of as such."""
    found = machine(folder / "rules.yml", folder / "service.jsonl", "--from", T0 + 700, "--to", T0 + 800)
    assert (found["start"], found["end"]) == (T0 + 690, T0 + 810)
    assert found["alerts"]["Failing"] == 1
    assert [episode["end"] for episode in found["episodes"]] == [None, None]


def test_with_the_rules_of_ours(folder: Path, tmp_path: Path) -> None:
    """All of them in one file; what a log does not tell is said."""
    rules = CliRunner().invoke(commands, ["rules", "--job", "shop"]).stdout
    (tmp_path / "ours.yml").write_text(rules, "utf-8")
    found = machine(tmp_path / "ours.yml", folder / "service.jsonl")
    assert found["job"] == "shop"
    assert sum(found["alerts"].values()) == 0
    assert len(found["alerts"]) == rules.count("alert: ")
    assert len(found["recorded"]) == 5
    assert any("TargetDown reads up" in note for note in found["notes"])
    assert any("async_inspect_event_loop_lag_seconds_bucket" in note for note in found["notes"])


def test_a_long_log_goes_in_pieces(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a day with little in it: nothing is lost between the pieces, however they are cut."""
    told = lines(1, 0, 300, range(0)) + lines(2, 20_000, 20_300, range(20_000, 20_300))
    told += lines(3, 40_000, 40_500, range(40_000, 40_300))
    (tmp_path / "service.jsonl").write_text("".join(told), "utf-8")
    monkeypatch.setattr("asyncinspect_logging.analysis.backtest.run._MAX_TEXT", 100_000)
    found = machine(folder / "rules.yml", tmp_path / "service.jsonl", "--interval", 60)
    assert found["samples"] == 40_500 // 60 + 1
    found = machine(folder / "rules.yml", tmp_path / "service.jsonl")
    starts = [episode["start"] - T0 for episode in found["episodes"] if episode["alert"] == "Failing"]
    assert len(starts) == 2
    assert 20_060 <= starts[0] <= 20_150
    assert 40_060 <= starts[1] <= 40_150


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("nonsense", "promtool says: "),
        ("groups: [{name: g, rules: [{alert: A, expr: 'rate(x'}]}]", "unclosed left parenthesis"),
        ("groups: [{name: g, rules: [{alert: A, expr: x, for: soon}]}]", "not a valid duration"),
        ("groups: [{name: g, rules: [{record: a, expr: x}]}]", "there is no alert in"),
        ("groups: []", "there is no alert in"),
    ],
)
def test_rules_that_are_none(folder: Path, tmp_path: Path, rules: str, message: str) -> None:
    """promtool says why, of the file as the user knows it."""
    (tmp_path / "rules.yml").write_text(rules, "utf-8")
    result = run(tmp_path / "rules.yml", folder / "service.jsonl")
    assert result.exit_code == 2
    assert message in result.stderr
    assert str(tmp_path / "rules.yml") in result.stderr
    assert "asyncinspect-backtest-" not in result.stderr


def test_rules_and_logs_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    """Nor that a log without records is of spans."""
    result = run(tmp_path / "rules.yml", folder / "service.jsonl")
    assert result.exit_code == 2
    assert "cannot be read: No such file" in result.stderr
    result = run(folder / "rules.yml", tmp_path / "no.jsonl")
    assert result.exit_code == 2
    assert "there is no file" in result.stderr
    (tmp_path / "other.log").write_text("hello\nworld\n", "utf-8")
    result = run(folder / "rules.yml", tmp_path / "other.log")
    assert result.exit_code == 2
    assert "no records of spans in 2 lines" in result.stderr


def test_a_query_that_prometheus_refuses(folder: Path, tmp_path: Path) -> None:
    """In its own words: what promtool takes may still fail."""
    text = "groups: [{name: g, rules: [{alert: A, expr: up + on () async_inspect_tasks_by_state}]}]"
    (tmp_path / "rules.yml").write_text(text, "utf-8")
    result = run(tmp_path / "rules.yml", folder / "service.jsonl")
    assert result.exit_code == 2
    assert "Prometheus says: " in result.stderr
    assert "many-to-many" in result.stderr


def test_a_recording_rule_that_fails(folder: Path, tmp_path: Path) -> None:
    """Is an error, too, and not a series without data."""
    text = """groups: [{name: g, rules: [
        {record: a, expr: up + on () async_inspect_tasks_by_state}, {alert: A, expr: a > 0}]}]"""
    (tmp_path / "rules.yml").write_text(text, "utf-8")
    result = run(tmp_path / "rules.yml", folder / "service.jsonl")
    assert result.exit_code == 2
    assert "recording rules; promtool says: " in result.stderr


def test_broken_lines(folder: Path, tmp_path: Path) -> None:
    """Are told of, and an error with --strict."""
    text = (folder / "service.jsonl").read_text("utf-8")
    (tmp_path / "service.jsonl").write_text(text + '{"asyncinspect": {\n', "utf-8")
    result = run(folder / "rules.yml", tmp_path / "service.jsonl")
    assert result.exit_code == 0
    assert "service.jsonl:4741" in result.stderr
    result = run(folder / "rules.yml", tmp_path / "service.jsonl", "--strict")
    assert result.exit_code == 1
    assert "service.jsonl:4741" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
@pytest.mark.parametrize("at", ["rules.yml", "data"])
def test_nothing_is_left_behind_when_it_is_stopped(
    folder: Path, tmp_path: Path, number: signal.Signals, at: str
) -> None:
    """By Ctrl-C, by what stops services, or by a terminal that is closed: no file, and no program."""
    # So many that it is stopped in the middle of them.
    rules = tmp_path / "rules.yml"
    never = "avg_over_time(async_inspect_tasks_total[20m]) < 0"
    many = [{"alert": f"Never{number}", "expr": never} for number in range(500)]
    rules.write_text(json.dumps({"groups": [{"name": "many", "rules": many}]}))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "backtest", rules, folder / "service.jsonl", "--interval", "1"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not list(temporary.glob(f"asyncinspect-backtest-*/{at}")):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert not list(temporary.iterdir())
    # What is killed along with its owner is so a moment later.
    deadline = time.monotonic() + 10
    while found := _running(temporary):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def _running(folder: Path) -> list[str]:
    """The programs that were started with something in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            if str(folder).encode() in command:
                found.append(command.decode("utf-8", "replace"))
    return found


def test_months_of_silence(folder: Path, tmp_path: Path) -> None:
    """Between two lines: they are few blocks, and no call of promtool for each two hours."""
    told = lines(1, 0, 60, range(0)) + lines(2, 60 * 86400, 60 * 86400 + 300, range(60 * 86400, 61 * 86400))
    (tmp_path / "service.jsonl").write_text("".join(told), "utf-8")
    found = machine(folder / "rules.yml", tmp_path / "service.jsonl", "--interval", 300)
    assert found["samples"] == 60 * 86400 // 300 + 2
    text = (
        "groups: [{name: g, rules: [{record: a, expr: 'async_inspect_tasks_failed_total'}, {alert: A, expr: a > 0}]}]"
    )
    (tmp_path / "rules.yml").write_text(text, "utf-8")
    (failed,) = machine(
        tmp_path / "rules.yml", tmp_path / "service.jsonl", "--interval", 300, "--to", T0 + 60 * 86400 + 1200
    )["episodes"]
    assert 60 * 86400 <= failed["since"] - T0 <= 60 * 86400 + 600


def test_nothing_is_left_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, and no Prometheus, after an error either."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run(folder / "rules.yml", folder / "service.jsonl").exit_code == 0
    (tmp_path / "rules.txt").write_text(
        "groups: [{name: g, rules: [{alert: A, expr: up + on () async_inspect_tasks_by_state}]}]"
    )
    assert run(tmp_path / "rules.txt", folder / "service.jsonl").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rules.txt"]
    assert not _running(tmp_path)
