"""The page of a running process, /metrics, fetched and read back into a snapshot: all the counters, and no tasks."""

from __future__ import annotations

import math
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import reduce
from http.client import HTTPException
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from ..catalogue import DROP_REASONS, EVENT_TYPES, MEMORY_COMPONENTS
from ..histograms import added
from ..snapshot import Histogram, NameView, Snapshot
from ..states import FINAL, LIVE

__all__ = ["PageError", "fetch_page", "is_address", "is_page", "read_page"]

_PREFIX: Final = "async_inspect_"
#: Seconds for the whole of a page, and bytes of a page and of a line of it.
_TIMEOUT: Final = 10.0
_MAX_PAGE: Final = 1 << 25
_MAX_LINE: Final = 1 << 14
_CHUNK: Final = 1 << 16
#: More than any value, or bound, is.
_MOST: Final = 1e18
#: Labels other than the one with the span's name, which can be spelled in another way.
_FIXED: Final = frozenset({"state", "le", "lint"})

_COUNTERS: Final = {
    "tasks_total": "spawned",
    "tasks_completed_total": "completed",
    "tasks_failed_total": "failed",
    "tasks_cancelled_total": "cancelled",
    "task_polls_total": "polls",
    "task_busy_seconds_total": "busy",
    "task_idle_seconds_total": "idle",
}
_HISTOGRAMS: Final = {
    "poll_count": "poll_counts",
    "poll_duration_seconds": "poll_durations",
    "scheduled_seconds": "scheduled_delays",
}
_KEYED: Final = {
    "tasks_by_state": ("states", "state"),
    "events_total": ("events", "type"),
    "dropped_total": ("dropped", "reason"),
    "memory_bytes": ("memory", "component"),
}


class PageError(ValueError):
    """A page cannot be fetched, or is not one of ours. The message says which, why, and what to do."""


def is_address(where: object) -> bool:
    return isinstance(where, str) and re.match("https?://", where, re.IGNORECASE) is not None


def is_page(head: bytes) -> bool:
    """Whether a file that begins like this is a saved page."""
    return re.match(rb"\s*(# (HELP|TYPE) |async_inspect_)", head) is not None


def fetch_page(address: str, *, timeout: float = _TIMEOUT) -> Snapshot:
    """The snapshot of the process at `address`, such as "http://127.0.0.1:9090"; without a path, it is /metrics.

    timeout: seconds for all of it. Raises PageError.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise PageError(f"{address!r} is not an address ({error}); write for example http://127.0.0.1:9090") from None
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise PageError(f"{address!r} is not an address; write for example http://127.0.0.1:9090")
    url = urlunsplit(parts._replace(path="/metrics")) if parts.path in ("", "/") else address
    # Each step of a fetch, such as the wait for one more byte of a header, has a timeout of its own, and only another
    # thread can look at the clock meanwhile.
    fetched: Future[bytes] = Future()
    threading.Thread(target=_fetch, args=(fetched, url, host, timeout), name="asyncinspect-fetch", daemon=True).start()
    try:
        body = fetched.result(timeout)
    except PageError:
        raise
    except FutureTimeout:
        raise PageError(f"{url}: not all there after {timeout:g} s; is the process blocked, or the network?") from None
    except urllib.error.HTTPError as error:
        error.close()
        raise PageError(f"{url}: answered {error.code} {error.reason}; give the address of /metrics") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise PageError(f"{url}: no page ({reason}); is the process there, and is that its port?") from None
    return read_page(body, url)


def _fetch(fetched: Future[bytes], url: str, host: str, timeout: float) -> None:
    try:
        fetched.set_result(_get(url, host, timeout))
    except BaseException as error:
        fetched.set_exception(error)


def _get(url: str, host: str, timeout: float) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "text/plain;version=0.0.4", "User-Agent": "asyncinspect"})
    opener = urllib.request.OpenerDirector()
    # Not what `build_opener` adds besides, which reads files and FTP; and no proxy on the way to this machine.
    local = host == "localhost" or host == "::1" or host.startswith("127.")
    for handler in (
        urllib.request.ProxyHandler({} if local else None),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    end = time.monotonic() + timeout
    body = bytearray()
    with opener.open(request, timeout=timeout) as answer:
        while data := answer.read1(_CHUNK):
            body += data
            if len(body) > _MAX_PAGE:
                raise PageError(f"{url}: more than {_MAX_PAGE >> 20} MB, which no page of metrics has")
            if time.monotonic() > end:
                raise PageError(f"{url}: not all there after {timeout:g} s")
    return bytes(body)


def read_page(body: bytes, source: str = "page") -> Snapshot:
    """The snapshot that a page shows; `source` stands in the messages. `taken_at` is now.

    What the page does not have (the families of a group that was left out) is 0. Samples that differ in more than the
    labels of ours, as those of several processes do, are summed up. Raises PageError.
    """
    from prometheus_client.parser import text_string_to_metric_families

    if len(body) > _MAX_PAGE:
        raise PageError(f"{source}: more than {_MAX_PAGE >> 20} MB, which no page of metrics has")
    page = _Page(source)
    try:
        lines = "\n".join(_ours(body.decode("utf-8"), source))
        for family in text_string_to_metric_families(lines + "\n"):
            for sample in family.samples:
                page.add(sample.name.removeprefix(_PREFIX), sample.labels, sample.value)
    except PageError:
        raise
    except ValueError as error:
        raise PageError(f"{source}: not a page of metrics ({str(error)[:200]})") from None
    if not page.samples:
        raise PageError(
            f"{source}: no metrics of asyncinspect-logging there; is that the right port? "
            "(Prometheus itself listens on 9090, too)"
        )
    return page.snapshot()


def _ours(text: str, source: str) -> Iterator[str]:
    """The lines that tell of us: a page can have much else. The types of families do not matter here."""
    for line in text.split("\n"):
        if line.startswith(_PREFIX):
            if len(line) > _MAX_LINE:
                raise PageError(f"{source}: a line of {len(line)} characters, which no page of metrics has")
            yield line


class _Buckets:
    """A histogram under way: cumulative counts by bound."""

    def __init__(self) -> None:
        self.by_bound: dict[float, int] = {}
        self.sum = 0.0

    def histogram(self) -> Histogram:
        bounds = sorted(bound for bound in self.by_bound if bound != math.inf)
        counts, before = [], 0
        for bound in [*bounds, math.inf]:
            value = max(before, self.by_bound.get(bound, before))
            counts.append(value - before)
            before = value
        return Histogram(tuple(bounds), tuple(counts), self.sum)


class _Page:
    """What the samples of a page add up to."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.samples = 0
        self._names: dict[str, dict[str, Any]] = {}
        self._keyed: dict[str, dict[str, int]] = {
            "states": dict.fromkeys((state.value for state in (*LIVE, *FINAL)), 0),
            "events": dict.fromkeys(EVENT_TYPES, 0),
            "dropped": dict.fromkeys(DROP_REASONS, 0),
            "memory": dict.fromkeys(MEMORY_COMPONENTS, 0),
        }
        # By family, name and state, and by all labels: the bounds of several processes may differ.
        self._buckets: dict[tuple[str, str, str], dict[tuple[tuple[str, str], ...], _Buckets]] = {}
        self._lints: dict[tuple[str, str], int] = {}
        self._deadlocks = 0

    def add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        if not 0 <= value < _MOST:
            raise PageError(f"{self._source}: {_PREFIX}{name} is {value}, which none of its values can be")
        self.samples += 1
        if name in _COUNTERS:
            counts = self._names.setdefault(self._name(labels), {})
            field = _COUNTERS[name]
            counts[field] = counts.get(field, 0) + (value if field in ("busy", "idle") else int(value))
        elif name in _KEYED:
            part, label = _KEYED[name]
            key = labels.get(label, "")
            self._keyed[part][key] = self._keyed[part].get(key, 0) + int(value)
        elif name == "lints_total":
            lint = labels.get("lint", ""), self._name(labels)
            self._lints[lint] = self._lints.get(lint, 0) + int(value)
        elif name == "deadlocks_total":
            self._deadlocks += int(value)
        else:
            self._histogram(name, labels, value)

    def _histogram(self, name: str, labels: Mapping[str, str], value: float) -> None:
        family, _, part = name.rpartition("_")
        if family == "event_loop_lag_seconds":
            key = family, "", ""
        elif family == "task_duration_seconds":
            key = family, self._name(labels), labels.get("state", "")
        elif family in _HISTOGRAMS:
            key = family, self._name(labels), ""
        else:
            return
        series = tuple(sorted((label, text) for label, text in labels.items() if label != "le"))
        buckets = self._buckets.setdefault(key, {}).setdefault(series, _Buckets())
        if part == "sum":
            buckets.sum += value
        elif part == "bucket":
            bound = float(labels.get("le", "nan"))
            if not -_MOST < bound < _MOST and bound != math.inf:
                raise PageError(
                    f"{self._source}: {_PREFIX}{name} without a bound, or with one that cannot be ({bound})"
                )
            buckets.by_bound[bound] = buckets.by_bound.get(bound, 0) + int(value)

    def _name(self, labels: Mapping[str, str]) -> str:
        if "name" in labels:
            return labels["name"]
        others = [label for label in labels if label not in _FIXED]
        if len(others) != 1:
            raise PageError(f"{self._source}: which of the labels {sorted(labels)} is the name of the span?")
        return labels[others[0]]

    def snapshot(self) -> Snapshot:
        found = {
            key: reduce(added, (buckets.histogram() for buckets in series.values()))
            for key, series in self._buckets.items()
        }
        empty = Histogram((), (0,), 0.0)
        durations: dict[str, dict[str, Histogram]] = {}
        for (family, name, state), histogram in found.items():
            if family == "task_duration_seconds":
                durations.setdefault(name, {})[state] = histogram
        names = {}
        for name, counts in self._names.items():
            values: dict[str, Any] = dict.fromkeys(_COUNTERS.values(), 0) | counts
            values |= {field: found.get((family, name, ""), empty) for family, field in _HISTOGRAMS.items()}
            # A wait for a poll is one wake; which of them were the task's own, a page does not say.
            waits: Histogram = values["scheduled_delays"]
            values |= {"wakes": waits.total, "self_wakes": 0, "scheduled": waits.sum}
            names[name] = NameView(name=name, durations=MappingProxyType(durations.get(name, {})), **values)
        keyed = {part: MappingProxyType(counts) for part, counts in self._keyed.items()}
        return Snapshot(
            taken_at=time.time(),
            tasks=(),
            names=MappingProxyType(names),
            findings=(),
            deadlocks=self._deadlocks,
            lints=MappingProxyType(self._lints),
            loop_lag=found.get(("event_loop_lag_seconds", "", ""), empty),
            **keyed,
        )
