"""Whether anybody feeds an inspector just now: a handler on a logger, a processor in a chain, or one behind a queue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from . import stamping
from .routing import accepts_spans

__all__ = ["feeds", "is_fed", "loggers"]

#: Seconds for which a dictConfig that is under way is waited for.
_PATIENCE: Final = 1.0


def is_fed(inspectors: Sequence[Any]) -> bool:
    """Whether spans or records may come to one of these: not, where the handler was taken off, or its logger disabled.

    Those that are about a log, and what is no inspector, count as fed. It looks at every logger, and takes no snapshot.
    """
    if any(not getattr(one, "first_hand", True) or not hasattr(one, "is_fed") for one in inspectors):
        return True
    if not any(one.is_fed for one in inspectors):
        return False
    if _is_fed_now(inspectors):
        return True
    # In the middle of a dictConfig, which has logging's lock all the while, the old handlers are off, and the new ones
    # not on yet.
    lock = getattr(logging, "_lock", None)
    if lock is None:
        return False
    if not lock.acquire(timeout=_PATIENCE):
        return True
    try:
        return _is_fed_now(inspectors)
    finally:
        lock.release()


def feeds(front_end: Any, inspectors: Sequence[Any]) -> bool:
    """Whether a handler or processor is one of these inspectors'."""
    return any(getattr(front_end, "inspector", None) is one for one in inspectors)


def loggers() -> list[logging.Logger]:
    """All there are, the root first."""
    known = list(logging.Logger.manager.loggerDict.values())
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _is_fed_now(inspectors: Sequence[Any]) -> bool:
    handler: Any
    for logger in loggers():
        if not logger.disabled:
            for handler in logger.handlers:
                if feeds(handler, inspectors):
                    handler.was_on_logger = True
                    return True
                if accepts_spans(handler) and not hasattr(handler, "inspector"):
                    # The handler of a queue, or somebody's own: who is behind it cannot be seen.
                    return True
    # Processors; and handlers that have never been on a logger, and so are behind a queue, of other processes perhaps.
    if any(feeds(user, inspectors) and not getattr(user, "was_on_logger", False) for user in stamping.users()):
        return True
    return any(one.is_given for one in inspectors)
