"""What differs between two runs: names, counts, outcomes, durations, edges and findings, and how sure that is."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any, Final, NamedTuple, TypeVar

from ..errors import ConfigError
from ..snapshot import Histogram, NameView, Snapshot
from ..streams import TaskStream
from .bootstrap import Evidence, Pair, at_equal_speed, moderate, stolen
from .compare_text import count, described, label, seconds, text_of, untold
from .quantiles import MoreThan, histogram_quantile, quantile
from .repeats import FEWEST_RUNS, Repeats
from .runs import DEADLOCK, RESERVOIR, Edge, Run
from .thresholds import COUNTS, QUANTILES, Condition, parse_condition, quantile_of

__all__ = ["RESERVOIR", "Change", "Comparison", "Edge", "Ratio", "TaskStream", "Verdict", "compare"]

#: Other names by which the speed of the machine in a run is told, at least.
_FEWEST_NAMES: Final = 3
_Key = TypeVar("_Key")


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


def _new_edges(before: Run, after: Run) -> tuple[Edge, ...] | None:
    if not before.whole:
        return None
    return tuple(sorted(e for e in after.edges - before.edges if before.steps or e[2] == "spawned"))


def _new_findings(before: Run, after: Run) -> tuple[tuple[str, str], ...]:
    found = after.findings.keys() - before.findings.keys()
    nameless = (DEADLOCK, "") in before.findings or (DEADLOCK, "") in found
    if nameless and any(kind == DEADLOCK for kind, _ in before.findings):
        found = {each for each in found if each[0] != DEADLOCK}
    return tuple(sorted(found))


class Comparison:
    """Two runs, compared; made by `compare`.

    `changes` has every name, those of most spans first; `new_names`, `gone_names`, `new_edges`, `gone_edges`,
    `new_findings` and `gone_findings` (pairs of kind and name) are what only one of the two has. Edges are None where
    the other side has not all its tasks, as a page of metrics has none; where a side has no step records, only those of
    the kind "spawned" are compared. `machine` is by how
    much the names that follow the machine's speed were slower after than before, 1.0 where that is not known.
    """

    def __init__(self, before: Run, after: Run, confidence: float, seed: int) -> None:
        self.confidence = confidence
        self._seed = seed
        # By quantile and name.
        self._evidence: dict[float, dict[str, Evidence | Repeats]] = {}
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
        shown = self._shown([(name, q) for name in ordered for q in QUANTILES.values()])
        for name in ordered:
            yield Change(
                name,
                self._before.names.get(name),
                self._after.names.get(name),
                {which: self._ratio(name, q, shown.get((name, q))) for which, q in QUANTILES.items()},
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

    def _find(self, name: str, q: float) -> Evidence | Repeats | None:
        """What is known of a ratio; None where that is too little."""
        if q not in self._evidence and self._repeated:
            self._evidence[q] = dict(self._repeats(self._speeds, q))
        elif q not in self._evidence:
            found = {each: Evidence(pairs, q, f"{self._seed}/{each}/{q}") for each, (pairs, _) in self._speeds.items()}
            known = {each: evidence for each, evidence in found.items() if evidence.enough}
            self._evidence[q] = dict(known)
            moderate({each: (evidence, self._speeds[each][1]) for each, evidence in known.items()}, q, self._stolen)
        return self._evidence[q].get(name)

    def _shown(self, keys: Sequence[tuple[str, float]]) -> dict[tuple[str, float], str]:
        """Which ratios are shown to be above or below 1, all of them together."""
        chances: dict[tuple[str, float], tuple[float, str]] = {}
        for name, q in keys:
            evidence = self._find(name, q)
            if evidence is not None:
                slower, faster = evidence.chance(1.0), evidence.chance(1.0, above=False)
                # Twice, for there are two sides.
                chances[name, q] = (2 * slower, "slower") if slower < faster else (2 * faster, "faster")
        sure = _holm({key: chance for key, (chance, _) in chances.items()}, 1 - self.confidence)
        return {key: chances[key][1] for key in sure}

    def _ratio(self, name: str, q: float, change: str | None) -> Ratio:
        levels = [self._level(run, name, q) for run in (self._before, self._after)]
        evidence = self._find(name, q)
        if evidence is None:
            return Ratio(levels[0], levels[1], None, None, None, False, None)
        low, high = evidence.interval(self.confidence)
        equal = evidence.at_equal_speed if isinstance(evidence, Repeats) else self._speeds[name][1]
        return Ratio(levels[0], levels[1], evidence.value, low, high, equal, change)

    @staticmethod
    def _level(run: Run, name: str, q: float) -> float | None:
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
            q = quantile_of(condition.measure)
            if q is not None:
                nothing = Verdict(condition.text, condition.name, None, "no span to compare")
                verdicts += list(self._judge_quantile(condition, q)) or [nothing]
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

    def _judge_quantile(self, condition: Condition, q: float) -> Iterator[Verdict]:
        text, which = condition.text, condition.measure
        shown = {change.name: change.quantiles for change in self.changes}
        ratios = {name: shown[name].get(which) or self._ratio(name, q, None) for name in self._names_of(condition)}
        names = [name for name, ratio in ratios.items() if ratio.after is not None]
        if condition.unit == "s":
            for name in names:
                after = ratios[name].after
                assert after is not None
                failed: bool | None = condition.holds(after)
                if isinstance(after, MoreThan):
                    # It may be above a bound that is higher, and is above any other.
                    failed = None if condition.bound > after else condition.above
                yield Verdict(text, name, failed, f"{name}: {which} is {seconds(after)} after")
            return
        known = {name: evidence for name in names if (evidence := self._find(name, q)) is not None}
        sure = _holm(
            {name: evidence.chance(condition.bound, above=condition.above) for name, evidence in known.items()},
            1 - self.confidence,
        )
        for name in names:
            if name in known:
                yield Verdict(text, name, name in sure, f"{name}: {which} {described(ratios[name])}")
            elif name in self._before.names:
                message = f"{name}: the samples are too small to compare {which}, or not all kept"
                yield Verdict(text, name, None, message)

    def _judge_count(self, condition: Condition) -> Verdict:
        names = self._names_of(condition)
        before, after = (
            sum(count(run.names[name], condition.measure) for name in names if name in run.names)
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
            return Verdict(condition.text, None, None, untold(word))
        shown = ", ".join(label(each) for each in found[:5]) + (", …" if len(found) > 5 else "")
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
        return text_of(self)

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
    return Comparison(Run(before), Run(after), float(confidence), seed)


def _holm(chances: Mapping[_Key, float], alpha: float) -> set[_Key]:
    """Those that are shown, with the probability that any of them is wrong at most `alpha`."""
    sure = set()
    for rank, key in enumerate(sorted(chances, key=lambda key: chances[key])):
        if chances[key] > alpha / (len(chances) - rank):
            break
        sure.add(key)
    return sure


def _counts(view: NameView | None) -> dict[str, int] | None:
    return None if view is None else {measure: count(view, measure) for measure in COUNTS}


def _plain(ratio: Ratio) -> dict[str, Any]:
    sides = [side for side in ("before", "after") if isinstance(getattr(ratio, side), MoreThan)]
    return ratio._asdict() | {"more_than": sides}


def _lists(edges: Iterable[Edge] | None) -> list[list[str]] | None:
    return None if edges is None else [list(edge) for edge in edges]
