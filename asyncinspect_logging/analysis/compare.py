"""What differs between two runs: names, counts, outcomes, durations, edges and findings, and how sure that is."""

from __future__ import annotations

import difflib
import math
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from statistics import fmean, median
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ..errors import ConfigError
from ..snapshot import Histogram, NameView, Snapshot, TaskView
from .bootstrap import ENOUGH, Evidence, Pair, Sample, at_equal_speed, moderate, stolen
from .quantiles import MoreThan, histogram_quantile, quantile
from .relations import Relations
from .repeats import FEWEST_RUNS, Repeats
from .thresholds import COUNTS, QUANTILES, Condition, parse_condition

__all__ = ["RESERVOIR", "Change", "Comparison", "Edge", "Ratio", "TaskStream", "Verdict", "compare"]

#: Durations kept of each name, chosen at random among all (J. S. Vitter, "Random sampling with a reservoir", 1985).
RESERVOIR: Final = 4096
#: Names whose durations are kept.
MAX_NAMES: Final = 1000
_MAX_SHOWN: Final = 40
#: Durations kept of a name in each process, and how many such samples there may be.
PROCESS_RESERVOIR: Final = 512
MAX_PROCESS_SAMPLES: Final = 4000
#: Other names by which the speed of the machine in a run is told, at least.
_FEWEST_NAMES: Final = 3
#: A process has these bits in common in all ids of its spans.
_BASE_DIGITS: Final = 8
_DEADLOCK: Final = "deadlock"

#: What one end is called, what the other is, and what they have to do with each other, as in a `Graph`: "spawned",
#: "awaited", "held" or "sent". (Not "waited": whether a lock is waited for is often chance.)
Edge = tuple[str, str, str]
_EDGES: Final = ("spawned", "awaited", "held", "sent")
#: Entries of timelines that are there at level TRACE.
_STEPS: Final = frozenset({"suspend", "wake", "resume", "wait", "acquire", "release"})
_Key = TypeVar("_Key")


class TaskStream(Protocol):
    """Tasks, each once it has ended, and afterwards the totals."""

    def __iter__(self) -> Iterator[TaskView]: ...

    def rest(self) -> Snapshot: ...


class Ratio(NamedTuple):
    """A quantile of the durations of completed spans, in seconds, and what is known of after / before. Of histograms,
    `before` and `after` may be no more than a bound that it is above (`quantiles.MoreThan`).

    `value` is after / before, `low` and `high` bound it; None where the samples are too small to say. `at_equal_speed`
    says that the machine's own speed, as other names told it, was taken out of it. `change` is "slower" or "faster"
    where that is shown, all comparisons together, at the confidence of the comparison.
    """

    before: float | None
    after: float | None
    value: float | None
    low: float | None
    high: float | None
    at_equal_speed: bool
    change: str | None


class Change(NamedTuple):
    """One name: its counts and quantiles (keys "p50", "p95", "p99") before and after."""

    name: str
    before: NameView | None
    after: NameView | None
    quantiles: Mapping[str, Ratio]


class Verdict(NamedTuple):
    """What became of a condition, for one name or for none. `failed` is None where too little is known to say."""

    condition: str
    name: str | None
    failed: bool | None
    message: str


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


class _Run:
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
        if rest.deadlocks and not any(kind == _DEADLOCK for kind, _ in self.findings):
            self.findings[_DEADLOCK, ""] = rest.deadlocks

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
            self.steps = self.steps or bool(task.awaiting) or any(event.kind in _STEPS for event in task.events)

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


def _family(edges: Iterable[Edge]) -> dict[str, set[str]]:
    """By name, the names that it is inside of, or that are inside of it, at any depth."""
    below: dict[str, set[str]] = {}
    for parent, child, kind in edges:
        if kind in ("spawned", "awaited"):
            below.setdefault(parent, set()).add(child)
    family: dict[str, set[str]] = {}
    for name in below:
        found: set[str] = set()
        left = list(below[name])
        while left:
            child = left.pop()
            if child not in found:
                found.add(child)
                left.extend(below.get(child, ()))
        family.setdefault(name, set()).update(found)
        for child in found:
            family.setdefault(child, set()).add(name)
    return family


def _new_edges(before: _Run, after: _Run) -> tuple[Edge, ...] | None:
    if not before.whole:
        return None
    return tuple(sorted(e for e in after.edges - before.edges if before.steps or e[2] == "spawned"))


def _new_findings(before: _Run, after: _Run) -> tuple[tuple[str, str], ...]:
    found = after.findings.keys() - before.findings.keys()
    nameless = (_DEADLOCK, "") in before.findings or (_DEADLOCK, "") in found
    if nameless and any(kind == _DEADLOCK for kind, _ in before.findings):
        found = {each for each in found if each[0] != _DEADLOCK}
    return tuple(sorted(found))


class Comparison:
    """Two runs, compared; made by `compare`.

    `changes` has every name, those of most spans first; `new_names`, `gone_names`, `new_edges`, `gone_edges`,
    `new_findings` and `gone_findings` (pairs of kind and name) are what only one of the two has. Edges are None where
    the other side has not all its tasks, as a page of metrics has none; where a side has no step records, only those of
    the kind "spawned" are compared. `machine` is by how
    much the names that follow the machine's speed were slower after than before, 1.0 where that is not known.
    """

    def __init__(self, before: _Run, after: _Run, confidence: float, seed: int) -> None:
        self.confidence = confidence
        self._seed = seed
        self._evidence: dict[str, dict[str, Evidence | Repeats]] = {}
        self.new_names = tuple(sorted(after.names.keys() - before.names.keys()))
        self.gone_names = tuple(sorted(before.names.keys() - after.names.keys()))
        self.new_edges, self.gone_edges = _new_edges(before, after), _new_edges(after, before)
        self.new_findings, self.gone_findings = _new_findings(before, after), _new_findings(after, before)
        self._before, self._after = before, after
        pairs: dict[str, Pair] = {}
        for name in before.names.keys() & after.names.keys():
            one, other = before.sample(name), after.sample(name)
            if one is not None and other is not None:
                pairs[name] = Pair(one, other)
        self._related = _family([*before.edges, *after.edges])
        self._repeated = min(len(before.runs), len(after.runs)) >= FEWEST_RUNS
        self._speeds = at_equal_speed({name: pairs[name] for name in sorted(pairs)}, self._related)
        self._stolen = stolen(pairs.values())
        shifts = sorted(
            quantile(sorted(pairs[name].after.logs), 0.5) - quantile(sorted(pairs[name].before.logs), 0.5)
            for name, (_, known) in self._speeds.items()
            if known
        )
        self.machine = 1.0 if len(shifts) < 3 else math.exp(quantile(shifts, 0.5))
        self.changes = tuple(self._changes())

    # -- names -------------------------------------------------------------------------------------------------------

    def _changes(self) -> Iterator[Change]:
        names = self._before.names.keys() | self._after.names.keys()

        def spans(name: str) -> int:
            return sum(run.names[name].spawned for run in (self._before, self._after) if name in run.names)

        ordered = sorted(names, key=lambda name: (-spans(name), name))
        shown = self._shown([(name, which) for name in ordered for which in QUANTILES])
        for name in ordered:
            yield Change(
                name,
                self._before.names.get(name),
                self._after.names.get(name),
                {which: self._ratio(name, which, shown.get((name, which))) for which in QUANTILES},
            )

    def _repeats(self, names: Iterable[str], q: float) -> dict[str, Repeats]:
        """What several runs on each side tell, of those names that have samples enough in them."""
        levels = {name: (self._before.levels(name, q), self._after.levels(name, q)) for name in names}
        levels = {name: sides for name, sides in levels.items() if min(map(len, sides)) >= FEWEST_RUNS}
        # How slow each run was by each name, around what is usual for the name.
        slow: dict[str, list[dict[int, float]]] = {}
        for name in levels:
            middles = (self._before.levels(name, 0.5), self._after.levels(name, 0.5))
            usual = fmean([level for side in middles for level in side.values()])
            slow[name] = [{run: level - usual for run, level in side.items()} for side in middles]
        found = {}
        for name, (before, after) in levels.items():
            others = [each for each in slow if each != name and each not in self._related.get(name, ())]
            speeds = None
            if len(others) >= _FEWEST_NAMES:
                speeds = (
                    [median([slow[other][0].get(run, 0.0) for other in others]) for run in before],
                    [median([slow[other][1].get(run, 0.0) for other in others]) for run in after],
                )
            found[name] = Repeats(list(before.values()), list(after.values()), speeds)
        return found

    def _find(self, name: str, which: str) -> Evidence | Repeats | None:
        """What is known of a ratio; None where that is too little."""
        if which not in self._evidence and self._repeated:
            self._evidence[which] = dict(self._repeats(self._speeds, QUANTILES[which]))
        elif which not in self._evidence:
            q = QUANTILES[which]
            found = {
                each: Evidence(pairs, q, f"{self._seed}/{each}/{which}") for each, (pairs, _) in self._speeds.items()
            }
            known = {each: evidence for each, evidence in found.items() if evidence.enough}
            self._evidence[which] = dict(known)
            moderate({each: (evidence, self._speeds[each][1]) for each, evidence in known.items()}, q, self._stolen)
        return self._evidence[which].get(name)

    def _shown(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Which ratios are shown to be above or below 1, all of them together."""
        chances: dict[tuple[str, str], tuple[float, str]] = {}
        for name, which in keys:
            evidence = self._find(name, which)
            if evidence is not None:
                slower, faster = evidence.chance(1.0), evidence.chance(1.0, above=False)
                # Twice, for there are two sides.
                chances[name, which] = (2 * slower, "slower") if slower < faster else (2 * faster, "faster")
        sure = _holm({key: chance for key, (chance, _) in chances.items()}, 1 - self.confidence)
        return {key: chances[key][1] for key in sure}

    def _ratio(self, name: str, which: str, change: str | None) -> Ratio:
        q = QUANTILES[which]
        levels = [self._level(run, name, q) for run in (self._before, self._after)]
        evidence = self._find(name, which)
        if evidence is None:
            return Ratio(levels[0], levels[1], None, None, None, False, None)
        low, high = evidence.interval(self.confidence)
        equal = evidence.at_equal_speed if isinstance(evidence, Repeats) else self._speeds[name][1]
        return Ratio(levels[0], levels[1], evidence.value, low, high, equal, change)

    @staticmethod
    def _level(run: _Run, name: str, q: float) -> float | None:
        kept, view = run.kept.get(name), run.names.get(name)
        if view is None or not view.completed:
            return None
        if kept is not None and kept.seen >= view.completed:
            return quantile(sorted(kept.durations), q)
        histogram: Histogram | None = view.durations.get("completed")
        told = math.nan if histogram is None else histogram_quantile(histogram, q)
        # Nothing is known where the bounds of several processes have none in common, or a page has the count alone.
        return None if math.isnan(told) else told

    # -- conditions --------------------------------------------------------------------------------------------------

    def failures(self, conditions: Iterable[str | Condition]) -> list[Verdict]:
        """The conditions that hold, and so fail the comparison, with the names they hold for.

        Raises ConfigError for a condition that cannot be read, or that is of a name that neither run has.
        """
        return [verdict for verdict in self.judge(conditions) if verdict.failed]

    def judge(self, conditions: Iterable[str | Condition]) -> list[Verdict]:
        """What became of each condition, also of those that do not hold, or of which too little is known: at least one
        verdict each.

        A ratio of quantiles holds if it is shown at the confidence of the comparison, all names of the condition
        together (S. Holm, "A simple sequentially rejective multiple test procedure", 1979). Raises as `failures` does.
        """
        if isinstance(conditions, str):
            conditions = [conditions]
        verdicts: list[Verdict] = []
        for given in conditions:
            condition = given if isinstance(given, Condition) else parse_condition(given)
            if condition.measure in QUANTILES:
                nothing = Verdict(condition.text, condition.name, None, "no span to compare")
                verdicts += list(self._judge_quantile(condition)) or [nothing]
            elif condition.measure in COUNTS:
                verdicts.append(self._judge_count(condition))
            else:
                verdicts.append(self._judge_list(condition))
        return verdicts

    def _names_of(self, condition: Condition) -> list[str]:
        names = [change.name for change in self.changes]
        if condition.name is None:
            return names
        if condition.name not in names:
            like = difflib.get_close_matches(condition.name, names, 3)
            hint = f"; there is {', '.join(map(repr, like))}" if like else f"; there are {len(names)} other names"
            raise ConfigError(f"condition {condition.text!r}: no span is called {condition.name!r} in either run{hint}")
        return [condition.name]

    def _judge_quantile(self, condition: Condition) -> Iterator[Verdict]:
        text, which = condition.text, condition.measure
        ratios = {change.name: change.quantiles[which] for change in self.changes}
        names = [name for name in self._names_of(condition) if ratios[name].after is not None]
        if condition.unit == "s":
            for name in names:
                after = ratios[name].after
                assert after is not None
                failed: bool | None = condition.holds(after)
                if isinstance(after, MoreThan):
                    # It may be above a bound that is higher, and is above any other.
                    failed = None if condition.bound > after else condition.above
                yield Verdict(text, name, failed, f"{name}: {which} is {_seconds(after)} after")
            return
        known = {name: evidence for name in names if (evidence := self._find(name, which)) is not None}
        sure = _holm(
            {name: evidence.chance(condition.bound, above=condition.above) for name, evidence in known.items()},
            1 - self.confidence,
        )
        for name in names:
            if name in known:
                yield Verdict(text, name, name in sure, f"{name}: {which} {_described(ratios[name])}")
            elif name in self._before.names:
                message = f"{name}: the samples are too small to compare {which}, or not all kept"
                yield Verdict(text, name, None, message)

    def _judge_count(self, condition: Condition) -> Verdict:
        names = self._names_of(condition)
        before, after = (
            sum(_count(run.names[name], condition.measure) for name in names if name in run.names)
            for run in (self._before, self._after)
        )
        what = f"{condition.measure} {before:,} -> {after:,}"
        subject = what if condition.name is None else f"{condition.name}: {what}"
        if condition.unit == "%":
            ended = sum(self._after.names[name].finished for name in names if name in self._after.names)
            if not ended:
                return Verdict(condition.text, condition.name, None, f"{subject}: nothing has ended")
            part = 100 * after / ended
            return Verdict(
                condition.text, condition.name, condition.holds(part), f"{subject}, {part:.3g} % of {ended:,}"
            )
        if condition.unit == "x":
            return self._judge_count_ratio(condition, before, after, subject)
        if self._after.partial and condition.holds(after) is not condition.above:
            message = f"{subject}, at least: records are missing"
            return Verdict(condition.text, condition.name, None, message)
        return Verdict(condition.text, condition.name, condition.holds(after), subject)

    def _judge_count_ratio(self, condition: Condition, before: int, after: int, subject: str) -> Verdict:
        """Counts as what they are, the outcome of chance: their true rates are drawn by Jeffreys' posterior."""
        source = random.Random(f"{self._seed}/{condition.text}".encode("utf-8", "surrogatepass"))
        gamma, bound = source.gammavariate, condition.bound
        draws = 4000
        held = sum((gamma(after + 0.5, 1) > bound * gamma(before + 0.5, 1)) == condition.above for _ in range(draws))
        shown = held >= self.confidence * draws
        if not shown and before + after < 10:
            return Verdict(condition.text, condition.name, None, f"{subject}: too few to say")
        return Verdict(condition.text, condition.name, shown, subject)

    def _judge_list(self, condition: Condition) -> Verdict:
        word, what = condition.measure.split()
        found: Sequence[Any] | None = getattr(self, f"{word}_{what}")
        one, other = (self._before, self._after) if word == "new" else (self._after, self._before)
        if found is None:
            return Verdict(condition.text, None, None, _untold(word))
        shown = ", ".join(_label(each) for each in found[:5]) + (", …" if len(found) > 5 else "")
        message = f"{len(found)} {condition.measure}" + (f": {shown}" if found else "")
        holds = condition.holds(len(found))
        # There may be more than those that were found.
        least = other.partial or (what == "edges" and not (other.whole and one.steps == other.steps))
        if least and holds is not condition.above:
            return Verdict(condition.text, None, None, f"{message}, at least: not all is known")
        return Verdict(condition.text, None, holds, message)

    # -- out ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. Times are in seconds. `more_than` of a quantile lists the runs ("before", "after") of
        which no more is known than that it is above the value that is given.
        """
        return {
            "confidence": self.confidence,
            "machine": self.machine,
            "names": [
                {
                    "name": change.name,
                    "before": _counts(change.before),
                    "after": _counts(change.after),
                    **{which: _plain(ratio) for which, ratio in change.quantiles.items()},
                }
                for change in self.changes
            ],
            "new": {
                "names": list(self.new_names),
                "edges": _lists(self.new_edges),
                "findings": [list(finding) for finding in self.new_findings],
            },
            "gone": {
                "names": list(self.gone_names),
                "edges": _lists(self.gone_edges),
                "findings": [list(finding) for finding in self.gone_findings],
            },
        }

    def render(self) -> str:
        """As text: what differs first, then every name."""
        lines: list[str] = []
        for word in ("new", "gone"):
            for what in ("names", "edges", "findings"):
                found: Sequence[Any] | None = getattr(self, f"{word}_{what}")
                if found is None:
                    lines.append(_untold(word))
                    continue
                lines += [f"{word} {what.removesuffix('s')}: {_label(each)}" for each in found[:_MAX_SHOWN]]
                if len(found) > _MAX_SHOWN:
                    lines.append(f"… and {len(found) - _MAX_SHOWN} more {word} {what}")
        if abs(self.machine - 1) > 0.05:
            how, factor = ("slower", self.machine) if self.machine > 1 else ("faster", 1 / self.machine)
            lines.append(
                f"the machine, or all of the program, was {factor:.2f}x {how}; ratios marked = are without that"
            )
        for change in self.changes[:_MAX_SHOWN]:
            lines.append(f"{_shown_name(change.name)}: {_outcomes(change)}")
            known = {which: ratio for which, ratio in change.quantiles.items() if ratio.before or ratio.after}
            lines += [f"  {which} {_described(ratio)}" for which, ratio in known.items()]
        if len(self.changes) > _MAX_SHOWN:
            lines.append(f"… and {len(self.changes) - _MAX_SHOWN} more names")
        return "\n".join(lines)

    __str__ = render


def compare(
    before: Snapshot | TaskStream, after: Snapshot | TaskStream, *, confidence: float = 0.99, seed: int = 0
) -> Comparison:
    """Compare two runs, each a Snapshot or a task stream such as LogTasks, which is read to its end.

    confidence: of intervals, and that nothing is called slower, faster or failed by chance, all names together; above
        0.5 and below 1. seed: of the random draws; the same runs with the same seed give the same result.

    Where both sides have three runs or more (processes, one after the other), these are compared: see `repeats`.

    Of a snapshot only those names have intervals whose completed tasks it has all kept.

    Raises ConfigError for another confidence or seed, and for what is no run.
    """
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0.5 < confidence < 1:
        raise ConfigError(f"confidence={confidence!r} is not above 0.5 and below 1; write 0.99")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed={seed!r} is not a whole number; write 0")
    return Comparison(_Run(before), _Run(after), float(confidence), seed)


def _holm(chances: Mapping[_Key, float], alpha: float) -> set[_Key]:
    """Those that are shown, with the probability that any of them is wrong at most `alpha`."""
    sure = set()
    for rank, key in enumerate(sorted(chances, key=lambda key: chances[key])):
        if chances[key] > alpha / (len(chances) - rank):
            break
        sure.add(key)
    return sure


def _count(view: NameView, measure: str) -> int:
    found: int = view.spawned if measure == "count" else getattr(view, measure)
    return found


def _counts(view: NameView | None) -> dict[str, int] | None:
    return None if view is None else {measure: _count(view, measure) for measure in COUNTS}


def _plain(ratio: Ratio) -> dict[str, Any]:
    sides = [side for side in ("before", "after") if isinstance(getattr(ratio, side), MoreThan)]
    return ratio._asdict() | {"more_than": sides}


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, MoreThan):
        return f"> {_seconds(float(value))}"
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def _described(ratio: Ratio) -> str:
    text = f"{_seconds(ratio.before)} -> {_seconds(ratio.after)}"
    if ratio.before is None or ratio.after is None:
        return text
    if ratio.value is None:
        return f"{text}: too few samples to say"
    mark = "=" if ratio.at_equal_speed else ""
    text += f": {mark}{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{text} {ratio.change}" if ratio.change else text


def _outcomes(change: Change) -> str:
    parts = []
    for measure in COUNTS:
        before, after = (0 if view is None else _count(view, measure) for view in (change.before, change.after))
        if before or after:
            word = "spans" if measure == "count" else measure
            parts.append(f"{before:,} {word}" if before == after else f"{before:,} -> {after:,} {word}")
    return ", ".join(parts) or "no spans"


def _lists(edges: Iterable[Edge] | None) -> list[list[str]] | None:
    return None if edges is None else [list(edge) for edge in edges]


def _untold(word: str) -> str:
    return f"{word} edges are unknown: the run {'before' if word == 'new' else 'after'} does not have all its tasks"


def _shown_name(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _label(each: Any) -> str:
    if isinstance(each, str):
        return _shown_name(each)
    if len(each) == 3:
        return f"{_shown_name(each[0])} -> {_shown_name(each[1])} ({each[2]})"
    return f"{each[0]} in {_shown_name(each[1])}" if each[1] else str(each[0])
