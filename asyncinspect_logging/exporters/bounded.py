"""Pages within a time: whatever a collector does, a scrape is answered, and no thread of the application waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Final

from ..diagnostics import warn_once
from ..stacks import stack_of
from .scrape import Overdue, Pages

__all__ = ["Bounded"]

#: Pages that may be in the making at the same time, those that are stuck included.
_MOST: Final = 4
#: Seconds that a page waits for the one before: several at once would take the interpreter from the application's loop
#: for several times as long. Then the one before counts as stuck.
_TURN: Final = 1.0
#: Frames told of what is stuck.
_FRAMES: Final = 3


class _Making:
    """One page being made, in a thread of its own, which may not come back."""

    def __init__(
        self, pages: Pages, over: Callable[[_Making], None], openmetrics: bool, compress: bool, names: Sequence[str]
    ) -> None:
        self._pages = pages
        self._over = over
        self._asked = (openmetrics, compress, names)
        self.page: bytes | None = None
        self.error: BaseException | None = None
        self.began = time.monotonic()
        self.thread = threading.Thread(target=Context().run, args=(self._run,), name="asyncinspect-page", daemon=True)

    def _run(self) -> None:
        openmetrics, compress, names = self._asked
        try:
            self.page = self._pages.serve(openmetrics=openmetrics, compress=compress, names=names)
        except BaseException as error:
            self.error = error
        finally:
            self._over(self)


class Bounded:
    """`pages`, each made within `limit` seconds, or else Overdue is raised.

    Nothing can end a thread that is stuck in somebody's collector, so there are four of them at most: beyond that
    each scrape is told at once, until one of them comes back.
    """

    def __init__(self, pages: Pages, limit: float) -> None:
        self.limit = limit
        self._pages = pages
        self.begin()

    def begin(self) -> None:
        """With nothing in the making: at first, and in the child of a fork."""
        self._free = threading.BoundedSemaphore(_MOST)
        self._turn = threading.Lock()
        self._making: dict[_Making, threading.BoundedSemaphore] = {}

    @property
    def is_overdue(self) -> bool:
        """Whether some page has been in the making for longer than `limit`."""
        latest = time.monotonic() - self.limit
        return any(making.began < latest for making in list(self._making))

    def serve(self, *, openmetrics: bool, compress: bool, names: Sequence[str]) -> bytes:
        """See `Pages`. Raises Overdue where that takes too long."""
        until, turn = time.monotonic() + self.limit, self._turn
        my_turn = turn.acquire(timeout=0.0 if self.is_overdue else min(_TURN, self.limit))
        try:
            return self._serve(until, openmetrics, compress, names)
        finally:
            if my_turn:
                turn.release()

    def _serve(self, until: float, openmetrics: bool, compress: bool, names: Sequence[str]) -> bytes:
        free = self._free
        if not free.acquire(blocking=False) and (
            self.is_overdue or not free.acquire(timeout=max(0.0, until - time.monotonic()))
        ):
            raise Overdue
        making = _Making(self._pages, self._forget, openmetrics, compress, names)
        self._making[making] = free
        try:
            making.thread.start()
        except BaseException:
            self._forget(making)
            raise
        making.thread.join(max(0.0, until - time.monotonic()))
        if making.thread.is_alive():
            self._tell(making)
            raise Overdue
        if making.error is not None:
            raise making.error
        assert making.page is not None
        return making.page

    def _forget(self, making: _Making) -> None:
        # In the child of a fork it is none of ours any more.
        free = self._making.pop(making, None)
        if free is not None:
            free.release()

    def _tell(self, making: _Making) -> None:
        frames = stack_of(making.thread.ident or 0)[:_FRAMES]
        where = [f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}" for frame in frames]
        message = "a page of metrics takes longer than %g s, so scrapes are answered with 503; it is at %s"
        warn_once("metrics page overdue", "", message, self.limit, " < ".join(where) or "its end")
