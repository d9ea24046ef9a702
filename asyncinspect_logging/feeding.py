"""Whether anybody feeds an inspector just now: a handler on a logger, a processor in a chain, or one behind a queue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from . import stamping
from .routing import accepts_spans

__all__ = ["is_fed"]

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


def _is_fed_now(inspectors: Sequence[Any]) -> bool:
    def feeds(front_end: Any) -> bool:
        return any(getattr(front_end, "inspector", None) is one for one in inspectors)

    handler: Any
    known = list(logging.Logger.manager.loggerDict.values())
    for logger in (logging.root, *known):
        if isinstance(logger, logging.Logger) and not logger.disabled:
            for handler in logger.handlers:
                if feeds(handler):
                    handler.was_on_logger = True
                    return True
                if accepts_spans(handler) and not hasattr(handler, "inspector"):
                    # The handler of a queue, or somebody's own: who is behind it cannot be seen.
                    return True
    # Processors; and handlers that have never been on a logger, and so are behind a queue, of other processes perhaps.
    if any(feeds(user) and not getattr(user, "was_on_logger", False) for user in stamping.users()):
        return True
    return any(one.is_given for one in inspectors)
