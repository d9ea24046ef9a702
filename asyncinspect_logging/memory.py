"""How much memory the inspector's parts take, in bytes: measured on a sample, and scaled to the number of entries.

A walk over everything would make a scrape cost more the more tasks there are.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .books import Books
    from .placing import Placing

__all__ = ["memory_of"]

_SAMPLE: Final = 16
#: Slots of a span that lead to what it shares with others, or to what is not the inspector's.
_SHARED_SLOTS: Final = frozenset(
    {"_audience", "_below", "_code", "_owner", "_parent", "_route", "_task_name", "name", "steps"}
)
_ATOMS: Final = frozenset({str, bytes, int, float})
_PLAIN: Final = _ATOMS | {dict, list, tuple, set, frozenset}


def memory_of(books: Books, placing: Placing) -> dict[str, int]:
    """Bytes by component of the metric catalogue. Costs the same however much there is."""
    live, retention, seen = books.live, books.retention, set[int]()
    tasks = sys.getsizeof(live) + sys.getsizeof(books.folded) + sys.getsizeof(retention.tasks)
    tasks += _scaled(live, _first(live.values()), seen)
    tasks += _scaled(books.folded, _first(books.folded.values()), seen)
    tasks += _scaled(retention.tasks, _both_ends(retention.tasks), seen)
    events = sys.getsizeof(retention.notes) + _scaled(retention.notes, _both_ends(retention.notes), seen)
    metadata = sys.getsizeof(books.totals) + sys.getsizeof(placing)
    metadata += _scaled(books.totals, _first(books.totals.values()), set(), skip=frozenset())
    return {"tasks": tasks, "events": events, "metadata": metadata}


def _first(things: Iterable[Any]) -> list[Any]:
    return list(islice(things, _SAMPLE))


def _both_ends(things: deque[Any]) -> list[Any]:
    half = _SAMPLE // 2
    if len(things) <= _SAMPLE:
        return list(things)
    return [things[index] for index in range(half)] + [things[-1 - index] for index in range(half)]


def _scaled(things: Sized, some: list[Any], seen: set[int], skip: frozenset[str] = _SHARED_SLOTS) -> int:
    """Bytes of all `things`, from a look at `some` of them. What is in `seen` is not counted; what is met is added."""
    return round(sum(_bytes(thing, skip, seen) for thing in some) / len(some) * len(things)) if some else 0


def _bytes(value: Any, skip: frozenset[str], seen: set[int]) -> int:
    """Size of an object and of what hangs on it, each once, without what is not ours (code, classes, `skip`)."""
    cls = type(value)
    if value is None or cls is bool or id(value) in seen or (cls is int and -5 <= value <= 256):
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if cls in _ATOMS:
        return size
    if cls is dict:
        for key, item in value.items():
            size += _bytes(key, skip, seen) + _bytes(item, skip, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            size += _bytes(item, skip, seen)
    else:
        for slot in _slots_of(cls, skip):
            item = getattr(value, slot, None)
            if type(item) in _PLAIN or hasattr(type(item), "__slots__"):
                size += _bytes(item, skip, seen)
    return size


_slots: dict[tuple[type, frozenset[str]], tuple[str, ...]] = {}


def _slots_of(cls: type, skip: frozenset[str]) -> tuple[str, ...]:
    slots = _slots.get((cls, skip))
    if slots is None:
        found = {slot for base in cls.__mro__ for slot in base.__dict__.get("__slots__", ())}
        slots = _slots[cls, skip] = tuple(sorted(slot for slot in found - skip if not slot.startswith("__")))
    return slots
