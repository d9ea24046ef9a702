"""`@span("name")` on functions of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

from asyncinspect_logging import current_span, span
from asyncinspect_logging.testing import CapturedSpans, capture_spans


@pytest.fixture
def spans() -> Iterator[CapturedSpans]:
    with capture_spans() as spans:
        yield spans


def name_inside() -> str | None:
    inside = current_span()
    return None if inside is None else inside.name


def frames_of(error: BaseException) -> list[str]:
    """Names of the functions on an exception's traceback."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


# -- functions -------------------------------------------------------------------------------------------------------


def test_function(spans: CapturedSpans) -> None:
    """One fresh span a call, with the decorator's fields; arguments and result go through."""

    @span("job", kind="x")
    def work(a: int, *, b: int = 2) -> tuple[int, str | None]:
        """What it does."""
        return a + b, name_inside()

    assert work(1) == (3, "job")
    assert work(1, b=5) == (6, "job")
    assert work.__name__ == "work"
    assert work.__doc__ == "What it does."
    assert inspect.signature(work) == inspect.signature(inspect.unwrap(work))
    spans.assert_completed("job", times=2)
    assert len({task.id for task in spans.tasks}) == 2
    assert all(task.fields == {"kind": "x"} for task in spans.tasks)


def test_function_that_raises(spans: CapturedSpans) -> None:
    """The exception goes through unchanged, with nothing of ours on its traceback."""

    @span("job")
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        work()
    assert frames_of(caught.value) == ["test_function_that_raises", "work"]
    assert caught.value.__context__ is None
    spans.assert_failed("job", times=1, error=ValueError)


def test_recursion_and_threads(spans: CapturedSpans) -> None:
    """A decorated function can call itself, and be called from several threads at once."""

    @span("job")
    def down(n: int) -> int:
        return n and down(n - 1)

    threads = [threading.Thread(target=down, args=(5,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans.assert_completed("job", times=24)
    spans.assert_no_open_spans()


def test_coroutine_function(spans: CapturedSpans) -> None:
    """It stays a coroutine function, and the span lasts until the coroutine ends."""

    @span("job")
    async def work(x: int) -> tuple[int, str | None]:
        await asyncio.sleep(0)
        return x, name_inside()

    assert inspect.iscoroutinefunction(work)

    async def main() -> list[tuple[int, str | None]]:
        return await asyncio.gather(*(work(x) for x in range(3)))

    assert asyncio.run(main()) == [(0, "job"), (1, "job"), (2, "job")]
    spans.assert_completed("job", times=3)


def test_coroutine_that_raises(spans: CapturedSpans) -> None:
    """The wrapper's frame is not on the traceback, however deep the exception came from."""

    async def inner() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    @span("job")
    async def work() -> None:
        await inner()

    async def main() -> None:
        await work()

    with pytest.raises(ValueError, match="no") as caught:
        asyncio.run(main())
    assert frames_of(caught.value)[-3:] == ["main", "work", "inner"]
    spans.assert_failed("job", times=1)


def test_coroutine_that_is_cancelled(spans: CapturedSpans) -> None:
    """Cancellation passes, with its message, and makes the span cancelled."""

    @span("job")
    async def work() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task

    asyncio.run(main())
    spans.assert_cancelled("job", times=1)


def test_wrong_arguments(spans: CapturedSpans) -> None:
    """A call that does not fit raises what it would without the decorator."""

    @span("job")
    def work(a: int) -> None:
        pass

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        work()  # type: ignore[call-arg]
    spans.assert_failed("job", times=1)


# -- methods, classes and other callables ----------------------------------------------------------------------------


def test_methods(spans: CapturedSpans) -> None:
    """Methods, class methods and static methods work with the decorator above or below the others."""

    class Shop:
        name = "shop"

        @span("method")
        def method(self) -> str:
            return self.name

        @span("async")
        async def coroutine(self) -> str:
            return self.name

        @span("class above")
        @classmethod
        def class_above(cls) -> str:
            return cls.name

        @classmethod
        @span("class below")
        def class_below(cls) -> str:
            return cls.name

        @span("static above")
        @staticmethod
        def static_above(x: int) -> int:
            return x

        @staticmethod
        @span("static below")
        def static_below(x: int) -> int:
            return x

        @property
        @span("property")
        def prop(self) -> str:
            return self.name

    shop = Shop()
    assert shop.method() == shop.class_above() == Shop.class_above() == shop.class_below() == shop.prop == "shop"
    assert asyncio.run(shop.coroutine()) == "shop"
    assert shop.static_above(1) == Shop.static_above(1) == shop.static_below(1) == 1
    assert inspect.iscoroutinefunction(shop.coroutine)
    for name in ("method", "async", "class below", "static below", "property"):
        spans.assert_completed(name, times=1)
    for name in ("class above", "static above"):
        spans.assert_completed(name, times=2)


def test_class(spans: CapturedSpans) -> None:
    """A decorated class stays that class: making an object of it is what is spanned."""

    @span("made")
    class Thing:
        def __init__(self, x: int) -> None:
            self.x = x
            self.inside = name_inside()

    @span("plain")
    class Plain:
        pass

    class More(Thing):
        pass

    thing = More(5)
    assert isinstance(thing, Thing)
    assert (thing.x, thing.inside) == (5, "made")
    assert isinstance(Plain(), Plain)
    spans.assert_completed("made", times=1)
    spans.assert_completed("plain", times=1)


def test_other_callables(spans: CapturedSpans) -> None:
    """Partials, built-in functions and objects with __call__ work, of each kind."""

    class Job:
        async def __call__(self, x: int) -> int:
            return x

    class Numbers:
        def __call__(self, n: int) -> Iterator[int]:
            yield from range(n)

    async def add(a: int, b: int) -> int:
        return a + b

    decorated = span("partial")(functools.partial(add, 1))
    assert inspect.iscoroutinefunction(decorated)
    assert asyncio.run(decorated(2)) == 3
    assert span("builtin")(len)("abc") == 3
    called = span("object")(Job())
    assert inspect.iscoroutinefunction(called)
    assert asyncio.run(called(5)) == 5
    assert list(span("numbers")(Numbers())(3)) == [0, 1, 2]
    for name in ("partial", "builtin", "object", "numbers"):
        spans.assert_completed(name, times=1)


@pytest.mark.parametrize("wrong", [5, "text", property(lambda self: 5), None])
def test_not_callable(wrong: Any) -> None:
    """What cannot be called is named in the error, with where the decorator belongs."""
    with pytest.raises(
        TypeError, match=r"@span\('job'\) on .* which is not callable; write it directly above the `def`"
    ):
        span("job")(wrong)


def test_name_left_out() -> None:
    """@span without a name says so."""
    with pytest.raises(TypeError, match=r"the name is missing; write @span\('name'\)"):

        @span  # type: ignore[arg-type]
        def work() -> None:
            pass


# -- generators ------------------------------------------------------------------------------------------------------


@span("gen")
def numbers(stop: int) -> Generator[tuple[int, str | None], str, str]:
    got = ""
    for n in range(stop):
        got += (yield (n, name_inside())) or ""
    return got


def test_generator(spans: CapturedSpans) -> None:
    """It stays a generator function; the span opens at the first next and is current inside only."""
    assert inspect.isgeneratorfunction(numbers)
    generator = numbers(2)
    assert not spans.tasks
    assert next(generator) == (0, "gen")
    assert current_span() is None
    assert spans.tasks[0].outcome is None
    assert generator.send("a") == (1, "gen")
    with pytest.raises(StopIteration) as stop:
        generator.send("b")
    assert stop.value.value == "ab"
    assert current_span() is None
    spans.assert_completed("gen", times=1)


def test_generator_never_begun(spans: CapturedSpans) -> None:
    """One that is closed or dropped before its first next has no span."""
    numbers(2).close()
    numbers(2)
    assert not spans.tasks


def test_generator_does_not_touch_its_callers_span(spans: CapturedSpans) -> None:
    """Between two yields the caller's span is current, whichever it is by then; the generator keeps its parent."""
    with span("first"):
        generator = numbers(2)
        next(generator)
        assert name_inside() == "first"
    assert name_inside() is None
    with span("second"):
        assert next(generator) == (1, "gen")
        assert name_inside() == "second"
        assert list(generator) == []
        assert name_inside() == "second"
    assert name_inside() is None
    first, gen = (next(task for task in spans.tasks if task.name == name) for name in ("first", "gen"))
    assert gen.parent_id == first.id
    spans.assert_no_open_spans()


def test_spans_open_across_a_yield(spans: CapturedSpans) -> None:
    """A span opened in the generator's body is current there again after the yield, and not in the caller."""

    @span("gen")
    def work() -> Iterator[str | None]:
        with span("inner"):
            yield name_inside()
            yield name_inside()
        yield name_inside()

    generator = work()
    seen = []
    for _ in range(3):
        with span("caller"):
            seen.append(next(generator))
            assert name_inside() == "caller"
    assert seen == ["inner", "inner", "gen"]
    assert list(generator) == []
    spans.assert_completed("inner", times=1)
    spans.assert_completed("gen", times=1)


def test_generator_throw(spans: CapturedSpans) -> None:
    """What is thrown in arrives in the body, can be caught there, and has only the body on its traceback."""

    @span("gen")
    def work() -> Iterator[str]:
        try:
            yield "first"
        except KeyError:
            yield "caught"

    generator = work()
    next(generator)
    assert generator.throw(KeyError("x")) == "caught"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="y") as caught:
        generator.throw(ValueError("y"))  # type: ignore[attr-defined]
    assert frames_of(caught.value) == ["test_generator_throw", "work"]
    spans.assert_failed("gen", times=1)


@pytest.mark.parametrize("swallow", [True, False])
def test_generator_closed_early(spans: CapturedSpans, swallow: bool) -> None:
    """Closing early is `abandoned`, also where the body returns instead of letting GeneratorExit through."""

    @span("gen")
    def work() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            if not swallow:
                raise

    generator = work()
    next(generator)
    generator.close()  # type: ignore[attr-defined]
    assert spans.tasks[0].outcome == "abandoned"
    assert current_span() is None


def test_generator_broken_off(spans: CapturedSpans) -> None:
    """A loop that breaks leaves nothing behind."""
    with span("caller"):
        for _ in numbers(5):
            break
        gc.collect()
        assert name_inside() == "caller"
    assert {task.name: task.outcome for task in spans.tasks} == {"gen": "abandoned", "caller": "completed"}


def test_generator_that_ignores_close(spans: CapturedSpans) -> None:
    """One that yields instead of closing is told off by Python as ever, and can still end."""

    @span("gen")
    def work() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    generator = work()
    next(generator)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()  # type: ignore[attr-defined]
    assert list(generator) == []
    spans.assert_no_open_spans()


def test_generator_moved_to_another_context(spans: CapturedSpans) -> None:
    """A generator that goes on in another context, or thread, leaves no span in either."""
    generator = numbers(2)
    next(generator)
    context = contextvars.copy_context()
    assert context.run(next, generator) == (1, "gen")
    assert context.run(name_inside) is None
    rest: list[Any] = []
    thread = threading.Thread(target=lambda: rest.extend(generator))
    thread.start()
    thread.join()
    assert rest == []
    assert current_span() is None
    spans.assert_completed("gen", times=1)


def test_context_manager_from_a_generator(spans: CapturedSpans) -> None:
    """contextlib.contextmanager on top of a decorated generator function: the body of the `with` is outside."""

    @contextlib.contextmanager
    @span("gen")
    def managed() -> Iterator[str | None]:
        yield name_inside()

    with managed() as inside:
        assert inside == "gen"
        assert name_inside() is None
    with pytest.raises(ValueError, match="no"), managed():
        raise ValueError("no")
    spans.assert_completed("gen", times=1)
    spans.assert_failed("gen", times=1)


# -- async generators ------------------------------------------------------------------------------------------------


@span("agen")
async def ticks(stop: int) -> AsyncGenerator[tuple[int, str | None], str]:
    for n in range(stop):
        await asyncio.sleep(0)
        yield n, name_inside()


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(main())


def test_async_generator(spans: CapturedSpans) -> None:
    """It stays an async generator function; the span is current inside only, and ends with it."""
    assert inspect.isasyncgenfunction(ticks)

    async def main() -> None:
        with span("caller"):
            seen = []
            async for item in ticks(3):
                seen.append(item)
                assert name_inside() == "caller"
            assert seen == [(0, "agen"), (1, "agen"), (2, "agen")]
            assert name_inside() == "caller"

    run(main)
    spans.assert_completed("agen", times=1)
    caller, agen = (next(task for task in spans.tasks if task.name == name) for name in ("caller", "agen"))
    assert agen.parent_id == caller.id


def test_async_generator_protocol(spans: CapturedSpans) -> None:
    """asend, athrow and aclose do what they do without the decorator."""

    @span("agen")
    async def work() -> AsyncGenerator[str, str]:
        got = yield "first"
        try:
            yield got
        except KeyError:
            yield "caught"

    async def main() -> None:
        generator = work()
        assert await anext(generator) == "first"
        assert await generator.asend("sent") == "sent"
        assert await generator.athrow(KeyError("x")) == "caught"
        await generator.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
        other = work()
        await anext(other)
        with pytest.raises(ValueError, match="no") as caught:
            await other.athrow(ValueError("no"))
        assert frames_of(caught.value) == ["main", "work"]

    run(main)
    assert sorted(str(task.outcome) for task in spans.tasks) == ["abandoned", "failed"]


def test_async_generator_that_raises(spans: CapturedSpans) -> None:
    """An exception goes through, with only the body on its traceback."""

    @span("agen")
    async def work() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    async def main() -> None:
        async for _ in work():
            pass

    with pytest.raises(ValueError, match="no") as caught:
        run(main)
    assert frames_of(caught.value)[-2:] == ["main", "work"]
    spans.assert_failed("agen", times=1)


def test_async_generator_broken_off(spans: CapturedSpans) -> None:
    """Broken off early it is closed by the loop, in a task of its own: no span is left in the caller."""

    @span("agen")
    async def work() -> AsyncIterator[int]:
        with span("inner"):
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)

    async def main() -> None:
        with span("caller"):
            async for _ in work():
                break
            assert name_inside() == "caller"
            gc.collect()
            with span("after"):
                await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)
            assert name_inside() == "caller"
        assert name_inside() is None

    run(main)
    tasks = {task.name: task for task in spans.tasks}
    assert tasks["agen"].outcome == tasks["inner"].outcome == "abandoned"
    assert tasks["after"].parent_id == tasks["caller"].id
    spans.assert_no_open_spans()


def test_async_generator_cancelled_while_it_waits(spans: CapturedSpans) -> None:
    """Cancelled inside its body it is cancelled, and the caller's context is as before."""

    @span("agen")
    async def work() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    async def consume() -> None:
        try:
            async for _ in work():
                pass
        finally:
            assert name_inside() is None

    async def main() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    spans.assert_cancelled("agen", times=1)


def test_task_dropped_while_its_async_generator_waits(spans: CapturedSpans) -> None:
    """Closed from a context that has nothing to do with it, it leaves that context alone."""

    @span("agen")
    async def work() -> AsyncIterator[int]:
        await Forever()
        yield 1

    class Forever:
        def __await__(self) -> Generator[None, None, None]:
            yield None

    async def consume() -> None:
        async for _ in work():
            pass

    coroutine = consume()
    contextvars.copy_context().run(coroutine.send, None)
    with span("caller"):
        coroutine.close()
        assert name_inside() == "caller"
    assert {task.name: task.outcome for task in spans.tasks} == {"agen": "abandoned", "caller": "completed"}


def test_async_generator_shared_by_two_tasks(spans: CapturedSpans) -> None:
    """Each task that resumes it sees its own span current afterwards."""

    async def main() -> None:
        generator = ticks(4)

        async def take() -> str | None:
            with span("taker"):
                await anext(generator)
                return name_inside()

        assert [await asyncio.create_task(take()) for _ in range(3)] == ["taker"] * 3
        await generator.aclose()
        assert name_inside() is None

    run(main)
    spans.assert_completed("taker", times=3)
    spans.assert_no_open_spans()


def test_async_context_manager_from_an_async_generator(spans: CapturedSpans) -> None:
    """contextlib.asynccontextmanager on top of a decorated async generator function."""

    @contextlib.asynccontextmanager
    @span("agen")
    async def managed() -> AsyncIterator[str | None]:
        yield name_inside()

    async def main() -> None:
        async with managed() as inside:
            assert inside == "agen"
            assert name_inside() is None

    run(main)
    spans.assert_completed("agen", times=1)


def test_nothing_is_kept_alive(spans: CapturedSpans) -> None:
    """A generator with an exception thrown in makes no reference cycle, with or without the decorator."""

    @span("gen")
    def work() -> Iterator[int]:
        with contextlib.suppress(KeyError):
            yield 1
        yield 2

    class Marked(KeyError):
        pass

    gc.collect()
    gc.disable()
    try:
        generator = work()
        next(generator)
        assert generator.throw(Marked()) == 2  # type: ignore[attr-defined]
        assert not [found for found in gc.get_objects() if isinstance(found, Marked)]
    finally:
        gc.enable()
