"""Where time goes, by the names of spans and of those around them: for a flame graph.

A stack is the names of a task's ancestors and its own. Its *self* time is the task's own, less what falls to its
children (see `MEASURES`), and never below zero. Times of all tasks with the same stack are added up.

Formats: speedscope's (speedscope.app, file-format-schema.json) and collapsed stacks (Brendan Gregg's flamegraph.pl).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any, Final, Literal, TypeAlias

from ..errors import ConfigError
from ..snapshot import TaskView
from .source import Progress, Source, read_source
from .writing import Path, loose_json, to_file, to_path, to_string

__all__ = ["MEASURES", "FlameExporter", "Form", "Measure"]

Measure: TypeAlias = Literal["busy", "blocked", "time"]
Form: TypeAlias = Literal["speedscope", "collapsed"]

#: What can be measured, in ns:
#: busy: time being polled, less that of the children in the same coroutine, whose polls are the task's own.
#: blocked: time between polls, less that of the children in the same coroutine, and less the time during which any
#: other child was there, which is the child's to explain.
#: time: from enter to exit, less the time during which any child was there.
MEASURES: Final = ("busy", "blocked", "time")

_FORMS: Final = ("speedscope", "collapsed")
#: Names in a stack; what is deeper counts for the last of them.
_MAX_STACK: Final = 200
#: Different stacks; those past that count under `_other_`.
_MAX_FRAMES: Final = 100_000
#: Parents that are waited for, and finished tasks that are remembered for children that end later.
_MAX_WAITING: Final = 10_000
_MAX_KNOWN: Final = 20_000
#: Gaps between a task's children that may be filled later.
_MAX_GAPS: Final = 256
#: Different coroutines among a task's children.
_MAX_INNER: Final = 64
#: Seconds that are more than any time can be.
_LATEST: Final = 1e11
_OTHER: Final = "_other_"


class FlameExporter:
    """A flame graph of a `measure`, in a `form`.

    "speedscope" has all measures and shows `measure` first; "collapsed" has one line for each stack, with its self time
    in ns. Raises `ConfigError` for any other measure or form.
    """

    @staticmethod
    def export_to_file(
        source: Source,
        path: Path,
        *,
        measure: Measure = "busy",
        form: Form = "speedscope",
        progress: Progress | None = None,
    ) -> None:
        """Write `source` to a file at `path`, which is complete or not there. Raises `ExportError`."""
        to_path(_parts(source, measure, form, progress), path)

    @staticmethod
    def export_to_string(source: Source, *, measure: Measure = "busy", form: Form = "speedscope") -> str:
        return to_string(_parts(source, measure, form, None))

    @staticmethod
    def write(
        source: Source,
        file: IO[Any],
        *,
        measure: Measure = "busy",
        form: Form = "speedscope",
        progress: Progress | None = None,
    ) -> None:
        """Write `source` to an open file, binary or text."""
        to_file(_parts(source, measure, form, progress), file)


def _parts(source: Source, measure: str, form: str, progress: Progress | None) -> Iterator[bytes]:
    if measure not in MEASURES:
        raise ConfigError(f"measure={measure!r} is not measured; write one of {', '.join(map(repr, MEASURES))}")
    if form not in _FORMS:
        raise ConfigError(f"form={form!r} is no format of flame graphs; write {' or '.join(map(repr, _FORMS))}")
    index = MEASURES.index(measure)
    return _speedscope(source, index, progress) if form == "speedscope" else _collapsed(source, index, progress)


def _speedscope(source: Source, index: int, progress: Progress | None) -> Iterator[bytes]:
    stacks = _stacks(source, progress)
    frames: dict[str, int] = {}
    found = [([frames.setdefault(name, len(frames)) for name in stack], own) for stack, own in stacks]
    profiles = []
    for which, name in enumerate(MEASURES):
        weighed = [(stack, own[which]) for stack, own in found if own[which]]
        profile = {"type": "sampled", "name": name, "unit": "nanoseconds", "startValue": 0}
        profile["endValue"] = sum(weight for _, weight in weighed)
        profile["samples"] = [stack for stack, _ in weighed]
        profile["weights"] = [weight for _, weight in weighed]
        profiles.append(profile)
    yield loose_json(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": "asyncinspect",
            "exporter": "asyncinspect_logging",
            "activeProfileIndex": index,
            "shared": {"frames": [{"name": name} for name in frames]},
            "profiles": profiles,
        }
    )
    yield b"\n"


def _collapsed(source: Source, index: int, progress: Progress | None) -> Iterator[bytes]:
    for stack, own in _stacks(source, progress):
        if own[index]:
            names = ";".join(" ".join(name.replace(";", ":").split()) or "-" for name in stack)
            yield f"{names} {own[index]}\n".encode("utf-8", "backslashreplace")


class _Frame:
    """A name in a stack: the self times of all tasks with that stack, the frames in it, and how deep those go."""

    __slots__ = ("frames", "height", "own")

    def __init__(self) -> None:
        self.own = [0] * len(MEASURES)
        self.frames: dict[str, _Frame] = {}
        self.height = 0


class _Covered:
    """How much time intervals cover together: exactly so if they are no more than `_MAX_GAPS` gaps out of order."""

    __slots__ = ("_before", "_parts", "total")

    def __init__(self) -> None:
        #: In ns.
        self.total = 0
        self._parts: list[tuple[int, int]] = []
        self._before = 0

    def add(self, begin: int, end: int) -> None:
        parts = self._parts
        begin = max(begin, self._before)
        if end <= begin:
            return
        first = last = bisect_left(parts, begin, key=_end)
        while last < len(parts) and parts[last][0] <= end:
            begin, end = min(begin, parts[last][0]), max(end, parts[last][1])
            self.total -= parts[last][1] - parts[last][0]
            last += 1
        parts[first:last] = [(begin, end)]
        self.total += end - begin
        if len(parts) > _MAX_GAPS:
            self._before = parts.pop(0)[1]


class _Inner:
    """What children that may be in their parent's coroutine add up to. Times in ns."""

    __slots__ = ("busy", "covered", "idle")

    def __init__(self) -> None:
        self.busy = self.idle = 0
        self.covered = _Covered()


class _Below:
    """The children of a task that is yet to come."""

    __slots__ = ("covered", "frame", "inner")

    def __init__(self) -> None:
        self.frame = _Frame()
        self.covered = _Covered()
        self.inner: dict[tuple[str | None, int | None], _Inner] = {}


class _Stacks:
    """Adds tasks up by their stacks, in flat memory; a child is to come before its parent."""

    def __init__(self) -> None:
        self.root = _Frame()
        # A plain dict would look for its first entry past all that have gone.
        self._waiting: OrderedDict[str, _Below] = OrderedDict()
        # Name and parent of the tasks that came last.
        self._known: OrderedDict[str, tuple[str, str | None]] = OrderedDict()
        self._frames = 0

    def add(self, task: TaskView) -> None:
        below = self._waiting.pop(task.id, None) or _NOTHING
        begin, end = _interval(task)
        busy, idle = _ns(task.busy), _ns(task.idle)
        inner = below.inner.get((task.task, task.thread), _NONE_INNER)
        own = [
            max(0, busy - inner.busy),
            max(0, idle - inner.idle - max(0, below.covered.total - inner.covered.total)),
            max(0, end - begin - below.covered.total),
        ]
        parent = self.root
        if task.parent_id is not None and task.parent_id != task.id:
            waiting = self._waiting.get(task.parent_id)
            if waiting is None:
                waiting = self._wait_for(task.parent_id)
            waiting.covered.add(begin, end)
            parent = waiting.frame
            # A task of asyncio's own begins some time after it was made; a block inside a coroutine at once.
            if begin == _ns(task.started_at):
                key = (task.task, task.thread)
                if key in waiting.inner or len(waiting.inner) < _MAX_INNER:
                    beside = waiting.inner.setdefault(key, _Inner())
                    beside.busy += busy
                    beside.idle += idle
                    beside.covered.add(begin, end)
        self._put(parent, task.name, own, below.frame)
        self._known[task.id] = (task.name, task.parent_id)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def finish(self) -> None:
        """Put what still waits for a parent below as much of its ancestry as is known."""
        while self._waiting:
            self._settle(next(iter(self._waiting)))

    def _wait_for(self, parent_id: str) -> _Below:
        if len(self._waiting) >= _MAX_WAITING:
            self._settle(next(iter(self._waiting)))
        waiting = self._waiting[parent_id] = _Below()
        return waiting

    def _settle(self, parent_id: str) -> None:
        below = self._waiting.pop(parent_id)
        names: list[str] = []
        at: str | None = parent_id
        while at is not None and at in self._known and len(names) < _MAX_STACK:
            name, at = self._known[at]
            names.append(name)
        frame = self.root
        for name in reversed(names[: _MAX_STACK - below.frame.height]):
            frame = self._frame(frame, name)
        self._merge(frame, below.frame)

    def _put(self, parent: _Frame, name: str, own: list[int], children: _Frame) -> None:
        frame = self._frame(parent, name)
        for which, time in enumerate(own):
            frame.own[which] += time
        self._merge(frame, children)
        if frame.height >= _MAX_STACK:
            self._fold(frame)
        parent.height = max(parent.height, frame.height + 1)

    def _frame(self, parent: _Frame, name: str) -> _Frame:
        found = parent.frames.get(name)
        if found is None and self._frames >= _MAX_FRAMES:
            name = _OTHER
            found = parent.frames.get(name)
        if found is None:
            found = parent.frames[name] = _Frame()
            self._frames += 1
        return found

    def _merge(self, into: _Frame, other: _Frame) -> None:
        """Add `other`, which is not to be used any more, to a frame."""
        pairs = [(into, other)]
        while pairs:
            into, other = pairs.pop()
            into.height = max(into.height, other.height)
            for name, frame in other.frames.items():
                there = into.frames.get(name)
                if there is None:
                    into.frames[name] = frame
                    continue
                for which, time in enumerate(frame.own):
                    there.own[which] += time
                self._frames -= 1
                pairs.append((there, frame))

    def _fold(self, frame: _Frame) -> None:
        """Count all that is in a frame for the frame itself."""
        frames = list(frame.frames.values())
        frame.frames, frame.height = {}, 0
        while frames:
            inner = frames.pop()
            for which, time in enumerate(inner.own):
                frame.own[which] += time
            frames.extend(inner.frames.values())
            self._frames -= 1


_NOTHING: Final = _Below()
_NONE_INNER: Final = _Inner()


def _stacks(source: Source, progress: Progress | None) -> Iterator[tuple[list[str], list[int]]]:
    """Each stack, outermost name first, with its self times in ns, if it has any."""
    stacks, live = _Stacks(), []
    for task in read_source(source, progress).tasks:
        if task.duration is None:
            live.append(task)
        else:
            stacks.add(task)
    # What is still live comes after all that has ended in it, and the youngest first.
    live.reverse()
    live.sort(key=_started, reverse=True)
    for task in live:
        stacks.add(task)
    stacks.finish()
    to_do: list[tuple[list[str], _Frame]] = [([], stacks.root)]
    while to_do:
        names, frame = to_do.pop()
        if any(frame.own):
            yield names, frame.own
        to_do.extend(([*names, name], inner) for name, inner in reversed(frame.frames.items()))


def _ns(seconds: float) -> int:
    return round(min(max(seconds, 0.0), _LATEST) * 1e9) if math.isfinite(seconds) else 0


def _interval(task: TaskView) -> tuple[int, int]:
    """Enter and exit (or the moment of the snapshot)."""
    entered = next((event.at for event in task.events if event.kind == "enter"), task.started_at)
    if task.duration is None:
        return _ns(entered), _ns(task.started_at + task.age)
    return _ns(entered), _ns(entered) + _ns(task.duration)


def _started(task: TaskView) -> int:
    return _ns(task.started_at)


def _end(part: tuple[int, int]) -> int:
    return part[1]
