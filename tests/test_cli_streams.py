"""The command as a process whose standard streams are closed, full, or not read; and its own errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made import write_log

from asyncinspect_logging.cli.commands import commands

Tell = Callable[..., dict[str, Any]]
COMMAND = f"{sys.executable} -W error -m asyncinspect_logging"


@pytest.fixture
def log(tmp_path: Path, tell: Tell) -> Path:
    """Long enough for its output to fill a pipe."""
    payloads = [tell(kind, n, name=f"job {n}") for n in range(1, 1000) for kind in ("enter", "exit")]
    return write_log(tmp_path / "service.jsonl", payloads)


def shell(line: str, log: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    line = line.replace("LOG", str(log)).replace("asyncinspect", COMMAND)
    options.setdefault("stderr", subprocess.PIPE)
    # Workers of pytest-xdist have a terminal of 80 columns.
    options["env"] = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run(
        ["bash", "-c", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    assert "Traceback" not in (done.stderr or "")
    assert "Exception ignored" not in (done.stderr or "")
    return done


@pytest.mark.slow
@pytest.mark.parametrize("command", ["replay --metrics", "stats", "export", "diff LOG"])
@pytest.mark.parametrize("to", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written_ends_with_2(command: str, to: str, log: Path) -> None:
    """One line says why, and it is not the status of a condition that failed."""
    if to == ">/dev/full" and not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    name, *options = command.split()
    done = shell(f"asyncinspect {name} LOG {' '.join(options)} {to}", log)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("asyncinspect: ")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["replay --json", "stats", "stats --detailed", "export"])
def test_output_that_nobody_reads_ends_with_141(command: str, log: Path) -> None:
    """Quietly, whoever was to write it."""
    name, *options = command.split()
    done = shell(f"asyncinspect {name} LOG {' '.join(options)} | true; exit ${{PIPESTATUS[0]}}", log)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_other_streams_that_are_closed(log: Path, tmp_path: Path) -> None:
    """What needs none of them, works; what needs standard input, finds nothing there."""
    out = tmp_path / "out.json"
    assert shell(f"asyncinspect export LOG -o {out} <&- >&- 2>&-", log).returncode == 0
    assert out.read_text().startswith('{"format":')
    done = shell("asyncinspect stats - <&-", log)
    assert done.returncode == 2
    assert "-: no records of spans in 0 lines" in done.stderr
    done = shell("asyncinspect stats LOG 2>&-; asyncinspect stats nowhere 2>&-", log)
    assert (done.returncode, done.stdout.count("│ job 1 ")) == (2, 1)
    assert shell("asyncinspect stats LOG <&- | cat", log).stdout == shell("asyncinspect stats LOG", log).stdout


@pytest.mark.parametrize(
    "error", [RuntimeError("gone \x1b[31m wrong"), ValueError("x"), KeyError("x"), RecursionError()]
)
def test_an_error_of_the_command_has_a_status_of_its_own(
    error: Exception, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    """One line says what to report; the traceback is for those who ask."""

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("asyncinspect_logging.analysis.compare.compare", fail)
    result = CliRunner().invoke(commands, ["diff", str(log), str(log), "--fail-on", "failed > 0"])
    assert (result.exit_code, result.stderr.count("\n")) == (70, 1)
    assert "internal error at test_cli_streams.py:" in result.stderr
    assert type(error).__name__ in result.stderr
    assert "please report it" in result.stderr
    result = CliRunner().invoke(commands, ["--debug", "diff", str(log), str(log)])
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "\x1b" not in result.stderr
