"""Tasks under `install()`, steps under a driver, and what they leave to the garbage collector."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any

from bench_spans import our_handler
from least import least_create_task
from measure import Floor, Scale, interleaved_async, ratios, young_gcs

from asyncinspect_logging import install, instrument, span

__all__ = ["child", "collections", "hand_written_factory", "one_by_one", "steps", "tasks", "together"]


async def child() -> None:
    """What the tasks here do."""


async def one_by_one(count: int) -> None:
    """Tasks, each awaited before the next is made. The name is looked up each time: some peers replace it."""
    for _ in range(count):
        await asyncio.create_task(child())


async def together(count: int) -> None:
    """Tasks that are all made before the first of them runs."""
    made = [asyncio.create_task(child()) for _ in range(count)]
    for task in made:
        await task


def installed(function: Callable[[int], Awaitable[object]]) -> Callable[[int], Awaitable[object]]:
    async def run(count: int) -> None:
        with install():
            await function(count)

    return run


def with_factory(function: Callable[[int], Awaitable[object]], factory: Any) -> Callable[[int], Awaitable[object]]:
    async def run(count: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        try:
            await function(count)
        finally:
            loop.set_task_factory(None)

    return run


def with_least(function: Callable[[int], Awaitable[object]]) -> Callable[[int], Awaitable[object]]:
    async def run(count: int) -> None:
        loop = asyncio.get_running_loop()
        loop.create_task = least_create_task(loop)  # type: ignore[method-assign]
        try:
            await function(count)
        finally:
            del loop.create_task

    return run


def in_debug_mode(function: Callable[[int], Awaitable[object]]) -> Callable[[int], Awaitable[object]]:
    async def run(count: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        try:
            await function(count)
        finally:
            loop.set_debug(False)

    return run


class _HandSpan(Floor):
    """A span as one would write it for one's own service: current, timed, and counted; no records, no steps."""

    __slots__ = ()

    def __enter__(self) -> _HandSpan:
        super().__enter__()
        _counts[self.name][0] += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, error, tb)
        counts = _counts[self.name]
        counts[1 if error is None else 2] += 1
        counts[3] += self.duration


#: By name: begun, completed, failed, time in ns.
_counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])


async def _in_hand_span(coro: Coroutine[Any, Any, Any]) -> Any:
    with _HandSpan(coro.__qualname__):  # type: ignore[attr-defined]
        return await coro


def hand_written_factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
    """A task factory that wraps each coroutine in another with a span."""
    return asyncio.Task(_in_hand_span(coro), loop=loop, **kwargs)


def tasks(scale: Scale) -> dict[str, float]:
    """A task, against a bare `create_task`."""
    some = scale.of(0.15)

    async def main() -> dict[str, float]:
        times = await interleaved_async(
            {
                "bare": one_by_one,
                "task": installed(one_by_one),
                "by hand": with_factory(one_by_one, hand_written_factory),
                "least": with_least(one_by_one),
                "debug/4": in_debug_mode(one_by_one),
            },
            some,
        )
        measured = {f"task.{name}" if name != "task" else name: ratio for name, ratio in ratios(times, "bare").items()}
        times = await interleaved_async(
            {"bare": together, "task.together": installed(together), "together.least": with_least(together)}, some
        )
        return {**measured, **ratios(times, "bare")}

    with our_handler():
        return asyncio.run(main())


async def _steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _steps_in_a_span(count: int) -> None:
    with span("steps"):
        await _steps(count)


class _TimedGenerator:
    """The least that sees each step: a generator between the task and the coroutine, which reads the clock."""

    def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
        self._coro = coro
        self.busy = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        coro, clock = self._coro, time.perf_counter_ns
        step: Callable[[Any], Any] = coro.send
        value: Any = None
        try:
            while True:
                started = clock()
                awaited = step(value)
                self.busy += clock() - started
                try:
                    value = yield awaited
                    step = coro.send
                except BaseException as error:
                    step, value = coro.throw, error
        except StopIteration as stop:
            return stop.value


class _TimedObject:
    """The same as an object that is asked for each step."""

    def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
        self._send, self.throw, self.close = coro.send, coro.throw, coro.close
        self.busy = 0

    def __await__(self) -> _TimedObject:
        return self

    def __iter__(self) -> _TimedObject:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        started = time.perf_counter_ns()
        try:
            return self._send(value)
        finally:
            self.busy += time.perf_counter_ns() - started


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def steps(scale: Scale) -> dict[str, float]:
    """A step, against a bare `await asyncio.sleep(0)`, on asyncio and on uvloop."""

    async def main() -> dict[str, float]:
        async def in_task(count: int) -> None:
            # A task made under install(), so that the driver is what the task is made of, and with wakes heard.
            with install():
                await asyncio.create_task(_steps(count))

        async def bare(count: int) -> None:
            await asyncio.create_task(_steps(count))

        times = await interleaved_async(
            {
                "bare": bare,
                "step": in_task,
                "awaited": lambda count: instrument(_steps(count)),
                "held": lambda count: asyncio.create_task(_steps_in_a_span(count)),
                "generator": lambda count: asyncio.create_task(_awaited(_TimedGenerator(_steps(count)))),
                "object": lambda count: asyncio.create_task(_awaited(_TimedObject(_steps(count)))),
            },
            scale.of(0.5),
        )
        return ratios(times, "bare")

    found: dict[str, float] = {}
    with our_handler():
        for name, new_event_loop in _loops():
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                for key, value in runner.run(main()).items():
                    found[f"{name}.{key}"] = value
    return found


def _loops() -> list[tuple[str, Callable[[], asyncio.AbstractEventLoop]]]:
    loops: list[tuple[str, Callable[[], asyncio.AbstractEventLoop]]] = [("asyncio", asyncio.new_event_loop)]
    try:
        import uvloop
    except ImportError:
        return loops
    return [*loops, ("uvloop", uvloop.new_event_loop)]


def collections(scale: Scale) -> dict[str, float]:
    """Young garbage collections per 1,000 tasks, and how many times a bare run's that is."""
    rounds = max(1, scale.rounds // 3)
    some = min(1000, scale.loops)

    async def sleeper() -> None:
        await asyncio.sleep(0)

    async def count(warm_up: bool = False) -> float:
        with young_gcs() as seen:
            for _ in range(rounds):
                await asyncio.gather(*[asyncio.create_task(sleeper()) for _ in range(some)])
        return seen[0] * 1000 / (rounds * some)

    async def main() -> dict[str, float]:
        # What finished tasks leave behind is there before, as in a program that has run for a while.
        with install():
            await count()
        bare = await count()
        with install():
            ours = await count()
        return {"gc": ours / bare if bare else float("nan"), "gc.ours": ours, "gc.bare": bare}

    with our_handler():
        return asyncio.run(main())
