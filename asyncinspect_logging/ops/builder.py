"""The dashboard, built with Grafana's own SDK: needs the extra `grafana`. `dashboard` has what it makes, and does not.

Start from it to add panels of your own:

    from asyncinspect_logging.ops.builder import builder
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    dashboard = builder().with_row(...).with_panel(...).build()
    print(JSONEncoder(sort_keys=True, indent=2).encode(dashboard))
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from string import ascii_uppercase
from typing import Any, Final

from ..errors import MissingExtraError
from .panels import ROWS, Panel, Query

try:
    from grafana_foundation_sdk.builders import (
        bargauge,
        common,
        dashboard,
        piechart,
        prometheus,
        stat,
        table,
        timeseries,
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as options
    from grafana_foundation_sdk.models import dashboard as models
    from grafana_foundation_sdk.models import piechart as pie_options
    from grafana_foundation_sdk.models import prometheus as query_options
except ImportError as error:
    raise MissingExtraError("building the dashboard", "grafana") from error

__all__ = ["build", "builder"]

_SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLUMNS: Final = 24


def build() -> dict[str, Any]:
    """The dashboard as Grafana takes it: what JSON makes of it."""
    built: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(builder().build()))
    _fit(built)
    return built


def _fit(built: dict[str, Any]) -> None:
    """Mend where the SDK, which is of Grafana 11.6, and the schema of Grafana 13 differ."""
    for variable in built["templating"]["list"]:
        # These are of variables of type interval.
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    for panel in built["panels"]:
        if panel["type"] == "table":
            # Now an option of fields; left out, it is off in both.
            panel["options"].pop("footer", None)
        if panel["type"] == "piechart":
            panel["options"]["sort"] = "desc"


def builder() -> dashboard.Dashboard:
    """The dashboard as a builder of the SDK, to which rows, panels and variables may be added."""
    made = (
        dashboard.Dashboard("Async tasks")
        .uid("asyncinspect")
        .description("What asyncio tasks do, from asyncinspect-logging. Hover over the i of a panel for what to do.")
        .tags(["asyncio", "asyncinspect-logging"])
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .editable()
    )
    for variable in _variables():
        made.with_variable(variable)
    top = 0
    number = 0
    for row in ROWS:
        number += 1
        made.with_row(dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=_COLUMNS, x=0, y=top)))
        top += 1
        # Panels that come after the 24th column begin a line of their own.
        ends = list(accumulate(panel.width for panel in row.panels))
        for panel, end in zip(row.panels, ends, strict=True):
            number += 1
            left = (end - panel.width) % _COLUMNS
            line = (end - panel.width) // _COLUMNS
            place = models.GridPos(h=row.height, w=panel.width, x=left, y=top + line * row.height)
            made.with_panel(_panel(panel).id(number).grid_pos(place))
        top += -(-ends[-1] // _COLUMNS) * row.height
    return made


def _variables() -> list[Any]:
    every = models.VariableOption(selected=True, text=["All"], value=["$__all"])

    def labels(name: str, label: str, of: str) -> dashboard.QueryVariable:
        return (
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(_SOURCE)
            .query({"qryType": 1, "query": f"label_values({of}, {name})", "refId": name})
            # With several values to choose from, Grafana escapes what is special in a regular expression, as in the
            # name GET /users/{id}.
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(every)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
        )

    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        labels("job", "Job", "async_inspect_build_info"),
        labels("instance", "Instance", 'async_inspect_build_info{job=~"$job"}'),
        labels("name", "Name", 'async_inspect_tasks_total{job=~"$job", instance=~"$instance"}').description(
            "The span's name. Panels of whole processes (states, events, loop, drops) do not heed it."
        ),
    ]


def _panel(panel: Panel) -> Any:
    made = _KINDS[panel.kind](panel)
    made.title(panel.title).description(panel.description).datasource(_SOURCE).unit(panel.unit)
    if panel.decimals is not None:
        made.decimals(panel.decimals)
    if panel.empty:
        made.no_value(panel.empty)
    for place, query in zip(ascii_uppercase, panel.queries, strict=False):
        made.with_target(_target(place, query))
    for series, colour in panel.colours.items():
        made.override_by_name(series, [models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})])
    return made


def _target(place: str, query: Query) -> prometheus.Dataquery:
    made = (
        prometheus.Dataquery()
        .datasource(_SOURCE)
        .ref_id(place)
        .expr(query.expr)
        .legend_format(query.legend)
        .editor_mode(query_options.QueryEditorMode.CODE)
    )
    made = made.range() if query.form == "range" else made.instant()
    formats = query_options.PromQueryFormat
    return made.format({"table": formats.TABLE, "buckets": formats.HEATMAP}.get(query.form, formats.TIME_SERIES))


def _thresholds(panel: Panel, below: str | None = None) -> dashboard.ThresholdsConfig:
    """The first threshold is what is below all others, and has no value."""
    steps = list(panel.thresholds)
    first = models.Threshold(color=below or steps.pop(0)[1])
    rest = [models.Threshold(value=float(value), color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps([first, *rest])


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().values(False).calcs(["lastNotNull"]).fields("")


def _stat(panel: Panel) -> stat.Panel:
    line = options.BigValueGraphMode.AREA if panel.queries[0].form == "range" else options.BigValueGraphMode.NONE
    return (
        stat.Panel()
        .reduce_options(_last())
        .graph_mode(line)
        .color_mode(options.BigValueColorMode.VALUE)
        .justify_mode(options.BigValueJustifyMode.AUTO)
        .text_mode(options.BigValueTextMode.VALUE)
        .orientation(options.VizOrientation.AUTO)
        .wide_layout(True)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds(panel))
    )


def _graph(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
        .draw_style(options.GraphDrawStyle.LINE)
        .line_interpolation(options.LineInterpolation.STEP_AFTER if panel.steps else options.LineInterpolation.LINEAR)
        .line_width(1)
        .fill_opacity(50 if panel.stack else 10)
        .show_points(options.VisibilityMode.NEVER)
        .span_nulls(False)
        .min(0)
    )
    if panel.stack:
        made.stacking(common.StackingConfig().group("A").mode(options.StackingMode(panel.stack)))
    if panel.thresholds:
        made.thresholds(_thresholds(panel, below="transparent"))
        made.thresholds_style(common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED))
    return made


def _bars(panel: Panel) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .reduce_options(_last())
        .orientation(options.VizOrientation.HORIZONTAL)
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .value_mode(options.BarGaugeValueMode.TEXT)
        .show_unfilled(True)
        .min(0)
        .min_viz_height(8)
        .min_viz_width(0)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color("blue"))
    )


def _pie(panel: Panel) -> piechart.Panel:
    return (
        piechart.Panel()
        .reduce_options(_last())
        .pie_type(pie_options.PieChartType.DONUT)
        .display_labels([])
        .legend(
            piechart.PieChartLegendOptions()
            .display_mode(options.LegendDisplayMode.TABLE)
            .placement(options.LegendPlacement.RIGHT)
            .show_legend(True)
            .calcs([])
            .values([pie_options.PieChartLegendValues.VALUE, pie_options.PieChartLegendValues.PERCENT])
        )
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.SINGLE).sort(options.SortOrder.NONE))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    )


def _table(panel: Panel) -> table.Panel:
    """One row for each label set, of all queries; `merge` puts them side by side."""
    several = len(panel.queries) > 1
    fields = {column.of: column.of.replace("#", "Value #") if several else column.of for column in panel.columns}
    if not several:
        fields["#A"] = "Value"
    sorted_by = next(column for column in panel.columns if column.heading.endswith("↓"))
    heading = sorted_by.heading.removesuffix(" ↓")
    order: dict[str, object] = {fields[column.of]: place for place, column in enumerate(panel.columns)}
    names: dict[str, object] = {fields[column.of]: column.heading.removesuffix(" ↓") for column in panel.columns}
    made = (
        table.Panel()
        .show_header(True)
        .cell_height(options.TableCellHeight.SM)
        .filterable(False)
        .with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            models.DataTransformerConfig(
                id_val="sortBy", options={"fields": {}, "sort": [{"field": fields[sorted_by.of], "desc": True}]}
            )
        )
        .with_transformation(models.DataTransformerConfig(id_val="limit", options={"limitField": 10}))
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "includeByName": {},
                    "indexByName": order,
                    "renameByName": names,
                },
            )
        )
        .sort_by([common.TableSortByFieldState().display_name(heading).desc(True)])
    )
    for column in panel.columns:
        properties = []
        if column.unit:
            properties.append(models.DynamicConfigValue("unit", column.unit))
        if column.unit == "short":
            # increase() gives fractions of what is counted one by one.
            properties.append(models.DynamicConfigValue("decimals", 0))
        if column.width:
            properties.append(models.DynamicConfigValue("custom.width", column.width))
        if properties:
            made.override_by_name(column.heading.removesuffix(" ↓"), properties)
    return made


#: The panels of the SDK have no type in common that has their methods.
_KINDS: Final[dict[str, Callable[[Panel], Any]]] = {
    "stat": _stat,
    "graph": _graph,
    "bars": _bars,
    "pie": _pie,
    "table": _table,
}
