"""Why no span would reach an inspector: for whoever wonders at a page, or at an export, without any."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

from . import stamping
from .diagnostics import warn_once
from .feeding import feeds, loggers
from .routing import accepts_spans, route_of
from .spans import LOGGER

__all__ = ["Unheard", "why_unheard"]

_QUICKSTART = (
    '"handlers": {"inspect": {"class": "asyncinspect_logging.AsyncInspectHandler"}}, and "inspect" at the root'
)


_serials: Final = itertools.count(1)


class Unheard:
    """Says in the log, once, why no span comes from `sources`, where they are inspectors that the logging of this
    process feeds, and the reason can be seen. `what`: what the reason is for, "a page without any span was asked for".
    """

    __slots__ = ("_serial", "_sources", "_what")

    def __init__(self, what: str, sources: Sequence[Any]) -> None:
        self._what = what
        self._serial = next(_serials)
        self._sources = sources if all(getattr(one, "first_hand", False) for one in sources) else ()

    def tell(self) -> None:
        """To be called when there was no span."""
        why = why_unheard(self._sources) if self._sources else ""
        if why:
            self._sources = ()
            warn_once("no span", str(self._serial), "%s: %s", self._what, why)


def why_unheard(inspectors: Sequence[Any]) -> str:
    """What in the logging of this process keeps spans from all of `inspectors`, and what to write instead; "" where
    nothing does that can be seen. Where somebody may hear of spans that name their logger, or of what comes out of a
    queue, there is no reason before a span was told to nobody.
    """

    def is_theirs(front_end: Any) -> bool:
        return feeds(front_end, inspectors)

    hearing = [handler for handler in _path(LOGGER) if accepts_spans(handler)]
    if any(is_theirs(handler) or not hasattr(handler, "inspector") for handler in hearing):
        return ""
    with_ours = [logger for logger in loggers() if any(map(is_theirs, logger.handlers))]
    if LOGGER in with_ours:
        return "the logger 'asyncinspect' is disabled; write \"disable_existing_loggers\": False in the dictConfig"
    if LOGGER.root in with_ours:
        return (
            "the handler is on the root logger, and the logger 'asyncinspect' does not propagate to it; set its "
            "propagate to True, or put the handler on 'asyncinspect' itself"
        )
    feeding = [user for user in stamping.users() if is_theirs(user)]
    if with_ours or feeding:
        return _of_others(with_ours, feeding) if route_of(LOGGER).asked else ""
    if hearing:
        return (
            "the AsyncInspectHandler that hears of spans feeds another inspector; give the exporter that one, or both "
            "none, for Inspector.default()"
        )
    if any(getattr(one, "is_fed", True) for one in inspectors):
        return (
            "an AsyncInspectHandler was made, and is on no logger now: another dictConfig or basicConfig(force=True) "
            "has taken it off, or a basicConfig did nothing, because the root logger had handlers; write "
            "logging.getLogger().addHandler(AsyncInspectHandler()) after the last of them"
        )
    processor = ", or AsyncInspectProcessor() first in structlog's processors" if "structlog" in sys.modules else ""
    return f"no AsyncInspectHandler is in the logging config; write {_QUICKSTART}{processor}"


def _of_others(with_ours: list[logging.Logger], feeding: list[Any]) -> str:
    """Why those who feed the inspectors by another way heard nothing of a span that named no logger."""
    if with_ours:
        name = with_ours[0].name
        return (
            f"the AsyncInspectHandler is on the logger {name!r}, and hears of spans with "
            f"logger=logging.getLogger({name!r}) alone; put it on the root logger"
        )
    if any(isinstance(user, logging.Handler) for user in feeding):
        return (
            "the AsyncInspectHandler is on no logger; write logging.getLogger().addHandler(…), or, where it is behind "
            "a queue, set accepts_spans = True on the QueueHandler"
        )
    return (
        "spans without logger= are told through stdlib logging, where no AsyncInspectHandler is; write "
        "span(…, logger=structlog.get_logger()), or put the handler on the root logger"
    )


def _path(logger: logging.Logger) -> list[logging.Handler]:
    """The handlers that spans told through a logger may reach."""
    found: list[logging.Handler] = []
    node: logging.Logger | None = logger
    while node is not None:
        if not (node is logger and node.disabled):
            found += node.handlers
        node = node.parent if node.propagate else None
    return found
