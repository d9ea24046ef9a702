"""The middleware for aiohttp's server, under a real one, with clients that really go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from asyncinspect_logging import Inspector, current_span, install, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.integrations.aiohttp import asyncinspect_middleware
from asyncinspect_logging.opened import open_of

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _nothing_left() -> Any:
    yield
    assert open_of == {}


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), 20))


@contextlib.asynccontextmanager
async def served(app: web.Application, **options: Any) -> AsyncIterator[tuple[str, Any]]:
    """A real server in this loop: its URL, and itself."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", runner.server
    finally:
        await runner.cleanup()


def ask(app: web.Application, *requests: tuple[str, str], headers: dict[str, str] | None = None) -> list[int]:
    async def main() -> list[int]:
        async with served(app) as (url, _), aiohttp.ClientSession() as session:
            statuses = []
            for method, path in requests:
                async with session.request(method, url + path, headers=headers) as response:
                    statuses.append(response.status)
            return statuses

    found: list[int] = run(main)
    return found


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - of any kind
        await asyncio.sleep(0)


def one(inspector: Inspector, name: str | None = None) -> Any:
    (found,) = [task for task in inspector.snapshot().tasks if name in (None, task.name)]
    return found


def names(inspector: Inspector) -> list[str]:
    return [task.name for task in sorted(inspector.snapshot().tasks, key=lambda task: task.id)]


async def ok(request: web.Request) -> web.Response:
    return web.Response(text="ok")


def application(*routes: Any, **options: Any) -> web.Application:
    app = web.Application(middlewares=[asyncinspect_middleware(**options)])
    app.add_routes(routes)
    return app


def test_names_are_route_templates(tmp_path: Any, listen: Any) -> None:
    """With sub-applications, patterns and static files; what no route is for, and a wrong method, has one name."""
    inspector = listen()
    (tmp_path / "a.txt").write_text("a")
    sub = web.Application()
    sub.add_routes([web.get("/deep/{thing}", ok)])
    app = application(
        web.get("/users/{user_id:\\d+}", ok), web.route("*", "/any/{x}", ok), web.static("/static", tmp_path)
    )
    app.add_subapp("/sub", sub)
    requests = [
        ("GET", "/users/7"),
        ("HEAD", "/users/7?x=1"),
        ("PURGE", "/any/1"),
        ("GET", "/static/a.txt"),
        ("GET", "/sub/deep/1"),
        ("GET", "/sub/none"),
        ("POST", "/users/7"),
        ("GET", "/none/1"),
    ]
    assert ask(app, *requests) == [200, 200, 200, 200, 200, 404, 405, 404]
    expected = [
        "GET /users/{user_id}",
        "HEAD /users/{user_id}",
        "HTTP /any/{x}",
        "GET /static",
        "GET /sub/deep/{thing}",
    ]
    assert names(inspector) == [*expected, *["HTTP unmatched"] * 3]
    assert dict(one(inspector, "GET /users/{user_id}").fields) == {
        "otel.kind": "server",
        "http.request.method": "GET",
        "http.route": "/users/{user_id}",
        "http.response.status_code": 200,
    }
    assert one(inspector, "HTTP /any/{x}").fields["http.request.method_original"] == "PURGE"
    assert {task.outcome for task in inspector.snapshot().tasks} == {"completed"}


def test_outcomes(listen: Any) -> None:
    """An exception, and a 5xx that is raised or returned, is failed; other answers are completed."""
    inspector = listen()

    async def handler(request: web.Request) -> Any:
        match request.match_info["what"]:
            case "fails":
                raise LookupError("mine")
            case "unavailable":
                return web.Response(status=503)
            case "raises503":
                raise web.HTTPServiceUnavailable
            case "redirects":
                raise web.HTTPFound("/elsewhere")
            case "missing":
                raise web.HTTPNotFound

    app = application(web.get("/{what}", handler))
    kinds = ["fails", "unavailable", "raises503", "redirects", "missing"]

    async def main() -> list[int]:
        async with served(app) as (url, _), aiohttp.ClientSession() as session:
            return [(await session.get(f"{url}/{kind}", allow_redirects=False)).status for kind in kinds]

    assert run(main) == [500, 503, 503, 302, 404]
    tasks = sorted(inspector.snapshot().tasks, key=lambda task: task.id)
    assert [task.outcome for task in tasks] == ["failed", "failed", "failed", "completed", "completed"]
    assert [task.fields.get("http.response.status_code") for task in tasks] == [None, 503, 503, 302, 404]
    assert tasks[0].error == {"type": "LookupError", "message": "mine"}
    assert tasks[1].error["message"] == tasks[2].error["message"] == "503 Service Unavailable"


@pytest.mark.parametrize("installed", [False, True], ids=["", "install"])
def test_streams(installed: bool, listen: Any) -> None:
    """The span lasts as long as the handler writes, and sees its steps."""
    inspector = listen()
    seen: dict[str, Any] = {}

    async def stream(request: web.Request) -> web.StreamResponse:
        seen["span"], go = current_span(), asyncio.Event()
        seen["go"] = go
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first ")
        await go.wait()
        await response.write(b"second")
        await response.write_eof()
        return response

    async def main() -> None:
        with install() if installed else contextlib.nullcontext():
            app = application(web.get("/stream/{x}", stream))
            async with served(app) as (url, _), aiohttp.ClientSession(url) as session:
                response = await session.get("/stream/1")
                assert await response.content.readany() == b"first "
                assert seen["span"].is_open
                seen["go"].set()
                assert await response.content.read() == b"second"
                await until(lambda: not seen["span"].is_open)

    run(main)
    task = one(inspector, "GET /stream/{x}")
    assert (task.outcome, task.fields["http.response.status_code"]) == ("completed", 200)
    assert task.polls >= 2
    assert task.wakes >= 1
    assert 0 < task.busy < task.duration


@pytest.mark.parametrize("installed", [False, True], ids=["", "install"])
@pytest.mark.parametrize("cancels", [False, True], ids=["", "handler_cancellation"])
@pytest.mark.parametrize("kind", ["waits", "streams"])
def test_client_disconnects(kind: str, cancels: bool, installed: bool, listen: Any) -> None:
    """The socket is closed in the middle: cancelled, whether aiohttp cancels the handler or lets it go on."""
    inspector = listen()
    entered, gone = asyncio.Event(), asyncio.Event()
    seen: dict[str, web.Request] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if kind == "streams":
            await response.prepare(request)
            await response.write(b"x")
        seen["request"] = request
        entered.set()
        await gone.wait()
        if kind == "streams":
            await response.write(b"too late")
        return response

    async def main() -> None:
        with install() if installed else contextlib.nullcontext():
            app = application(web.get("/{what}", handler))
            async with served(app, handler_cancellation=cancels) as (url, _):
                _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
                writer.write(b"GET /x HTTP/1.1\r\nHost: test\r\n\r\n")
                await entered.wait()
                writer.transport.abort()
                await until(lambda: seen["request"].transport is None)
                if not cancels:
                    gone.set()
                await until(lambda: one(inspector, "GET /{what}").outcome)

    run(main)
    assert one(inspector, "GET /{what}").outcome == "cancelled"


def test_websockets(listen: Any) -> None:
    """Closed by either side is completed, dropped is cancelled, an exception is failed."""
    inspector = listen()

    async def room(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            match message.data:
                case "stop":
                    await socket.close()
                case "fail":
                    raise ValueError("mine")
                case _:
                    await socket.send_str("more")
        return socket

    async def main() -> None:
        app = application(web.get("/ws/{room}", room))
        async with served(app) as (url, server), aiohttp.ClientSession(url) as session:
            for last in ("stop", "fail", None, 4001, "drop"):
                async with session.ws_connect("/ws/a") as socket:
                    await socket.send_str("x")
                    assert await socket.receive_str() == "more"
                    if last == "drop":
                        socket._response.connection.transport.abort()
                    elif last == 4001:
                        await socket.close(code=4001)
                    elif last:
                        await socket.send_str(last)
                        await socket.receive()
            await until(lambda: not server.connections)

    run(main)
    tasks = sorted(inspector.snapshot().tasks, key=lambda task: task.id)
    assert {task.name for task in tasks} == {"WS /ws/{room}"}
    assert [task.outcome for task in tasks] == ["completed", "failed", "completed", "completed", "cancelled"]
    assert tasks[0].fields["http.response.status_code"] == 101


def test_parents(listen: Any) -> None:
    """A traceparent header makes the request a part of that trace, and spans in the handler are its children; the
    tracestate goes on with it.
    """
    inspector = listen()

    async def handler(request: web.Request) -> web.Response:
        with span("inner") as inner:
            states.append(inner.tracestate())
            return web.Response()

    states: list[str] = []
    headers = {"traceparent": REMOTE, "tracestate": "a=1"}
    for options in ({}, {"remote_parent": False}):
        ask(application(web.get("/", handler), **options), ("GET", "/"), headers=headers)
        request = one(inspector, "GET /")
        assert one(inspector, "inner").parent_id == request.id
        assert request.parent_id == (None if options else "b7ad6b7169203331")
        inspector.reset()
    assert states == ["a=1", ""]


def test_metrics_and_excluded_paths(listen: Any) -> None:
    """/metrics answers in the same application and is not counted, and neither is what is excluded."""
    inspector = listen()
    exporter = PrometheusExporter(inspector, update_interval=0)
    app = application(web.get("/{x}", ok), metrics="/metrics", exporter=exporter, exclude=["/health*"])

    async def main() -> None:
        async with served(app) as (url, _), aiohttp.ClientSession(url) as session:
            for path in ("/healthz", "/a"):
                assert (await session.get(path)).status == 200
            async with session.get("/metrics") as page:
                text = await page.text()
                assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                assert page.headers["Content-Encoding"] == "gzip"
            assert 'async_inspect_tasks_total{name="GET /{x}"} 1.0' in text.splitlines()
            assert (await session.post("/metrics")).status == 405

    run(main)
    assert names(inspector) == ["GET /{x}"]


def test_once_a_request(listen: Any) -> None:
    """A sub-application that has the middleware too does not make a second span; own fields are the request's."""
    inspector = listen()
    sub = application(web.get("/{x}", ok))
    app = application(fields=lambda request: {"url.path": request.path})
    app.add_subapp("/sub", sub)
    assert ask(app, ("GET", "/sub/1")) == [200]
    assert names(inspector) == ["GET /sub/{x}"]
    assert one(inspector).fields["url.path"] == "/sub/1"
    assert ask(application(web.get("/{x}", ok), fields=lambda request: request["no"]), ("GET", "/1")) == [200]


def test_bad_options() -> None:
    """Each error names the option, its value and the fix."""
    for options in ({"exclude": ["health"]}, {"metrics": "m"}, {"exporter": 7}, {"fields": {}}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            asyncinspect_middleware(**options)  # type: ignore[arg-type]
