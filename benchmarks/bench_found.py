"""What tools find: each program of `found_programs.py` in an event loop of its own, and what a tool says of it.

A figure is `found/<tool>/<fault>/<program>`: 1 if the tool named that fault, 0 if it did not. For a program without a
fault (`correct`) it is 1 if the tool raised an alarm all the same. An alarm that does not fit the program's fault is a
false one, too: `found/<tool>/astray/<program>`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from found_programs import CORRECT, FAULTY, Program, wrapper
from measure import Scale

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, install, instrument

__all__ = ["aiomonitor", "debug", "ours"]

#: Seconds for which a program may run.
_BOUND = 1.5
_SLOW = 0.1
#: Thresholds low enough for programs of a second; those of five seconds suit services.
_CONFIG = Config(slow_poll=_SLOW, never_yielded=0.3, leaked_after=0.3, lost_waker_after=0.3)

#: What is rightly said of a program with a fault, besides that fault: to block is all three.
_BLOCKING = {"blocked loop", "long poll", "never yielded"}
#: What the log and the warnings of asyncio say, and the faults that this names.
_SAYINGS = (
    (" took ", _BLOCKING),
    ("was never awaited", {"never awaited"}),
    ("was destroyed but it is pending", {"leaked"}),
)

Heard = set[str]
#: Readies a running loop; gives the set that the tool's findings come to, and what has it find the last of them.
Tool = Callable[[], AbstractContextManager[tuple[Heard, Callable[[], object]]]]
_Ready = Iterator[tuple[Heard, Callable[[], object]]]


@contextmanager
def _ours() -> _Ready:
    heard: Heard = set()
    inspector = Inspector(_CONFIG)
    inspector.on_finding(lambda finding: heard.add(finding.kind.replace("_", " ")))
    handler = AsyncInspectHandler(inspector)
    logger = logging.getLogger("asyncinspect")
    logger.addHandler(handler)
    wrapper[:] = [instrument]
    installed = install(sync=True)
    try:
        yield heard, inspector.look
    finally:
        installed()
        wrapper.clear()
        logger.removeHandler(handler)
        handler.close()


class _Listener(logging.Handler):
    """Keeps the faults that a log names, and whatever else it says."""

    def __init__(self, heard: Heard) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.take(record.getMessage())

    def take(self, text: str) -> None:
        self._heard |= next((faults for saying, faults in _SAYINGS if saying in text), {text})


@contextmanager
def _listening(name: str) -> Iterator[_Listener]:
    listener = _Listener(set())
    logger = logging.getLogger(name)
    logger.addHandler(listener)
    try:
        yield listener
    finally:
        logger.removeHandler(listener)


@contextmanager
def _debug() -> _Ready:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = _SLOW
    with _listening("asyncio") as listener, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, kind, *_: (
            listener.take(str(message)) if issubclass(kind, RuntimeWarning) else None
        )
        yield listener._heard, gc.collect


@contextmanager
def _aiomonitor() -> _Ready:
    from aiomonitor import Monitor

    # Ports 0: whatever is free.
    ports: Any = {"termui_port": 0, "webui_port": 0, "console_port": 0, "console_enabled": False}
    loop = asyncio.get_running_loop()
    with _listening("aiomonitor") as listener, Monitor(loop, hook_task_factory=True, **ports):
        yield listener._heard, gc.collect


async def _heard(tool: Tool, program: Program) -> Heard:
    """What a tool says of a program until that is over, or was long enough under way, or its fault is found."""
    with tool() as (heard, look):
        task = asyncio.create_task(program.main(), name="program")
        end = time.monotonic() + _BOUND
        # Not waited for, nor with a timeout: that would look like a part of the program.
        while time.monotonic() < end and not task.done() and program.fault not in heard:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)
        gc.collect()
        look()
        # How it is ended is no part of the program.
        found = set(heard)
        await _end_all(task)
    return found


async def _end_all(main: asyncio.Task[Any]) -> None:
    # The weak set of all tasks also has those of a monitor, which are of another loop.
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(main, *tasks, return_exceptions=True)


def _measured(name: str, tool: Tool, scale: Scale) -> dict[str, float]:
    figures: dict[str, float] = {}
    # Collections are short then, and are not taken for a loop that is blocked.
    gc.collect()
    gc.freeze()
    with _quiet():
        for program in (*FAULTY[: 2 * scale.rounds], *CORRECT[: 2 * scale.rounds]):
            heard = asyncio.run(_heard(tool, program))
            if program.fault:
                figures[f"found/{name}/{program.fault}/{program.name}"] = float(program.fault in heard)
                fitting = _BLOCKING if program.fault in _BLOCKING else {program.fault}
                if heard - fitting:
                    figures[f"found/{name}/astray/{program.name}"] = 1.0
            else:
                figures[f"found/{name}/correct/{program.name}"] = float(bool(heard))
    return figures


@contextmanager
def _quiet() -> Iterator[None]:
    """What is said of faulty programs is listened to, and not shown."""
    with contextlib.ExitStack() as stack:
        for name in ("asyncio", "asyncinspect", "aiomonitor"):
            logger = logging.getLogger(name)
            stack.callback(setattr, logger, "propagate", logger.propagate)
            logger.propagate = False
            nothing = logging.NullHandler()
            logger.addHandler(nothing)
            stack.callback(logger.removeHandler, nothing)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def ours(scale: Scale) -> dict[str, float]:
    """This library, with `install(sync=True)`."""
    return _measured("ours", _ours, scale)


def debug(scale: Scale) -> dict[str, float]:
    """asyncio's own debug mode: its log, and Python's warnings."""
    return _measured("debug", _debug, scale)


def aiomonitor(scale: Scale) -> dict[str, float]:
    """aiomonitor with its task factory on: what it says of its own accord."""
    return _measured("aiomonitor", _aiomonitor, scale)
