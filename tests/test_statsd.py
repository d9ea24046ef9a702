"""StatsD and DogStatsD: every line by its format, every count once, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dogstatsd import Agent
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging import Inspector, instrument, span
from asyncinspect_logging.errors import ConfigError, MissingExtraError
from asyncinspect_logging.exporters.statsd import StatsdExporter
from asyncinspect_logging.exporters.statsd_lines import packets
from asyncinspect_logging.exporters.statsd_sockets import parse_target

pytest.importorskip("statsd")
pytest.importorskip("datadog")

ROOT = Path(__file__).resolve().parent.parent


def spans(number: int, name: str = "job") -> None:
    for _ in range(number):
        with span(name):
            pass


class Server:
    """What a plain StatsD server receives over UDP, as lines."""

    def __init__(self, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.bind(("127.0.0.1", port))
        self.socket.settimeout(10)
        self.port = self.socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def packets(self) -> list[bytes]:
        """What is there by now: on this machine a packet that was sent has arrived."""
        found = []
        self.socket.setblocking(False)
        while True:
            try:
                found.append(self.socket.recv(1 << 16))
            except BlockingIOError:
                return found

    def lines(self) -> list[str]:
        return [line for packet in self.packets() for line in packet.decode("ascii").split("\n")]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.socket.close()


def counts(lines: list[str]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for line in lines:
        match = re.fullmatch(r"([\w.\-]+):(\S+)\|c", line)
        if match:
            found[match[1]] += float(match[2])  # type: ignore[assignment]
    return dict(found)


def test_lines(server: Server, listen: Callable[..., Inspector], clock: Any) -> None:
    """Counters, gauges and timings, as the format has them; nothing is said again when nothing happened."""
    inspector = listen(clock=clock)
    with StatsdExporter(inspector, server.address, prefix="shop") as exporter:
        with suppress(ValueError), span("GET /users/{id}"):
            clock.t += 2_500_000
            raise ValueError
        assert exporter.export() > 10
        lines = server.lines()
        name = "GET__users__id_"
        for line in (
            f"shop.tasks.{name}:1|c",
            f"shop.tasks_failed.{name}:1|c",
            f"shop.task_duration.{name}.failed:2.500000|ms",
            "shop.events.drop:1|c",
            "shop.tasks_by_state.failed:1|g",
            "shop.active_tasks:0|g",
        ):
            assert lines.count(line) == 1
        assert not [line for line in lines if "completed" in line and line.endswith("|c")]
        exporter.export()
        assert {line[-2:] for line in server.lines()} == {"|g"}


def test_everything_that_is_counted(server: Server, listen: Callable[..., Inspector]) -> None:
    """Over several exports the sums are the inspector's totals, times to the nanosecond."""
    inspector = listen()

    async def work() -> None:
        for _ in range(3):
            with span("part"):
                await asyncio.sleep(0.001)

    lines = []
    with StatsdExporter(inspector, server.address) as exporter:
        for _ in range(3):
            asyncio.run(instrument(work(), name="work"))
            exporter.export()
            lines += server.lines()
    found, snapshot = counts(lines), inspector.snapshot()
    for name, view in snapshot.names.items():
        for what, value in {
            "tasks": view.spawned,
            "tasks_completed": view.completed,
            "task_polls": view.polls,
            "task_busy_seconds": view.busy,
            "task_idle_seconds": view.idle,
        }.items():
            assert found[f"async_inspect.{what}.{name}"] == pytest.approx(value, abs=1e-8)
    assert {f"async_inspect.events.{kind}": n for kind, n in snapshot.events.items() if n} == {
        key: value for key, value in found.items() if ".events." in key
    }
    for what, field in {
        "poll_count": "poll_counts",
        "poll_duration_seconds": "poll_durations",
        "scheduled_seconds": "scheduled_delays",
    }.items():
        for name, view in snapshot.names.items():
            histogram = getattr(view, field)
            assert found.get(f"async_inspect.{what}.sum.{name}", 0) == pytest.approx(histogram.sum, abs=1e-8)
            bounds = [f"{bound:g}".replace(".", "_") for bound in (*histogram.bounds, math.inf)]
            buckets = {bound: n for bound, n in zip(bounds, histogram.counts, strict=True) if n}
            prefix = f"async_inspect.{what}.bucket.{name}."
            assert {key.removeprefix(prefix): n for key, n in found.items() if key.startswith(prefix)} == buckets
    assert "async_inspect.poll_count.bucket.work.5" in found
    assert len([line for line in lines if line.endswith("|ms")]) == 12


@pytest.mark.parametrize("name", ["a:b|c@d#e\nf", "a.b", "ünï code", "\ud800", "", "x" * 9000, "|#tag:1"])
@pytest.mark.parametrize("dialect", ["statsd", "dogstatsd"])
def test_names(tmp_path: Path, listen: Callable[..., Inspector], dialect: Any, name: str) -> None:
    """No name of a span makes a line of another kind."""
    inspector = listen()
    with Agent("udp", tmp_path) as agent, StatsdExporter(inspector, agent.address, dialect=dialect) as exporter:
        spans(3, name)
        exporter.export()
        # Plain StatsD of names with a hyphen has no counterpart here.
        agent.wait_for(lambda: any(metric.type == "ms" for metric in agent.metrics))
        assert not agent.flaws
        ours = [metric for metric in agent.metrics if re.search(r"\btasks\b", metric.name) and metric.type == "c"]
        assert sum(metric.value for metric in ours) == 3
        if dialect == "statsd":
            assert [metric.name.count(".") for metric in ours] == [2]
        else:
            assert [(metric.name, len(metric.tags)) for metric in ours] == [("async_inspect.tasks", 1)]


@pytest.mark.parametrize("kind", ["udp", "unixgram", "unixstream"])
@pytest.mark.parametrize("shape", ["timing", "histogram", "distribution"])
def test_dogstatsd(tmp_path: Path, listen: Callable[..., Inspector], kind: str, shape: Any) -> None:
    """Tags, constant tags and types, by every way that an agent listens."""
    inspector = listen()
    with Agent(kind, tmp_path) as agent:
        tags = ["env:prod", "service:shop, the|first#"]
        with StatsdExporter(inspector, agent.address, dialect="dogstatsd", tags=tags, durations=shape) as exporter:
            spans(200, "GET /users/{id}")
            assert exporter.export() == len(agent.metrics) or exporter.errors == 0
        agent.wait_for(lambda: sum(metric.name.endswith("task_duration") for metric in agent.metrics) == 200)
        assert not agent.flaws
        constant = {"env:prod", "service:shop__the_first_"}
        assert all(metric.tags >= constant for metric in agent.metrics)
        assert agent.counts("name:GET_/users/_id_")["async_inspect.tasks_completed"] == 200
        durations = [metric for metric in agent.metrics if metric.name == "async_inspect.task_duration"]
        assert {metric.type for metric in durations} == {{"timing": "ms", "histogram": "h", "distribution": "d"}[shape]}
        assert durations[0].tags == constant | {"name:GET_/users/_id_", "state:completed"}


def test_sampling(server: Server, listen: Callable[..., Inspector]) -> None:
    """Durations only, and said; counters stay exact."""
    inspector = listen()
    with StatsdExporter(inspector, server.address, sample_rate=0.1) as exporter:
        spans(2000)
        exporter.export()
        lines = server.lines()
    sampled = [line for line in lines if line.endswith("|ms|@0.1")]
    # Of 2000, five standard deviations.
    assert 200 - 70 < len(sampled) < 200 + 70
    assert not [line for line in lines if line.endswith("|ms")]
    assert counts(lines)["async_inspect.tasks_completed.job"] == 2000


@pytest.mark.parametrize(("size", "most"), [(None, 1432), (512, 512), (8932, 8932)])
def test_packets_are_full(server: Server, listen: Callable[..., Inspector], size: Any, most: int) -> None:
    """None is above the size, and none but the last of its kind has room for the next line."""
    inspector = listen()
    with StatsdExporter(inspector, server.address, max_packet=size) as exporter:
        spans(2000)
        exporter.export()
        found = [packet for packet in server.packets() if packet.endswith(b"|ms")]
    assert max(map(len, found)) <= most
    line = max(len(line) for packet in found for line in packet.split(b"\n"))
    assert all(len(packet) + 1 + line > most for packet in found[:-1])


@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line)), st.integers(10, 60))
def test_packing(lines: list[bytes], size: int) -> None:
    """Each line is in one packet, in order, and packets hold as many as go in."""
    made = list(packets(lines, size))
    assert [line for packet, _ in made for line in packet.split(b"\n")] == lines
    assert [count for _, count in made] == [packet.count(b"\n") + 1 for packet, _ in made]
    assert all(len(packet) <= size or count == 1 for packet, count in made)
    assert all(len(a) + 1 + len(b.split(b"\n")[0]) > size for (a, _), (b, _) in pairwise(made))


@pytest.mark.parametrize("kind", ["udp", "unixgram", "unixstream"])
def test_an_agent_that_goes_away(tmp_path: Path, listen: Callable[..., Inspector], kind: str) -> None:
    """What it was not there for comes later, and nothing comes twice."""
    inspector = listen()
    with Agent(kind, tmp_path) as agent:
        port = int(agent.address.rpartition(":")[2]) if kind == "udp" else 0
        exporter = StatsdExporter(inspector, agent.address, dialect="dogstatsd")
        spans(10)
        exporter.export()
        agent.wait_for(lambda: sum(metric.type == "ms" for metric in agent.metrics) == 10)
        if kind == "unixstream":
            # The stand-in reads a stream to its end.
            exporter._sender.close()
    if kind != "udp":
        Path(exporter._target.path).unlink()
    for _ in range(2):
        spans(10)
        assert exporter.export() == 0
    assert exporter.errors == 2
    with Agent(kind, tmp_path, port) as again:
        spans(10)
        exporter.export()
        again.wait_for(lambda: sum(metric.type == "ms" for metric in again.metrics) == 30)
        exporter.close()
        assert again.counts()["async_inspect.tasks_completed"] == 30
    assert exporter.dropped == 0


def test_an_agent_that_takes_nothing(tmp_path: Path, listen: Callable[..., Inspector]) -> None:
    """Does not hold up the exporter for longer than its timeout, and loses nothing that there is room for."""
    inspector = listen()
    path = str(tmp_path / "full.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(path)
        exporter = StatsdExporter(inspector, f"unixgram://{path}", timeout=0.02, max_packet=512)
        spans(1000)
        began = time.monotonic()
        sent = exporter.export()
        assert time.monotonic() - began < 5
        assert exporter.errors == 1
        received: list[bytes] = []
        full.setblocking(False)
        failures = -1
        while failures != exporter.errors:
            failures = exporter.errors
            with suppress(BlockingIOError):
                while True:
                    received.append(full.recv(1 << 16))
            exporter.export()
        with suppress(BlockingIOError):
            while True:
                received.append(full.recv(1 << 16))
        lines = [line for packet in received for line in packet.decode().split("\n")]
        exporter.close()
    assert sent < 1000
    assert sum(line.endswith("|ms") for line in lines) == 1000
    assert counts(lines)["async_inspect.tasks_completed.job"] == 1000


def test_room_for_so_many(listen: Callable[..., Inspector]) -> None:
    """While nobody takes them, the oldest durations go, and are counted."""
    inspector = listen()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with StatsdExporter(inspector, f"127.0.0.1:{port}", max_waiting=100) as exporter:
        for _ in range(3):
            spans(300)
            inspector.snapshot()
            exporter.export()
        assert exporter.dropped == 800
        server = Server(port)
        exporter.export()
        lines = server.lines()
        server.socket.close()
    assert sum(line.endswith("|ms") for line in lines) == 100
    assert counts(lines)["async_inspect.tasks_completed.job"] == 900


def test_no_durations(server: Server, listen: Callable[..., Inspector]) -> None:
    """For a source that cannot say which tasks finish, or who does not want them."""
    inspector = listen()

    class Only:
        snapshot = staticmethod(inspector.snapshot)

    with pytest.raises(ConfigError, match="durations=None"):
        StatsdExporter(Only(), server.address)
    with StatsdExporter(Only(), server.address, durations=None) as exporter:
        spans(3)
        exporter.export()
        lines = server.lines()
    assert counts(lines)["async_inspect.tasks_completed.job"] == 3
    assert not [line for line in lines if "|ms" in line]


def test_reset(server: Server, listen: Callable[..., Inspector]) -> None:
    """Counting goes on after the inspector forgot everything."""
    inspector = listen()
    with StatsdExporter(inspector, server.address) as exporter:
        spans(5)
        exporter.export()
        inspector.reset()
        spans(3)
        exporter.export()
        assert counts(server.lines())["async_inspect.tasks_completed.job"] == 8


def test_its_thread(server: Server, listen: Callable[..., Inspector]) -> None:
    """Exports by itself until it is closed, which exports what is left; started twice, there is one thread."""
    inspector = listen()
    exporter = StatsdExporter(inspector, server.address)
    for _ in range(2):
        exporter.start(0.02)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("asyncinspect-statsd") == 1
    spans(5)
    server.socket.setblocking(True)
    seen = b""
    while b"async_inspect.tasks_completed.job:" not in seen:
        seen = server.socket.recv(1 << 16)
    exporter._interval = 60.0
    spans(7)
    exporter.close()
    exporter.close()
    assert "asyncinspect-statsd" not in [thread.name for thread in threading.enumerate()]
    lines = [*seen.decode().split("\n"), *server.lines()]
    assert counts(lines)["async_inspect.tasks_completed.job"] == 12


def test_more_than_there_is_room_for_between_two_exports(server: Server, listen: Callable[..., Inspector]) -> None:
    """Durations are taken before the interval is over where they come fast."""
    inspector = listen()
    with StatsdExporter(inspector, server.address, max_waiting=400) as exporter:
        exporter.start(600.0)
        spans(200)
        inspector.settle()
        server.socket.setblocking(True)
        lines = server.socket.recv(1 << 16).decode().split("\n")
    assert all(line.endswith("|ms") for line in lines)


def test_fork(tmp_path: Path, listen: Callable[..., Inspector]) -> None:
    """The child sends what it counts, and nothing of the parent's."""
    inspector = listen()
    with Agent("udp", tmp_path) as agent:
        exporter = StatsdExporter(inspector, agent.address, dialect="dogstatsd")
        spans(5)
        pid = os.fork()
        if not pid:
            try:
                spans(20)
                exporter.export()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        spans(1)
        exporter.export()
        agent.wait_for(lambda: agent.counts()["async_inspect.tasks_completed"] == 26)
        agent.wait_for(lambda: sum(metric.type == "ms" for metric in agent.metrics) == 26)
        exporter.close()


def test_at_exit(tmp_path: Path) -> None:
    """What was counted last is sent when the process ends, with the spans that are open then."""
    code = """
import logging, sys
from asyncinspect_logging import AsyncInspectHandler, span
from asyncinspect_logging.exporters.statsd import StatsdExporter
logging.getLogger().addHandler(AsyncInspectHandler())
exporter = StatsdExporter(address=sys.argv[1], dialect="dogstatsd")
exporter.start(60)
with span("job"):
    pass
open = span("open")
open.__enter__()
"""
    with Agent("udp", tmp_path) as agent:
        subprocess.run([sys.executable, "-c", code, agent.address], check=True, timeout=60)
        agent.wait_for(lambda: agent.counts("name:job")["async_inspect.tasks_completed"] == 1)
        agent.wait_for(lambda: agent.counts("name:open")["async_inspect.tasks_cancelled"] == 1)


def test_the_recipe_for_datadog(tmp_path: Path) -> None:
    """`examples/datadog_agent.py`, against an agent that checks the format."""
    with Agent("unixgram", tmp_path) as agent:
        environment = os.environ | {"DOGSTATSD": agent.address}
        program = str(ROOT / "examples" / "datadog_agent.py")
        done = subprocess.run([sys.executable, program], env=environment, check=True, timeout=60, capture_output=True)
        assert done.stdout.decode() == f"sent to {agent.address}\n"
        agent.wait_for(lambda: sum(metric.type == "d" for metric in agent.metrics) == 100)
        assert not agent.flaws
        assert agent.counts("service:shop", "env:dev", "name:handle_order") == {
            "async_inspect.tasks": 100,
            "async_inspect.tasks_completed": 90,
            "async_inspect.tasks_failed": 10,
            "async_inspect.task_polls": agent.counts()["async_inspect.task_polls"],
            **{key: value for key, value in agent.counts().items() if "seconds" in key or "poll_count" in key},
        }
        assert agent.counts("name:handle_order")["async_inspect.poll_count.bucket"] == 100
        assert max(agent.sizes) <= 8192


@pytest.mark.parametrize(
    "options",
    [
        {"address": 8125},
        {"address": "nowhere"},
        {"address": "localhost:0"},
        {"address": "unix://relative"},
        {"address": "ftp://host"},
        {"address": "unix:///" + "x" * 200},
        {"dialect": "graphite"},
        {"prefix": "a b"},
        {"prefix": None},
        {"tags": ["env:prod"]},
        {"tags": "env:prod", "dialect": "dogstatsd"},
        {"tags": [1], "dialect": "dogstatsd"},
        {"durations": "histogram"},
        {"durations": "sum", "dialect": "dogstatsd"},
        {"sample_rate": 0},
        {"sample_rate": 2},
        {"sample_rate": True},
        {"sample_rate": float("nan")},
        {"max_packet": 10},
        {"max_packet": 1e9},
        {"max_waiting": 0},
        {"timeout": -1},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    """What cannot be used is named, with its value and the fix."""
    with pytest.raises(ConfigError, match="write "):
        StatsdExporter(Inspector(), **options)


def test_interval() -> None:
    """So it is with the interval."""
    with StatsdExporter(Inspector()) as exporter, pytest.raises(ConfigError, match="interval"):
        exporter.start(0)


@pytest.mark.parametrize("dialect", ["statsd", "dogstatsd"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, dialect: Any) -> None:
    """The error says what to install."""
    for module in ("statsd.client.base", "datadog.dogstatsd.base"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"asyncinspect-logging\[statsd\]"):
        StatsdExporter(Inspector(), dialect=dialect)


def test_addresses() -> None:
    """As they are written, and read again."""
    assert parse_target("[::1]:8125")[2:] == ("::1", 8125)
    assert str(parse_target("[::1]:8125")) == "[::1]:8125"
    assert str(parse_target("unixstream:///run/a.sock")) == "unix:///run/a.sock"
    assert parse_target("localhost:8125").packet == 1432
    assert parse_target("unix:///run/a.sock").packet == 8192
