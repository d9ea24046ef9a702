"""The rules, as Prometheus's own tool sees them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from click.testing import CliRunner
from rule_changes import changes, pending_changes

from asyncinspect_logging.cli.commands import commands
from asyncinspect_logging.ops.rules import rule_groups

pytestmark = pytest.mark.real

OPS = Path(__file__).resolve().parents[2] / "ops"
RULES: Final = {rule.get("alert") or rule["record"]: rule for group in rule_groups() for rule in group["rules"]}
CASES: Final = sorted(OPS.glob("*.test.yml"))
#: Changes that say the same, by rule.
SAME: Final = {
    # The ratio of buckets is the same.
    "SlowTasksDetected": {"rate -> increase"},
    "EventLoopLagging": {"rate -> increase"},
    "async_inspect:duration_p99:5m": {"rate -> increase"},
    "async_inspect:event_loop_lag_p99:5m": {"rate -> increase"},
    # There is one series of each process in a state.
    "HighBlockedTaskPercentage": {"sum -> max", "sum -> min"},
    "async_inspect:blocked_percentage": {"sum -> max", "sum -> min"},
    # So too; no growth is none by any measure; and no stalls add up to exactly 60 s.
    "EventLoopBlocked": {"sum -> max", "sum -> min", "increase -> rate", "> -> >="},
    # To know more than is asked for changes nothing.
    "TasksLeaked": {'{lint=~"leaked|lost_waker|never_awaited"} -> nothing'},
}


def said(*arguments: str) -> str:
    result = CliRunner().invoke(commands, ["rules", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def promtool_test(promtool: str, *files: Path) -> str:
    """What it says of files with cases; `FAILED` or `SUCCESS` for each."""
    done = subprocess.run(
        [promtool, "test", "rules", *map(str, files)], capture_output=True, text=True, timeout=100, check=False
    )
    return done.stdout + done.stderr


def test_promtool_takes_the_rules(promtool: str, tmp_path: Path) -> None:
    """As they are, and of a job with a name that has to be escaped."""
    file = tmp_path / "rules.yml"
    file.write_text(said("--job", 'a"b\\ü💡', "--prefix", "Shop"), "utf-8")
    for path in (OPS / "alerts.yml", OPS / "recording.yml", file):
        done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_runs_the_cases(promtool: str) -> None:
    """Of firing, not firing and `for`."""
    told = promtool_test(promtool, *CASES)
    assert told.count("SUCCESS") == len(CASES) == 3, told
    assert "FAILED" not in told


def cases(rule: str, count: int) -> Iterator[dict[str, Any]]:
    """Those of one rule, each asked of `count` rules: an alert's go by their name, a record's by what they ask for."""

    def asked(test: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        texts = [json.dumps(one) for one in test.get(kind, ())]
        return [json.loads(text.replace(rule, f"{rule}_{n}")) for text in texts if rule in text for n in range(count)]

    for file in CASES:
        every: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
        tests = [
            {**test, **{kind: asked(test, kind) for kind in ("promql_expr_test", "alert_rule_test")}}
            for test in every["tests"]
            if rule == test["name"].partition(",")[0] or (":" in rule and rule in json.dumps(test))
        ]
        if tests:
            yield {**every, "rule_files": ["rules.yml"], "tests": tests}


def changed(rule: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rule with one mistake in it, for each that can be made, and what that is."""
    right = RULES[rule]
    for change in changes(right["expr"]):
        yield str(change), {**right, "expr": change.expr}
    if "alert" in right:
        for pending in pending_changes(right.get("for", "")):
            yield (
                f"for: {pending}",
                {key: value for key, value in right.items() if key != "for"} | ({"for": pending} if pending else {}),
            )


@pytest.mark.parametrize("rule", RULES)
def test_a_changed_rule_fails_its_cases(promtool: str, tmp_path: Path, rule: str) -> None:
    """Whatever operator, threshold, window, label, matcher, function or `for` is another one (see `rule_changes`)."""
    key = "record" if ":" in rule else "alert"
    # The right one among them shows that the others are judged at all.
    made = [("", RULES[rule]), *changed(rule)]
    left = {n: {**one, key: f"{rule}_{n}"} for n, (_, one) in enumerate(made)}
    files = []
    for number, one in enumerate(cases(rule, len(made))):
        files.append(tmp_path / f"cases-{number}.yml")
        files[-1].write_text(json.dumps(one), "utf-8")  # JSON is YAML
    told = " "
    while told and left:
        (tmp_path / "rules.yml").write_text(
            json.dumps({"groups": [{"name": "one", "rules": list(left.values())}]}), "utf-8"
        )
        told = promtool_test(promtool, *files)
        # One that cannot be evaluated ends the run, and those after it are judged in the next.
        errors = set(map(int, re.findall(rf"rule: {rule}_(\d+)\b", told)))
        failed = errors or set(map(int, re.findall(rf"{rule}_(\d+)\b", told)))
        assert failed or "SUCCESS" in told, told
        left = {n: one for n, one in left.items() if n not in failed}
        if not errors:
            break
    passed = [made[n][0] for n in left]
    # At one place of the rule: at others it is a mistake.
    assert sorted(what.partition(" @")[0] for what in passed) == sorted(["", *SAME.get(rule, ())]), passed
