"""What a span's fields look like once they leave the span: plain, short, and without secrets (see `redaction`).

All that leaves a span goes through `FieldPolicy`, and so does what comes from the logs of others.

Nothing here calls code of the application. A value of a type that is not known is named, not shown: its `repr` could
block, raise, run a database query, or be 100 MB long, and a span must never do that to the program it watches.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from .redaction import ISSUED_LENGTH, REDACT, REDACTED, Redactor, shown_anyway

__all__ = ["FieldPolicy", "error_of", "text_of"]

_PLAIN: Final = frozenset({bool, type(None)})
#: Whole numbers up to this are shown as such, and up to so many bits as text.
_BIGGEST: Final = 1 << 64
_MAX_BITS: Final = 1024
#: Bytes of an object beyond which its text could be long (a Decimal of many digits).
_MAX_SIZE: Final = 1024
# Types of the standard library whose str() is theirs, short and fast, and where they are: an exact type only, since a
# subclass may be the application's own code. By name, because nobody should have to import them all.
_LIBRARY: Final = {
    **dict.fromkeys(("date", "datetime", "time", "timedelta", "timezone"), "datetime"),
    **dict.fromkeys(("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network"), "ipaddress"),
    **dict.fromkeys(("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"), "pathlib"),
    "Decimal": "decimal",
    "Fraction": "fractions",
    "UUID": "uuid",
    "ZoneInfo": "zoneinfo",
}
_CONTAINERS: Final = frozenset({dict, list, tuple, set, frozenset})
#: Entries of a container that are shown, and how deep; characters of the name of an entry.
_MAX_ITEMS: Final = 32
_MAX_DEPTH: Final = 4
_MAX_KEY: Final = 256
#: Texts that are remembered.
_MAX_CLEAN: Final = 10_000

#: Characters beyond those that are shown in which a secret that begins before may end.
_MARGIN: Final = 512

# What a class is called, past a metaclass that has its own idea of these attributes.
_qualname_of = type.__dict__["__qualname__"].__get__
_module_of = type.__dict__["__module__"].__get__


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _type_name(cls: type) -> str:
    module = _module_of(cls)
    name: str = _qualname_of(cls)
    return name if type(module) is not str or module == "builtins" else f"{module}.{name}"


def _library_name(cls: type) -> str:
    """Name of the class if it is one of `_LIBRARY`, else ""."""
    name: str = _qualname_of(cls)
    module = _LIBRARY.get(name)
    return name if module is not None and getattr(sys.modules.get(module), name, None) is cls else ""


class FieldPolicy:
    """How fields are taken: `capture` (else they are dropped), `max_length` in characters, and the parts of names
    whose values are `redact`ed.
    """

    __slots__ = ("_long", "capture", "clean", "max_length", "redact", "redactor")

    def __init__(self, *, capture: bool = True, max_length: int = 1024, redact: tuple[str, ...] = REDACT) -> None:
        self.capture = capture
        self.max_length = max_length
        self.redact = redact
        self.redactor = Redactor(redact)
        self._long = min(max_length, ISSUED_LENGTH)
        # Texts that were looked through and have no secret in them: many come again and again.
        self.clean: set[str] = set()

    def merge(self, other: FieldPolicy) -> FieldPolicy:
        """The stricter of both in each respect: one record goes to all listeners, so the strictest decides."""
        return FieldPolicy(
            capture=self.capture and other.capture,
            max_length=min(self.max_length, other.max_length),
            redact=tuple(dict.fromkeys(self.redact + other.redact)),
        )

    def apply(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Make `fields` fit to leave the span, in place where that is possible; returns what is left of them.

        Raises nothing, and calls nothing of the application's.
        """
        if not self.capture:
            return {}
        secret, limit, clean = self.redactor.known, self._long, self.clean
        try:
            for key, value in fields.items():
                if secret[key]:
                    if not shown_anyway(key, value):
                        fields[key] = REDACTED
                    continue
                cls = type(value)
                if cls is str:
                    # What may hold a secret has one of these; most values have none.
                    if (
                        len(value) > limit
                        or ":" in value
                        or "=" in value
                        or " " in value
                        or "," in value
                        or ">" in value
                        or "%3" in value
                    ) and value not in clean:
                        fields[key] = self.text(value)
                elif cls is int:
                    if not -_BIGGEST < value < _BIGGEST:
                        fields[key] = text_of(value, self.max_length)
                elif cls is float:
                    if value - value != 0:
                        fields[key] = text_of(value, self.max_length)
                elif cls not in _PLAIN:
                    fields[key] = self._plain(value)
        except Exception:
            # A name met for the first time, or one whose hash is the application's.
            return self._apply_slowly(fields)
        return fields

    def _apply_slowly(self, fields: dict[str, Any]) -> dict[str, Any]:
        plain = {}
        for key, value in fields.items():
            name = key if type(key) is str else text_of(key, _MAX_KEY)
            try:
                hidden = self.redactor.is_secret(name) and not shown_anyway(name, value)
                plain[name] = REDACTED if hidden else self._plain(value)
            except Exception as error:
                plain[name] = f"<{_type_name(type(error))} while it was read>"
        return plain

    def text(self, value: object, limit: int = 0) -> str:
        """`value` as a text of at most `limit` characters (0: `max_length`), without the secrets that are seen in it.

        Runs no code that is not the standard library's, and raises nothing.
        """
        limit = limit or self.max_length
        shown = text_of(value, limit + _MARGIN)
        hidden = _cut(self.redactor.hide(shown, cut=len(shown) >= limit + _MARGIN), limit)
        if hidden is shown:
            self._remember(shown)
        return hidden

    def name(self, name: str, limit: int = 0) -> str:
        """`hide(name)`, and sooner where it came before: the name of a span. `limit`: see `text`; for names of which
        there are ever more, such as a task's or a link.
        """
        if name in self.clean and (not limit or len(name) <= limit):
            return name
        if len(name) <= self._long and name.replace("-", "").isalnum():
            if not limit:
                self._remember(name)
            return name
        if limit:
            return self.text(name, limit)
        hidden = self.redactor.hide(name)
        if hidden is name:
            self._remember(name)
        return hidden

    def _remember(self, text: str) -> None:
        if len(text) <= _MAX_KEY:
            if len(self.clean) >= _MAX_CLEAN:
                self.clean.clear()
            self.clean.add(text)

    def hide(self, text: str, *, cut: bool = False) -> str:
        """See `Redactor.hide`."""
        return self.redactor.hide(text, cut=cut)

    def _plain(self, value: object) -> Any:
        """`value` as JSON could hold it."""
        return _Plain(self).of(value, 0)


class _Plain:
    """One field's value being made plain: at most `_MAX_DEPTH` levels, `_MAX_ITEMS` entries each, and about as many
    characters in all as one text may have.
    """

    __slots__ = ("_limit", "_policy", "_room")

    def __init__(self, policy: FieldPolicy) -> None:
        self._policy = policy
        self._limit = self._room = policy.max_length

    def of(self, value: object, depth: int) -> Any:
        cls = type(value)
        if cls in _CONTAINERS and depth < _MAX_DEPTH:
            return self._container(value, depth + 1)
        if cls in _PLAIN or (cls is int and -_BIGGEST < value < _BIGGEST):  # type: ignore[operator]
            self._room -= 8
            return value
        if cls is float and value - value == 0:  # type: ignore[operator]
            self._room -= 8
            return value
        text = self._policy.text(value, max(1, self._room) if depth else self._limit)
        self._room -= len(text) + 2
        return text

    def _is_name(self, value: object) -> bool:
        """Whether it is the name of a secret."""
        return type(value) in (str, bytes) and self._policy.redactor.names_secret(text_of(value, _MAX_KEY))

    def _container(self, value: Any, depth: int) -> Any:
        self._room -= 2
        # Copied before anything is done with it, since another thread may change it meanwhile; and no more than needed.
        if type(value) is dict:
            entries = list(islice(value.items(), _MAX_ITEMS))
            plain: dict[str, Any] = {}
            named = any(type(key) is str and key in ("name", "key") and self._is_name(item) for key, item in entries)
            for count, (key, item) in enumerate(entries):
                if self._room <= 0:
                    del entries[count:]
                    break
                text = text_of(key, _MAX_KEY)
                name = key if type(key) is str else text
                self._room -= len(text) + 2
                hidden = self._policy.redactor.is_secret(name) or (named and name == "value")
                hidden = hidden and not shown_anyway(name, item)
                plain[text] = REDACTED if hidden else self.of(item, depth)
            if len(value) > len(entries):
                plain["…"] = f"{len(value) - len(entries)} more"
            return plain
        some = list(islice(value, _MAX_ITEMS))
        if len(value) == 2 and self._is_name(some[0]):
            # A name and its value, as in a list of headers.
            return [text_of(some[0], _MAX_KEY), REDACTED]
        items = list[Any]()
        option = False
        for item in some:
            if self._room <= 0:
                break
            items.append(REDACTED if option else self.of(item, depth))
            # Arguments of a command.
            option = type(item) is str and item.startswith("--") and "=" not in item and self._is_name(item)
        if len(value) > len(items):
            items.append(f"… {len(value) - len(items)} more")
        return items


def text_of(value: object, limit: int) -> str:
    """`value` as text of at most `limit` characters, without running any code that is not the standard library's."""
    # Everything is asked of the type: an object's own `__class__`, or a method that a subclass has overridden, is the
    # application's code.
    cls = type(value)
    if cls is str:
        return _cut(value, limit)  # type: ignore[arg-type]
    try:
        return _cut(_text_of(value, cls, limit), limit)
    except Exception as error:
        return _cut(f"<{_type_name(cls)}: {type(error).__name__}>", limit)


def _text_of(value: Any, cls: type, limit: int) -> str:
    if issubclass(cls, enum.Enum):
        return f"{_qualname_of(cls)}.{str.__str__(object.__getattribute__(value, '_name_'))}"
    if issubclass(cls, int):
        bits = int.bit_length(value)
        return int.__repr__(value) if bits < _MAX_BITS else f"<int of {bits} bits>"
    if issubclass(cls, float):
        return float.__repr__(value)
    if issubclass(cls, str):
        return str.__str__(value)
    if cls is bytes or cls is bytearray:
        return repr(bytes(value[:limit]))
    if cls is complex or value is None:
        return repr(value)
    if cls is range:
        return f"range({text_of(value.start, 99)}, {text_of(value.stop, 99)}, {text_of(value.step, 99)})"
    library = _library_name(cls)
    if library == "Fraction":
        return f"{text_of(value.numerator, 400)}/{text_of(value.denominator, 400)}"
    if library and sys.getsizeof(value) < _MAX_SIZE:
        # A time asks its zone, which may be the application's.
        zone = value.tzinfo if library in ("datetime", "time") else None
        return str(value) if zone is None or _library_name(type(zone)) else str(value.replace(tzinfo=None))
    if cls in _CONTAINERS:
        return f"<{cls.__name__} of {len(value)}>"
    if issubclass(cls, type):
        return f"<class {_type_name(value)}>"
    return f"<{_type_name(cls)}>"


#: The exceptions in a group, past a subclass that has its own idea of the attribute.
_exceptions_of = BaseExceptionGroup.__dict__["exceptions"].__get__


def error_of(error: BaseException, policy: FieldPolicy) -> Mapping[str, Any]:
    """`{type, message}` of an exception; a group has the types of its leaves too. Never raises.

    Unlike a field, an exception is asked for its text: that is what it is for. One that fails to say is named only.
    """
    cls = type(error)
    try:
        message = policy.text(str.__str__(str(error)))
    except Exception as failure:
        message = f"<no message: {type(failure).__name__} in __str__>"
    if not issubclass(cls, BaseExceptionGroup):
        return {"type": _type_name(cls), "message": message}
    leaves: list[str] = []
    groups: list[Any] = [error]
    while groups and len(leaves) < _MAX_ITEMS:
        for inner in islice(_exceptions_of(groups.pop(0)), _MAX_ITEMS):
            if issubclass(type(inner), BaseExceptionGroup):
                groups.append(inner)
            else:
                leaves.append(_type_name(type(inner)))
    return {"type": f"{_type_name(cls)}({', '.join(leaves)})", "message": message, "leaves": leaves}
