"""What tasks have to do with each other: who spawned, awaited, held and sent what; as text, DOT, Mermaid and JSON.

A pure function over frozen tasks. Up to so many tasks each is a node of its own; beyond that they are taken together by
name, and of a stream of millions no more is kept than that, and the latest tasks, for the critical path.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

from .relations import Relations
from .timeline import Source, tasks_of

__all__ = ["MAX_NODES", "Edge", "Graph", "Node", "Step", "graph"]

#: Nodes of a graph, unless told otherwise: more than these nobody can look at.
MAX_NODES: Final = 200


class Node(NamedTuple):
    """`id` is "task:SPAN", "name:NAME" or "resource:…". `kind` is "task", "name" or "resource".

    `tasks` is how many tasks it stands for, of a resource, how many used it; `seconds` the sum of their durations (of
    live ones up to now), of a resource, how long it was held. `state` is of a single task, else empty.
    """

    id: str
    kind: str
    name: str
    tasks: int
    seconds: float
    state: str


class Edge(NamedTuple):
    """From one node to another, by their ids, so many `times`, taking `seconds` together.

    spawned: a task began another one in it. awaited: it waited for that one to end. waited: it waited for a resource.
    held: it had a resource. sent: it put into a queue, or (from the queue to it) got out of it.
    """

    source: str
    target: str
    kind: str
    times: int
    seconds: float


class Step(NamedTuple):
    """A stretch of the critical path: the task that the root's end hung on from `start` to `end` (Unix time)."""

    span_id: str
    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Graph(NamedTuple):
    """`by_name`: whether a node stands for all tasks of a name. `critical` is the critical path of the task that took
    longest of those that no other one began, in order of time; see `docs/analysis.md` for what that is. `tasks` counts
    the tasks read; `notes` says what was left out.
    """

    by_name: bool
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    critical: tuple[Step, ...]
    tasks: int
    notes: tuple[str, ...]

    def node(self, id_or_name: str) -> Node:
        """The node of this id, span id, or name; the first one where there are several of a name.

        Raises KeyError, with what there is instead, where there is none.
        """
        for wanted in (id_or_name, f"task:{id_or_name}", f"name:{id_or_name}"):
            for node in self.nodes:
                if node.id == wanted:
                    return node
        for node in self.nodes:
            if node.name == id_or_name:
                return node
        there = ", ".join(sorted({node.name for node in self.nodes})[:10]) or "nothing"
        raise KeyError(f"no node {id_or_name!r} in this graph; there is {there}")

    def dependencies(self, id_or_name: str) -> tuple[Node, ...]:
        """All that a node depends on, directly and through others, nearest first: what it spawned, awaited and waited
        for, whoever held that, the queues it got from, and whoever put into these. Raises KeyError as `node` does.
        """
        start = self.node(id_or_name).id
        follows: dict[str, list[str]] = {}
        for edge in self.edges:
            # Who waits for a resource depends on who has it, and who gets out of a queue on who puts into it.
            source, target = (edge.target, edge.source) if edge.kind in ("held", "sent") else edge[:2]
            follows.setdefault(source, []).append(target)
        by_id = {node.id: node for node in self.nodes}
        found, ahead = {start: None}, deque([start])
        while ahead:
            for each in follows.get(ahead.popleft(), ()):
                if each not in found:
                    found[each] = None
                    ahead.append(each)
        return tuple(by_id[id] for id in found if id != start)

    def shared(self) -> tuple[Node, ...]:
        """The resources that more than one task used."""
        return tuple(node for node in self.nodes if node.kind == "resource" and node.tasks > 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "by_name": self.by_name,
            "tasks": self.tasks,
            "nodes": [node._asdict() for node in self.nodes],
            "edges": [edge._asdict() for edge in self.edges],
            "shared": [node.id for node in self.shared()],
            "critical": [step._asdict() | {"seconds": step.seconds} for step in self.critical],
            "notes": list(self.notes),
        }

    def to_text(self, *, ascii: bool = False) -> str:
        from .graph_text import text_of

        return text_of(self, ascii=ascii)

    def to_dot(self) -> str:
        """For Graphviz: `dot -Tsvg`."""
        from .graph_text import dot_of

        return dot_of(self)

    def to_mermaid(self) -> str:
        from .graph_text import mermaid_of

        return mermaid_of(self)

    def to_json(self) -> str:
        from .graph_text import json_of

        return json_of(self)


def graph(source: Source, *, max_nodes: int = MAX_NODES) -> Graph:
    """The graph of `source`, a Snapshot or a stream of tasks; of at most `max_nodes` nodes.

    Raises TypeError for another source, and ValueError for fewer than two nodes.
    """
    if max_nodes < 2:
        raise ValueError(f"a graph of at most {max_nodes} nodes shows nothing: give max_nodes=2 or more")
    relations = Relations()
    for task in tasks_of(source):
        relations.take(task)
    by_name, notes = relations.settle(max_nodes)
    nodes = tuple(Node(*node) for node in relations.nodes)
    edges = tuple(Edge(*key, times, seconds) for key, (times, seconds) in sorted(relations.edges.items()))
    path = [Step(each.member.id, each.member.name, each.start, each.end) for each in relations.critical_path()]
    return Graph(by_name, nodes, edges, tuple(path), relations.tasks, tuple(notes))
