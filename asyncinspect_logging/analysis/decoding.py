"""A line of a log, decoded: in C and checked there, where it is what we write, and else by the general rules.

Both ways mean the same. What the first does not take goes the second, so it may be as strict as it likes.
"""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from ..diagnostics import log
from ..errors import MissingExtraError
from ..records import KEY, is_id, is_whole

try:
    import msgspec
except ImportError:
    raise MissingExtraError("Reading a log", "replay") from None

__all__ = [
    "Begin",
    "Enter",
    "Exit",
    "Line",
    "More",
    "Ordinary",
    "Record",
    "Resume",
    "Spawn",
    "Suspend",
    "Unreadable",
    "Wake",
    "annotation",
    "bare",
    "decoded",
    "is_object_begun",
    "ordinary",
    "ordinary_of",
    "parse",
    "payload_in",
]

_Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Id = Annotated[str, msgspec.Meta(min_length=16, max_length=16)]
_Trace = Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
_Pairs = tuple[tuple[int, int], ...]
# An abandoned span is told of by the general way.
_Outcome = Literal["completed", "failed", "cancelled", "interrupted"]
if TYPE_CHECKING:
    _Unsaid = Any
else:
    #: What is set here and no line can say: nothing but null is taken.
    _Unsaid = None


class _Object(msgspec.Struct, gc=False, frozen=True):
    """An object, whatever is in it."""


_NO_OBJECT: Final = _Object()


# `gc=False`: millions are made, none of them is part of a cycle, and the collector need not walk over them. One struct
# for each kind, and keys in the order in which we write them: each field that a line says nothing of is filled in and
# cleared again, and each key is first looked for behind the one before it.
class Record(msgspec.Struct, gc=False, tag_field="kind"):
    """Of a payload, what has to be right (see `records.flaw_of`), and what is counted. The rest is passed over, which
    saves a third of the time, and read from the line if and when somebody wants to see it.
    """

    v: Literal[1]
    id: _Id
    t: _Whole
    wall: _Whole
    pid: _Whole
    seq: _Whole


class Begin(Record, gc=False):
    """`trace` is "" where the line has none."""

    name: str
    trace: _Trace = ""
    parent: _Id | None = None
    fields: _Object = _NO_OBJECT
    line: _Unsaid = None


class Spawn(Begin, gc=False, tag="spawn"):
    pass


class Enter(Begin, gc=False, tag="enter"):
    pass


class More(Record, gc=False, tag="record"):
    name: str
    fields: _Object = _NO_OBJECT


class Exit(Record, gc=False, tag="exit"):
    """`duration` is -1 where the line has none. `begun`: what the span began with."""

    name: str
    outcome: _Outcome
    duration: _Whole = -1
    polls: _Whole = 0
    busy: _Whole = 0
    scheduled: _Whole = 0
    max_poll: _Whole = 0
    wakes: _Whole = 0
    self_wakes: _Whole = 0
    slow_polls: _Pairs | None = None
    slow_waits: _Pairs | None = None
    line: _Unsaid = None
    begun: _Unsaid = None


class Suspend(Record, gc=False, tag="suspend"):
    pass


class Resume(Record, gc=False, tag="resume"):
    pass


class Wake(Record, gc=False, tag="wake"):
    pass


class Line(msgspec.Struct, gc=False):
    asyncinspect: Enter | Exit | Spawn | Suspend | Resume | Wake | More


class _WholeLine(msgspec.Struct, gc=False):
    asyncinspect: dict[str, Any]


_whole: Final = msgspec.json.Decoder(_WholeLine).decode


def payload_in(line: bytes) -> dict[str, Any]:
    """All that a line says which was a record."""
    try:
        return _whole(line).asyncinspect
    except Exception:
        found: dict[str, Any] = parse(line)[KEY]
        return found


class Ordinary(msgspec.Struct, gc=False, rename={"at_timestamp": "@timestamp"}):
    """Any other line that is a JSON object: what formatters call the things that we want to know of it."""

    asyncinspect: Any = None
    v: Any = None
    kind: Any = None
    span_id: Any = None
    name: Any = None
    logger: Any = None
    message: Any = None
    event: Any = None
    msg: Any = None
    levelname: Any = None
    level: Any = None
    severity: Any = None
    created: Any = None
    timestamp: Any = None
    time: Any = None
    ts: Any = None
    at_timestamp: Any = None
    asctime: Any = None

    def is_told(self) -> bool:
        """Whether the line says to be one of ours after all."""
        return self.asyncinspect is not None or (self.kind is not None and self.v is not None)


def ordinary_of(line: dict[str, Any]) -> Ordinary:
    return Ordinary(**{key: line.get(name) for key, name in _NAMES.items()})


_NAMES: Final = dict(zip(Ordinary.__struct_fields__, Ordinary.__struct_encode_fields__, strict=True))
_line: Final = msgspec.json.Decoder(Line).decode
ordinary: Final = msgspec.json.Decoder(Ordinary).decode


def decoded(lines: list[bytes]) -> list[Line | None]:
    """Lines as what is ordinary among them; None for each other.

    All at a go: decoder and interpreter do not fit the processor's nearest cache together, and each line would be
    decoded with one that is just filled with the other.
    """
    left, found = map(_line, lines), list[Line | None]()
    while True:
        try:
            found.extend(left)
        except Exception:
            found.append(None)
        else:
            return found


class Unreadable(ValueError):
    """A line is no JSON. The message says why."""


def parse(line: bytes) -> Any:
    """A line that is to be JSON, by the general rules; what no encoding has is replaced.

    Raises Unreadable. (Python's own reader takes what the quick ones do not: NaN, which Python's writer writes, lone
    surrogates, and whole numbers of any size.)
    """
    text = line.decode("utf-8", "replace")
    try:
        return json.loads(text, strict=False)
    except RecursionError:
        raise Unreadable("its values are nested too deep") from None
    except ValueError as error:
        raise Unreadable(f"it is no JSON: {error}") from None


def bare(line: bytes) -> bytes:
    """A line without what is around it and says nothing: space, the NUL bytes of a file that was cut off while it was
    written to, and the mark that some programs begin a file with.
    """
    return line.strip(b" \t\r\n\0").removeprefix(b"\xef\xbb\xbf")


def is_object_begun(text: bytes) -> bool:
    """Whether a `bare` line that is no JSON was to be an object, and not some text in braces."""
    return text.startswith(b"{") and (_QUOTED_KEY in text or text[1:].lstrip()[:1] == b'"')


_QUOTED_KEY: Final = f'"{KEY}"'.encode()
_OURS: Final = log.name
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
#: Numbers above these are Unix time in ms, µs and ns, not in seconds: the year 5138, and what that is in the others.
_UNITS: Final = ((1e17, 1), (1e14, 1_000), (1e11, 1_000_000), (0, 1_000_000_000))


def annotation(line: Ordinary, wall: int, length: int) -> tuple[int, str, int] | None:
    """(span number, text, Unix time in ns) of an ordinary line that was written inside a span; None outside of any,
    and of what the library itself says, which no inspector counts either.

    wall: the time to take where the line has none. length: characters of the message that are shown.
    """
    if not is_id(line.span_id) or _OURS in (line.name, line.logger):
        return None
    level = next((each for each in (line.levelname, line.level, line.severity) if isinstance(each, str)), "")
    texts = (line.message, line.event, line.msg)
    text = next((each for each in texts if isinstance(each, str)), None)
    if text is None:
        told = next((each for each in texts if each is not None), "")
        text = f"<{type(told).__name__}>" if isinstance(told, dict | list) else str(told)
    times = (line.created, line.timestamp, line.time, line.ts, line.at_timestamp, line.asctime)
    at = next((found for each in times if (found := _wall_of(each)) is not None), wall)
    return int(line.span_id, 16), f"{level.upper()[:32]} {text[:length]}".lstrip(), at


def _wall_of(value: object) -> int | None:
    """Unix time in ns of what is a number or ISO 8601 (without a zone: local time, as `asctime` is)."""
    if isinstance(value, str) and len(value) <= 40:
        try:
            time = datetime.datetime.fromisoformat(value)
            passed = time.astimezone(datetime.UTC) - _EPOCH
        except (ValueError, OverflowError, OSError):
            return None
        wall = (passed.days * 86_400 + passed.seconds) * 1_000_000_000 + passed.microseconds * 1_000
        return wall if is_whole(wall) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 63:
        unit = next(unit for above, unit in _UNITS if value > above)
        wall = round(value * unit)
        return wall if is_whole(wall) else None
    return None


assert Line.__struct_fields__ == (KEY,)
