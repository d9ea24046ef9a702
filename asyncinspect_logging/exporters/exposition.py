"""The families of the catalogue as `prometheus_client` metric objects, and directly as text.

The text of a family's samples is the same in the formats 0.0.4 and OpenMetrics; only the lines above it differ. It is
byte for byte what prometheus_client gives for the metric objects, at a fraction of the time: all lines of a histogram
are one template, which the `%` operator fills with the numbers before the span's name is put in, and a histogram that
has not changed since the last page keeps its text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, UnknownMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from ..histograms import cumulative
from ..snapshot import Histogram, Snapshot
from .combine import printable
from .exemplars import Found
from .families import DURATIONS, FAMILIES, Family, Group, Labels, version_of_package

__all__ = ["Renderer"]

_NO_EXAMPLES: Final[Found] = {}
_go: Final[Callable[[float], str]] = floatToGoString

#: From here on prometheus_client writes a value with an exponent, as Go does.
_EXPONENT_FROM: Final = 1_000_000

#: Where a label value goes. It stands in templates only, so a name that has the character is safe.
_GAP: Final = "\0"

_KINDS: Final[dict[str, Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "unknown": UnknownMetricFamily,
}


def _number(value: float) -> str:
    # The shortcuts are what prometheus_client gives for these, in a fraction of the time.
    if 0 <= value < _EXPONENT_FROM:
        kind = type(value)
        if kind is int:
            return f"{value}.0"
        if kind is float:
            return repr(value)
    return _go(value)


class _Escaped(dict[str, str]):
    """Label values as they stand on a page, each escaped once a page."""

    def __missing__(self, value: str) -> str:
        self[value] = escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        return escaped


def _head(name: str, kind: str, help: str, unit: str = "") -> str:
    return f"# HELP {name} {help}\n# TYPE {name} {kind}\n" + (f"# UNIT {name} {unit}\n" if unit else "")


def _series(name: str, labels: dict[str, str]) -> str:
    """A sample line up to its value."""
    text = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{text}}} " if text else f"{name} "


class _Form:
    """A family under the user's options."""

    def __init__(self, family: Family, name_label: str, bounds: tuple[float, ...]) -> None:
        self.family = family
        self.labels = tuple(name_label if label == "name" else label for label in family.labels)
        self.bounds = bounds
        self.les = [*map(_go, bounds), "+Inf"]
        self.text_head = _head(family.sample, "untyped" if family.type == "unknown" else family.type, family.help)
        self.openmetrics_head = _head(family.name, family.type, family.help, family.unit)
        # The first piece of a line, and after it for each label in the line's order: its index, the piece behind it.
        start, *rest = _series(family.sample, dict.fromkeys(self.labels, _GAP)).split(_GAP)
        order = sorted(range(len(self.labels)), key=self.labels.__getitem__)
        self._start, self._pieces = start, list(zip(order, rest, strict=True))
        # (label values but the first, whether counts need an exponent) -> template; there are as many as states
        self._templates: dict[tuple[Labels, bool], str] = {}
        # label values of the last page -> histogram and its text, which a cached page holds too
        self._last: dict[Labels, tuple[Histogram, str]] = {}

    def metric(self, snapshot: Snapshot | None, found: Found = _NO_EXAMPLES) -> Metric:
        """The family as a metric object, without samples if there is no snapshot."""
        family = self.family
        metric = _KINDS[family.type](family.name, family.help, labels=self.labels, unit=family.unit)
        for labels, value in family.rows(snapshot) if snapshot else ():
            if family.type == "histogram":
                buckets: list[Any] = list(zip(self.les, cumulative(value, self.bounds), strict=True))
                for index, example in found.get((family.name, labels), {}).items():
                    ids = {"span_id": example.span_id, "trace_id": example.trace_id}
                    buckets[index] = (*buckets[index], Exemplar(ids, example.value, example.at))
                metric.add_metric(labels, buckets, value.sum)
            else:
                metric.add_metric(labels, value)
        assert isinstance(metric, Metric)
        return metric

    def blocks(self, snapshot: Snapshot, escaped: _Escaped) -> list[str]:
        """The family's sample lines, in one string or more for each label set."""
        rows = self.family.rows(snapshot)
        return self._histograms(rows, escaped) if self.family.type == "histogram" else self._numbers(rows, escaped)

    def _numbers(self, rows: Iterable[tuple[Labels, Any]], escaped: _Escaped) -> list[str]:
        blocks = []
        for labels, value in rows:
            blocks.append(self._start)
            for index, piece in self._pieces:
                blocks += (escaped[labels[index]], piece)
            blocks.append(f"{_number(value)}\n")
        return blocks

    def _histograms(self, rows: Iterable[tuple[Labels, Histogram]], escaped: _Escaped) -> list[str]:
        blocks: list[str] = []
        last, self._last = self._last, {}
        for labels, histogram in rows:
            entry = last.pop(labels, None)
            if entry is None or entry[0] != histogram:
                # First the old text goes: else all of them, old and new, would be there at a time.
                entry = None
                entry = (histogram, self._histogram(labels, histogram, escaped))
            self._last[labels] = entry
            blocks.append(entry[1])
        return blocks

    def with_examples(self, blocks: list[str], found: Found) -> list[str]:
        """The blocks that `blocks` gave last, with exemplars."""
        if self.family.type != "histogram":
            return blocks
        name, these = self.family.name, []
        for labels, text in zip(self._last, blocks, strict=True):
            examples = found.get((name, labels))
            if examples:
                lines = text.split("\n")
                for index, example in examples.items():
                    lines[index] += example.text()
                text = "\n".join(lines)
            these.append(text)
        return these

    def _histogram(self, labels: Labels, histogram: Histogram, escaped: _Escaped) -> str:
        counts: tuple[Any, ...] = cumulative(histogram, self.bounds)
        large = counts[-1] >= _EXPONENT_FROM
        if large:
            counts = tuple(map(_number, counts))
        key = (labels[1:], large)
        template = self._templates.get(key) or self._template(*key)
        text = template % (*counts, counts[-1], _number(histogram.sum))
        return text.replace(_GAP, escaped[labels[0]]) if labels else text

    def _template(self, rest: Labels, large: bool) -> str:
        name, count = self.family.name, "%s" if large else "%d.0"
        labels = dict(zip(self.labels, (_GAP, *rest), strict=False))
        lines = [f"{_series(f'{name}_bucket', {**labels, 'le': le})}{count}\n" for le in self.les]
        lines += [f"{_series(f'{name}_count', labels)}{count}\n", f"{_series(f'{name}_sum', labels)}%s\n"]
        self._templates[rest, large] = template = "".join(lines)
        return template


class Renderer:
    """Turns snapshots into the families of `groups`.

    `name_label` is spelled in place of the label `name`; `duration_bounds` (seconds) are those of the task durations.
    `blocks` is not to be called by two threads at a time.
    """

    def __init__(
        self,
        groups: Collection[Group] = ("task", "event", "memory", "health"),
        name_label: str = "name",
        duration_bounds: tuple[float, ...] = DURATIONS.bounds,
    ) -> None:
        version_of_package()
        self._forms = [
            _Form(family, name_label, duration_bounds if family is DURATIONS else family.bounds)
            for family in FAMILIES
            if family.group in groups
        ]

    def describe(self) -> Iterator[Metric]:
        """The families without samples."""
        return (form.metric(None) for form in self._forms)

    def metrics(self, snapshot: Snapshot, found: Found = _NO_EXAMPLES) -> list[Metric]:
        """The families with their samples, and the exemplars that were found."""
        snapshot = printable(snapshot)
        return [form.metric(snapshot, found) for form in self._forms]

    def blocks(self, snapshot: Snapshot) -> list[list[str]]:
        """The text of each family's samples, in pieces, for `page`."""
        snapshot, escaped = printable(snapshot), _Escaped()
        return [form.blocks(snapshot, escaped) for form in self._forms]

    def with_examples(self, blocks: list[list[str]], found: Found) -> list[list[str]]:
        """What `blocks` gave last, with the exemplars that were found: for a page of OpenMetrics."""
        return [form.with_examples(lines, found) for form, lines in zip(self._forms, blocks, strict=True)]

    def page(self, blocks: Iterable[list[str]], *, openmetrics: bool = False) -> bytes:
        """The text of all families, without the `# EOF` line that ends an OpenMetrics page."""
        parts: list[str] = []
        for form, lines in zip(self._forms, blocks, strict=True):
            parts.append(form.openmetrics_head if openmetrics else form.text_head)
            parts += lines
        return "".join(parts).encode()
