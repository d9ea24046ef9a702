"""The command as a process: its extra, completion, signals, pipes and terminals, and what serves until it is ended."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import shell_complete
from made import write_log

from asyncinspect_logging.analysis.replay import replay
from asyncinspect_logging.cli.commands import commands
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

pytestmark = pytest.mark.slow

Tell = Callable[..., dict[str, Any]]
HOSTILE = "\x1b]0;title\x07\x1b[31mx\x9b"
COMMAND = [sys.executable, "-W", "error", "-m", "asyncinspect_logging"]


def program(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_without_the_extra_there_is_one_clear_line(tmp_path: Path) -> None:
    """With the pip command, and exit status 2."""
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'rich' else find(name, *a)\n"
        "from asyncinspect_logging.cli import main\n"
        "main(['version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'asyncinspect-logging[cli]'" in done.stderr


def test_a_command_imports_only_what_it_needs() -> None:
    """To say its version, none of what draws, reads or serves."""
    code = (
        "import sys\n"
        "from asyncinspect_logging.cli import main\n"
        "try:\n"
        "    main(['version'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print([name for name in ('rich', 'orjson', 'msgspec', 'prometheus_client', 'asyncinspect_logging.analysis',"
        " 'asyncinspect_logging.exporters', 'asyncinspect_logging.sidecar') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[1] == "[]"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion(shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The script for the shell, and what it is given for a word that is begun."""
    assert shell_complete(commands, {}, "asyncinspect", "_ASYNCINSPECT_COMPLETE", f"{shell}_source") == 0
    assert "asyncinspect" in capsys.readouterr().out
    monkeypatch.setenv("COMP_WORDS", "asyncinspect re")
    monkeypatch.setenv("COMP_CWORD", "re" if shell == "fish" else "1")
    assert shell_complete(commands, {}, "asyncinspect", "_ASYNCINSPECT_COMPLETE", f"{shell}_complete") == 0
    words = capsys.readouterr().out
    assert "replay" in words
    assert "stats" not in words


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_a_shell(tmp_path: Path) -> None:
    """What the script that bash is given does there."""
    done = program(env=os.environ | {"_ASYNCINSPECT_COMPLETE": "bash_source"})
    assert (done.returncode, done.stderr) == (0, "")
    stand_in = tmp_path / "asyncinspect"
    stand_in.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    stand_in.chmod(0o755)
    script = f"PATH={tmp_path}:$PATH\n{done.stdout}\nCOMP_WORDS=(asyncinspect re); COMP_CWORD=1\n"
    script += "_asyncinspect_completion asyncinspect; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "replay\n"


def test_a_pipe_that_nobody_reads_is_no_error(tmp_path: Path, tell: Tell) -> None:
    """The command ends quietly, as one that a signal ended."""
    path = write_log(tmp_path / "long.jsonl", [tell("enter", n) for n in range(1, 5001)])
    for arguments in (["replay", path, "--json"], ["export", path]):
        command = [sys.executable, "-m", "asyncinspect_logging", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 141


@pytest.fixture
def log(tmp_path: Path, tell: Tell) -> Path:
    """Two spans, one with a hostile name."""
    records = [tell("enter", 1), tell("exit", 1), tell("enter", 2, name=HOSTILE), tell("exit", 2, name=HOSTILE)]
    return write_log(tmp_path / "service.jsonl", records)


# -- terminals -----------------------------------------------------------------------------------------------------


def in_terminal(*arguments: object, env: dict[str, str] | None = None) -> str:
    """All that a command writes to its terminal."""
    master, slave = pty.openpty()
    command = [*COMMAND, *map(str, arguments)]
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")} | (env or {})
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env={"TERM": "xterm"} | env) as process:
        os.close(slave)
        found = b""
        while True:
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # nobody has the other end any longer
                break
            if not data:
                break
            found += data
    os.close(master)
    assert process.returncode == 0, found
    return found.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "--metrics"],
        ["export", "--format", "csv"],
        ["export", "--format", "json"],
        ["export", "--format", "collapsed", "--time", "all"],
        ["graph", "--format", "dot"],
    ],
    ids=" ".join,
)
def test_a_terminal_gets_no_command_of_a_log(arguments: list[str], log: Path) -> None:
    """In any format; a pipe gets the bytes as they are."""
    shown = in_terminal(arguments[0], log, *arguments[1:])
    assert "title" in shown
    assert "\\r" not in shown
    # A bar is drawn and taken away again, and the cursor hidden meanwhile.
    assert not re.search("\x1b\\]|\x07|\x1b\\[31m|\x9b", shown), ascii(shown)


def test_colours_and_bars_are_for_terminals(log: Path) -> None:
    """Not for pipes, and no colours with NO_COLOR."""
    coloured = re.compile("\x1b\\[[0-9;]*3[0-7]m")
    shown = in_terminal("replay", log, "--open")
    assert "\x1b[1m" in shown
    assert "reading" in shown
    (log.parent / "open.jsonl").write_text(log.read_text().splitlines()[0] + "\n")
    opened = log.parent / "open.jsonl"
    assert coloured.search(in_terminal("replay", opened))
    assert not coloured.search(in_terminal("replay", opened, env={"NO_COLOR": "1"}))
    piped = program("replay", opened)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert "\x1b" not in piped.stdout


# -- what serves until it is ended ---------------------------------------------------------------------------------


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process, and the object that it prints once it serves."""
    command = [*COMMAND, "serve", *map(str, arguments), "--address", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            yield process, json.loads(line)
        finally:
            process.kill()


def page_of(told: dict[str, Any]) -> str:
    with urllib.request.urlopen(told["metrics"], timeout=10) as answer:
        text: str = answer.read().decode()
    return text


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_serve_a_log(log: Path, number: signal.Signals, status: int) -> None:
    """The page of the log, until SIGTERM or Ctrl-C, which both end it without a word."""
    with serving(log) as (process, told):
        assert page_of(told) == PrometheusExporter(replay([log])).gather()
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == status


def test_serve_a_log_that_is_none(tmp_path: Path) -> None:
    """It is served, and said to have no records."""
    other = tmp_path / "other.log"
    other.write_text("GET /\n" * 3)
    with serving(other) as (process, told):
        assert "async_inspect_build_info" in page_of(told)
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate(timeout=30)
        assert (out, process.returncode) == ("", 0)
        assert f"{other}: no records of spans in 3 lines, 0 of them inside spans, 3 of others and 0 broken" in said


def test_serve_what_is_written_to_a_log(log: Path, tell: Tell) -> None:
    """With --follow, and across a restart with --state."""
    state = log.parent / "serve.state"

    def completed(text: str) -> str | None:
        found = re.search(r'^async_inspect_tasks_completed_total{name="job"} (.*)$', text, re.MULTILINE)
        return found[1] if found else None

    def until(value: str, told: dict[str, Any]) -> None:
        # A scrape may show a page of the second before.
        while completed(page_of(told)) != value:
            pass

    with serving(log, "--follow", "--state", state) as (process, told):
        until("1.0", told)
        with log.open("a") as file:
            for record in (tell("enter", 3), tell("exit", 3)):
                file.write(json.dumps({"asyncinspect": record}) + "\n")
        until("2.0", told)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    with log.open("a") as file:
        for record in (tell("enter", 4), tell("exit", 4)):
            file.write(json.dumps({"asyncinspect": record}) + "\n")
    with serving(log, "--follow", "--state", state) as (_, told):
        until("3.0", told)


def test_serve_ends_spans_of_processes_that_are_gone(log: Path, tell: Tell) -> None:
    """After --grace, where --local says that pids are of this machine."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    log.write_text(json.dumps({"asyncinspect": tell("enter", pid=gone.pid, seq=1)}) + "\n")
    cancelled = 'async_inspect_tasks_cancelled_total{name="job"} 1.0'
    with serving(log, "--follow", "--grace", "0", "--local") as (_, told):
        # How processes that are gone end is looked at every now and then.
        while cancelled not in page_of(told):
            pass


def test_serve_what_comes_over_a_socket() -> None:
    """With --listen, and without a log."""
    with serving("--listen", "127.0.0.1:0") as (_, told):
        assert re.fullmatch(r"127\.0\.0\.1:\d+", told["listen"])
        assert "async_inspect_build_info" in page_of(told)


def test_an_address_in_use_ends_with_2(log: Path) -> None:
    """One line says so."""
    with serving(log) as (_, told):
        address = told["metrics"].removeprefix("http://").removesuffix("/metrics")
        done = program("serve", log, "--address", address)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# -- demo ----------------------------------------------------------------------------------------------------------


def test_the_demo_leaves_a_log_that_the_other_commands_read(tmp_path: Path) -> None:
    """From start to end, away from any checkout: its counters are those of its log."""
    done = program("demo", "--seconds", "0.5", "--trace", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["log"] == "asyncinspect-demo.jsonl"
    names = replay([tmp_path / told["log"]]).snapshot().names
    fields = ("spawned", "completed", "failed", "cancelled")
    assert {name: {field: getattr(view, field) for field in fields} for name, view in names.items()} == told["names"]
    assert told["names"]["Shop.order"]["spawned"] > 10
    # Its places are its own, and not those of who called it.
    at = replay([tmp_path / told["log"]]).snapshot().tasks[-1].at
    assert at is not None
    assert "demo_program.py:" in at
    again = program("demo", "--seconds", "0.5", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already" in again.stderr


def test_the_demo_is_ended_by_ctrl_c(tmp_path: Path) -> None:
    """Quietly, with 130."""
    with subprocess.Popen(
        [*COMMAND, "demo", "--seconds", "60"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert "A shop takes" in process.stdout.readline()
        while not (tmp_path / "asyncinspect-demo.jsonl").exists():
            pass
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == ""
        assert process.returncode == 130
