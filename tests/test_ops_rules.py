"""The rules for Prometheus: those in ops/ are what the command prints, and each alert says what to do."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging import Inspector, run
from asyncinspect_logging.cli.commands import commands
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.families import FAMILIES
from asyncinspect_logging.ops.rules import ALERTS, RECORDINGS, rule_groups, rules_text

ROOT = Path(__file__).resolve().parent.parent
OPS = ROOT / "ops"
#: Names of samples that a page has.
SAMPLES = {
    family.sample + suffix
    for family in FAMILIES
    for suffix in (("_bucket", "_sum", "_count") if family.type == "histogram" else ("",))
}
#: What the documents that this was made from ask for.
WANTED = {
    "HighTaskCount": ("5m", "warning"),
    "DeadlockDetected": ("", "critical"),
    "SlowTasksDetected": ("5m", "warning"),
    "HighBlockedTaskPercentage": ("10m", "warning"),
    "HighMemoryUsage": ("5m", "warning"),
}


def said(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(commands, ["rules", *arguments])
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.parametrize(("option", "file"), [("--alerts", "alerts.yml"), ("--recording", "recording.yml")])
def test_the_files_are_what_the_command_prints(option: str, file: str) -> None:
    """To write them anew: `asyncinspect rules --alerts > ops/alerts.yml`."""
    assert said(option) == (OPS / file).read_text("utf-8")


def test_both_groups_come_together() -> None:
    """With both options, and with neither."""
    both = yaml.safe_load(said("--alerts", "--recording"))
    assert said() == said("--alerts", "--recording")
    assert [group["name"] for group in both["groups"]] == ["async_inspect_alerts", "async_inspect_recording"]
    assert len(both["groups"][0]["rules"]) == len(ALERTS)
    assert len(both["groups"][1]["rules"]) == len(RECORDINGS)


def test_the_text_is_the_groups() -> None:
    """YAML reads out of it what was put in, whatever there is to be escaped."""
    groups = rule_groups(job='a"b\\ü 💡', prefix="Shop", severities={"critical": "page"}, runbooks="http://x/é#y")
    assert yaml.safe_load(rules_text(groups)) == {"groups": groups}


@given(st.text(max_size=20))
def test_any_job_stands_in_the_rules_or_is_refused(job: str) -> None:
    """As one matcher of each series."""
    try:
        groups = rule_groups(job=job)
    except ConfigError as error:
        assert repr(job) in str(error)
        return
    assert yaml.safe_load(rules_text(groups)) == {"groups": groups}


def test_the_wanted_alerts_are_there() -> None:
    """With the `for` and the severity that were asked for."""
    found = {alert.name: (alert.pending, alert.severity) for alert in ALERTS}
    assert WANTED.items() <= found.items()
    assert set(found) - set(WANTED) == {
        "EventLoopBlocked",
        "EventLoopStalled",
        "EventLoopLagging",
        "TasksLeaked",
        "RecordsDropped",
        "TargetDown",
        "TargetAbsent",
    }


def test_each_alert_has_a_runbook() -> None:
    """Its link leads to a heading of the page, and that says what to do; and the description does."""
    page = (ROOT / "docs" / "alerts.md").read_text("utf-8")
    headings = {re.sub(r"[^a-z0-9-]", "", line.lower()): line for line in re.findall(r"^### (.*)$", page, re.MULTILINE)}
    for rule in rule_groups(recordings=False)[0]["rules"]:
        address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        # No address is made up: the page is a file of the repository.
        assert (ROOT / address).samefile(ROOT / "docs" / "alerts.md")
        assert anchor in headings, rule["alert"]
        assert len(rule["annotations"]["description"]) > 100
        assert 10 < len(rule["annotations"]["summary"]) < 60
    for recording in RECORDINGS:
        assert recording.name in page


def test_only_what_there_is_is_asked_for() -> None:
    """Each series in an expression is one that a page has."""
    for rule in [rule for group in rule_groups() for rule in group["rules"]]:
        names = set(re.findall(r"\basync_inspect_\w+", rule["expr"]))
        assert names or "up" in rule["expr"]
        assert names <= SAMPLES, names - SAMPLES


def test_each_rule_has_a_case() -> None:
    """In the files that promtool runs: of each alert, that it fires and that it does not, and what it says then."""
    text = (OPS / "alerts.test.yml").read_text("utf-8")
    told = {
        (alert["alertname"], *annotations.items())
        for test in yaml.safe_load(text)["tests"]
        for alert in test.get("alert_rule_test", ())
        for annotations in [one["exp_annotations"] for one in alert["exp_alerts"]]
    }
    for alert in ALERTS:
        assert re.search(rf'alertname="{alert.name}", alertstate="firing"|alertname: {alert.name}\b', text), alert.name
        over = (
            rf'{{expr: .ALERTS{{alertname="{alert.name}".*exp_samples: \[\]}}|alertname: {alert.name}, exp_alerts: \[\]'
        )
        assert re.search(over, text), alert.name
        if alert.pending and alert.name != "TargetAbsent":
            assert re.search(rf'alertname="{alert.name}", alertstate="pending"', text), alert.name
        annotations = [dict(pairs) for name, *pairs in told if name == alert.name]
        assert annotations, alert.name
        for one in annotations:
            assert set(one) == {"summary", "description", "runbook_url"}
            assert not re.search(r"<no value>|<error|\{\{|\}\}|  | ,", " ".join(one.values()))
    recorded = (OPS / "recording.test.yml").read_text("utf-8")
    for recording in RECORDINGS:
        assert recorded.count(recording.name) >= 2, recording.name


def test_options() -> None:
    """Of one job, under names and severities of one's own."""
    text = said("--job", "shop", "--prefix", "Shop", "--severity", "critical=page", "--runbooks", "https://wiki/x")
    groups = yaml.safe_load(text)["groups"]
    for rule in groups[0]["rules"]:
        assert rule["alert"].startswith("Shop")
        assert rule["labels"]["severity"] in ("page", "warning")
        assert rule["annotations"]["runbook_url"].startswith("https://wiki/x#")
    for rule in [rule for group in groups for rule in group["rules"]]:
        assert rule["expr"].count('job="shop"') == len(re.findall(r"\b(?:async_inspect_\w+|up)\b", rule["expr"]))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--prefix", "a b"], "prefix='a b'"),
        (["--job", ""], "job=''"),
        (["--job", "a\nb"], "job='a\\nb'"),
        (["--severity", "page"], "critical=NAME"),
        (["--severity", "fatal=page"], "critical=NAME"),
        (["--severity", "critical="], "severity critical=''"),
        (["--runbooks", "a\nb"], "runbooks='a\\nb'"),
    ],
)
def test_what_cannot_stand_there(arguments: list[str], what: str) -> None:
    """Is refused, with what to write instead."""
    assert what in said(*arguments, status=2)


def test_machine() -> None:
    """--json has the groups."""
    result = CliRunner().invoke(commands, ["rules", "--json"])
    assert yaml.safe_load(result.output)["groups"] == rule_groups()


def test_a_loop_that_does_not_come_back_looks_like_that(listen: Callable[..., Inspector]) -> None:
    """What EventLoopBlocked relies on: while a task holds the loop it is running at each scrape, and the heartbeat's
    count stands still; else the count grows.
    """
    inspector, held, go_on = listen(), threading.Event(), threading.Event()

    async def hold() -> None:
        while inspector.snapshot(tasks=False).loop_lag.total < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        held.set()
        go_on.wait(30)

    async def main() -> None:
        await asyncio.create_task(hold())
        before = inspector.snapshot(tasks=False).loop_lag.total
        while inspector.snapshot(tasks=False).loop_lag.total == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: run(main()))
    thread.start()
    try:
        assert held.wait(30)
        first = inspector.snapshot(tasks=False)
        time.sleep(0.5)  # five beats
        second = inspector.snapshot(tasks=False)
    finally:
        go_on.set()
        thread.join(30)
    assert first.states["running"] == second.states["running"] == 1
    assert first.loop_lag.total == second.loop_lag.total > 0
    assert inspector.snapshot(tasks=False).loop_lag.total > second.loop_lag.total
