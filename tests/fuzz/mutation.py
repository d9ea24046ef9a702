"""Inputs that are nearly right: texts of a corpus with bytes changed, and JSON values with parts replaced by what
nobody expects.
"""

from __future__ import annotations

import json
import random
from typing import Any, Final

__all__ = ["MOST", "mutated"]

#: Bytes of an input.
MOST: Final = 200_000
_NASTY: Final[list[Any]] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 1e308, -0.0, 0.5, 1.0),
    *("", " ", "0", "x" * 5000, "\x00", "\ud800", "\u202e", "𝒳" * 100, "0" * 16, "f" * 16, "F" * 32, "../../etc"),
    *("completed", "enter", "exit", "spawn", "wait", "\x1b[31m", "=1+1", "<b>", "'\"`", "\r\n", "NaN", "{}"),
    *([], {}, [[]], {"": {}}, [0] * 1000, {str(number): number for number in range(300)}),
]
_BYTES: Final = (b"\x00", b"\xff\xfe", b"\n", b"\r\n", b"{", b"}", b"[" * 2000, b'"', b"\\", b"\\u0000", b"1e999", b"-")


def mutated(seed: bytes, corpus: list[bytes], rng: random.Random) -> bytes:
    """One more input made of `seed` and of other texts of the corpus."""
    data = seed
    if rng.random() < 0.8:
        lines = data.split(b"\n")
        place = rng.randrange(len(lines))
        data = b"\n".join(lines[place : place + rng.choice((1, 2, 2, 3, 4))])
    if rng.random() < 0.6:
        data = b"\n".join(_line(line, rng) if rng.random() < 0.5 else line for line in data.split(b"\n"))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 8))):
        data = _bytes(data, corpus, rng)
    return data[:MOST]


def _line(line: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(line)
    except ValueError:
        return line
    for _ in range(rng.choice((1, 1, 2, 5))):
        value = _value(value, rng)
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return line


def _value(value: Any, rng: random.Random) -> Any:
    """The value with one part of it replaced, doubled, renamed or left out."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[str(rng.choice(_NASTY))[:100]] = changed.pop(key)
            case 2:
                changed[key] = rng.choice(_NASTY)
            case 3:
                changed[key] = changed[rng.choice(list(changed))]
            case _:
                changed[key] = _value(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value[:place] + [value[place]] * rng.choice((2, 3, 40)) + value[place:]
            case _:
                return [*value[:place], _value(value[place], rng), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, -(10**9), 10**9))
    return rng.choice(_NASTY)


def _bytes(data: bytes, corpus: list[bytes], rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    other = rng.randrange(len(data) + 1)
    first, last = min(place, other), max(place, other)
    match rng.randrange(7):
        case 0:
            return data[:place]
        case 1:
            return data[:first] + data[last:]
        case 2:
            return data[:place] + data[first : first + 1000] + data[place:]
        case 3:
            return data[:place] + rng.choice(_BYTES) + data[place:]
        case 4:
            return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place + rng.randrange(9) :]
        case 5:
            more = rng.choice(corpus)
            return data[:place] + more[rng.randrange(len(more) + 1) :]
        case _:
            lines = data.split(b"\n")
            rng.shuffle(lines)
            return b"\n".join(lines)
