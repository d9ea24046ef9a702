"""`graph`: what spans have to do with each other."""

from __future__ import annotations

import sys

import click

from .commands import UnusableError
from .reading import log_options, need_records, need_tasks, read_rules, tell_report
from .text import clean, is_ascii

__all__ = ["graph"]


@click.command(
    epilog="""\b
Examples:
  asyncinspect graph service.jsonl
  asyncinspect graph service.jsonl --of checkout      # all that it depends on
  asyncinspect graph service.jsonl --format dot | dot -Tsvg > graph.svg
  asyncinspect graph service.jsonl --format mermaid
"""
)
@click.argument("where", nargs=-1, required=True, metavar="WHERE...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "dot", "mermaid", "json"]),
    default="text",
    show_default=True,
    help="What to print.",
)
@click.option("--of", "of", metavar="SPAN", help="Only what this span (its name or id) depends on.")
@click.option("--json", "machine", is_flag=True, help="The same as --format json.")
@log_options
def graph(
    where: tuple[str, ...],
    form: str,
    of: str | None,
    machine: bool,
    strict: bool,
    at: float | None,
    rules: str | None,
) -> None:
    """Show who began, awaited, held and sent what, and the critical path.

    Needs the tasks themselves: a log or an export. Waits and locks are in logs at level TRACE.
    """
    from ..analysis.graph import graph as graph_of
    from ..analysis.loading import load
    from .output import print_json, print_table, progress_bar
    from .text import count, seconds

    with progress_bar("reading") as progress:
        source = load(list(where), strict=strict, at=at, rules=read_rules(rules), progress=progress)
        need_tasks(source, where, "graph")
        source = need_records(source, where)
        found = graph_of(source)
    tell_report(source)
    machine = machine or form == "json"
    if of is not None:
        try:
            needed = found.dependencies(of)
        except KeyError as error:
            raise UnusableError(error.args[0]) from None
        if form in ("dot", "mermaid"):
            kept = {node.id for node in (found.node(of), *needed)}
            found = found._replace(
                nodes=tuple(node for node in found.nodes if node.id in kept),
                edges=tuple(edge for edge in found.edges if edge.source in kept and edge.target in kept),
            )
        elif machine:
            print_json("graph", {"of": found.node(of), "dependencies": needed})
            return
        else:
            print_table(
                ("kind", "name", "#tasks", "#time"),
                [(node.kind, node.name, count(node.tasks), seconds(node.seconds)) for node in needed],
            )
            return
    if machine:
        print_json("graph", found.to_dict())
        return
    if form == "dot":
        text = found.to_dot()
    elif form == "mermaid":
        text = found.to_mermaid()
    else:
        text = found.to_text(ascii=is_ascii())
    click.echo(clean(text, keep="\n\t", limit=len(text)) if sys.stdout.isatty() or form == "text" else text)
