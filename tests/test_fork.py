"""A forked child counts for itself, from zero."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import asyncinspect_logging

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SETUP = """
import contextlib, json, logging, os, sys, threading, warnings
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
from asyncinspect_logging import AsyncInspectHandler, Inspector, process, span, current_span
inspector = Inspector.default()
logging.getLogger().addHandler(AsyncInspectHandler(inspector))

def in_child(check):
    '''Fork, run `check` in the child, and fail where it does or hangs.'''
    child = os.fork()
    if child == 0:
        try:
            check()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0

def in_child_while_held(lock, check):
    '''The same, with the lock held by another thread.'''
    held, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    in_child(check)
    done.set()
    thread.join()
"""


def in_process(code: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(asyncinspect_logging.__file__).parent.parent)}
    program = SETUP + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_child_begins_at_zero() -> None:
    """With ids of its own; the span that was open belongs to the parent, which goes on counting."""
    in_process(
        """
        with span("before"):
            pass
        parent_pid, parent_number = process.pid, process.new_number()

        def check():
            assert process.pid == os.getpid() != parent_pid
            assert abs(process.new_number() - parent_number) > 1 << 20
            assert process.new_seq() == 1
            snapshot = inspector.snapshot()
            assert not snapshot.names and not snapshot.tasks, snapshot
            assert not any(snapshot.states.values())
            with span("child"):
                assert inspector.snapshot().states["running"] == 1
            opened.__exit__(None, None, None)
            snapshot = inspector.snapshot()
            assert {name: view.completed for name, view in snapshot.names.items()} == {"child": 1}
            assert not any(snapshot.dropped.values()), snapshot.dropped

        opened = span("open")
        with opened:
            in_child(check)
            assert inspector.snapshot().names["open"].live == 1
        snapshot = inspector.snapshot()
        assert {name: view.completed for name, view in snapshot.names.items()} == {"before": 1, "open": 1}
        """
    )


def test_fork_while_another_thread_holds_the_locks() -> None:
    """The child has locks that nobody holds."""
    in_process(
        """
        @contextlib.contextmanager
        def locks():
            with inspector._lock, Inspector._default_lock:
                yield

        def check():
            with span("child"):
                pass
            assert Inspector.default() is inspector
            assert inspector.snapshot().names["child"].completed == 1

        in_child_while_held(locks(), check)
        """
    )


def test_fork_in_the_middle_of_work() -> None:
    """A finaliser may even fork while the inspector works in its thread."""
    in_process(
        """
        take = inspector._announced.take

        def fork_first(spans):
            def check():
                with span("child"):
                    pass
                assert inspector.snapshot().names["child"].completed == 1

            in_child(check)
            take(spans)

        inspector._announced.take = fork_first
        with span("a"):
            pass
        inspector.settle()
        assert inspector.snapshot().names["a"].completed == 1
        """
    )


def test_finished_tasks_are_passed_on_by_the_parent() -> None:
    in_process(
        """
        finished = inspector.finished()
        with span("in the parent"):
            pass
        inspector.snapshot()

        def check():
            assert finished.take() == []
            with span("in the child"):
                pass
            assert [task.view.name for task in finished.take()] == ["in the child"]

        in_child(check)
        assert [task.view.name for task in finished.take()] == ["in the parent"]
        """
    )


def test_fork_while_another_thread_imports() -> None:
    """A module that another thread imports at the moment of a fork can never be imported in the child: spans need none
    that is not there from the beginning.
    """
    in_process(
        """
        import importlib._bootstrap, signal

        def check():
            signal.alarm(10)
            assert span("child")(max)(1, 2) == 2

        in_child_while_held(importlib._bootstrap._ModuleLockManager("asyncinspect_logging.decorate"), check)
        """
    )
