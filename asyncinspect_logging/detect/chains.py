"""What a coroutine awaits, down to the innermost frame: read from outside, while it may be going on in another thread.

None of the application's code runs here. What is asked are attributes of the interpreter's own types, and of objects
in between (a future's iterator, `asend()` of an async generator, the iterator of somebody's `__await__`) only what they
refer to, which is what the garbage collector asks, too.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
from _thread import get_ident
from collections.abc import Iterable
from types import (
    AsyncGeneratorType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
)
from typing import Any, Final, NamedTuple

from .. import driver
from ..driven import DrivenSpan
from ..driver import Driver
from ..stacks import current_frames, frame_of, is_ours, locals_of, outwards, stack_of

__all__ = [
    "Chain",
    "Link",
    "enclosed",
    "is_driver",
    "is_future",
    "is_of_application",
    "local",
    "running_frames",
    "texts_of",
    "thread_frames",
    "walk",
]

_DRIVE: Final = driver._drive.__code__
_MAX_LINKS: Final = 1000
#: Attributes of the kinds that have a frame: it, what it awaits, whether it runs now, whether it is suspended. (An
#: async generator says that it runs while somebody waits for its next item.)
_KINDS: Final[dict[type, tuple[str, str, str, str]]] = {
    CoroutineType: ("cr_frame", "cr_await", "cr_running", "cr_suspended"),
    GeneratorType: ("gi_frame", "gi_yieldfrom", "gi_running", "gi_suspended"),
    AsyncGeneratorType: ("ag_frame", "ag_await", "", "ag_suspended"),
}
_C_ATTRIBUTES: Final = (GetSetDescriptorType, MemberDescriptorType)
#: Names of the types between an `await` and what has a frame, and of those that compiled coroutines have.
_BETWEEN: Final = frozenset(
    {"FutureIter", "async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper"}
)
_COMPILED: Final = frozenset({"coroutine", "iterable_coroutine"})
_KEEPS_LOCALS: Final = sys.version_info < (3, 13)


class Link(NamedTuple):
    """One frame of a chain. `thing`: the coroutine, generator or async generator that it is of, or None in a stack."""

    thing: Any
    frame: FrameType
    module: str
    name: str

    @property
    def key(self) -> tuple[str, str]:
        return self.module, self.name


class Chain(NamedTuple):
    """Links, outermost first; what the innermost one awaits that has no frame, most often a future; the drivers met,
    each with the number of links outside it; whether the coroutine is running, and whether it is suspended.
    """

    links: tuple[Link, ...]
    end: Any
    drivers: tuple[tuple[int, DrivenSpan], ...]
    running: bool
    suspended: bool


def walk(thing: Any) -> Chain:
    """The chain of a coroutine, or of anything else that stands for one. Of one that runs it has the outermost link."""
    links: list[Link] = []
    drivers: list[tuple[int, DrivenSpan]] = []
    running, suspended = False, True
    for _ in range(_MAX_LINKS):
        if thing is None or is_future(thing):
            break
        kind = type(thing)
        if kind is Driver:
            drivers.append((len(links), thing.span))
            thing = thing._inner
            continue
        names = _KINDS.get(kind)
        if names is None:
            frame = _c_attribute(thing, "cr_frame")
            if frame is None:
                found = _referred(thing)
                if found is None:
                    break
                thing = found
                continue
            # A compiled coroutine (uvloop's): its frame is made up, but it knows its name and what it awaits.
            links.append(_link(thing, frame, _c_attribute(thing, "__qualname__")))
            thing = _c_attribute(thing, "cr_await")
            continue
        frame_name, awaits, runs, suspends = names
        if runs and getattr(thing, runs):
            running = True
        elif not links:
            suspended = getattr(thing, suspends, True)
        frame = frame_of(thing, frame_name)
        if frame is None:
            thing = None
            break
        within = None if running else getattr(thing, awaits)
        if frame.f_code is _DRIVE:
            span, inner = local(frame, "span", "inner")
            if span is not None:
                drivers.append((len(links), span))
            thing = inner if within is None else within
            running = False
            continue
        links.append(_link(thing, frame, None))
        thing = within
        if running:
            break
    else:
        thing = None
    return Chain(tuple(links), thing, tuple(drivers), running, suspended and not running)


def _link(thing: Any, frame: FrameType, name: str | None) -> Link:
    code = frame.f_code
    module = frame.f_globals.get("__name__")
    return Link(thing, frame, module if type(module) is str else code.co_filename, name or code.co_qualname)


def is_future(thing: object) -> bool:
    """Whether it is a future of asyncio's, as its type says; `isinstance` would ask the object itself."""
    return issubclass(type(thing), asyncio.Future | asyncio.futures._PyFuture)  # type: ignore[attr-defined]


def _c_attribute(thing: Any, name: str) -> Any:
    """An attribute that a type written in C has of its own, or None."""
    for cls in type.__getattribute__(type(thing), "__mro__"):
        found = type.__getattribute__(cls, "__dict__").get(name)
        if found is not None:
            return found.__get__(thing) if type(found) in _C_ATTRIBUTES else None
    return None


def _referred(thing: Any) -> Any:
    """What an object in between goes on to: the first coroutine, generator, future or the like that it refers to."""
    referents = gc.get_referents(thing)
    attributes = [value for kept in referents if type(kept) is dict for value in list(dict.values(kept))]
    for held in (*referents, *attributes):
        kind = type(held)
        if kind in _KINDS or kind is Driver or is_future(held) or kind.__name__ in _BETWEEN:
            return held
        if kind.__name__ in _COMPILED and _c_attribute(held, "cr_frame") is not None:
            return held
    return None


def local(frame: FrameType, *names: str) -> tuple[Any, ...]:
    """Values of local variables, None for those that are not set. For frames of libraries only: before Python 3.13 the
    dict that this fills is the one that `locals()` in the frame gives, and it is emptied so that nothing is kept alive.
    """
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return (None,) * len(names)
    found = locals_of(frame)
    values = tuple(found.get(name) for name in names)
    if _KEEPS_LOCALS:
        found.clear()
    return values


def enclosed(function: FunctionType, name: str) -> Any:
    """A variable of the function around, or None where it is not set or not used."""
    try:
        return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents  # type: ignore[index]
    except ValueError:
        return None


def is_driver(frame: FrameType) -> bool:
    """Whether a frame is that of a driver, which steps what is further in."""
    return frame.f_code is _DRIVE


def texts_of(frames: Iterable[tuple[FrameType, str, str]]) -> tuple[str, ...]:
    """Frames, each with its module and function, as `file.py:41 function`; this package's own are left out. A file in a
    package is given with the folder that it is in.
    """
    texts = []
    for frame, module, name in frames:
        if not is_ours(frame):
            file = frame.f_code.co_filename.replace("\\", "/")
            parts = file.rsplit("/", 2)
            short = "/".join(parts[-2:] if "." in module or not module.isidentifier() else parts[-1:])
            line = frame.f_lineno
            texts.append(f"{short} {name}" if line is None else f"{short}:{line} {name}")
    return tuple(texts)


def running_frames(frame: FrameType) -> list[FrameType]:
    """The stack of the thread that runs `frame`, from that inwards, or nothing where no thread does."""
    others = map(outwards, current_frames().values())
    found = next((stack for stack in (stack_of(get_ident()), *others) if frame in stack), [])
    return found[found.index(frame) :: -1] if found else []


def thread_frames(ident: int) -> list[FrameType]:
    """What a thread runs, outermost first: the frames of the application, or all where there is none of those."""
    found = stack_of(ident)[::-1]
    return [frame for frame in found if is_of_application(frame)] or found


def is_of_application(frame: FrameType) -> bool:
    """Whether a frame is of no module of the standard library."""
    module = frame.f_globals.get("__name__")
    top = module.partition(".")[0] if type(module) is str else ""
    return top == "__main__" or top not in sys.stdlib_module_names
