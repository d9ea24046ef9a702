"""What is announced to an audience beside spans: see `routing.Listener`.

Each is a named tuple of plain values, on its way from the application's side to the inspector's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .detect.held import Wait

__all__ = ["NO_SPAN", "Beat", "Forgotten", "Misuse", "Waiting"]

#: The `number` of what is no span.
NO_SPAN = -1


class Misuse(NamedTuple):
    """A span of this name was entered or exited once too often."""

    name: str
    number: int = NO_SPAN


class Forgotten(NamedTuple):
    """A coroutine that would have had a span of this name was dropped, and nobody had ever awaited it."""

    name: str
    number: int = NO_SPAN


class Beat(NamedTuple):
    """An event loop called back, `lag` ns later than it was asked to. None: it is one to be asked."""

    lag: int | None
    number: int = NO_SPAN


class Waiting(NamedTuple):
    """A task begins to wait for a primitive, or (`over`) no longer does."""

    wait: Wait
    over: bool
    number: int = NO_SPAN
