"""`replay`: what was on /metrics, from the log alone, and the spans that were open where it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .reading import as_json, log_options, no_records, read_rules, report_json, tell_report
from .text import clean, count, moment, seconds

if TYPE_CHECKING:
    from ..analysis.replay import Report
    from ..snapshot import NameView, Snapshot, TaskView

__all__ = ["replay"]

#: Open spans that are shown without --open.
_FEW = 5


@click.command(
    epilog="""\b
Examples:
  asyncinspect replay service.jsonl
  asyncinspect replay 'logs/*.jsonl*' --open
  asyncinspect replay service.jsonl --at 2030-01-31T12:00:00Z
  asyncinspect replay service.jsonl --metrics | grep _total
  asyncinspect replay access.log --rules nginx.toml
  zcat old.jsonl.gz | asyncinspect replay -
"""
)
@click.argument("logs", nargs=-1, required=True, metavar="LOG...")
@click.option("--open", "all_open", is_flag=True, help="List every span that is open at the end, and where it was.")
@click.option("--metrics", is_flag=True, help="Print the page that Prometheus would get.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, help="Files that are read at a time.")
@log_options
@as_json
def replay(
    logs: tuple[str, ...],
    all_open: bool,
    metrics: bool,
    processes: int,
    strict: bool,
    at: float | None,
    rules: str | None,
    machine: bool,
) -> None:
    """Rebuild the counters of a process from its log."""
    from ..analysis.replay import Replay
    from .output import print_json, progress_bar, to_stdout

    if metrics and (machine or all_open):
        raise click.UsageError("--metrics prints the page and nothing else; leave out --json and --open")
    with progress_bar("reading") as progress:
        reading = Replay(
            list(logs), at=at, strict=strict, rules=read_rules(rules), progress=progress, processes=processes
        )
        inspector = reading.run()
    if not reading.report.records and not inspector.snapshot().names:
        raise no_records(reading.report, " ".join(logs), at=at)
    if metrics:
        from ..exporters.prometheus import PrometheusExporter

        with to_stdout() as stream:
            page = PrometheusExporter(inspector).gather()
            stream.write(page if hasattr(stream, "encoding") else page.encode())
        tell_report(reading)
        return
    snapshot = inspector.snapshot()
    still_open = [task for task in snapshot.tasks if task.outcome is None]
    if machine:
        print_json(
            "replay",
            {
                "taken_at": snapshot.taken_at,
                "report": report_json(reading.report),
                "names": {name: _counts(view) for name, view in snapshot.names.items()},
                "states": snapshot.states,
                "events": snapshot.events,
                "dropped": snapshot.dropped,
                "findings": snapshot.findings,
                "open": [_open_json(task, snapshot.taken_at) for task in still_open],
            },
        )
        return
    _show(snapshot, reading.report, still_open, all_open=all_open)
    tell_report(reading)


def _counts(view: NameView) -> dict[str, Any]:
    fields = ("spawned", "live", "completed", "failed", "cancelled", "polls", "wakes", "busy", "idle", "scheduled")
    return {field: getattr(view, field) for field in fields}


def _open_json(task: TaskView, now: float) -> dict[str, Any]:
    fields = ("id", "parent_id", "trace_id", "name", "state", "fields", "age", "started_at", "at", "task", "polls")
    more = ("waiting_on", "waiting_since", "await_chain", "awaiting")
    return {field: getattr(task, field) for field in (*fields, *more)}


def _show(snapshot: Snapshot, report: Report, still_open: list[TaskView], *, all_open: bool) -> None:
    from .output import print_table, say, title

    least = "at least " if report.missing else ""
    say(
        f"{count(report.lines)} lines: {count(report.records)} records, {count(report.annotations)} inside spans, "
        f"{count(report.foreign)} of others, {count(report.broken)} broken; {count(report.missing)} records missing"
    )
    say(f"State at {moment(snapshot.taken_at)}")
    title(f"Spans: {least}{count(sum(view.spawned for view in snapshot.names.values()))}")
    if snapshot.names:
        print_table(
            ("span", "#begun", "#open", "#completed", "#failed", "#cancelled", "#polls", "#busy", "#idle"),
            [
                (
                    name,
                    *map(count, (v.spawned, v.live, v.completed, v.failed, v.cancelled, v.polls)),
                    seconds(v.busy),
                    seconds(v.idle),
                )
                for name, v in sorted(snapshot.names.items(), key=lambda item: (-item[1].spawned, item[0]))
            ],
        )
    if snapshot.findings:
        title(f"Findings: {count(len(snapshot.findings))}")
        print_table(("kind", "span", "what"), [(f.kind, f.name, f.message) for f in snapshot.findings])
    title(f"Open at the end: {count(len(still_open))}")
    shown = still_open if all_open else still_open[:_FEW]
    if shown:
        print_table(
            ("span", "id", "state", "#for", "begun at", "where", "fields"),
            [
                (
                    task.name,
                    task.id,
                    task.state.value,
                    seconds(task.age),
                    task.at or "–",
                    where(task),
                    " ".join(f"{key}={clean(value, limit=40)}" for key, value in task.fields.items()),
                )
                for task in shown
            ],
        )
    if len(shown) < len(still_open):
        say(f"and {count(len(still_open) - len(shown))} more; --open lists them all")


def where(task: TaskView) -> str:
    """What an open task waits for, and the innermost place that is known of it."""
    parts = [task.waiting_on or "", task.await_chain[-1] if task.await_chain else ""]
    return " at ".join(part for part in parts if part) or "–"
