"""For jobs that end before anybody scrapes them: to a Pushgateway, or into a file for the node exporter.

Both by prometheus_client's own functions, which take the exporter's `registry` as well as any.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

import prometheus_client

from ..diagnostics import warn_once
from ..errors import ConfigError
from .options import check_seconds
from .pages import Updater
from .prometheus import PrometheusExporter

__all__ = ["PushJob", "delete", "push", "write_textfile"]

#: Labels of ours, which a grouping key would overwrite: several series would become one, and the gateway refuses that.
_TAKEN: Final = frozenset({"name", "state", "type", "lint", "reason", "component", "version", "le", "job"})

Handler = Callable[..., Callable[[], None]]


def _handler(
    url: str, method: str, timeout: float | None, headers: Sequence[tuple[str, str]], data: bytes
) -> Callable[[], None]:
    """Like prometheus_client's own, which leaves the answer, and its connection, to the garbage collector."""

    def handle() -> None:
        with build_opener().open(Request(url, data, dict(headers), method=method), timeout=timeout):
            pass

    return handle


def push(
    gateway: str,
    job: str,
    *,
    exporter: PrometheusExporter | None = None,
    grouping_key: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    handler: Handler = _handler,
) -> None:
    """Put the metrics in the place of those that the gateway has under this job and grouping key.

    gateway: "host:port" or a URL. exporter: what is pushed, with everything in its registry; None: an exporter of
        `Inspector.default()`. timeout: in seconds. handler: how prometheus_client is to send it, such as a
        `basic_auth_handler`.

    Raises ConfigError for what cannot be used, and OSError where the gateway does not take it.
    """
    where = _where(gateway, job, grouping_key, timeout, handler)
    if exporter is not None:
        prometheus_client.push_to_gateway(registry=exporter.registry, **where)
        return
    with PrometheusExporter() as own:
        prometheus_client.push_to_gateway(registry=own.registry, **where)


def delete(
    gateway: str,
    job: str,
    *,
    grouping_key: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    handler: Handler = _handler,
) -> None:
    """Delete what the gateway has under this job and grouping key, and would keep for ever. Raises like `push`."""
    prometheus_client.delete_from_gateway(**_where(gateway, job, grouping_key, timeout, handler))


class PushJob:
    """Pushes the metrics of the job that is its `with` block: at the end, whether it succeeds or fails, and before that
    every `interval` seconds, if there is one, from a thread of its own.

    delete_on_success: a job that succeeded leaves nothing at the gateway, and so what is there are jobs that failed, or
        go on. The other arguments are those of `push`.

    A gateway that cannot be reached does not fail the job: it is logged, and counted in `errors`. Raises ConfigError
    where an argument cannot be used.
    """

    def __init__(
        self,
        gateway: str,
        job: str,
        *,
        exporter: PrometheusExporter | None = None,
        grouping_key: Mapping[str, str] | None = None,
        interval: float | None = None,
        delete_on_success: bool = False,
        timeout: float = 10.0,
        handler: Handler = _handler,
    ) -> None:
        self._where = _where(gateway, job, grouping_key, timeout, handler)
        self._interval = None if interval is None else check_seconds("interval", interval, zero=False)
        self._delete = delete_on_success
        self._own = exporter is None
        self.exporter = PrometheusExporter() if exporter is None else exporter
        #: Pushes and deletions that failed.
        self.errors = 0
        self._updater: Updater | None = None
        # So that what is pushed last is the latest.
        self._lock = threading.Lock()

    def __enter__(self) -> PushJob:
        if self._interval is not None:
            self._updater = Updater(self.push, self._interval)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._updater is not None:
            self._updater.stop()
            self._updater = None
        if kind is None and self._delete:
            self._do(lambda: prometheus_client.delete_from_gateway(**self._where))
        else:
            self.push()
        if self._own:
            self.exporter.close()

    def push(self) -> None:
        """Push now. Raises nothing."""
        self._do(lambda: prometheus_client.push_to_gateway(registry=self.exporter.registry, **self._where))

    def _do(self, action: Callable[[], None]) -> None:
        with self._lock:
            try:
                action()
            except Exception as error:
                self.errors += 1
                gateway = self._where["gateway"]
                warn_once("push", f"{gateway} {type(error).__name__}", "the push to %s failed: %r", gateway, error)
                if isinstance(error, HTTPError):
                    error.close()  # it is the answer, with its connection


def write_textfile(path: str | os.PathLike[str], *, exporter: PrometheusExporter | None = None) -> None:
    """Write the metrics to a file that the node exporter's textfile collector reads: all at once, and readable for
    everybody whatever the umask, since it runs as another user.

    path: ends with ".prom", as it takes no other. exporter: see `push`.

    Raises ConfigError for another path, and OSError where it cannot be written.
    """
    name = os.fspath(path)
    if not isinstance(name, str) or not name.endswith(".prom") or "\0" in name:
        raise ConfigError(
            f"path={path!r} is not read by the node exporter; write a path that ends with .prom, such as "
            '"/var/lib/node_exporter/textfile/import.prom"'
        )
    if exporter is None:
        with PrometheusExporter() as own:
            write_textfile(path, exporter=own)
        return
    folder, file = os.path.split(name)
    temporary = os.path.join(folder, f".{file[:40]}.{secrets.token_hex(8)}")
    try:
        prometheus_client.write_to_textfile(temporary, exporter.registry)
        os.chmod(temporary, 0o644)
        os.replace(temporary, name)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _where(
    gateway: Any, job: Any, grouping_key: Mapping[str, str] | None, timeout: float, handler: Handler
) -> dict[str, Any]:
    """The arguments of prometheus_client, checked."""
    url = gateway if isinstance(gateway, str) and "://" in gateway else f"http://{gateway}"
    try:
        parts = urlsplit(url)
        usable = isinstance(gateway, str) and parts.scheme in ("http", "https") and bool(parts.hostname)
        usable = usable and (parts.port is None or parts.port > 0) and gateway.isprintable() and " " not in gateway
    except ValueError:
        usable = False
    if usable and "@" in parts.netloc:
        # It is not shown, since it may be a password.
        raise ConfigError(
            "gateway has a user before its @, which is not sent; write handler= for that, with "
            "prometheus_client.exposition.basic_auth_handler"
        )
    if not usable:
        raise ConfigError(f'gateway={gateway!r} is not where a Pushgateway can be; write "localhost:9091"')
    if not isinstance(job, str) or not job:
        raise ConfigError(f'job={job!r} is not the name of a job; write for example job="nightly_import"')
    if grouping_key is not None and not isinstance(grouping_key, Mapping):
        raise ConfigError(f'grouping_key={grouping_key!r} is no mapping of labels; write {{"instance": "host1"}}')
    key = dict(grouping_key or {})
    for label, value in key.items():
        if not isinstance(label, str) or not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", label) or label.startswith("__"):
            raise ConfigError(f'grouping_key has {label!r}, which is not a label name; write {{"instance": "host1"}}')
        if label in _TAKEN:
            raise ConfigError(f"grouping_key has {label!r}, which the metrics use themselves; call it otherwise")
        if not isinstance(value, str):
            raise ConfigError(f"grouping_key has {value!r} for {label!r}, which is not a text; write str(…)")
    return {
        "gateway": gateway,
        "job": job,
        "grouping_key": key,
        "timeout": check_seconds("timeout", timeout, zero=False),
        "handler": handler,
    }
