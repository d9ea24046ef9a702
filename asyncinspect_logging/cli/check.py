"""`check`: whether spans began and ended as spans do."""

from __future__ import annotations

import click

from . import FAILED
from .reading import as_json, log_options, need_records, need_tasks, read_rules, tell_report
from .text import count

__all__ = ["check"]


@click.command(
    epilog="""\b
Examples:
  asyncinspect check service.jsonl
  asyncinspect check service.jsonl --json

\b
Exit status: 1 where something is found.
"""
)
@click.argument("where", nargs=-1, required=True, metavar="WHERE...")
@log_options
@as_json
@click.pass_context
def check(
    ctx: click.Context, where: tuple[str, ...], strict: bool, at: float | None, rules: str | None, machine: bool
) -> None:
    """Find spans that outlive their parents, locks held at exit, times that run backwards, and the like.

    Needs the tasks themselves: a log or an export. That a span ended twice is to be seen in logs only.
    """
    from ..analysis.lifecycle import check as flaws_of
    from ..analysis.loading import load
    from ..analysis.log_lifecycle import LogRecords
    from ..analysis.replay import LogTasks
    from .output import print_json, print_table, progress_bar, say

    with progress_bar("reading") as progress:
        source = load(list(where), strict=strict, at=at, rules=read_rules(rules), progress=progress)
        need_tasks(source, where, "check")
        # What was told twice, only the records say.
        records = LogRecords(source, at=at) if isinstance(source, LogTasks) else None
        source = need_records(source, where)
        flaws = flaws_of(source)
        if records is not None:
            flaws = records.flaws(flaws)
    tell_report(source)
    if machine:
        print_json("check", {"flaws": flaws})
    elif flaws:
        print_table(
            ("flaw", "span", "ids", "what", "what to do"),
            [(flaw.kind, flaw.name, " ".join(flaw.span_ids), flaw.message, flaw.advice) for flaw in flaws],
        )
        say(f"{count(len(flaws))} flaws")
    else:
        say("Nothing was found.")
    if flaws:
        ctx.exit(FAILED)
