"""A back-test: rules and logs in, and when each alert would have fired."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import ConfigError
from ..files import LogFileError, Source, sources
from ..replay import Report
from .alerts import AlertRule, Episode, Timeline
from .processes import Processes
from .programs import ProgramError, Prometheus, Promtool
from .samples import NOT_IN_LOGS, Wanted, replay_into

__all__ = ["Backtest", "Result", "backtest"]

Progress = Callable[[int, int | None], None]

#: Moments in all, of which there are 5,760 in a day at 15 s.
_MAX_MOMENTS: Final = 500_000
#: Bytes of samples that promtool gets at a time, and moments that are asked of at a time.
_MAX_TEXT: Final = 1 << 26
_MOMENTS_AT_ONCE: Final = 500
_BLOCK: Final = 7200  # seconds
_MAX_RULES_FILE: Final = 16 << 20

_WORD: Final = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_JOB: Final = re.compile(r'\bjob\s*=\s*"([^"\\]+)"')
#: What is no name of a metric in an expression: texts, labels, windows, and the names of functions and words.
_STRING: Final = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`[^`]*`')
_LABELS: Final = re.compile(r"\{[^{}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_METRIC: Final = re.compile(r"(?<![\w:.])[A-Za-z_:][A-Za-z0-9_:]*(?!\s*\()(?![\w:])")
_KEYWORDS: Final = frozenset(("and", "or", "unless", "bool", "offset", "inf", "nan", "atan2", "start", "end"))


class Result(NamedTuple):
    """start, end, interval: the first and last moment (Unix time in seconds) and the seconds from one to the next.
    alerts: of each rule, its name and how often it would have fired. episodes: each time that an alert held, in the
    order of their beginnings. instances: the targets. samples: how many moments. notes: what limits what was found.
    """

    start: int
    end: int
    interval: int
    job: str
    alerts: Mapping[str, int]
    recorded: tuple[str, ...]
    episodes: tuple[Episode, ...]
    instances: tuple[str, ...]
    samples: int
    notes: tuple[str, ...]


class _Group(NamedTuple):
    """A group of rules, as Prometheus read it. `interval` in seconds."""

    name: str
    interval: int
    rules: list[dict[str, Any]]


class Backtest:
    """Rules, to be tried on logs: `run()` does it. `report` says what was met in the logs.

    rules: a file as Prometheus takes it, with alerting rules and, if they are needed, recording rules.
    paths: logs, as `analysis.replay.Replay` takes them; "-" is copied to a temporary file.
    interval: seconds from one scrape to the next, and from one evaluation to the next of groups that say nothing else.
    job: the label `job` of the targets; default: the one that the rules ask for, or "asyncinspect".
    start, end: Unix time in seconds: evaluate between these only. The default is all of the log, whose last state stays
        until `end`, if that is later.
    strict: a broken line is an error.

    Raises ConfigError where promtool or Prometheus is missing or what was asked for cannot be done, ProgramError for
    what they refuse, with their words, LogFileError for what cannot be read.
    """

    def __init__(
        self,
        rules: str | os.PathLike[str],
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        interval: int = 15,
        job: str | None = None,
        start: float | None = None,
        end: float | None = None,
        strict: bool = False,
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or not 1 <= interval <= 3600:
            raise ConfigError(f"interval={interval!r} is not a number of seconds from 1 to 3600; write for example 15")
        if job is not None and not (job and job.isprintable()):
            raise ConfigError(f"job={job!r} is no name of a job; write the job_name of the scrape configuration")
        if start is not None and end is not None and start >= end:
            raise ConfigError(f"start={start!r} is not before end={end!r}; exchange them")
        self._rules = Path(rules)
        self._paths = paths
        self.interval = interval
        self._job = job
        self._start, self._end = start, end
        self._strict = strict
        self.report = Report()

    def run(self, progress: Progress | None = None) -> Result:
        """progress: called now and then with what is done and what there is to do: three times the bytes of the logs,
        as they are read, are read again, and the rules are evaluated.
        """
        promtool = Promtool()
        rules = _text_of(self._rules)
        with tempfile.TemporaryDirectory(prefix="asyncinspect-backtest-") as name:
            folder = Path(name).resolve()
            # What is checked is what is loaded, whoever writes to the file meanwhile.
            copy = folder / "rules.yml"
            copy.write_bytes(rules)
            try:
                promtool.check(copy)
            except ProgramError as error:
                raise ProgramError(str(error).replace(str(copy), str(self._rules))) from None
            groups = self._groups(folder, copy)
            alerts = [rule for group in groups for rule in group.rules if rule["type"] == "alerting"]
            if not alerts:
                raise ConfigError(f"there is no alert in {str(self._rules)!r}; give a file with alerting rules")
            with _copied(sources(self._paths), folder) as found:
                return self._run(promtool, folder, groups, found, progress)

    def _run(
        self,
        promtool: Promtool,
        folder: Path,
        groups: list[_Group],
        found: list[Source],
        progress: Progress | None,
    ) -> Result:
        size = sum(source.size or 0 for source in found)

        def part(number: int) -> Progress | None:
            if progress is None:
                return None
            return lambda done, total: progress(number * size + (done * size // total if total else 0), 3 * size)

        processes = Processes()
        processes.find(found, part(0))
        self.report.lines = self.report.foreign = processes.lines
        if not processes.by_key:
            names = " ".join(source.name for source in found)
            raise LogFileError(
                f"{names[:500]}: no records of spans in {processes.lines:,} lines; give another file, or log at DEBUG"
            )
        shortest = min(self.interval, *(group.interval for group in groups))
        start, end = self._range(processes, shortest)
        expressions = [rule["query"] for group in groups for rule in group.rules]
        job = self._job or _job_of(expressions)
        wanted = _wanted(expressions)
        data = folder / "data"
        data.mkdir()
        within = _block_of(shortest)
        with closing(_Texts(promtool, folder, data, wanted, within)) as texts:
            self.report = replay_into(
                texts.write,
                found,
                processes,
                wanted,
                job=job,
                step=self.interval,
                start=start,
                end=end,
                strict=self._strict,
                progress=part(1),
            )
            texts.flush()
        # A series that is not there any longer, or not yet again, is gone one interval later, as it is for Prometheus.
        lookback = max(self.interval, *(group.interval for group in groups)) * 1000 - 1
        for level in _levels(groups):
            file = folder / "recording.yml"
            file.write_text(json.dumps({"groups": level}), "utf-8")
            with Prometheus(folder, data, interval=self.interval, lookback=lookback) as server:
                promtool.blocks_from_rules(file, data, server.address, start, end, self.interval, within)
        with Prometheus(folder, data, interval=self.interval, lookback=lookback) as server:
            timelines = list(_evaluate(server, groups, start, end, part(2)))
        episodes = [episode for _, timeline in timelines for episode in timeline]
        episodes.sort(key=lambda episode: (episode.since, episode.alert, sorted(episode.labels.items())))
        fired = dict.fromkeys((rule.name for rule, _ in timelines), 0)
        for episode in episodes:
            fired[episode.alert] += episode.start is not None
        return Result(
            start=start,
            end=end,
            interval=self.interval,
            job=job,
            alerts=fired,
            recorded=tuple(dict.fromkeys(rule["name"] for group in groups for rule in group.rules if _records(rule))),
            episodes=tuple(episodes),
            instances=tuple(sorted({process.instance for process in processes.by_key.values()})),
            samples=texts.moments,
            notes=tuple(_notes(groups, processes, job)),
        )

    def _groups(self, folder: Path, rules: Path) -> list[_Group]:
        """The rules as Prometheus reads them."""
        empty = folder / "empty"
        empty.mkdir()
        with Prometheus(folder, empty, interval=self.interval, lookback=1000, rules=rules) as server:
            groups = server.ask("rules")["groups"]
        shutil.rmtree(empty)
        return [_Group(each["name"], max(1, round(each["interval"])), each["rules"]) for each in groups]

    def _range(self, processes: Processes, shortest: int) -> tuple[int, int]:
        """shortest: seconds from one evaluation to the next, or one scrape, whichever come more often."""
        step, second = self.interval, 1_000_000_000
        first = processes.first // (step * second) * step
        # What is told at one moment is met by the scrape after it.
        last = max(-(-processes.last // (step * second)) * step, first + step)
        start = first if self._start is None else max(first, int(self._start) // step * step)
        end = last if self._end is None else -(-int(self._end) // step) * step
        if start >= end:
            raise ConfigError(
                f"the log is from {first} to {last} (Unix time in seconds), and nothing of that is asked for; give"
                " other times, or none"
            )
        if (end - start) // shortest > _MAX_MOMENTS:
            what = "scrapes" if shortest == step else "evaluations"
            raise ConfigError(
                f"the log is from {first} to {last} (Unix time in seconds), which is {(end - start) // shortest:,}"
                f" {what}; say from when to when, or take a longer interval than {shortest} s"
            )
        return start, end


def backtest(
    rules: str | os.PathLike[str],
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    **options: Any,
) -> Result:
    """When the alerts of a file of rules would have fired, had Prometheus scraped the processes that wrote these logs.
    For arguments and errors see `Backtest`.
    """
    return Backtest(rules, paths, **options).run()


class _Texts:
    """Samples on their way into blocks: promtool gets them by the piece."""

    def __init__(self, promtool: Promtool, folder: Path, data: Path, wanted: Wanted, within: int) -> None:
        self._promtool, self._data, self._within = promtool, data, within
        self._path = folder / "samples.om"
        self._heads = wanted.heads()
        self._file: Any = None
        self._bytes = self._block = 0
        self.moments = 0

    def write(self, moment: int, text: str) -> None:
        # promtool reads the whole text for each block.
        if self._bytes > _MAX_TEXT or moment // self._within != self._block:
            self.flush()
            self._block = moment // self._within
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
            self._file.write(self._heads)
        self._file.write(text)
        self._bytes += len(text)
        self.moments += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def flush(self) -> None:
        if self._file is None:
            return
        self._file.write("# EOF\n")
        self.close()
        if self._bytes:
            self._promtool.blocks_from_samples(self._path, self._data, self._within)
        self._bytes = 0


def _block_of(interval: int) -> int:
    """Seconds of a block: two hours, or as many threefold of that as have 10,000 moments at most. Each costs promtool
    about the same, however little is in it.
    """
    block = _BLOCK
    while 3 * block <= 10_000 * interval:
        block *= 3
    return block


def _evaluate(
    server: Prometheus, groups: list[_Group], start: int, end: int, progress: Progress | None
) -> Iterator[tuple[AlertRule, list[Episode]]]:
    rules = [(group, rule) for group in groups for rule in group.rules if rule["type"] == "alerting"]
    for number, (group, rule) in enumerate(rules):
        alert = AlertRule(
            name=rule["name"],
            group=group.name,
            expr=rule["query"],
            labels=rule.get("labels") or {},
            interval=group.interval * 1000,
            wait=round(rule.get("duration", 0) * 1000),
            keep=round(rule.get("keepFiringFor", 0) * 1000),
        )
        timeline = Timeline(alert)
        step = group.interval
        for begin in range(start, end + 1, step * _MOMENTS_AT_ONCE):
            last = min(end, begin + step * (_MOMENTS_AT_ONCE - 1))
            last = begin + (last - begin) // step * step
            answer = server.ask("query_range", query=alert.expr, start=str(begin), end=str(last), step=str(step))
            timeline.take(answer["result"], last * 1000)
            if progress is not None:
                progress(number * (end - start) + last - start, len(rules) * (end - start))
        yield alert, timeline.finish()


def _records(rule: Mapping[str, Any]) -> bool:
    return bool(rule["type"] == "recording")


def _levels(groups: list[_Group]) -> Iterator[list[dict[str, Any]]]:
    """Groups of recording rules: first those that need nothing that is recorded, then those that need the first."""
    left = [(group, rule) for group in groups for rule in group.rules if _records(rule)]
    while left:
        recorded = {rule["name"] for _, rule in left}
        ready = [each for each in left if not recorded & (set(_WORD.findall(each[1]["query"])) - {each[1]["name"]})]
        # In a circle, each has what was recorded a turn ago; here, nothing.
        ready = ready or left
        by_group: dict[str, dict[str, Any]] = {}
        for group, rule in ready:
            entry = by_group.setdefault(group.name, {"name": group.name, "interval": f"{group.interval}s", "rules": []})
            entry["rules"].append({"record": rule["name"], "expr": rule["query"], "labels": rule.get("labels") or {}})
        yield list(by_group.values())
        left = [each for each in left if each not in ready]


def _wanted(expressions: list[str]) -> Wanted:
    words = {word for expression in expressions for word in _WORD.findall(expression)}
    # By a matcher of the name, it may be any.
    return Wanted(None if "__name__" in words else words)


def _job_of(expressions: list[str]) -> str:
    asked = {job for expression in expressions for job in _JOB.findall(expression)}
    return asked.pop() if len(asked) == 1 else "asyncinspect"


def _notes(groups: list[_Group], processes: Processes, job: str) -> Iterator[str]:
    """What a rule reads that no log tells."""
    recorded = {rule["name"] for group in groups for rule in group.rules if _records(rule)}
    told = {family.sample + part for family, parts in Wanted(None).forms for part in parts} | recorded | {"up"}
    unknown: dict[str, list[str]] = {}
    blocked = []
    for rule in [rule for group in groups for rule in group.rules]:
        bare = _LABELS.sub(" ", _STRING.sub("''", rule["query"]))
        names = {name for name in _METRIC.findall(bare) if name not in _KEYWORDS and name.lower() not in _KEYWORDS}
        for name in sorted(names - told):
            unknown.setdefault(name, []).append(rule["name"])
        if names & {"async_inspect_tasks_by_state", "async_inspect_blocked_tasks"} and not processes.steps:
            blocked.append(rule["name"])
        if "up" in names and rule["type"] == "alerting":
            yield f"{rule['name']} reads up, which is 1 here: a log does not say whether its process could be scraped"
        if "async_inspect_lints_total" in names and re.search("leaked|lost_waker|never_awaited", rule["query"]):
            yield f"{rule['name']} reads lints of which a log tells few: leaked, lost_waker and never_awaited"
        for asked in _JOB.findall(rule["query"]):
            if asked != job:
                yield f"{rule['name']} is about the job {asked!r}, and this is {job!r}: say which with --job"
    for name, rules in unknown.items():
        ours = any(name.startswith(family) for family in NOT_IN_LOGS)
        why = "which a log does not tell" if ours else "which is no metric of spans"
        yield f"{', '.join(rules)}: reads {name}, {why}"
    if blocked:
        yield (
            f"{', '.join(dict.fromkeys(blocked))}: the log has no steps (level TRACE), and so tasks that wait count as"
            " running"
        )


def _text_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_RULES_FILE + 1)
    except OSError as error:
        raise ConfigError(f"rules {str(path)!r} cannot be read: {error.strerror}; name a file of rules") from None
    if len(text) > _MAX_RULES_FILE:
        raise ConfigError(f"rules {str(path)!r} are longer than {_MAX_RULES_FILE:,} bytes; split them up")
    return text


@contextmanager
def _copied(found: list[Source], folder: Path) -> Iterator[list[Source]]:
    """Logs that can be read twice: what comes through a pipe, from a copy."""
    made = []
    for number, source in enumerate(found):
        if source.size is None:
            copy = folder / f"log-{number}"
            with copy.open("wb") as file:
                for batch in source.batches():
                    file.writelines(batch.lines)
            source = Source(str(copy))
        made.append(source)
    yield made
