"""`stats`: what took how long, and what was waited for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..analysis.quantiles import MoreThan
from ..analysis.relations import STEPS
from ..snapshot import Snapshot, TaskView
from .reading import as_json, log_options, need_records, read_rules, tell_report
from .text import clean, count, is_ascii, seconds

if TYPE_CHECKING:
    from ..analysis.profile import NameProfile, Profile
    from ..streams import TaskStream

__all__ = ["stats"]


@click.command(
    epilog="""\b
Examples:
  asyncinspect stats service.jsonl
  asyncinspect stats service.jsonl --detailed --top 3
  asyncinspect stats http://127.0.0.1:9090
  asyncinspect stats service.jsonl --json | jq '.names[] | {name, p99: .durations.p99}'
"""
)
@click.argument("where", nargs=-1, required=True, metavar="WHERE...")
@click.option("--detailed", is_flag=True, help="Distributions, rankings, hot paths and contention, too.")
@click.option("--top", type=click.IntRange(1, 1000), help="Entries of each ranking.  [default: 10; of --json, all]")
@log_options
@as_json
def stats(
    where: tuple[str, ...],
    detailed: bool,
    top: int | None,
    strict: bool,
    at: float | None,
    rules: str | None,
    machine: bool,
) -> None:
    """Show how long spans took, by name.

    Times are exact where all tasks are at hand (logs, exports). Those of a running process are estimated from the
    buckets of its histograms, and marked with ~.
    """
    from ..analysis.loading import load
    from ..analysis.profile import profile
    from .output import print_json, print_table, progress_bar, say

    with progress_bar("reading") as progress:
        source = load(list(where), strict=strict, at=at, rules=read_rules(rules), progress=progress)
        source = need_records(source, where)
        seen = _Seen(source)
        found = profile(source if isinstance(source, Snapshot) else seen)
    tell_report(source)
    if machine:
        print_json("stats", _known(found, steps=seen.steps, top=top))
        return
    top = top or 10
    if detailed:
        wide = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
        text = found.render(wide, ascii=is_ascii(), top=top)
        click.echo(clean(text, keep="\n", limit=len(text)), nl=False)
        return
    names = found.names[:top]
    print_table(
        ("span", "#begun", "#open", "#failed", "#cancelled", "#p50", "#p95", "#p99", "#max", "#busy"), map(_row, names)
    )
    if len(found.names) > len(names):
        say(f"and {count(len(found.names) - len(names))} more names; --top shows more")
    for note in found.notes:
        say(f"Note: {note}")


class _Seen:
    """A stream that notes whether any task in it has step records, and so tells what it waited for."""

    def __init__(self, source: Snapshot | TaskStream) -> None:
        self._source = source
        self.steps = False

    def __iter__(self) -> Iterator[TaskView]:
        assert not isinstance(self._source, Snapshot)
        for task in self._source:
            self.steps = self.steps or any(event.kind in STEPS for event in task.events)
            yield task

    def rest(self) -> Snapshot:
        assert not isinstance(self._source, Snapshot)
        return self._source.rest()


def _known(found: Profile, *, steps: bool, top: int | None) -> dict[str, Any]:
    """The profile as plain values, with None for what nobody told, and so many entries of each ranking."""
    document = found.to_dict()
    for each in document["names"]:
        if each["efficiency"] is None:
            each |= {"busy": None, "idle": None, "scheduled": None}
        if not found.tasks:
            each["self"] = None
        if not steps and not each["waited"]:
            each["waited"] = None
    if top is not None:
        for key in ("hot_paths", "contention"):
            document[key] = document[key][:top]
        for key in ("busiest", "slowest", "least_efficient"):
            document[key] = [each.name for each in getattr(found, key)(top)]
    return document


def _row(of: NameProfile) -> tuple[str, ...]:
    failed = of.outcomes.get("failed", 0)
    cancelled = sum(number for outcome, number in of.outcomes.items() if outcome not in ("completed", "failed"))
    quantiles = (of.durations.p50, of.durations.p95, of.durations.p99)
    return (
        of.name,
        *map(count, (of.spawned, of.live, failed, cancelled)),
        *(_quantile(value, of.durations.basis) for value in quantiles),
        seconds(of.durations.max),
        seconds(of.busy),
    )


def _quantile(value: float | None, basis: str) -> str:
    if value is None:
        return seconds(value)
    # Of what is in the last bucket of a histogram, no more is known.
    return ("> " if isinstance(value, MoreThan) else "" if basis == "samples" else "~") + seconds(value)
