"""Sums of snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from ..histograms import added
from ..snapshot import Histogram, NameView, Snapshot

__all__ = ["combine", "printable"]


def _add(a: Any, b: Any) -> Any:
    """Two values of the same field added up; of two names, the first."""
    if isinstance(a, Histogram):
        return added(a, b)
    if isinstance(a, NameView):
        return NameView(*map(_add, a, b))
    if isinstance(a, Mapping):
        return _add_mappings(a, b)
    return a if isinstance(a, str) else a + b


def _add_mappings(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> dict[Any, Any]:
    total = dict(a)
    for key, value in b.items():
        total[key] = _add(total[key], value) if key in total else value
    return total


def combine(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot that holds the sum of all: the same name, state or label adds up, tasks and findings are listed one
    inspector after the other, and `taken_at` is the latest. Histograms keep the bounds that all of them share.
    """

    def both(a: Snapshot, b: Snapshot) -> Snapshot:
        return Snapshot(*map(_add, a, b))._replace(taken_at=max(a.taken_at, b.taken_at))

    return reduce(both, snapshots)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(snapshot: Snapshot) -> Snapshot:
    """The snapshot with names that UTF-8 can carry: a lone surrogate becomes its backslash escape.

    Names that become equal by it add up, because a page may hold each label set only once.
    """
    try:
        "".join((*snapshot.names, *(text for pair in snapshot.lints for text in pair))).encode()
    except UnicodeEncodeError:
        names: dict[str, NameView] = {}
        for name, view in snapshot.names.items():
            names = _add_mappings(names, {_encodable(name): view._replace(name=_encodable(name))})
        lints: dict[tuple[str, str], int] = {}
        for (lint, name), count in snapshot.lints.items():
            lints = _add_mappings(lints, {(_encodable(lint), _encodable(name)): count})
        return snapshot._replace(names=names, lints=lints)
    return snapshot
