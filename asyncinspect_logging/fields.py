"""What a span's fields look like once they leave the span: plain, short, and without secrets.

Nothing here calls code of the application. A value of a type that is not known is named, not shown: its `repr` could
block, raise, run a database query, or be 100 MB long, and a span must never do that to the program it watches.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import ipaddress
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["REDACT", "REDACTED", "FieldPolicy", "error_of", "text_of"]

#: Parts of a field's name (any case) that make its value a secret.
REDACT: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "apikey",
    "authorization",
    "cookie",
    "credential",
    "private_key",
    "session_id",
    "csrf",
)
REDACTED: Final = "[redacted]"

_PLAIN: Final = frozenset({bool, float, type(None)})
_BIGGEST: Final = 1 << 64
# Types of the standard library whose str() is short, fast and theirs: an exact type only, since a subclass may be
# the application's own code.
_STR: Final = frozenset(
    {
        complex,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        fractions.Fraction,
        ipaddress.IPv4Address,
        ipaddress.IPv6Address,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
        pathlib.WindowsPath,
        range,
        uuid.UUID,
    }
)
_MAX_ITEMS: Final = 32
_MAX_DEPTH: Final = 4
_MAX_KEYS_KNOWN: Final = 10_000


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


class FieldPolicy:
    """How fields are taken: `capture` (else they are dropped), `max_length` in characters, and the parts of names
    whose values are `redact`ed.
    """

    __slots__ = ("_secret", "capture", "max_length", "redact")

    def __init__(self, *, capture: bool = True, max_length: int = 1024, redact: tuple[str, ...] = REDACT) -> None:
        self.capture = capture
        self.max_length = max_length
        self.redact = tuple(part.lower() for part in redact)
        self._secret: dict[str, bool] = {}

    def merge(self, other: FieldPolicy) -> FieldPolicy:
        """The stricter of both in each respect: one record goes to all listeners, so the strictest decides."""
        return FieldPolicy(
            capture=self.capture and other.capture,
            max_length=min(self.max_length, other.max_length),
            redact=tuple(dict.fromkeys(self.redact + other.redact)),
        )

    def apply(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Make `fields` fit to leave the span, in place where that is possible; returns what is left of them."""
        if not self.capture:
            return {}
        secret, limit = self._secret, self.max_length
        for key, value in fields.items():
            hidden = secret.get(key)
            if hidden is None:
                hidden = self._judge(key)
            if hidden:
                fields[key] = REDACTED
                continue
            cls = value.__class__
            if cls is str:
                if len(value) > limit:
                    fields[key] = _cut(value, limit)
            elif cls is int:
                if value > _BIGGEST or value < -_BIGGEST:
                    fields[key] = self._plain(value, 0)
            elif cls not in _PLAIN:
                fields[key] = self._plain(value, 0)
        return fields

    def _judge(self, key: object) -> bool:
        lowered = text_of(key, 256).lower().replace("-", "_")
        hidden = any(part in lowered for part in self.redact)
        if key.__class__ is str and len(self._secret) < _MAX_KEYS_KNOWN:
            self._secret[str(key)] = hidden
        return hidden

    def _plain(self, value: object, depth: int) -> Any:
        """`value` as JSON could hold it: at most `_MAX_ITEMS` entries a level, `_MAX_DEPTH` levels."""
        cls = value.__class__
        if cls in (dict, list, tuple, set, frozenset) and depth < _MAX_DEPTH:
            return self._container(value, depth + 1)
        if cls in _PLAIN:
            return value
        return text_of(value, self.max_length) if cls is not int or abs(value) >= _BIGGEST else value  # type: ignore[arg-type]

    def _container(self, value: Any, depth: int) -> Any:
        rest = len(value) - _MAX_ITEMS
        if isinstance(value, dict):
            plain: dict[str, Any] = {}
            for key, item in list(value.items())[:_MAX_ITEMS]:
                text = text_of(key, 256)
                plain[text] = REDACTED if self._judge(text) else self._plain(item, depth)
            if rest > 0:
                plain["…"] = f"{rest} more"
            return plain
        items = [self._plain(item, depth) for item, _ in zip(value, range(_MAX_ITEMS), strict=False)]
        if rest > 0:
            items.append(f"… {rest} more")
        return items


def text_of(value: object, limit: int) -> str:
    """`value` as text of at most `limit` characters, without running any code that is not the standard library's."""
    cls = value.__class__
    if type(value) is not cls:
        return f"<{_type_name(type(value))}>"
    if cls is str:
        return _cut(value, limit)  # type: ignore[arg-type]
    if isinstance(value, int):
        # int.__repr__ and .bit_length are called on the class: a subclass may have overridden them.
        bits = int.bit_length(value)
        if isinstance(value, enum.Enum):
            return _cut(f"{cls.__name__}.{value._name_}", limit)
        return int.__repr__(value) if bits < 1024 else f"<int of {bits} bits>"
    if isinstance(value, str):
        return _cut(str.__str__(value), limit)
    if isinstance(value, enum.Enum):
        return _cut(f"{cls.__name__}.{value._name_}", limit)
    if cls in (bytes, bytearray):
        return _cut(repr(bytes(value[:limit])), limit)  # type: ignore[index]
    if cls in _STR:
        return _cut(str(value), limit)
    if cls in _PLAIN:
        return repr(value)
    if cls in (dict, list, tuple, set, frozenset):
        return f"<{cls.__name__} of {len(value)}>"  # type: ignore[arg-type]
    if isinstance(value, type):
        return _cut(f"<class {_type_name(value)}>", limit)
    return _cut(f"<{_type_name(cls)}>", limit)


def error_of(error: BaseException, limit: int) -> Mapping[str, Any]:
    """`{type, message}` of an exception; a group has the types of its leaves too. Never raises.

    Unlike a field, an exception is asked for its text: that is what it is for. One that fails to say is named only.
    """
    cls = type(error)
    try:
        message = _cut(str(error), limit)
    except Exception as failure:
        message = f"<no message: {type(failure).__name__} in __str__>"
    if not isinstance(error, BaseExceptionGroup):
        return {"type": _type_name(cls), "message": message}
    leaves: list[str] = []
    groups = [error]
    while groups and len(leaves) < _MAX_ITEMS:
        for inner in groups.pop(0).exceptions:
            if isinstance(inner, BaseExceptionGroup):
                groups.append(inner)
            else:
                leaves.append(_type_name(type(inner)))
    return {"type": f"{_type_name(cls)}({', '.join(leaves)})", "message": message, "leaves": leaves}
