"""What Grafana does between a dashboard and Prometheus: variables are put into queries, and the queries are asked."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

#: What `All` stands for, as the dashboard says.
ALL = {"job": ".*", "instance": ".*", "name": ".*"}


class Asked(NamedTuple):
    """A panel and one of its queries."""

    panel: dict[str, Any]
    target: dict[str, Any]

    @property
    def key(self) -> str:
        return f"{self.panel['title']} {self.target['refId']}"


def queries(dashboard: Mapping[str, Any]) -> Iterator[Asked]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield Asked(panel, target)


def chosen(values: Sequence[str]) -> str:
    """The values of a variable that takes several, in a query: what is special in a regular expression is escaped, once
    for it and once for the string that it stands in, as Grafana's data source does (its prometheusSpecialRegexEscape).
    """
    escaped = [re.sub(r"[$^*{}\[\]+?.()|]", r"\\\\\g<0>", value.replace("\\", "\\" * 4)) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def filled(promql: str, variables: Mapping[str, str] = ALL, *, span: float, rate: float) -> str:
    """A query with what it is asked with: the time range, and the interval for rates, in seconds."""
    values = {**variables, "__range": f"{round(span)}s", "__rate_interval": f"{round(rate)}s"}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], promql)


def ask(address: str, promql: str, at: float) -> list[dict[str, Any]]:
    """The series of an instant query: `metric` and `value`."""
    return _ask(address, "query", query=promql, time=at)


def ask_range(address: str, promql: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
    """The series of a range query: `metric` and `values`."""
    return _ask(address, "query_range", query=promql, start=start, end=end, step=step)


def _ask(address: str, call: str, **arguments: Any) -> list[dict[str, Any]]:
    body = urllib.parse.urlencode(arguments).encode()
    with urllib.request.urlopen(f"http://{address}/api/v1/{call}", body, timeout=30) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return result
