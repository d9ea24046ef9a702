"""Tasks added up by their stacks: the names of the spans around each, and its own.

A stream has tasks in about the order of their ends, so that most come before the one they were begun in; but one that
outlives its parent, and in an edited log any, comes later. Parents are remembered either way, up to a limit, and what
was counted of one is corrected: the sums do not depend on the order. All times are whole ns, which add up exactly.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .catalogue import OTHER
from .snapshot import TaskView

__all__ = ["Covered", "Stack", "Stacks", "interval"]

#: Parents that are waited for, and tasks that are remembered for children that come later.
_MAX_WAITING: Final = 20_000
_MAX_KNOWN: Final = 20_000
#: Different stacks; those past that count as one, below what is around them.
_MAX_NODES: Final = 100_000
#: Stretches of time, not adjoining, in which children of a task went on; beyond that the oldest are added up.
_MAX_STRETCHES: Final = 64
#: Different coroutines among the children of a task.
_MAX_INNER: Final = 64
#: Seconds that are more than any time can be.
_LATEST: Final = 1e11

#: The coroutine and the thread that a task is in.
_Place = tuple[str | None, int | None]


class Stack(NamedTuple):
    """Names, outermost first, and sums over the tasks with these: how many, from begin to end, and of each the part
    that is its own (see `Stacks`). Times in ns.
    """

    names: tuple[str, ...]
    tasks: int
    total: int
    busy: int
    blocked: int
    time: int


def ns(seconds: float) -> int:
    """Whole ns, of a Unix time too, which has more digits than a float of ns; 0 of what is no time."""
    if not 0.0 <= seconds <= _LATEST:
        if not math.isfinite(seconds):
            return 0
        seconds = min(max(seconds, 0.0), _LATEST)
    whole = int(seconds)
    return whole * 10**9 + round((seconds - whole) * 1e9)


def interval(task: TaskView) -> tuple[int, int]:
    """Enter and exit (or the moment of the snapshot), in ns of Unix time."""
    at = task.started_at
    for event in task.events:
        if event.kind == "enter":
            at = event.at
            break
    entered = ns(at)
    if task.duration is None:
        return entered, max(entered, ns(task.started_at + task.age))
    return entered, entered + ns(task.duration)


class Covered:
    """How much time intervals cover together: exactly so if, in the order of their ends, no more than `_MAX_STRETCHES`
    gaps are filled later. Else what fills older ones counts as if these were spread evenly.
    """

    __slots__ = ("_ends", "_since", "_starts", "_summed", "_until")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        # From when to when what was added up reaches, and how much of that is covered.
        self._since = self._until = self._summed = 0

    def add(self, start: int, end: int) -> None:
        if end <= start:
            return
        if self._summed and start < self._until:
            filled = min(end, self._until) - max(start, self._since)
            span = self._until - self._since
            if filled > 0:
                self._summed += (span - self._summed) * filled // span
            if start < self._since:
                self._summed += min(end, self._since) - start
                self._since = start
            start = self._until
            if end <= start:
                return
        starts, ends = self._starts, self._ends
        first = last = bisect_left(ends, start)
        while last < len(starts) and starts[last] <= end:
            last += 1
        if first < last:
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        starts[first:last] = [start]
        ends[first:last] = [end]
        if len(starts) > _MAX_STRETCHES:
            start, end = starts.pop(0), ends.pop(0)
            if not self._summed:
                self._since = start
            self._until = end
            self._summed += end - start

    def within(self, start: int, end: int) -> int:
        """The time between `start` and `end` that is covered."""
        total = min(self._summed, max(0, end - start)) if self._summed else 0
        for first, last in zip(self._starts, self._ends, strict=True):
            total += max(0, min(last, end) - max(first, start))
        return total


class _Node:
    """A name in a stack. `own`: how many tasks, and their own times. `total`: of those from begin to end."""

    __slots__ = ("below", "closed", "height", "into", "own", "total", "up")

    def __init__(self) -> None:
        self.own = [0, 0, 0, 0]
        self.total = 0
        self.below: dict[str, _Node] = {}
        self.up: _Node | None = None
        #: Levels below this one.
        self.height = 0
        #: Whether all that is further in counts here.
        self.closed = False
        #: The node that this one became a part of.
        self.into: _Node | None = None


def _now(node: _Node) -> _Node:
    """The node that a node is, or is a part of, by now."""
    while node.into is not None:
        if node.into.into is not None:
            node.into = node.into.into
        node = node.into
    return node


def _sum(into: _Node, own: list[int]) -> None:
    mine = into.own
    mine[0] += own[0]
    mine[1] += own[1]
    mine[2] += own[2]
    mine[3] += own[3]


class _Inner:
    """What children that may be in their parent's coroutine add up to."""

    __slots__ = ("busy", "covered", "idle")

    def __init__(self) -> None:
        self.busy = self.idle = 0
        self.covered = Covered()


class _Known:
    """A task that is there, or that is waited for because one begun in it is there."""

    __slots__ = ("begin", "busy", "covered", "end", "idle", "inner", "name", "node", "over", "place")

    def __init__(self) -> None:
        self.node = _Node()
        self.covered: Covered | None = None
        self.inner: dict[_Place, _Inner] | None = None

    def come(self, task: TaskView, name: str) -> None:
        self.name = name
        self.over = task.duration is not None
        self.begin, self.end = interval(task)
        self.busy, self.idle = ns(task.busy), ns(task.idle)
        self.place: _Place = (task.task, task.thread)
        if self.inner is not None:
            mine = self.inner.get(self.place)
            self.inner = None if mine is None else {self.place: mine}

    def cover(self, child: _Known, block: bool) -> None:
        """`block`: whether the child may be in a coroutine of its parent."""
        if self.covered is None:
            self.covered = Covered()
        self.covered.add(child.begin, child.end)
        if not block:
            return
        if self.inner is None:
            self.inner = {}
        inner = self.inner.get(child.place)
        if inner is None:
            if len(self.inner) >= _MAX_INNER:
                return
            inner = self.inner[child.place] = _Inner()
        inner.busy += child.busy
        inner.idle += child.idle
        inner.covered.add(child.begin, child.end)

    def own(self) -> list[int]:
        if self.covered is None:
            return [1, self.busy, self.idle, self.end - self.begin]
        covered = self.covered.within(self.begin, self.end)
        busy, blocked = self.busy, self.idle - covered
        inner = None if self.inner is None else self.inner.get(self.place)
        if inner is not None:
            busy -= inner.busy
            blocked = self.idle - inner.idle - max(0, covered - inner.covered.within(self.begin, self.end))
        return [1, max(0, busy), max(0, blocked), max(0, self.end - self.begin - covered)]


class Stacks:
    """Adds tasks up by their stacks, of at most `depth` names, in flat memory. What is a task's own, never below zero:

    busy: time being polled, less that of the children in the same coroutine, whose polls are the task's own.
    blocked: time between polls, less that of the children in the same coroutine, and less the time during which any
        other child was there, which is the child's to explain.
    time: from begin to end, less the time during which any child was there.

    `told` is called with a name and by how much the own `time` of finished tasks of that name has changed.
    """

    def __init__(self, depth: int, told: Callable[[str, int], None] | None = None) -> None:
        self._depth = depth
        self._told = told
        self._roots, self._strays = _Node(), _Node()
        # A plain dict would look for its first entry past all that have gone.
        self._waiting: OrderedDict[str, _Known] = OrderedDict()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._nodes = 0
        #: Whether stacks were cut, or counted as one.
        self.folded = False

    def add(self, task: TaskView, name: str) -> None:
        """Count a task as `name`."""
        known = self._waiting.pop(task.id, None) or _Known()
        known.come(task, name)
        own = known.own()
        node = known.node
        _sum(node, own)
        node.total = known.end - known.begin
        if self._told is not None and known.over:
            self._told(name, own[3])
        if task.parent_id is None:
            self._attach(self._roots, name, node)
        elif task.parent_id == task.id:
            self._attach(self._strays, name, node)
        else:
            # A task of asyncio's own begins some time after it was made; a block inside a coroutine at once.
            self._below(task.parent_id, known, known.begin == ns(task.started_at))
        known.node = _now(node)
        self._known[task.id] = known
        self._known.move_to_end(task.id)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def stacks(self, stray: str | None = None) -> Iterator[Stack]:
        """Every stack, each before those that go on from it. Those of which the beginning is not known begin with the
        name `stray`, or, without one, with the first name that is known. No task can be added after that.
        """
        while self._waiting:
            self._move(self._waiting.popitem(last=False)[1].node, self._strays)
        self._known.clear()
        ahead: list[tuple[tuple[str, ...], _Node]] = [((), self._roots)]
        if stray is None:
            self._move(self._strays, self._roots)
        else:
            ahead.append(((stray,), self._strays))
        while ahead:
            above, node = ahead.pop()
            for name, each in node.below.items():
                yield Stack((*above, name), each.own[0], each.total, *each.own[1:])
            ahead += [((*above, name), each) for name, each in reversed(node.below.items()) if each.below]

    def _below(self, parent_id: str, child: _Known, block: bool) -> None:
        parent = self._known.get(parent_id)
        if parent is not None:
            self._known.move_to_end(parent_id)
            before = parent.own()
            parent.cover(child, block)
            change = [now - was for now, was in zip(parent.own(), before, strict=True)]
            _sum(_now(parent.node), change)
            if self._told is not None and parent.over:
                self._told(parent.name, change[3])
        else:
            parent = self._waiting.get(parent_id)
            if parent is None:
                parent = self._waiting[parent_id] = _Known()
                if len(self._waiting) > _MAX_WAITING:
                    self._move(self._waiting.popitem(last=False)[1].node, self._strays)
            else:
                self._waiting.move_to_end(parent_id)
            parent.cover(child, block)
        self._attach(parent.node, child.name, child.node)

    def _move(self, node: _Node, into: _Node) -> None:
        """Put what is below a node below another one."""
        below, node.below = node.below, {}
        self._nodes -= len(below)  # they are counted anew
        for name, each in below.items():
            self._attach(into, name, each)

    def _attach(self, parent: _Node, name: str, node: _Node) -> None:
        """Put a node, and all that is below it, below another one."""
        parent, depth = _now(parent), 0
        top = parent
        while top.up is not None:
            top, depth = _now(top.up), depth + 1
        if top is node:
            # Parents that go round in circles, as an edited log may have them.
            parent, depth = self._strays, 0
        elif top is not self._roots and top is not self._strays:
            depth += 1
        self._nodes += 1
        room = self._depth - depth
        if not parent.closed and (room < 1 or (room == 1 and node.height)):
            # No further in: what is at the last level counts as one.
            if room < 1 and parent.up is not None:
                self._fold(_now(parent.up))
                parent = _now(parent)
            else:
                self._fold(parent)
        elif node.height > room - 1 >= 1:
            self._cut(node, room - 1)
        if parent.closed:
            self._swallow(parent, node)
            return
        rest = parent.below.get(OTHER)
        if rest is not None and rest.closed:
            name = name if name in parent.below else OTHER
        if self._nodes > _MAX_NODES and name not in parent.below:
            self.folded = True
            if node.below:
                self._fold(node)
            else:
                name = OTHER
                node.closed = True
        self._merge(parent, name, node)
        height = _now(node).height + 1
        while parent.height < height:
            parent.height = height
            if parent.up is None:
                break
            parent, height = _now(parent.up), height + 1

    def _merge(self, parent: _Node, name: str, node: _Node) -> None:
        ahead = [(parent, name, node)]
        while ahead:
            parent, name, more = ahead.pop()
            there = parent.below.get(name)
            if there is None:
                parent.below[name] = more
                more.up = parent
                continue
            if there.closed or more.closed:
                for each in there.below.values():
                    self._swallow(there, each)
                there.below, there.height, there.closed = {}, 0, True
                there.total += more.total
                self._swallow(there, more)
                continue
            _sum(there, more.own)
            there.total += more.total
            there.height = max(there.height, more.height)
            more.into = there
            self._nodes -= 1
            if len(there.below) < len(more.below):
                there.below, more.below = more.below, there.below
            ahead += [(there, each, below) for each, below in more.below.items()]
            more.below = {}

    def _cut(self, node: _Node, room: int) -> None:
        """Leave no more than so many levels below a node: what is further in counts as one at the last of them."""
        ahead = [(node, room)]
        while ahead:
            node, room = ahead.pop()
            if node.height <= room:
                continue
            if room == 1:
                self._fold(node)
                continue
            node.height = room
            ahead += [(each, room - 1) for each in node.below.values()]

    def _fold(self, node: _Node) -> None:
        """All that is below a node becomes one."""
        self.folded = True
        rest = _Node()
        rest.closed, rest.up = True, node
        self._nodes += 1
        for each in node.below.values():
            rest.total += each.total
            self._swallow(rest, each)
        node.below, node.height = {OTHER: rest}, 1

    def _swallow(self, rest: _Node, node: _Node) -> None:
        ahead = [node]
        while ahead:
            node = ahead.pop()
            _sum(rest, node.own)
            ahead += node.below.values()
            node.into, node.below = rest, {}
            self._nodes -= 1
