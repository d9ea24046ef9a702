"""Faults and bad input: nothing lost, a clear word about it, and never an exception into the application."""

import asyncio
import collections
import contextlib
import gc
import logging
import logging.config
import logging.handlers
import os
import queue
import re
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import warnings

import pytest
from keep import Keep

from asyncinspect_logging import (
    AsyncInspectHandler,
    Config,
    Inspector,
    annotate,
    current_span,
    diagnostics,
    install,
    instrument,
    run,
    span,
)
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.opened import open_of
from asyncinspect_logging.spans import current
from asyncinspect_logging.states import TaskState

LOGGER = logging.getLogger("asyncinspect")


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch):
    """Each test leaves no open span, and begins with nothing warned of."""
    monkeypatch.setattr(diagnostics, "_told", set())
    yield
    left = dict(open_of), current.get()
    open_of.clear()
    current.set(None)
    assert left == ({}, None)


@pytest.fixture(params=["announced", "recorded"])
def heard(request, listen):
    """An inspector that hears of spans at first hand, alone or next to a handler that gets records."""
    if request.param == "recorded":
        LOGGER.addHandler(Keep())
    return listen()


def counts(inspector):
    return {name: (v.spawned, v.completed, v.failed, v.cancelled) for name, v in inspector.snapshot().names.items()}


def view(inspector, name):
    (found,) = (task for task in inspector.snapshot().tasks if task.name == name)
    return found


# -- records ---------------------------------------------------------------------------------------------------------


class Raising(collections.abc.Mapping):
    """A mapping that fails at whatever it is asked."""

    def __getitem__(self, key):
        raise ValueError(key)

    def __iter__(self):
        raise ValueError

    def __len__(self):
        raise ValueError


class Hostile:
    """An object that raises whatever is done with it."""

    def _raise(self, *args):
        raise RuntimeError("hostile")

    __str__ = __repr__ = __eq__ = __lt__ = __bool__ = __len__ = __iter__ = __int__ = __index__ = __format__ = _raise
    __hash__ = None


def show(change):
    """A name for a test."""
    ((key, value),) = change.items()
    return f"{key}={type(value).__name__ if isinstance(value, Hostile | Raising | list) else repr(value)[:20]}"


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"v": None}, {"v": "1"}, {"kind": "explode"}, {"kind": None}, {"kind": ["enter"]},
        {"kind": Hostile()}, {"id": "xyz"}, {"id": "0" * 16},
        {"id": 7}, {"id": None}, {"id": "A" * 17},
        {"id": " " * 15 + "1"},
        {"t": None}, {"t": "now"}, {"t": -1}, {"t": 1.5}, {"t": True}, {"t": 1 << 70}, {"t": float("nan")},
        {"wall": None}, {"pid": -1}, {"pid": "1"}, {"seq": None}, {"seq": 1 << 80},
        {"name": None}, {"name": 7}, {"name": b"job"}, {"name": Hostile()},
        {"fields": 7}, {"fields": [1]}, {"fields": Raising()}, {"trace": "xyz"}, {"trace": "0" * 32}, {"parent": "xyz"},
    ],
    ids=show,
)  # fmt: skip
def test_malformed_record(tell, change):
    """It is counted as dropped and changes nothing else."""
    inspector = Inspector()
    inspector.apply(tell("enter") | change)
    snapshot = inspector.snapshot()
    assert snapshot.dropped["malformed"] == 1
    assert snapshot.names == {}
    inspector.apply(tell("enter", 2))
    inspector.apply(tell("exit", 2))
    assert counts(inspector) == {"job": (1, 1, 0, 0)}


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "exploded"},
        {"outcome": None},
        {"outcome": Hostile()},
        {"polls": -1},
        {"busy": "x"},
        {"duration": 1.5},
    ],
    ids=show,
)
def test_malformed_exit(tell, change):
    """The span stays open: what cannot be read is not guessed."""
    inspector = Inspector()
    inspector.apply(tell("enter"))
    inspector.apply(tell("exit") | change)
    assert inspector.snapshot().dropped["malformed"] == 1
    assert counts(inspector) == {"job": (1, 0, 0, 0)}


@pytest.mark.parametrize(
    "record",
    [
        None,
        7,
        "text",
        b"",
        [],
        (),
        {},
        {"asyncinspect": None},
        {"v": 1},
        object(),
        Hostile(),
        logging.makeLogRecord({}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_lifecycle_record(record):
    """It is ignored."""
    inspector = Inspector()
    inspector.apply(record)
    snapshot = inspector.snapshot()
    assert sum(snapshot.dropped.values()) == 0
    assert snapshot.names == {}


@pytest.mark.parametrize("payload", [7, "text", [], Hostile(), Raising(), {}, {"v": 1}], ids=lambda v: type(v).__name__)
def test_broken_payload_in_a_record(payload):
    """A record that claims to be one and is not counts as malformed."""
    inspector = Inspector()
    record = logging.makeLogRecord({"asyncinspect": payload})
    inspector.apply(record)
    AsyncInspectHandler(inspector).handle(record)
    inspector.apply({"asyncinspect": payload})
    assert inspector.snapshot().dropped["malformed"] == 3


def test_half_a_stream(tell):
    """Exit without enter, double enter, double exit: each is counted under its reason."""
    inspector = Inspector()
    inspector.apply(tell("exit", 1))
    enter, exit_ = tell("enter", 2), tell("exit", 2)
    for payload in (enter, enter, tell("enter", 2), exit_, exit_, tell("exit", 2)):
        inspector.apply(payload)
    snapshot = inspector.snapshot()
    assert counts(inspector) == {"job": (1, 1, 0, 0)}
    assert (snapshot.dropped["gap"], snapshot.dropped["duplicate"]) == (1, 4)


# -- handlers, filters and clocks ------------------------------------------------------------------------------------


def test_handler_that_raises_base_exception(listen):
    """What is meant to end the program does, and the span is over all the same."""
    inspector = listen()

    class Broken(Keep):
        def emit(self, record):
            raise SystemExit(3)

    LOGGER.addHandler(Broken())
    with pytest.raises(SystemExit), span("a"):
        pass
    assert counts(inspector)["a"][0] == sum(counts(inspector)["a"][1:]) == 1


@pytest.mark.parametrize("attribute", ["accepts_spans", "span_listener", "field_policy", "filters", "level"])
def test_handler_with_attributes_that_raise(attribute, heard):
    """A handler that cannot even be asked keeps no span from running."""

    def fail(self):
        raise RuntimeError(attribute)

    broken = type("Broken", (Keep,), {attribute: property(fail, lambda self, value: None)})()
    LOGGER.addHandler(broken)
    LOGGER.setLevel("DEBUG")
    try:
        ran = False
        with span("a"):
            ran = True
        assert ran
    finally:
        LOGGER.removeHandler(broken)


class BadClock:
    """A clock that does what it is told to."""

    def __init__(self):
        self.times = iter(())
        self.t = 1_000_000_000

    def monotonic_ns(self):
        step = next(self.times, 0)
        if isinstance(step, BaseException):
            raise step
        self.t += step
        return self.t

    def time_ns(self):
        return self.t


def test_clock_that_runs_backwards(listen):
    """No duration is negative, and no counter falls."""
    clock = BadClock()
    inspector = listen(clock=clock)

    async def work():
        await asyncio.sleep(0)
        with span("inner"):
            await asyncio.sleep(0)

    clock.times = iter([-50_000_000] * 100)
    with span("plain"):
        pass
    asyncio.run(instrument(work(), name="driven"))
    for task in inspector.snapshot().tasks:
        assert min(task.duration, task.busy, task.idle, task.scheduled, task.max_poll, task.age) >= 0
    for found in inspector.snapshot().names.values():
        assert min(found.busy, found.idle, found.scheduled) >= 0
        assert min(histogram.sum for histogram in found.durations.values()) >= 0


@pytest.mark.parametrize("position", range(8))
def test_clock_that_raises(listen, position):
    """A clock that fails is not seen by the application."""
    clock = BadClock()
    inspector = listen(clock=clock)
    clock.times = iter([0] * position + [ValueError("clock")])
    ran = []

    async def work():
        with span("inner"):
            await asyncio.sleep(0)
        ran.append("driven")

    with span("plain"):
        ran.append("plain")
    driven = instrument(work(), name="driven")
    driven.send(None)
    with pytest.raises(StopIteration):
        driven.send(None)
    assert ran == ["plain", "driven"]
    clock.times = iter(())
    snapshot = inspector.snapshot()
    assert all(v.live == 0 for v in snapshot.names.values())
    assert snapshot.states["running"] == snapshot.states["blocked"] == snapshot.states["pending"] == 0


class Strike:
    """Raises where an exception can come out of nowhere in our code: where a function begins, for want of stack or
    memory; and a signal handler's also after each call into C. `at` counts these places.
    """

    def __init__(self, at, error):
        self.at, self.error = at, error
        self.events = ("call", "c_return") if isinstance(error, KeyboardInterrupt) else ("call",)
        self.places = 0
        self.struck = False

    def __call__(self, frame, event, arg):
        if event not in self.events or "asyncinspect_logging" not in frame.f_code.co_filename:
            return
        if event == "call" and frame.f_code.co_name in ("__enter__", "__exit__", "_drive", "finish", "_leave"):
            # What comes before their first statement is the caller's.
            return
        self.places += 1
        if self.places == self.at:
            self.struck = True
            sys.setprofile(None)
            raise self.error

    def __enter__(self):
        # What is collected meanwhile has finalisers of its own, which are not meant.
        gc.disable()
        sys.setprofile(self)

    def __exit__(self, *exc_info):
        sys.setprofile(None)
        gc.enable()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, RecursionError])
@pytest.mark.parametrize("recorded", [False, True], ids=["announced", "recorded"])
def test_interrupted_anywhere_in_enter_and_exit(listen, kind, recorded, monkeypatch):
    """Wherever in our code an exception strikes, what comes after works, and no span stays open or current."""
    # Its own work, done now and then, is another matter.
    monkeypatch.setattr(Inspector, "settle", lambda self: None)
    if recorded:
        LOGGER.addHandler(Keep())
    inspector = listen()
    for at in range(1, 500):
        error = kind("struck")
        strike = Strike(at, error)
        seen = False
        try:
            manager = span("struck", x=1)
            with strike, manager:
                seen = True
        except kind as caught:
            assert caught is error
            assert kind is KeyboardInterrupt
        else:
            assert seen
        assert current.get() is None
        assert open_of == {}
        with span("after") as after:
            assert current_span() is after
            assert after.parent_id is None
        if not strike.struck:
            break
    else:
        pytest.fail("never got to the end")
    assert at > 1
    names = inspector.snapshot().names
    assert names["after"].completed == at
    assert names["struck"].live == 0


@pytest.mark.parametrize("recorded", [False, True], ids=["announced", "recorded"])
@pytest.mark.parametrize("kind", [MemoryError, RecursionError])
def test_trouble_of_ours_hides_no_exception(listen, kind, recorded, monkeypatch):
    """While the application's exception passes, no trouble in our exit takes its place."""
    monkeypatch.setattr(Inspector, "settle", lambda self: None)
    if recorded:
        LOGGER.addHandler(Keep())
    inspector = listen()
    for at in range(1, 500):
        mine = ValueError("mine")
        strike, manager = Strike(at, kind("ours")), span("a")
        with pytest.raises(ValueError, match="mine") as caught, strike, manager:
            raise mine
        assert caught.value is mine
        assert mine.__context__ is None
        if not strike.struck:
            break
    assert at > 3
    found = inspector.snapshot().names["a"]
    assert (found.completed, found.cancelled, found.live) == (0, 0, 0)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_interrupted_anywhere_in_a_driver(listen, kind, monkeypatch):
    """A driver may lose its coroutine to an interrupt, and leaves nothing open or current behind."""
    monkeypatch.setattr(Inspector, "settle", lambda self: None)
    inspector = listen()

    async def work():
        with span("inner"):
            await asyncio.sleep(0)

    for at in range(1, 500):
        strike = Strike(at, kind("struck"))
        coroutine = work()
        driven = instrument(coroutine, name="driven")
        with contextlib.suppress(kind, StopIteration), strike:
            driven.send(None)
            driven.send(None)
        with contextlib.suppress(kind):
            driven.close()
        coroutine.close()
        assert open_of == {}
        assert current_span() is None
        current.set(None)
        if not strike.struck:
            break
    assert at > (10 if kind is KeyboardInterrupt else 3)
    assert all(v.live == 0 for v in inspector.snapshot().names.values())


def test_deep_recursion(heard):
    """Recursion ends in the RecursionError of the recursive function, and every span is over and counted: no batch is
    begun where the stack may not suffice for it.
    """

    def dive(n):
        with span("dive"):
            return dive(n + 1)

    for _ in range(8):
        with pytest.raises(RecursionError):
            dive(0)
    found = heard.snapshot().names["dive"]
    assert found.live == 0
    assert heard.snapshot().dropped["malformed"] == 0
    assert found.failed >= found.spawned - 2 * 8
    assert found.failed > 8
    with span("after"):
        pass
    assert counts(heard)["after"] == (1, 1, 0, 0)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_deep_recursion_of_coroutines(listen):
    """The same with driven coroutines that await each other."""
    inspector = listen()

    @instrument(name="dive")
    async def dive(n):
        with span("inner"):
            return await dive(n + 1)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        with pytest.raises(RecursionError):
            asyncio.run(dive(0))
    finally:
        sys.setrecursionlimit(limit)
    gc.collect()
    assert all(v.live == 0 for v in inspector.snapshot().names.values())


@pytest.fixture
def internal():
    """Our own logger, disabled as `dictConfig` disables what it does not name, with what comes of it at the root."""
    keep = logging.handlers.BufferingHandler(100)
    logging.getLogger().addHandler(keep)
    loggers = [found for found in logging.Logger.manager.loggerDict.values() if isinstance(found, logging.Logger)]
    before = {found: found.disabled for found in loggers}
    root, others = logging.getLogger(), logging.getLogger().handlers[:]
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
    root.handlers[:] = others
    assert diagnostics.log.disabled
    yield diagnostics.log, keep.buffer
    for found, disabled in before.items():
        found.disabled = disabled


def test_warnings_outlive_a_dict_config(internal):
    """What disables all loggers does not mean ours, and would leave nobody to say what is wrong."""
    log, told = internal
    again = span("again")
    with again, again:
        pass
    assert [record.name for record in told] == [log.name]
    assert "entered twice" in told[0].getMessage()


@pytest.mark.parametrize("how", ["level", "handler", "filter"])
def test_warnings_that_somebody_configured_stay_disabled(internal, how):
    """Whoever gave our logger a level, a handler or a filter has meant it."""
    log, told = internal
    if how == "level":
        log.setLevel(logging.INFO)
    elif how == "handler":
        log.addHandler(logging.NullHandler())
    else:
        log.addFilter(lambda record: True)
    try:
        diagnostics.warn_once("test", how, "nobody hears this")
        assert log.disabled
        assert told == []
    finally:
        log.setLevel(logging.NOTSET)
        log.handlers.clear()
        log.filters.clear()


# -- fields, names and texts -----------------------------------------------------------------------------------------


class Slow:
    """An object whose text takes for ever."""

    def __repr__(self):
        time.sleep(3600)

    __str__ = __repr__


class Big:
    """An object whose text is 100 MB long."""

    def __repr__(self):
        return "x" * 100_000_000

    __str__ = __repr__


class Leaving:
    """An object whose text ends the program."""

    def __repr__(self):
        raise SystemExit

    __str__ = __repr__


@pytest.mark.parametrize("value", [Hostile(), Slow(), Big(), Leaving(), Raising()], ids=lambda v: type(v).__name__)
def test_field_with_a_bad_repr(heard, value):
    """A field's own code is never run: its type is shown."""
    with span("a", field=value, inside=[value, {"deep": value}]) as a:
        a.record(later=value)
        annotate("line", field=value)
    fields = view(heard, "a").fields
    assert fields["field"] == fields["later"] == f"<{__name__}.{type(value).__name__}>"


def test_field_of_100_mb(heard):
    """It is cut before it leaves the span, and not copied as a whole."""
    text, data = "x" * 100_000_000, bytes(100_000_000)
    tracemalloc.start()
    with span("a", text=text, data=data, items=[text] * 1000, numbers=list(range(1000))) as a:
        a.record(more=text)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    fields = view(heard, "a").fields
    assert len(fields["text"]) == len(fields["more"]) == 1024
    assert len(str(fields)) < 20_000


def test_fields_that_refer_to_themselves(heard):
    """Nesting ends somewhere."""
    loop = []
    loop.append(loop)
    endless = {}
    endless["self"] = endless
    with span("a", loop=loop, endless=endless):
        pass
    assert len(str(view(heard, "a").fields)) < 1000


@pytest.mark.parametrize("error", [Hostile, lambda: ValueError(Hostile()), lambda: KeyError(Hostile())], ids="abc")
def test_exception_that_cannot_be_shown(heard, error):
    """The exception passes, and its type is told."""

    class BadError(Exception):
        def __str__(self):
            raise MemoryError

        __repr__ = __str__

    raised = BadError() if error is Hostile else error()
    with pytest.raises(type(raised)) as caught, span("a"):
        raise raised
    assert caught.value is raised
    assert type(raised).__name__ in view(heard, "a").error["type"]


def test_exception_whose_text_never_ends(heard):
    """Its text is cut."""
    with pytest.raises(ValueError, match="x"), span("a"):
        raise ValueError("x" * 10_000_000)
    assert len(view(heard, "a").error["message"]) == 1024


NASTY = {
    "quotes": 'say "hi"',
    "newline": "line\nbreak\r\n",
    "backslash": "C:\\new\\",
    "nul": "nul\0byte",
    "surrogate": "lone\ud800surrogate",
    "long": "n" * 10_000,
    "empty": "",
    "braces": '{le="1"} 5',
    "unicode": "größe 数 🎉",
    "separators": "a\u2028b\x85c\x0bd",
}


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_nasty_names_on_the_page(listen, name):
    """Whatever the name, the page is valid text that parses again, with the count in it."""
    from prometheus_client.parser import text_string_to_metric_families

    inspector = listen()
    with span(name, field=name):
        annotate(name)
    with pytest.raises(ValueError, match="x"), span(name):
        raise ValueError("x")
    page = PrometheusExporter(inspector).gather()
    page.encode("utf-8")
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    for key, value in (("", 2), ("_completed", 1), ("_failed", 1)):
        (found,) = [sample for sample in samples if sample.name == f"async_inspect_tasks{key}_total"]
        assert found.value == value
        if name not in (NASTY["surrogate"], NASTY["long"]):
            assert found.labels["name"] == name


def test_a_million_names(listen):
    """Memory is bounded: names beyond the limit count together, and nothing is lost. (Some thousands of them here.)"""
    inspector = listen()
    number = 12_000
    for n in range(number - 5000):
        with span(f"name {n}"):
            pass
    inspector.snapshot()
    tracemalloc.start()
    for n in range(number - 5000, number):
        with span(f"name {n}"):
            pass
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    snapshot = inspector.snapshot()
    # As much as the retained tasks take, which are others now.
    assert grown < 2_000_000
    assert len(snapshot.names) == 1001
    assert sum(v.completed for v in snapshot.names.values()) == number
    assert snapshot.names["_other_"].completed == number - 1000
    assert snapshot.dropped["max_names"] == number - 1000


def test_many_field_names(listen):
    """Field names are remembered up to a limit only."""
    inspector = listen(Config(max_tasks=10))
    tracemalloc.start()
    for n in range(12_000):
        with span("a", **{f"field {n}": n}):
            pass
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert inspector.snapshot().names["a"].completed == 12_000
    assert grown < 6_000_000


def test_many_warnings_are_bounded(listen):
    """Each misuse under a new name is counted, and the log and memory stay bounded."""
    listen()
    for n in range(3000):
        with span(f"name {n}") as a:
            pass
        a.__exit__(None, None, None)
    assert len(diagnostics._told) <= 1000


# -- finalisers, signals, threads and forks --------------------------------------------------------------------------


def test_finaliser_that_enters_a_span(heard):
    """A span in `__del__`, whenever that runs, also in the middle of our own work."""

    class Dying:
        def __init__(self):
            self.me = self

        def __del__(self):
            with span("dying"):
                pass

    gc.collect()
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(200):
            Dying()
            with span("living"):
                heard.snapshot(tasks=False)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert counts(heard)["living"] == (200, 200, 0, 0)
    found = heard.snapshot().names["dying"]
    assert found.live == 0
    assert found.completed <= 200


def test_span_in_a_filter_and_a_record_factory():
    """Spans begun while a record is made or filtered neither recurse nor break it."""
    inspector = Inspector()
    keep = Keep()

    def filter_(record):
        with span("in filter"):
            return True

    factory = logging.getLogRecordFactory()

    def with_span(*args, **kwargs):
        with span("in factory"):
            return factory(*args, **kwargs)

    keep.addFilter(filter_)
    LOGGER.addHandler(AsyncInspectHandler(inspector))
    LOGGER.addHandler(keep)
    logging.setLogRecordFactory(with_span)
    try:
        with span("a"):
            logging.getLogger("app").warning("line")
    finally:
        logging.setLogRecordFactory(factory)
    assert counts(inspector)["a"] == (1, 1, 0, 0)
    assert all(v.live == 0 for v in inspector.snapshot().names.values())
    assert keep.told.count("enter a") == keep.told.count("exit a") == 1


def test_exporter_that_logs(listen):
    """A handler that logs, in a span, while it is given a record does not go round in circles."""
    inspector = listen()
    lines = []

    class Logging(logging.Handler):
        accepts_spans = True

        def emit(self, record):
            lines.append(record.getMessage())
            if hasattr(record, "asyncinspect"):
                with span("export"):
                    logging.getLogger("exporter").warning("sent %s", record.getMessage())

    handler = Logging()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with span("a"):
            pass
    finally:
        root.removeHandler(handler)
    assert len(lines) == 4
    assert counts(inspector)["a"] == (1, 1, 0, 0)


def test_threads_begun_in_spans(heard):
    """Threads begin, and end, inside spans and after them."""
    release = threading.Event()

    def work():
        with span("thread"):
            release.wait(10)

    with span("main"):
        threads = [threading.Thread(target=work) for _ in range(10)]
        for thread in threads:
            thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert counts(heard) == {"main": (1, 1, 0, 0), "thread": (10, 10, 0, 0)}


def test_thread_that_dies_with_an_open_span(heard):
    """Its span stays open, and a later thread with the same id does not take it for its own."""
    thread = threading.Thread(target=lambda: span("left open").__enter__())
    thread.start()
    thread.join()
    left = next(iter(open_of.values()))
    parents = []

    def later():
        with span("later") as inner:
            parents.append(inner.parent_id)

    for _ in range(20):
        thread = threading.Thread(target=later)
        thread.start()
        thread.join()
    assert set(parents) == {None}
    left.__exit__(None, None, None)
    assert counts(heard)["left open"] == (1, 1, 0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_inside_a_span(heard):
    """The child begins at zero, with ids of its own; the parent's span is the parent's to end."""
    reader, writer = os.pipe()
    with span("parent") as outer:
        child = os.fork()
        if child == 0:
            try:
                with span("child") as inner:
                    pass
                outer.record(x=1)
                outer.__exit__(None, None, None)
                with span("alone") as alone:
                    pass
                names = {name: v.completed for name, v in heard.snapshot().names.items()}
                lost = heard.snapshot().dropped["duplicate"]
                found = (names, inner.parent_id == outer.id, inner.id != outer.id, alone.parent_id, lost)
                os.write(writer, repr(found).encode())
            except BaseException:
                os.write(writer, traceback.format_exc().encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        told = os.read(reader, 65536).decode()
        os.close(reader)
    assert told == repr(({"child": 1, "alone": 1}, True, True, None, 0))
    assert counts(heard) == {"parent": (1, 1, 0, 0)}


def test_interrupted_run(listen):
    """A KeyboardInterrupt that ends `run` leaves nothing open."""
    inspector = listen()

    async def other():
        with span("other"):
            await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        assert not task.done()
        with span("main"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert all(v.live == 0 for v in inspector.snapshot().names.values())
    assert view(inspector, "other").outcome == "cancelled"


# -- careless use ----------------------------------------------------------------------------------------------------


def test_parent_mapping_that_raises(heard):
    """Headers that cannot be read give no parent and no exception."""
    ran = False
    with span("a", parent=Raising()):
        ran = True
    assert ran


@pytest.mark.parametrize("logger", [7, "name", object(), Hostile(), logging], ids=lambda v: type(v).__name__)
def test_what_is_no_logger(heard, logger):
    """It is told, and the span is heard by the default logger."""
    with span("a", logger=logger):
        pass
    asyncio.run(instrument(asyncio.sleep(0), name="b", logger=logger))
    assert {name: v.completed for name, v in heard.snapshot().names.items()} == {"a": 1, "b": 1}


def test_context_manager_protocol_by_hand(heard):
    """`ExitStack`, `contextmanager` and calls by hand all work."""

    @contextlib.contextmanager
    def wrapped():
        with span("wrapped") as inner:
            yield inner

    with contextlib.ExitStack() as stack:
        stack.enter_context(span("stack"))
        stack.enter_context(wrapped())
        stack.push(span("pushed").__enter__())
    assert {name: v.completed for name, v in heard.snapshot().names.items()} == {"stack": 1, "wrapped": 1, "pushed": 1}


def test_exit_with_odd_arguments(heard):
    """What some frameworks call `__exit__` with is taken as it is."""
    span("nothing").__enter__().__exit__(None, None, None)
    error = ValueError()
    span("value only").__enter__().__exit__(None, error, None)
    assert {task.name: task.outcome for task in heard.snapshot().tasks} == {
        "nothing": "completed",
        "value only": "failed",
    }


def test_driven_span_used_as_a_context_manager(listen):
    """`with current_span()` in a driven coroutine neither ends nor breaks its span."""
    inspector = listen()

    @instrument(name="function")
    async def function():
        with current_span() as inside:
            await asyncio.sleep(0)
        assert current_span() is inside
        assert view(inspector, "function").state is TaskState.RUNNING
        inside.__exit__(None, None, None)
        await asyncio.sleep(0)

    async def main():
        with current_span():
            await asyncio.sleep(0)
        await function()

    run(main())
    assert all((v.spawned, v.finished) == (1, 1) for v in inspector.snapshot().names.values())


def test_records_in_a_driven_span(listen):
    """`record` on one driven span touches no other."""
    inspector = listen()

    async def main():
        current_span().record(x=1)
        await asyncio.create_task(asyncio.sleep(0))

    run(main())
    assert dict(view(inspector, "sleep").fields) == {}


def test_page_is_stable_when_nothing_happens(listen):
    """Ten pages of a quiet process are the same page."""
    inspector = listen(clock=BadClock())
    with span("a"):
        pass
    exporter = PrometheusExporter(inspector)
    pages = {re.sub(r"(?m)^async_inspect_(memory|uptime|scrape|process).*\n", "", exporter.gather()) for _ in range(10)}
    assert len(pages) == 1


# -- finalisers ------------------------------------------------------------------------------------------------------


def test_collected_while_a_lock_of_a_handler_is_held(listen):
    """A finaliser runs in the middle of anything: even while its thread puts something into the queue of a handler."""
    records = queue.Queue()
    handler = logging.handlers.QueueHandler(records)
    handler.accepts_spans = True
    LOGGER.addHandler(handler)
    inspector = listen()

    def generator():
        with span("generator"):
            yield

    async def coroutine():
        with span("coroutine"):
            await asyncio.sleep(0)

    async def main():
        return None

    suspended, driven = generator(), instrument(coroutine(), name="driven")
    next(suspended)
    driven.send(None)
    current.set(None)  # as in a task, whose context is its own
    loop = asyncio.new_event_loop()
    with install(loop):
        pending = loop.create_task(main())
    loop._ready.clear()  # type: ignore[attr-defined]
    pending._log_destroy_pending = False
    while not records.empty():
        records.get()

    def collect():
        nonlocal suspended, driven, pending
        with records.mutex, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            del suspended, driven, pending
            gc.collect()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    collecting.join(20)
    assert not collecting.is_alive()
    loop.close()
    with span("next"):
        pass
    expected = {
        "generator": "abandoned",
        "coroutine": "abandoned",
        "driven": "abandoned",
        "main": "abandoned",
        "next": "completed",
    }
    ended: dict[str, str] = {}
    while ended.keys() != expected.keys():
        # Whoever else looks meanwhile, in another thread, delivers what is held too.
        told = getattr(records.get(timeout=20), "asyncinspect", {})
        if told.get("kind") == "exit":
            ended[told["name"].rpartition(".")[2]] = told["outcome"]
    assert ended == expected
    assert all(view.live == 0 for view in inspector.snapshot().names.values())


def test_held_records_are_delivered_at_the_end_of_the_process():
    """What nothing comes after is told all the same."""
    script = """
import logging, sys
from asyncinspect_logging import AsyncInspectHandler, span

class Print(logging.Handler):
    accepts_spans = True
    def emit(self, record):
        print(record.asyncinspect["kind"], record.asyncinspect["name"], flush=True)

logging.getLogger().addHandler(Print())

def generator():
    with span("job"):
        yield

suspended = generator()
next(suspended)
suspended.close()
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ran.stdout.split("\n"), ran.stderr) == (["enter job", "exit job", ""], "")
