"""`diff`: what changed from one run to the next, and whether that is to stop a build."""

from __future__ import annotations

import click

from . import FAILED
from .commands import UnusableError
from .reading import as_json, need_records, read_rules, tell_report
from .text import clean, fit

__all__ = ["diff"]


@click.command(
    epilog="""\b
Examples:
  asyncinspect diff before.jsonl after.jsonl
  asyncinspect diff main.json branch.json --fail-on "p99 > 1.2x" --fail-on "failed > 0"
  asyncinspect diff 'main-*.jsonl' 'branch-*.jsonl' --json

\b
Exit status: 1 where a condition of --fail-on holds. Where too little is known
to say, it is 0, or 1 with --fail-on-unknown.
"""
)
@click.argument("before")
@click.argument("after")
@click.option("--fail-on", "conditions", multiple=True, metavar="EXPR", help='As "p99 > 1.2x"; may be given again.')
@click.option("--fail-on-unknown", "unknown", is_flag=True, help="Fail, too, where too little is known to say.")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    default=0.99,
    show_default=True,
    help="How sure it has to be.",
)
@click.option("--strict", is_flag=True, help="A broken line is an error: exit status 1.")
@click.option("--rules", metavar="FILE", help="TOML rules that make spans of other programs' lines.")
@as_json
@click.pass_context
def diff(
    ctx: click.Context,
    before: str,
    after: str,
    conditions: tuple[str, ...],
    unknown: bool,
    confidence: float,
    strict: bool,
    rules: str | None,
    machine: bool,
) -> None:
    """Compare two runs: names, counts, outcomes, durations, edges and findings.

    BEFORE and AFTER are a log, a pattern of logs, an export or an address each.
    """
    from ..analysis.compare import compare
    from ..analysis.loading import load
    from ..analysis.thresholds import parse_condition
    from .output import print_json, progress_bar, say

    if before == after == "-":
        raise click.UsageError("standard input is one run; name a file for BEFORE or for AFTER")
    parsed = [parse_condition(text) for text in conditions]
    with progress_bar("reading") as progress:
        sources = [
            need_records(load(where, strict=strict, rules=read_rules(rules), progress=progress), where)
            for where in (before, after)
        ]
        found = compare(sources[0], sources[1], confidence=confidence)
    for source in sources:
        tell_report(source)
    for where, side in ((before, "before"), (after, "after")):
        if all(getattr(change, side) is None for change in found.changes):
            raise UnusableError(f"{where}: no spans in it, and so nothing to compare; give another file")
    verdicts = found.judge(parsed)
    failed = any(verdict.failed or (unknown and verdict.failed is None) for verdict in verdicts)
    if machine:
        told = [verdict._asdict() for verdict in verdicts]
        print_json("diff", found.to_dict() | {"conditions": told, "failed": failed})
    else:
        text = found.render()
        click.echo(fit(clean(text, keep="\n", limit=len(text))))
        for verdict in verdicts:
            word = {True: "FAILED", False: "passed", None: "unknown"}[verdict.failed]
            style = {True: "bold red", False: "green", None: "yellow"}[verdict.failed]
            say(f"{word}: {verdict.condition}: {verdict.message}", style=style)
    if failed:
        ctx.exit(FAILED)
