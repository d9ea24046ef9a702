"""How the library speaks of its own troubles: once each, through the logger "asyncinspect.internal", and never into
the application.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Final

from .fields import FieldPolicy

__all__ = ["log", "troubles", "warn_once"]

log = logging.getLogger("asyncinspect.internal")

#: How often each kind of trouble happened, told or not.
troubles: Counter[str] = Counter()

_MAX_TOLD = 1000
_policy: Final = FieldPolicy()
_told: set[str] = set()
_speaking = threading.local()


def _is_unwritten() -> bool:
    """Whether all handlers that get what we say are front ends of an inspector: they write nothing, and where there is
    a handler, logging does without its last resort, standard error.
    """
    node: logging.Logger | None = log
    found = False
    while node is not None:
        for handler in node.handlers:
            if not hasattr(handler, "span_listener"):
                return False
            found = True
        node = node.parent if node.propagate else None
    return found


def warn_once(kind: str, subject: str, message: str, *args: object, exc_info: bool = False) -> None:
    """Count a trouble of this kind, and log the first one about `subject`. Raises nothing."""
    troubles[kind] += 1
    key = f"{kind} {subject[:200]}"
    if key in _told or len(_told) >= _MAX_TOLD or getattr(_speaking, "now", False):
        return
    _told.add(key)
    _speaking.now = True
    if log.disabled and log.level == logging.NOTSET and not log.handlers and not log.filters:
        # By a dictConfig that does not name it, which disables every logger there is: nobody meant this one. Who does
        # not want to hear of us sets its level.
        log.disabled = False
    try:
        # What failed may have said it with the address, or the header, that it failed with.
        text = _policy.hide(message % args if args else message)
        log.warning(text, exc_info=exc_info)
        if logging.lastResort is not None and log.isEnabledFor(logging.WARNING) and _is_unwritten():
            logging.lastResort.handle(log.makeRecord(log.name, logging.WARNING, __file__, 0, text, (), None))
    except Exception:
        # A handler of the application's that raises has no say in what the application sees of us.
        troubles["warning not logged"] += 1
    finally:
        _speaking.now = False
