from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import pathlib
import threading
import uuid
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinspect_logging.fields import FieldPolicy, error_of, text_of
from asyncinspect_logging.redaction import REDACTED

POLICY = FieldPolicy()


def plain(value: Any) -> Any:
    return FieldPolicy().apply({"x": value})["x"]


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 3


class Point(collections.namedtuple("Point", "x y")):
    pass


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (7, 7),
        (True, True),
        (None, None),
        (1.5, 1.5),
        ("é", "é"),
        ("\ud800", "\ud800"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1 << 64, str(1 << 64)),
        (-(1 << 70), str(-(1 << 70))),
        (10**5000, f"<int of {(10**5000).bit_length()} bits>"),
        (b"abc", "b'abc'"),
        (bytearray(b"abc"), "b'abc'"),
        (1 + 2j, "(1+2j)"),
        (range(1, 9), "range(1, 9, 1)"),
        (Color.RED, "Color.RED"),
        (Level.HIGH, "Level.HIGH"),
        (datetime.datetime(2030, 1, 2, 3, 4, 5), "2030-01-02 03:04:05"),
        (datetime.datetime(2030, 1, 2, tzinfo=ZoneInfo("UTC")), "2030-01-02 00:00:00+00:00"),
        (datetime.datetime(2030, 1, 2, tzinfo=datetime.UTC), "2030-01-02 00:00:00+00:00"),
        (datetime.timedelta(seconds=1), "0:00:01"),
        (decimal.Decimal("1.50"), "1.50"),
        (decimal.Decimal(10**4000), "<decimal.Decimal>"),
        (fractions.Fraction(1, 3), "1/3"),
        (ipaddress.ip_address("::1"), "::1"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (int, "<class int>"),
        (Point(1, 2), f"<{__name__}.Point>"),
        (collections.OrderedDict(a=1), "<collections.OrderedDict>"),
        ([1, (2, {3})], [1, [2, [3]]]),
        ({"a": {1: "b"}}, {"a": {"1": "b"}}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_shown_as(value: Any, shown: Any) -> None:
    """What is known is shown plainly, and what is not is named."""
    assert plain(value) == shown
    assert type(plain(value)) is type(shown)


@pytest.mark.parametrize(
    "name",
    ["password", "PassWord", "db_password", "X-Api-Key", "apiKey", "api key", "privateKey", "Authorization", "a.token"],
)
def test_secret_names(name: str) -> None:
    """In any case, with whatever between the words, at any depth, and in lists of pairs."""
    assert plain({name: "hidden", "ok": [{name: "hidden"}]}) == {name: REDACTED, "ok": [{name: REDACTED}]}
    assert FieldPolicy().apply({name: "hidden", "ok": 1}) == {name: REDACTED, "ok": 1}
    assert plain([(name, "hidden"), ("ok", "shown")]) == [[name, REDACTED], ["ok", "shown"]]
    assert "hidden" not in str(plain([(name.encode(), b"hidden")]))


@pytest.mark.parametrize(
    "name", ["max_tokens", "promptTokens", "sessions", "session_count", "token-limit", "cookie_age", "token.ttl"]
)
def test_what_counts_is_no_secret(name: str) -> None:
    """A number under a name that counts is shown, also in a text; a text under it is not."""
    policy = FieldPolicy()
    for value in (512, -1, 0.5):
        assert policy.apply({name: value, "in": {name: value}}) == {name: value, "in": {name: value}}
        assert policy.hide(f"sent {name}={value}, and more") == f"sent {name}={value}, and more"
    for text in ("abc", "512", "5 12x"):
        assert policy.apply({name: text}) == {name: REDACTED}
    for value in (1 << 64, float("nan"), decimal.Decimal(5)):
        assert policy.apply({name: value}) == {name: REDACTED}
    assert policy.hide(f"{name}=5a12") == f"{name}={REDACTED}"


@pytest.mark.parametrize("name", ["token", "passcode", "session", "session_id"])
def test_what_is_nothing_is_no_secret(name: str) -> None:
    """A truth value or None is shown under any name, and a number is not."""
    policy = FieldPolicy()
    for value in (True, False, None):
        assert policy.apply({name: value, "in": {name: value}}) == {name: value, "in": {name: value}}
    for value in (123456, 1.5):
        assert policy.apply({name: value, "in": {name: value}}) == {name: REDACTED, "in": {name: REDACTED}}
    assert FieldPolicy(redact=("pass",)).apply({"pass": 1234}) == {"pass": REDACTED}


def test_secret_name_beyond_what_is_shown_of_it() -> None:
    """A name is looked at as a whole, however long."""
    name = "x" * 5000 + "password"
    assert POLICY.apply({name: "hidden"}) == {name: REDACTED}
    assert "hidden" not in str(plain({name: "hidden"}))


@pytest.mark.parametrize("part", ["ssn", "SSN", "s-s-n"])
def test_own_secrets(part: str) -> None:
    """The parts given are compared in the same way as the names."""
    assert FieldPolicy(redact=(part,)).apply({"User_SSN": 1, "password": 2}) == {"User_SSN": REDACTED, "password": 2}


def test_many_names_are_not_all_remembered() -> None:
    """Names are judged each time once there are too many to remember."""
    policy = FieldPolicy()
    for number in range(11_000):
        policy.apply({f"name{number}": 1})
    assert policy.apply({"new_password": 1, "new": 2}) == {"new_password": REDACTED, "new": 2}
    assert len(policy.redactor.known) <= 10_000


def test_cut() -> None:
    """A text is as long as the limit allows, with the last character showing that there was more."""
    policy = FieldPolicy(max_length=5)
    assert policy.apply({"a": "123456", "b": "12345", "c": b"123456789"}) == {"a": "1234…", "b": "12345", "c": "b'12…"}
    assert FieldPolicy(max_length=1).apply({"a": "123"}) == {"a": "…"}


def test_not_captured() -> None:
    """Without capture nothing leaves the span."""
    assert FieldPolicy(capture=False).apply({"a": 1}) == {}


def test_merged_policies() -> None:
    """The stricter of both in each respect."""
    merged = FieldPolicy(max_length=10, redact=("a",)).merge(FieldPolicy(max_length=5, redact=("b",)))
    assert (merged.max_length, merged.redact, merged.capture) == (5, ("a", "b"), True)
    assert not FieldPolicy(capture=False).merge(FieldPolicy()).capture


class Hostile:
    """Whatever is asked of it, it raises; and its `__class__` is a lie."""

    def _raise(self, *args: Any) -> Any:
        raise AssertionError("the application's code was called")

    __str__ = __repr__ = __len__ = __iter__ = __eq__ = __bool__ = __format__ = __index__ = __getitem__ = _raise  # type: ignore[assignment]
    __hash__ = __lt__ = __int__ = __contains__ = _raise  # type: ignore[assignment]
    __class__ = property(_raise)  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("the application's code was called")


def hostile(base: type) -> Any:
    names = ("__str__", "__repr__", "__len__", "__iter__", "__eq__", "__bool__", "__format__", "__getitem__", "items")

    def explode(self: Any, *args: Any) -> Any:
        raise AssertionError("the application's code was called")

    body: dict[str, Any] = {**dict.fromkeys(names, explode), "__hash__": base.__hash__}
    return type(f"Hostile{base.__name__}", (base,), body)


@pytest.mark.parametrize("base", [int, float, str, bytes, list, dict, tuple, set, datetime.datetime, object])
def test_subclasses_are_not_asked(base: type) -> None:
    """A subclass may have any code in it; it is not called."""
    cls = hostile(base)
    value = cls(2030, 1, 1) if base is datetime.datetime else cls()
    shown = plain(value)
    assert type(shown) is str
    assert len(shown) < 100
    assert plain([value, {"k": value}])


def test_hostile_objects() -> None:
    """Not even a class that lies is asked, alone, as a key or in a container."""
    shown = f"<{__name__}.Hostile>"
    assert plain(Hostile()) == shown
    assert plain([Hostile()]) == [shown]
    assert plain(mock.Mock(spec=str)).startswith("<unittest.mock.")


class LyingMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError("the application's code was called")


def test_hostile_metaclass() -> None:
    """A class is named by what it is, not by what it says."""
    cls = LyingMeta("Liar", (), {})
    assert "Liar" in plain(cls())
    assert "Liar" in plain(cls)


def test_hostile_time_zone() -> None:
    """A time of a zone of the application's is shown without it."""

    class Zone(datetime.tzinfo):
        def utcoffset(self, when: Any) -> Any:
            raise AssertionError("the application's code was called")

    assert plain(datetime.datetime(2030, 1, 1, tzinfo=Zone())) == "2030-01-01 00:00:00"


class BadHash(str):
    __slots__ = ()

    def __hash__(self) -> int:
        raise AssertionError("the application's code was called")


def test_key_that_cannot_be_hashed() -> None:
    """The other fields are not lost by it."""
    fields: Any = mock.MagicMock()
    fields.items.return_value = [("a", 1), (BadHash("password"), "hidden")]
    assert POLICY.apply(fields) == {"a": 1, "password": REDACTED}


def test_self_reference() -> None:
    """A container inside itself, many times over, is shown to a depth and to a length."""
    ring: list[Any] = []
    ring += [ring] * 1000
    table: dict[str, Any] = {}
    table |= {str(n): table for n in range(1000)}
    for value in (ring, table):
        shown = json.dumps(plain(value))
        assert len(shown) < 10_000
        assert "more" in shown


def test_size_is_bounded() -> None:
    """A wide and deep value of long texts comes out about as long as one text may be."""
    value = [[["x" * 1000] * 100] * 100] * 100
    assert len(json.dumps(plain(value))) < 4 * 1024
    assert len(json.dumps(plain({"x" * 1000 + str(n): "y" * 1000 for n in range(100)}))) < 4 * 1024


def test_changed_by_another_thread_meanwhile() -> None:
    """A dict and a set that another thread changes at every moment can be read."""
    table, members, stop = dict[int, int](), set[int](), threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            table[number] = number
            members.add(number)
            table.pop(number - 50, None)
            members.discard(number - 50)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(2000):
            POLICY.apply({"table": table, "members": members})
    finally:
        stop.set()
        thread.join()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.decimals()
    | st.datetimes() | st.complex_numbers() | st.uuids() | st.builds(Hostile),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.binary(), inner) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=40)
@given(st.dictionaries(st.text(), anything, max_size=4), st.integers(1, 2000))
def test_whatever_comes_goes_into_json(fields: dict[str, Any], limit: int) -> None:
    """Nothing raises, and what is left can be written as strict JSON."""
    names = list(fields)
    shown = FieldPolicy(max_length=limit).apply(fields)
    assert list(shown) == names
    json.dumps(shown, allow_nan=False)
    for value in shown.values():
        assert not isinstance(value, str) or len(value) <= max(limit, len(REDACTED))


def test_text_of_is_cut() -> None:
    """Whatever the type."""
    for value in ("x" * 100, b"x" * 100, 10**100, object(), [1], decimal.Decimal(10**50)):
        assert len(text_of(value, 8)) <= 8


# -- errors ----------------------------------------------------------------------------------------------------------


class NoText(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class OddText(Exception):
    def __str__(self) -> str:
        return hostile(str)("said")  # type: ignore[no-any-return]


def test_error() -> None:
    """An exception has a type and a message, cut."""
    assert error_of(ValueError("no"), FieldPolicy(max_length=100)) == {"type": "ValueError", "message": "no"}
    assert error_of(KeyError("k" * 100), FieldPolicy(max_length=5))["message"] == "'kkk…"
    assert error_of(NoText(), FieldPolicy(max_length=100)) == {
        "type": f"{__name__}.NoText",
        "message": "<no message: ZeroDivisionError in __str__>",
    }
    assert error_of(OddText(), FieldPolicy(max_length=100))["message"] == "said"


def test_error_group() -> None:
    """A group tells the types of its leaves, of as many as one cares to read."""
    group = BaseExceptionGroup("all", [ValueError(), ExceptionGroup("some", [KeyError(), OSError()])])
    error = error_of(group, FieldPolicy(max_length=100))
    assert error["leaves"] == ["ValueError", "KeyError", "OSError"]
    assert error["type"] == "ExceptionGroup(ValueError, KeyError, OSError)"
    many = error_of(ExceptionGroup("many", [ValueError()] * 100_000), FieldPolicy(max_length=100))
    assert len(many["leaves"]) <= 64
