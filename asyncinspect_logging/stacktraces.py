"""Where the exceptions that ended spans were raised, for exporters that ask for it: it is in no record.

At the failure only code and line of the frames are noted; the text, with lines out of source files, is made when
somebody reads it. It goes when the span does.
"""

from __future__ import annotations

import linecache
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, Final, NamedTuple

from .fields import FieldPolicy, error_of
from .spans import Span, outside

__all__ = ["keep", "stacktrace"]

#: Of one exception the innermost frames; of a chain the last exceptions; characters of a line.
_FRAMES: Final = 32
_CHAIN: Final = 4
_LENGTH: Final = 1024
_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


class _Raised(NamedTuple):
    error: Mapping[str, Any]
    frames: tuple[tuple[CodeType, int], ...]
    #: How it came about, where another exception did.
    because: str


_known: weakref.WeakKeyDictionary[Span, tuple[FieldPolicy, tuple[_Raised, ...]]] = weakref.WeakKeyDictionary()
_users = 0


def keep() -> Callable[[], None]:
    """From now on the stack of each exception that fails a span is kept with it. Returns what takes that back."""
    global _users
    _users += 1
    outside.failed = _failed
    undone = False

    def undo() -> None:
        global _users
        nonlocal undone
        if not undone:
            undone = True
            _users -= 1
            if not _users:
                outside.failed = None

    return undo


def _failed(span: Span, exc: BaseException, policy: FieldPolicy) -> None:
    found: list[_Raised] = []
    raised: BaseException | None = exc
    while raised is not None and len(found) < _CHAIN:
        frames: deque[tuple[CodeType, int]] = deque(maxlen=_FRAMES)
        at = raised.__traceback__
        while at is not None:
            frames.append((at.tb_frame.f_code, at.tb_lineno))
            at = at.tb_next
        cause, context = raised.__cause__, None if raised.__suppress_context__ else raised.__context__
        because = _CAUSE if cause else _CONTEXT if context else ""
        found.append(_Raised(error_of(raised, policy), tuple(frames), because))
        raised = cause or context
    _known[span] = policy, tuple(found)


def stacktrace(span: Any) -> str | None:
    """The text of what ended `span`, as Python would print it, but for secrets; None where nothing is kept of it."""
    if not _known or not isinstance(span, Span) or (known := _known.get(span)) is None:
        return None
    policy, chain = known
    parts: list[str] = []
    for number, raised in enumerate(reversed(chain)):
        parts.append(raised.because if number else "")
        parts.append("Traceback (most recent call last):\n")
        for code, line in raised.frames:
            parts.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}\n')
            source = linecache.getline(code.co_filename, line).strip()
            if source:
                parts.append(f"    {policy.text(source, _LENGTH)}\n")
        kind, message = raised.error["type"], raised.error["message"]
        parts.append(f"{kind}: {message}\n" if message else f"{kind}\n")
    return "".join(parts) or None
