"""Known traps of contexts, outcomes, tasks, loops and logging; each test fails without the remedy."""

import asyncio
import contextvars
import copy
import gc
import logging
import logging.config
import logging.handlers
import pickle
import queue
import sys
import threading
import warnings
import weakref

import pytest
from keep import Keep

from asyncinspect_logging import AsyncInspectHandler, Inspector, annotate, current_span, install, instrument, run, span
from asyncinspect_logging.opened import open_of
from asyncinspect_logging.spans import current
from asyncinspect_logging.states import TaskState
from asyncinspect_logging.steps import stepping
from asyncinspect_logging.testing import FakeClock
from asyncinspect_logging.wakes import driven_by_hand

LOGGER = logging.getLogger("asyncinspect")


@pytest.fixture(autouse=True)
def _nothing_left():
    """Each test leaves the books of open spans empty."""
    yield
    left = dict(open_of), current_span()
    open_of.clear()
    current.set(None)
    assert left == ({}, None)


def view(inspector, name):
    (found,) = (task for task in inspector.snapshot().tasks if task.name == name)
    return found


def outcomes(inspector):
    return {task.name: task.outcome for task in inspector.snapshot().tasks}


# -- context ---------------------------------------------------------------------------------------------------------


def test_async_generator_broken_off(listen):
    """Its `finally` runs in another task: the span ends all the same, and neither context shows it any more."""
    inspector = listen()

    async def numbers():
        with span("numbers"):
            yield 1
            yield 2

    async def main():
        with span("main") as outer:
            async for _ in numbers():
                break
            # Left in this context by the generator, which shares it.
            gc.collect()
            for _ in range(3):
                await asyncio.sleep(0)
            assert current_span() is outer
            with span("after") as after:
                assert after.parent_id == outer.id
        assert current_span() is None
        with span("root") as root:
            assert root.parent_id is None

    asyncio.run(main())
    assert outcomes(inspector) == {
        "numbers": "abandoned",
        "after": "completed",
        "main": "completed",
        "root": "completed",
    }


def test_async_generator_closed_in_another_task(listen):
    """`ContextVar.reset` raises there, and what is current in that task stays so."""
    inspector = listen()

    async def numbers():
        with span("numbers"):
            yield 1

    async def close(generator):
        with span("closer") as closer:
            await generator.aclose()
            assert current_span() is closer

    async def main():
        generator = numbers()
        await generator.__anext__()
        await asyncio.create_task(close(generator))
        assert current_span() is None
        with span("after") as after:
            assert after.parent_id is None

    asyncio.run(main())
    assert outcomes(inspector) == {"numbers": "abandoned", "closer": "completed", "after": "completed"}


def test_child_task_outlives_its_parent_s_span(listen):
    """The parent stays the parent, and takes none of the child's time."""
    clock = FakeClock()
    inspector = listen(clock=clock)

    async def child(go):
        await go.wait()
        with span("child"):
            clock.advance(5)

    async def main():
        go = asyncio.Event()
        with span("parent"):
            task = asyncio.create_task(child(go))
            clock.advance(1)
        go.set()
        await task

    run(main())
    parent, child_view = view(inspector, "parent"), view(inspector, "child")
    assert (parent.duration, parent.busy) == (1.0, 1.0)
    driver = inspector.snapshot().find(child_view.parent_id)
    assert driver.parent_id == parent.id
    assert not driver.parent_closed
    assert child_view.duration == 5.0


def test_one_context_shared_by_two_tasks(listen):
    """The running state is that of the task, not of the context."""
    inspector = listen()
    context = contextvars.copy_context()

    async def work(name, event):
        with span(name):
            await event.wait()

    async def main():
        events = {name: asyncio.Event() for name in ("one", "two")}
        tasks = [asyncio.create_task(work(name, event), context=context) for name, event in events.items()]
        await asyncio.sleep(0)
        assert {v.name: v.state for v in inspector.snapshot().tasks} == dict.fromkeys(events, TaskState.BLOCKED)
        # In the order in which they began: not nested.
        for event in events.values():
            event.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert outcomes(inspector) == {"one": "completed", "two": "completed"}
    found = context.get(current)
    assert found is None or not found.is_open


def test_executors(listen):
    """`run_in_executor` loses the context, `to_thread` keeps it; there is no task in either, and nothing raises."""
    inspector = listen()
    seen = {}

    def work(name):
        with span(name) as inner:
            seen[name] = inner.parent_id, inner.task_name

    async def main():
        with span("main") as outer:
            await asyncio.get_running_loop().run_in_executor(None, work, "executor")
            await asyncio.to_thread(work, "to_thread")
        assert seen == {"executor": (None, None), "to_thread": (outer.id, None)}

    asyncio.run(main())
    assert set(outcomes(inspector).values()) == {"completed"}


def test_own_context_variable_name():
    """`structlog.contextvars.clear_contextvars` wipes those that are called structlog_…, and must leave ours."""
    structlog = pytest.importorskip("structlog")
    assert not current.name.startswith("structlog_")
    with span("a") as a:
        structlog.contextvars.bind_contextvars(x=1)
        structlog.contextvars.clear_contextvars()
        assert current_span() is a


def test_misuse_of_a_span_object(listen):
    """Entered twice, exited twice, out of order: counted, and of no other effect."""
    inspector = listen()
    with span("twice") as twice:
        with twice:
            pass
        assert twice.is_open
    twice.__exit__(None, None, None)
    a, b = span("a").__enter__(), span("b").__enter__()
    a.__exit__(None, None, None)
    b.__exit__(None, None, None)
    assert outcomes(inspector) == dict.fromkeys(("twice", "a", "b"), "completed")
    assert inspector.snapshot().dropped["duplicate"] == 2


# -- outcomes --------------------------------------------------------------------------------------------------------


def test_timeout(listen):
    """`asyncio.timeout`: cancelled inside, failed with TimeoutError outside."""
    inspector = listen()

    async def main():
        with span("outer"):
            async with asyncio.timeout(0.001):
                with span("inner"):
                    await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert outcomes(inspector) == {"inner": "cancelled", "outer": "failed"}
    assert view(inspector, "outer").error["type"] == "TimeoutError"


def test_task_group(listen):
    """The failing child failed, its siblings were cancelled, the parent failed with the leaf's type."""
    inspector = listen()

    async def fails():
        await asyncio.sleep(0)
        raise KeyError("x")

    async def sibling():
        await asyncio.sleep(60)

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(sibling())
            group.create_task(fails())

    with pytest.raises(ExceptionGroup):
        run(main())
    found = {task.name.rpartition(".")[2]: task for task in inspector.snapshot().tasks}
    assert {name: task.outcome for name, task in found.items() if name in ("fails", "sibling", "main")} == {
        "fails": "failed",
        "sibling": "cancelled",
        "main": "failed",
    }
    assert found["main"].error["leaves"] == ["KeyError"]


def test_generator_exit_is_abandoned(listen):
    """A generator that is closed leaves its span abandoned, and counts as cancelled."""
    inspector = listen()

    def numbers():
        with span("numbers"):
            yield 1

    generator = numbers()
    next(generator)
    generator.close()
    assert outcomes(inspector) == {"numbers": "abandoned"}
    assert inspector.snapshot().names["numbers"].cancelled == 1


def test_collected_task_is_its_own_owner(listen):
    """The exit of a task that is collected runs in the middle of another, and does not touch that one's spans."""
    inspector = listen()

    async def forgotten():
        with span("forgotten"):
            await asyncio.get_running_loop().create_future()

    async def main():
        task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)
        # Or asyncio would log that it was destroyed.
        task._log_destroy_pending = False
        del task
        with span("unrelated") as unrelated, span("inner") as inner:
            gc.collect()
            assert current_span() is inner
            with span("child") as child:
                assert child.parent_id == inner.id
        assert inner.parent_id == unrelated.id

    asyncio.run(main())
    assert outcomes(inspector) == {
        "forgotten": "abandoned",
        "child": "completed",
        "inner": "completed",
        "unrelated": "completed",
    }


def test_nothing_grows_with_the_number_of_tasks(listen):
    """Not with tasks that are over, nor when they are cancelled again and again."""
    from asyncinspect_logging import diagnostics, spans

    inspector = listen()

    async def work():
        await asyncio.sleep(60)

    async def main():
        for _ in range(300):
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            for _ in range(3):
                task.cancel()
                await asyncio.wait([task])

    run(main())
    inspector.snapshot()
    assert inspector.snapshot().names["test_nothing_grows_with_the_number_of_tasks.<locals>.work"].cancelled == 300
    assert (len(open_of), len(driven_by_hand), len(spans._tokens_aside)) == (0, 0, 0)
    assert len(stepping) <= threading.active_count() + 50
    assert len(inspector._books.live) == len(inspector._books.folded) == 0
    assert len(diagnostics._told) <= 1000


@pytest.mark.parametrize("way", ["plain", "driven"])
def test_weak_references_only(listen, way):
    """No task, coroutine or result is kept alive by its span, live or retained."""
    inspector = listen()

    class Result:
        pass

    async def work():
        with span("work"):
            await asyncio.sleep(0)
            return Result()

    async def main():
        if way == "driven":
            install()
        task = asyncio.create_task(work())
        dead = [weakref.ref(await task), weakref.ref(task), weakref.ref(task.get_coro())]
        del task
        await asyncio.sleep(0)
        gc.collect()
        return [ref() for ref in dead]

    assert asyncio.run(main()) == [None, None, None]
    assert view(inspector, "work").outcome == "completed"


# -- tasks and loops -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_task_runs_in_its_parent_s_step(listen):
    """The parent's step goes on when the child's first one is over: pushed and popped, not overwritten."""
    inspector = listen()

    async def child():
        await asyncio.sleep(0)

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        task = asyncio.create_task(child())
        with span("after") as after:
            assert after.task_name.endswith("main")
            assert view(inspector, "after").state is TaskState.RUNNING
            await asyncio.sleep(0)
        await task

    run(main())
    assert view(inspector, "after").polls == 2


@pytest.mark.filterwarnings("error")
def test_cancelled_before_the_first_step(listen):
    """No "never awaited" warning stays behind, and the span is cancelled."""
    inspector = listen()

    async def work():
        raise AssertionError

    async def main():
        with install():
            task = asyncio.create_task(work())
        task.cancel()
        await asyncio.wait([task])
        del task
        await asyncio.sleep(0)
        gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert [w for w in caught if "never awaited" in str(w.message)] == []
    assert list(outcomes(inspector).values()) == ["cancelled"]


def test_names_of_tasks_are_bounded(listen):
    """Tasks are labelled by their coroutine, never "Task-17"."""
    inspector = listen()

    async def work():
        pass

    async def main():
        for _ in range(20):
            await asyncio.create_task(work())

    run(main())
    names = inspector.snapshot().names
    assert not any(name.startswith("Task-") for name in names)
    assert names["test_names_of_tasks_are_bounded.<locals>.work"].completed == 20


def test_task_factories_are_chained(listen):
    """A factory that was there is called with all that `create_task` accepts."""
    inspector = listen()
    seen = []

    def factory(loop, coro, **kwargs):
        seen.append(set(kwargs))
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def work():
        pass

    async def main():
        asyncio.get_running_loop().set_task_factory(factory)
        with install():
            await asyncio.create_task(work(), name="n", context=contextvars.Context())
        assert len(seen) == 1
        assert "context" in seen[0]

    asyncio.run(main())
    assert len(inspector.snapshot().names) == 1


# -- logging ---------------------------------------------------------------------------------------------------------


def test_logging_inside_emit():
    """A handler that logs, and one that begins spans, while it is given a record: no recursion."""
    inspector = Inspector()

    class Busy(Keep):
        def emit(self, record):
            super().emit(record)
            if hasattr(record, "asyncinspect"):
                LOGGER.warning("exported")
                with span("export"):
                    pass

    busy = Busy()
    LOGGER.addHandler(busy)
    LOGGER.addHandler(AsyncInspectHandler(inspector))
    with span("a"):
        pass
    assert len(busy.told) == 2
    assert outcomes(inspector) == {"a": "completed"}


def test_annotating_inside_emit():
    """Nor does it go round in circles where the handler annotates for each record that it is given."""
    lines = []

    class Annotating(logging.Handler):
        accepts_spans = True

        def emit(self, record):
            lines.append(record.getMessage())
            if len(lines) < 100:
                annotate("exported")

    LOGGER.addHandler(Annotating())
    with span("outer"), span("inner"):
        pass
    assert [line.split()[0] for line in lines] == ["enter", "enter", "exit", "exit"]


def test_garbage_collection_inside_a_lock(listen):
    """A finaliser that ends a span while this thread holds the inspector's lock neither waits nor changes its books."""
    inspector = listen()

    def generator():
        with span("dying"):
            yield

    dying = generator()
    next(dying)
    inspector.snapshot()
    with inspector._lock:
        busy, inspector._busy = inspector._busy, True
        del dying
        gc.collect()
        assert inspector._books.live
        inspector._busy = busy
    assert outcomes(inspector) == {"dying": "abandoned"}


@pytest.fixture
def _logging_config():
    """Puts back what dictConfig changes."""
    root = logging.getLogger()
    before = (
        root.handlers[:],
        root.level,
        {
            logger: logger.disabled
            for logger in logging.Logger.manager.loggerDict.values()
            if isinstance(logger, logging.Logger)
        },
    )
    yield
    root.handlers[:], root.level = before[0], before[1]
    for logger, disabled in before[2].items():
        logger.disabled = disabled
    LOGGER.disabled = False


@pytest.mark.usefixtures("_logging_config")
def test_dict_config_that_disables_loggers(monkeypatch):
    """Where the new configuration names the handler, spans are heard; where it does not, they stop cleanly."""
    inspector = Inspector()
    monkeypatch.setattr(Inspector, "_default", inspector)
    handlers = {"ours": {"class": "asyncinspect_logging.AsyncInspectHandler"}, "null": {"class": "logging.NullHandler"}}
    for names, expected in ((["ours"], 1), (["null"], 1), (["null", "ours"], 2)):
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": True,
                "handlers": {name: handlers[name] for name in names},
                "root": {"handlers": names},
            }
        )
        assert LOGGER.disabled
        with span("a"):
            pass
        assert inspector.snapshot().names["a"].completed == expected


def test_queue_handler():
    """Everything about the span is stamped where it is made, and survives the queue and pickling."""
    inspector = Inspector()
    records = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(records)
    handler.accepts_spans = True
    LOGGER.addHandler(handler)
    LOGGER.setLevel("DEBUG")

    async def main():
        with span("a", user=1):
            LOGGER.warning("inside")

    asyncio.run(main())
    LOGGER.removeHandler(handler)
    told = [records.get_nowait() for _ in range(3)]
    thread = threading.Thread(
        target=lambda: [AsyncInspectHandler(inspector).handle(pickle.loads(pickle.dumps(record))) for record in told]
    )
    thread.start()
    thread.join()
    found = view(inspector, "a")
    assert dict(found.fields) == {"user": 1}
    assert found.task == "test_queue_handler.<locals>.main"
    assert found.outcome == "completed"


@pytest.mark.parametrize("key", ["name", "message", "args", "asctime", "taskName", "exc_info", "levelname", "span"])
def test_reserved_keys_as_fields(listen, key):
    """A field may be called what an attribute of a record is called."""
    inspector = listen()
    keep = Keep()
    keep.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    keep.emit = lambda record: keep.told.append(keep.format(record))
    LOGGER.addHandler(keep)
    with span("a", **{key: "mine"}):
        pass
    assert dict(view(inspector, "a").fields) == {key: "mine"}
    assert "asyncinspect enter a" in keep.told[0]


def test_one_decision_for_each_span():
    """A filter and a level are asked once; what they say later does not leave a span half told."""
    keep, ordinary = Keep(), Keep()
    ordinary.accepts_spans = False
    refuse = []
    keep.addFilter(lambda record: not refuse)
    LOGGER.addHandler(keep)
    LOGGER.addHandler(ordinary)
    LOGGER.setLevel("DEBUG")
    with span("a"):
        refuse.append(True)
        LOGGER.setLevel("ERROR")
        with span("b"):
            refuse.clear()
            LOGGER.setLevel("DEBUG")
        refuse.append(True)
        LOGGER.setLevel("ERROR")
    assert keep.told == ["enter a", "exit a"]
    assert ordinary.told == ["enter a", "exit a"]


def test_record_computed_on_demand():
    """It survives formatting, copies, pickles and `makeLogRecord`, extras included."""
    made = []

    class Raw(logging.Handler):
        accepts_spans = True

        def emit(self, record):
            made.append(record)

    LOGGER.addHandler(Raw())
    with span("a", x=1):
        pass
    record = made[0]
    for again in (copy.copy(record), pickle.loads(pickle.dumps(record)), logging.makeLogRecord(record.__dict__)):
        assert type(again) is logging.LogRecord
        assert again.__dict__.keys() == record.__dict__.keys()
        assert again.asyncinspect["fields"] == {"x": 1}
    assert (
        logging.Formatter("{name} {levelname} {message} {span}", style="{").format(record)
        == "asyncinspect DEBUG enter a a"
    )
    assert logging.Formatter("%(name)s %(span)s").format(made[1]) == "asyncinspect a"


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_wall_time_does_not_matter_to_durations(listen, monkeypatch):
    """A clock that is set back in the middle changes no duration."""
    from asyncinspect_logging import clock

    inspector = listen()
    with span("a"):
        monkeypatch.setattr(clock, "time_ns", lambda: 0)
    assert 0 <= view(inspector, "a").duration < 10


def test_no_negative_durations(listen):
    """Nor does a monotonic clock that is not."""

    class Back(FakeClock):
        def monotonic_ns(self):
            self._now -= 1_000_000
            return self._now

    inspector = listen(clock=Back())

    async def main():
        with span("a"):
            await asyncio.sleep(0)

    asyncio.run(instrument(main(), name="driven"))
    for task in inspector.snapshot().tasks:
        assert min(task.duration, task.busy, task.idle, task.scheduled) >= 0
