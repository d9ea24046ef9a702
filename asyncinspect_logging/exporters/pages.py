"""Pages of metrics: made from an inspector and a registry, and kept for as long as they may be served."""

from __future__ import annotations

import gzip
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from .. import clock
from ..diagnostics import warn_once
from ..snapshot import Snapshot
from ..unheard import Unheard
from .exemplars import Exemplars, Found
from .exposition import Renderer

__all__ = ["Page", "PageMaker", "Source", "Updater"]

_EOF: Final = b"# EOF\n"

# The best level takes many times as long to save a third of the bytes.
_GZIP_LEVEL: Final = 1

_generate_openmetrics: Final[Callable[[Any], bytes]] = openmetrics_exposition.generate_latest
_serials: Final = itertools.count(1)


class Source(Protocol):
    """What is exported: an `Inspector`, or anything else that gives snapshots."""

    def snapshot(self, *, tasks: bool = True) -> Snapshot: ...

    def add_duration_bounds(self, bounds: Sequence[float], /) -> None:
        """Count task durations at these bounds too, in seconds."""


class _Fixed(CollectorRegistry):
    """What prometheus_client's text functions take, around metrics that were collected before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _generate(metrics: Iterable[Metric], *, openmetrics: bool) -> bytes:
    registry = _Fixed(metrics)
    return _generate_openmetrics(registry) if openmetrics else generate_latest(registry)


def _gzip(text: bytes) -> bytes:
    return gzip.compress(text, _GZIP_LEVEL, mtime=0)


class Page:
    """The families of one snapshot, and after them the metrics of other collectors.

    `at` is the monotonic time in ns before the snapshot was taken.
    """

    def __init__(
        self, at: int, renderer: Renderer, snapshot: Snapshot, others: Sequence[Metric], found: Found | None = None
    ) -> None:
        self.at = at
        #: Whether it tells of no span.
        self.is_empty = not snapshot.names
        self._renderer = renderer
        self._blocks = renderer.blocks(snapshot)
        # Text 0.0.4 knows of no exemplars.
        self._with_examples = self._blocks if not found else renderer.with_examples(self._blocks, found)
        self._others = others
        self._texts: dict[bool, bytes] = {}
        self._packed: dict[bool, bytes] = {}

    def text(self, *, openmetrics: bool = False) -> bytes:
        """The page in the format OpenMetrics, or 0.0.4, made once: slow clients all hold the same."""
        text = self._texts.get(openmetrics)
        if text is None:
            text = self._texts[openmetrics] = self._make(openmetrics)
        return text

    def _make(self, openmetrics: bool) -> bytes:
        ours = self._renderer.page(self._with_examples if openmetrics else self._blocks, openmetrics=openmetrics)
        if self._others:
            return ours + _generate(self._others, openmetrics=openmetrics)
        return ours + _EOF if openmetrics else ours

    def packed(self, *, openmetrics: bool = False) -> bytes:
        """The same in gzip, made once."""
        packed = self._packed.get(openmetrics)
        if packed is None:
            # Whoever takes it in gzip takes it so again: the text need not be kept.
            packed = self._packed[openmetrics] = _gzip(self._texts.get(openmetrics) or self._make(openmetrics))
        return packed

    def pack_like(self, other: Page) -> None:
        """Make now what was asked of the page before, so that no scrape waits for it."""
        for openmetrics in tuple(other._packed):
            self.packed(openmetrics=openmetrics)


class PageMaker:
    """Makes the pages of `registry`, one of whose collectors collects by the `collect` here: the families of `source`.

    `unheard` is told of a scrape that gets no span.
    A page is served again for `interval` seconds. `errors` counts the pages that could not be made; the first failure
    after a success is logged.
    """

    def __init__(
        self,
        source: Source,
        renderer: Renderer,
        registry: CollectorRegistry,
        interval: float,
        exemplars: Exemplars | None = None,
        unheard: Unheard | None = None,
    ) -> None:
        self.interval = interval
        self._unheard = unheard
        self._exemplars = exemplars
        #: Seconds between the calls of an updater, or 0: then a page may be as old as the next call may be late.
        self.updated_every = 0.0
        self.errors = 0
        self._source = source
        self._renderer = renderer
        self._registry = registry
        self._serial = next(_serials)
        self._streak = 0
        self._failing = False
        self.begin()

    @property
    def failing(self) -> bool:
        """Whether the last page could not be made."""
        return self._failing

    def begin(self) -> None:
        """Start without a page, and with locks that nobody holds: at first, and in the child of a fork."""
        self._lock = threading.RLock()
        self._asked = threading.local()
        self._page: Page | None = None

    def collect(self) -> list[Metric]:
        """The families with their samples; none if the source fails, or if only the others are asked for."""
        asked = getattr(self._asked, "for_", "a scrape of the application's")
        if asked == "the others":
            return []
        if asked == "a page of ours":
            return self._metrics()
        try:
            with self._watched():
                return self._metrics()
        except Exception:
            return []

    def _metrics(self) -> list[Metric]:
        found = self._examples()
        snapshot = self._source.snapshot(tasks=False)
        if not snapshot.names:
            self._tell_why()
        return self._renderer.metrics(snapshot, found)

    def _examples(self) -> Found:
        # Before the counts, so that no bucket has an example and no count.
        return {} if self._exemplars is None else self._exemplars.look()

    def refresh(self, *, unless_young: bool = False) -> Page:
        """A new page; if `unless_young`, only where there is none that may still be served. Raises what went wrong."""
        with self._lock:
            page = self._page
            if page is not None and unless_young and self._is_young(page):
                return page
            # Until the new page stands, the old one is served; but if this fails, no longer.
            try:
                with self._watched():
                    at = clock.monotonic_ns()
                    found = self._examples()
                    snapshot = self._source.snapshot(tasks=False)
                    new = Page(at, self._renderer, snapshot, self._collect(self._registry, "the others"), found)
                    if page is not None:
                        new.pack_like(page)
            except BaseException:
                self._page = None
                raise
            # A page that is never served again is not kept: with thousands of names it is as large as all they count.
            self._page = new if self._life else None
            return new

    def serve(self, *, openmetrics: bool, compress: bool, names: Sequence[str]) -> bytes:
        """A page for a scrape: in gzip if `compress`; with `names`, a fresh one of only the samples of these names.
        Raises what went wrong, after logging it.
        """
        if names:
            with self._watched():
                metrics = self._collect(self._registry.restricted_registry(names), "a page of ours")
                text = _generate(metrics, openmetrics=openmetrics)
            return _gzip(text) if compress else text
        page = self._page
        if page is None or not self._is_young(page):
            page = self.refresh(unless_young=True)
        if page.is_empty:
            self._tell_why()
        with self._watched():
            return page.packed(openmetrics=openmetrics) if compress else page.text(openmetrics=openmetrics)

    def _tell_why(self) -> None:
        if self._unheard is not None:
            self._unheard.tell()

    @property
    def _life(self) -> float:
        """Seconds for which a page may be served."""
        return max(self.interval, 2 * self.updated_every)

    def _is_young(self, page: Page) -> bool:
        return 0 <= clock.monotonic_ns() - page.at < self._life * 1e9

    def _collect(self, registry: Any, asked: str) -> list[Metric]:
        self._asked.for_ = asked
        try:
            return list(registry.collect())
        finally:
            del self._asked.for_

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.errors += 1
            if not self._failing:
                self._failing = True
                self._streak += 1
                message = "the metrics could not be collected; until that works again, more failures are only counted"
                warn_once("metrics page", f"{self._serial}.{self._streak}", message, exc_info=True)
            raise
        self._failing = False


class Updater:
    """Calls `update` at once and then every `seconds`, in a daemon thread, whatever it raises."""

    def __init__(self, update: Callable[[], object], seconds: float) -> None:
        self.seconds = seconds
        self._update = update
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=Context().run, args=(self._run,), name="asyncinspect-update", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, waiting five seconds at most for an update that is under way."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._update()
            except Exception:
                pass  # counted and logged where it happened; the next round may do better
            self._stop.wait(self.seconds)
