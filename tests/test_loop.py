"""Event loops: how late they call back, and those that do not come back, told of while it lasts."""

import asyncio
import contextlib
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from pathlib import Path

import pytest

import asyncinspect_logging
from asyncinspect_logging import Config, Inspector, diagnostics, install, run, span
from asyncinspect_logging import inspector as inspector_module
from asyncinspect_logging.books import QUIET
from asyncinspect_logging.detect import loop as heartbeat
from asyncinspect_logging.detect import watch
from asyncinspect_logging.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def no_watcher():
    """The watcher of tests before, which may still be at it, has left: for a test that plays with what it goes by."""
    thread = watch._thread
    if thread is not None:
        watch._watched.clear()
        watch._bell.release()
        thread.join(30)
        assert watch._thread is None


@pytest.fixture
def by_hand(monkeypatch):
    """Nobody looks but the test, and nobody goes on after it."""
    looking = set()
    monkeypatch.setattr(inspector_module, "watch", looking.add)
    yield
    for inspector in looking:
        inspector._books.quiet_looks = QUIET
        inspector._watchdog._blocked.clear()


@pytest.fixture(params=["asyncio", "uvloop"])
def factory(request):
    return pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else asyncio.new_event_loop


@pytest.fixture
def go(factory):
    def go(main):
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    return go


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, "asyncinspect.findings")

    def told():
        records = [record for record in caplog.records if record.name == "asyncinspect.findings"]
        return [record.getMessage() for record in records if record.finding["kind"] == "blocked_loop"]

    return told


def heart_of(loop=None):
    loop = loop or asyncio.get_running_loop()
    (found,) = (heart for heart in heartbeat.hearts() if heart.loop is loop)
    return found


async def answered(loop=None):
    """Until the loop has answered."""
    heart = heart_of(loop)
    for _ in range(100):
        await asyncio.sleep(0)
        if not heart.asked:
            return
    raise AssertionError("no answer")


async def soon():
    """Let everything run that is ready, and what that makes ready."""
    for _ in range(5):
        await asyncio.sleep(0)


def blocked(inspector):
    return [finding for finding in inspector.snapshot().findings if finding.kind == "blocked_loop"]


# -- lag -------------------------------------------------------------------------------------------------------------


def test_lag_is_from_question_to_answer(go, listen, clock, by_hand):
    """What passes until the loop gets to what it was asked to do."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            for lag in (0.3, 0.002):
                inspector.look()
                clock.advance(lag)
                await answered()
                clock.advance(1)

    go(main)
    lag = inspector.snapshot().loop_lag
    assert lag.total == 2
    assert lag.sum == pytest.approx(0.302)


def test_every_inspector_that_listens_has_it(go, listen, by_hand):
    """Each counts the same beats, whoever asked."""
    one, other = listen(), listen()

    async def main():
        with install():
            one.look()
            await answered()

    go(main)
    assert one.snapshot().loop_lag.total == other.snapshot().loop_lag.total == 1


def test_beats_are_a_tenth_of_a_second_apart(go, listen, clock, by_hand):
    """However often somebody looks."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            for _ in range(30):
                inspector.look()
                await answered()
                clock.advance(0.01)

    go(main)
    assert inspector.snapshot().loop_lag.total == 4  # every 0.09 s


def test_the_time_a_loop_was_stopped_is_no_lag(listen, clock, by_hand):
    """Nor is it blocked then."""
    inspector = listen(clock=clock)
    loop = asyncio.new_event_loop()

    async def leaves():
        inspector.look()
        raise SystemExit

    async def main():
        await answered(loop)

    with contextlib.closing(loop), install(loop):
        with pytest.raises(SystemExit):
            loop.run_until_complete(leaves())
        assert heart_of(loop).asked
        clock.advance(50)
        inspector.look()
        assert not blocked(inspector)
        loop.run_until_complete(main())
        assert inspector.snapshot().loop_lag.total == 0


def test_handler_that_comes_after_install(go, listen, by_hand):
    """From the next task on there are beats."""

    async def main():
        with install():
            assert heartbeat.known is None
            inspector = listen()
            assert not inspector.has_something_to_watch()
            await asyncio.create_task(asyncio.sleep(0))
            assert inspector.has_something_to_watch()
            inspector.look()
            await answered()
        return inspector

    heartbeat.rest()
    assert go(main).snapshot().loop_lag.total == 1


def test_reset_forgets_the_lag_and_goes_on(go, listen, clock, by_hand):
    """The loops are as they were."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            for _ in range(2):
                inspector.look()
                clock.advance(1)
                await answered()
                clock.advance(1)
                inspector.reset()
            assert inspector.snapshot().loop_lag.total == 0
            inspector.look()
            await answered()

    go(main)
    assert inspector.snapshot().loop_lag.total == 1


def test_look_between_two_steps_hides_none(go, listen, by_hand):
    """A step that began after it is in a snapshot that is taken in the step."""
    inspector = listen()
    seen = []

    async def steps():
        for _ in range(3):
            asyncio.get_running_loop().call_soon(inspector.look)
            await asyncio.sleep(0)
            seen.append(inspector.snapshot().names[steps.__qualname__].polls)

    async def main():
        with install():
            await asyncio.create_task(steps())

    go(main)
    assert seen == [2, 3, 4]


# -- blocked ---------------------------------------------------------------------------------------------------------


def test_blocked_loop(go, listen, clock, told, by_hand):
    """Who holds it, where, and since when; once while it lasts, and how long it was when it is over."""
    inspector = listen(clock=clock)
    seen = []
    inspector.on_finding(seen.append)
    ids = []

    def stands_still():
        clock.advance(0.15)
        inspector.look()
        assert [finding.message for finding in blocked(inspector)] == told()
        clock.advance(5)
        inspector.look()
        inspector.look()

    async def holds():
        with span("order") as opened:
            ids.append(opened.id)
            inspector.look()
            stands_still()

    async def main():
        with install():
            await asyncio.create_task(holds(), name="the task")
            await answered()
            assert len(told()) == 1
            inspector.look()

    go(main)
    (finding,) = blocked(inspector)
    called_with = [found._replace(message="") for found in seen if found.kind == finding.kind]
    assert called_with == [finding._replace(message="")]
    assert finding.name == "order"
    assert finding.span_ids[0] == ids[0]
    assert len(finding.span_ids) == 2
    assert finding.evidence[-1].endswith("stands_still")
    assert finding.evidence[-2].endswith("holds")
    assert all(place.startswith(__file__) for place in finding.evidence)
    first, last = told()
    assert first.startswith("the event loop has not come back for 0.150 s: task test_blocked_loop.<locals>.holds (the ")
    assert f"span order {ids[0]}, in this step for 0.150 s" in first
    assert first.endswith(finding.evidence[-1])
    assert last.startswith("the event loop did not come back for 5.150 s in all: task ")
    assert finding.message == last


def test_each_blockage_is_told(go, listen, clock, told, by_hand):
    """The second one as well."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            for _ in range(2):
                inspector.look()
                clock.advance(0.2)
                inspector.look()
                await answered()
                clock.advance(0.2)
            inspector.look()

    go(main)
    assert len(blocked(inspector)) == 2
    assert len(told()) == 4


def test_nothing_below_the_limit(go, listen, clock, by_hand):
    """`slow_poll` decides."""
    inspector, strict = listen(Config(slow_poll=2), clock=clock), listen(Config(slow_poll=0.01), clock=clock)

    async def main():
        with install():
            inspector.look()
            clock.advance(1.99)
            inspector.look()
            strict.look()
            assert not blocked(inspector)
            clock.advance(0.01)
            inspector.look()

    go(main)
    assert len(blocked(inspector)) == len(blocked(strict)) == 1


def test_idle_loop_is_not_blocked(go, listen, clock, by_hand):
    """It is asked, and answers at once."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            for _ in range(3):
                clock.advance(10)
                inspector.look()
                await answered()

    go(main)
    assert not blocked(inspector)
    assert inspector.snapshot().loop_lag.sum == 0


def test_callback(go, listen, clock, told, by_hand):
    """A callback has no task; a span that it opens is named, one around the loop is not."""
    inspector = listen(clock=clock)

    def callback():
        inspector.look()
        with span("in the callback"):
            clock.advance(0.2)
            inspector.look()

    async def main():
        with install():
            inspector.look()
            await answered()
            clock.advance(0.2)
            asyncio.get_running_loop().call_soon(callback)
            await asyncio.sleep(0)
            await answered()

    with span("around"):
        go(main)
    (finding,) = blocked(inspector)
    assert finding.name == "in the callback"
    assert len(finding.span_ids) == 1
    assert ": a callback, span in the callback" in told()[0]
    assert [place.rpartition(".")[2] for place in finding.evidence] == ["callback"]


def test_task_that_nobody_drives(go, listen, clock, told, by_hand):
    """One that was there before is named by its coroutine."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            inspector.look()
            clock.advance(0.2)
            inspector.look()

    go(main)
    (finding,) = blocked(inspector)
    assert finding.name == "test_task_that_nobody_drives.<locals>.main"
    assert finding.span_ids == ()


@contextlib.contextmanager
def collections_take(callback):
    """Garbage is collected when the test says so, as `callback` is told, which is to set the clock."""
    gc.disable()
    heartbeat.collections.begin_timing()
    gc.callbacks.append(callback)
    try:
        yield
    finally:
        gc.callbacks.remove(callback)
        heartbeat.collections.end_timing()
        gc.enable()


def test_garbage_collection_is_told(go, listen, clock, told, by_hand, monkeypatch):
    """How much of the time it took."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            for collects in (False, True):
                inspector.look()
                if collects:
                    gc.collect(0)
                clock.advance(0.2)
                inspector.look()
                await answered()
                clock.advance(0.2)
            inspector.look()

    def takes_long(phase, info):
        if phase == "start":
            clock.advance(0.05)

    monkeypatch.setattr(heartbeat, "system_clock", clock)
    with collections_take(takes_long):
        go(main)
    assert ["garbage collection for 0.050 s" in message for message in told()] == [False, False, True, True]
    assert ["garbage collection" in message for message in told()] == [False, False, True, True]


def test_long_poll_says_when_it_was_garbage_collection(go, listen, clock, by_hand, monkeypatch):
    """By the step that had most of it, and not by what several had together."""
    inspector = listen(clock=clock)
    took = [0.15, 0.01, 0.0]

    def takes_long(phase, info):
        if phase == "start":
            clock.advance(took[0])

    async def collects():
        for _ in range(2):
            gc.collect(0)
            took.pop(0)
            clock.advance(0.01)
            await asyncio.sleep(0)

    async def computes():
        clock.advance(0.2)

    async def main():
        with install():
            await asyncio.create_task(collects())
            await asyncio.create_task(computes())

    monkeypatch.setattr(heartbeat, "system_clock", clock)
    with collections_take(takes_long):
        go(main)
    messages = [each.message for each in inspector.snapshot().findings if each.kind == "long_poll"]
    held = [message.partition("held the event loop for ")[2].partition(")")[2] for message in messages]
    assert held == [
        ", garbage collection 0.15 s of it: gc.freeze() what is there for good",
        "; hand blocking calls to asyncio.to_thread(), and long computations to a process",
    ]


def test_process_that_stood_still(go, listen, clock, by_hand):
    """Then no loop could have come back. What it takes from then on counts."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            inspector.look()
            clock.advance(60)
            heart_of().excuse()
            inspector.look()
            assert not blocked(inspector)
            clock.advance(0.2)
            inspector.look()

    go(main)
    assert blocked(inspector)[0].message.startswith("the event loop has not come back for 0.200 s")


@pytest.mark.parametrize(("used", "stood_still"), [(0.01, True), (4.9, False)])
def test_watcher_that_is_late(no_watcher, monkeypatch, clock, used, stood_still):
    """The process stood still, unless it used the time."""
    loop = asyncio.new_event_loop()
    times, uses, stays = iter([0.0, 5.0]), iter([0.0, used]), iter([True, False])
    fake = types.SimpleNamespace(monotonic=lambda: next(times), process_time=lambda: next(uses))
    monkeypatch.setattr(watch, "time", fake)
    monkeypatch.setattr(watch, "_stays", lambda me: next(stays))
    monkeypatch.setattr(watch, "_look_all", lambda: 0.1)
    monkeypatch.setattr(watch, "_bell", threading.Lock())
    with contextlib.closing(loop), install(loop):
        heart_of(loop).clock = clock
        watch._run()
        assert bool(heart_of(loop).excused) is stood_still


def test_debugger_is_no_blockage(go, listen, clock, by_hand):
    """Whoever waits for a prompt knows."""
    inspector = listen(clock=clock)
    debugger = {"__name__": "bdb"}
    exec("def prompt(look): look()", debugger)

    async def main():
        with install():
            inspector.look()
            clock.advance(20)
            debugger["prompt"](inspector.look)

    go(main)
    assert not blocked(inspector)


def test_loop_that_ends_while_blocked(listen, clock, told, by_hand):
    """It is told as over."""
    inspector = listen(clock=clock)
    loop = asyncio.new_event_loop()

    async def main():
        inspector.look()
        clock.advance(0.2)
        inspector.look()
        raise SystemExit

    with contextlib.closing(loop), install(loop), pytest.raises(SystemExit):
        loop.run_until_complete(main())
    clock.advance(0.3)
    inspector.look()
    assert told()[1].startswith("the event loop did not come back for 0.500 s in all")
    assert len(blocked(inspector)) == 1
    assert not inspector._watchdog._blocked


def test_loop_in_its_selector_is_not_blocked(listen, clock, by_hand):
    """Even if it was not woken by what it is asked."""
    inspector = listen(clock=clock)
    loop = asyncio.new_event_loop()
    installed = install(loop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    waiting = threading.Event()
    loop.call_soon_threadsafe(waiting.set)
    assert waiting.wait(30)
    try:
        while sys._current_frames()[thread.ident].f_globals["__name__"] != "selectors":
            waiting.wait(0.001)
        heart = heart_of(loop)
        heart.clock = clock
        heart.asked = clock.monotonic_ns()
        clock.advance(10)
        inspector.look()
        assert not blocked(inspector)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        installed()
        loop.close()


def test_time_of_the_next_look(go, listen, clock, by_hand):
    """When a loop that is late by then would be blocked, and else as rarely as can be."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            assert inspector.pause() == 0.1
            inspector.look()
            clock.advance(0.04)
            assert inspector.pause() == pytest.approx(0.06)
            clock.advance(1)
            assert inspector.pause() == 0
            inspector.look()
            assert inspector.pause() == 0.1

    go(main)


# -- by the watcher's thread -----------------------------------------------------------------------------------------


def release_when_told(inspector):
    told, found = threading.Event(), []

    def callback(finding):
        if finding.kind == "blocked_loop":
            found.append(finding)
            told.set()

    inspector.on_finding(callback)
    return told, found


@pytest.mark.parametrize("way", ["install", "run"])
def test_watcher_notices_while_it_lasts(listen, factory, way):
    """The loop is held until the finding has come: a task, from its first step."""
    inspector = listen(Config(slow_poll=0.02))
    told, found = release_when_told(inspector)

    async def holds():
        assert told.wait(30)

    async def main():
        if way == "install":
            with install():
                await asyncio.create_task(holds())
        else:
            await asyncio.create_task(holds())

    if way == "install":
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
    else:
        run(main(), loop_factory=factory)
    assert found[0].name.endswith("holds")
    assert any(place.endswith("holds") for place in found[0].evidence)
    assert found[0].evidence[-1].endswith("Event.wait") or found[0].evidence[-1].endswith("Condition.wait")


def test_watcher_notices_the_step_that_installs(listen, go):
    """There has not been a single beat then."""
    inspector = listen(Config(slow_poll=0.02))
    told, found = release_when_told(inspector)

    async def main():
        with install():
            assert told.wait(30)

    go(main)
    assert found[0].name.endswith("main")


def test_watcher_notices_a_loop_in_another_thread(listen, factory):
    """And takes the stack of that one."""
    inspector = listen(Config(slow_poll=0.02))
    told, found = release_when_told(inspector)

    async def holds():
        assert told.wait(30)

    thread = threading.Thread(target=lambda: run(holds(), loop_factory=factory))
    thread.start()
    thread.join(30)
    assert any(place.endswith("holds") for place in found[0].evidence)


def test_watcher_leaves_when_there_is_nothing_to_watch(listen, monkeypatch):
    """And the next task of a loop brings it back."""
    inspector = listen()
    monkeypatch.setattr(watch, "_LONGEST", 0.001)
    monkeypatch.setattr(watch, "_SHORTEST", 0.001)
    loop = asyncio.new_event_loop()

    async def watched():
        return id(inspector) in watch._watched

    with contextlib.closing(loop), install(loop):
        assert loop.run_until_complete(watched())
        watch._thread.join(30)
        assert watch._thread is None
        assert inspector._books.quiet_looks >= QUIET
        assert heartbeat.collections._time not in gc.callbacks
        assert loop.run_until_complete(watched())
        assert heartbeat.collections._time in gc.callbacks


def test_watcher_outlives_what_would_end_a_thread(listen, factory, monkeypatch):
    """A callback's SystemExit ends neither the program nor the watching."""
    inspector, told = listen(), threading.Semaphore(0)
    monkeypatch.setattr(watch, "_LONGEST", 0.01)

    def look(*, sparing):
        told.release()
        raise SystemExit(1)

    monkeypatch.setattr(inspector, "look", look)
    before = diagnostics.troubles["watcher"]

    async def main():
        install()
        for _ in range(3):
            assert told.acquire(timeout=30)

    with contextlib.closing(factory()) as loop:
        loop.run_until_complete(main())
    assert diagnostics.troubles["watcher"] > before
    monkeypatch.undo()
    inspector._books.quiet_looks = QUIET


def test_thread_that_cannot_be_had(no_watcher, listen, monkeypatch):
    """Is no error of the application's."""

    def start(self):
        raise RuntimeError("can't start new thread")

    inspector = Inspector()
    monkeypatch.setattr(watch, "_thread", None)
    monkeypatch.setattr(watch, "_watched", {})
    monkeypatch.setattr(threading.Thread, "start", start)
    before = diagnostics.troubles["watcher"]
    watch.watch(inspector)
    assert diagnostics.troubles["watcher"] == before + 1
    assert not watch._watched


# -- invisible -------------------------------------------------------------------------------------------------------


def test_nothing_is_to_be_seen_on_the_loop(listen, clock, by_hand):
    """No timer, no task, and no wake or step of anybody."""
    inspector = listen(clock=clock)

    async def waits(future):
        await future

    async def main():
        loop = asyncio.get_running_loop()
        with install():
            future = loop.create_future()
            task = asyncio.create_task(waits(future))
            await asyncio.sleep(0)
            inspector.look()
            await answered()
            assert not loop._scheduled
            assert asyncio.all_tasks() == {asyncio.current_task(), task}
            future.set_result(None)
            await task

    asyncio.run(main())
    (view,) = inspector.snapshot().tasks
    assert (view.polls, view.wakes) == (2, 1)


def test_answer_is_in_nobodys_context(go, listen, by_hand):
    """Nor does it keep what is in one."""
    inspector = listen()

    async def main():
        with install():
            with span("open"):
                inspector.look()
                contexts = heart_of()._context
            await answered()
            return list(contexts)

    assert go(main) == []


def test_nobody_listens(go):
    """Nobody asks, and no thread is started."""
    threads = threading.active_count()

    async def main():
        with install():
            await asyncio.create_task(asyncio.sleep(0))
            heart = heart_of()
            heart.ask()
            assert not heart.asked
            assert threading.active_count() <= threads

    go(main)


def test_undo_stops_the_heart(go, listen, clock, by_hand):
    """With an answer due, that is not counted any more; the second of two undos does."""
    inspector = listen(clock=clock)

    async def main():
        loop = asyncio.get_running_loop()
        undo = install()
        inspector.look()
        heart = heart_of()
        heartbeat.start(loop)
        undo()
        assert heart_of() is heart
        heartbeat.stop(loop)
        assert heart not in heartbeat.hearts()
        await soon()
        assert not heart.asked
        clock.advance(1)
        inspector.look()
        assert not heart.asked

    go(main)
    assert inspector.snapshot().loop_lag.total == 0


def test_loop_is_not_kept_alive(listen, factory):
    """Its heart goes with it."""
    listen()
    loop = factory()
    install(loop)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    alive, heart = weakref.ref(loop), heart_of(loop)
    del loop
    gc.collect()
    assert alive() is None
    assert heart not in heartbeat.hearts()
    heart.ask()
    assert not heart.asked


class Odd(asyncio.SelectorEventLoop):
    """A loop that runs nothing of anybody's from outside."""

    def call_soon_threadsafe(self, *args, **kwargs):
        raise NotImplementedError


def test_loop_that_cannot_be_asked(listen, clock, by_hand):
    """Has no heartbeat, and is never blocked."""
    inspector = listen(clock=clock)

    async def main():
        with install():
            inspector.look()
            clock.advance(10)
            inspector.look()

    with asyncio.Runner(loop_factory=Odd) as runner:
        runner.run(main())
        assert not blocked(inspector)
    heartbeat.start(object())  # cannot be referred to weakly


def test_failure_is_told_and_not_raised(go, listen, by_hand, monkeypatch):
    """An answer raises nothing into the loop."""
    inspector = listen()

    def fails(lag):
        raise LookupError("no beat")

    async def main():
        raised = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
        with install():
            inspector.look()
            monkeypatch.setattr(heartbeat, "Beat", fails)
            await answered()
        return raised

    before = diagnostics.troubles["heartbeat"]
    assert go(main) == []
    assert diagnostics.troubles["heartbeat"] == before + 1


# -- fork ------------------------------------------------------------------------------------------------------------


def test_a_fork_does_not_block(monkeypatch):
    """uvloop forks in the loop's thread, where blockbuster has whatever waits for a lock raise."""

    def blocks(*_):
        raise AssertionError("blocking call")

    monkeypatch.setattr(threading.Thread, "join", blocks)
    monkeypatch.setattr("time.sleep", blocks)
    leaving = threading.Event()
    thread = threading.Thread(target=leaving.wait)
    thread.start()
    watch._wait_for_end(thread)
    assert thread.is_alive()
    leaving.set()
    watch._wait_for_end(thread)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork():
    """Without a warning of threads; the watcher is back in the parent, and the child has one for its own loop alone."""
    code = """
    import asyncio, logging, os, threading, warnings
    from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, install, run
    from asyncinspect_logging.detect import loop as heartbeat, watch

    warnings.simplefilter("error")
    inspector = Inspector(Config(slow_poll=0.02))
    logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler(inspector))
    told = threading.Event()

    async def holds():
        assert told.wait(30)

    def hear(finding):
        if finding.kind == "blocked_loop":
            told.set()

    def check(outer):
        assert watch._thread is None and threading.active_count() == 1
        (heart,) = heartbeat.hearts()
        heart.ask()
        assert not heart.asked and not heart.running()
        asyncio._set_running_loop(None)
        inspector.on_finding(hear)
        run(holds())
        (finding,) = (finding for finding in inspector.snapshot().findings if finding.kind == "blocked_loop")
        assert finding.name == "holds", finding
        assert not outer.asked

    async def main():
        (heart,) = heartbeat.hearts()
        assert watch._thread.is_alive()
        child = os.fork()
        if child == 0:
            try:
                check(heart)
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        while watch._thread is None:
            await asyncio.sleep(0.001)
        inspector.on_finding(hear)
        await asyncio.create_task(holds())

    run(main())
    """
    env = {**os.environ, "PYTHONPATH": str(Path(asyncinspect_logging.__file__).parent.parent)}
    program = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
