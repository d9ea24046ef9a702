"""`diff`: what changed from one run to the next, and whether that is to stop a build."""

from __future__ import annotations

import click

from . import FAILED
from .reading import as_json, read_rules, tell_report
from .text import clean, fit

__all__ = ["diff"]


@click.command(
    epilog="""\b
Examples:
  asyncinspect diff before.jsonl after.jsonl
  asyncinspect diff main.json branch.json --fail-on "p99 > 1.2x" --fail-on "failed > 0"
  asyncinspect diff 'main-*.jsonl' 'branch-*.jsonl' --json

\b
Exit status: 1 where a condition of --fail-on holds. Where the sample is too
small to say, it does not.
"""
)
@click.argument("before")
@click.argument("after")
@click.option("--fail-on", "conditions", multiple=True, metavar="EXPR", help='As "p99 > 1.2x"; may be given again.')
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

    parsed = [parse_condition(text) for text in conditions]
    with progress_bar("reading") as progress:
        sources = [load(where, strict=strict, rules=read_rules(rules), progress=progress) for where in (before, after)]
        found = compare(sources[0], sources[1], confidence=confidence)
    for source in sources:
        tell_report(source)
    verdicts = found.judge(parsed)
    failed = any(verdict.failed for verdict in verdicts)
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
        for condition in parsed:
            if not any(verdict.condition == condition.text for verdict in verdicts):
                say(f"unknown: {condition.text}: no span to compare", style="yellow")
    if failed:
        ctx.exit(FAILED)
