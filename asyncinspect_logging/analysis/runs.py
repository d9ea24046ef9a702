"""One side of a comparison, read: of a run of any length, as much as there is room for."""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Final

from ..errors import ConfigError
from ..snapshot import NameView, Snapshot, TaskView
from ..streams import TaskStream
from .bootstrap import ENOUGH, Sample
from .quantiles import quantile
from .relations import STEPS, Relations

__all__ = ["DEADLOCK", "RESERVOIR", "Edge", "Run"]

#: Durations kept of each name, chosen at random among all (J. S. Vitter, "Random sampling with a reservoir", 1985).
RESERVOIR: Final = 4096
#: Names whose durations are kept.
MAX_NAMES: Final = 1000
#: Durations kept of a name in each process, and how many such samples there may be.
PROCESS_RESERVOIR: Final = 512
MAX_PROCESS_SAMPLES: Final = 4000
#: A process has these bits in common in all ids of its spans.
_BASE_DIGITS: Final = 8
#: The kind of a finding.
DEADLOCK: Final = "deadlock"

#: What one end is called, what the other is, and what they have to do with each other, as in a `Graph`: "spawned",
#: "awaited", "held" or "sent". (Not "waited": whether a lock is waited for is often chance.)
Edge = tuple[str, str, str]
_EDGES: Final = ("spawned", "awaited", "held", "sent")


class _Kept:
    """A reservoir of (start, duration), both in seconds."""

    __slots__ = ("_size", "_source", "durations", "seen", "starts")

    def __init__(self, name: str, size: int) -> None:
        self.starts, self.durations, self.seen = array("d"), array("d"), 0
        self._source = random.Random(name.encode("utf-8", "surrogatepass"))
        self._size = size

    def add(self, start: float, duration: float) -> None:
        self.seen += 1
        if len(self.starts) < self._size:
            self.starts.append(start)
            self.durations.append(duration)
            return
        place = self._source.randrange(self.seen)
        if place < self._size:
            self.starts[place], self.durations[place] = start, duration


class Run:
    """What is kept of one side."""

    def __init__(self, source: Snapshot | TaskStream) -> None:
        self.kept: dict[str, _Kept] = {}
        # The same by process and name; and from when to when there was the process.
        self._processes: dict[str, dict[str, _Kept]] = {}
        self._spans: dict[str, tuple[float, float]] = {}
        self._process_samples = 0
        self._relations = Relations(keep=0, anonymous=True)
        #: Whether what each task waited for and held is known.
        self.steps = False
        if isinstance(source, Snapshot):
            self._read(source.tasks)
            rest = source
        elif callable(getattr(source, "rest", None)):
            self._read(source)
            rest = source.rest()
        else:
            raise ConfigError(
                f"{type(source).__name__} cannot be compared; give a Snapshot, as of inspector.snapshot(), or LogTasks"
            )
        self.names: Mapping[str, NameView] = rest.names
        #: Whether records are missing, or could not be read, so that counts are lower bounds.
        self.partial = any(rest.dropped.get(reason) for reason in ("gap", "malformed"))
        self.edges = {edge for edge in self._relations.labelled() if edge[2] in _EDGES}
        #: Whether all tasks were there, and so all that one began.
        self.whole = self._relations.tasks >= sum(view.spawned for view in self.names.values())
        self.findings = Counter({(kind, name): count for (kind, name), count in rest.lints.items() if count})
        for finding in rest.findings:
            if (finding.kind, finding.name) not in rest.lints:
                self.findings[finding.kind, finding.name] += 1
        # A page counts deadlocks, and does not say whose they are.
        if rest.deadlocks and not any(kind == DEADLOCK for kind, _ in self.findings):
            self.findings[DEADLOCK, ""] = rest.deadlocks

    def _read(self, tasks: Iterable[TaskView]) -> None:
        for task in tasks:
            # As the inspector counts it: names beyond its limit are one.
            name = task.name
            if task.outcome == "completed" and task.duration is not None:
                if name not in self.kept and len(self.kept) >= MAX_NAMES:
                    continue
                kept = self.kept.get(name)
                if kept is None:
                    kept = self.kept[name] = _Kept(name, RESERVOIR)
                kept.add(task.started_at, task.duration)
                self._add_to_process(task.id[:_BASE_DIGITS], name, task.started_at, task.duration)
            self._relations.take(task)
            self.steps = self.steps or bool(task.awaiting) or any(event.kind in STEPS for event in task.events)

    def _add_to_process(self, process: str, name: str, start: float, duration: float) -> None:
        kept = self._processes.get(process, {}).get(name)
        if kept is None:
            if self._process_samples >= MAX_PROCESS_SAMPLES:
                return
            self._process_samples += 1
            kept = self._processes.setdefault(process, {})[name] = _Kept(name, PROCESS_RESERVOIR)
        kept.add(start, duration)
        first, last = self._spans.get(process, (start, start))
        self._spans[process] = min(first, start), max(last, start + duration)

    def _runs(self) -> list[list[str]]:
        """The processes of each run. Those that were there at the same time, such as the workers of a server, are of
        one: what was special about that time, all of them had.
        """
        runs: list[list[str]] = []
        end = -math.inf
        for process, (first, last) in sorted(self._spans.items(), key=lambda item: item[1]):
            if first > end:
                runs.append([])
            runs[-1].append(process)
            end = max(end, last)
        return runs

    @cached_property
    def runs(self) -> list[dict[str, list[float]]]:
        """The durations of each run by name, in order."""
        found = []
        for run in self._runs():
            names: dict[str, list[float]] = {}
            for process in run:
                for name, kept in self._processes[process].items():
                    names.setdefault(name, []).extend(kept.durations)
            found.append({name: sorted(durations) for name, durations in names.items()})
        return found

    def levels(self, name: str, q: float) -> dict[int, float]:
        """By run, the logarithm of the q-quantile of a name, where there are samples enough."""
        return {
            index: math.log(max(quantile(names[name], q), 1e-9))
            for index, names in enumerate(self.runs)
            if name in names and len(names[name]) * min(q, 1 - q) >= ENOUGH
        }

    def sample(self, name: str) -> Sample | None:
        """The durations of a name, if they are all there or a fair choice of all."""
        kept, view = self.kept.get(name), self.names.get(name)
        if kept is None or view is None or kept.seen < view.completed:
            return None
        return Sample.of(zip(kept.starts, kept.durations, strict=True))
