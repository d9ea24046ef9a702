"""The reference StatsD server, and collectd, which is stricter: what they add up is what the inspector counted."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, running, until

from asyncinspect_logging import Inspector, span
from asyncinspect_logging.exporters.statsd import StatsdExporter

pytest.importorskip("statsd")
pytestmark = pytest.mark.real

QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
ROOT = Path(__file__).resolve().parents[2]


def missing(what: str) -> None:
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(f"{what}, and CI accepts no skip for it")
    pytest.skip(what)


class Reference:
    """The reference server: started, asked and killed."""

    def __init__(self, script: str, folder: Path) -> None:
        self.folder = folder
        self.port, self.management = free_port(socket.SOCK_DGRAM), free_port()
        self.path = str(folder / "stream.sock")
        servers = [
            {"server": "./servers/udp", "address": "127.0.0.1", "port": self.port},
            {"server": "./servers/tcp", "socket": self.path},
        ]
        # What it has is read before it would be flushed.
        config = {"servers": servers, "backends": [], "mgmt_address": "127.0.0.1", "mgmt_port": self.management}
        (folder / "config.js").write_text(json.dumps(config | {"flushInterval": 10**8, "title": False}))
        self.command = [shutil.which("node") or "node", script, str(folder / "config.js")]

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[str]]:
        Path(self.path).unlink(missing_ok=True)
        with running(self.command, **QUIET) as process:
            until(self.answers)
            yield process

    def answers(self) -> bool:
        try:
            self.ask("counters")
        except OSError:
            return False
        return os.path.exists(self.path)

    def ask(self, what: str) -> str:
        with socket.create_connection(("127.0.0.1", self.management), 5) as connection:
            connection.sendall(f"{what}\n".encode())
            with connection.makefile() as lines:
                return "".join(iter(lines.readline, "END\n"))

    def numbers(self, what: str) -> dict[str, float]:
        """Counters or gauges by name."""
        return {
            name: float(value) for name, value in re.findall(r"'?([\w.\-]+)'?: (-?[\d.e+-]+)[,\s}]", self.ask(what))
        }

    def timings(self, name: str) -> int:
        """How many there are: it shows a hundred, and says how many more there are."""
        found = re.search(rf"'?{re.escape(name)}'?: \[(.*?)\]", self.ask("timers"), re.S)
        if found is None:
            return 0
        more = re.search(r"(\d+) more items?", found[1])
        shown = re.sub(r"\.\.\..*", "", found[1])
        return len(re.findall(r"[\d.]+", shown)) + (int(more[1]) if more else 0)


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    script = os.environ.get("STATSD_SERVER") or str(ROOT / ".cache" / "node" / "node_modules" / "statsd" / "stats.js")
    if not os.path.exists(script) or not shutil.which("node"):
        missing("the reference StatsD server is not installed (tools/setup.py --programs does that)")
    return Reference(script, tmp_path)


async def work(count: int, name: str = "GET /users/{id}") -> None:
    for number in range(count):
        try:
            with span(name):
                await asyncio.sleep(0)
                if not number % 10:
                    raise LookupError
        except LookupError:
            pass


def check(server: Reference, exporter: StatsdExporter, inspector: Inspector, name: str = "GET__users__id_") -> None:
    view = inspector.snapshot().names["GET /users/{id}"]

    def counted() -> dict[str, float]:
        return server.numbers("counters")

    until(lambda: counted().get(f"async_inspect.tasks.{name}") == view.spawned, lambda: (view, counted()))
    counters = counted()
    assert counters[f"async_inspect.tasks_completed.{name}"] == view.completed
    assert counters[f"async_inspect.tasks_failed.{name}"] == view.failed
    assert counters["async_inspect.events.drop"] == view.finished
    assert counters["statsd.bad_lines_seen"] == 0
    states = ("completed", "failed")
    until(lambda: sum(server.timings(f"async_inspect.task_duration.{name}.{one}") for one in states) == view.finished)
    assert server.numbers("gauges")["async_inspect.active_tasks"] == 0
    assert exporter.errors == exporter.dropped == 0


@pytest.mark.parametrize("kind", ["udp", "stream"])
def test_the_reference_server(reference: Reference, listen: Callable[..., Inspector], kind: str) -> None:
    """By UDP and Unix stream: each counter is what was counted, each task has its timing, and no line is bad."""
    inspector = listen()
    with reference.up():
        address = f"127.0.0.1:{reference.port}" if kind == "udp" else f"unix://{reference.path}"
        with StatsdExporter(inspector, address) as exporter:
            for _ in range(3):
                asyncio.run(work(500))
                assert exporter.export() > 500
            check(reference, exporter, inspector)


@pytest.mark.parametrize("kind", ["udp", "stream"])
def test_a_server_that_goes_away(reference: Reference, listen: Callable[..., Inspector], kind: str) -> None:
    """What is counted while it is away is sent once it is back: both lives of it add up to what was counted."""
    inspector = listen()
    name = "GET__users__id_"
    address = f"127.0.0.1:{reference.port}" if kind == "udp" else f"unixstream://{reference.path}"
    with StatsdExporter(inspector, address) as exporter:
        with reference.up() as process:
            asyncio.run(work(100))
            exporter.export()
            until(lambda: reference.numbers("counters").get(f"async_inspect.tasks.{name}") == 100)
            before = reference.numbers("counters")
            process.kill()
            process.wait()
        for _ in range(3):
            asyncio.run(work(100))
            assert exporter.export() == 0
        assert exporter.errors == 3
        with reference.up():
            asyncio.run(work(100))
            exporter.export()
            until(lambda: reference.numbers("counters").get(f"async_inspect.tasks.{name}") == 400)
            after = reference.numbers("counters")
            states = ("completed", "failed")
            until(lambda: sum(reference.timings(f"async_inspect.task_duration.{name}.{one}") for one in states) == 400)
    view = inspector.snapshot().names["GET /users/{id}"]
    for key, value in {"tasks": view.spawned, "tasks_completed": view.completed, "task_polls": view.polls}.items():
        assert before[f"async_inspect.{key}.{name}"] + after[f"async_inspect.{key}.{name}"] == value
    assert exporter.dropped == 0


COLLECTD = """
Hostname "here"
BaseDir "{folder}"
PIDFile "{folder}/pid"
TypesDB "/usr/share/collectd/types.db"
Interval 1
LoadPlugin logfile
<Plugin logfile>
  LogLevel info
  File "{folder}/log"
</Plugin>
LoadPlugin statsd
<Plugin statsd>
  Host "127.0.0.1"
  Port "{port}"
  TimerCount true
</Plugin>
LoadPlugin csv
<Plugin csv>
  DataDir "{folder}/csv"
  StoreRates false
</Plugin>
"""


def test_collectd(tmp_path: Path, listen: Callable[..., Inspector]) -> None:
    """Takes every line, and adds up to the same."""
    program = shutil.which("collectd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        missing("collectd is not installed")
    inspector, port = listen(), free_port(socket.SOCK_DGRAM)
    (tmp_path / "conf").write_text(COLLECTD.format(folder=tmp_path, port=port))
    log = tmp_path / "log"

    def bound() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return True
        return False

    def rows(name: str) -> list[list[str]]:
        found = [
            path for path in tmp_path.glob(f"csv/here/statsd*/{name}-*") if re.search(r"-\d{4}-\d\d-\d\d$", path.name)
        ]
        return [row for path in found for row in list(csv.reader(path.read_text().splitlines()))[1:]]

    def last(name: str) -> float:
        return max((float(row[1]) for row in rows(name)), default=0.0)

    with running([str(program), "-f", "-C", str(tmp_path / "conf")], **QUIET):
        until(bound)
        with StatsdExporter(inspector, f"127.0.0.1:{port}", sample_rate=0.5) as exporter:
            asyncio.run(work(300))
            exporter.export()
            asyncio.run(work(300))
            exporter.export()
        stem = "async_inspect.tasks{}.GET__users__id_"
        until(lambda: last("derive-" + stem.format("")) == 600, lambda: sorted(tmp_path.glob("csv/here/*/*")))
        assert last("derive-" + stem.format("_completed")) == 540
        assert last("derive-" + stem.format("_failed")) == 60
        assert last("gauge-async_inspect.active_tasks") == 0
        assert rows("latency-async_inspect.task_duration.GET__users__id_.completed-average")
    assert "parse" not in log.read_text().lower(), log.read_text()
