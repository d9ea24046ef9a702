"""How much a span may hold: the limits of the OpenTelemetry SDK, which its environment variables set."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

__all__ = ["Limits", "limited", "limited_events"]

_Event = tuple[int, str, dict[str, Any]]


class Limits(NamedTuple):
    """What a span holds at most; None: no limit. `length` is that of a text among the attributes, in characters;
    `event_attributes` are those of one event.
    """

    attributes: int | None = 128
    events: int | None = 128
    links: int | None = 128
    length: int | None = None
    event_attributes: int | None = 128


def _cut(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value[:length]
    return [_cut(item, length) for item in value] if isinstance(value, list) else value


def limited(values: Mapping[str, Any], limits: Limits) -> tuple[dict[str, Any], int]:
    """The first of the attributes, their texts cut, and how many there is no room for."""
    kept = dict(islice(values.items(), limits.attributes))
    if limits.length is not None:
        kept = {key: _cut(value, limits.length) for key, value in kept.items()}
    return kept, len(values) - len(kept)


def limited_events(events: list[_Event], limits: Limits) -> tuple[list[_Event], int]:
    """The last of the events, which tell how it ended, and how many there is no room for."""
    most = limits.events
    kept = events if most is None or len(events) <= most else events[len(events) - most :]
    dropped = len(events) - len(kept)
    if limits.length is not None or limits.event_attributes is not None:
        inner = limits._replace(attributes=limits.event_attributes)
        kept = [(at, name, limited(values, inner)[0]) for at, name, values in kept]
    return kept, dropped
