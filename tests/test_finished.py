"""Each task that is over is given once to each reader."""

from __future__ import annotations

import logging.config
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging import Config, Inspector, span
from asyncinspect_logging.analysis.replay import replay
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.json_logging import json_logging

Tell = Callable[..., dict[str, Any]]
Listen = Callable[..., Inspector]


def test_each_task_once(listen: Listen) -> None:
    inspector = listen()
    with span("before"):
        pass
    inspector.snapshot()
    finished, other = inspector.finished(), inspector.finished()
    with span("outer", user=7) as outer:
        with span("inner") as inner:
            pass
        assert [task.view.id for task in finished.take()] == [inner.id]
    (task,) = finished.take()
    assert (task.view.id, task.view.outcome, task.view.fields) == (outer.id, "completed", {"user": 7})
    assert finished.take() == []
    assert [task.view.name for task in other.take(1)] == ["inner"]
    assert [task.view.name for task in other.take()] == ["outer"]


def test_times_are_exact(tell: Tell) -> None:
    inspector = Inspector()
    finished = inspector.finished()
    wall = 1_700_000_000_123_456_789
    inspector.apply(tell("enter", 1, t=1_000, wall=wall))
    inspector.apply(tell("exit", 1, t=1_007, wall=wall + 7, outcome="completed", duration=7))
    (task,) = finished.take()
    assert (task.started_ns, task.ended_ns) == (wall, wall + 7)


def test_neither_sampling_nor_retention_takes_any_away(listen: Listen) -> None:
    inspector = listen(Config(sampling_rate=1000, max_tasks=3))
    finished = inspector.finished()
    for _ in range(500):
        with span("work"):
            pass
    assert len(finished.take()) == 500
    assert finished.dropped == 0


def test_what_nobody_takes_has_a_bound_and_is_counted(listen: Listen) -> None:
    inspector = listen()
    finished = inspector.finished(limit=10)
    for number in range(25):
        with span("work", number=number):
            pass
    inspector.snapshot()
    assert (len(finished), finished.dropped) == (10, 15)
    assert [task.view.fields["number"] for task in finished.take()] == list(range(10))


def test_the_timeline_comes_along(tell: Tell) -> None:
    inspector = Inspector()
    finished = inspector.finished()
    inspector.apply(tell("enter", 1))
    inspector.apply(tell("suspend", 1, on="lock:db"))
    inspector.apply(tell("resume", 1))
    inspector.apply(tell("exit", 1, outcome="failed"))
    (task,) = finished.take()
    assert [event.kind for event in task.view.events] == ["spawn", "enter", "suspend", "resume", "exit"]
    assert task.view.outcome == "failed"


def test_reset_and_resume_keep_the_readers(listen: Listen) -> None:
    inspector = listen()
    finished = inspector.finished()
    inspector.reset()
    with span("after a reset"):
        pass
    inspector.resume(inspector.checkpoint())
    with span("after a resume"):
        pass
    assert [task.view.name for task in finished.take()] == ["after a reset", "after a resume"]


def test_closed(listen: Listen) -> None:
    inspector = listen()
    finished = inspector.finished()
    with span("one"):
        pass
    finished.close()
    finished.close()
    with span("two"):
        pass
    inspector.snapshot()
    assert len(finished) == 0


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, None])
def test_a_limit_that_is_none(limit: Any) -> None:
    with pytest.raises(ConfigError, match=r"limit=.* is not a number of tasks above 0; write 50000"):
        Inspector().finished(limit)


def test_readers_in_threads_share_what_there_is(listen: Listen) -> None:
    """Two threads that take from one reader while a third makes spans: each task goes to one of them."""
    inspector = listen()
    finished = inspector.finished()
    found: list[list[str]] = [[], []]
    done = threading.Event()

    def read(mine: list[str]) -> None:
        while not done.is_set() or len(finished):
            mine.extend(task.view.id for task in finished.take(7))

    threads = [threading.Thread(target=read, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        with span("work"):
            pass
    inspector.snapshot()
    done.set()
    for thread in threads:
        thread.join()
    assert len(found[0] + found[1]) == len({*found[0], *found[1]}) == 2000


def test_of_a_log(tmp_path: Path, listen: Listen) -> None:
    """A reader that was there before the log was read is given its tasks, though logs are read in bulk."""
    log = tmp_path / "service.jsonl"
    listen()
    logging.config.dictConfig({"version": 1, **json_logging(log)})
    for number in range(300):
        with span("work", number=number):
            pass
    for handler in logging.getLogger("asyncinspect").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()
    inspector = Inspector()
    finished = inspector.finished()
    replay(log, inspector=inspector)
    assert [task.view.fields["number"] for task in finished.take()] == list(range(300))
    assert inspector.snapshot().names == replay(log).snapshot().names
