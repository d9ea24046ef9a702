"""A lifecycle payload, read: what it says in the types that the inspector works with, and nothing else.

A payload comes from anywhere (a queue, a socket, a file that somebody edited), and the inspector must be able to trust
what it takes in. So everything is looked at once, here: what the protocol demands and is not there makes the payload
malformed, and what is optional and not what it should be is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from .catalogue import STEP_BOUNDS
from .fields import FieldPolicy, text_of
from .records import flaw_of, is_id, is_whole
from .steps import pack

__all__ = ["Telling", "read", "read_error", "read_slow"]

_MAX_LINKS: Final = 32
_MAX_HOLDERS: Final = 100


class Telling(NamedTuple):
    """One payload. `number`: the span's, of its id; `t` and `wall` in ns; `said`: what its kind has beyond that."""

    kind: str
    number: int
    pid: int
    seq: int
    t: int
    wall: int
    name: str
    said: dict[str, Any]


def read(payload: Mapping[str, Any], policy: FieldPolicy) -> Telling | None:
    """What a payload says, its texts cut and its secrets hidden as `policy` has it; None where it is malformed.

    Raises whatever a mapping of the application's own making raises.
    """
    if flaw_of(payload) is not None:
        return None
    kind = payload["kind"]
    said: dict[str, Any] = {}
    for key, reader in _READERS[kind].items():
        value = payload.get(key)
        if value is not None:
            value = reader(value, policy)
            if value is not None:
                said[key] = value
    name = payload.get("name")
    return Telling(
        kind,
        int(payload["id"], 16),
        int(payload["pid"]),
        int(payload["seq"]),
        int(payload["t"]),
        int(payload["wall"]),
        policy.name(str.__str__(name)) if isinstance(name, str) else "",
        said,
    )


def _text(value: object, policy: FieldPolicy) -> str | None:
    return policy.name(str.__str__(value), policy.max_length) if isinstance(value, str) else None


def _id(value: str, policy: FieldPolicy) -> str:
    # Spelt as our own are, by which they are looked up.
    return str.lower(value)


def _number(value: object, policy: FieldPolicy) -> int | None:
    return int(value) if is_whole(value) else None


def _tally(value: int, policy: FieldPolicy) -> int:
    return int(value)


def _truth(value: object, policy: FieldPolicy) -> bool | None:
    return True if value is True else None


def _fields(value: Mapping[str, Any], policy: FieldPolicy) -> dict[str, Any]:
    return policy.apply(dict(value))


def _links(value: object, policy: FieldPolicy) -> tuple[str, ...] | None:
    if type(value) not in (list, tuple):
        return None
    links: Any = value
    return tuple(policy.name(text_of(link, 64), 64) for link in islice(links, _MAX_LINKS))


def read_error(value: object, policy: FieldPolicy) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    error: dict[str, Any] = {key: policy.text(value.get(key, "")) for key in ("type", "message")}
    leaves: Any = value.get("leaves")
    if type(leaves) in (list, tuple):
        error["leaves"] = [policy.text(leaf) for leaf in islice(leaves, _MAX_LINKS)]
    return error


def _slow(value: object, policy: FieldPolicy) -> int | None:
    return read_slow(value)


def read_slow(value: object) -> int | None:
    """(bucket, count) pairs, packed; None where they are not that."""
    if type(value) not in (list, tuple):
        return None
    counts: dict[int, int] = {}
    pairs: Any = value
    for pair in islice(pairs, len(STEP_BOUNDS)):
        if type(pair) not in (list, tuple) or len(pair) != 2:
            return None
        bucket, count = pair
        if type(bucket) is not int or not 0 < bucket <= len(STEP_BOUNDS):
            return None
        if type(count) is not int or not 0 < count < 1 << 40 or bucket in counts:
            return None
        counts[bucket] = count
    return pack(counts.items())


_Reader = Callable[[Any, FieldPolicy], Any]

_BEGIN: Final[dict[str, _Reader]] = {
    "trace": _id,
    "parent": _id,
    "task": _text,
    "thread": _number,
    "at": _text,
    "links": _links,
    "parent_closed": _truth,
    "fields": _fields,
}
_TALLIES: Final = ("duration", "polls", "busy", "scheduled", "max_poll", "wakes", "self_wakes")
_EXIT: Final[dict[str, _Reader]] = {
    "outcome": _text,
    "error": read_error,
    **dict.fromkeys(_TALLIES, _tally),
    "slow_polls": _slow,
    "slow_waits": _slow,
}


def _resource(value: object, policy: FieldPolicy) -> tuple[str, str | None, int] | None:
    """(kind, name, id); of one that is only a text, that is the kind, and the id is 0."""
    if isinstance(value, str):
        return policy.name(str.__str__(value), policy.max_length), None, 0
    if not isinstance(value, Mapping):
        return None
    kind, number = _text(value.get("kind"), policy), _hex(value.get("id"), policy)
    return None if kind is None or number is None else (kind, _text(value.get("name"), policy), number)


def _hex(value: object, policy: FieldPolicy) -> int | None:
    return int(value, 16) if is_id(value) else None


def _holders(value: object, policy: FieldPolicy) -> list[dict[str, Any]] | None:
    """Those who hold what is waited for; None where not all of them can be read."""
    if type(value) not in (list, tuple):
        return None
    holders: list[dict[str, Any]] = []
    given: Any = value
    for one in islice(given, _MAX_HOLDERS):
        if not isinstance(one, Mapping):
            return None
        held = {key: reader(one.get(key), policy) for key, reader in _HOLDER.items()}
        if held["owner"] is None or held["t"] is None:
            return None
        holders.append({key: found for key, found in held.items() if found is not None})
    return holders


_STEP: Final[dict[str, _Reader]] = {"on": _text}
_OWNER: Final[dict[str, _Reader]] = {"owner": _hex, "task": _text, "root": _hex, "at": _text, "over": _truth}
_HOLDER: Final[dict[str, _Reader]] = {**_OWNER, "id": _hex, "name": _text, "t": _number, "count": _number}
_WAITING: Final[dict[str, _Reader]] = {
    **_STEP,
    **_OWNER,
    "resource": _resource,
    "holders": _holders,
    "open": _truth,
    "timeout": _truth,
}
_READERS: Final[dict[str, dict[str, _Reader]]] = {
    "spawn": _BEGIN,
    "enter": _BEGIN,
    "record": {"fields": _fields},
    "exit": _EXIT,
    **dict.fromkeys(("suspend", "wake", "resume"), _STEP),
    **dict.fromkeys(("wait", "acquire", "release"), _WAITING),
}
