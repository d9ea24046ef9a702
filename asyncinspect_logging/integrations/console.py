"""Python's live tools beside this library: which of them are on in this process, what each is good for, and a command
for aiomonitor's console.

Needs nothing to be imported; `print_integration_info` needs the extra `cli`, and a monitor the extra `console`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from ipaddress import ip_address
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from ..inspector import Inspector
    from ..snapshot import Snapshot, TaskView

__all__ = [
    "COMPARISON",
    "TOOLS",
    "ActiveTool",
    "ConsoleIntegrationConfig",
    "active_tools",
    "add_command",
    "describe",
    "is_console_active",
    "print_integration_info",
    "recommendations",
]


class ActiveTool(NamedTuple):
    """A live tool that is on: its name, and what is to be known of it."""

    name: str
    detail: str


def is_console_active(loop: asyncio.AbstractEventLoop | None = None) -> bool:
    """Whether a live tool is on in this process: aiomonitor, asyncio's debug mode, or a debugger that is attached.

    loop: whose debug mode; default the running one. Where none runs, it is what the next one would have.
    `python -m asyncio ps` of Python 3.14 reads a process's memory from outside: nobody inside can tell.
    """
    return bool(active_tools(loop))


def active_tools(loop: asyncio.AbstractEventLoop | None = None) -> list[ActiveTool]:
    """The live tools that are on; see `is_console_active`. Imports none, and does not take long."""
    found = [ActiveTool("aiomonitor", where) for where in _monitors()]
    if loop is None:
        loop = asyncio._get_running_loop()
    if loop is not None:
        debug = loop.get_debug()
    else:
        flags = sys.flags
        debug = flags.dev_mode or (not flags.ignore_environment and bool(os.environ.get("PYTHONASYNCIODEBUG")))
    if debug:
        slow = getattr(loop, "slow_callback_duration", 0.1)
        found.append(ActiveTool("asyncio debug mode", f"callbacks slower than {slow:g} s are logged"))
    debugger = _debugger()
    if debugger:
        found.append(ActiveTool("debugger", debugger))
    return found


def _monitors() -> list[str]:
    """Where the aiomonitors listen that have been started and not closed."""
    module = sys.modules.get("aiomonitor.monitor")
    if module is None:
        return []
    found = []
    for thread in threading.enumerate():
        # Nothing lists them; each has one thread.
        monitor = getattr(getattr(thread, "_target", None), "__self__", None)
        if isinstance(monitor, module.Monitor) and not monitor.closed:
            found.append(f"telnet {monitor.host} {monitor.port}")
    return found


def _measures_coverage(trace: object) -> bool:
    return (getattr(trace, "__module__", None) or type(trace).__module__).partition(".")[0] == "coverage"


def _debugger() -> str:
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is not None:
        tool = monitoring.get_tool(monitoring.DEBUGGER_ID)
        if tool:
            return str(tool)
    trace = sys.gettrace()
    if trace is not None and "bdb" in sys.modules and not _measures_coverage(trace):
        return f"a trace function, {getattr(trace, '__qualname__', 'of C')}"
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            tracer = next((line.split()[1] for line in status if line.startswith("TracerPid:")), "0")
    except OSError:
        return ""
    return "" if tracer == "0" else f"traced by process {tracer}"


#: Marks a command of aiomonitor as ours.
_OURS: Final = "_of_asyncinspect"

#: The columns of the comparison. Versions are those that it was made with.
TOOLS: Final = ("asyncinspect_logging", "aiomonitor 0.7", "asyncio debug mode", "python -m asyncio (3.14)")

#: What each can do; the order of the answers is that of `TOOLS`.
COMPARISON: Final[tuple[tuple[str, tuple[str, str, str, str]], ...]] = (
    ("live tasks listed", ("yes", "yes: ps", "no", "yes: ps")),
    ("where a task waits", ("file:line of each frame", "stack: where", "no", "file:line: pstree")),
    ("what it waits for", ("lock, queue, task, holder", "no", "no", "no")),
    ("who awaits whom", ("yes", "no: who made whom", "no", "yes: ps, pstree")),
    ("deadlocks found", ("yes, also of locks", "no", "no", "cycles of awaits: pstree")),
    ("finished tasks", ("counted, and some kept", "with hook_task_factory", "no", "no")),
    ("polls, wakes, time on the loop", ("yes", "no", "no", "no")),
    ("slow callbacks", ("finding, and histogram", "no", "logged", "no")),
    ("a coroutine never awaited", ("counted", "no", "where it was made", "no")),
    ("history, metrics, replay", ("yes", "no", "no", "no")),
    ("cancel a task, run code", ("no", "yes: cancel, console", "no", "no")),
    (
        "without touching the program",
        ("no: a handler", "no: start_monitor", "environment variable", "yes, while it runs"),
    ),
    ("for use in production", ("yes", "on loopback: it runs code", "no: it slows down", "needs the right to trace")),
)


def recommendations(tools: Iterable[ActiveTool] | None = None) -> list[str]:
    """What to do now, given what is on (default: `active_tools()`)."""
    names = {tool.name for tool in (active_tools() if tools is None else tools)}
    told = []
    if "asyncio debug mode" in names:
        told.append(
            "Debug mode slows every callback down: the times measured now are not those of production. Leave it on "
            "for development; slow polls are findings without it."
        )
    if "aiomonitor" in names:
        told.append(
            "Type `inspect` in aiomonitor for what tasks wait for: asyncinspect_logging.integrations.console."
            "add_command() puts it there. Keep its ports on the loopback: whoever reaches them runs code in here."
        )
    else:
        told.append(
            "To cancel a task or run code inside: pip install 'asyncinspect-logging[console]', and "
            "ConsoleIntegrationConfig().start_monitor()."
        )
    if "debugger" in names:
        told.append("A debugger stops the loop: long polls that are found meanwhile are its own.")
    if sys.version_info >= (3, 14):
        told.append(f"From outside, without a restart: python -m asyncio pstree {os.getpid()}")
    told.append("In production: counters and findings on /metrics, the records in the log, and no live tool at all.")
    return told


def print_integration_info(file: IO[str] | None = None) -> None:
    """Print which live tools are on, what each can and cannot do, and what to do now. Raises MissingExtraError without
    rich.

    file: default sys.stdout.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        raise MissingExtraError("print_integration_info", "cli") from None
    console = Console(file=file, highlight=False, markup=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, markup=False, width=140)
    tools = active_tools()
    console.print("Live tools that are on in this process:", style="bold")
    for tool in tools:
        console.print(Text(f"  {tool.name}: {tool.detail}"))
    if not tools:
        console.print("  none")
    table = Table("", *TOOLS)
    for what, answers in COMPARISON:
        table.add_row(what, *answers)
    console.print(table)
    console.print("What to do:", style="bold")
    for told in recommendations(tools):
        console.print(Text(f"- {told}"))


@dataclass(frozen=True, kw_only=True)
class ConsoleIntegrationConfig:
    """How aiomonitor is started beside this library, with the command `inspect`.

    host: where it listens; whoever reaches it can run code in the process, so it is a loopback address unless
        `allow_remote`.
    termui_port, webui_port, console_port: of its console, its web pages and its REPL.
    hook_task_factory: whether it keeps finished tasks and where tasks were made. It replaces the loop's task factory.
    command: name of our command. limit: tasks that it lists at most.
    inspector: whose tasks; default `Inspector.default()`.
    Raises ConfigError for a value that cannot be used.
    """

    host: str = "127.0.0.1"
    termui_port: int = 20101
    webui_port: int = 20102
    console_port: int = 20103
    hook_task_factory: bool = False
    allow_remote: bool = False
    command: str = "inspect"
    limit: int = 50
    inspector: Inspector | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("termui_port", "webui_port", "console_port"):
            port = getattr(self, name)
            if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
                raise ConfigError(f"{name}={port!r} is no port; write a number from 1 to 65535")
        if not _is_loopback(self.host) and not self.allow_remote:
            raise ConfigError(
                f"host={self.host!r} can be reached from elsewhere, and whoever reaches aiomonitor runs code in here; "
                'write host="127.0.0.1", or allow_remote=True'
            )
        if not isinstance(self.command, str) or not self.command.isidentifier():
            raise ConfigError(f'command={self.command!r} is no name of a command; write for example command="inspect"')
        if not isinstance(self.limit, int) or isinstance(self.limit, bool) or self.limit < 1:
            raise ConfigError(f"limit={self.limit!r} is no number of tasks; write for example limit=50")

    def start_monitor(self, loop: asyncio.AbstractEventLoop | None = None) -> Any:
        """Start aiomonitor on `loop` (default: the running one), with our command. Returns its Monitor: close it, or
        use it in `with`. Raises MissingExtraError without aiomonitor.
        """
        try:
            aiomonitor = import_module("aiomonitor")
        except ImportError:
            raise MissingExtraError("start_monitor", "console") from None
        add_command(self.inspector, name=self.command, limit=self.limit)
        return aiomonitor.start_monitor(
            loop or asyncio.get_running_loop(),
            host=self.host,
            port=self.termui_port,
            webui_port=self.webui_port,
            console_port=self.console_port,
            hook_task_factory=self.hook_task_factory,
        )


def _is_loopback(host: object) -> bool:
    try:
        return host == "localhost" or ip_address(str(host)).is_loopback
    except ValueError:
        return False


def add_command(inspector: Inspector | None = None, *, name: str = "inspect", limit: int = 50) -> None:
    """Give every aiomonitor of this process the command `inspect [NAME OR ID]`. Called again, it replaces it.

    inspector: whose tasks; default `Inspector.default()`. limit: tasks that it lists at most.
    Raises MissingExtraError without aiomonitor, ConfigError where it has a command of that name, which is not ours.
    """
    try:
        import click

        commands: Any = import_module("aiomonitor.termui.commands")
    except ImportError:
        raise MissingExtraError("add_command", "console") from None

    there = commands.monitor_cli.commands.get(name)
    if there is not None and not hasattr(there, _OURS):
        raise ConfigError(f'name={name!r} is a command of aiomonitor; write for example name="inspect"')

    def inspect(ctx: Any, which: str | None) -> None:
        """Live tasks with state, polls and what they wait for; of one (an id, or a name), the await chain"""
        from ..inspector import Inspector

        snapshot = (inspector or Inspector.default()).snapshot()
        click.echo(describe(snapshot, which, limit))

    decorated = commands.custom_help_option(commands.auto_command_done(inspect))
    decorated = click.argument("which", required=False)(decorated)
    setattr(commands.monitor_cli.command(name=name)(decorated), _OURS, True)


def describe(snapshot: Snapshot, which: str | None = None, limit: int = 50) -> str:
    """The live tasks of a snapshot as lines of text, oldest first; with a name or an id, those alone, with their await
    chains.
    """
    live = sorted((task for task in snapshot.tasks if task.outcome is None), key=lambda task: -task.age)
    if which is not None:
        live = [task for task in live if which in (task.name, task.id)]
        if not live:
            return f"no live task has the name or the id {_plain(which)}"
    lines = [f"{len(live)} live", f"{'id':16}  {'state':8} {'age':>9} {'polls':>7}  name"] if which is None else []
    for task in live[:limit]:
        lines.append(_line(task))
        if which is not None:
            lines += [f"    in {_plain(frame)}" for frame in task.await_chain]
            lines += [f"    {_plain(key)} = {_plain(value)}" for key, value in task.fields.items()]
    if len(live) > limit:
        lines.append(f"… and {len(live) - limit} more")
    return "\n".join(lines)


def _line(task: TaskView) -> str:
    waits = f"  waits for {_plain(task.waiting_on)}" if task.waiting_on else ""
    return f"{task.id}  {task.state.value:8} {task.age:8.1f}s {task.polls:7}  {_plain(task.name)}{waits}"


def _plain(text: object) -> str:
    """On one line, and nothing that a terminal would take for an order."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text)[:500])
