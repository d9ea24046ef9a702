"""Lines of a log: what they say goes to an inspector, by the thousand (`analysis.bulk`) or one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from ..analysis.bulk import Bulk
from ..analysis.decoding import Ordinary, Unreadable, annotation, bare, is_object_begun, ordinary, ordinary_of, parse
from ..diagnostics import warn_once
from ..inspector import Inspector
from ..placing import Placing
from ..records import KEY
from ..retention import Note

__all__ = ["Reader", "Rules", "parsed", "payload_in"]

_OURS: Final = KEY.encode()
#: What a line has that may say something; of others it need not be known what they are.
_WORTH_READING: Final = (_OURS, b'"span_id"', b'"kind"')
#: What an inspector counts as malformed.
_BROKEN: Final = {KEY: False}
#: Bytes of a longer line, which is not kept as it is for as long as its span is.
_LONG: Final = 1 << 14
_FOREVER: Final = (1 << 63) - 1


class Rules(Protocol):
    """Retrofit rules: see `analysis.rules`."""

    def payloads(self, line: bytes | str, file: str, number: int) -> Sequence[Mapping[str, Any]]: ...


@runtime_checkable
class Remembering(Protocol):
    """Rules that remember starts."""

    def dump(self) -> list[list[Any]]: ...

    def load(self, saved: list[list[Any]]) -> None: ...


class Reader:
    """Reads lines into an inspector, and counts them. Raises nothing, whatever they are."""

    def __init__(self, inspector: Inspector, rules: Rules | None = None) -> None:
        self.inspector = inspector
        self._rules = rules
        self._max_text = inspector.config.max_field_length
        self._bulk: Bulk | None = None
        # While lines come in bulk: what the others of them are entered into at once.
        self._placing: Placing | None = None
        #: Lines in all; of them records, lines of timelines, what is none of ours, and what should be and is broken.
        self.lines = self.records = self.annotations = self.foreign = self.broken = 0

    def read_all(self, lines: list[bytes], file: str, first: int) -> None:
        """Take lines of a file in, the first of which has that number; empty ones are none."""

        def enter(placing: Placing) -> None:
            self._placing = placing
            try:
                self._take(placing, lines, file, first)
            finally:
                self._placing = None

        self.inspector.enter(enter)

    def _take(self, placing: Placing, lines: list[bytes], file: str, first: int) -> None:
        if self._bulk is None or placing.bulk is not self._bulk:
            # The first time, and after the inspector has gone on from a checkpoint.
            self._bulk = Bulk(placing, _FOREVER)
        begin = 0
        if max(map(len, lines)) > _LONG:
            for index, line in enumerate(lines):
                if len(line) > _LONG:
                    self._take_short(lines[begin:index], file, first + begin)
                    self.read(line, _nobody, file, first + index)
                    begin = index + 1
        self._take_short(lines[begin:] if begin else lines, file, first + begin)

    def _take_short(self, lines: list[bytes], file: str, first: int) -> None:
        assert self._bulk is not None
        odd, last = 0, -1

        def read(line: bytes, index: int) -> None:
            nonlocal odd, last
            odd, last = odd + 1, index
            if line:
                self.read(line, _nobody, file, first + index)

        try:
            self._bulk.take(lines, read)
        except Exception as failure:
            # Not to be. After the last odd line, what was taken in comes twice, and is passed over.
            warn_once("lines", type(failure).__qualname__, "lines could not be read in bulk: %r", failure)
            for index in range(last + 1, len(lines)):
                read(lines[index], index)
        self.lines += len(lines) - odd
        self.records += len(lines) - odd

    def read(self, line: bytes, heard: Callable[[Mapping[str, Any]], object], file: str = "", number: int = 0) -> None:
        """Take a line in. `heard` is given the payload of one that is a lifecycle record."""
        self.lines += 1
        if any(sign in line for sign in _WORTH_READING):
            text, said = line, parsed(line)
            if said is None:
                text = bare(line)
                said = parsed(text)
            if said is None:
                if is_object_begun(text):
                    self._broken()
                    return
            elif said.is_told():
                payload = said.asyncinspect
                if payload is None:
                    payload = parse(text)  # the line is itself what others have under the key
                if isinstance(payload, dict):
                    self.records += 1
                    self._apply(payload)
                    heard(payload)
                else:
                    self._broken()
                return
            elif self._annotate(said):
                return
        elif not bare(line):
            if b"\0" in line:
                self._broken()
            return
        retrofitted = () if self._rules is None else self._rules.payloads(line, file, number)
        for each in retrofitted:
            self._apply(each)
        if retrofitted:
            self.records += len(retrofitted)
        else:
            self.foreign += 1

    def dump(self) -> list[list[Any]]:
        """The starts that rules remember, as values that JSON can hold."""
        return self._rules.dump() if isinstance(self._rules, Remembering) else []

    def load(self, saved: list[list[Any]]) -> None:
        """Go on from there. Raises ValueError or TypeError for what `dump` never gave."""
        if isinstance(self._rules, Remembering):
            self._rules.load(saved)

    def bad(self) -> None:
        """Count a line that could not be had."""
        self.lines += 1
        self._broken()

    def _apply(self, payload: Mapping[str, Any]) -> None:
        if self._placing is None:
            self.inspector.apply({KEY: payload})
            return
        try:
            self._placing.place(payload)
        except Exception as failure:
            self._placing.books.dropped["malformed"] += 1
            warn_once("inspector", type(failure).__qualname__, "a span could not be counted: %r", failure)

    def _broken(self) -> None:
        self.broken += 1
        if self._placing is None:
            self.inspector.apply(_BROKEN)
        else:
            self._placing.books.dropped["malformed"] += 1

    def _annotate(self, said: Ordinary) -> bool:
        told = annotation(said, time.time_ns(), self._max_text)
        if told is None:
            return False
        self.annotations += 1
        if self._placing is None:
            self.inspector.annotate(*told)
        else:
            span, text, wall = told
            self._placing.annotate(Note(wall, span, "log", text))
        return True


def _nobody(payload: Mapping[str, Any]) -> None:
    pass


def payload_in(line: bytes) -> Mapping[str, Any] | None:
    """The record that a line is, or None."""
    if not any(sign in line for sign in _WORTH_READING):
        return None
    text, said = line, parsed(line)
    if said is None:
        text = bare(line)
        said = parsed(text)
    if said is None or not said.is_told():
        return None
    payload = said.asyncinspect
    if payload is None:
        payload = parse(text)
    return payload if isinstance(payload, dict) else None


def parsed(line: bytes) -> Ordinary | None:
    """A line that is a JSON object, or None."""
    try:
        return ordinary(line)
    except Exception:
        # What the quick reader does not take, the other one may.
        try:
            said = parse(line)
        except Unreadable:
            return None
    if not isinstance(said, dict):
        return None
    return ordinary_of(said)
