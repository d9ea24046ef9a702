"""`asyncinspect check`: each flaw is found by the command, in logs however they come."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from asyncinspect_logging.cli.commands import commands

Tell = Callable[..., dict[str, Any]]
SECOND = 10**9


def outlives(tell: Tell) -> list[dict[str, Any]]:
    parent = tell("enter", 1)
    child = tell("enter", 2, parent=parent["id"], trace=parent["trace"])
    return [parent, child, tell("exit", 1), tell("exit", 2)]


def held(tell: Tell) -> list[dict[str, Any]]:
    resource = {"kind": "lock", "id": "a" * 16, "name": "db"}
    return [tell("enter"), tell("acquire", resource=resource, owner="b" * 16), tell("exit", polls=2, max_poll=1)]


def negative(tell: Tell) -> list[dict[str, Any]]:
    enter = tell("enter")
    exit = tell("exit")
    return [enter | {"t": enter["t"] + SECOND, "wall": enter["wall"] + SECOND}, exit]


def twice(tell: Tell) -> list[dict[str, Any]]:
    return [tell("enter"), tell("exit"), tell("exit")]


FLAWS = [(outlives, "outlives_parent"), (held, "held_at_exit"), (negative, "backwards"), (twice, "double_exit")]


def flaws_of(*arguments: object, status: int = 1, **options: Any) -> list[str]:
    result = CliRunner().invoke(commands, ["check", *map(str, arguments), "--json"], **options)
    assert result.exit_code == status, result.output
    return [flaw["kind"] for flaw in json.loads(result.stdout)["flaws"]]


@pytest.mark.parametrize(("make", "kind"), FLAWS)
def test_each_flaw_is_found_once(
    make: Callable[[Tell], list[dict[str, Any]]], kind: str, tmp_path: Path, tell: Tell
) -> None:
    """In a file, a compressed one, and standard input, which is read once; for people, too."""
    data = "".join(json.dumps({"asyncinspect": payload}) + "\n" for payload in make(tell)).encode()
    path = tmp_path / "flawed.jsonl"
    path.write_bytes(data)
    (tmp_path / "flawed.jsonl.gz").write_bytes(gzip.compress(data))
    assert flaws_of(path) == flaws_of(path.with_suffix(".jsonl.gz")) == flaws_of("-", input=data) == [kind]
    text = CliRunner().invoke(commands, ["check", str(path)])
    assert text.exit_code == 1
    assert kind in text.stdout
    assert "1 flaws" in text.stdout


def test_the_same_lines_again_are_no_flaw(tmp_path: Path, tell: Tell) -> None:
    """Logs are shipped twice; and what came after --at is not looked at."""
    payloads = [tell("enter"), tell("exit")]
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps(payload) + "\n" for payload in payloads * 2))
    assert flaws_of(path, status=0) == []
    with path.open("a") as file:
        file.write(json.dumps(tell("exit")) + "\nno JSON\n[1]\n" + json.dumps({"asyncinspect": 1}) + "\n")
    assert flaws_of(path) == ["double_exit"]
    assert flaws_of(path, "--at", payloads[1]["wall"] / 1e9, status=0) == []
