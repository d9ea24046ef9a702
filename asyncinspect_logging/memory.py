"""How much memory the inspector's parts take, in bytes: measured on a sample, and scaled to the number of entries.

A walk over everything would make a scrape cost more the more tasks there are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sized
from itertools import islice
from types import CodeType
from typing import Any, Final

__all__ = ["bytes_of", "estimate"]

_SAMPLE: Final = 48
_ATOMS: Final = (bool, type(None), type, CodeType)


def bytes_of(value: Any, seen: set[int]) -> int:
    """Size of a value and of the plain data below it, each object once, without what is not ours (code, classes)."""
    if isinstance(value, _ATOMS) or id(value) in seen or callable(value):
        return 0
    if isinstance(value, int) and -5 <= value <= 256:
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        for key, item in value.items():
            size += bytes_of(key, seen) + bytes_of(item, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            size += bytes_of(item, seen)
    return size


def object_bytes(thing: Any, skip: frozenset[str], seen: set[int]) -> int:
    """Size of an object with slots and of the data in them, but for the slots named in `skip`, which are shared."""
    size = sys.getsizeof(thing)
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot in skip or slot.startswith("__"):
                continue
            value = getattr(thing, slot, None)
            if hasattr(type(value), "__slots__") and not isinstance(value, tuple) and not callable(value):
                if id(value) not in seen:
                    seen.add(id(value))
                    size += object_bytes(value, skip, seen)
            else:
                size += bytes_of(value, seen)
    return size


def estimate(things: Sized, some: Iterable[Any], skip: frozenset[str], shared: set[int]) -> int:
    """Bytes of all `things`, from a look at `some` of them. What is in `shared` is not counted; what is met is added."""
    count, total = 0, 0
    for thing in islice(some, _SAMPLE):
        count += 1
        total += object_bytes(thing, skip, shared) if hasattr(type(thing), "__slots__") and not isinstance(thing, tuple) else bytes_of(thing, shared)
    return round(total / count * len(things)) if count else 0
