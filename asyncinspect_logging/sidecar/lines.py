"""One line of a log: what it says goes to an inspector."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from ..analysis.decoding import Ordinary, Unreadable, annotation, bare, is_object_begun, ordinary, ordinary_of, parse
from ..inspector import Inspector
from ..records import KEY

__all__ = ["Reader", "Rules", "parsed"]

_OURS: Final = KEY.encode()
#: What a line has that may say something; of others it need not be known what they are.
_WORTH_READING: Final = (_OURS, b'"span_id"', b'"kind"')
#: What an inspector counts as malformed.
_BROKEN: Final = {KEY: False}


class Rules(Protocol):
    """Retrofit rules: see `analysis.rules`."""

    def payloads(self, line: bytes | str, file: str, number: int) -> Sequence[Mapping[str, Any]]: ...


class Reader:
    """Reads lines into an inspector, and counts them. Raises nothing, whatever they are."""

    def __init__(self, inspector: Inspector, rules: Rules | None = None) -> None:
        self.inspector = inspector
        self._rules = rules
        self._max_text = inspector.config.max_field_length
        #: Lines in all; of them records, lines of timelines, what is none of ours, and what should be and is broken.
        self.lines = self.records = self.annotations = self.foreign = self.broken = 0

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
                    self.inspector.apply({KEY: payload})
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
            self.inspector.apply(each)
        if retrofitted:
            self.records += len(retrofitted)
        else:
            self.foreign += 1

    def bad(self) -> None:
        """Count a line that could not be had."""
        self.lines += 1
        self._broken()

    def _broken(self) -> None:
        self.broken += 1
        self.inspector.apply(_BROKEN)

    def _annotate(self, said: Ordinary) -> bool:
        told = annotation(said, time.time_ns(), self._max_text)
        if told is None:
            return False
        self.annotations += 1
        self.inspector.annotate(*told)
        return True


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
