"""Threads that wait for a `threading.Lock` which a suspended task holds across an `await`.

Such a lock does not know its owner, and waiting for it leaves no frame. But a `with` keeps the `__exit__` of what it
has entered on the stack of its frame, which the garbage collector is shown of a coroutine that is suspended: that
proves who holds it. Which lock a thread waits for, the instruction says at which it stands: one that enters a `with`,
or a call of `acquire()` without arguments, on what a variable or an attribute of one refers to.

That is so in CPython 3.11 to 3.13 with a GIL. On others, and of what is acquired by a call and not by a `with`, nothing
is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import gc
import inspect
import sys
import threading
import time
from _thread import LockType, get_ident
from _thread import RLock as RLockType
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import thread as pools
from functools import lru_cache
from types import BuiltinMethodType, CodeType, FrameType, GeneratorType, MemberDescriptorType, MethodType
from typing import Any, Final, NamedTuple

from ..stacks import current_frames, frame_of, locals_of, outwards
from .chains import enclosed, is_of_application, local, walk
from .held import THREAD_LOCK, Hold, Owner, Place, Resource, Wait, new_id
from .loop import hearts
from .owners import innermost_span, owner_of
from .waits import coroutine_of, future_of

__all__ = ["Stopped", "Threads", "suspended_at", "work_awaited"]

_READABLE: Final = (
    sys.implementation.name == "cpython"
    and sys.version_info < (3, 14)
    and getattr(sys, "_is_gil_enabled", lambda: True)()
)
_LOCKS: Final = (LockType, RLockType)
_ENTERING: Final = "BEFORE_WITH"
_CALLS: Final = ("CALL", "PRECALL")
_ACQUIRING: Final = ("acquire", "__enter__")
_ROOTS: Final = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_GLOBAL", "LOAD_NAME")
_ATTRIBUTES: Final = ("LOAD_ATTR", "LOAD_METHOD")
_WORK: Final = getattr(getattr(pools, "_WorkItem", None), "run", None)
#: Here a thread waits for another to notify it, as idle ones do all day, and not for whoever holds a lock.
_WAITING_FOR_NEWS: Final = frozenset(
    getattr(function, "__code__", None)
    for function in (threading.Condition.wait, threading.Thread.join, getattr(threading, "_shutdown", None))
)


class Stopped(NamedTuple):
    """A thread that waits for a lock. `owner`: the task that it is at, or one that stands for the thread. `loop`: the
    event loop that it runs, or None. `futures`: ids of the futures (`concurrent.futures`) of what it works on.
    """

    owner: Owner
    wait: Wait
    loop: Any
    futures: frozenset[int]


class _At(NamedTuple):
    """Where a thread stands: its innermost frame, by id, and at which instruction of that."""

    frame: int
    instruction: int


class _Held(NamedTuple):
    lock: Any
    task: Any
    frame: FrameType


class Threads:
    """What one inspector knows of them."""

    def __init__(self) -> None:
        self._at: dict[int, _At] = {}
        # By the thread's id and the lock's, with where the thread stood.
        self._stopped: dict[tuple[int, int], tuple[_At, Stopped]] = {}

    def look(self, all_tasks: Callable[[], Iterable[Any]]) -> list[Stopped]:
        """Those that have stood at the same place since the last look, and wait for what one of the tasks holds."""
        if not _READABLE:
            return []
        at: dict[int, _At] = {}
        waiting: list[tuple[int, FrameType, tuple[str, ...]]] = []
        for ident, frame in current_frames().items():
            code = frame.f_code
            if ident == get_ident() or code in _WAITING_FOR_NEWS:
                continue
            at[ident] = _At(id(frame), frame.f_lasti)
            if self._at.get(ident) == at[ident]:
                operand = _operand(code, frame.f_lasti)
                if operand:
                    waiting.append((ident, frame, operand))
        self._at = at
        before, self._stopped = self._stopped, {}
        if waiting:
            held = {id(each.lock): each for each in _held_by(all_tasks())}
            for ident, frame, operand in waiting if held else ():
                found = held.get(id(_value(frame, operand)))
                # Its locals were read while it may have gone on.
                if found is None or current_frames().get(ident) is not frame or frame.f_lasti != at[ident][1]:
                    continue
                key = ident, id(found.lock)
                known = before.get(key)
                if known is None or known[0] != at[ident] or not _is_held(known[1], found):
                    known = at[ident], _stopped(ident, frame, operand, found)
                self._stopped[key] = known
        return [stopped for _, stopped in self._stopped.values()]


def _stopped(ident: int, frame: FrameType, operand: tuple[str, ...], held: _Held) -> Stopped:
    loop = next((heart.loop for heart in hearts() if heart.thread == ident and heart.running()), None)
    try:
        task = None if loop is None else asyncio.current_task(loop)
    except Exception:
        task = None
    if task is None:
        name = next((thread.name for thread in threading.enumerate() if thread.ident == ident), str(ident))
        owner, span = Owner(new_id(), f"thread {name}", is_task=False), (0, "")
    else:
        owner, span = owner_of(task), innermost_span(task)
    holder = owner_of(held.task)
    resource = Resource(THREAD_LOCK, ".".join(operand))
    number, name = innermost_span(held.task)
    taken = _taken_at(held.frame, held.lock)
    resource.holders[holder.number] = Hold(
        holder, 0, held.frame.f_code, taken, span=number, span_name=name, scoped=True
    )
    place = Place(frame.f_code, frame.f_lasti)
    wait = Wait(owner, resource, time.monotonic_ns(), place, *span)
    return Stopped(owner, wait, loop, frozenset(_worked_on(frame)))


def _is_held(stopped: Stopped, held: _Held) -> bool:
    """Whether what a thread waits for is still held by the same task."""
    return owner_of(held.task).number in stopped.wait.resource.holders


def _worked_on(frame: FrameType) -> Iterator[int]:
    """Ids of the futures that a thread of an executor is to complete."""
    for each in outwards(frame):
        if _WORK is not None and each.f_code is _WORK.__code__:
            (item,) = local(each, "self")
            yield id(getattr(item, "future", None))


def work_awaited(task: Any) -> Any:
    """The future (`concurrent.futures`) of the work in an executor that a task waits for, or None."""
    for callback, _ in getattr(future_of(task), "_callbacks", None) or ():
        if getattr(callback, "__qualname__", "").startswith("_chain_future.<locals>."):
            return enclosed(callback, "source")
    return None


def suspended_at(task: Any) -> str:
    """`file:line` of the innermost frame of a suspended task, of the application's where there is one."""
    frames = [link.frame for link in walk(coroutine_of(task)).links]
    frame = next((frame for frame in reversed(frames) if is_of_application(frame)), frames[-1] if frames else None)
    return "?" if frame is None else str(Place(frame.f_code, frame.f_lasti))


# -- who holds -------------------------------------------------------------------------------------------------------


def _held_by(tasks: Iterable[Any]) -> Iterator[_Held]:
    """The locks that suspended tasks have taken by `with`."""
    for task in tasks:
        chain = walk(coroutine_of(task))
        if chain.suspended:
            for link in chain.links:
                for lock, frame in _entered(link.thing, link.frame):
                    yield _Held(lock, task, frame)


def _entered(thing: Any, frame: FrameType) -> Iterator[tuple[Any, FrameType]]:
    """The locks in whose `with` a suspended coroutine or generator is, each with the frame that has it."""
    for kept in gc.get_referents(thing):
        if type(kept) is BuiltinMethodType:
            if type(kept.__self__) in _LOCKS and kept.__name__ == "__exit__":
                yield kept.__self__, frame
        elif type(kept) is MethodType:
            if kept.__func__ is threading.Condition.__exit__:
                lock = vars(kept.__self__).get("_lock")
                if type(lock) in _LOCKS:
                    yield lock, frame
            elif kept.__func__ is contextlib._GeneratorContextManager.__exit__:
                generator = vars(kept.__self__).get("gen")
                suspended = type(generator) is GeneratorType and generator.gi_suspended
                inner = frame_of(generator, "gi_frame") if suspended else None
                if inner is not None:
                    yield from _entered(generator, inner)


def _taken_at(frame: FrameType, lock: Any) -> int:
    """The instruction by which a frame took a lock, as far as that shows; else the one that it is at."""
    found = frame.f_lasti
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset >= frame.f_lasti:
            break
        if instruction.opname == _ENTERING:
            value = _value(frame, _operand(frame.f_code, instruction.offset))
            if value is lock or (type(value) is threading.Condition and vars(value).get("_lock") is lock):
                found = instruction.offset
    return found


# -- what is waited for ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _operand(code: CodeType, instruction: int) -> tuple[str, ...]:
    """What the instruction may wait for: the name of a variable and those of the attributes after it. Empty where the
    instruction is not one that waits for a lock, or its operand is something else.
    """
    before: list[dis.Instruction] = []
    for each in dis.get_instructions(code):
        if each.offset >= instruction:
            break
        before.append(each)
    else:
        return ()
    if each.offset != instruction:
        return ()
    if each.opname in _CALLS:
        while before and before[-1].opname in _CALLS:
            before.pop()
        # With arguments it may give up after a while.
        if each.arg or not before or before.pop().argval not in _ACQUIRING:
            return ()
    elif each.opname != _ENTERING:
        return ()
    names: list[str] = []
    while before and before[-1].opname in _ATTRIBUTES:
        names.append(before.pop().argval)
    if not before or before[-1].opname not in _ROOTS:
        return ()
    return before[-1].argval, *reversed(names)


def _value(frame: FrameType, operand: tuple[str, ...]) -> Any:
    """What that is in a frame, or None. Runs nothing of the application's."""
    if not operand:
        return None
    root, *names = operand
    # This reads the application's variables. It is done only where a thread has stopped and a task holds a lock: before
    # Python 3.13 the dict lives as long as the frame.
    scope: Any = next((scope for scope in (locals_of(frame), frame.f_globals) if root in scope), None)
    value = None if scope is None else scope[root]
    for name in names:
        try:
            found = inspect.getattr_static(value, name)
        except AttributeError:
            return None
        value = found.__get__(value) if type(found) is MemberDescriptorType else found
    return value
