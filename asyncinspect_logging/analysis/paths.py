"""Chains of span names, each begun in the one before, and the time spent in them.

They make a tree that grows from its leaves: a task is known when it ends, and those begun in it mostly ended before.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..catalogue import OTHER
from ..snapshot import TaskView
from .timeline import Times

__all__ = ["HotPath", "Paths"]

#: Tasks whose end is still to come, of which something is known from what was begun in them.
_MAX_OPEN: Final = 100_000
#: Chains of names, and names in one of them. What is further in counts as one.
_MAX_PATHS: Final = 100_000
_MAX_DEPTH: Final = 64
#: Stretches of time, not adjoining, in which something below a task went on; the oldest are added up beyond that.
_MAX_STRETCHES: Final = 64
#: A chain that begins in a span that was over before, or that nobody told of.
_UNKNOWN: Final = "…"


class HotPath(NamedTuple):
    """A chain of names, from a root down to a span, each begun in the one before. Live tasks are in it with their time
    up to now. `total` is the sum of the durations, `self_time` the part in which nothing begun in them was open.
    """

    names: tuple[str, ...]
    tasks: int
    total: float
    self_time: float


class _Node:
    """A chain of names: its end, and what goes on from there, by name. `height`: of the tree below it."""

    __slots__ = ("below", "count", "height", "self_time", "total")

    def __init__(self, count: int, total: float, self_time: float) -> None:
        self.count = count
        self.total = total
        self.self_time = self_time
        self.below: dict[str, _Node] = {}
        self.height = 0


class _Open:
    """What is known of a task before it ends: the chains below it, and when something below it went on."""

    __slots__ = ("below", "ends", "starts", "summed", "until")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.starts: list[float] = []
        self.ends: list[float] = []
        # Stretches that were added up, and the end of the last of them.
        self.summed = 0.0
        self.until = -math.inf

    def cover(self, start: float, end: float) -> None:
        """Something below it went on from `start` to `end`. The stretches are kept apart and in order."""
        start = max(start, self.until)
        if end <= start:
            return
        starts, ends = self.starts, self.ends
        first = bisect_left(ends, start)
        last = first
        while last < len(starts) and starts[last] <= end:
            last += 1
        if first < last:
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        starts[first:last] = [start]
        ends[first:last] = [end]
        if len(starts) > _MAX_STRETCHES:
            self.until = ends.pop(0)
            self.summed += self.until - starts.pop(0)

    def covered(self, start: float, end: float) -> float:
        """Seconds between `start` and `end` in which something below it went on."""
        inside = (min(last, end) - max(first, start) for first, last in zip(self.starts, self.ends, strict=True))
        return self.summed + sum(each for each in inside if each > 0)


class Paths:
    """Chains of names over tasks of which each comes after those begun in it, but for those that outlive it."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._roots: dict[str, _Node] = {}
        self._strays: dict[str, _Node] = {}
        self._nodes = 0
        #: Whether something was left out.
        self.folded = False

    def add(self, task: TaskView, name: str, times: Times, lasted: float) -> float:
        """Place a task of `lasted` seconds; returns its self time."""
        opened = self._open.pop(task.id, None)
        below: dict[str, _Node] = {}
        alone = lasted
        if opened is not None:
            below = opened.below
            alone = max(0.0, lasted - opened.covered(times.began, times.ended))
        node = _Node(1, lasted, alone)
        node.below = below
        node.height = 1 + max((each.height for each in below.values()), default=-1) if below else 0
        self._nodes += 1
        if node.height >= _MAX_DEPTH or self._nodes > _MAX_PATHS:
            self._fold(node)
        parent = task.parent_id
        if parent is None:
            self._merge(self._roots, name, node)
            return alone
        opened = self._open.get(parent)
        if opened is None:
            opened = self._open[parent] = _Open()
            if len(self._open) > _MAX_OPEN:
                self._stray(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(parent)
        opened.cover(times.began, times.ended)
        self._merge(opened.below, name, node)
        return alone

    def _merge(self, into: dict[str, _Node], name: str, node: _Node) -> None:
        ahead = [(into, name, node)]
        while ahead:
            among, name, more = ahead.pop()
            there = among.get(name)
            if there is None:
                among[name] = more
                continue
            there.count += more.count
            there.total += more.total
            there.self_time += more.self_time
            there.height = max(there.height, more.height)
            self._nodes -= 1
            if len(there.below) < len(more.below):
                there.below, more.below = more.below, there.below
            ahead += [(there.below, each, below) for each, below in more.below.items()]

    def _fold(self, node: _Node) -> None:
        """All that is below a node becomes one."""
        if not node.below:
            return
        self.folded = True
        every = list(_walk(node.below))
        rest = _Node(
            sum(each.count for each in every),
            sum(each.total for each in node.below.values()),
            sum(each.self_time for each in every),
        )
        self._nodes -= len(every) - 1
        node.below, node.height = {OTHER: rest}, 1

    def _stray(self, opened: _Open) -> None:
        for name, node in opened.below.items():
            self._merge(self._strays, name, node)

    def all(self) -> list[HotPath]:
        for opened in self._open.values():
            self._stray(opened)
        self._open.clear()
        ahead: list[tuple[tuple[str, ...], dict[str, _Node]]] = [((), self._roots), ((_UNKNOWN,), self._strays)]
        paths = []
        while ahead:
            above, nodes = ahead.pop()
            for name, node in nodes.items():
                names = (*above, name)
                paths.append(HotPath(names, node.count, node.total, node.self_time))
                if node.below:
                    ahead.append((names, node.below))
        return paths


def _walk(nodes: dict[str, _Node]) -> Iterator[_Node]:
    ahead = list(nodes.values())
    while ahead:
        node = ahead.pop()
        yield node
        ahead += node.below.values()
