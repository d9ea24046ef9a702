"""The console guide: what is on, what it says, and the command in a real aiomonitor, reached over telnet."""

from __future__ import annotations

import asyncio
import bdb
import contextlib
import io
import logging
import os
import re
import socket
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging import install, span
from asyncinspect_logging.errors import ConfigError, MissingExtraError
from asyncinspect_logging.integrations import console
from asyncinspect_logging.integrations.console import (
    COMPARISON,
    TOOLS,
    ActiveTool,
    ConsoleIntegrationConfig,
    active_tools,
    describe,
    is_console_active,
    print_integration_info,
    recommendations,
)

# A terminal of 200 columns and 40 rows, of the type "dumb", as a telnet client says it (RFC 1073, RFC 1091).
TELNET = b"\xff\xfb\x1f\xff\xfa\x1f\x00\xc8\x00\x28\xff\xf0\xff\xfb\x18\xff\xfa\x18\x00dumb\xff\xf0"


def printed() -> str:
    out = io.StringIO()
    print_integration_info(out)
    return out.getvalue()


def test_debug_mode() -> None:
    """Of the loop that runs, of one that is given, or, where none runs, of the next."""

    async def look() -> tuple[bool, list[ActiveTool], str]:
        return is_console_active(), active_tools(), printed()

    assert not is_console_active()
    assert asyncio.run(look())[:2] == (False, [])
    active, tools, text = asyncio.run(look(), debug=True)
    assert active
    assert tools == [ActiveTool("asyncio debug mode", "callbacks slower than 0.1 s are logged")]
    assert "  asyncio debug mode: callbacks slower than 0.1 s are logged" in text.splitlines()
    assert "Debug mode slows every callback down" in text
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    try:
        assert is_console_active(loop)
    finally:
        loop.close()


@pytest.mark.parametrize(("options", "variables"), [(["-X", "dev"], {}), ([], {"PYTHONASYNCIODEBUG": "1"}), ([], {})])
def test_debug_mode_of_the_next_loop(options: list[str], variables: dict[str, str]) -> None:
    """Asked before there is one; and nothing that is not needed is imported for it."""
    code = (
        "import sys; from asyncinspect_logging.integrations.console import is_console_active\n"
        "print(is_console_active()); assert not {'rich', 'aiomonitor', 'click'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env={**_environment(), **variables}
    )
    assert done.stdout.strip() == str(bool(options or variables)), done.stderr


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONASYNCIODEBUG"}


def test_a_debugger() -> None:
    """One that traces with bdb is seen."""
    found: list[ActiveTool] = []
    before = sys.gettrace()
    bdb.Bdb().runcall(lambda: found.extend(active_tools()))
    sys.settrace(before)
    assert "debugger" in {tool.name for tool in found}
    assert any("A debugger stops the loop" in told for told in recommendations(found))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with 3.12")
def test_a_debugger_by_monitoring() -> None:
    """One that has the tool id of debuggers, as bdb's can from 3.14 on, attached from outside or not."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    assert monitoring.get_tool(monitoring.DEBUGGER_ID) is None
    monitoring.use_tool_id(monitoring.DEBUGGER_ID, "bdbtracer")
    try:
        assert active_tools() == [ActiveTool("debugger", "bdbtracer")]
    finally:
        monitoring.free_tool_id(monitoring.DEBUGGER_ID)
    assert not is_console_active()


@pytest.mark.skipif(sys.platform != "linux", reason="ptrace of Linux")
def test_a_debugger_from_outside() -> None:
    """Another process that traces this one, as gdb and py-spy do: seen, with its number."""
    code = (
        "import ctypes, os, sys\n"
        "if ctypes.CDLL(None).ptrace(0, 0, 0, 0): sys.exit(7)\n"  # PTRACE_TRACEME: by whoever made this process
        "from asyncinspect_logging.integrations.console import active_tools\n"
        "print(os.getppid(), *active_tools())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    if done.returncode == 7:
        pytest.skip("tracing is not allowed here")
    parent, told = done.stdout.split(maxsplit=1)
    assert told.strip() == f"ActiveTool(name='debugger', detail='traced by process {parent}')", done.stderr


def test_the_table() -> None:
    """Each capability with an answer for each tool; and all of it is printed."""
    assert all(len(answers) == len(TOOLS) for _, answers in COMPARISON)
    text = " ".join(printed().split())
    for cell in (*TOOLS, *(cell for what, answers in COMPARISON for cell in (what, *answers))):
        assert cell in text
    assert "Live tools that are on in this process: none" in text
    assert "on /metrics" in text


def test_the_table_of_the_documentation() -> None:
    """It is the one that is printed."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "console.md").read_text("utf-8").splitlines()
    assert f"| | {' | '.join(TOOLS)} |" in page
    for what, answers in COMPARISON:
        assert f"| {what} | {' | '.join(answers)} |" in page


def test_the_table_is_right() -> None:
    """What it says of asyncio's debug mode and of aiomonitor is so in those that are installed here."""
    commands = pytest.importorskip("aiomonitor").monitor_cli.commands
    assert {"ps", "where", "ps-terminated", "cancel", "console"} <= set(commands)
    assert f"aiomonitor {'.'.join(version('aiomonitor').split('.')[:2])}" in TOOLS

    told: list[str] = []

    async def never() -> None: ...

    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0
        never()  # type: ignore[unused-coroutine]

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, handler = logging.getLogger("asyncio"), Hears()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asyncio.run(main(), debug=True)
    finally:
        logger.removeHandler(handler)
    assert any("took" in line for line in told)
    assert any("Coroutine created at" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("columns", [1, 20, 80, 300])
def test_on_a_terminal(columns: int, monkeypatch: Any) -> None:
    """As wide as it is, down to one column; what is no terminal gets 140."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    print_integration_info(out)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert max(map(len, shown.splitlines())) <= max(columns, 1)
    assert len(shown) > 500
    assert max(map(len, printed().splitlines())) == 140


def test_without_rich(monkeypatch: Any) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingExtraError, match=r"asyncinspect-logging\[cli\]"):
        print_integration_info()


def test_without_aiomonitor(monkeypatch: Any) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "aiomonitor", None)
    monkeypatch.setitem(sys.modules, "aiomonitor.termui.commands", None)
    with pytest.raises(MissingExtraError, match=r"asyncinspect-logging\[console\]"):
        ConsoleIntegrationConfig().start_monitor()
    with pytest.raises(MissingExtraError, match=r"asyncinspect-logging\[console\]"):
        console.add_command()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"termui_port": 0}, "termui_port=0 is no port; write a number from 1 to 65535"),
        ({"webui_port": "80"}, "webui_port='80' is no port"),
        ({"console_port": True}, "console_port=True is no port"),
        ({"host": "0.0.0.0"}, "host='0.0.0.0' can be reached from elsewhere"),
        ({"host": 7}, "host=7 can be reached from elsewhere"),
        ({"command": "in spect"}, "command='in spect' is no name of a command"),
        ({"limit": 0}, "limit=0 is no number of tasks"),
    ],
)
def test_bad_settings(options: dict[str, Any], told: str) -> None:
    """Each error names the setting, its value and the fix."""
    with pytest.raises(ConfigError) as error:
        ConsoleIntegrationConfig(**options)
    assert str(error.value).startswith(told)


def test_describe(listen: Any) -> None:
    """Oldest first, at most so many, on one line each, whatever names and fields hold."""
    inspector = listen()
    with span("outer\n\x1b[2J", note="a\x07b") as outer, span("inner"):
        text = describe(inspector.snapshot(), limit=1)
        one = describe(inspector.snapshot(), outer.id)
    lines = text.splitlines()
    assert lines[0] == "2 live"
    assert re.fullmatch(rf"{outer.id}  running  +0\.\ds +1  outer\\n\\x1b\[2J", lines[2])
    assert lines[3:] == ["… and 1 more"]
    assert one.splitlines()[-1] == "    note = a\\x07b"
    assert describe(inspector.snapshot(), "none\n") == "no live task has the name or the id none\\n"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def test_commands_of_aiomonitor_stay() -> None:
    """A name that it has itself is refused; ours may be replaced."""
    commands = pytest.importorskip("aiomonitor").monitor_cli.commands
    before = commands["ps"]
    with pytest.raises(ConfigError, match="name='ps' is a command of aiomonitor"):
        console.add_command(name="ps")
    assert commands["ps"] is before
    console.add_command(name="look")
    first = commands["look"]
    console.add_command(name="look")
    assert commands.pop("look") is not first


@pytest.mark.parametrize("hooked", [False, True], ids=["", "hook_task_factory"])
@pytest.mark.parametrize("first", ["monitor", "install"])
# aiomonitor's own: prompt_toolkit and aiohttp call what is deprecated.
@pytest.mark.filterwarnings("ignore")
def test_with_a_real_aiomonitor(first: str, hooked: bool, listen: Any) -> None:
    """Both in one process, whichever comes first: the tasks are counted as ever, aiomonitor lists them, and its
    console has `inspect`, with state, polls, what is waited for, and the await chain.
    """
    pytest.importorskip("aiomonitor")
    inspector = listen()
    ports = dict(zip(("termui_port", "webui_port", "console_port"), free_ports(3), strict=True))
    config = ConsoleIntegrationConfig(**ports, hook_task_factory=hooked, inspector=inspector)

    async def waits(jobs: asyncio.Queue[str]) -> None:
        with span("order", number=7):
            await jobs.get()

    async def main() -> str:
        jobs: asyncio.Queue[str] = asyncio.Queue()
        jobs.name = "jobs"  # type: ignore[attr-defined]
        with contextlib.ExitStack() as both:
            for start in (config.start_monitor, install) if first == "monitor" else (install, config.start_monitor):
                both.enter_context(start())
            assert [tool.name for tool in active_tools()] == ["aiomonitor"]
            assert is_console_active()
            assert f"telnet 127.0.0.1 {config.termui_port}" in printed()
            task = asyncio.create_task(waits(jobs), name="the waiter")
            reader, writer = await asyncio.open_connection("127.0.0.1", config.termui_port)
            writer.write(TELNET)
            seen = b""

            async def until(mark: bytes) -> None:
                nonlocal seen
                start = len(seen)
                while mark not in seen[start:]:
                    part = await reader.read(4096)
                    assert part, seen
                    seen += part

            await until(b"monitor >>> ")
            writer.write(b"inspect\r\n")
            await until(b"order  waits for queue:jobs get")
            writer.write(b"inspect order\r\n")
            await until(b"number = 7")
            writer.write(b"inspect nothing\r\n")
            await until(b"no live task has the name or the id nothing")
            writer.write(b"ps\r\n")
            await until(b"the waiter")
            writer.close()
            await writer.wait_closed()
            await jobs.put("done")
            await task
        assert not is_console_active()
        return seen.decode("ascii", "replace")

    text = asyncio.run(asyncio.wait_for(main(), 20))
    assert re.search(r"[0-9a-f]{16}  blocked +\d\.\ds +1  order  waits for queue:jobs get", text)
    assert re.search(r"in .*test_console\.py:\d+ .*waits\r\n    in asyncio/queues\.py:\d+ Queue\.get", text)
    names = inspector.snapshot().names
    assert names["order"].completed == 1
    (waiting,) = (view for name, view in names.items() if name.endswith(".waits"))
    assert (waiting.completed, waiting.failed, waiting.cancelled) == (1, 0, 0)
