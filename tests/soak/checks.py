"""What has to hold: counts, pages, flat memory, and nothing left behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

__all__ = [
    "counted",
    "differences",
    "gained",
    "of_one_mind",
    "one_arena",
    "page_is_valid",
    "page_of",
    "polled",
    "rss",
    "slope",
    "sums_of",
]

Counts = Mapping[str, tuple[int, int, int]]


#: The part by which sums of seconds may differ.
ROUNDED = 1e-3

_libc = ctypes.CDLL(None)
#: Of glibc's mallopt.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8


def one_arena() -> None:
    """Have glibc's allocator keep little that nobody uses: else each thread that makes a page may keep as much as that
    took, in an arena of its own. To be called before any thread is begun.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_ARENA_MAX, 1)
        _libc.mallopt(_MMAP_THRESHOLD, 128 * 1024)


def rss() -> float:
    """The memory of this process that is there, in MB, after what nobody uses was given back."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope(samples: Sequence[tuple[int, float]]) -> float:
    """Bytes for each span, of samples (spans, MB): the median of the slopes between any two (Theil and Sen), which a
    page that is being made at the moment of a sample does not move.
    """
    pairs = [(b, a) for i, b in enumerate(samples) for a in samples[:i] if b[0] > a[0]]
    return median((b[1] - a[1]) * 1e6 / (b[0] - a[0]) for b, a in pairs) if pairs else 0.0


def gained(samples: Sequence[tuple[int, float]]) -> float:
    """MB by that slope, from the first sample to the last."""
    return slope(samples) * (samples[-1][0] - samples[0][0]) / 1e6


def counted(names: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Completed, failed and cancelled of each `NameView`."""
    return {name: (view.completed, view.failed, view.cancelled) for name, view in names.items()}


def differences(what: str, expected: Counts, found: Counts, counts: str = "completed, failed, cancelled") -> list[str]:
    """One line for all names whose counts differ."""
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if not wrong:
        return []
    some = "; ".join(f"{name}: {expected.get(name)} expected, {found.get(name)} found" for name in sorted(wrong)[:3])
    return [f"{what}: {len(wrong)} names have other counts ({counts}): {some}"]


def polled(names: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Polls, those whose length was observed, and wakes of each `NameView`."""
    return {name: (view.polls, view.poll_durations.total, view.wakes) for name, view in names.items()}


def of_one_mind(what: str, names: Mapping[str, Any], stepped: Sequence[str]) -> list[str]:
    """Troubles with what is counted in two ways: polls, and seconds. `stepped`: names whose spans are all driven, and
    are busy or idle all their time; others are less, and none is more.
    """
    troubles = []
    for name, view in names.items():
        counts = view.poll_counts
        if (counts.sum, counts.total) != (view.polls, view.finished):
            troubles.append(f"{name}: {counts.sum} polls of {counts.total} spans, and {view.polls} of {view.finished}")
        wall, seen = sum(each.sum for each in view.durations.values()), view.busy + view.idle
        if not (wall * (1 - ROUNDED) if name in stepped else 0.0) <= seen <= wall * (1 + ROUNDED):
            troubles.append(f"{name}: {view.busy} s busy and {view.idle} s idle, of {wall} s")
    return [f"{what}: {len(troubles)} counts contradict each other: {'; '.join(troubles[:3])}"] if troubles else []


def page_of(text: str) -> tuple[dict[str, tuple[int, int, int]], dict[str, tuple[float, ...]]]:
    """The counts of each name by the counters of a page, as prometheus_client reads it; and its begun, live and
    observed ones.
    """
    values: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.labels.get("name")
            if name is None:
                continue
            of = values.setdefault(name, {})
            key = sample.name + ("_" + sample.labels["state"] if "state" in sample.labels else "")
            if "le" not in sample.labels:
                of[key] = of.get(key, 0.0) + sample.value
    counts, others = {}, {}
    for name, of in values.items():
        done = [int(of[f"async_inspect_tasks_{outcome}_total"]) for outcome in ("completed", "failed", "cancelled")]
        observed = [
            of.get(f"async_inspect_task_duration_seconds_count_{outcome}", 0.0)
            for outcome in ("completed", "failed", "cancelled")
        ]
        counts[name] = (done[0], done[1], done[2])
        others[name] = (of["async_inspect_tasks_total"], *observed)
    return counts, others


def page_is_valid(what: str, expected: Counts, text: str, in_openmetrics: str = "") -> list[str]:
    """Troubles with a page of a process in which all of these spans, and no others, are over."""
    try:
        counts, others = page_of(text)
        for _ in openmetrics(in_openmetrics) if in_openmetrics else ():
            pass
    except Exception as error:
        return [f"{what}: prometheus_client cannot read it: {error!r}"]
    troubles = differences(what, expected, counts)
    wrong = [name for name, counted in expected.items() if others.get(name) != (sum(counted), *counted)]
    if wrong:
        name = wrong[0]
        troubles.append(
            f"{what}: {len(wrong)} names have begun and observed spans that differ from those that are over: {name}: "
            f"{others.get(name)}, of {expected[name]}"
        )
    promtool = shutil.which("promtool")
    if promtool is not None:
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).strip()
        if done.returncode or said:
            troubles.append(f"{what}: promtool complains ({done.returncode}): {said[:500]}")
    return troubles


def sums_of(page: str) -> tuple[float, float]:
    """Begun and finished spans of all names, by a page: quickly, since pages may be large."""
    begun = finished = 0.0
    for family in ("tasks_total", "tasks_completed_total", "tasks_failed_total", "tasks_cancelled_total"):
        total, at = 0.0, page.find(f"\nasync_inspect_{family}{{")
        while at >= 0 and page.startswith(f"\nasync_inspect_{family}{{", at):
            end = page.index("\n", at + 1)
            total += float(page[at:end].rpartition(" ")[2])
            at = end
        if family == "tasks_total":
            begun = total
        else:
            finished += total
    return begun, finished
