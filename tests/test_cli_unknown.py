"""What cannot be known is not taken for well: files without records, conditions without spans."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from made import write_log

from asyncinspect_logging.cli.commands import commands

Tell = Callable[..., dict[str, Any]]
OTHERS = '{"message": "hello"}\nplain text\n{"asyncinspect": {"v": 1, "kind": "ex\n'


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(commands, [*map(str, arguments)], **options)


@pytest.fixture
def log(tmp_path: Path, tell: Tell) -> Path:
    return write_log(tmp_path / "good.jsonl", [tell(kind, n) for n in (1, 2, 3) for kind in ("enter", "exit")])


@pytest.fixture
def wrong(tmp_path: Path) -> list[tuple[Path, str]]:
    """Files without a record, and what there is instead."""
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "wrong.jsonl").write_text(OTHERS)
    nothing = "in 0 lines, 0 of them inside spans, 0 of others and 0 broken"
    return [
        (tmp_path / "empty.jsonl", nothing),
        (tmp_path / "empty.jsonl.gz", nothing),
        (tmp_path / "wrong.jsonl", "in 3 lines, 0 of them inside spans, 2 of others and 1 broken"),
    ]


@pytest.mark.parametrize(
    "command", ["replay", "replay --metrics", "stats", "stats --json", "graph", "check", "export", "export -o OUT"]
)
def test_a_file_without_records_ends_with_2(command: str, wrong: list[tuple[Path, str]], tmp_path: Path) -> None:
    """With the file, and what was in it, on stderr; nothing on stdout, and no file."""
    for path, what in wrong:
        name, *options = command.replace("OUT", str(tmp_path / "out")).split()
        result = run(name, path, *options)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert f"{path}: no records of spans {what}" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("order", [1, -1])
def test_a_side_without_records_ends_with_2(order: int, log: Path, wrong: list[tuple[Path, str]]) -> None:
    """Whichever side, and whatever the conditions: before, they all passed."""
    for path, what in wrong:
        result = run("diff", *[log, path][::order], "--fail-on", "failed > 0", "--fail-on", "p99 > 1.2x")
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{path}: no records of spans {what}" in result.stderr


def test_an_export_without_spans_is_no_side(log: Path, tmp_path: Path) -> None:
    """It can be looked at, for it is what it says, and compared with nothing."""
    from asyncinspect_logging import Inspector
    from asyncinspect_logging.exporters.json_file import JsonExporter

    JsonExporter.export_to_file(Inspector(), tmp_path / "none.json")
    assert run("stats", tmp_path / "none.json").exit_code == 0
    result = run("diff", log, tmp_path / "none.json", "--fail-on", "failed > 0")
    assert result.exit_code == 2
    assert "none.json: no spans in it" in result.stderr


def test_every_condition_has_a_verdict(log: Path, tmp_path: Path, tell: Tell) -> None:
    """Null where there is no span to compare: of a run that was cut off before anything ended, and of a new name."""
    cut = write_log(tmp_path / "cut.jsonl", [tell("enter", 1), tell("enter", 2, name="new")])
    conditions = ["p99 > 1.2x", "p99(job) > 1s", "p50(new) > 2x", "failed > 1%"]
    options = [part for condition in conditions for part in ("--fail-on", condition)]
    result = run("diff", log, cut, *options, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["conditions"]
    assert [(each["condition"], each["name"], each["failed"]) for each in found] == [
        ("p99 > 1.2x", None, None),
        ("p99(job) > 1s", "job", None),
        ("p50(new) > 2x", "new", None),
        ("failed > 1%", None, None),
    ]
    assert [each["message"] for each in found[:3]] == ["no span to compare"] * 3
    text = run("diff", log, cut, *options)
    assert text.stdout.count("unknown: ") == 4
    for more in ([], ["--json"]):
        assert run("diff", log, cut, *options, "--fail-on-unknown", *more).exit_code == 1
    assert run("diff", log, log, "--fail-on", "failed > 0", "--fail-on-unknown").exit_code == 0


def test_counts_of_a_log_with_holes_are_lower_bounds(log: Path, tmp_path: Path) -> None:
    """None failed in what is there, which says nothing of the rest; what there is too much of already, is too much."""
    lines = log.read_text().splitlines(keepends=True)
    holes = tmp_path / "holes.jsonl"
    for text in ("".join(lines[:3] + lines[4:]), "".join(lines)[:-20]):
        holes.write_text(text)
        conditions = ["failed > 0", "failed < 5", "count > 2", "count < 3", "count > 3", "count < 4"]
        options = [part for condition in conditions for part in ("--fail-on", condition)]
        found = json.loads(run("diff", log, holes, *options, "--json").stdout)["conditions"]
        assert [each["failed"] for each in found] == [None, None, True, False, None, None]
