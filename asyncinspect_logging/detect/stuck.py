"""Where each span is stuck: what it waits for, since when, and the chain of frames down to there.

It costs nothing before a full snapshot asks, and then it looks once at each task that has a live span. The tasks go
on meanwhile, in other threads: what changes under the look is looked at again, and what cannot be made out is left
unsaid. Nothing here raises.
"""

from __future__ import annotations

import itertools
from types import FrameType
from typing import Any, Final, NamedTuple

from ..process import span_id
from ..spans import Span
from .chains import Chain, is_driver, running_frames, texts_of, thread_frames, walk
from .tasks import all_tasks, trio_tasks
from .waits import coroutine_of, future_of, outermost_span_of, seconds_left, span_of_task, wait_of

__all__ = ["NOWHERE", "Lookout", "Where", "on_and_at"]

_ATTEMPTS: Final = 3


class Where(NamedTuple):
    """Where a span stands. `ago`: seconds for which it has waited, where only the wait itself tells that. `awaiting`:
    ids of the spans of the tasks that are waited for.
    """

    waiting_on: str | None = None
    ago: float | None = None
    await_chain: tuple[str, ...] = ()
    awaiting: tuple[str, ...] = ()


NOWHERE: Final = Where()


class Lookout:
    """One look at all tasks of the process, for one snapshot."""

    def __init__(self) -> None:
        self._tasks: dict[int, Any] | None = None
        self._deep = False
        # By owner: the spans of one owner wait together.
        self._found: dict[int, Where] = {}

    def where(self, span: Span) -> Where:
        """Where a live span of this process stands."""
        try:
            key = span._key
            found = self._found.get(key)
            if found is None:
                found = self._found[key] = self._look(span, key)
            return found
        except Exception:
            return NOWHERE

    def _look(self, span: Span, key: int) -> Where:
        if span._owner is not None:
            task = span._owner()
            return NOWHERE if task is None else _where(task, 0)
        if key < 0:
            return Where(await_chain=texts_of(map(_described, thread_frames(-key))))
        task = self._task_of_driver(key)
        return NOWHERE if task is None else _where(task, key)

    def _task_of_driver(self, key: int) -> Any:
        """The task in which a driver is, whose span has this key."""
        if self._tasks is None:
            self._tasks = {}
            for task in itertools.chain(all_tasks(), trio_tasks()):
                span = span_of_task(task)
                if span is not None:
                    self._tasks[span._key] = task
        if key not in self._tasks and not self._deep:
            # Inside something that somebody else has put around it.
            self._deep = True
            for task in itertools.chain(all_tasks(), trio_tasks()):
                for _, span in walk(coroutine_of(task)).drivers:
                    self._tasks.setdefault(span._key, task)
        return self._tasks.get(key)


def _where(task: Any, key: int) -> Where:
    """Where a task stands; with a `key`, from the driver on whose span has that."""
    for _ in range(_ATTEMPTS):
        waiter = future_of(task)
        chain = walk(coroutine_of(task))
        outside = next((count for count, span in chain.drivers if span._key == key), None)
        found = Where(await_chain=_texts(chain, outside, key))
        wait = wait_of(chain, waiter) if chain.suspended else None
        if wait is not None:
            left, awaited = seconds_left(chain, task), wait.futures
            if wait.follow is not None:
                inner = walk(coroutine_of(wait.follow))
                found = found._replace(await_chain=found.await_chain + _texts(inner, 0, 0))
                inner_wait = wait_of(inner, future_of(wait.follow)) if inner.suspended else None
                if inner_wait is not None:
                    wait = inner_wait
                    awaited = awaited if _span_id_of(awaited[0]) else wait.futures
            ids = (_span_id_of(future) for future in awaited)
            found = found._replace(waiting_on=wait.text(left), ago=wait.ago, awaiting=tuple(id for id in ids if id))
        if future_of(task) is waiter:
            return found
    return NOWHERE


def _texts(chain: Chain, outside: int | None, key: int) -> tuple[str, ...]:
    """The frames of a chain, without those `outside` the driver on whose span has `key` (0: all are wanted)."""
    if not chain.running:
        return texts_of((link.frame, link.module, link.name) for link in chain.links[outside or 0 :])
    frames = running_frames(chain.links[0].frame) if chain.links else []
    if key and outside is None:
        # It is further in than the chain of a coroutine that runs can be followed.
        frames = next((frames[n:] for n, frame in enumerate(frames) if is_driver(frame)), frames)
    return texts_of(map(_described, frames))


def _described(frame: FrameType) -> tuple[FrameType, str, str]:
    module = frame.f_globals.get("__name__")
    return frame, module if type(module) is str else frame.f_code.co_filename, frame.f_code.co_qualname


def _span_id_of(task: Any) -> str | None:
    """Id of the outermost live span of a task, or None."""
    span = outermost_span_of(task) if coroutine_of(task) is not None else None
    return None if span is None else span_id(span.number)


def on_and_at(inner: Any, awaited: Any) -> tuple[str, str | None]:
    """What a coroutine that has just yielded `awaited` waits for, by the words of the record protocol, and the
    `file:line` of its innermost frame.
    """
    try:
        chain = walk(inner)
        wait = wait_of(chain, awaited)
        if wait is not None and wait.follow is not None:
            within = walk(coroutine_of(wait.follow))
            wait = (wait_of(within, future_of(wait.follow)) if within.suspended else None) or wait
        frame = chain.links[-1].frame if chain.links else None
        at = None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return type(awaited).__qualname__ if wait is None else wait.on, at
    except Exception:
        return "future", None
