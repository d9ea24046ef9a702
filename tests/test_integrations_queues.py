"""Workers: arq on a real Redis, Celery on its filesystem broker, with one trace from the sender to the job."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging import Inspector, instrument, span
from asyncinspect_logging.integrations.queues import job, trace_headers

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def one(inspector: Inspector, name: str) -> Any:
    (found,) = [task for task in inspector.snapshot().tasks if task.name == name]
    return found


def test_jobs_continue_the_trace(listen: Any) -> None:
    """Sync and async, by a keyword argument that the function gets only where it asks for it."""
    inspector = listen()

    @job(name="add", fields={"queue": "default"})
    async def add(ctx: Any, x: int, parent: int = 0) -> int:
        await asyncio.sleep(0)
        return x + parent

    @job
    def takes(traceparent: str | None = None, **more: Any) -> Any:
        return traceparent, more

    assert asyncio.run(add({}, 3, parent=4, traceparent=REMOTE)) == 7
    assert takes(traceparent=REMOTE, logger=1) == (REMOTE, {"logger": 1})
    found = one(inspector, "add")
    assert (found.parent_id, found.polls) == ("b7ad6b7169203331", 2)
    assert dict(found.fields) == {"otel.kind": "consumer", "x": 3, "parent": 4, "queue": "default"}
    assert one(inspector, takes.__wrapped__.__qualname__).trace_id == "0af7651916cd43dd8448eb211c80319c"

    assert asyncio.run(add({}, 3, traceparent=REMOTE, tracestate="a=1")) == 3
    with span("caller", parent={"traceparent": REMOTE, "tracestate": "a=1"}) as caller:
        assert trace_headers() == {"traceparent": caller.traceparent(), "tracestate": "a=1"}
    with span("sends") as sender:
        assert trace_headers({"a": 1}) == {"a": 1, "traceparent": sender.traceparent()}
        assert asyncio.run(add({}, 1)) == 1
    assert inspector.snapshot().tasks[-2].parent_id == sender.id
    assert trace_headers() == {}


def test_outcomes_and_exceptions(listen: Any) -> None:
    """As of any span; the exception is the same one."""
    inspector = listen()
    mine = ValueError("mine")

    @job(name="fails")
    async def fails() -> None:
        raise mine

    @job(name="sync")
    def sync() -> None:
        raise mine

    for call in (lambda: asyncio.run(fails()), sync):
        with pytest.raises(ValueError, match="mine") as raised:
            call()
        assert raised.value is mine
    assert [task.outcome for task in inspector.snapshot().tasks] == ["failed", "failed"]


def test_bad_jobs() -> None:
    """What is no function is told of when it is decorated."""
    for bad in (7, type("C", (), {})):
        with pytest.raises(TypeError, match="@job is for functions"):
            job(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"@job is for functions, not for 'send'; write @job\(name='send'\)"):
        job("send")  # type: ignore[type-var]


def test_bad_options_of_jobs() -> None:
    """Those that `instrument` refuses; a function need not take arq's context."""

    def work(body: int) -> int:
        return body

    with pytest.raises(TypeError, match=r"skip='boddy': .*work has no parameter of that name; it has body"):
        job(skip={"boddy"})(work)
    with pytest.raises(TypeError, match=r"fields=3 is no mapping; write @job"):
        job(fields=3)  # type: ignore[call-overload]
    assert job(work)(1) == job(skip="body")(work)(1) == 1


@pytest.fixture(scope="session")
def redis() -> Iterator[int]:
    """A real Redis on a free port of the loopback."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                if "Ready to accept connections" in line:
                    break
            yield port
        finally:
            server.terminate()
            server.stdout.read()


@pytest.mark.real
# arq and redis-py call what is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arq_on_redis(redis: int, listen: Any) -> None:
    """`@job` and `@instrument` on functions of a real worker: each job once, with its outcome, the steps of its
    coroutine, and the sender's trace; a job that takes too long is cancelled.
    """
    pytest.importorskip("arq")
    import arq
    from arq.connections import RedisSettings
    from arq.worker import Worker, func

    inspector = listen()

    @job(name="add")
    async def add(ctx: Any, x: int, y: int) -> int:
        await asyncio.sleep(0.001)
        return x + y

    @instrument(name="fails", skip={"ctx"})
    async def fails(ctx: Any) -> None:
        raise LookupError("mine")

    @instrument(name="hangs", skip={"ctx"})
    async def hangs(ctx: Any) -> None:
        await asyncio.Event().wait()

    async def main() -> tuple[str, int]:
        pool = await arq.create_pool(RedisSettings(port=redis))
        with span("sends") as sender:
            sent = await pool.enqueue_job("add", 3, 4, **trace_headers())
        await pool.enqueue_job("fails")
        await pool.enqueue_job("hangs")
        functions = [func(add, name="add"), func(fails, name="fails"), func(hangs, name="hangs", timeout=0.05)]
        worker = Worker(functions, redis_pool=pool, burst=True, handle_signals=False, poll_delay=0.01, max_tries=1)
        await worker.async_run()
        assert sent is not None
        result = await sent.result(timeout=5)
        await worker.close()
        await pool.connection_pool.disconnect()
        return sender.id, result

    sender, result = asyncio.run(main())
    assert result == 7
    added = one(inspector, "add")
    assert (added.parent_id, added.outcome, dict(added.fields)) == (
        sender,
        "completed",
        {"otel.kind": "consumer", "x": 3, "y": 4},
    )
    assert added.polls == 2
    assert one(inspector, "fails").outcome == "failed"
    assert one(inspector, "hangs").outcome == "cancelled"


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arq_tries_again_aborts_and_runs_by_the_clock(redis: int, listen: Any) -> None:
    """Each attempt is a span, of which those that ask for another one failed; a job that is aborted is cancelled, and
    so is one that is still running when the worker is stopped; jobs of cron are counted.
    """
    pytest.importorskip("arq")
    import arq
    from arq.connections import RedisSettings
    from arq.worker import Retry, Worker, func

    inspector = listen()
    entered = {name: asyncio.Event() for name in ("aborted", "stopped", "hourly")}

    @job(name="again")
    async def again(ctx: Any) -> int:
        if ctx["job_try"] < 3:
            raise Retry(defer=0)
        return int(ctx["job_try"])

    @job(name="aborted")
    async def aborted(ctx: Any) -> None:
        entered["aborted"].set()
        await asyncio.Event().wait()

    @job(name="stopped")
    async def stopped(ctx: Any) -> None:
        entered["stopped"].set()
        await asyncio.Event().wait()

    @job(name="hourly")
    async def hourly(ctx: Any) -> None:
        entered["hourly"].set()

    async def main() -> int:
        pool = await arq.create_pool(RedisSettings(port=redis))
        worker = Worker(
            [func(again, name="again"), func(aborted, name="aborted"), func(stopped, name="stopped")],
            redis_pool=pool,
            cron_jobs=[arq.cron(hourly, minute=0, run_at_startup=True)],
            allow_abort_jobs=True,
            handle_signals=False,
            poll_delay=0.01,
        )
        working = asyncio.create_task(worker.async_run())
        sent = {name: await pool.enqueue_job(name) for name in ("again", "aborted", "stopped")}
        result: int = await sent["again"].result(timeout=10, poll_delay=0.01)
        for event in entered.values():
            await asyncio.wait_for(event.wait(), 10)
        assert await sent["aborted"].abort(timeout=10, poll_delay=0.01)
        await worker.close()
        await asyncio.wait([working])
        # What the worker did on its way out, after its own closing of connections, may have opened one again.
        await pool.connection_pool.disconnect()
        return result

    assert asyncio.run(main()) == 3
    told = [(task.name, task.outcome) for task in inspector.snapshot().tasks]
    assert sorted(told) == [
        ("aborted", "cancelled"),
        ("again", "completed"),
        ("again", "failed"),
        ("again", "failed"),
        ("hourly", "completed"),
        ("stopped", "cancelled"),
    ]


def test_celery_in_the_same_process(listen: Any) -> None:
    """Tasks that are run at once: each attempt is a span of the sender's trace, and a job that a task calls itself is a
    child of that task, not of the sender.
    """
    celery = pytest.importorskip("celery")
    inspector = listen()
    app = celery.Celery("jobs", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True

    @job(name="called")
    def called(x: int) -> int:
        return x

    @app.task(bind=True, max_retries=1)
    @job(name="tried", skip=("self",))
    def tried(self: Any, x: int) -> int:
        if not self.request.retries:
            raise self.retry(countdown=0)
        return called(x)

    headers = {"traceparent": REMOTE, "tracestate": "a=1"}
    assert tried.apply_async((7,), headers=headers).get() == 7
    first, inner, second = inspector.snapshot().tasks
    assert (first.outcome, first.error["type"]) == ("failed", "celery.exceptions.Retry")
    assert (second.outcome, inner.outcome) == ("completed", "completed")
    assert first.parent_id == second.parent_id == "b7ad6b7169203331"
    assert inner.parent_id == second.id


CELERY = """
    import json, logging, sys
    from celery import Celery
    from asyncinspect_logging import AsyncInspectHandler, Inspector, span
    from asyncinspect_logging.integrations.queues import job, trace_headers

    folder = sys.argv[1]
    app = Celery("jobs", broker="filesystem://", backend="cache+memory://")
    app.conf.broker_transport_options = {key: folder for key in ("data_folder_in", "data_folder_out")}
    app.conf.broker_transport_options["control_folder"] = folder
    app.conf.update(worker_hijack_root_logger=False, worker_redirect_stdouts=False)

    @app.task
    @job(name="add")
    def add(x, y):
        return x + y

    @app.task(bind=True)
    @span("fails")
    def fails(self):
        raise LookupError("mine")

    inspector = Inspector()
    logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler(inspector))
    with span("sends") as sender:
        add.apply_async((3, 4), headers=trace_headers())
    fails.delay()

    done = []
    from celery.signals import task_postrun
    @task_postrun.connect
    def stop(**kwargs):
        done.append(kwargs["task"].name)
        if len(done) == 2:
            from celery.worker import state
            state.should_stop = 0

    logging.getLogger("celery").setLevel("CRITICAL")
    try:
        app.Worker(pool="solo", loglevel="CRITICAL", without_gossip=True, without_mingle=True, quiet=True).start()
    except SystemExit:
        pass
    tasks = {task.name: task for task in inspector.snapshot().tasks}
    open(sys.argv[2], "w").write(json.dumps({
        "add": [tasks["add"].parent_id == sender.id, tasks["add"].trace_id == sender.trace_id, tasks["add"].outcome,
                dict(tasks["add"].fields)],
        "fails": [tasks["fails"].outcome, tasks["fails"].error["type"]],
    }))
"""


@pytest.mark.slow
def test_celery_on_files(tmp_path: Path) -> None:
    """A real Celery worker, on its filesystem broker: `@job` continues the sender's trace by the message's headers, and
    a plain `@span` counts the task.
    """
    pytest.importorskip("celery")
    program = tmp_path / "jobs.py"
    program.write_text(textwrap.dedent(CELERY))
    folder = tmp_path / "queue"
    folder.mkdir()
    told = tmp_path / "told.json"
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(told)], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert told.exists(), done.stderr
    assert json.loads(told.read_text()) == {
        "add": [True, True, "completed", {"otel.kind": "consumer", "x": 3, "y": 4}],
        "fails": ["failed", "LookupError"],
    }
