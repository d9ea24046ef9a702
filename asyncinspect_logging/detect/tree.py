"""The tree of live tasks: which span was begun in which, and which waits for which."""

from __future__ import annotations

from typing import NamedTuple

from ..fields import text_of
from ..snapshot import Snapshot, TaskView
from ..states import LIVE, TaskState

__all__ = ["TreeNode", "render", "tree_of"]

_MAX_VALUE = 60


class TreeNode(NamedTuple):
    """A live span, and the live spans begun in it, oldest first. `task.awaiting` has the ids of those it waits for."""

    task: TaskView
    children: tuple[TreeNode, ...]


def tree_of(snapshot: Snapshot) -> tuple[TreeNode, ...]:
    """The live spans of a full snapshot that have no live parent, oldest first, with all that was begun in them."""
    live = {task.id: task for task in snapshot.tasks if task.state in LIVE}
    children: dict[str, list[str]] = {id: [] for id in live}
    roots = []
    for task in live.values():
        if task.parent_id in live:
            children[task.parent_id].append(task.id)
        else:
            roots.append(task.id)
    order = _below(roots, children)
    # What a log says may go round in circles: then any of them is the root, and each is there once.
    reached = set(order)
    for id in live:
        if id not in reached:
            roots.append(id)
            more = _below([id], children, reached)
            reached.update(more)
            order += more
    nodes: dict[str, TreeNode] = {}
    for id in reversed(order):
        nodes[id] = TreeNode(live[id], tuple(nodes[child] for child in children[id] if child in nodes))
    return tuple(nodes[id] for id in roots)


def _below(roots: list[str], children: dict[str, list[str]], reached: set[str] | None = None) -> list[str]:
    """The roots and all that is below them, each before what is below it."""
    seen: set[str] = set() if reached is None else set(reached)
    order, ahead = [], roots[::-1]
    while ahead:
        id = ahead.pop()
        if id not in seen:
            seen.add(id)
            order.append(id)
            ahead += children[id][::-1]
    return order


def render(snapshot: Snapshot) -> str:
    """The tree as text, one line a span: name, fields, id, state, what it waits for and for how many seconds, the ids
    of the spans that it waits for, and the innermost frame.
    """
    lines = []
    # Each with what stands before it, and before what is below it.
    ahead = [(node, "", "") for node in reversed(tree_of(snapshot))]
    while ahead:
        node, before, below = ahead.pop()
        lines.append(before + _line(node.task, snapshot.taken_at))
        last = len(node.children) - 1
        for number in range(last, -1, -1):
            ends = number == last
            ahead.append(
                (node.children[number], below + ("└── " if ends else "├── "), below + ("    " if ends else "│   "))
            )
    return "\n".join(lines or ["no live tasks"]) + "\n"


def _line(task: TaskView, now: float) -> str:
    fields = "".join(f" {key}={text_of(value, _MAX_VALUE)}" for key, value in task.fields.items())
    parts = [f"{task.name}{fields} [{task.id}] {task.state.value}"]
    if task.state is TaskState.BLOCKED and task.waiting_on is not None:
        since = "" if task.waiting_since is None else f" {max(0.0, now - task.waiting_since):.1f} s"
        parts.append(f"{since} on {task.waiting_on}")
    if task.awaiting:
        parts.append(f" -> {', '.join(task.awaiting)}")
    if task.await_chain:
        parts.append(f" at {task.await_chain[-1]}")
    return "".join(parts).replace("\n", "\\n")
