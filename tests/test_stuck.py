"""Where every task is stuck: what it waits for, since when, and the frames down to there; on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import anyio.lowlevel
import httpx
import pytest
import uvloop
from aiohttp import web

from asyncinspect_logging import Inspector, TaskState, install, instrument, span
from asyncinspect_logging.detect import chains, stuck, waits
from asyncinspect_logging.detect.tree import render, tree_of
from asyncinspect_logging.snapshot import Snapshot, TaskView

HERE = __file__.rpartition("/")[2]
Listen = Callable[..., Inspector]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on a fresh loop of each kind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


async def settle(inspector: Inspector, name: str, wanted: Callable[[TaskView], Any]) -> TaskView:
    """The view of the live span `name` once it is as wanted: some waits begin only when the kernel has answered."""
    for _ in range(300):
        for view in inspector.snapshot().tasks:
            if view.name == name and view.outcome is None and wanted(view):
                return view
        await asyncio.sleep(0.001)
    raise AssertionError([(view.name, view.waiting_on, view.await_chain) for view in inspector.snapshot().tasks])


@contextlib.asynccontextmanager
async def under_way(coro: Coroutine[Any, Any, Any], *, how: str = "instrument") -> Any:
    """A task of the coroutine in a span `job`, which is made in one of several ways, and cancelled at the end."""

    async def plain() -> None:
        with span("job"):
            await coro

    if how == "plain":
        task = asyncio.create_task(plain())
    else:
        with install() if how == "install" else contextlib.nullcontext():
            task = asyncio.create_task(instrument(coro, name="job"))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stuck_on(inspector: Inspector, coro: Coroutine[Any, Any, Any], pattern: str, **more: Any) -> TaskView:
    """The view of a task of the coroutine, once it waits for what the pattern matches in full."""
    async with under_way(coro, **more):
        return await settle(inspector, "job", lambda view: re.fullmatch(pattern, view.waiting_on or ""))


# -- kinds of waits --------------------------------------------------------------------------------------------------


class Named:
    """Gives a primitive of asyncio's a name."""

    def __new__(cls, primitive: Any, name: str) -> Any:
        primitive.name = name
        return primitive


async def _taken(lock: Any) -> Any:
    await lock.acquire()
    return lock


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def sleeping() -> None:
    await asyncio.sleep(50)


async def at_a_lock() -> None:
    lock = Named(asyncio.Lock(), "db")
    async with lock, lock:
        pass


async def at_a_semaphore() -> None:
    await Named(asyncio.Semaphore(0), "slots").acquire()


async def at_a_bounded_semaphore() -> None:
    await (await _taken(Named(asyncio.BoundedSemaphore(1), "slots"))).acquire()


async def at_an_event() -> None:
    await Named(asyncio.Event(), "go").wait()


async def at_a_condition() -> None:
    condition = Named(asyncio.Condition(), "full")
    async with condition:
        await condition.wait_for(lambda: False)


async def at_a_barrier() -> None:
    await Named(asyncio.Barrier(2), "start").wait()


async def at_an_empty_queue() -> None:
    await Named(asyncio.Queue(), "jobs").get()


async def at_a_full_queue() -> None:
    queue: Any = Named(asyncio.PriorityQueue(1), "jobs")
    await queue.put(1)
    await queue.put(2)


async def at_unfinished_work() -> None:
    queue: Any = Named(asyncio.Queue(), "jobs")
    queue.put_nowait(1)
    await queue.join()


async def at_a_future() -> None:
    await asyncio.get_running_loop().create_future()


async def at_a_task() -> None:
    await asyncio.create_task(forever())


async def gathering() -> None:
    await asyncio.gather(asyncio.sleep(0), forever(), forever())


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())
        group.create_task(forever())


async def waiting_for_any() -> None:
    tasks = [asyncio.create_task(forever()) for _ in range(2)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def as_they_complete() -> None:
    for first in asyncio.as_completed([forever(), forever()]):
        await first


async def with_wait_for() -> None:
    event = Named(asyncio.Event(), "go")
    await asyncio.wait_for(event.wait(), 50)


async def with_timeout() -> None:
    async with asyncio.timeout(500), asyncio.timeout(50):
        await Named(asyncio.Event(), "go").wait()


async def shielded() -> None:
    task = asyncio.create_task(forever())
    try:
        await asyncio.shield(task)
    finally:
        task.cancel()


async def with_anyio() -> None:
    lock = anyio.Lock()

    async def holder() -> None:
        async with lock:
            await anyio.sleep(50)

    async with anyio.create_task_group() as group:
        group.start_soon(holder)
        await anyio.lowlevel.checkpoint()
        async with lock:
            pass


async def in_anyio_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 50)


@pytest.mark.parametrize(
    ("work", "waiting_on"),
    [
        (sleeping, r"sleep 0\.\d s of 50"),
        (at_a_lock, "lock:db"),
        (at_a_semaphore, "semaphore:slots"),
        (at_a_bounded_semaphore, "semaphore:slots"),
        (at_an_event, "event:go"),
        (at_a_condition, "condition:full"),
        (at_a_barrier, "barrier:start"),
        (at_an_empty_queue, "queue:jobs get"),
        (at_a_full_queue, "queue:jobs put"),
        (at_unfinished_work, "queue:jobs join"),
        (at_a_future, "future"),
        (at_a_task, "task:forever"),
        (gathering, r"gather of 3 \(1 done\)"),
        (in_a_group, "taskgroup, 2 tasks left"),
        (waiting_for_any, r"wait of 2 \(0 done\)"),
        (as_they_complete, r"as_completed(, 2 left)?"),
        (with_wait_for, r"event:go, timeout in (50\.0|49\.\d) s"),
        (with_timeout, r"event:go, timeout in (50\.0|49\.\d) s"),
        (shielded, "task:forever, shielded"),
        (with_anyio, r"lock:[0-9a-f]{6} held by with_anyio\.<locals>\.holder"),
        (in_anyio_group, "taskgroup, 1 task left"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("how", ["plain", "instrument", "install"])
def test_what_is_waited_for(listen: Listen, run: Run, how: str, work: Callable[[], Any], waiting_on: str) -> None:
    """Each kind of wait is told by its own words, whoever made the span."""
    view = run(stuck_on(listen(), work(), waiting_on, how=how))
    assert view.state is TaskState.BLOCKED
    assert any(f"{HERE}:" in text and text.endswith(f" {work.__name__}") for text in view.await_chain)


def test_a_primitive_without_a_name_is_told_apart_by_its_identity(listen: Listen, run: Run) -> None:
    """Two tasks at one lock say the same, and one at another lock says something else."""

    async def main() -> None:
        locks = [asyncio.Lock(), asyncio.Lock()]
        for lock in locks:
            await lock.acquire()
        inspector = listen()

        async def job(lock: asyncio.Lock) -> None:
            with span("job"):
                await lock.acquire()

        tasks = [asyncio.create_task(job(lock)) for lock in (*locks, locks[0])]
        await asyncio.sleep(0)
        first, second, third = (view.waiting_on for view in inspector.snapshot().tasks)
        assert first == third != second
        assert re.fullmatch("lock:[0-9a-f]{6}", first or "")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main())


def test_the_holder_is_named_where_it_is_known(listen: Listen, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps track of locks is asked, if it is loaded at all."""

    class Sync:
        name_of = staticmethod(lambda primitive: "db")
        holders_of = staticmethod(lambda primitive: ["checkout", "refund"])

    monkeypatch.setitem(sys.modules, "asyncinspect_logging.detect.sync", Sync)

    async def work() -> None:
        async with asyncio.timeout(50):
            await (await _taken(asyncio.Lock())).acquire()

    view = run(stuck_on(listen(), work(), r"lock:db held by checkout, refund, timeout in \d+\.\d s"))
    assert view.waiting_on


def test_sockets_and_streams_name_the_other_end(listen: Listen, run: Run) -> None:
    """By address and port, for plain socket calls and for streams."""

    async def main() -> None:
        inspector = listen()
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            server.setblocking(False)
            peer = f"127.0.0.1:{port}"
            await stuck_on(inspector, loop.sock_accept(server), "socket accept")
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.setblocking(False)
                await stuck_on(inspector, loop.sock_recv(sock, 9), f"socket recv {peer}")
                await stuck_on(inspector, loop.sock_sendall(sock, b"x" * 50_000_000), f"socket send {peer}")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await stuck_on(inspector, reader.readline(), f"socket recv {peer}")
            writer.write(b"x" * 50_000_000)
            await stuck_on(inspector, writer.drain(), f"stream drain {peer}")
            writer.transport.abort()

    run(main())


def test_executors(listen: Listen, run: Run) -> None:
    """A call in a thread, in each of the ways to make one, and one that has not got a thread yet."""
    go = threading.Event()

    async def main() -> None:
        inspector = listen()
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        try:
            with ThreadPoolExecutor(1) as pool:
                await asyncio.gather(
                    stuck_on(inspector, asyncio.to_thread(go.wait, 10), "thread pool"),
                    stuck_on(inspector, anyio.to_thread.run_sync(go.wait, 10, abandon_on_cancel=True), "thread pool"),
                )

                async def first() -> None:
                    await loop.run_in_executor(pool, go.wait, 10)

                async with under_way(first()):
                    await settle(inspector, "job", lambda view: view.waiting_on == "thread pool")

                    async def second() -> None:
                        with span("second"):
                            await loop.run_in_executor(pool, int)

                    task = asyncio.create_task(second())
                    await settle(inspector, "second", lambda view: view.waiting_on == "thread pool, queued")
                    go.set()
                    await task
        finally:
            go.set()

    run(main())


def test_subprocesses(listen: Listen, run: Run) -> None:
    """A process by its pid, waited for or talked to."""

    async def main() -> None:
        inspector = listen()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            await stuck_on(inspector, process.wait(), f"subprocess {process.pid}")
            assert process.stdout is not None
            await stuck_on(inspector, process.stdout.read(1), "(pipe|stream) recv")
        finally:
            await process.communicate(b"\n")

    run(main())


@contextlib.asynccontextmanager
async def silent_server() -> Any:
    """A web server that does not answer under /wait, and sends half of an answer under /half; yields its address."""

    async def wait(request: web.Request) -> web.StreamResponse:
        if request.path == "/half":
            response = web.StreamResponse()
            response.content_length = 10
            await response.prepare(request)
            await response.write(b"12345")
            await go.wait()
            return response
        await go.wait()
        return web.Response()

    go = asyncio.Event()
    app = web.Application()
    app.router.add_get("/{which}", wait)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        go.set()
        await runner.cleanup()


@pytest.mark.parametrize("client_of", ["aiohttp", "httpx"])
def test_requests_in_flight(listen: Listen, run: Run, client_of: str) -> None:
    """By method, host and path; what may be a secret is left out."""

    async def main() -> None:
        inspector = listen()
        async with silent_server() as address:
            client: Any = aiohttp.ClientSession() if client_of == "aiohttp" else httpx.AsyncClient()
            async with client:

                async def get(path: str) -> None:
                    url = f"http://me:hunter2@{address}/{path}?token=hunter3"
                    if client_of == "aiohttp":
                        async with client.get(url) as response:
                            await response.text()
                    else:
                        await client.get(url)

                view = await stuck_on(inspector, get("wait"), f"http GET {address}/wait.*", how="plain")
                assert "hunter" not in repr(view)
                body = " body" if client_of == "aiohttp" else ".*"
                await stuck_on(inspector, get("half"), f"http GET {address}/half{body}")

    run(main())


def test_a_lock_inside_a_library_is_the_application_s_again(listen: Listen, run: Run) -> None:
    """What the application waits for in a hook of a client is told as that, and not as the request."""

    class Auth(httpx.Auth):
        async def async_auth_flow(self, request: httpx.Request) -> Any:
            await Named(asyncio.Event(), "token").wait()
            yield request

    async def get() -> None:
        async with httpx.AsyncClient() as client:
            await client.get("http://127.0.0.1:1/", auth=Auth())

    run(stuck_on(listen(), get(), "event:token"))


# -- chains ----------------------------------------------------------------------------------------------------------


def names_of(view: TaskView) -> list[str]:
    return [text.rpartition(" ")[2].rpartition(".")[2] for text in view.await_chain]


class ByMethod:
    """Is awaited by an iterator of C's own, of a coroutine."""

    def __await__(self) -> Any:
        return forever().__await__()


class ByGenerator:
    def __await__(self) -> Any:
        yield from forever().__await__()


class ByIterator:
    """Is awaited by an iterator of the application's own."""

    def __init__(self) -> None:
        self.steps = forever()

    def __await__(self) -> ByIterator:
        return self

    def __iter__(self) -> ByIterator:
        return self

    def __next__(self) -> Any:
        return self.steps.send(None)

    def send(self, value: Any) -> Any:
        return self.steps.send(value)

    def throw(self, error: BaseException) -> Any:
        return self.steps.throw(error)

    def close(self) -> None:
        self.steps.close()


async def items() -> Any:
    await forever()
    yield 1


async def more_items() -> Any:
    async for item in items():
        yield item


async def over_items() -> None:
    async for _ in more_items():
        pass


async def next_item() -> None:
    await anext(items(), None)


async def thrown_in() -> None:
    async def catching() -> Any:
        try:
            yield 1
        except ValueError:
            await forever()

    generator = catching()
    await anext(generator)
    await generator.athrow(ValueError())


async def in_generators_of_coroutines() -> None:
    import types

    @types.coroutine
    def inner() -> Any:
        yield from forever()

    @types.coroutine
    def outer() -> Any:
        return (yield from inner())

    await outer()


@span("decorated")
async def decorated() -> None:
    await instrument(forever(), name="inner")


@pytest.mark.parametrize(
    ("awaited", "names"),
    [
        (ByMethod, ["forever"]),
        (ByGenerator, ["__await__", "forever"]),
        (ByIterator, ["forever"]),
        (over_items, ["over_items", "more_items", "items", "forever"]),
        (next_item, ["next_item", "items", "forever"]),
        (thrown_in, ["thrown_in", "catching", "forever"]),
        (in_generators_of_coroutines, ["in_generators_of_coroutines", "outer", "inner", "forever"]),
        (decorated, ["decorated", "forever"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("how", ["plain", "instrument", "install"])
def test_the_chain_leads_through_everything_that_can_be_awaited(
    listen: Listen, run: Run, how: str, awaited: Callable[[], Any], names: list[str]
) -> None:
    """Down to the innermost frame, without a frame of ours."""

    async def work() -> None:
        await awaited()

    view = run(stuck_on(listen(), work(), "future", how=how))
    assert names_of(view) == [*(["plain"] if how == "plain" else []), "work", *names]
    line = forever.__code__.co_firstlineno + 1
    assert f"{HERE}:{line} " in view.await_chain[-1]


def test_each_span_has_the_part_of_the_chain_inside_it(listen: Listen, run: Run) -> None:
    """A driver's begins at its own coroutine, whatever is around it; a plain span has its task's."""

    async def main() -> None:
        inspector = listen()

        async def inner() -> None:
            with span("plain"):
                await forever()

        async def outer() -> None:
            await instrument(inner(), name="driven")

        task = asyncio.create_task(outer())
        await asyncio.sleep(0)
        driven, plain = inspector.snapshot().tasks
        assert (driven.name, names_of(driven)) == ("driven", ["inner", "forever"])
        assert (plain.name, names_of(plain)) == ("plain", ["inner", "forever"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_a_driver_inside_somebody_s_wrapper_is_found(listen: Listen, run: Run) -> None:
    """A task factory that wraps what it is given hides the driver from the task."""

    async def main() -> None:
        inspector = listen()
        loop = asyncio.get_running_loop()

        async def wrapped(coro: Any) -> None:
            await coro

        loop.set_task_factory(lambda loop, coro, **more: asyncio.Task(wrapped(coro), loop=loop, **more))
        async with under_way(forever(), how="install"):
            view = await settle(inspector, "job", lambda view: view.waiting_on == "future")
            assert names_of(view) == ["forever"]

    run(main())


def test_files_of_packages_are_shown_with_their_folder(listen: Listen, run: Run) -> None:
    """`tasks.py` alone would be anybody's."""
    view = run(stuck_on(listen(), sleeping(), "sleep .*"))
    assert re.fullmatch(r"asyncio/tasks\.py:\d+ sleep", view.await_chain[-1])


def test_a_task_that_runs_has_its_stack(listen: Listen, run: Run) -> None:
    """It waits for nothing, and the chain goes on through plain functions."""

    async def main() -> Snapshot:
        inspector = listen()

        def deep() -> Snapshot:
            return inspector.snapshot()

        async def inner() -> Snapshot:
            await asyncio.sleep(0)
            return deep()

        return await instrument(inner(), name="job")

    (view,) = run(main()).tasks
    assert (view.state, view.waiting_on, view.waiting_since) == (TaskState.RUNNING, None, None)
    assert names_of(view) == ["inner", "deep"]


def test_a_task_not_yet_begun_waits_for_nothing(listen: Listen, run: Run) -> None:
    """Its chain is its own first line."""

    async def main() -> None:
        inspector = listen()
        with install():
            task = asyncio.create_task(forever())
        (view,) = inspector.snapshot().tasks
        assert (view.state, view.waiting_on, names_of(view)) == (TaskState.PENDING, None, ["forever"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_a_span_in_a_thread_has_its_stack(listen: Listen) -> None:
    """Outside tasks, what the thread runs, without the frames of the standard library."""
    inspector = listen()
    inside, go = threading.Event(), threading.Event()

    def waits_in_thread() -> None:
        with span("job"):
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=waits_in_thread)
    thread.start()
    inside.wait(10)
    (view,) = inspector.snapshot().tasks
    go.set()
    thread.join()
    assert view.waiting_on is None
    assert names_of(view) == ["waits_in_thread"]


def test_tasks_of_other_threads_loops_are_found(listen: Listen) -> None:
    """A snapshot taken outside any loop sees where the tasks of every loop are."""
    inspector = listen()
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def main() -> None:
        ready.set()
        await instrument(sleeping(), name="job")

    def serve() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    task = loop.create_task(main())
    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait(10)
    for _ in range(1_000_000):
        view = next(iter(inspector.snapshot().tasks), None)
        if view is not None and view.waiting_on:
            break
    loop.call_soon_threadsafe(task.cancel)
    thread.join()
    loop.close()
    assert view is not None
    assert re.fullmatch(r"sleep 0\.\d s of 50", view.waiting_on or "")


# -- since when ------------------------------------------------------------------------------------------------------


def test_since_when(listen: Listen, run: Run, clock: Any) -> None:
    """Since the end of the last step, where anybody sees the steps; else, where the wait itself says so."""

    async def main() -> None:
        inspector = listen(clock=clock)
        ended = (clock.t + clock.offset) / 1e9

        async def work(name: str) -> None:
            with span(name):
                await forever()

        async def asleep() -> None:
            with span("asleep"):
                await asyncio.sleep(50)

        tasks = [asyncio.create_task(instrument(work("inner"))), asyncio.create_task(work("plain"))]
        tasks.append(asyncio.create_task(asleep()))
        await asyncio.sleep(0)
        clock.t += 5_000_000_000
        snapshot = inspector.snapshot()
        since = {view.name.rpartition(".")[2]: view.waiting_since for view in snapshot.tasks}
        assert since.pop("work") == since.pop("inner") == ended
        if sys.version_info >= (3, 12):
            assert since == {"plain": ended, "asleep": ended}
        else:
            assert since == {"plain": None, "asleep": pytest.approx(ended + 5, abs=4)}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(view.waiting_on is None and not view.await_chain for view in inspector.snapshot().tasks)

    run(main())


def test_told_spans_wait_for_what_the_log_says(tell: Any) -> None:
    """From the last suspend to the next resume, in whatever order the records come."""
    inspector = Inspector()
    inspector.apply(tell("enter"))
    suspend = tell("suspend", on="lock:db")
    inspector.apply(suspend)
    inspector.apply(tell("wake"))
    (view,) = inspector.snapshot().tasks
    assert (view.waiting_on, view.waiting_since) == ("lock:db", suspend["wall"] / 1e9)
    overtaken = tell("suspend", on="sleep")
    inspector.apply(tell("resume"))
    inspector.apply(overtaken)
    (view,) = inspector.snapshot().tasks
    assert (view.state, view.waiting_on, view.waiting_since) == (TaskState.RUNNING, None, None)


@pytest.mark.parametrize(
    ("work", "on"),
    [
        (sleeping, "sleep"),
        (at_a_lock, "lock:db"),
        (at_a_full_queue, "queue:jobs put"),
        (at_a_task, "task:forever"),
        (gathering, "gather"),
        (in_a_group, "taskgroup"),
        (with_timeout, "event:go"),
        (at_a_future, "future"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_suspend_records_say_what_for(listen: Listen, run: Run, work: Callable[[], Any], on: str) -> None:
    """In the words of the protocol, without numbers, so that a log can be searched and counted by them."""
    import logging

    told: list[dict[str, Any]] = []

    class Keeps(logging.Handler):
        accepts_spans = True

        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.asyncinspect)  # type: ignore[attr-defined]

    logger = logging.getLogger("asyncinspect")
    logger.setLevel(5)
    logger.addHandler(Keeps())

    async def main() -> None:
        inspector = listen()
        async with under_way(work()):
            await settle(inspector, "job", lambda view: view.waiting_on)

    run(main())
    suspends = [payload for payload in told if payload["kind"] == "suspend"]
    assert suspends[-1]["on"] == on or any(payload["on"] == on for payload in suspends)
    assert all(re.search(r":\d+$", payload["at"]) for payload in suspends)


# -- the tree ----------------------------------------------------------------------------------------------------------


def test_the_tree_has_who_made_whom_and_who_waits_for_whom(listen: Listen, run: Run) -> None:
    """Spawn edges by nesting, await edges by ids, with fields, what for, and since when."""

    async def main() -> None:
        inspector = listen()

        async def fetch(user: int) -> None:
            with span("fetch", user=user):
                await forever()

        async def work() -> None:
            await asyncio.gather(fetch(7), asyncio.create_task(fetch(8)))

        with install():
            async with under_way(work(), how="install"):
                await settle(inspector, "job", lambda view: view.waiting_on == "gather of 2 (0 done)")
                for name in ("job", "fetch"):
                    # Both calls of it are under way then, since they began in the order of the tasks.
                    await settle(inspector, name, lambda view: view.waiting_on)
                await asyncio.sleep(0)
                snapshot = inspector.snapshot()
        (root,) = tree_of(snapshot)
        assert root.task.name == "job"
        assert [child.task.name.rpartition(".")[2] for child in root.children] == ["fetch", "fetch"]
        assert sorted(root.task.awaiting) == sorted(child.task.id for child in root.children)
        (leaf,) = root.children[0].children
        assert dict(leaf.task.fields) in ({"user": 7}, {"user": 8})
        lines = render(snapshot).splitlines()
        assert len(lines) == 5
        assert re.match(r"job \[[0-9a-f]{16}\] blocked \d+\.\d s on gather of 2 \(0 done\)", lines[0])
        assert all(child.task.id in lines[0] for child in root.children)
        assert re.match(r"│   └── fetch user=\d \[[0-9a-f]{16}\] blocked \d+\.\d s on future", lines[2])
        assert re.search(rf" at (tests/)?{HERE}:\d+ forever$", lines[2])

    run(main())


def test_a_deep_tree_and_one_that_bites_its_tail(tell: Any) -> None:
    """Depth costs no stack, a parent that is not live makes a root, and a log that says nonsense ends."""
    inspector = Inspector()
    ids = [f"{tell.base + number:016x}" for number in range(1, 3001)]
    for number, parent in zip(range(1, 3001), [None, *ids], strict=False):
        inspector.apply(tell("enter", number, parent=parent) if parent else tell("enter", number))
    assert len(render(inspector.snapshot()).splitlines()) == 3000
    inspector = Inspector()
    inspector.apply(tell("enter", 4001, parent=f"{tell.base + 4002:016x}"))
    inspector.apply(tell("enter", 4002, parent=f"{tell.base + 4001:016x}"))
    inspector.apply(tell("enter", 4003, parent=f"{tell.base + 9999:016x}"))
    assert {node.task.id for node in tree_of(inspector.snapshot())} >= {f"{tell.base + 4003:016x}"}
    assert len(render(inspector.snapshot()).splitlines()) == 3
    assert render(Inspector().snapshot()) == "no live tasks\n"


# -- what it costs, and what it leaves alone --------------------------------------------------------------------------


def test_a_scrape_does_not_look(listen: Listen, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does anything else but a full snapshot."""
    looks = []
    monkeypatch.setattr(stuck, "walk", lambda thing: looks.append(thing) or chains.walk(thing))

    async def main() -> None:
        inspector = listen()
        async with under_way(forever(), how="install"):
            await asyncio.sleep(0)
            inspector.snapshot(tasks=False)
            inspector.look()
            assert not looks
            inspector.snapshot()
            assert len(looks) == 1

    run(main())


def test_spans_of_one_task_are_looked_at_once(listen: Listen, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten spans in one task wait for the same."""
    looks = []
    monkeypatch.setattr(stuck, "walk", lambda thing: looks.append(thing) or chains.walk(thing))

    async def main() -> None:
        inspector = listen()

        async def work() -> None:
            with contextlib.ExitStack() as stack:
                for _ in range(10):
                    stack.enter_context(span("inner"))
                await forever()

        async with under_way(work()):
            await asyncio.sleep(0)
            assert {view.waiting_on for view in inspector.snapshot().tasks} == {"future"}
        assert len(looks) == 1

    run(main())


def test_looking_runs_and_keeps_nothing_of_the_application_s(listen: Listen, run: Run) -> None:
    """No property, repr or attribute hook of the application's is called, and nothing lives longer for being seen."""
    asked: list[str] = []

    class Nosy:
        @property
        def __class__(self) -> type:
            asked.append("__class__")
            return int

        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return object.__getattribute__(self, name)

        def __repr__(self) -> str:
            asked.append("repr")
            return "nosy"

        def __await__(self) -> Any:
            return forever().__await__()

    class Lock(asyncio.Lock):
        @property
        def name(self) -> str:
            asked.append("name")
            return "db"

        def __repr__(self) -> str:
            asked.append("repr")
            return "lock"

    async def main() -> None:
        inspector = listen()
        lock = Lock()
        await lock.acquire()

        async def at_lock() -> None:
            nosy = Nosy()
            kept = locals()
            await lock.acquire()
            assert kept["nosy"] is nosy

        async with under_way(Nosy(), how="plain"), under_way(at_lock()) as task:  # type: ignore[arg-type]
            await asyncio.sleep(0)
            asked.clear()
            first, second = inspector.snapshot().tasks
            assert asked == []
            assert first.waiting_on == "future"
            assert re.fullmatch("lock:[0-9a-f]{6}", second.waiting_on or "")
            lock.release()
            await task

    run(main())


def test_nothing_is_kept_alive(listen: Listen, run: Run) -> None:
    """What a snapshot has seen goes when its task lets go of it."""
    import weakref

    class Result:
        pass

    async def main() -> None:
        inspector = listen()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        gone: list[weakref.ref[Any]] = []

        async def work() -> None:
            nonlocal future
            await future
            gone.append(weakref.ref(future))
            del future
            await asyncio.Event().wait()

        async with under_way(work()):
            await asyncio.sleep(0)
            snapshots = [inspector.snapshot()]
            result = Result()
            gone.append(weakref.ref(result))
            future.set_result(result)
            del result
            for _ in range(3):
                await asyncio.sleep(0)
                snapshots.append(inspector.snapshot())
            assert [ref() for ref in gone] == [None, None]
            assert snapshots[-1].tasks[0].waiting_on

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_whatever_goes_wrong_is_left_unsaid(listen: Listen, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot is there, without it."""

    async def main() -> None:
        inspector = listen()
        async with under_way(sleeping()):
            await asyncio.sleep(0)

            def broken(*arguments: Any) -> Any:
                raise RuntimeError("broken")

            monkeypatch.setitem(waits._RULES, ("asyncio.tasks", "sleep"), waits._Rule(broken))
            (view,) = inspector.snapshot().tasks
            assert view.waiting_on == "future"
            monkeypatch.setattr(stuck, "walk", broken)
            (view,) = inspector.snapshot().tasks
            assert (view.waiting_on, view.await_chain) == (None, ())

    run(main())


def test_a_chain_that_changes_under_the_look_is_looked_at_again(
    listen: Listen, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told is of one moment: not half of one wait and half of the next."""

    async def main() -> None:
        inspector = listen()
        real, waiters = stuck.future_of, [object()]
        looks: list[Any] = []
        # As if another thread had gone on with the task between the two questions.
        monkeypatch.setattr(stuck, "future_of", lambda task: waiters.pop() if waiters else real(task))
        monkeypatch.setattr(stuck, "walk", lambda thing: looks.append(thing) or chains.walk(thing))
        async with under_way(forever()):
            await asyncio.sleep(0)
            (view,) = inspector.snapshot().tasks
            assert view.waiting_on == "future"
            assert len(looks) == 2
            monkeypatch.setattr(stuck, "future_of", lambda task: object())
            (view,) = inspector.snapshot().tasks
            assert (view.waiting_on, view.await_chain) == (None, ())

    run(main())


def test_snapshots_while_tasks_are_busy_in_another_thread(listen: Listen) -> None:
    """Hundreds of looks at tasks that go on: every answer is one that can be true, and the tasks end well."""
    inspector = listen()
    ended = threading.Event()
    results: list[int] = []

    async def worker(lock: asyncio.Lock, queue: asyncio.Queue[int]) -> int:
        total = 0
        for number in range(300):
            async with lock:
                await asyncio.sleep(0)
            await queue.put(number)
            total += await queue.get()
        return total

    async def main() -> None:
        lock, queue = asyncio.Lock(), asyncio.Queue[int](5)
        with install():
            results.extend(await asyncio.gather(*(worker(lock, queue) for _ in range(5))))

    def serve() -> None:
        try:
            asyncio.run(main())
        finally:
            ended.set()

    thread = threading.Thread(target=serve)
    thread.start()
    seen = set()
    while not ended.is_set():
        for view in inspector.snapshot().tasks:
            seen.add(re.sub(":[0-9a-f]{6}", "", view.waiting_on or "none"))
    thread.join()
    assert sum(results) == 5 * sum(range(300))
    assert seen <= {"none", "lock", "sleep", "queue get", "queue put", "future"}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks(listen: Listen, run: Run) -> None:
    """They are tasks like any other once they wait."""

    async def plain() -> None:
        with span("job"):
            await at_an_event()

    async def main() -> None:
        inspector = listen()
        for coro in (plain(), instrument(at_an_event(), name="job")):
            task: Any = asyncio.Task(coro, loop=asyncio.get_running_loop(), eager_start=True)  # type: ignore[call-arg]
            (view,) = (view for view in inspector.snapshot().tasks if view.outcome is None)
            assert view.waiting_on == "event:go"
            assert names_of(view)[-2:] == ["at_an_event", "wait"]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_a_foreign_loop_s_clock_is_not_asked(listen: Listen) -> None:
    """A loop with a clock of its own is the application's: what is left to wait is not said."""

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            assert not looking
            return super().time()

    looking: list[bool] = []

    async def main() -> None:
        inspector = listen()

        async def both() -> None:
            async with asyncio.timeout(50):
                await asyncio.sleep(40)

        async with under_way(both()):
            await asyncio.sleep(0)
            looking.append(True)
            (view,) = inspector.snapshot().tasks
            looking.clear()
            assert view.waiting_on == "sleep"

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
