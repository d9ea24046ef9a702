"""The frames of threads, which cannot be asked for while other interpreters run."""

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from asyncinspect_logging import stacks
from asyncinspect_logging.detect import chains, threads

_NAME = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
several = pytest.mark.skipif(sys.version_info < (3, 12), reason="all interpreters share one GIL")


def test_frames_of_this_thread():
    ident = threading.get_ident()
    assert stacks.stack_of(ident)[0] is sys._getframe()
    assert ident not in stacks.current_frames()
    assert threading.get_ident() in stacks.thread_idents()


@pytest.fixture
def other_thread():
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    yield thread.ident
    go.set()
    thread.join()


@several
def test_nothing_is_asked_while_there_are_other_interpreters(other_thread):
    interpreters = pytest.importorskip(_NAME)
    other = interpreters.create()
    try:
        assert stacks.current_frames() == {}
        assert {threading.get_ident(), other_thread} <= {*stacks.thread_idents()}
    finally:
        interpreters.destroy(other)
        # On 3.12 it is enough that there may have been one.
        assert (other_thread in stacks.current_frames()) == (sys.version_info >= (3, 13))
        del sys.modules[_NAME]
    assert other_thread in stacks.current_frames()


_STRESS = f"""
import threading
import {_NAME} as interpreters
from asyncinspect_logging import Inspector, AsyncInspectHandler, span, install
import asyncio, logging

logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler(Inspector()))
inspector = Inspector()

def work():
    for _ in range(5):
        interpreter = interpreters.create()
        interpreters.run_string(interpreter, "import pickle, json")
        interpreters.destroy(interpreter)

async def main():
    install()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for _ in range(200):
            inspector.look()
            inspector.snapshot(tasks=False)
        await asyncio.sleep(0)

with span("around"):
    asyncio.run(main())
print("alive")
"""


@several
@pytest.mark.slow
def test_process_survives_looks_while_other_interpreters_run():
    pytest.importorskip(_NAME)
    del sys.modules[_NAME]
    done = subprocess.run([sys.executable, "-c", _STRESS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"


_GOES_ON = """
import asyncio, gc, sys, threading
from types import FrameType
from asyncinspect_logging import stacks

class Thread(threading.Thread):
    # Goes a hundred calls deep, and, when it is let go on, back and down again by other ways.
    def __init__(self, collections):
        super().__init__(daemon=True)
        self.there, self.go, self.back = threading.Event(), threading.Event(), threading.Event()
        self.left = collections

    def run(self):
        self.down(100, self.wait)
        self.down_again(1, 2.0, "3", 100)
        self.back.set()

    def down(self, levels, then):
        return self.down(levels - 1, then) if levels else then()

    def down_again(self, one, two, three, levels):
        four, five = [one], (two,)
        return self.down_again(three, one, two, levels - 1) if levels else (four, five)

    def wait(self):
        self.there.set()
        self.go.wait()

    def collecting(self, phase, info):
        # In the middle of whatever the collection was begun by.
        self.left -= 1
        if not self.left:
            self.go.set()
            self.back.wait()

for collections in range(1, 200, 3):
    thread = Thread(collections)
    thread.start()
    thread.there.wait()
    innermost = stacks.current_frames()[thread.ident]
    before = gc.get_threshold()
    gc.callbacks.append(thread.collecting)
    gc.set_threshold(1)
    frames = stacks.outwards(innermost)
    gc.set_threshold(*before)
    gc.callbacks.remove(thread.collecting)
    thread.go.set()
    thread.join()
    assert all(type(frame) is FrameType for frame in frames), [type(frame) for frame in frames]
    names = [frame.f_code.co_name for frame in frames]
    assert names[-104:-3] == ["down"] * 101, names
    assert gc.isenabled()
print("alive")
"""


def test_threads_do_not_go_on_while_their_stack_is_read():
    """Before Python 3.12, making a frame's object may begin a collection, and a collection lets other threads run."""
    done = subprocess.run([sys.executable, "-c", _GOES_ON], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_left_as_it_was(on):
    async def never_run(): ...

    coroutine = never_run()
    (gc.enable if on else gc.disable)()
    try:
        frame = stacks.frame_of(coroutine, "cr_frame")
        assert (frame.f_code, stacks.locals_of(frame)) == (never_run.__code__, {})
        with pytest.raises(AttributeError):
            stacks.locals_of(None)
        left = gc.isenabled()
    finally:
        gc.enable()
    coroutine.close()
    assert left is on
    assert stacks.frame_of(coroutine, "cr_frame") is None
    assert stacks.frame_of(object(), "gi_frame") is None
    assert stacks.outwards(None) == []


class Held:
    """Something that a variable of a thread holds."""


def test_no_frame_is_kept_alive():
    """What a thread had, goes when it is done with it, and not with the next collection: also while others look."""
    there, go, kept = threading.Event(), threading.Event(), []

    def work():
        held = Held()
        kept.append(weakref.ref(held))
        there.set()
        go.wait()

    thread = threading.Thread(target=work)
    thread.start()
    there.wait()
    gc.collect()
    gc.disable()
    try:
        ident = thread.ident or 0
        assert stacks.stack_of(ident)
        assert ident in stacks.thread_idents()
        assert chains.thread_frames(ident)
        assert chains.thread_frames(threading.get_ident())
        assert chains.running_frames(sys._getframe())[0] is sys._getframe()
        assert chains.running_frames(chains.thread_frames(ident)[0])
        threads.Threads().look(list)
        go.set()
        thread.join()
        assert kept[0]() is None
        gc.collect()
        for _ in range(3):
            stacks.current_frames()
            chains.running_frames(sys._getframe())
            chains.thread_frames(threading.get_ident())
        assert gc.collect() == 0
    finally:
        gc.enable()
        go.set()
