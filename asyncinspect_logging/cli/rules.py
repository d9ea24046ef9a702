"""`rules`: alerting and recording rules for Prometheus."""

from __future__ import annotations

import click

from ..ops.rules import RUNBOOKS, SEVERITIES, rule_groups, rules_text
from .output import print_json, to_stdout
from .reading import as_json

__all__ = ["rules"]


def _severities(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        severity, sign, name = value.partition("=")
        if not sign or severity not in SEVERITIES:
            raise click.BadParameter(f"{value!r} is not critical=NAME or warning=NAME", ctx, param)
        found[severity] = name
    return found


@click.command(
    epilog="""\b
Examples:
  asyncinspect rules --alerts > /etc/prometheus/async-inspect-alerts.yml
  asyncinspect rules --recording > /etc/prometheus/async-inspect-recording.yml
  asyncinspect rules --job shop --prefix Shop --severity critical=page --severity warning=ticket
  asyncinspect rules --alerts --runbooks https://wiki.example/async-inspect-alerts
"""
)
@click.option("--alerts", is_flag=True, help="The alerting rules.")
@click.option("--recording", is_flag=True, help="The recording rules. Without either option: both groups.")
@click.option(
    "--job", metavar="NAME", help="Only of targets with this label job.  [default: all that have the metrics]"
)
@click.option("--prefix", default="", metavar="TEXT", help="What the names of the alerts begin with.")
@click.option(
    "--severity",
    "severities",
    multiple=True,
    callback=_severities,
    metavar="LEVEL=NAME",
    help="Say this for critical, or for warning, in the label severity.",
)
@click.option(
    "--runbooks", default=RUNBOOKS, metavar="URL", show_default=True, help="The page with the alerts' headings."
)
@as_json
def rules(
    alerts: bool,
    recording: bool,
    job: str | None,
    prefix: str,
    severities: dict[str, str],
    runbooks: str,
    machine: bool,
) -> None:
    """Print alerting and recording rules for Prometheus."""
    both = alerts == recording
    groups = rule_groups(
        alerts=both or alerts,
        recordings=both or recording,
        job=job,
        prefix=prefix,
        severities=severities,
        runbooks=runbooks,
    )
    if machine:
        print_json("rules", {"groups": groups})
        return
    text = rules_text(groups)
    with to_stdout() as stream:
        stream.write(text if hasattr(stream, "encoding") else text.encode())
