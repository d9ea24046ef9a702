"""Spans: nesting, parents, ids, fields, outcomes, and what becomes of a span that is not used as it should be."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import gc
import inspect
import logging
import re
import subprocess
import sys
import textwrap
import threading
import traceback

import pytest

from asyncinspect_logging import (
    AsyncInspectHandler,
    Config,
    Inspector,
    annotate,
    current_span,
    diagnostics,
    span,
    spans,
)
from asyncinspect_logging.states import TaskState

LOGGER = logging.getLogger("asyncinspect")
OWN = "asyncinspect_logging"


class Keep(logging.Handler):
    """Keeps the records that it is given, as text "kind name"."""

    def __init__(self, level=logging.NOTSET, *, accepts=True):
        super().__init__(level)
        self.accepts_spans = accepts
        self.payloads = []

    def emit(self, record):
        payload = getattr(record, "asyncinspect", None)
        if payload is not None:
            self.payloads.append(payload)

    @property
    def told(self):
        return [f"{payload['kind']} {payload.get('name', payload['id'])}" for payload in self.payloads]


@pytest.fixture
def keep():
    handler = Keep()
    LOGGER.addHandler(handler)
    return handler


@pytest.fixture(params=["announced", "recorded"])
def heard(request, listen):
    """An inspector that hears of spans at first hand, alone or next to a handler that gets records."""
    if request.param == "recorded":
        LOGGER.addHandler(Keep())
    return listen()


@pytest.fixture
def warned(monkeypatch):
    """What was warned of, as if nothing had been before."""
    monkeypatch.setattr(diagnostics, "_told", set())
    monkeypatch.setattr(diagnostics, "troubles", diagnostics.troubles.copy())
    handler = logging.Handler()
    handler.lines = []
    handler.emit = lambda record: handler.lines.append(record.getMessage())
    diagnostics.log.addHandler(handler)
    yield handler.lines
    diagnostics.log.removeHandler(handler)


def view(inspector, name):
    (found,) = (task for task in inspector.snapshot().tasks if task.name == name)
    return found


def files_of(error):
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


# -- the plain case --------------------------------------------------------------------------------------------------


def test_context_manager(heard):
    """A span is current inside, and is over afterwards."""
    with span("outer") as outer:
        assert current_span() is outer
        assert outer.is_open
        assert outer.outcome is None
        with span("inner") as inner:
            assert current_span() is inner
        assert current_span() is outer
    assert current_span() is None
    assert not outer.is_open
    assert (outer.outcome, inner.outcome) == ("completed", "completed")
    assert {name: v.completed for name, v in heard.snapshot().names.items()} == {"outer": 1, "inner": 1}


def test_async_context_manager(heard):
    """`async with` does the same."""

    async def main():
        async with span("outer") as outer:
            await asyncio.sleep(0)
            assert current_span() is outer
        assert current_span() is None

    asyncio.run(main())
    assert heard.snapshot().names["outer"].completed == 1


def test_nesting_gives_parents_and_one_trace(heard):
    """A child has its parent's id and trace; roots have traces of their own."""
    with span("a") as a, span("b") as b, span("c") as c:
        pass
    with span("d") as d:
        pass
    assert [s.parent_id for s in (a, b, c, d)] == [None, a.id, b.id, None]
    assert a.trace_id == b.trace_id == c.trace_id != d.trace_id
    assert view(heard, "c").parent_id == b.id


def test_ids_are_opentelemetry_ids(heard):
    """16 and 32 hex digits, never zero, never the same twice."""
    ids, traces = set(), set()
    for _ in range(1000):
        with span("a") as a, span("b") as b:
            pass
        ids |= {a.id, b.id}
        traces.add(a.trace_id)
        assert re.fullmatch("[0-9a-f]{16}", a.id)
        assert re.fullmatch("[0-9a-f]{32}", a.trace_id)
    assert len(ids) == 2000
    assert len(traces) == 1000
    assert all(int(found, 16) for found in ids | traces)


def test_durations_come_from_the_clock(listen, clock):
    """Enter to exit, by the inspector's clock."""
    inspector = listen(clock=clock)
    with span("a"):
        clock.t += 250_000_000
    found = view(inspector, "a")
    assert found.duration == 0.25
    assert found.started_at == 1_700_000_000.0


def test_live_states(heard):
    """A span is running while its thread or task is, and blocked while its task waits."""
    with span("here"):
        assert view(heard, "here").state is TaskState.RUNNING

    async def wait():
        with span("waits"):
            await asyncio.sleep(60)

    async def main():
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        with span("main"):
            assert view(heard, "waits").state is TaskState.BLOCKED
            assert view(heard, "main").state is TaskState.RUNNING
        waiting.cancel()

    asyncio.run(main())
    assert view(heard, "waits").outcome == "cancelled"


# -- fields, lines and links -----------------------------------------------------------------------------------------


def test_fields_and_record(keep):
    """Fields are told on enter, and those recorded later when they are."""
    with span("a", user=1) as a:
        a.record(user=2, size=3)
    assert a.fields == {"user": 2, "size": 3}
    enter, record, _exit = keep.payloads
    assert enter["fields"] == {"user": 1}
    assert (record["kind"], record["fields"]) == ("record", {"user": 2, "size": 3})


def test_fields_in_the_inspector(heard):
    """The inspector's view has the fields of the beginning and those recorded, with secrets hidden and texts cut."""
    with span("a", user=1, password="x") as a:
        a.record(long="y" * 5000, api_token="z")
    found = view(heard, "a").fields
    assert found["user"] == 1
    assert found["password"] == found["api_token"] == "[redacted]"
    assert len(found["long"]) == 1024


def test_record_before_enter_counts_from_the_beginning(keep):
    """What is recorded before enter is a field like those given."""
    a = span("a", x=1)
    a.record(y=2)
    with a:
        pass
    assert keep.payloads[0]["fields"] == {"x": 1, "y": 2}


def test_record_after_the_end_is_told_and_lost(heard, warned):
    """A span that is over takes no fields, and one warning says so."""
    with span("a", x=1) as a:
        pass
    a.record(y=2)
    a.record(y=3)
    assert a.fields == {"x": 1}
    assert warned == ["span 'a' is over: record(y) is lost"]


@pytest.mark.parametrize(
    "key", ["name", "message", "args", "asctime", "taskName", "self", "fields", "msg", "levelname"]
)
def test_any_field_name_but_three(keep, key):
    """All names but `logger`, `parent` and `links` can be fields, to `span`, `record` and `annotate`."""
    with span("a", **{key: 1}) as a:
        a.record(**{key: 2})
        annotate("line", **{key: 3})
    assert keep.payloads[0]["fields"] == {key: 1}
    assert keep.payloads[1]["fields"] == {key: 2}


def test_annotate_is_a_line_on_the_timeline(heard):
    """Each inspector that hears of the span notes the line, whatever the levels."""
    LOGGER.setLevel("ERROR")
    with span("a"):
        annotate("halfway", percent=50)
    annotate("nowhere")
    lines = [event.detail for event in view(heard, "a").events if event.kind == "log"]
    assert lines == ["DEBUG halfway"]
    assert heard.snapshot().events["log"] == 1


def test_annotate_is_an_ordinary_record_with_ids(keep):
    """A handler gets the line as a record with its fields and the span's ids."""
    records = []
    keep.emit = records.append
    with span("a") as a:
        annotate("100% of {it}", percent=50, password="x")
    (line,) = (record for record in records if not hasattr(record, "asyncinspect"))
    assert line.getMessage() == "100% of {it}"
    assert (line.span, line.span_id, line.trace_id, line.percent) == ("a", a.id, a.trace_id, 50)
    assert line.password == "[redacted]"


def test_links(keep):
    """Links are spans or ids of spans."""
    with span("cause") as cause:
        pass
    with span("effect", links=[cause, "00000000000000aa"]):
        pass
    assert keep.payloads[2]["links"] == [cause.id, "00000000000000aa"]


@pytest.mark.parametrize(("links", "expected"), [("00000000000000aa", ("00000000000000aa",)), (None, ()), (7, ())])
def test_odd_links_raise_nothing(keep, links, expected):
    """A single id is a link, and what is no link at all is none."""
    with span("effect", links=links) as effect:
        pass
    assert effect.links == expected


# -- parents ---------------------------------------------------------------------------------------------------------

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADER = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_explicit_parent(heard):
    """A span given as parent is one, wherever the child begins."""
    with span("parent") as parent, span("between"), span("child", parent=parent) as child:
        assert current_span() is child
    assert child.parent_id == parent.id
    assert child.trace_id == parent.trace_id


def test_no_parent(heard):
    """`parent=None` begins a new trace, and its children belong to that."""
    with span("outer") as outer, span("root", parent=None) as root, span("child") as child:
        pass
    assert root.parent_id is None
    assert root.trace_id != outer.trace_id
    assert (child.parent_id, child.trace_id) == (root.id, root.trace_id)


@pytest.mark.parametrize(
    "parent",
    [
        HEADER,
        HEADER.encode(),
        {"traceparent": HEADER},
        {"TraceParent": HEADER},
        {b"traceparent": HEADER.encode()},
        {"host": "x", "traceparent": [HEADER]},
    ],
)
def test_traceparent_in(heard, parent):
    """A header, or a mapping of headers, gives trace and parent."""
    with span("outer"), span("child", parent=parent) as child, span("grandchild") as grandchild:
        pass
    assert (child.trace_id, child.parent_id) == (TRACE, "00f067aa0ba902b7")
    assert (grandchild.trace_id, grandchild.parent_id) == (TRACE, child.id)
    assert view(heard, "grandchild").trace_id == TRACE


@pytest.mark.parametrize(
    "parent",
    ["", "nonsense", HEADER.upper(), b"\xff\x00", {}, {"host": "x"}, {"traceparent": None}, 7, object(), [HEADER]],
)
def test_what_is_no_parent_makes_a_root(heard, parent):
    """A parent that cannot be used is none: requests bring any header."""
    with span("outer"), span("child", parent=parent) as child:
        pass
    assert child.parent_id is None
    assert int(child.trace_id, 16)
    assert child.outcome == "completed"


def test_traceparent_out_and_in_again(heard):
    """The header of a span makes a span elsewhere its child."""
    with span("here", parent=HEADER) as here:
        header = here.traceparent()
    assert header == f"00-{TRACE}-{here.id}-01"
    with span("there", parent=header) as there:
        pass
    assert (there.trace_id, there.parent_id) == (TRACE, here.id)


def test_parent_that_was_never_entered(heard):
    """A span that has no id yet is no parent."""
    with span("child", parent=span("never")) as child:
        pass
    assert child.parent_id is None


def test_parent_that_is_over(keep):
    """It is the parent all the same, and the record says that it was over."""
    with span("parent") as parent:
        pass
    with span("child", parent=parent) as child:
        pass
    assert child.parent_id == parent.id
    assert child.parent_closed
    assert keep.payloads[2]["parent_closed"] is True


# -- outcomes and exceptions -----------------------------------------------------------------------------------------


class OddError(Exception):
    """Fails to say what it is."""

    def __str__(self):
        raise ValueError("no")


@pytest.mark.parametrize(
    ("error", "outcome", "kind"),
    [
        (ValueError("x"), "failed", "ValueError"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt"),
        (SystemExit(3), "failed", "SystemExit"),
        (asyncio.CancelledError("why"), "cancelled", "asyncio.exceptions.CancelledError"),
        (GeneratorExit(), "abandoned", "GeneratorExit"),
        (TimeoutError(), "failed", "TimeoutError"),
        (MemoryError(), "failed", "MemoryError"),
        (StopIteration(1), "failed", "StopIteration"),
        (
            ExceptionGroup("g", [KeyError(1), ExceptionGroup("h", [OSError()])]),
            "failed",
            "ExceptionGroup(KeyError, OSError)",
        ),
        (
            BaseExceptionGroup("g", [asyncio.CancelledError()]),
            "failed",
            "BaseExceptionGroup(asyncio.exceptions.CancelledError)",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_outcomes(heard, error, outcome, kind):
    """Each exception leaves as it came: the same object, with nothing of ours in its traceback; and is told."""

    def work():
        with span("a"):
            raise error

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any
        work()
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
    assert [f for f in files_of(error) if OWN in f] == []
    found = view(heard, "a")
    assert found.outcome == outcome
    assert found.error["type"] == kind
    assert found.state is (TaskState.FAILED if outcome == "failed" else TaskState.CANCELLED)


def test_exception_without_a_text(heard):
    """An exception whose `__str__` raises is told by its type."""
    with pytest.raises(OddError), span("a"):
        raise OddError
    assert view(heard, "a").error["message"] == "<no message: ValueError in __str__>"


def test_caught_inside_is_no_failure(heard):
    """What does not leave the span is none of its business."""
    with span("a"), contextlib.suppress(ValueError):
        raise ValueError
    assert view(heard, "a").outcome == "completed"


def test_span_swallows_nothing(heard):
    """No exception is suppressed, and `return` and `break` complete a span."""

    def leave():
        for _ in range(3):
            with span("loop"):
                break
        with span("function"):
            return 7

    assert leave() == 7
    assert {name: v.completed for name, v in heard.snapshot().names.items()} == {"loop": 1, "function": 1}


# -- tasks and threads -----------------------------------------------------------------------------------------------


def test_across_tasks(heard):
    """A task made inside a span is its child's home, and two tasks do not see each other's spans."""
    parents = {}

    async def child(name):
        with span(name) as inner:
            await asyncio.sleep(0)
            assert current_span() is inner
            assert view(heard, name).task == "test_across_tasks.<locals>.child"
            parents[name] = inner.parent_id

    async def main():
        with span("main") as outer:
            await asyncio.gather(child("one"), child("two"))
            assert current_span() is outer
            return outer.id

    outer = asyncio.run(main())
    assert parents == {"one": outer, "two": outer}


def test_child_outlives_its_parent(heard):
    """A task that goes on after the span it was made in keeps it as its parent, and the fact is told."""

    async def late(go):
        await go.wait()
        with span("late"):
            pass

    async def main():
        go = asyncio.Event()
        with span("parent") as parent:
            task = asyncio.create_task(late(go))
        go.set()
        await task
        return parent

    parent = asyncio.run(main())
    found = view(heard, "late")
    assert found.parent_id == parent.id
    assert found.parent_closed
    assert view(heard, "parent").duration is not None


def test_to_thread_keeps_the_span_and_executors_lose_it(heard):
    """`to_thread` carries the context over, `run_in_executor` does not; both may have spans."""

    def work(name):
        around = current_span()
        with span(name) as inner:
            assert current_span() is inner
            return around, inner.parent_id

    async def main():
        loop = asyncio.get_running_loop()
        with span("main") as outer:
            assert await asyncio.to_thread(work, "kept") == (outer, outer.id)
            assert await loop.run_in_executor(None, work, "lost") == (None, None)

    asyncio.run(main())
    assert view(heard, "kept").thread != threading.get_ident()


def test_threads(heard):
    """Each thread has its own nesting, and nothing is lost when many begin and end spans at once."""
    at_once = threading.Barrier(8)

    def work(number):
        at_once.wait()
        for _ in range(200):
            with span("outer") as outer, span("inner", number=number) as inner:
                assert inner.parent_id == outer.id
        assert current_span() is None

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    names = heard.snapshot().names
    assert (names["outer"].completed, names["inner"].completed) == (1600, 1600)
    assert heard.snapshot().states["running"] == 0


def test_a_thread_begun_with_the_context(heard):
    """A thread that is given a copy of the context has the span as parent and does not disturb it."""

    def work():
        with span("inner") as inner:
            return inner.parent_id

    with span("outer") as outer, concurrent.futures.ThreadPoolExecutor(1) as pool:
        context = contextvars.copy_context()
        assert pool.submit(context.run, work).result() == outer.id
        assert current_span() is outer


def test_exit_in_another_thread(heard):
    """A span that is left elsewhere ends, and leaves its own thread's nesting in order."""
    with span("outer") as outer:
        inner = span("inner").__enter__()
        thread = threading.Thread(target=inner.__exit__, args=(None, None, None))
        thread.start()
        thread.join()
        assert inner.outcome == "completed"
        assert current_span() is outer
        with span("next") as following:
            pass
        assert following.parent_id == outer.id
    assert current_span() is None


def test_shutdown_interrupts_children_first():
    """Spans that are open when the interpreter ends are told as interrupted, the innermost first."""
    code = """
        import logging, sys
        from asyncinspect_logging import span
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s %(asyncinspect)s"))
        logging.basicConfig(handlers=[handler])
        logging.getLogger("asyncinspect").setLevel("DEBUG")
        a, b, c = span("a"), span("b"), span("c")
        a.__enter__(), b.__enter__(), c.__enter__()
        b.__exit__(None, None, None)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    lines = [line.split(" after")[0] for line in done.stdout.splitlines()]
    assert [line for line in lines if line.startswith("exit")] == [
        "exit b completed",
        "exit c interrupted",
        "exit a interrupted",
    ]


def test_abandoned_task_ends_when_a_snapshot_looks(heard):
    """A task that was collected with a span entered by hand leaves it abandoned, not open for ever."""

    async def forget():
        span("forgotten").__enter__()
        await asyncio.get_running_loop().create_future()

    async def main():
        task = asyncio.create_task(forget())
        await asyncio.sleep(0)
        assert view(heard, "forgotten").outcome is None
        # Or asyncio would log that it was destroyed.
        task._log_destroy_pending = False
        del task
        gc.collect()
        assert view(heard, "forgotten").outcome == "abandoned"

    asyncio.run(main())


# -- spans that are not used as they should be -----------------------------------------------------------------------


def test_entered_twice(heard, warned):
    """The second enter changes nothing: the inner `with` does not end the span."""
    with span("a") as a:
        with a:
            assert current_span() is a
        assert a.is_open
        assert current_span() is a
    assert a.outcome == "completed"
    assert current_span() is None
    assert heard.snapshot().names["a"].spawned == heard.snapshot().names["a"].completed == 1
    assert heard.snapshot().dropped["duplicate"] == 1
    assert warned == ["span 'a' was entered twice; a span object serves once"]


def test_entered_twice_more(heard, warned):
    """However often it is entered again, the outermost `with` is the one that counts."""
    with span("a") as a:
        with a:
            with a:
                assert a.is_open
            assert a.is_open
        assert a.is_open
    assert a.outcome == "completed"
    assert current_span() is None
    assert heard.snapshot().dropped["duplicate"] == 2
    assert len(warned) == 1


def test_exited_twice(heard, warned):
    """The second exit changes nothing."""
    a = span("a").__enter__()
    a.__exit__(None, None, None)
    a.__exit__(ValueError, ValueError(), None)
    assert a.outcome == "completed"
    assert heard.snapshot().names["a"].finished == 1
    assert heard.snapshot().dropped["duplicate"] == 1
    assert warned == ["span 'a' was exited twice; a span object serves once"]


def test_exit_without_enter(heard, warned):
    """It is told, and nothing is counted."""
    span("a").__exit__(None, None, None)
    assert heard.snapshot().names == {}
    assert warned == ["span 'a' was exited without being entered; a span object serves once"]


def test_used_again_after_its_end(heard, warned):
    """A span object serves once; its second `with` block runs without a span."""
    a = span("a")
    with a:
        pass
    with a:
        assert current_span() is None
    assert current_span() is None
    assert heard.snapshot().names["a"].spawned == heard.snapshot().names["a"].completed == 1
    assert warned[0] == "span 'a' was entered twice; a span object serves once"


def test_exited_out_of_order(heard):
    """Each exit ends its own span, whatever the order, and what is current is right again in the end."""
    with span("root") as root:
        a, b, c = span("a").__enter__(), span("b").__enter__(), span("c").__enter__()
        a.__exit__(None, None, None)
        c.__exit__(None, None, None)
        b.__exit__(None, None, None)
        assert [s.outcome for s in (a, b, c)] == ["completed"] * 3
        assert (b.parent_id, c.parent_id) == (a.id, b.id)
        assert current_span() is root
        with span("next") as following:
            pass
        assert following.parent_id == root.id
    assert current_span() is None
    assert spans.open_of == {}
    assert heard.snapshot().states["running"] == 0


@pytest.mark.parametrize("name", [7, None, b"bytes", 1.5, ("t",)])
def test_name_that_is_no_text(heard, name):
    """It is taken as text."""
    with span(name) as a:
        pass
    assert a.name == str(name)
    assert heard.snapshot().names[str(name)].completed == 1


class Text(str):
    """A text of the application's own."""

    __slots__ = ()

    def __hash__(self):
        raise RuntimeError("no hash")


class Unreadable:
    """An object that says nothing."""

    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("name", [Text("odd"), Unreadable()], ids=["subclass", "unreadable"])
def test_name_that_misbehaves(heard, name):
    """A name whose own methods raise does no harm."""
    ran = False
    with span(name):
        ran = True
    assert ran
    assert [v.completed for v in heard.snapshot().names.values()] == [1]
    assert type(next(iter(heard.snapshot().names))) is str


def test_forgotten_name():
    """`@span` without a name is a mistake that is seen when the program starts."""
    with pytest.raises(TypeError, match=r"the name is missing; write @span\('name'\)"):

        @span
        def function():
            pass


def test_bad_logger_falls_back_on_the_default(heard, warned):
    """What is no logger is told, and the span is heard all the same."""
    with span("a", logger="asyncinspect"), span("b", logger=object()):
        pass
    assert {name: v.completed for name, v in heard.snapshot().names.items()} == {"a": 1, "b": 1}
    assert len(warned) == 2


# -- who listens, and when -------------------------------------------------------------------------------------------


def test_unheard():
    """Without anybody listening a span is current, has ids when asked, and emits nothing."""
    with span("a", user=1) as a:
        assert current_span() is a
        a.record(more=2)
        annotate("line")
        with span("b") as b:
            assert re.fullmatch("[0-9a-f]{16}", b.id)
            assert b.trace_id == a.trace_id
            assert b.parent_id == a.id
    assert a.fields == {"user": 1, "more": 2}
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", a.traceparent())
    assert current_span() is None


def test_unheard_ids_make_one_trace():
    """Ids that somebody asks for at last are those that the spans would have had."""
    with span("a") as a, span("b") as b:
        child, trace = b.id, b.trace_id
    assert (a.trace_id, b.parent_id, b.id, b.trace_id) == (trace, a.id, child, trace)


def test_unheard_with_a_parent():
    """An unheard span passes on the trace that it was given."""
    with span("a", parent=HEADER) as a:
        assert a.trace_id == TRACE
        assert a.traceparent().startswith(f"00-{TRACE}-")


def test_handler_attached_mid_span(listen):
    """A span that began unheard stays so; the spans begun in it from now on are heard, as its children."""
    with span("before"):
        inspector = listen()
        with span("after") as after:
            pass
    assert list(inspector.snapshot().names) == ["after"]
    assert after.outcome == "completed"
    assert after.parent_id is None


def test_handler_attached_mid_span_whose_id_was_given_away(listen):
    """An unheard span that has told its id to somebody is the parent of what is heard later."""
    with span("before") as before:
        header = before.traceparent()
        listen()
        with span("after") as after:
            pass
    assert header == f"00-{after.trace_id}-{after.parent_id}-01"


def test_handler_detached_mid_span(listen):
    """A span that began heard is heard to its end."""
    inspector = listen()
    handler = LOGGER.handlers[-1]
    with span("a"):
        LOGGER.removeHandler(handler)
        with span("b"):
            pass
    assert {name: v.completed for name, v in inspector.snapshot().names.items()} == {"a": 1}


@pytest.mark.parametrize("change", [("DEBUG", "ERROR"), ("ERROR", "DEBUG")])
def test_level_changed_mid_span(change):
    """An ordinary handler hears the whole span or nothing of it."""
    handler = Keep(accepts=False)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(change[0])
    with span("a") as a:
        LOGGER.setLevel(change[1])
        a.record(x=1)
    assert handler.told == (["enter a", "record a", "exit a"] if change[0] == "DEBUG" else [])


def test_own_logger(listen):
    """A span's logger decides who hears of it."""
    inspector, other = listen(), Inspector()
    logger = logging.getLogger("shop.orders")
    handler = AsyncInspectHandler(other)
    logger.addHandler(handler)
    try:
        with span("default"), span("own", logger=logger), span("adapter", logger=logging.LoggerAdapter(logger, {})):
            pass
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert set(inspector.snapshot().names) == {"default"}
    assert set(other.snapshot().names) == {"own", "adapter"}


# -- as a decorator --------------------------------------------------------------------------------------------------


def test_decorated_functions(heard):
    """Each call of a function, coroutine function, generator or async generator function is a span."""

    @span("plain")
    def plain(x):
        return x, current_span().name

    @span("coroutine")
    async def coroutine(x):
        await asyncio.sleep(0)
        return x, current_span().name

    @span("generator")
    def generator(x):
        got = yield x, current_span().name
        return got

    @span("asyncgen")
    async def asyncgen(x):
        yield x, current_span().name

    assert plain(1) == plain(1) == (1, "plain")
    assert asyncio.run(coroutine(2)) == (2, "coroutine")
    assert list(generator(3)) == [(3, "generator")]

    async def main():
        return [item async for item in asyncgen(4)]

    assert asyncio.run(main()) == [(4, "asyncgen")]
    assert {n: v.completed for n, v in heard.snapshot().names.items()} == {
        "plain": 2,
        "coroutine": 1,
        "generator": 1,
        "asyncgen": 1,
    }
    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(asyncgen)
    assert plain.__name__ == "plain"


def test_decorated_exceptions_are_unchanged(heard):
    """The frame of the wrapper is in no traceback."""

    @span("plain")
    def plain():
        raise ValueError

    @span("coroutine")
    async def coroutine():
        raise ValueError

    @span("generator")
    def generator():
        yield 1
        raise ValueError

    @span("asyncgen")
    async def asyncgen():
        yield 1
        raise ValueError

    async def drain():
        async for _ in asyncgen():
            pass

    for call in (plain, lambda: asyncio.run(coroutine()), lambda: list(generator()), lambda: asyncio.run(drain())):
        with pytest.raises(ValueError, match=r"^$") as caught:
            call()
        assert [f for f in files_of(caught.value) if OWN in f] == []
    assert all(v.failed == 1 for v in heard.snapshot().names.values())


def test_decorated_generator_is_not_current_between_yields(heard):
    """The caller of a generator does not see its span."""

    @span("gen")
    def gen():
        assert current_span().name == "gen"
        yield 1
        assert current_span().name == "gen"
        with span("inner"):
            yield 2
            assert current_span().name == "inner"

    with span("caller") as caller:
        for _ in gen():
            assert current_span() is caller
    names = heard.snapshot().names
    assert names["gen"].completed == names["inner"].completed == names["caller"].completed == 1


def test_decorated_method_and_partial(heard):
    """Methods of all kinds, partials and nested decorators work."""

    class Shop:
        @span("method")
        def method(self):
            return self

        @staticmethod
        @span("static")
        def static():
            return 1

        @span("class")
        @classmethod
        def make(cls):
            return cls()

    shop = Shop.make()
    assert shop.method() is shop
    assert Shop.static() == 1
    assert span("partial")(functools.partial(max, 1))(2) == 2
    assert {n: v.completed for n, v in heard.snapshot().names.items()} == {
        "class": 1,
        "method": 1,
        "static": 1,
        "partial": 1,
    }


def test_decorated_recursion(heard):
    """Each level of a recursive function has a span of its own."""

    @span("count")
    def count(n):
        return n and 1 + count(n - 1)

    assert count(50) == 50
    assert heard.snapshot().names["count"].completed == 51


@pytest.mark.parametrize("entered", [False, True])
def test_everything_can_be_asked_of_a_span_that_nobody_hears(entered):
    """Before enter and unheard, a span answers with nothing rather than an exception."""
    a = span("a")
    if entered:
        a.__enter__()
    assert (a.task_name, a.at, a.parent_id, a.parent_closed, a.clock, a.spawned_at) == (
        None,
        None,
        None,
        False,
        None,
        0,
    )
    assert a.is_open is entered
    if entered:
        a.__exit__(None, None, None)


def test_repr():
    """A span says its name, id and state."""
    a = span("a")
    assert repr(a) == "<Span 'a' - not entered>"
    with a:
        pass
    assert repr(a) == f"<Span 'a' {a.id} unheard>"


def test_sampling_and_limits_do_not_touch_the_counters(listen):
    """Details are thinned out, counters are not."""
    inspector = listen(Config(sampling_rate=100, max_tasks=5))
    for _ in range(500):
        with span("a"):
            pass
    snapshot = inspector.snapshot()
    assert snapshot.names["a"].completed == 500
    assert len(snapshot.tasks) <= 5
