"""Text for people: safe to show whatever a log says, and numbers in units that are read at a glance."""

from __future__ import annotations

import datetime
import math
import re
import sys
from typing import Any, Final

__all__ = ["clean", "count", "fit", "is_ascii", "moment", "seconds"]

#: What a terminal may take for a command, or would show where it does not stand: control characters, marks of writing
#: direction, line and paragraph separators, lone surrogates.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def clean(text: object, *, limit: int = 200, keep: str = "") -> str:
    """`text` in one line of at most `limit` characters, with what a terminal must not get spelled out (as `\\x1b`).

    `keep` are characters to leave as they are, such as "\\n".
    """
    shown = text if isinstance(text, str) else str(text)
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _spelled(found[0]), shown)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


#: What there is in ASCII for what is shown most.
_IN_ASCII: Final = {ord("µ"): "u", ord("–"): "-", ord("…"): "...", ord("→"): "->"}


def fit(text: str, stream: Any = None) -> str:
    """`text` as `stream` (None: stdout) can take it: spelled out where its encoding has no word for something."""
    encoding = _encoding(stream)
    if encoding.lower().startswith("utf"):
        return text
    return text.translate(_IN_ASCII).encode(encoding, "backslashreplace").decode(encoding)


def is_ascii() -> bool:
    """Whether stdout takes no Unicode."""
    return not _encoding(None).lower().startswith("utf")


def _encoding(stream: Any) -> str:
    return getattr(sys.stdout if stream is None else stream, "encoding", None) or "ascii"


def count(number: float) -> str:
    """A whole number with thousands set apart."""
    return f"{number:,.0f}"


def seconds(value: float | None) -> str:
    """A time with three digits that count: "1.23 ms", "45.6 s", "2 h 05 min"; "–" where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    size = max(0.0, value)
    if size >= 3600:
        hours, minutes = divmod(round(size / 60), 60)
        return f"{hours} h {minutes:02} min" if size < 1e7 else f"{size / 86400:,.0f} d"
    if size >= 99.95:
        return f"{size:.0f} s"
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if size >= 0.9995 * scale:
            scaled = size / scale
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{size / 1e-9:.0f} ns" if size else "0"


def moment(unix: float) -> str:
    """A Unix time (s) in ISO 8601, in UTC."""
    try:
        return datetime.datetime.fromtimestamp(unix, datetime.UTC).isoformat(timespec="milliseconds")
    except (OverflowError, OSError, ValueError):
        return f"{unix:.0f} s after 1970"
