"""What an alert does, from the values of its expression: pending, firing, over.

The states and their times are those of Prometheus (`Eval` of rules/alerting.go): an alert is pending from the first
evaluation that gives its series on, firing at the first one that is `for` later or more, and over at the first one that
does not give it (or, firing, `keep_firing_for` after that).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

__all__ = ["AlertRule", "Episode", "Timeline"]

_LABEL_OF_SERIES: Final = re.compile(r"\{\{\s*\$labels\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


class AlertRule(NamedTuple):
    """An alerting rule. Times in milliseconds."""

    name: str
    group: str
    expr: str
    labels: Mapping[str, str]
    interval: int
    wait: int
    keep: int


class Episode(NamedTuple):
    """One time that an alert held. Unix time in seconds: `since` it held, `start` it fired (None: it was over before),
    `end` it was over (None: it was not). `value`: when it fired, else when it began; `last`: the last one.
    """

    alert: str
    labels: Mapping[str, str]
    since: float
    start: float | None
    end: float | None
    value: float
    last: float


@dataclass(slots=True)
class _Active:
    labels: dict[str, str]
    since: int
    value: float
    seen: int
    last: float
    fired: int | None = None


class Timeline:
    """What an alert does over time. `take` gets the answers of range queries, one after the other in time."""

    def __init__(self, rule: AlertRule) -> None:
        self._rule = rule
        self._active: dict[tuple[tuple[str, str], ...], _Active] = {}
        self.episodes: list[Episode] = []

    def take(self, series: Iterable[Mapping[str, Any]], until: int) -> None:
        """until: the last moment that was asked of, Unix time in ms."""
        rule = self._rule
        for each in series:
            labels = {key: value for key, value in each["metric"].items() if key != "__name__"}
            key = tuple(sorted(labels.items()))
            active = self._active.get(key)
            for at, text in each["values"]:
                now, value = round(at * 1000), float(text)
                if active is not None and self._over(active) < now:
                    self._close(active, self._over(active))
                    active = None
                if active is None:
                    active = _Active(self._labels(labels), now, value, now, value)
                active.seen, active.last = now, value
                if active.fired is None and now - active.since >= rule.wait:
                    active.fired, active.value = now, value
            if active is not None:
                self._active[key] = active
        for key, active in list(self._active.items()):
            if self._over(active) <= until:
                self._close(active, self._over(active))
                del self._active[key]

    def finish(self) -> list[Episode]:
        """All there were; those still active last."""
        for active in self._active.values():
            self._close(active, None)
        self._active.clear()
        return self.episodes

    def _over(self, active: _Active) -> int:
        """The evaluation at which it is over, if it is not given again before."""
        missed = active.seen + self._rule.interval
        if active.fired is None:
            return missed
        return missed + -(-self._rule.keep // self._rule.interval) * self._rule.interval

    def _close(self, active: _Active, end: int | None) -> None:
        self.episodes.append(
            Episode(
                self._rule.name,
                active.labels,
                active.since / 1000,
                None if active.fired is None else active.fired / 1000,
                None if end is None else end / 1000,
                active.value,
                active.last,
            )
        )

    def _labels(self, labels: dict[str, str]) -> dict[str, str]:
        """Those of the alert. Of templates, labels of the series are filled in."""
        own = {
            key: _LABEL_OF_SERIES.sub(lambda found: labels.get(found[1], ""), text)
            for key, text in self._rule.labels.items()
        }
        # As for Prometheus, an empty label is none.
        return {key: text for key, text in {**labels, **own}.items() if text}
