"""Lines of a log, each with the process that wrote it and its time, however it is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from ...records import KEY, flaw_of, is_id
from ..decoding import Unreadable, bare, decoded, ordinary, parse
from ..files import Batch

__all__ = ["Key", "Told", "base_of", "told"]

_KEY: Final = KEY.encode()
#: Kinds of records that are written at level TRACE alone.
_STEPS: Final = frozenset({"suspend", "resume", "wake"})

#: A process: its pid and the higher half of its span ids. In a pid, another process may come later.
Key = tuple[int, str]


class Told(NamedTuple):
    """A line. Of a record: `key`, and `wall`, its time (Unix time in ns). Of a line inside a span: `base` alone."""

    line: bytes
    number: int
    key: Key | None
    wall: int
    base: str
    is_step: bool
    #: Whether it is to go into a batch by itself: only so is it told of with its number if it is broken.
    is_odd: bool
    #: These are no lines, but this was wrong.
    problem: str = ""


def base_of(id: str) -> str:
    return id[:8].lower()


def told(batch: Batch) -> Iterator[Told]:
    """The lines of a batch, in their order."""
    if batch.problem:
        yield Told(b"", batch.first, None, 0, "", False, True, batch.problem)
        return
    if batch.long:
        yield _odd(batch.lines[0], batch.first)
        return
    number = batch.first
    for line, found in zip(batch.lines, decoded(batch.lines), strict=True):
        if found is None:
            yield _odd(line, number)
        else:
            record = found.asyncinspect
            base = base_of(record.id)
            step = record.__struct_config__.tag in _STEPS
            yield Told(line, number, (record.pid, base), record.wall, base, step, False)
        number += 1


def _odd(line: bytes, number: int) -> Told:
    payload, base = _payload_in(line)
    if payload is None:
        return Told(line, number, None, 0, base, False, True)
    base = base_of(payload["id"])
    return Told(line, number, (payload["pid"], base), payload["wall"], base, payload["kind"] in _STEPS, True)


def _payload_in(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The payload of a well-formed record, else the base of the span that an ordinary line was written in."""
    try:
        if _KEY not in line:
            said = ordinary(line)
            if not said.is_told():
                return None, base_of(said.span_id) if is_id(said.span_id) else ""
        found = parse(bare(line))
    except (Unreadable, ValueError):
        return None, ""
    if not isinstance(found, dict):
        return None, ""
    payload = found.get(KEY, found)
    if isinstance(payload, dict) and flaw_of(payload) is None:
        return payload, ""
    said_of = found.get("span_id")
    return None, base_of(said_of) if is_id(said_of) else ""
