"""The Grafana dashboard: the file that `builder` wrote, with a title, a data source and so on of the user's choice."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any, Final

from ..errors import ConfigError
from ..exporters.options import check_label

__all__ = ["FILE", "dashboard"]

#: In this package; written by tools/dashboard.py.
FILE: Final = "dashboard.json"

#: The label `name`, and neither the variable nor a part of a word.
_NAME: Final = re.compile(r"(?<![\w$])name(?!\w)")


def dashboard(
    *,
    title: str | None = None,
    uid: str | None = None,
    datasource: str | None = None,
    job: str | None = None,
    name_label: str = "name",
) -> dict[str, Any]:
    """The dashboard, for Grafana's import, its HTTP API, or a folder that it is provisioned from.

    title, uid: of the dashboard; Grafana replaces one with the same uid, which is 1 to 40 letters, digits, - and _.
    datasource: uid or name of the Prometheus that is chosen at first; else Grafana's default.
    job: the job that is chosen at first; else all.
    name_label: as in `PrometheusExporter(name_label=…)`.
    Raises ConfigError for what Grafana or Prometheus does not take.
    """
    text = (files(__package__) / FILE).read_text("utf-8")
    made: dict[str, Any] = json.loads(text)
    if title is not None:
        made["title"] = _not_empty("title", title)
    if uid is not None:
        if not re.fullmatch("[a-zA-Z0-9_-]{1,40}", uid):
            raise ConfigError(
                f"uid={uid!r} is not 1 to 40 letters, digits, - and _; write for example uid='async-shop'"
            )
        made["uid"] = uid
    variables = {variable["name"]: variable for variable in made["templating"]["list"]}
    if datasource is not None:
        value = _not_empty("datasource", datasource)
        variables["datasource"]["current"] = {"selected": True, "text": value, "value": value}
    if job is not None:
        value = _not_empty("job", job)
        variables["job"]["current"] = {"selected": True, "text": [value], "value": [value]}
    if check_label(name_label) != "name":
        _rename(made, name_label)
    return made


def _not_empty(option: str, value: str) -> str:
    if not value.strip():
        raise ConfigError(f"{option}={value!r} is empty; leave it out for the default")
    return value


def _rename(made: dict[str, Any], label: str) -> None:
    """Spell the label `name` differently wherever a query, a legend or a table means it."""
    for variable in made["templating"]["list"]:
        if variable["name"] == "name":
            variable["query"]["query"] = _NAME.sub(label, variable["query"]["query"])
    for panel in made["panels"]:
        for target in panel.get("targets", ()):
            target["expr"] = _NAME.sub(label, target["expr"])
            target["legendFormat"] = _NAME.sub(label, target["legendFormat"])
        for transformation in panel.get("transformations", ()):
            if transformation["id"] == "organize":
                for option in ("indexByName", "renameByName"):
                    columns = transformation["options"][option]
                    transformation["options"][option] = {_NAME.sub(label, key): to for key, to in columns.items()}
