"""Retrofit rules: spans out of the lines that other programs log when something starts and finishes.

Rules are a small TOML file, described in docs/retrofit.md. The file is the user's own; the lines are anybody's, and so
they are cut off at a length, what is remembered of them has bounds, and what cannot be read is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..placing import UNNUMBERED
from ..records import VERSION, is_whole
from .rule import Rule, Unreadable
from .rule_file import rules_of_file, rules_of_text

__all__ = ["Rules", "load_rules", "parse_rules"]

#: Longer lines are passed over: what a pattern takes on a line may grow with more than its length.
MAX_LINE: Final = 8192
#: Starts that wait for their end, spans remembered so that they count once, and lines remembered in each file.
MAX_OPEN: Final = 10_000
MAX_KNOWN: Final = 100_000
MAX_LINES: Final = 65_536
MAX_FILES: Final = 64
MAX_PROBLEMS: Final = 100


class _Open(NamedTuple):
    """A start that waits for its end; `id` is None where that span has been counted before."""

    id: int | None
    t: int
    name: str


class _File:
    """What is remembered of a file: where it was read to, and how often lines stood in it."""

    __slots__ = ("number", "times")

    def __init__(self) -> None:
        self.number = -1
        self.times: OrderedDict[int, int] = OrderedDict()


class Rules:
    """Turns lines into payloads of the record protocol. Made by `load_rules` or `parse_rules`.

    Counts, so that nothing is lost in silence: `matched` lines, of which `duplicates` told of spans that were known,
    `unreadable` had a value that cannot be used (`problems` has the first hundred, as (file, line, why)) and
    `unmatched` were ends without a start; `too_long` lines were not looked at; `given_up` starts were followed by
    another one of the same key, or by too many others, and their spans end there as interrupted.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        # What a rule's starts are known by in another run.
        self._of_rule = [_digest_of(rule) for rule in self._rules]
        self._open: OrderedDict[tuple[int, tuple[str, ...]], _Open] = OrderedDict()
        self._known: OrderedDict[int, None] = OrderedDict()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self.matched = self.duplicates = self.unreadable = self.unmatched = self.too_long = self.given_up = 0
        self.problems: list[tuple[str, int, str]] = []

    def payloads(self, line: bytes | str, file: str, number: int) -> Sequence[dict[str, Any]]:
        """What a line tells, as payloads for `Inspector.apply`; empty where no rule matches it. Raises nothing.

        file, number: where it stands, the first line being 1. A number that is not above the one before says that the
        file is read again.
        """
        if len(line) > MAX_LINE:
            self.too_long += 1
            return ()
        if isinstance(line, bytes):
            line = line.decode("utf-8", "replace")
        line = line.rstrip("\r\n")
        for index, rule in enumerate(self._rules):
            for kind, pattern in rule.patterns:
                found = pattern.search(line)
                if found is not None:
                    self.matched += 1
                    groups = {name: text for name, text in found.groupdict().items() if text is not None}
                    try:
                        return self._told(kind, index, groups, line, file, number)
                    except Unreadable as problem:
                        self.unreadable += 1
                        if len(self.problems) < MAX_PROBLEMS:
                            self.problems.append((file, number, str(problem)))
                        return ()
        return ()

    def _told(
        self, kind: str, index: int, groups: Mapping[str, str], line: str, file: str, number: int
    ) -> list[dict[str, Any]]:
        if kind == "line":
            return self._whole(index, groups, line, file, number)
        return self._start(index, groups, file, number) if kind == "start" else self._end(index, groups, number)

    def first_time(self, lines: Iterable[bytes]) -> int:
        """The time (Unix time in ns) of the first of these lines that has one, 0 where none does. Nothing is counted or
        remembered.
        """
        for line in lines:
            if len(line) > MAX_LINE:
                continue
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            rule, found = next(
                (
                    (rule, found)
                    for rule in self._rules
                    for _, pattern in rule.patterns
                    if (found := pattern.search(text)) is not None
                ),
                (None, None),
            )
            if rule is not None and found is not None and rule.time is not None:
                try:
                    return rule.read_time(found.groupdict().get(rule.time) or "")
                except Unreadable:
                    pass
        return 0

    def finish(self) -> Sequence[dict[str, Any]]:
        """No more lines come. Spans whose end has not been seen stay open, as those of a killed process do; so there
        is nothing more to tell.
        """
        self._open.clear()
        return ()

    def dump(self) -> list[list[Any]]:
        """The starts that wait for their end, oldest first, as values that JSON can hold."""
        return [[self._of_rule[index], list(key), *begun] for (index, key), begun in self._open.items()]

    def load(self, saved: list[list[Any]]) -> None:
        """Go on with what `dump` gave in a former run; starts of rules that are no more, or are others by now, are left
        out. Raises ValueError or TypeError for what `dump` never gave.
        """
        known = {digest: index for index, digest in enumerate(self._of_rule)}
        for digest, key, id, t, name in saved[-MAX_OPEN:]:
            if not (isinstance(digest, str) and isinstance(name, str) and all(isinstance(part, str) for part in key)):
                raise TypeError(f"{name!r} is no start that waits for its end")
            if not is_whole(t) or not (id is None or (is_whole(id >> 1) and id > 0)):
                raise ValueError(f"{id!r} and {t!r} are no span")
            if digest in known:
                self._open[known[digest], tuple(key)] = _Open(id, t, name)
                if id is not None:
                    self._known[id] = None

    # -- the three kinds of lines ------------------------------------------------------------------------------------

    def _whole(self, index: int, groups: Mapping[str, str], line: str, file: str, number: int) -> list[dict[str, Any]]:
        rule = self._rules[index]
        t = rule.time_in(groups, number)
        duration = rule.duration_in(groups)
        if rule.time is None:
            # Nothing in the line tells it from others like it.
            id = self._identify(index, "line", file, str(number))
        else:
            # Nor does a time in whole seconds, of two requests in one of them.
            id = self._identify(index, "line", line, str(self._occurrence(index, line, file, number)))
        if id is None:
            return []
        begun = t if rule.time_is_start else max(0, t - duration)
        name = rule.name_in(groups)
        enter = _begin(id, begun, name, rule.fields_in(groups), f"{file}:{number}")
        return [enter, *_finished(id, begun + duration, name, duration, rule, groups, {})]

    def _start(self, index: int, groups: Mapping[str, str], file: str, number: int) -> list[dict[str, Any]]:
        rule = self._rules[index]
        t = rule.time_in(groups, number)
        key = rule.key_in(groups)
        where = (file, str(number)) if rule.time is None else (str(t),)
        id = self._identify(index, "start", *key, *where)
        told = []
        before = self._open.pop((index, key), None)
        if before is not None and id is not None:
            told += self._give_up(before, t)
        name = rule.name_in(groups)
        self._open[index, key] = _Open(id, t, name)
        if id is not None:
            told.append(_begin(id, t, name, rule.fields_in(groups), f"{file}:{number}"))
        if len(self._open) > MAX_OPEN:
            told += self._give_up(self._open.popitem(last=False)[1], t)
        return told

    def _end(self, index: int, groups: Mapping[str, str], number: int) -> list[dict[str, Any]]:
        rule = self._rules[index]
        t = rule.time_in(groups, number)
        duration = rule.duration_in(groups) if rule.duration in groups else None
        begun = self._open.pop((index, rule.key_in(groups)), None)
        if begun is None:
            self.unmatched += 1
            return []
        if begun.id is None:
            self.duplicates += 1
            return []
        if duration is None:
            duration = max(0, t - begun.t)
        return _finished(begun.id, begun.t + duration, begun.name, duration, rule, groups, rule.fields_in(groups))

    def _give_up(self, begun: _Open, t: int) -> list[dict[str, Any]]:
        if begun.id is None:
            return []
        self.given_up += 1
        return [_exit(begun.id, 2, max(begun.t, t), begun.name, max(0, t - begun.t), "interrupted")]

    # -- which span it is --------------------------------------------------------------------------------------------

    def _identify(self, index: int, *parts: str) -> int | None:
        """The number of the span that the parts identify, whatever file they stand in; None where it is known."""
        digest = blake2b(digest_size=8)
        # The lengths keep ("a", "bc") and ("ab", "c") apart.
        for part in (self._rules[index].name, *parts):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(data) + data)
        id = int.from_bytes(digest.digest()) or 1
        known = self._known
        if id in known:
            self.duplicates += 1
            return None
        known[id] = None
        if len(known) > MAX_KNOWN:
            known.popitem(last=False)
        return id

    def _occurrence(self, index: int, line: str, file: str, number: int) -> int:
        """How often the line stood in the file before."""
        seen = self._files.get(file)
        if seen is None or number <= seen.number:
            seen = self._files[file] = _File()
        self._files.move_to_end(file)
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        seen.number = number
        times, what = seen.times, hash((index, line))
        before = times.pop(what, 0)
        times[what] = before + 1
        if len(times) > MAX_LINES:
            times.popitem(last=False)
        return before


def _digest_of(rule: Rule) -> str:
    said = (rule.name, rule.key, rule.time, *((kind, pattern.pattern) for kind, pattern in rule.patterns))
    return blake2b(repr(said).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# -- payloads ---------------------------------------------------------------------------------------------------------


def _payload(kind: str, id: int, step: int, t: int, name: str) -> dict[str, Any]:
    return {
        "v": VERSION,
        "kind": kind,
        "id": f"{id:016x}",
        # No clock but the log's: it stands for the monotonic one, too.
        "t": t,
        "wall": t,
        "pid": UNNUMBERED,
        # The span's own: in which order what is told of it comes.
        "seq": (id & 0xFFFFFFFF) * 3 + step,
        "name": name,
    }


def _begin(id: int, t: int, name: str, fields: dict[str, str], at: str) -> dict[str, Any]:
    return {**_payload("enter", id, 0, t, name), "trace": f"{id:032x}", "at": at, "fields": fields}


def _exit(
    id: int, step: int, t: int, name: str, duration: int, outcome: str, error: dict[str, str] | None = None
) -> dict[str, Any]:
    payload = {**_payload("exit", id, step, t, name), "outcome": outcome, "duration": duration}
    if error is not None:
        payload["error"] = error
    return payload


def _finished(
    id: int, t: int, name: str, duration: int, rule: Rule, groups: Mapping[str, str], fields: dict[str, str]
) -> list[dict[str, Any]]:
    told = []
    if fields:
        told.append({**_payload("record", id, 1, t, name), "fields": fields})
    outcome, error = rule.outcome_in(groups)
    return [*told, _exit(id, len(told) + 1, t, name, duration, outcome, error)]


def load_rules(path: str | Path) -> Rules:
    """The rules of a TOML file. Raises ConfigError for a file that cannot be read or used; the message says which rule
    and key it is, and what to write instead.
    """
    return Rules(rules_of_file(path))


def parse_rules(text: str, source: str = "rules") -> Rules:
    """The rules in a TOML text; `source` stands in the messages. Raises ConfigError, as `load_rules` does."""
    return Rules(rules_of_text(text, source))
