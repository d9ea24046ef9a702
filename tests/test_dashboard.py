"""The dashboard as a file: it is what the code builds, every query parses, and the command gives it as asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from grafana import ALL, chosen, filled, queries
from promql_parser import parse

from asyncinspect_logging.cli.commands import commands
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.families import FAMILIES
from asyncinspect_logging.ops.builder import build
from asyncinspect_logging.ops.dashboard import dashboard

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = dashboard()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
#: What Grafana has for these, and every metric's own name.
UNITS = {"short", "s", "percentunit", "bytes"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["dashboard", *arguments])


def test_the_files_are_what_the_code_builds() -> None:
    """In the package and in ops/; `tools/dashboard.py` writes both."""
    assert build() == DASHBOARD
    assert json.loads((ROOT / "ops" / "dashboard.json").read_text("utf-8")) == DASHBOARD


def test_the_rows_and_panels_of_the_reference() -> None:
    """The four rows come first, and each panel that is asked for by a name is there under it."""
    rows: dict[str, list[str]] = {}
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            rows[panel["title"]] = []
        else:
            rows[list(rows)[-1]].append(panel["title"])
    assert list(rows) == ["Overview", "Performance", "Task states", "Events", "Event loop", "Findings and losses"]
    assert {"Total tasks", "Active tasks", "Task creation rate", "Deadlock count"} <= set(rows["Overview"])
    assert {"Task duration", "Slowest tasks", "Poll count distribution"} <= set(rows["Performance"])
    assert {"Running tasks", "Blocked tasks", "Blocked tasks by name", "Completed and failed"} <= set(
        rows["Task states"]
    )
    assert {"Event rate by type", "Polls per wake", "Spawn rate"} <= set(rows["Events"])
    assert {"Loop lag and queueing", "Long polls"} <= set(rows["Event loop"])
    assert {"Findings by name", "Drops"} <= set(rows["Findings and losses"])
    assert [target["legendFormat"] for target in titled("Task duration")["targets"]] == ["p50", "p95", "p99"]


def titled(title: str) -> dict[str, Any]:
    (found,) = [panel for panel in PANELS if panel["title"] == title]
    return found


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """In a description of some length, in a unit, from the data source that was chosen."""
    assert len(panel["description"]) > 60
    assert panel["description"].endswith(".")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit in UNITS or unit.startswith("suffix:/")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_panels_lie_side_by_side() -> None:
    """They fill their lines, and none lies upon another."""
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("asked", list(queries(DASHBOARD)), ids=lambda asked: asked.key)
def test_a_query_is_promql_of_our_metrics(asked: Any) -> None:
    """It parses, names families of the catalogue with their suffixes, and heeds the variables that fit them."""
    promql = asked.target["expr"]
    parse(filled(promql, span=3600, rate=60))
    samples = {
        f"{family.sample}{suffix}": family
        for family in FAMILIES
        for suffix in (("_bucket", "_sum", "_count") if family.type == "histogram" else ("",))
    }
    found = re.findall(r"(async_inspect_\w+)(\{[^}]*\})", promql)
    assert len(found) == promql.count("async_inspect_")
    for sample, where in found:
        assert 'job=~"$job", instance=~"$instance"' in where
        assert ('name=~"$name"' in where) == ("name" in samples[sample].labels)
    # Rates are over an interval that Grafana fits to the scrapes, or, where one number is shown, over the time range.
    wanted = "$__rate_interval" if asked.target.get("range") else "$__range"
    assert set(re.findall(r"\[(.*?)\]", promql)) <= {wanted}
    assert set(re.findall(r"topk\((\d+),", promql)) <= {"10"}


@pytest.mark.parametrize(
    "asked", [one for one in queries(DASHBOARD) if one.panel["type"] != "table"], ids=lambda asked: asked.key
)
def test_a_unit_is_that_of_the_query(asked: Any) -> None:
    """Seconds, bytes, shares, or so many in a second or a minute."""
    promql = asked.target["expr"]
    if asked.key == "Failed tasks A" or promql.startswith("topk(10, sum by (name) (rate(async_inspect_task_busy"):
        unit = "percentunit"
    elif "histogram_quantile" in promql:
        unit = "s"
    elif "memory_bytes" in promql:
        unit = "bytes"
    elif "60 * " in promql:
        unit = "suffix:/min"
    elif "rate(" in promql and asked.key not in ("Polls per wake A", "Blocked tasks by name A"):
        unit = "suffix:/s"
    else:
        unit = "short"
    assert asked.panel["fieldConfig"]["defaults"]["unit"] == unit


def test_the_units_of_the_columns() -> None:
    """Durations are seconds, and what is counted has no fractions."""
    units = {
        override["matcher"]["options"]: {one["id"]: one["value"] for one in override["properties"]}
        for title in ("Slowest tasks", "Findings by name")
        for override in titled(title)["fieldConfig"]["overrides"]
    }
    assert {column: units[column]["unit"] for column in ("Mean", "p50", "p99")} == dict.fromkeys(
        ("Mean", "p50", "p99"), "s"
    )
    assert (units["Tasks"]["unit"], units["Tasks"]["decimals"]) == ("short", 0)


def test_every_family_of_tasks_events_and_health_is_shown() -> None:
    """But for what says the same in another way, or is in no panel for a reason."""
    shown = " ".join(asked.target["expr"] for asked in queries(DASHBOARD))
    missing = {family.name for family in FAMILIES if not re.search(rf"{family.sample}(_bucket|_count|\b)", shown)}
    assert missing == {
        "async_inspect_task_polls",  # poll_count and events
        "async_inspect_task_idle_seconds",  # duration less busy
        "async_inspect_deadlocks_detected",  # deadlocks
    }


def test_the_variables() -> None:
    """A data source, and three filters that take several values or all, each fed by those before it."""
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "name"]
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "instance", "name"):
        one = variables[name]
        # Without these Grafana puts the value in as it is, and `GET /users/{id}` is no regular expression.
        assert one["multi"]
        assert one["includeAll"]
        assert one["allValue"] == ".*"
    assert 'job=~"$job", instance=~"$instance"' in variables["name"]["query"]["query"]


def test_thresholds_begin_below_everything() -> None:
    """The first has no value, the others rise."""
    count = 0
    for panel in PANELS:
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
        count += len(steps) > 1
        assert [step["value"] for step in steps[:1]] in ([], [None])
        values = [step["value"] for step in steps[1:]]
        assert values == sorted(values)
    assert count >= 5


def test_a_chosen_name_is_escaped() -> None:
    """Once for the regular expression and once for the string that it stands in, as Grafana does it."""
    assert chosen(["GET /users/{id}"]) == r"GET /users/\\{id\\}"
    assert chosen(["a.b", "c"]) == r"(a\\.b|c)"
    parse(filled('x{name=~"$name"}', ALL | {"name": chosen(["GET /users/{id}", "a+b"])}, span=1, rate=1))


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_dashboard(tmp_path: Path) -> None:
    """The same on standard output and in a file."""
    result = run()
    assert result.exit_code == 0
    assert json.loads(result.stdout) == DASHBOARD
    assert run("-o", str(tmp_path / "dashboard.json")).stdout == ""
    assert (tmp_path / "dashboard.json").read_text("utf-8") == result.stdout


def test_the_command_for_machines() -> None:
    """The dashboard in an object like those of the other commands, and nothing else on standard output."""
    assert json.loads(run("--json").stdout) == {"command": "dashboard", "version": 1, "dashboard": DASHBOARD}
    assert run("--json", "-o", "x.json").exit_code == 2


def test_the_command_needs_no_extra_of_grafana() -> None:
    """It prints what is in the package: the SDK is not imported."""
    code = (
        "import sys; sys.modules['grafana_foundation_sdk'] = None\n"
        "from asyncinspect_logging.cli import main; main(['dashboard', '--title', 'Shop'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == DASHBOARD | {"title": "Shop"}


def test_building_without_the_extra_says_what_to_install() -> None:
    """The pip command is in the message."""
    code = "import sys; sys.modules['grafana_foundation_sdk'] = None\nimport asyncinspect_logging.ops.builder"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install 'asyncinspect-logging[grafana]'" in done.stderr


def test_the_options() -> None:
    """Title and uid are the dashboard's; data source and job are what its variables have at first. No more changes."""
    result = run("--title", "Shop", "--uid", "shop-tasks", "--datasource", "prom-1", "--job", "shop.*")
    made = json.loads(result.stdout)
    assert (made["title"], made["uid"]) == ("Shop", "shop-tasks")
    source, job, *others = made["templating"]["list"]
    assert source["current"]["value"] == "prom-1"
    assert job["current"]["value"] == ["shop.*"]
    assert others == DASHBOARD["templating"]["list"][2:]
    assert made["panels"] == DASHBOARD["panels"]


def test_another_name_for_the_label_name() -> None:
    """Every query, legend and column has it, and the variable stays what it is; back again it is what it was."""
    made = dashboard(name_label="task_name")
    for asked in queries(made):
        promql = asked.target["expr"]
        parse(filled(promql, span=3600, rate=60))
        assert not re.search(r"(?<![\w$])name\b", promql)
        assert ("task_name" in promql) == ("$name" in promql)
        assert "{{name}}" not in asked.target["legendFormat"]
    text = json.dumps(made)
    assert "task_task_name" not in text
    assert text.count("task_name") > 50
    assert json.loads(text.replace("task_name", "name")) == DASHBOARD
    assert made["templating"]["list"][3]["query"]["query"].endswith(", task_name)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"uid": "a b"}, "uid='a b'"),
        ({"uid": "x" * 41}, "1 to 40"),
        ({"uid": ""}, "uid=''"),
        ({"title": " "}, "title=' '"),
        ({"job": ""}, "job=''"),
        ({"datasource": ""}, "datasource=''"),
        ({"name_label": "task-name"}, "name_label='task-name'"),
        ({"name_label": "state"}, "name_label='state'"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], said: str) -> None:
    """By the function and by the command: which option, and what it was."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        dashboard(**options)
    (option, value), *_ = options.items()
    result = run(f"--{option.replace('_', '-')}={value}")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
