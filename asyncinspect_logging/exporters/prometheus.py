"""Prometheus: the metrics of one or more inspectors as a collector, a text, a server and an app to mount."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Unpack

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from ..catalogue import DURATION_BOUNDS
from ..config import Config, check_port, parse_address
from ..errors import ConfigError
from ..feeding import is_fed
from ..process import after_fork
from ..snapshot import Snapshot
from ..unheard import Unheard
from . import scrape
from .bounded import Bounded
from .combine import combine
from .exemplars import Exemplars
from .exposition import Renderer
from .families import Group
from .options import AllOptions, Options, check_buckets, check_label, check_seconds
from .pages import PageMaker, Source, Updater
from .protection import Protection, ServerOptions
from .server import MetricsServer, check_path

if TYPE_CHECKING:
    from .multiprocess import Processes

__all__ = ["PrometheusExporter", "Source"]

_PORT_VARIABLE: Final = "ASYNC_INSPECT_METRICS_PORT"
_FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


class _Sum:
    """Several sources as one."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = self._sources = sources
        self.config = getattr(sources[0], "config", None)

    def snapshot(self, *, tasks: bool = True) -> Snapshot:
        return combine([source.snapshot(tasks=tasks) for source in self._sources])

    def add_duration_bounds(self, bounds: Sequence[float], /) -> None:
        for source in self._sources:
            source.add_duration_bounds(bounds)


def _all_processes(source: Source) -> Processes | None:
    if not os.environ.get(_FOLDER_VARIABLE):
        return None
    from .multiprocess import join

    return join(source.sources if isinstance(source, _Sum) else [source])


def _endings(source: Any) -> list[Callable[[], Iterable[Any]]]:
    """What gives the newest finished tasks of an inspector, or of each of several."""
    sources: Sequence[Any] = source.sources if isinstance(source, _Sum) else [source]
    return [one.endings for one in sources if callable(getattr(one, "endings", None))]


def _default_inspector() -> Source:
    # Not at the top: an exporter of given inspectors needs no other module of the library's left side.
    from ..inspector import Inspector

    return Inspector.default()


class PrometheusExporter:
    """Exports an inspector's counters to Prometheus.

    It is a prometheus_client collector and registers itself in `registry`; without one, in a registry of its own,
    never in prometheus_client's global one. `gather`, the server and the apps give the whole registry, the families of
    the inspector first.

    inspector: what to export; None is `Inspector.default()`.
    path, port: what `start_server` serves the metrics at. Without a port it is where the inspector's
        `config.metrics_port` says, by default port 9090; of several inspectors, the first one's.
    update_interval: seconds that the server and the apps may serve the same page again; 0 makes every scrape fresh.
        `gather` and the registry's own scrapes are always fresh.
    task_metrics, event_metrics, memory_metrics, health_metrics: False leaves out the families of that group.
    duration_buckets: upper bounds of `async_inspect_task_duration_seconds`, in seconds, without +Inf. Bounds beyond
        the default ones are exact for tasks that end after the exporter was made; earlier ones count at the next
        default bound above theirs.
    name_label: how the label `name` is spelled, for example "task_name".
    scrape_timeout: seconds that a scrape may take; one that takes longer, since a collector in the registry is stuck,
        is answered with 503. Prometheus waits 10 seconds by default.
    exemplars: True puts trace id and span id of the last task beside the buckets of durations and polls, on pages of
        OpenMetrics, for whoever exports traces too.

    Where the environment variable PROMETHEUS_MULTIPROC_DIR names a folder, the pages are the sums over all processes
    that have such an exporter there, always fresh; and a registry that is not given has the application's own metrics
    of all processes in it.

    Raises ConfigError where an option cannot be used, or the registry already has the families.
    """

    def __init__(
        self,
        inspector: Source | None = None,
        *,
        registry: CollectorRegistry | None = None,
        path: str = "/metrics",
        port: int | None = None,
        update_interval: float = 1.0,
        task_metrics: bool = True,
        event_metrics: bool = True,
        memory_metrics: bool = True,
        health_metrics: bool = True,
        duration_buckets: Sequence[float] = DURATION_BOUNDS,
        name_label: str = "name",
        exemplars: bool = False,
        scrape_timeout: float = 10.0,
    ) -> None:
        self.path = check_path(path)
        if port is not None:
            check_port(port)
        interval = check_seconds("update_interval", update_interval, zero=True)
        limit = check_seconds("scrape_timeout", scrape_timeout, zero=False)
        bounds = check_buckets(duration_buckets)
        switches: dict[Group, bool] = {
            "task": task_metrics,
            "event": event_metrics,
            "memory": memory_metrics,
            "health": health_metrics,
        }
        groups = [group for group, on in switches.items() if on]
        self._renderer = Renderer(groups, check_label(name_label), bounds)
        source = _default_inspector() if inspector is None else inspector
        if isinstance(source, type) or not callable(getattr(source, "snapshot", None)):
            raise ConfigError(
                f"inspector={inspector!r:.200} gives no snapshots; write PrometheusExporter(inspector), with the one "
                "that the handler feeds, or PrometheusExporter() for Inspector.default()"
            )
        examples = Exemplars(_endings(source), bounds) if exemplars else None
        self._source = source
        processes = _all_processes(source)
        if processes is not None:
            source = processes
            # Any process may serve the next scrape, from which no older page may come.
            interval = 0.0
            if registry is None:
                registry = processes.registry()
        self._shared = processes is not None
        config = getattr(source, "config", None) or Config()
        self._address: int | str = config.metrics_port if port is None else port
        #: The registry that holds this exporter; metrics registered there appear on its pages too.
        self.registry: CollectorRegistry = CollectorRegistry() if registry is None else registry
        # Where many processes share their counts, others may be those that have the handlers.
        unheard = None if self._shared else Unheard("a page of metrics without any span was asked for", self._sources())
        self._pages = PageMaker(source, self._renderer, self.registry, interval, examples, unheard)
        self._bounded = Bounded(self._pages, limit)
        self._servers: list[MetricsServer] = []
        self._updater: Updater | None = None
        self._register()
        if not set(bounds) <= set(DURATION_BOUNDS):
            source.add_duration_bounds(bounds)
        after_fork(self._in_child)

    @classmethod
    def with_registry(
        cls, inspector: Source | None, registry: CollectorRegistry, **options: Unpack[Options]
    ) -> PrometheusExporter:
        """An exporter of `inspector` in `registry`, which may hold metrics of the application."""
        return cls(inspector, registry=registry, **options)

    @classmethod
    def multi(cls, inspectors: Iterable[Source], **options: Unpack[AllOptions]) -> PrometheusExporter:
        """An exporter of the sums over several inspectors: the counters of the same name add up.

        Raises ConfigError if there is none, or the same one twice.
        """
        sources = list(inspectors)
        if not sources:
            raise ConfigError("inspectors=[] has nothing to export; give at least one Inspector")
        if len({id(source) for source in sources}) < len(sources):
            raise ConfigError(
                f"inspectors={sources!r} has an inspector twice, which would count double; give each once"
            )
        return cls(_Sum(sources), **options)

    def describe(self) -> Iterator[Metric]:
        """The families without samples; registering an exporter reads no inspector."""
        return self._renderer.describe()

    def collect(self) -> list[Metric]:
        """The families with their samples, as prometheus_client asks a collector for them.

        If the inspector fails there are none: that is logged, and a scrape of the application's registry goes on.
        """
        return self._pages.collect()

    @property
    def errors(self) -> int:
        """How often the metrics could not be collected."""
        return self._pages.errors

    def gather(self, *, openmetrics: bool = False) -> str:
        """A fresh page of everything in the registry, as text 0.0.4 or OpenMetrics.

        Raises what the inspector, or another collector of the registry, raised.
        """
        return self._pages.refresh().text(openmetrics=openmetrics).decode()

    def update(self) -> None:
        """Make the page that the server and the apps serve during the next `update_interval`. Raises as `gather`."""
        self._pages.refresh()

    def start_background_updater(self, seconds: float = 5.0) -> None:
        """Call `update` at once and then every `seconds`, in a daemon thread, until `close`: scrapes are then served
        the latest page without waiting for one, though it is older than `update_interval`. A failed update is logged
        and counted in `errors`, and the next scrape tries for itself. Calling it again changes the interval. In the
        child of a fork it goes on. With PROMETHEUS_MULTIPROC_DIR it does nothing, since every page is fresh.

        Raises ConfigError unless `seconds` is a finite number above 0.
        """
        seconds = check_seconds("seconds", seconds, zero=False)
        if self._shared:
            return
        if self._updater is not None:
            if self._updater.seconds == seconds:
                return
            self._updater.stop()
        self._pages.updated_every = seconds
        self._updater = Updater(self.update, seconds)

    def start_server(self, address: str | int | None = None, **options: Unpack[ServerOptions]) -> MetricsServer:
        """Serve the metrics over HTTP, from threads of its own, until the server or the exporter is closed.

        `address` is "host:port", "[ipv6]:port" or a port; port 0 is any free one (see the server's `port`). Without an
        address, it is what the environment variable ASYNC_INSPECT_METRICS_PORT says, else the exporter's port, else the
        `metrics_port` of the inspector's config. Without a host it listens on 127.0.0.1 only; write "0.0.0.0:9090" to
        be reached from other machines, and say in `options` (see `ServerOptions`) who may read the metrics there; where
        nothing says so, a line in the log does.

        Raises ConfigError if the address or an option cannot be used. In the child of a fork the server is closed.
        """
        variable = os.environ.get(_PORT_VARIABLE, "").strip()
        if address is not None:
            host, port = parse_address(address)
        elif variable:
            host, port = parse_address(variable, _PORT_VARIABLE)
        else:
            host, port = parse_address(self._address)
        protection = Protection(options)
        server = MetricsServer(
            self._bounded, host, port, self.path, protection, lambda: self._unready(protection.ready_lag)
        )
        self._servers = [*(other for other in self._servers if not other.closed), server]
        return server

    def _sources(self) -> Sequence[Any]:
        return self._source.sources if isinstance(self._source, _Sum) else [self._source]

    def _unready(self, lag: float | None) -> str:
        """Why the process is not ready for work, as far as can be seen from here; "" if it is. Takes no snapshot."""
        if self._bounded.is_overdue:
            return "the metrics take too long to collect"
        if self._pages.failing:
            return "the metrics cannot be collected"
        sources = self._sources()
        if not self._shared and not is_fed(sources):  # of many processes, others are fed
            return "no handler and no processor feeds the inspector"
        if lag is not None and any(one.loop_late() > lag for one in sources if hasattr(one, "loop_late")):
            return "an event loop does not come back"
        return ""

    def wsgi_app(self) -> Callable[[scrape.Environ, scrape.StartResponse], list[bytes]]:
        """A WSGI app that gives the metrics at whatever path it is mounted."""
        return scrape.wsgi_app(self._bounded)

    def asgi_app(self) -> Callable[[scrape.Scope, scrape.Receive, scrape.Send], Awaitable[None]]:
        """An ASGI 3 app that gives the metrics at whatever path it is mounted."""
        return scrape.asgi_app(self._bounded)

    def close(self) -> None:
        """Stop the updater and the servers, and leave the registry. May be repeated."""
        if self._updater is not None:
            self._updater.stop()
            self._updater = None
            self._pages.updated_every = 0.0
        while self._servers:
            self._servers.pop().close()
        try:
            self.registry.unregister(self)
        except KeyError:
            pass  # closed before, or taken out by the application

    def __enter__(self) -> PrometheusExporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _register(self) -> None:
        try:
            self.registry.register(self)
        except ValueError as error:
            # The message is all that every version of prometheus_client has of the names.
            taken = sorted(re.findall("async_inspect_[a-z_]+", str(error)))
            if not taken:
                raise ConfigError(f"registry={self.registry!r} takes no exporter: {error}; give another one") from error
            raise ConfigError(
                f"registry={self.registry!r} already has {taken[0]}, most likely from another PrometheusExporter; "
                "close() that one first, give each its own registry, or export several inspectors with "
                "PrometheusExporter.multi([...])"
            ) from error

    def _in_child(self) -> None:
        """In the child of a fork: no thread of ours lives, and the listening sockets are the parent's."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.abandon()
        self._pages.begin()
        self._bounded.begin()
        if self._updater is not None:
            self._updater = Updater(self.update, self._updater.seconds)
