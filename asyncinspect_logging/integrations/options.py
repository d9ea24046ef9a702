"""The options that the middlewares share, checked: each error names the option, its value and the fix."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ConfigError

__all__ = ["check_call", "check_metrics", "metrics_exporter", "paths_pattern"]


def check_call(option: str, value: object, of: str) -> None:
    if value is not None and not callable(value):
        raise ConfigError(f"{option}={value!r} cannot be called; give a function of {of}")


def paths_pattern(exclude: Iterable[str]) -> Callable[[str], object] | None:
    """Whether a path is one of those, with "*" for anything; None where there are none."""
    paths: list[Any] = [exclude] if isinstance(exclude, str) else list(exclude)
    for path in paths:
        if not isinstance(path, str) or not path.startswith(("/", "*")):
            raise ConfigError(f'exclude={path!r} is no path; write for example exclude=["/health", "/static/*"]')
    return re.compile("|".join(fnmatch.translate(path) for path in paths)).match if paths else None


def check_metrics(path: object, exporter: object) -> str | None:
    """The path to serve the metrics at, without a slash at its end."""
    if path is None:
        if exporter is not None:
            raise ConfigError(f'exporter={exporter!r} has no path to be served at; write metrics="/metrics" too')
        return None
    if not isinstance(path, str) or not path.startswith("/") or path == "/" or set(path) & set(" ?#"):
        raise ConfigError(f'metrics={path!r} is no path to serve the metrics at; write for example metrics="/metrics"')
    return path.removesuffix("/")


def metrics_exporter(exporter: Any) -> Any:
    """`exporter`, or a new one of `Inspector.default()`."""
    if exporter is None:
        from ..exporters.prometheus import PrometheusExporter

        return PrometheusExporter()
    if not hasattr(exporter, "asgi_app"):
        raise ConfigError(f"exporter={exporter!r} has no metrics page; give a PrometheusExporter")
    return exporter
