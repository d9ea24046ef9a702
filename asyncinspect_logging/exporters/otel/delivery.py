"""Batches on their way: each is sent until the collector has taken it, and only then comes the next.

What waits meanwhile waits in the inspector's queue of finished tasks, which has a bound. So there is one place that
tries again, one that drops, and nothing is sent twice unless an answer got lost.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from ...diagnostics import warn_once
from .senders import Answer

__all__ = ["Delivery"]

#: Seconds before the second attempt; each further wait is twice as long, up to the longest. What a collector asks for
#: may be longer, but not by any amount.
_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_ASKED = 0.25, 15.0, 300.0
#: Captured, since a test that freezes time has no part in how long a collector takes.
_REAL: Final = (time.monotonic,)

_Item = Any
#: Sends items, waiting so many seconds at most.
Send = Callable[[Sequence[_Item], float], Answer]


class Delivery:
    """Takes from `take` (a list of at most so many items, empty when there is nothing) and gives to `send`.

    `timeout`: seconds for one request. `subject`: who does not take it, for the log.
    """

    def __init__(
        self, take: Callable[[int], list[_Item]], send: Send, batch: int, timeout: float, subject: str
    ) -> None:
        self._take, self._send = take, send
        self._batch_size, self._timeout, self._subject = batch, timeout, subject
        self._jitter = random.Random()
        #: Items that the collector has taken, and those that it refused for good.
        self.delivered = self.refused = 0
        self.begin()

    def begin(self) -> None:
        """With nothing under way: at first, and in the child of a fork, where what is under way is the parent's."""
        self._lock = threading.Lock()
        self._batches: deque[list[_Item]] = deque()
        self._failures = 0
        self._not_before = 0.0

    def __len__(self) -> int:
        """Items under way."""
        return sum(map(len, tuple(self._batches)))

    def run(self, until: float | None = None, stop: threading.Event | None = None) -> int:
        """Deliver what there is, and return how many items that were. Returns when there is no more, or at the first
        failure; with `until` (a time of `now()`), tries again until then, or until `stop` is set.
        """
        if not self._lock.acquire(timeout=-1 if until is None else max(0.0, until - self.now())):
            return 0
        before = self.delivered
        try:
            while stop is None or not stop.is_set():
                pause = self._not_before - self.now()
                if pause > 0:
                    if until is None or self.now() + pause > until:
                        break
                    (stop or threading.Event()).wait(pause)
                    continue
                if not self._batches:
                    taken = self._take(self._batch_size)
                    if not taken:
                        break
                    self._batches.append(taken)
                timeout = self._timeout if until is None else min(self._timeout, until - self.now())
                if timeout <= 0:
                    break
                self._attempt(timeout)
        finally:
            self._lock.release()
        return self.delivered - before

    def _attempt(self, timeout: float) -> None:
        batch = self._batches[0]
        answer = self._send(batch, timeout)
        if not self._batches or self._batches[0] is not batch:
            return  # given up, and counted so, while the collector took its time
        if answer.accepted:
            self._batches.popleft()
            self._failures = 0
            rejected = min(answer.rejected, len(batch))
            self.delivered += len(batch) - rejected
            if rejected:
                self._refuse(rejected, answer.why)
        elif answer.retry:
            self._failures += 1
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(self._failures - 1, 20)) * self._jitter.uniform(0.8, 1.2)
            if answer.after is not None:
                wait = min(max(answer.after, 0.0), _LONGEST_ASKED)
            self._not_before = self.now() + wait
            message = "%s does not take what is exported, which is kept and tried again: %s"
            warn_once("otlp export failed", self._subject, message, self._subject, answer.why)
        else:
            self._batches.popleft()
            if answer.too_large and len(batch) > 1:
                half = len(batch) // 2
                self._batches.extendleft((batch[half:], batch[:half]))
            else:
                self._refuse(len(batch), answer.why)

    def _refuse(self, count: int, why: str) -> None:
        self.refused += count
        message = "%s refuses %d tasks for good, which are dropped; further ones are only counted: %s"
        warn_once("otlp export refused", self._subject, message, self._subject, count, why)

    def give_up(self) -> int:
        """Forget what is under way; returns how many items that were."""
        lost = len(self)
        self._batches.clear()
        return lost

    @staticmethod
    def now() -> float:
        """Seconds of a clock that nobody stops."""
        return _REAL[0]()
