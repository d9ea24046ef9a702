"""What tasks have to do with each other, gathered one task after the other: by name from the first one on, and by task
as long as there are few.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

from ..catalogue import OTHER
from ..snapshot import TaskView
from .critical import Member, Stretch, critical_path
from .timeline import HELD, Met, Resource, Uses, tasks_awaited, times_of, uses_of

__all__ = ["STEPS", "Relations"]

#: Entries of timelines that are there at level TRACE.
STEPS: Final = frozenset({"suspend", "wake", "resume", "wait", "acquire", "release"})

#: Tasks kept for the critical path, the latest to end.
_MAX_KEPT: Final = 100_000
#: Tasks whose names are remembered after their end, and tasks not seen yet of which something is known.
_MAX_KNOWN: Final = 100_000
#: Names, resources and edges told apart while reading.
_MAX_NAMES: Final = 1000
_MAX_RESOURCES: Final = 1000
_MAX_EDGES: Final = 50_000
#: A task that was awaited ends before the one that awaits it goes on; how exact Unix times are as floats.
_BLUR: Final = 1e-6

#: (source, target, kind), by ids of nodes.
Key: TypeAlias = tuple[str, str, str]
#: id, kind, name, tasks, seconds, state.
_Node: TypeAlias = tuple[str, str, str, int, float, str]


class Awaited(NamedTuple):
    """A task waited for another one of the name `name`, from `since` to `until` (Unix time)."""

    name: str
    since: float
    until: float


class _Kept(NamedTuple):
    """A task, with what is needed to relate it to others."""

    member: Member
    awaiting: tuple[str, ...]
    waiting: float
    awaited: tuple[Awaited, ...]
    uses: Uses


class _End(NamedTuple):
    """One end of an edge, and what edge that is. `is_target`: which end. `claimed`: it is said of the task at the other
    end by somebody else, and counts where that one does not say it.
    """

    node: str
    kind: str
    is_target: bool
    claimed: bool = False


#: By kind of what is waited for, what those did who are listed with the wait: an edge, and whether to the resource.
_SERVING: Final = {**dict.fromkeys(HELD, ("held", True)), "queue get": ("sent", True), "queue put": ("sent", False)}


class _Resource:
    __slots__ = ("held", "label", "tasks")

    def __init__(self, label: str) -> None:
        self.label = label
        self.tasks = 0
        self.held = 0.0


class Relations:
    """`nodes` and `edges` are there once it is settled, in an order that depends on what they say alone.

    keep: tasks kept (None: 100,000), for edges from task to task, and for the critical path. anonymous: whether
        resources without a name are one of each kind, so that what was found can be compared with another run.
    """

    def __init__(self, *, keep: int | None = None, anonymous: bool = False) -> None:
        self.tasks = 0
        self._anonymous = anonymous
        self.nodes: list[_Node] = []
        self.edges: dict[Key, tuple[int, float]] = {}
        self._kept: deque[_Kept] = deque(maxlen=_MAX_KEPT if keep is None else keep)
        self._counts: dict[str, tuple[int, float]] = {}
        self._resources: dict[str, _Resource] = {}
        self._claims: dict[Key, None] = {}
        self._left_off = 0
        self._met = Met()
        # By span id: the node of its name; and what is to be told of a task when its name is known.
        self._known: OrderedDict[str, str] = OrderedDict()
        self._unknown: OrderedDict[str, dict[_End, tuple[int, float]]] = OrderedDict()

    def take(self, task: TaskView) -> None:
        """Each task once."""
        self.tasks += 1
        times = times_of(task)
        name = task.name if task.name in self._counts or len(self._counts) < _MAX_NAMES else OTHER
        count, seconds = self._counts.get(name, (0, 0.0))
        self._counts[name] = count + 1, seconds + times.ended - times.began
        waiting = 0.0 if task.waiting_since is None else max(0.0, times.ended - task.waiting_since)
        kept = _Kept(
            Member(task.id, task.parent_id, task.name, task.state.value, times),
            task.awaiting,
            waiting,
            tuple(Awaited(*each) for each in tasks_awaited(task, self._met)),
            uses_of(task, times, self._met),
        )
        self._kept.append(kept)
        node = f"name:{name}"
        self._know(task.id, node)
        self._relate(kept, node, self._link)
        for each in kept.awaited:
            self._edge(node, f"name:{each.name}", "awaited", each.until - each.since)
        uses = kept.uses
        used = [*(use.resource.whole for use in uses.waits), *(use.resource.whole for use in uses.holds)]
        for resource in dict.fromkeys([*used, *(each.whole for each in uses.acquired)]):
            self._resource(resource).tasks += 1
        for hold in uses.holds:
            self._resource(hold.resource.whole).held += hold.seconds

    # -- by name, as they come ---------------------------------------------------------------------------------------

    def _know(self, id: str, node: str) -> None:
        self._known[id] = node
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        for end, (times, seconds) in self._unknown.pop(id, {}).items():
            self._join(node, end, times, seconds)

    def _link(self, id: str, end: _End, seconds: float) -> None:
        """Join the node of a span to an `end`, now or when the span is known."""
        node = self._known.get(id)
        if node is not None:
            self._join(node, end, 1, seconds)
            return
        ends = self._unknown.setdefault(id, {})
        self._unknown.move_to_end(id)
        times, before = ends.get(end, (0, 0.0))
        ends[end] = times + 1, before + seconds
        if len(self._unknown) > _MAX_KNOWN:
            self._left_off += len(self._unknown.popitem(last=False)[1])

    def _join(self, node: str, end: _End, times: int, seconds: float) -> None:
        source, target = (node, end.node) if end.is_target else (end.node, node)
        if not end.claimed:
            self._edge(source, target, end.kind, seconds, times)
        elif len(self._claims) < _MAX_EDGES:
            self._claims[source, target, end.kind] = None

    def _resource(self, resource: Resource) -> _Resource:
        return self._resources[self._resource_node(resource)]

    def _resource_node(self, resource: Resource) -> str:
        """Its node. Those of one kind and name are one; those without a name go by their id, where that is known."""
        if self._anonymous:
            resource = resource._replace(id="")
        key = f"resource:{resource.kind}:{resource.name or resource.id}"
        if key not in self._resources:
            label = str(resource)
            if len(self._resources) >= _MAX_RESOURCES:
                key, label = f"resource:{OTHER}", "other resources"
            self._resources.setdefault(key, _Resource(label))
        return key

    def _edge(self, source: str, target: str, kind: str, seconds: float, times: int = 1) -> None:
        key = source, target, kind
        before = self.edges.get(key)
        if before is None and len(self.edges) >= _MAX_EDGES:
            self._left_off += 1
            return
        count, sum = before or (0, 0.0)
        self.edges[key] = count + times, sum + seconds

    def _relate(self, kept: _Kept, node: str, link: Callable[[str, _End, float], None]) -> None:
        """Add the edges of a task, whose node is `node`; `link` joins the node of a span id to an end."""
        member, edge = kept.member, self._edge
        if member.parent_id is not None:
            link(member.parent_id, _End(node, "spawned", True), member.times.ended - member.times.began)
        for id in kept.awaiting:
            link(id, _End(node, "awaited", False), kept.waiting)
        for wait in kept.uses.waits:
            whole = self._resource_node(wait.resource.whole)
            edge(node, whole, "waited", wait.seconds)
            serving = _SERVING.get(wait.resource.kind)
            if serving is not None:
                for holder in wait.holders:
                    link(holder, _End(whole, *serving, True), 0.0)
        for hold in kept.uses.holds:
            edge(node, self._resource_node(hold.resource.whole), "held", hold.seconds)
        for resource in kept.uses.acquired:
            if resource.kind == "queue get":
                edge(self._resource_node(resource.whole), node, "sent", 0.0)
            elif resource.kind == "queue put":
                edge(node, self._resource_node(resource.whole), "sent", 0.0)

    # -- in the end --------------------------------------------------------------------------------------------------

    def settle(self, max_nodes: int) -> tuple[bool, list[str]]:
        """Make `nodes` and `edges`, at most so many nodes; returns whether they are by name, and what was left out."""
        notes = []
        by_name = self.tasks > len(self._kept) or self.tasks + len(self._resources) > max_nodes
        if by_name:
            notes.append(f"{self.tasks:,} tasks are too many to show each: they are taken together by name")
            self.nodes = [
                (f"name:{name}", "name", name, count, seconds, "") for name, (count, seconds) in self._counts.items()
            ]
        else:
            self.edges, self._claims = {}, {}
            self._by_task()
        resources = [(key, "resource", of.label, of.tasks, of.held, "") for key, of in self._resources.items()]
        self.nodes += sorted(resources, key=lambda node: (-node[4], node[0]))
        for key in self._claims:
            self.edges.setdefault(key, (1, 0.0))
        if len(self.nodes) > max_nodes:
            notes.append(f"of {len(self.nodes):,} names and resources, those with the least time are one: {OTHER}")
            self._cut(max_nodes)
        if by_name:
            self.nodes.sort(key=lambda node: (node[1] == "resource", -node[4], node[0]))
        there = {node[0] for node in self.nodes}
        self.edges = {key: value for key, value in self.edges.items() if key[0] in there and key[1] in there}
        if self.tasks > len(self._kept):
            notes.append(f"the critical path is of the last {len(self._kept):,} tasks to end")
        if self._left_off:
            notes.append(f"{self._left_off:,} relations were left out for want of room")
        return by_name, notes

    def labelled(self) -> dict[Key, int]:
        """How often there was each edge, by name, with what its ends are called in place of ids of nodes. Settles."""
        self.settle(sys.maxsize)
        called = {node[0]: node[2] for node in self.nodes}
        return {(called[source], called[target], kind): n for (source, target, kind), (n, _) in self.edges.items()}

    def _by_task(self) -> None:
        """Nodes and edges of single tasks, in order of their beginning."""
        members = sorted((kept.member for kept in self._kept), key=lambda each: (each.times.began, each.id))
        self.nodes = [
            (f"task:{each.id}", "task", each.name, 1, each.times.ended - each.times.began, each.state)
            for each in members
        ]
        known = {each.id for each in members}

        def link(id: str, end: _End, seconds: float) -> None:
            if id in known:
                self._join(f"task:{id}", end, 1, seconds)

        for kept in self._kept:
            self._relate(kept, f"task:{kept.member.id}", link)
        for kept, other, awaited in self._resolved():
            self._edge(f"task:{kept.member.id}", f"task:{other.id}", "awaited", awaited.until - awaited.since)

    def _resolved(self) -> Iterator[tuple[_Kept, Member, Awaited]]:
        """Of each wait for a task, which one it was: of those of that name, the last to end before the wait did."""
        ends: dict[str, list[tuple[float, str, Member]]] = {}
        for kept in self._kept:
            if kept.member.times.over:
                ends.setdefault(kept.member.name, []).append((kept.member.times.ended, kept.member.id, kept.member))
        for of_name in ends.values():
            of_name.sort(key=lambda each: each[:2])
        for kept in self._kept:
            for awaited in kept.awaited:
                of_name = ends.get(awaited.name, [])
                index = bisect_right(of_name, awaited.until + _BLUR, key=lambda each: each[0]) - 1
                if index >= 0 and of_name[index][0] >= awaited.since - _BLUR:
                    other = of_name[index][2]
                    if other.id != kept.member.id:
                        yield kept, other, awaited

    def _cut(self, max_nodes: int) -> None:
        """The nodes with the least time become one."""
        ranked = sorted(self.nodes, key=lambda node: (-node[4], -node[3], node[0]))
        other = f"name:{OTHER}"
        rest = {node[0]: node for node in self.nodes if node[0] == other}
        rest |= {node[0]: node for node in [node for node in ranked if node[0] != other][max_nodes - 1 :]}
        count = sum(node[3] for node in rest.values() if node[1] != "resource")
        seconds = sum(node[4] for node in rest.values() if node[1] != "resource")
        self.nodes = [node for node in self.nodes if node[0] not in rest]
        self.nodes.append((other, "name", OTHER, count, seconds, ""))
        before, self.edges = self.edges, {}
        for (source, target, kind), (times, spent) in before.items():
            source, target = (other if each in rest else each for each in (source, target))
            self._edge(source, target, kind, spent, times)

    def critical_path(self) -> list[Stretch]:
        """That of the longest task of those that nobody here began, or, in a circle, of the longest of all."""
        members = {kept.member.id: kept.member for kept in self._kept}
        roots = [each for each in members.values() if each.parent_id not in members] or list(members.values())
        if not roots:
            return []
        hung_on: dict[str, list[Member]] = {}
        for each in members.values():
            if each.parent_id in members:
                hung_on.setdefault(each.parent_id, []).append(each)
        for kept in self._kept:
            mine = hung_on.setdefault(kept.member.id, []) if kept.awaiting else []
            mine += [members[id] for id in kept.awaiting if id in members]
        for kept, other, _ in self._resolved():
            hung_on.setdefault(kept.member.id, []).append(other)
        root = min(roots, key=lambda each: (each.times.began - each.times.ended, each.times.began, each.id))
        return critical_path(root, lambda member: hung_on.get(member.id, ()))
