"""The options of the Prometheus exporter, checked: each error names the option, its value and the fix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final, SupportsFloat, TypedDict

from prometheus_client import CollectorRegistry

from ..errors import ConfigError
from .families import FAMILIES

__all__ = ["AllOptions", "Options", "check_buckets", "check_label", "check_seconds"]

_RESERVED_LABELS: Final = {"le"}.union(*(family.labels for family in FAMILIES)) - {"name"}


class Options(TypedDict, total=False):
    """The options of a `PrometheusExporter` but for its registry."""

    path: str
    port: int | None
    update_interval: float
    task_metrics: bool
    event_metrics: bool
    memory_metrics: bool
    health_metrics: bool
    duration_buckets: Sequence[float]
    name_label: str
    exemplars: bool
    scrape_timeout: float


class AllOptions(Options, total=False):
    registry: CollectorRegistry | None


def _finite(value: object) -> float | None:
    """`value` as a float, or None if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def check_seconds(option: str, value: object, *, zero: bool) -> float:
    """A finite number of seconds above 0, or from 0 on if `zero`."""
    number = _finite(value)
    if number is None or number < 0 or (number == 0 and not zero):
        least = "from 0 on" if zero else "above 0"
        raise ConfigError(f"{option}={value!r} is not a number of seconds {least}; write for example {option}=1.0")
    return number


def check_buckets(value: object) -> tuple[float, ...]:
    """Bucket bounds in seconds: numbers from 0 on, each above the one before, at least one, +Inf not among them."""
    fix = "write upper bounds in seconds such as (0.01, 0.1, 1.0)"
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable):
        raise ConfigError(f"duration_buckets={value!r} is not a list of numbers; {fix}")
    entries = list(value)
    if not entries:
        raise ConfigError(f"duration_buckets={value!r} is empty; {fix}")
    bounds: list[float] = []
    for entry in entries:
        bound = _finite(entry)
        if bound is None or bound < 0:
            what = "not a finite number from 0 on (+Inf is added by itself)"
            raise ConfigError(f"duration_buckets={value!r} has {entry!r}, which is {what}; {fix}")
        if bounds and bound <= bounds[-1]:
            raise ConfigError(
                f"duration_buckets={value!r} has {entry!r} after {bounds[-1]!r}; sort it, each bound once"
            )
        bounds.append(bound)
    return tuple(bounds)


def check_label(value: object) -> str:
    """A label name that Prometheus takes and that no family uses otherwise."""
    if not isinstance(value, str) or not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", value) or value.startswith("__"):
        what = "letters, digits and _, not beginning with a digit or __"
        raise ConfigError(f'name_label={value!r} is not a label name ({what}); write for example "task_name"')
    if value in _RESERVED_LABELS:
        raise ConfigError(
            f'name_label={value!r} is a label that the families use already; write for example "task_name"'
        )
    return value
