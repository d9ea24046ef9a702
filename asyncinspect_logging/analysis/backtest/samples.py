"""A log as samples: what Prometheus would have got, had it scraped the processes that wrote it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.utils import floatToGoString

from ...exporters.combine import printable
from ...exporters.families import FAMILIES, Family
from ...histograms import cumulative
from ...placing import Placing
from ...snapshot import Snapshot
from ...summary import summarize
from ..files import Batch, Source
from ..replay import LogClock, Reader, Report, log_inspector
from .lines import Told, told
from .processes import Process, Processes

__all__ = ["NOT_IN_LOGS", "Wanted", "replay_into"]

#: What only a process itself knows, and what it was watched by.
NOT_IN_LOGS: Final = frozenset({"async_inspect_event_loop_lag_seconds", "async_inspect_memory_bytes"})
#: Lines that are held for a process before they are taken in.
_HELD: Final = 2000
_SECOND: Final = 1_000_000_000
#: For so long (ns) a record may be late: threads and files may write a bit out of order.
_LATE: Final = 10 * _SECOND


class Wanted:
    """The families and series that rules read. `names`: every word in their expressions; None: all of them."""

    def __init__(self, names: Iterable[str] | None) -> None:
        given = None if names is None else set(names)
        self.up = given is None or "up" in given
        self.forms: list[tuple[Family, tuple[str, ...]]] = []
        for family in FAMILIES:
            if family.name in NOT_IN_LOGS:
                continue
            parts = ("_bucket", "_count", "_sum") if family.type == "histogram" else ("",)
            found = tuple(part for part in parts if given is None or family.sample + part in given)
            if found:
                self.forms.append((family, found))

    def heads(self) -> str:
        """The lines that say what the families are."""
        return "".join(f"# TYPE {family.name} {family.type}\n" for family, _ in self.forms)


class _Instance:
    """A target: the processes that had its address, one after the other."""

    def __init__(self, labels: Mapping[str, str], wanted: Wanted, report: Report, *, strict: bool) -> None:
        self._wanted = wanted
        self._report = report
        self._strict = strict
        self._labels = labels
        self._reader: Reader | None = None
        self._process: Process | None = None
        self._held: list[Told] = []
        self._source: Source | None = None
        #: Samples of one moment, each up to its time, and how often deadlocks were looked for since the last line.
        self._text: list[str] = []
        self._is_old = True
        self._looks = 0
        # When missing records were looked for.
        self._missing_at = 0
        #: Whether there are no more lines, and none is late.
        self.all_read = False
        # By family and label values, what stands before the values.
        self._starts: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def add(self, line: Told, source: Source, process: Process | None) -> None:
        """A line that one of the processes wrote; `process` is None if it was the last one."""
        if process is not None and process is not self._process:
            if self._process is not None and process.first < self._process.first:
                # A straggler of one that is gone.
                self._report.missing += 1
                return
            self._begin(process, source)
        if source is not self._source or len(self._held) >= _HELD:
            self.take_in()
        self._source = source
        self._held.append(line)

    def _begin(self, process: Process, source: Source) -> None:
        self.end()
        self._process, self._source = process, source
        self._reader = self._new_reader()
        self._looks = 0

    def _new_reader(self) -> Reader:
        # What it is given, it is given; it reads nothing by itself.
        source = self._source or Source("-")
        return Reader([source], log_inspector(), at=None, strict=self._strict, rules=None, progress=None)

    def end(self) -> None:
        """The process is over."""
        self.take_in()
        if self._reader is not None:
            self._reader.finish()
            told_of, ours = self._reader.report, self._report
            for field in ("lines", "records", "annotations", "foreign", "broken", "missing"):
                setattr(ours, field, getattr(ours, field) + getattr(told_of, field))
            ours.problems += told_of.problems[: 100 - len(ours.problems)]
            self._reader = None

    def take_in(self) -> None:
        held, self._held = self._held, []
        source = self._source
        if not held or source is None:
            return
        if self._reader is None:
            # Lines before the first record of a process.
            self._reader = self._new_reader()
        self._looks = 0
        together: list[Told] = []
        for line in held:
            if line.is_odd:
                self._take(together, source)
                together = []
                self._take([line], source)
            else:
                together.append(line)
        self._take(together, source)

    def _take(self, lines: list[Told], source: Source) -> None:
        if lines:
            assert self._reader is not None
            texts = [line.line for line in lines]
            long = len(texts) == 1 and len(texts[0]) > 1 << 20
            problem = lines[0].problem
            self._reader.take(Batch(source, [] if problem else texts, lines[0].number, long=long, problem=problem))

    def look(self, now: int) -> None:
        """Have deadlocks looked for; one is told of when it is seen a second time. `now`: Unix time in ns."""
        self.take_in()
        if self._reader is None:
            self._reader = self._new_reader()
        if self._looks < 2:
            self._clock.now = max(now, self._clock.now)
            self._reader.inspector.look()
            self._looks += 1
            self._is_old = True

    def at(self, now: int) -> str:
        """The samples of this moment (Unix time in ns)."""
        self.look(now)
        assert self._reader is not None
        if now - self._missing_at >= _LATE or self.all_read:
            self._missing_at = now
            self._reader.inspector.enter(self._find_missing)
        if self._is_old:
            self._text = list(self._samples(printable(_snapshot(self._reader))))
            self._text.append("")
            self._is_old = False
        return f" {_seconds(now)}\n".join(self._text)

    def _find_missing(self, placing: Placing) -> None:
        if placing.find_missing(late=not self.all_read):
            self._is_old = True

    @property
    def _clock(self) -> LogClock:
        assert self._reader is not None
        clock = self._reader.inspector.clock
        assert isinstance(clock, LogClock)
        return clock

    def _samples(self, snapshot: Snapshot) -> Iterator[str]:
        if self._wanted.up:
            (start,) = self._starts_of("up", ("",), (), (), ())
            yield f"{start}1"
        for family, parts in self._wanted.forms:
            for labels, value in family.rows(snapshot):
                starts = self._starts_of(family.sample, parts, family.labels, labels, family.bounds)
                if family.type != "histogram":
                    yield f"{starts[0]}{value}"
                    continue
                values: list[Any] = []
                counts = cumulative(value, family.bounds)
                for part in parts:
                    values += counts if part == "_bucket" else [counts[-1]] if part == "_count" else [value.sum]
                yield from map("".join, zip(starts, map(str, values), strict=True))

    def _starts_of(
        self,
        name: str,
        parts: tuple[str, ...],
        keys: tuple[str, ...],
        labels: tuple[str, ...],
        bounds: tuple[float, ...],
    ) -> tuple[str, ...]:
        starts = self._starts.get((name, labels))
        if starts is None:
            own = {**self._labels, **dict(zip(keys, labels, strict=True))}
            found = []
            for part in parts:
                if part == "_bucket":
                    les = [*map(floatToGoString, bounds), "+Inf"]
                    found += [_series(name + part, {**own, "le": le}) for le in les]
                else:
                    found.append(_series(name + part, own))
            starts = self._starts[name, labels] = tuple(found)
        return starts


def replay_into(
    write: Callable[[int, str], None],
    found: list[Source],
    processes: Processes,
    wanted: Wanted,
    *,
    job: str,
    step: int,
    start: int,
    end: int,
    strict: bool,
    progress: Callable[[int, int | None], None] | None,
) -> Report:
    """Read logs once, and call `write` with each moment, and the samples of all targets at that moment as lines of
    OpenMetrics.

    step: seconds between two moments. start, end: the first and the last one, Unix time in seconds.
    """
    report = Report()
    instances: dict[str, _Instance] = {}
    begins: list[tuple[int, str]] = []
    for process in sorted(processes.by_key.values(), key=lambda process: process.first):
        if process.instance not in instances:
            labels = {"instance": process.instance, "job": job}
            instances[process.instance] = _Instance(labels, wanted, report, strict=strict)
            # The others of a place came later.
            begins.append((process.first // (step * _SECOND) * step, process.instance))
    begins.sort(reverse=True)
    # Lines that are in a span, of which only the higher half of the id is told.
    bases = {process.key[1]: process for process in processes.by_key.values()}
    scraped: list[_Instance] = []
    # A moment, and a second before it, when deadlocks are looked for the first time.
    moment = (min(begins)[0] if begins else start) * _SECOND
    before = min(_SECOND, step * _SECOND // 2)
    due, is_first = moment - before, True
    others: dict[str, _Instance] = {}

    def pass_to(wall: int) -> None:
        nonlocal moment, due, is_first
        while due < wall and moment <= end * _SECOND:
            if is_first:
                for each in scraped:
                    each.look(due)
                due, is_first = moment, False
                continue
            while begins and begins[-1][0] * _SECOND <= moment:
                scraped.append(instances[begins.pop()[1]])
            if moment >= start * _SECOND:
                write(moment // _SECOND, "".join(each.at(moment) for each in scraped))
            moment += step * _SECOND
            due, is_first = moment - before, True

    for wall, source, line in _in_time(found, progress):
        if wall > end * _SECOND:
            break
        if wall > due:
            pass_to(wall)
        wrote = None if line.key is None else processes.by_key.get(line.key)
        of = wrote or bases.get(line.base)
        if of is not None:
            others[source.name] = instances[of.instance]
        instance = others.get(source.name)
        if instance is not None:
            instance.add(line, source, wrote)
        else:
            report.lines += 1
            if line.problem:
                report.broken += 1
            else:
                report.foreign += 1
    else:
        for each in instances.values():
            each.all_read = True
    pass_to(end * _SECOND + 1)
    for each in instances.values():
        each.end()
    report.bytes_read = sum(source.done for source in found)
    return report


def _in_time(
    found: list[Source], progress: Callable[[int, int | None], None] | None
) -> Iterator[tuple[int, Source, Told]]:
    """The lines of all logs, those next whose time is the earliest; what has none goes with what was before it."""
    sizes = [source.size for source in found]
    total = None if None in sizes else sum(size or 0 for size in sizes)

    def lines_of(order: int, source: Source) -> Iterator[tuple[int, int, int, Source, Told | None]]:
        # Files are opened when their time has come.
        latest, count = source.first_wall(), 0
        yield latest, order, count, source, None
        for batch in source.batches():
            for line in told(batch):
                count += 1
                latest = max(latest, line.wall)
                yield latest, order, count, source, line
            if progress is not None:
                progress(sum(each.done for each in found), total)

    for wall, _, _, source, line in heapq.merge(*(lines_of(*each) for each in enumerate(found))):
        if line is not None:
            yield wall, source, line


def _snapshot(reader: Reader) -> Snapshot:
    found: list[Snapshot] = []

    def take(placing: Placing) -> None:
        placing.complete()
        found.append(summarize(placing.books, placing, reader.inspector.clock, tasks=False, memory=False))

    reader.inspector.enter(take)
    return found[0]


def _series(name: str, labels: Mapping[str, str]) -> str:
    text = ",".join(
        '{}="{}"'.format(key, value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\""))
        for key, value in labels.items()
    )
    return f"{name}{{{text}}} "


def _seconds(now: int) -> int:
    return now // _SECOND
