"""`export`: what there is, in the format of another tool."""

from __future__ import annotations

import os
import sys
from glob import glob
from pathlib import Path
from typing import Any, Final

import click

from .reading import as_json, log_options, need_records, read_rules, tell_report

__all__ = ["export"]

#: What files that end like this are taken for by others.
_SUFFIXES: Final = {".json": ("json", "chrome", "speedscope"), ".csv": ("csv",), ".folded": ("collapsed",)}


@click.command(
    epilog="""\b
Examples:
  asyncinspect export service.jsonl --format json -o spans.json
  asyncinspect export service.jsonl --format csv --what events -o events.csv
  asyncinspect export service.jsonl --format chrome -o trace.json         # for ui.perfetto.dev
  asyncinspect export service.jsonl --format speedscope --time blocked -o flame.json
  asyncinspect export service.jsonl --format collapsed | flamegraph.pl > flame.svg
  asyncinspect export http://127.0.0.1:9090 --format json
"""
)
@click.argument("where", nargs=-1, required=True, metavar="WHERE...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "csv", "chrome", "speedscope", "collapsed"]),
    default="json",
    show_default=True,
    help="What to write.",
)
@click.option("--what", type=click.Choice(["tasks", "events"]), help="csv: one row a task, or one a timeline entry.")
@click.option(
    "--time", type=click.Choice(["busy", "blocked", "all"]), help="Flame graphs: of time on the loop, waiting, or both."
)
@click.option("-o", "--output", default="-", show_default=True, metavar="FILE", help="The file, which is replaced.")
@log_options
@as_json
def export(
    where: tuple[str, ...],
    form: str,
    what: str | None,
    time: str | None,
    output: str,
    strict: bool,
    at: float | None,
    rules: str | None,
    machine: bool,
) -> None:
    """Write a log, an export or a running process's counters in another format.

    A log of any length is written in flat memory. The file is there as a whole or not at all. --json prints what was
    written, and needs -o FILE.
    """
    from ..analysis.loading import load
    from .output import print_json, progress_bar, to_stdout, warn

    options: dict[str, Any] = {}
    if what is not None and form != "csv":
        raise click.UsageError(f"--what goes with --format csv, not {form}")
    if time is not None and form not in ("speedscope", "collapsed"):
        raise click.UsageError(f"--time goes with --format speedscope or collapsed, not {form}")
    if machine and output == "-":
        raise click.UsageError("--json goes with -o FILE: standard output has the export")
    if any(_is_same_file(output, one) for pattern in where for one in glob(pattern, recursive=True) or [pattern]):
        raise click.UsageError(f"{output} is what is to be read; give the export a name of its own")
    suffix = Path(output).suffix.lower()
    if form not in _SUFFIXES.get(suffix, (form,)):
        warn(f"{output} is to be of format {form}, and its name says {suffix}: is it --format {_SUFFIXES[suffix][0]}?")
    exporter, options = _exporter(form)
    if what is not None:
        options["what"] = what
    if time is not None:
        options["measure"] = {"all": "time"}.get(time, time)
    # A terminal is not to get both.
    with progress_bar("reading", hidden=output == "-" and sys.stdout.isatty()) as progress:
        source = load(list(where), strict=strict, at=at, rules=read_rules(rules), progress=progress)
        source = need_records(source, where)
        if output == "-":
            with to_stdout() as stream:
                exporter.write(source, stream, **options)
        else:
            exporter.export_to_file(source, output, **options)
    tell_report(source)
    if machine:
        from .reading import report_json

        report = getattr(source, "report", None)
        print_json(
            "export", {"file": output, "format": form, "report": None if report is None else report_json(report)}
        )


def _is_same_file(output: str, source: str) -> bool:
    try:
        return output != "-" and os.path.samefile(output, source)
    except OSError:
        return False  # one of them is not there


def _exporter(form: str) -> tuple[Any, dict[str, Any]]:
    if form == "json":
        from ..exporters.json_file import JsonExporter

        return JsonExporter, {}
    if form == "csv":
        from ..exporters.csv_file import CsvExporter

        return CsvExporter, {}
    if form == "chrome":
        from ..exporters.chrome_trace import ChromeTraceExporter

        return ChromeTraceExporter, {}
    from ..exporters.flame import FlameExporter

    return FlameExporter, {"form": form}
