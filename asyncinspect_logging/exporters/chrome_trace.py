"""The Trace Event Format (JSON), which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Each task is an async slice. One that ran wholly within its parent, and beside none of its siblings, is drawn inside the
parent; any other has a row of its own, with an arrow from its parent at the moment when it began. Polls, where their
records are there, are slices on the row of their thread, with an arrow from each wake to the poll that followed.

Format: "Trace Event Format", Google, the Chromium project; what `bind_id` does is in its section on flow events.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Generator, Iterator
from itertools import zip_longest
from typing import IO, Any, Final

from ..snapshot import TaskView
from .source import Progress, Source, read_source
from .writing import Path, loose_json, to_file, to_path, to_string

__all__ = ["ChromeTraceExporter"]

#: Tasks that are held back, so that a parent finds its children, which end before it.
_WINDOW: Final = 10_000
#: Threads that have a row of their own.
_MAX_THREADS: Final = 1000
_PID: Final = 1
#: What is said of a task with its slice, where there is something to be said, besides fields and error.
_ARGS: Final = (
    *("id", "parent_id", "trace_id", "state", "outcome", "duration", "polls", "wakes", "self_wakes", "busy", "idle"),
    *("scheduled", "max_poll", "task", "at", "waiting_on", "await_chain", "awaiting", "links", "parent_closed"),
)
#: Entries of the timeline that are the beginning or the end of a slice; the others are points on it.
_DRAWN: Final = frozenset({"spawn", "enter", "suspend", "wake", "resume", "record", "exit"})
#: Unix time up to which µs are exact in JavaScript, and ns in a trace processor (the year 2255).
_LATEST: Final = 9e9


class ChromeTraceExporter:
    """Tasks as a trace to be looked at in Perfetto or in Chrome's trace viewer. Times in it are whole µs."""

    @staticmethod
    def export_to_file(source: Source, path: Path, *, progress: Progress | None = None) -> None:
        """Write `source` to a file at `path`, which is complete or not there. Raises `ExportError`."""
        to_path(_parts(source, progress), path)

    @staticmethod
    def export_to_string(source: Source) -> str:
        return to_string(_parts(source, None))

    @staticmethod
    def write(source: Source, file: IO[Any], *, progress: Progress | None = None) -> None:
        """Write `source` to an open file, binary or text."""
        to_file(_parts(source, progress), file)


def _parts(source: Source, progress: Progress | None) -> Iterator[bytes]:
    trace = _Trace()
    yield b'{"displayTimeUnit":"ms","traceEvents":[\n'
    yield loose_json({"ph": "M", "pid": _PID, "tid": 0, "name": "process_name", "args": {"name": "asyncinspect"}})
    reading = read_source(source, progress)
    for task in reading.tasks:
        for event in trace.add(task):
            yield b",\n"
            yield _line(event)
    for event in trace.finish():
        yield b",\n"
        yield _line(event)
    rest = reading.rest()
    counted = sum(view.spawned for view in rest.names.values())
    about = {"taken_at": rest.taken_at, "counted": counted, "dropped": dict(rest.dropped)}
    yield b'\n],\n"otherData":' + loose_json(about) + b"}\n"


def _line(event: dict[str, Any]) -> bytes:
    # Perfetto (v52) takes the end of a text that ends in an escaped backslash for a part of it.
    return loose_json(event).replace(rb"\\", rb"\u005c")


def _us(seconds: float) -> int:
    """Whole µs: a double of Unix time in µs has no exact fractions, and two that should be equal would differ."""
    return math.floor(min(max(seconds, 0.0), _LATEST) * 1e6) if math.isfinite(seconds) else 0


class _Node:
    """A task held back, with the children that lie within it, and the arrows that begin in it."""

    __slots__ = ("arrow", "begin", "children", "end", "marks", "task")

    def __init__(self, task: TaskView) -> None:
        self.task = task
        self.begin, self.end = _times(task)
        self.children: list[_Node] = []
        #: Time, number and name of each arrow to a child in another row.
        self.marks: list[tuple[int, int, str]] = []
        #: The number of the arrow that ends here.
        self.arrow: int | None = None


def _times(task: TaskView) -> tuple[int, int]:
    """When the task began and ended (or was looked at while it ran)."""
    begin = _us(task.started_at)
    if task.duration is None:
        return begin, max(begin, _us(task.started_at + task.age))
    ended = next((event.at for event in reversed(task.events) if event.kind == "exit"), None)
    return begin, max(begin, _us(task.started_at + task.duration if ended is None else ended))


class _Trace:
    """Makes events of tasks as they come, in flat memory."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        # Nodes that are in no other, the oldest first, and those of them whose parent has not come, by its id. In a
        # plain dict the first one would have to be looked for past all that have gone.
        self._tops: OrderedDict[_Node, None] = OrderedDict()
        self._orphans: dict[str, dict[_Node, None]] = {}
        self._held = 0
        self._arrows = 0
        self._threads: dict[tuple[str, int], int] = {}

    def add(self, task: TaskView) -> Iterator[dict[str, Any]]:
        node = _Node(task)
        # Later ones are never put below earlier ones, so there is no cycle, whatever the ids say.
        for child in self._orphans.pop(task.id, ()):
            del self._tops[child]
            node.children.append(child)
        parent_id = task.parent_id
        if parent_id is not None:
            parent = self._nodes.get(parent_id)
            if parent is not None:
                self._arrow(parent, node)
            else:
                self._orphans.setdefault(parent_id, {})[node] = None
        self._nodes[task.id] = node
        self._tops[node] = None
        self._held += 1
        while self._held > _WINDOW:
            yield from self._let_go(next(iter(self._tops)))

    def finish(self) -> Iterator[dict[str, Any]]:
        while self._tops:
            yield from self._let_go(next(iter(self._tops)))

    def _arrow(self, parent: _Node, child: _Node) -> None:
        """An arrow to a child in another row, if the parent was there at the time."""
        if parent.begin <= child.begin <= parent.end:
            self._arrows += 1
            child.arrow = self._arrows
            parent.marks.append((child.begin, self._arrows, child.task.name))

    def _let_go(self, top: _Node) -> Iterator[dict[str, Any]]:
        """The events of a node and of those in it."""
        del self._tops[top]
        parent_id = top.task.parent_id or ""
        orphans = self._orphans.get(parent_id, {})
        orphans.pop(top, None)
        if not orphans:
            self._orphans.pop(parent_id, None)
        rows = [top]
        while rows:
            yield from self._row(rows.pop(), rows)

    def _row(self, first: _Node, rows: list[_Node]) -> Iterator[dict[str, Any]]:
        """One row of slices, each within or after the one before. Children that have no place in it go to `rows`."""
        row = first.task.id
        events: list[dict[str, Any]] = []
        nodes = []
        to_do: list[_Node | dict[str, Any]] = [first]
        while to_do:
            node = to_do.pop()
            if isinstance(node, dict):
                events.append(node)
                continue
            nodes.append(node)
            tid = yield from self._thread(node.task)
            events.append(_begin(node, row, tid))
            to_do.append(_at(node.end, "e", node.task.name, row, tid))
            inside = dict.fromkeys(_alone(node))
            for child in node.children:
                if child not in inside:
                    self._arrow(node, child)
                    rows.append(child)
            to_do.extend(reversed(inside))
            for mark in node.marks:
                events.extend(_mark(*mark, row, tid))
            events.extend(_notes(node, row, tid))
        # What comes at the same time stays in this order, which is the one it is nested in.
        events.sort(key=_ts)
        yield from events
        for node in nodes:
            yield from self._polls(node)
            self._held -= 1
            if self._nodes.get(node.task.id) is node:
                del self._nodes[node.task.id]

    def _thread(self, task: TaskView) -> Generator[dict[str, Any], None, int]:
        """A small number for the task's thread, 0 where that is not known; and what names it, if it is new."""
        if task.thread is None:
            return 0
        # Forked processes have the same thread ids; the first digits of their span ids differ.
        key = (task.id[:6], task.thread)
        known = self._threads.get(key, 0)
        if not known and len(self._threads) < _MAX_THREADS:
            known = self._threads[key] = len(self._threads) + 1
            name = {"name": f"thread {task.thread}"}
            yield {"ph": "M", "pid": _PID, "tid": known, "name": "thread_name", "args": name}
        return known

    def _polls(self, node: _Node) -> Iterator[dict[str, Any]]:
        """A slice for each poll, with an arrow from the wake that led to it."""
        task = node.task
        tid = self._threads.get((task.id[:6], task.thread or 0), 0)
        args = {"id": task.id}
        for begin, end, woken in _poll_times(node):
            poll: dict[str, Any] = {"ph": "X", "cat": "poll", "name": task.name, "pid": _PID, "tid": tid, "ts": begin}
            poll.update(dur=end - begin, args=args)
            if woken is not None:
                self._arrows += 1
                number = f"{self._arrows:#x}"
                poll.update(bind_id=number, flow_in=True)
                wake: dict[str, Any] = {"ph": "X", "cat": "wake", "name": f"wake {task.name}", "pid": _PID, "tid": tid}
                wake.update(ts=woken, dur=0, args=args, bind_id=number, flow_out=True)
                yield wake
            yield poll


def _poll_times(node: _Node) -> Iterator[tuple[int, int, int | None]]:
    """Begin and end of each poll that the timeline tells of, and when the wake was that it followed."""
    task = node.task
    resumed = suspended = 0
    for event in task.events:
        resumed += event.kind == "resume"
        suspended += event.kind == "suspend"
    if not resumed and not suspended and (task.polls != 1 or not task.busy or task.duration is None):
        return
    # Where the oldest entries are gone, what comes first need not be the end of the first poll.
    whole = resumed + 1 >= task.polls
    since = until = woken = None
    for event in task.events:
        kind, at = event.kind, min(max(_us(event.at), node.begin), node.end)
        if kind == "resume" or (kind == "enter" and whole):
            since = at
        elif kind == "wake":
            # One that came while it was being polled, such as its own, is no arrow.
            woken = at if since is None and until is not None and at > until and woken is None else woken
        elif kind in ("suspend", "exit"):
            if since is not None:
                yield since, max(since, at), woken if woken is not None and woken <= since else None
            since, until, woken = None, at, None
    if since is not None and task.duration is None:
        yield since, node.end, woken if woken is not None and woken <= since else None


def _alone(node: _Node) -> Iterator[_Node]:
    """The children that lie within a task and beside none of their siblings, in order."""
    children = sorted(node.children, key=_when)
    until = node.begin
    for child, after in zip_longest(children, children[1:]):
        if child.begin >= until and child.end <= node.end and (after is None or after.begin >= child.end):
            yield child
        until = max(until, child.end)


def _when(node: _Node) -> tuple[int, int]:
    return node.begin, -node.end


def _ts(event: dict[str, Any]) -> int:
    ts: int = event["ts"]
    return ts


def _at(ts: int, phase: str, name: str, row: str, tid: int) -> dict[str, Any]:
    return {"ph": phase, "cat": "span", "id": row, "name": name, "pid": _PID, "tid": tid, "ts": ts}


def _begin(node: _Node, row: str, tid: int) -> dict[str, Any]:
    event = _at(node.begin, "b", node.task.name, row, tid)
    if node.arrow is not None:
        event.update(bind_id=f"{node.arrow:#x}", flow_in=True)
    task = node.task
    args: dict[str, Any] = {key: value for key in _ARGS if (value := getattr(task, key)) not in (None, (), False)}
    args["fields"] = dict(task.fields)
    if task.error is not None:
        args["error"] = dict(task.error)
    event["args"] = args
    return event


def _mark(ts: int, arrow: int, name: str, row: str, tid: int) -> Iterator[dict[str, Any]]:
    """Where an arrow begins: a slice of no length."""
    yield {**_at(ts, "b", f"spawn {name}", row, tid), "bind_id": f"{arrow:#x}", "flow_out": True}
    yield _at(ts, "e", f"spawn {name}", row, tid)


def _notes(node: _Node, row: str, tid: int) -> Iterator[dict[str, Any]]:
    for event in node.task.events:
        if event.kind not in _DRAWN:
            ts = min(max(_us(event.at), node.begin), node.end)
            yield {**_at(ts, "n", event.kind, row, tid), "args": {"detail": event.detail}}
