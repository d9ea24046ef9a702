"""A graph as plain text, DOT, Mermaid and JSON. Names are anybody's text, and stay text in each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from .drawing import duration, shown

if TYPE_CHECKING:
    from .graph import Edge, Graph, Node

__all__ = ["dot_of", "json_of", "mermaid_of", "text_of"]

_MAX_NAME: Final = 60
_DOT_STYLES: Final = {
    "spawned": "solid",
    "awaited": "dashed",
    "waited": "dotted",
    "held": "bold",
    "sent": "solid",
}
_MERMAID_ARROWS: Final = {"spawned": "-->", "awaited": "-.->", "waited": "-.->", "held": "==>", "sent": "-->"}


def json_of(graph: Graph) -> str:
    return json.dumps(graph.to_dict(), indent=1) + "\n"


def text_of(graph: Graph, *, ascii: bool = False) -> str:
    """Each node with the edges that lead from it, the shared resources, and the critical path."""
    text = "\n".join(_lines(graph, ascii)) + "\n"
    return text.encode("ascii", "backslashreplace").decode() if ascii else text


def _lines(graph: Graph, ascii: bool) -> Iterator[str]:
    def time(seconds: float) -> str:
        return duration(seconds, ascii=ascii)

    arrow, back = ("->", "<-") if ascii else ("→", "←")
    labels = {node.id: _name(node) for node in graph.nodes}
    yield f"{graph.tasks:,} tasks, {len(graph.nodes):,} nodes, {len(graph.edges):,} edges"
    yield from (f"note: {note}" for note in graph.notes)
    leading: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        leading.setdefault(edge.source, []).append(edge)
    for node in graph.nodes:
        about = [node.state] if node.state else [_tasks(node)]
        yield ""
        yield f"{labels[node.id]}  {', '.join([*about, time(node.seconds)])}"
        for edge in leading.get(node.id, ()):
            received = edge.kind == "sent" and node.kind == "resource"
            times = f"{edge.times:,} x" if edge.times != 1 else ""
            numbers = " ".join(each for each in (times, time(edge.seconds) if edge.seconds else "") if each)
            word = "received by" if received else edge.kind
            yield f"  {back if received else arrow} {word} {labels[edge.target]}  {numbers}".rstrip()
    shared = graph.shared()
    if shared:
        yield from ("", "shared resources")
        yield from (f"  {labels[node.id]}  {_tasks(node)}, held {time(node.seconds)}" for node in shared)
    if graph.critical:
        total = sum(step.seconds for step in graph.critical)
        yield from ("", f"critical path: {time(total)}")
        for step in graph.critical:
            share = step.seconds / total if total else 0.0
            yield f"  {time(step.seconds):>8}  {share:>4.0%}  {shown(step.name, _MAX_NAME)} [{step.span_id}]"


def _name(node: Node) -> str:
    name = shown(node.name, _MAX_NAME)
    return f"{name} [{node.id.removeprefix('task:')}]" if node.kind == "task" else name


def _tasks(node: Node) -> str:
    return f"{node.tasks:,} task{'' if node.tasks == 1 else 's'}"


def _critical(graph: Graph) -> set[str]:
    """Ids of the nodes that are on the critical path."""
    if graph.by_name:
        return {f"name:{step.name}" for step in graph.critical}
    return {f"task:{step.span_id}" for step in graph.critical}


def _numbers(node: Node) -> str:
    return f"{node.state or _tasks(node)}, {duration(node.seconds)}"


def _edge_label(edge: Edge) -> str:
    return edge.kind if edge.times == 1 else f"{edge.kind} {edge.times:,} x"


# -- DOT -------------------------------------------------------------------------------------------------------------


def _dot(text: str) -> str:
    """A quoted string, in which Graphviz sees no escape (`\\N` would be the node's name) and no entity (`&lt;`)."""
    out = text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{out}"'


def dot_of(graph: Graph) -> str:
    numbers = {node.id: f"n{number}" for number, node in enumerate(graph.nodes)}
    critical = _critical(graph)
    lines = ["digraph tasks {", "  rankdir=LR;", "  node [shape=box, fontname=sans];", "  edge [fontname=sans];"]
    lines += [f"  // {note}" for note in graph.notes]
    for node in graph.nodes:
        # Of a line break only the escape is left, which is what makes one.
        label = _dot(shown(node.name, _MAX_NAME))[:-1] + "\\n" + _dot(_numbers(node))[1:]
        more = ", shape=cylinder" if node.kind == "resource" else ""
        more += ", penwidth=3" if node.id in critical else ""
        lines.append(f"  {numbers[node.id]} [label={label}{more}];")
    for edge in graph.edges:
        style = _DOT_STYLES[edge.kind]
        lines.append(
            f"  {numbers[edge.source]} -> {numbers[edge.target]} [label={_dot(_edge_label(edge))}, style={style}];"
        )
    return "\n".join([*lines, "}"]) + "\n"


# -- Mermaid ---------------------------------------------------------------------------------------------------------


def _mermaid(text: str) -> str:
    """A quoted label. All that might mean something to Mermaid or to HTML is given by its number."""
    out = "".join(each if each.isalnum() or each in " _.:,/()-" else f"#{ord(each)};" for each in text)
    # Two of these, or more, are part of an arrow.
    return f'"{out.replace("--", "#45;#45;")}"'


def mermaid_of(graph: Graph) -> str:
    numbers = {node.id: f"n{number}" for number, node in enumerate(graph.nodes)}
    critical = [numbers[id] for id in sorted(_critical(graph) & numbers.keys(), key=lambda id: int(numbers[id][1:]))]
    lines = ["flowchart LR", *(f"  %% {note}" for note in graph.notes)]
    for node in graph.nodes:
        label = _mermaid(shown(node.name, _MAX_NAME))[:-1] + "<br/>" + _mermaid(_numbers(node))[1:]
        left, right = ("[(", ")]") if node.kind == "resource" else ("[", "]")
        lines.append(f"  {numbers[node.id]}{left}{label}{right}")
    for edge in graph.edges:
        arrow = _MERMAID_ARROWS[edge.kind]
        lines.append(f"  {numbers[edge.source]} {arrow}|{_mermaid(_edge_label(edge))}| {numbers[edge.target]}")
    if critical:
        lines += ["  classDef critical stroke-width:4px", f"  class {','.join(critical)} critical"]
    return "\n".join(lines) + "\n"
