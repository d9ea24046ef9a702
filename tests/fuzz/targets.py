"""What reads input that anybody may have written, each as a function of bytes. An input that is wrong may be counted or
refused by the error that is documented for it; any other exception is a bug, and so is taking long.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import socket
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from asyncinspect_logging import Config, Inspector
from asyncinspect_logging.analysis.compare import compare
from asyncinspect_logging.analysis.files import LogFileError
from asyncinspect_logging.analysis.graph import graph
from asyncinspect_logging.analysis.lifecycle import check
from asyncinspect_logging.analysis.pages import PageError, read_page
from asyncinspect_logging.analysis.profile import profile
from asyncinspect_logging.analysis.replay import replay
from asyncinspect_logging.analysis.rules import parse_rules
from asyncinspect_logging.endpoint import parse_endpoint
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.chrome_trace import ChromeTraceExporter
from asyncinspect_logging.exporters.combine import combine
from asyncinspect_logging.exporters.csv_file import CsvExporter
from asyncinspect_logging.exporters.exposition import Renderer
from asyncinspect_logging.exporters.flame import MEASURES, FlameExporter
from asyncinspect_logging.exporters.json_file import FormatError, JsonExporter, JsonTasks
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.records import TRACE
from asyncinspect_logging.sidecar.lines import Reader
from asyncinspect_logging.sidecar.listen import Listener
from asyncinspect_logging.sidecar.processes import Processes
from asyncinspect_logging.snapshot import Snapshot
from asyncinspect_logging.streams import TaskStream
from asyncinspect_logging.testing import FakeClock

__all__ = ["TARGETS", "corpus_of"]

#: In memory where the system has such a folder.
_FOLDER: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None
_SMALL: Final = Config(max_tasks=20, max_events=50, max_names=20)


def _use(snapshot: Snapshot, stream: TaskStream | None = None) -> None:
    """What was read goes into everything that takes it, as a whole and, if it can be, as a stream."""
    for source in (snapshot, stream):
        if source is None:
            continue
        for exporter in (CsvExporter, ChromeTraceExporter, FlameExporter):
            exporter.export_to_string(source)
        CsvExporter.export_to_string(source, what="events")
        for form in MEASURES:
            FlameExporter.export_to_string(source, measure=form, form="collapsed")
        told = profile(source)
        told.render(ascii=True)
        json.dumps(told.to_dict(), allow_nan=False)
        edges = graph(source)
        json.loads(edges.to_json())
        for text in (edges.to_text(ascii=True), edges.to_dot(), edges.to_mermaid()):
            assert text
        for flaw in check(source):
            assert flaw.message
    renderer = Renderer()
    renderer.page(renderer.blocks(combine([snapshot, _exported()])))
    for before in (snapshot, _exported()):
        difference = compare(before, snapshot)
        difference.render()
        json.dumps(difference.to_dict(), allow_nan=False)


@cache
def _exported() -> Snapshot:
    return JsonExporter.read(_exports()[0])


def _log(data: bytes) -> None:
    """A log file, replayed, strictly too; and what comes out of it is a page and an export like any other."""
    with tempfile.NamedTemporaryFile(dir=_FOLDER, suffix=".jsonl") as file:
        file.write(data)
        file.flush()
        inspector = replay(file.name, inspector=Inspector(_SMALL, clock=FakeClock()))
        snapshot = inspector.snapshot()
        assert all(view.live >= 0 for view in snapshot.names.values()), snapshot.names
        if len(data) % 4 == 0:
            try:
                replay(file.name, strict=True, at=1_700_000_000.0)
            except LogFileError:
                pass
    if len(data) % 16:
        return  # often enough, and it takes several times as long as all the rest
    PrometheusExporter(inspector).gather()
    text = JsonExporter.export_to_string(snapshot).encode()
    assert JsonExporter.read(text) == snapshot
    _use(snapshot, JsonTasks(text))


def _record(data: bytes) -> None:
    """Records that were parsed by somebody else, as a queue or a socket hands them on."""
    inspector = Inspector(_SMALL, clock=FakeClock())
    for line in data.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        inspector.apply(value)
    inspector.snapshot(tasks=not len(data) % 16)


def _export(data: bytes) -> None:
    try:
        snapshot = JsonExporter.read(data)
    except FormatError:
        return
    assert JsonExporter.read(JsonExporter.export_to_string(snapshot).encode()) == snapshot
    _use(snapshot, JsonTasks(data))


def _rules(data: bytes) -> None:
    """A rules file, and lines; both of the same input, since the patterns are the user's own and the lines are not."""
    head, _, lines = data.partition(b"\n---\n")
    try:
        rules = parse_rules(head.decode("utf-8", "replace"))
    except ConfigError:
        return
    inspector = Inspector(_SMALL, clock=FakeClock())
    for number, line in enumerate(lines.split(b"\n")[:1000]):
        for payload in rules.payloads(line, "log", number):
            inspector.apply(payload)
    for payload in rules.finish():
        inspector.apply(payload)
    assert inspector.snapshot().dropped["malformed"] == 0


def _page(data: bytes) -> None:
    """What a process answers at /metrics."""
    try:
        snapshot = read_page(data)
    except PageError:
        return
    assert JsonExporter.read(JsonExporter.export_to_string(snapshot)).names == snapshot.names
    _use(snapshot)


def _state(data: bytes) -> None:
    """What a sidecar kept."""
    try:
        saved = json.loads(data)
    except (ValueError, RecursionError):
        return
    inspector = Inspector(_SMALL, clock=FakeClock())
    try:
        inspector.resume(saved)
    except ConfigError:
        return
    for line in _logs()[0].splitlines():
        inspector.apply(json.loads(line))
    inspector.snapshot()


class _Socket:
    """A sidecar's listener, and who connects to it, sends and leaves."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_FOLDER)
        self._path = str(Path(self._folder.name) / "socket")
        self._inspector = Inspector(_SMALL, clock=FakeClock())
        self._listener = Listener(
            parse_endpoint(self._path), Reader(self._inspector), Processes(self._inspector, 60.0, None)
        )

    def close(self) -> None:
        self._listener.close()
        self._folder.cleanup()

    def __call__(self, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self._path)
            client.setblocking(False)
            while data:
                try:
                    data = data[client.send(data[:30_000]) :]
                except BlockingIOError:
                    pass
                except OSError:
                    break  # it was shut out
                self._listener.serve(self._listener.wait(0))
        while len(self._listener):
            self._listener.serve(self._listener.wait(0.01))
        self._inspector.settle()
        assert self._listener._pending == 0


@cache
def _socket() -> _Socket:
    made = _Socket()
    atexit.register(made.close)
    return made


def corpus_of(target: str) -> list[bytes]:
    """Inputs that are right, made by the library itself."""
    return _CORPORA[target]()


@cache
def _logs() -> list[bytes]:
    import logging

    from pythonjsonlogger.json import JsonFormatter

    from asyncinspect_logging import span

    logger = logging.getLogger("asyncinspect.fuzz")
    logger.propagate = False
    found = []
    for level in (logging.DEBUG, TRACE):
        text = io.StringIO()
        handler = logging.StreamHandler(text)
        handler.setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp=True))
        logger.handlers = [handler]
        logger.setLevel(level)
        for number in range(3):
            try:
                with span("outer", logger=logger, number=number, text="a b") as outer:
                    outer.record(more=[1, 2.5, None, {"deep": True}])
                    with span("inner", logger=logger):
                        logger.info("an ordinary line")
                    if number == 2:
                        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
            except ExceptionGroup:
                pass
        found.append(text.getvalue().encode())
    logger.handlers = []
    payloads = [json.loads(line).get("asyncinspect") for line in found[0].splitlines()]
    wait: dict[str, Any] = dict(payloads[0], kind="wait", seq=9999, on="lock:db", owner="a" * 16, task="main")
    wait["resource"] = {"kind": "lock", "name": "db", "id": "b" * 16}
    wait["holders"] = [{"owner": "c" * 16, "task": "other", "t": 1, "at": "a.py:1", "count": 2}]
    steps = [
        dict(payloads[0], kind=kind, seq=10_000 + n, on="sleep") for n, kind in enumerate(("suspend", "wake", "resume"))
    ]
    found.append("\n".join(json.dumps(payload) for payload in (*payloads, wait, *steps) if payload).encode())
    return found


def _exports() -> list[bytes]:
    found = []
    for log in _logs():
        inspector = Inspector(clock=FakeClock())
        for line in log.splitlines():
            inspector.apply(json.loads(line))
        found.append(JsonExporter.export_to_string(inspector).encode())
    return found


def _pages() -> list[bytes]:
    found = []
    for log in _logs():
        inspector = Inspector(clock=FakeClock())
        for line in log.splitlines():
            inspector.apply(json.loads(line))
        exporter = PrometheusExporter(inspector)
        found += [exporter.gather(openmetrics=openmetrics).encode() for openmetrics in (False, True)]
        exporter.close()
    return found


def _states() -> list[bytes]:
    found = []
    for log in _logs():
        inspector = Inspector(_SMALL, clock=FakeClock())
        for line in log.splitlines()[:-2]:
            inspector.apply(json.loads(line))
        found.append(json.dumps(inspector.checkpoint()).encode())
    return found


def _rule_files() -> list[bytes]:
    folder = Path(__file__).resolve().parents[2] / "examples" / "retrofit"
    lines = (
        b'127.0.0.1 - - [22/Nov/2026:03:00:00 +0000] "GET /items/7 HTTP/1.1" 200 12 "-" "curl/8" 0.012\n'
        b"2026-11-22 03:00:00,123 INFO job 17 started\n2026-11-22 03:00:01,5 INFO job 17 finished in 1.4 s\n"
    )
    return [path.read_bytes() + b"\n---\n" + lines for path in sorted(folder.glob("*.toml"))]


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "log": _log,
    "record": _record,
    "export": _export,
    "rules": _rules,
    "page": _page,
    "state": _state,
    "socket": lambda data: _socket()(data),
}
_CORPORA: Final[dict[str, Callable[[], list[bytes]]]] = {
    "log": _logs,
    "record": _logs,
    "export": _exports,
    "rules": _rule_files,
    "page": _pages,
    "state": _states,
    "socket": _logs,
}
