"""The rules, as Prometheus's own tool sees them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from asyncinspect_logging.cli.commands import commands

pytestmark = pytest.mark.real

OPS = Path(__file__).resolve().parents[2] / "ops"


def said(*arguments: str) -> str:
    result = CliRunner().invoke(commands, ["rules", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_promtool_takes_the_rules(promtool: str, tmp_path: Path) -> None:
    """As they are, and of a job with a name that has to be escaped."""
    file = tmp_path / "rules.yml"
    file.write_text(said("--job", 'a"b\\ü💡', "--prefix", "Shop"), "utf-8")
    for path in (OPS / "alerts.yml", OPS / "recording.yml", file):
        done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_runs_the_cases(promtool: str) -> None:
    """Of firing, not firing and `for`."""
    files = [str(OPS / "alerts.test.yml"), str(OPS / "recording.test.yml")]
    done = subprocess.run([promtool, "test", "rules", *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == 2


@pytest.mark.parametrize(("rule", "instead"), [("> 1000", "> 2000"), ("for: 10m", "for: 1m"), ("[15m]", "[1m]")])
def test_the_cases_can_fail(promtool: str, tmp_path: Path, rule: str, instead: str) -> None:
    """With another threshold, `for` or window."""
    shutil.copy(OPS / "alerts.test.yml", tmp_path)
    text = (OPS / "alerts.yml").read_text("utf-8")
    (tmp_path / "alerts.yml").write_text(text.replace(rule, instead), "utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts.test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
