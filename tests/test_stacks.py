"""The frames of threads, which cannot be asked for while other interpreters run."""

import subprocess
import sys
import threading

import pytest

from asyncinspect_logging import stacks

_NAME = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
several = pytest.mark.skipif(sys.version_info < (3, 12), reason="all interpreters share one GIL")


def test_frames_of_this_thread():
    assert stacks.current_frames()[threading.get_ident()].f_back is sys._getframe()
    assert threading.get_ident() in stacks.thread_idents()


@several
def test_nothing_is_asked_while_there_are_other_interpreters():
    interpreters = pytest.importorskip(_NAME)
    other = interpreters.create()
    try:
        assert stacks.current_frames() == {}
        assert threading.get_ident() in stacks.thread_idents()
    finally:
        interpreters.destroy(other)
        # On 3.12 it is enough that there may have been one.
        assert bool(stacks.current_frames()) == (sys.version_info >= (3, 13))
        del sys.modules[_NAME]
    assert stacks.current_frames()


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
    done = subprocess.run([sys.executable, "-c", _STRESS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"
