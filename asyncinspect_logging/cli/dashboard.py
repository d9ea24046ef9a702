"""`dashboard`: the Grafana dashboard."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .reading import as_json

__all__ = ["dashboard"]


@click.command(
    epilog="""\b
Examples:
  asyncinspect dashboard > dashboard.json
  asyncinspect dashboard --title "Shop" --uid shop-tasks --job shop -o dashboard.json
  asyncinspect dashboard --name-label task_name          # as PrometheusExporter(name_label=...)
"""
)
@click.option("--title", metavar="TEXT", help="Title of the dashboard.")
@click.option("--uid", metavar="UID", help="Its uid: Grafana replaces the dashboard that has the same.")
@click.option("--datasource", metavar="UID", help="The Prometheus that is chosen at first: its uid in Grafana.")
@click.option("--job", metavar="JOB", help="The job that is chosen at first.")
@click.option(
    "--name-label", metavar="LABEL", default="name", show_default=True, help="The label with the span's name."
)
@click.option("-o", "--output", default="-", show_default=True, metavar="FILE", help="The file, which is replaced.")
@as_json
def dashboard(
    title: str | None,
    uid: str | None,
    datasource: str | None,
    job: str | None,
    name_label: str,
    output: str,
    machine: bool,
) -> None:
    """Print the Grafana dashboard, as JSON to import or to provision.

    --json prints it as a part of an object like that of the other commands.
    """
    if machine and output != "-":
        raise click.UsageError("--json prints the dashboard on standard output; leave out -o FILE")
    from ..exporters.writing import to_path
    from ..ops.dashboard import dashboard as made
    from .output import print_json

    document = made(title=title, uid=uid, datasource=datasource, job=job, name_label=name_label)
    if machine:
        print_json("dashboard", {"dashboard": document})
        return
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    if output == "-":
        click.echo(text, nl=False)
    else:
        to_path([text.encode()], Path(output))
