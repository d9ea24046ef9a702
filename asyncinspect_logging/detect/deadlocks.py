"""Which of those who wait can never go on: the alive/dead fixpoint of an AND-OR wait-for graph.

A waiter has requirements, all of which must be met (AND), each by any one of several others (OR): a lock by its one
holder, a semaphore by any of its holders, a `gather` by each of its tasks. Who waits for nothing is alive; who waits is
alive as soon as each of its requirements names one that is. Whoever is left is dead. For OR alone that is a knot, for
AND alone a cycle (E. Knapp, "Deadlock detection in distributed databases", ACM Computing Surveys 19(4), 1987; K. M.
Chandy, J. Misra, L. M. Haas, "Distributed deadlock detection", ACM TOCS 1(2), 1983). The time it takes is linear in the
number of edges.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

__all__ = ["cores_of", "dead_among"]

_Node = TypeVar("_Node", bound=Hashable)


def dead_among(
    nodes: Iterable[_Node], needs_of: Callable[[_Node], Sequence[Sequence[_Node]] | None]
) -> dict[_Node, list[list[_Node]]]:
    """Of `nodes` and all that they wait for, those that can never go on, each with the requirements that cannot be
    met.

    `needs_of(node)`: what it waits for, a list of requirements of which each lists those who can meet it; one that
    lists none cannot be met. None for a node that is not waiting.
    """
    needs: dict[_Node, Sequence[Sequence[_Node]]] = {}
    missing: dict[_Node, int] = {}
    # By node: which requirements of which others it can meet.
    serves: dict[_Node, list[tuple[_Node, int]]] = {}
    alive: list[_Node] = []
    seen = set(nodes)
    ahead = list(seen)
    while ahead:
        node = ahead.pop()
        wanted = needs_of(node)
        if not wanted:
            # Waits for nothing, or for nothing that is still needed.
            alive.append(node)
            continue
        needs[node] = wanted
        missing[node] = len(wanted)
        for index, those in enumerate(wanted):
            for other in those:
                serves.setdefault(other, []).append((node, index))
                if other not in seen:
                    seen.add(other)
                    ahead.append(other)
    met: set[tuple[_Node, int]] = set()
    while alive:
        for requirement in serves.get(alive.pop(), ()):
            if requirement not in met:
                met.add(requirement)
                node = requirement[0]
                missing[node] -= 1
                if not missing[node]:
                    alive.append(node)
    return {
        node: [list(those) for index, those in enumerate(wanted) if (node, index) not in met]
        for node, wanted in needs.items()
        if missing[node]
    }


def cores_of(dead: Mapping[_Node, Sequence[Sequence[_Node]]]) -> list[list[_Node]]:
    """The parts of the dead that no others of them cause: each is strongly connected and waits for nobody outside
    (R. Tarjan, "Depth-first search and linear graph algorithms", SIAM J. Comput. 1(2), 1972). The others wait for one
    of these.
    """
    edges = {node: [other for those in wanted for other in those if other in dead] for node, wanted in dead.items()}
    order: dict[_Node, int] = {}
    lowest: dict[_Node, int] = {}
    open_: list[_Node] = []
    is_open: set[_Node] = set()
    part_of: dict[_Node, int] = {}
    parts: list[list[_Node]] = []
    for start in edges:
        if start in order:
            continue
        order[start] = lowest[start] = len(order)
        open_.append(start)
        is_open.add(start)
        path = [(start, iter(edges[start]))]
        while path:
            node, others = path[-1]
            for other in others:
                if other not in order:
                    order[other] = lowest[other] = len(order)
                    open_.append(other)
                    is_open.add(other)
                    path.append((other, iter(edges[other])))
                    break
                if other in is_open:
                    lowest[node] = min(lowest[node], order[other])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == order[node]:
                    part: list[_Node] = []
                    while not part or part[-1] != node:
                        part.append(open_.pop())
                        is_open.discard(part[-1])
                        part_of[part[-1]] = len(parts)
                    parts.append(part[::-1])
    return [
        part
        for index, part in enumerate(parts)
        if all(part_of[other] == index for node in part for other in edges[node])
    ]
