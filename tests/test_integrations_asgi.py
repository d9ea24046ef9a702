"""The ASGI middleware: names by route, outcomes, fields and steps, in FastAPI, Starlette and Litestar, and under a real
uvicorn with clients that really go away.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import uvicorn
import websockets.asyncio.client as ws_client
from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import BaseRoute, Host, Match, Mount, Route, Router, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from asyncinspect_logging import Inspector, current_span, install, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.integrations.asgi import AsyncInspectMiddleware
from asyncinspect_logging.opened import open_of

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _nothing_left() -> Any:
    yield
    assert open_of == {}


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), 20))


def ask(app: Any, *requests: tuple[str, str], headers: dict[str, str] | None = None, **options: Any) -> list[int]:
    """The statuses of requests to an application in this process."""

    async def main() -> list[int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, **options)
        async with httpx.AsyncClient(transport=transport, base_url="http://test.local") as client:
            return [(await client.request(method, url, headers=headers)).status_code for method, url in requests]

    found: list[int] = run(main)
    return found


@contextlib.asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    """A real server in this loop: its port, and itself."""
    options = {"ws": "websockets-sansio", **options}
    config = uvicorn.Config(app, log_config=None, log_level="critical", **options)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1], server
    finally:
        server.should_exit = True
        await serving


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop go on until it is so. The test's own timeout ends what never is."""
    while not condition():  # noqa: ASYNC110 - of any kind
        await asyncio.sleep(0)


async def start_request(port: int, path: str, headers: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode())
    await writer.drain()
    return reader, writer


def one(inspector: Inspector, name: str | None = None) -> Any:
    (found,) = [task for task in inspector.snapshot().tasks if name in (None, task.name)]
    return found


def names(inspector: Inspector) -> list[str]:
    """Of the spans that are over, in the order of their beginning."""
    return [task.name for task in sorted(inspector.snapshot().tasks, key=lambda task: task.id)]


async def ok(request: Any) -> PlainTextResponse:
    return PlainTextResponse("ok")


def fastapi_app() -> FastAPI:
    app = FastAPI()
    users = APIRouter(prefix="/users")

    @users.get("/{user_id}")
    async def user(user_id: int) -> int:
        return user_id

    version = APIRouter(prefix="/v1")
    version.include_router(users)
    app.include_router(version, prefix="/api")

    @app.get("/files/{path:path}")
    def file(path: str) -> str:
        return path

    @app.get("/slash/")
    def slash() -> str:
        return ""

    inner = FastAPI()

    @inner.post("/deep/{thing}")
    async def deep(thing: str) -> str:
        return thing

    app.mount("/sub/{tenant}", inner)
    return app


def starlette_app() -> Starlette:
    users = Router([Route("/users/{user_id:int}", ok), Route("/slash/", ok)])
    inner = Starlette(routes=[Route("/deep/{thing}", ok, methods=["POST"])])
    return Starlette(
        routes=[
            Mount("/api/v1", app=users),
            Route("/files/{path:path}", ok),
            Route("/slash/", ok),
            Mount("/sub/{tenant}", app=inner),
        ]
    )


EXPECTED = [
    ("GET", "/api/v1/users/7", 200, "GET /api/v1/users/{user_id}"),
    ("GET", "/api/v1/users/8?x=1", 200, "GET /api/v1/users/{user_id}"),
    ("DELETE", "/api/v1/users/8", 405, "DELETE /api/v1/users/{user_id}"),
    ("BREW", "/api/v1/users/8", 405, "HTTP /api/v1/users/{user_id}"),
    ("GET", "/files/a/b/c.txt", 200, "GET /files/{path}"),
    ("GET", "/slash/", 200, "GET /slash/"),
    ("GET", "/slash", 307, "GET /slash/"),
    ("POST", "/sub/acme/deep/9", 200, "POST /sub/{tenant}/deep/{thing}"),
    ("GET", "/sub/acme/none/9", 404, "HTTP unmatched"),
    ("GET", "/nowhere/1", 404, "HTTP unmatched"),
    ("GET", "/nowhere/2", 404, "HTTP unmatched"),
]


@pytest.mark.parametrize("inside", [True, False], ids=["add_middleware", "wrapped"])
@pytest.mark.parametrize("make", [fastapi_app, starlette_app])
def test_names_are_route_templates(make: Any, inside: bool, listen: Any) -> None:
    """With mounts, included routers, wrong methods, paths of no route, and redirected slashes: never a raw path."""
    inspector = listen()
    app: Any = make()
    if inside:
        app.add_middleware(AsyncInspectMiddleware)
    else:
        app = AsyncInspectMiddleware(app)
    statuses = ask(app, *((method, path) for method, path, _, _ in EXPECTED))
    assert list(zip(statuses, names(inspector), strict=True)) == [(status, name) for _, _, status, name in EXPECTED]
    first = one(inspector, "GET /files/{path}")
    assert dict(first.fields) == {
        "otel.kind": "server",
        "http.request.method": "GET",
        "http.route": "/files/{path}",
        "http.response.status_code": 200,
    }
    other = one(inspector, "HTTP /api/v1/users/{user_id}")
    assert (other.fields["http.request.method"], other.fields["http.request.method_original"]) == ("_OTHER", "BREW")


def test_names_in_litestar(listen: Any) -> None:
    """As one of Litestar's middlewares, which come after its routing, and around the application. A method that the
    route does not have is for no route, to Litestar.
    """
    litestar = pytest.importorskip("litestar")
    inspector = listen()

    @litestar.get("/users/{user_id:int}", sync_to_thread=False)
    def user() -> int:
        return 7

    @litestar.asgi("/mounted", is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok")(scope, receive, send)

    @litestar.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError

    router = litestar.Router("/api", route_handlers=[user, mounted])
    requests = [("GET", "/api/users/7"), ("GET", "/api/mounted/x/y"), ("GET", "/none"), ("POST", "/api/users/7")]
    make = functools.partial(litestar.Litestar, [router, fails], openapi_config=None, logging_config=None)
    expected = ["GET /api/users/{user_id}", "GET /api/mounted/{path}", "HTTP unmatched", "HTTP unmatched"]
    assert ask(AsyncInspectMiddleware(make()), *requests) == [200, 200, 404, 405]
    assert names(inspector) == expected
    inspector.reset()
    # Litestar runs its middlewares for requests that have a route.
    assert ask(make(middleware=[AsyncInspectMiddleware]), *requests, ("GET", "/fails")) == [200, 200, 404, 405, 500]
    assert names(inspector) == [*expected[:2], "GET /fails"]
    assert one(inspector, "GET /fails").outcome == "failed"


def test_names_in_parts_of_an_application(listen: Any) -> None:
    """A middleware of a mounted application, a router or a route knows the whole template, and one is enough."""
    inspector = listen()
    inner = Starlette(routes=[Route("/deep/{thing}", ok)])
    inner.add_middleware(AsyncInspectMiddleware)
    app = Starlette(
        routes=[Mount("/sub/{tenant}", app=inner), Route("/x/{y}", ok, middleware=[_middleware()]), Route("/z", ok)]
    )
    assert ask(app, ("GET", "/sub/a/deep/b"), ("GET", "/x/1"), ("GET", "/z")) == [200, 200, 200]
    assert names(inspector) == ["GET /sub/{tenant}/deep/{thing}", "GET /x/{y}"]
    inspector.reset()
    ask(AsyncInspectMiddleware(app), ("GET", "/sub/a/deep/b"), ("GET", "/x/1"), ("GET", "/z"))
    assert names(inspector) == ["GET /sub/{tenant}/deep/{thing}", "GET /x/{y}", "GET /z"]


def _middleware() -> Any:
    from starlette.middleware import Middleware

    return Middleware(AsyncInspectMiddleware)


def test_names_behind_a_proxy(listen: Any) -> None:
    """A root path, of the server or of FastAPI, is no part of the template."""
    inspector = listen()
    app = FastAPI()
    app.root_path = "/behind"
    app.add_route("/users/{user_id}", ok)
    ask(AsyncInspectMiddleware(app), ("GET", "/users/1"), ("GET", "/behind/users/1"))
    ask(AsyncInspectMiddleware(starlette_app()), ("GET", "/proxied/files/1"), root_path="/proxied")
    assert names(inspector) == ["GET /users/{user_id}"] * 2 + ["GET /files/{path}"]


def test_routes_of_other_kinds(listen: Any) -> None:
    """Hosts, mounted applications without routes, routes of the application's own, and routes that are added later."""
    inspector = listen()

    class AnyCase(Route):
        def matches(self, scope: Any) -> Any:
            return super().matches({**scope, "path": scope["path"].lower()})

    class Broken(BaseRoute):
        def matches(self, scope: Any) -> Any:
            if scope["path"] == "/broken":
                raise RuntimeError("my route")
            return Match.NONE, {}

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok")(scope, receive, send)

    app = Starlette(
        routes=[
            Broken(),
            Host("{name}.example.org", app=Router([Route("/hosted/{x}", ok)])),
            Mount("/static", app=plain),
            AnyCase("/case/{x}", ok),
            Route("/report.{format}", ok),
        ]
    )
    wrapped = AsyncInspectMiddleware(app)
    statuses = ask(
        wrapped,
        ("GET", "http://a.example.org/hosted/1"),
        ("GET", "/static/a/b.css"),
        ("GET", "/CASE/1"),
        ("GET", "/report.pdf"),
        ("GET", "/late/1"),
    )
    assert statuses == [200, 200, 200, 200, 404]
    app.router.routes.append(Route("/late/{x}", ok))
    assert ask(wrapped, ("GET", "/late/1"), ("GET", "/broken")) == [200, 500]
    expected = ["/hosted/{x}", "/static/{path}", "/case/{x}", "/report.{format}", None, "/late/{x}", None]
    assert names(inspector) == [f"GET {path}" if path else "HTTP unmatched" for path in expected]


def test_many_routes_are_not_slower(listen: Any) -> None:
    """Only the routes that begin with the same word are asked."""
    listen()
    asked = []

    class Counted(Route):
        def matches(self, scope: Any) -> Any:
            asked.append(self.path)
            return super().matches(scope)

    Counted.matches.__module__ = "starlette.routing"
    app = Starlette(routes=[Counted(f"/r{n}/{{x}}", ok) for n in range(200)])
    middleware = AsyncInspectMiddleware(app)
    ask(middleware, ("GET", "/r199/1"))
    assert asked.count("/r199/{x}") == 2
    assert len(asked) == 201


def test_websocket_names_and_outcomes(listen: Any) -> None:
    """Closed by the rules, from either side, is completed; refused too, with its status; dropped is cancelled; an
    exception is failed.
    """
    inspector = listen()

    async def room(socket: WebSocket) -> None:
        await socket.accept()
        with span("inside"):
            while await socket.receive_text() != "stop":
                await socket.send_text("more")
        await socket.close()

    async def refuses(socket: WebSocket) -> None:
        await socket.close()

    async def fails(socket: WebSocket) -> None:
        await socket.accept()
        raise ValueError("mine")

    app = Starlette(
        routes=[WebSocketRoute("/ws/{room}", room), WebSocketRoute("/no", refuses), WebSocketRoute("/bad", fails)]
    )
    app.add_middleware(AsyncInspectMiddleware)

    async def main() -> None:
        async with served(app) as (port, server):
            url = f"ws://127.0.0.1:{port}"
            async with ws_client.connect(f"{url}/ws/a") as client:
                await client.send("x")
                assert await client.recv() == "more"
                await client.send("stop")
                await client.wait_closed()
            for code in (1000, 4001):
                # The second is one that the application has given a meaning.
                async with ws_client.connect(f"{url}/ws/b") as client:
                    await client.close(code)
            dropped = await ws_client.connect(f"{url}/ws/c")
            await until(lambda: len(inspector.snapshot().tasks) == 8)
            dropped.transport.abort()
            for path in ("/no", "/none"):
                with pytest.raises(Exception, match="403"):
                    await ws_client.connect(url + path)
            async with ws_client.connect(f"{url}/bad") as client:
                await client.wait_closed()
            await until(lambda: not server.server_state.tasks)

    run(main)
    tasks = [task for task in inspector.snapshot().tasks if task.name != "inside"]
    told = [(task.name, task.outcome, task.fields["http.response.status_code"]) for task in tasks]
    assert sorted(told) == [
        ("WS /bad", "failed", 101),
        ("WS /no", "completed", 403),
        ("WS /ws/{room}", "cancelled", 101),
        *[("WS /ws/{room}", "completed", 101)] * 3,
        ("WS unmatched", "completed", 403),
    ]
    assert {task.name: task.error for task in tasks if task.outcome == "failed"}["WS /bad"]["type"] == "ValueError"


@pytest.mark.filterwarnings("ignore")  # of the old interface of websockets, and of who uses it
@pytest.mark.parametrize("ws", ["websockets", "websockets-sansio", "wsproto"])
def test_websockets_that_are_only_sent_to(ws: str, listen: Any) -> None:
    """The application is told by a send that fails, and not how its client closed: the outcome goes by that code all
    the same, and who receives afterwards gets it, too.
    """
    if ws == "wsproto":
        pytest.importorskip("wsproto")
    inspector = listen()
    received: list[asyncio.Task[Any]] = []

    async def ticker(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0.001)
        except OSError:
            received.append(asyncio.create_task(receive()))
            raise

    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await socket.send_text("tick")
                await asyncio.sleep(0.001)

    app = Starlette(routes=[WebSocketRoute("/tick", endpoint)])
    app.add_middleware(AsyncInspectMiddleware)
    outcomes: dict[Any, str] = {}

    async def main() -> None:
        for kind in (app, AsyncInspectMiddleware(ticker)):
            async with served(kind, ws=ws) as (port, server):
                for code in (1000, 1001, 4001, 1011, None):
                    client = await ws_client.connect(f"ws://127.0.0.1:{port}/tick")
                    assert await client.recv() == "tick"
                    if code is None:
                        client.transport.abort()
                    else:
                        await client.close(code)
                    await until(lambda: not server.server_state.tasks)
                    outcomes[kind is app, code] = inspector.snapshot().tasks[-1].outcome
        codes = [(await one)["code"] for one in received]
        if ws != "websockets":  # which says 1005 of everything once the application is over
            assert codes == [1000, 1001, 4001, 1011, 1005]

    run(main)
    for through_starlette in (True, False):
        found = {code: outcome for (kind, code), outcome in outcomes.items() if kind is through_starlette}
        assert found == {1000: "completed", 1001: "completed", 4001: "completed", 1011: "cancelled", None: "cancelled"}


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("installed", [False, True], ids=["", "install"])
def test_streams_and_background_tasks(installed: bool, http: str, listen: Any) -> None:
    """The span lasts from the request until the last message of the body; what goes on afterwards is not in it."""
    if http == "httptools":
        pytest.importorskip("httptools")
    inspector = listen()
    seen: dict[str, Any] = {}
    app = FastAPI()

    @app.get("/stream/{n}")
    async def stream(n: int) -> StreamingResponse:
        go = seen["go"] = asyncio.Event()
        seen["request"] = current_span()

        async def body() -> AsyncIterator[str]:
            for part in range(n):
                yield f"{part} "
                await go.wait()

        async def after() -> None:
            seen["open in background"] = seen["request"].is_open
            with span("background"):
                await asyncio.sleep(0)
            seen["done"] = True

        return StreamingResponse(body(), background=BackgroundTask(after))

    app.add_middleware(AsyncInspectMiddleware)

    async def main() -> None:
        undo = install() if installed else contextlib.nullcontext()
        with undo:
            async with served(app, http=http) as (port, _), httpx.AsyncClient() as client:
                async with client.stream("GET", f"http://127.0.0.1:{port}/stream/3") as response:
                    chunks = response.aiter_text()
                    assert await anext(chunks) == "0 "
                    assert seen["request"].is_open
                    assert one(inspector, "GET /stream/{n}").fields["http.response.status_code"] == 200
                    seen["go"].set()
                    assert "".join([chunk async for chunk in chunks]) == "1 2 "
                await until(lambda: "done" in seen)

    run(main)
    request = one(inspector, "GET /stream/{n}")
    assert request.outcome == "completed"
    assert request.polls >= 1
    assert not seen["open in background"]
    assert one(inspector, "background").outcome == "completed"


def test_every_step_is_seen(listen: Any) -> None:
    """Polls, busy time and wakes of the request's coroutine, with BaseHTTPMiddleware's task group around it."""
    inspector = listen()

    class Around(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            response = await call_next(request)
            response.headers["x-around"] = "1"
            return response

    app = FastAPI()

    @app.get("/steps")
    async def steps() -> None:
        with span("inner"):
            for _ in range(5):
                await asyncio.sleep(0.001)

    app.add_middleware(AsyncInspectMiddleware)
    app.add_middleware(Around)
    assert ask(app, ("GET", "/steps")) == [200]
    request, inner = one(inspector, "GET /steps"), one(inspector, "inner")
    assert inner.parent_id == request.id
    assert inner.polls == 6
    assert request.polls >= 6
    assert request.wakes >= 5
    assert 0 < request.busy < request.duration
    assert request.outcome == "completed"


def test_with_base_http_middleware_inside(listen: Any) -> None:
    """Where the endpoint runs in another task than the middleware, spans in it are still the request's, and responses
    and exceptions are as without.
    """
    inspector = listen()

    class Inside(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            return await call_next(request)

    async def fails(request: Any) -> None:
        with span("inner"):
            raise KeyError("mine")

    app = Starlette(routes=[Route("/ok", ok), Route("/fails", fails)])
    app.add_middleware(Inside)
    app.add_middleware(AsyncInspectMiddleware)
    assert ask(app, ("GET", "/ok"), ("GET", "/fails")) == [200, 500]
    request = one(inspector, "GET /fails")
    assert (request.outcome, request.error["type"]) == ("failed", "KeyError")
    assert one(inspector, "inner").parent_id == request.id
    assert one(inspector, "GET /ok").outcome == "completed"


@pytest.mark.parametrize("inside", [True, False], ids=["add_middleware", "wrapped"])
def test_exceptions_and_statuses(inside: bool, listen: Any) -> None:
    """An exception is failed, and so is a 5xx; an answer of 4xx is completed. The exception is not changed."""
    inspector = listen()

    async def fails(request: Any) -> None:
        raise LookupError("mine")

    async def unavailable(request: Any) -> Any:
        return PlainTextResponse("", 503)

    async def missing(request: Any) -> None:
        raise HTTPException(404)

    app: Any = Starlette(
        routes=[Route("/fails", fails), Route("/unavailable", unavailable), Route("/missing", missing)]
    )
    if inside:
        app.add_middleware(AsyncInspectMiddleware)
    else:
        app = AsyncInspectMiddleware(app)
    assert ask(app, ("GET", "/fails"), ("GET", "/unavailable"), ("GET", "/missing")) == [500, 503, 404]
    told = [(one(inspector, f"GET /{name}")) for name in ("fails", "unavailable", "missing")]
    assert [task.outcome for task in told] == ["failed", "failed", "completed"]
    assert told[0].error == {"type": "LookupError", "message": "mine"}
    assert told[1].error["message"] == "503 Service Unavailable"
    assert told[1].error["type"].endswith(".ServerError")
    assert [task.fields.get("http.response.status_code") for task in told[1:]] == [503, 404]

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            with pytest.raises(LookupError, match="mine"):
                await client.get("/fails")

    run(main)


def test_applications_that_do_not_answer(listen: Any) -> None:
    """No response, or one without an end, is failed."""
    inspector = listen()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    middleware = AsyncInspectMiddleware(app, route=lambda scope: scope["path"])

    async def main() -> None:
        for path in ("/none", "/half"):
            await middleware(http_scope(path), _never, _ignore)

    run(main)
    assert [(task.name, task.outcome) for task in inspector.snapshot().tasks] == [
        ("GET /none", "failed"),
        ("GET /half", "failed"),
    ]


def test_scopes_and_messages_that_lack_something(listen: Any) -> None:
    """What the specification asks for and is not there is no trouble of ours."""
    inspector = listen()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start"})
        await send({"type": "http.response.body"})

    for options in ({}, {"metrics": "/metrics", "exclude": ["/x"]}):
        middleware = AsyncInspectMiddleware(app, **options)  # type: ignore[arg-type]
        asyncio.run(middleware({"type": "http"}, _never, _ignore))  # type: ignore[arg-type]
    assert [(task.name, task.outcome) for task in inspector.snapshot().tasks] == [("HTTP unmatched", "completed")] * 2


def http_scope(path: str = "/", **more: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", **more}


async def _never() -> Any:
    await asyncio.Event().wait()


async def _ignore(message: Any) -> None: ...


@pytest.mark.parametrize("installed", [False, True], ids=["", "install"])
@pytest.mark.parametrize("kind", ["streams", "waits", "reads", "asks"])
def test_client_disconnects(kind: str, installed: bool, listen: Any) -> None:
    """The socket is closed in the middle of a request: cancelled, whether the endpoint streams, is told, asks or goes
    on without knowing.
    """
    inspector = listen()
    entered, gone = asyncio.Event(), asyncio.Event()
    app = FastAPI()

    @app.api_route("/{what}", methods=["GET", "POST"])
    async def endpoint(what: str, request: Request) -> Any:
        if what == "streams":

            async def body() -> AsyncIterator[bytes]:
                yield b"first"
                entered.set()
                await asyncio.Event().wait()

            return StreamingResponse(body())
        entered.set()
        if what == "reads":
            return await request.body()
        if what == "asks":
            await until_async(request.is_disconnected)
        await gone.wait()
        return "too late"

    app.add_middleware(AsyncInspectMiddleware)

    async def main() -> None:
        with install() if installed else contextlib.nullcontext():
            async with served(app) as (port, server):
                # A body of which a part never comes, where it is read.
                headers = "Content-Length: 9\r\n" if kind == "reads" else ""
                _, writer = await start_request(port, f"/{kind}", headers)
                await entered.wait()
                writer.transport.abort()
                await until(lambda: not server.server_state.connections)
                gone.set()
                await until(lambda: not server.server_state.tasks)

    run(main)
    request = one(inspector, "GET /{what}")
    assert request.outcome == "cancelled"
    assert request.error["type"].endswith(".ClientDisconnected")


async def until_async(condition: Callable[[], Any]) -> None:
    while not await condition():  # noqa: ASYNC110 - of any kind
        await asyncio.sleep(0)


def test_under_hypercorn(listen: Any) -> None:
    """It puts into a queue that the client has gone, where we look, whether the application does or not; who is there
    until the end is not taken for gone, by HTTP/2 either, and what was sent is read.
    """
    hypercorn = pytest.importorskip("hypercorn.asyncio")
    from hypercorn.config import Config

    inspector = listen()
    entered, go = asyncio.Event(), asyncio.Event()

    async def waits(request: Any) -> PlainTextResponse:
        entered.set()
        await go.wait()
        return PlainTextResponse("too late")

    async def reads(request: Any) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    routes = [Route("/waits", waits), Route("/ok", ok), Route("/reads", reads, methods=["POST"])]
    app = Starlette(routes=routes)
    app.add_middleware(AsyncInspectMiddleware)
    config = Config()
    config.loglevel = "CRITICAL"

    async def main() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config.bind = [f"fd://{listening.detach()}"]
        stop = asyncio.Event()
        serving = asyncio.create_task(hypercorn.serve(app, config, shutdown_trigger=stop.wait))
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, http2=True, http1=False) as client:
            assert (await client.get("/ok")).http_version == "HTTP/2"
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.post("/reads", content=b"x" * 100_000)).text == "x" * 100_000
            request = asyncio.create_task(client.get("/waits"))
            await entered.wait()
            request.cancel()
            await asyncio.wait([request])
        async with httpx.AsyncClient(base_url=url) as client:
            await client.get("/ok")  # by which time the server has noticed
        go.set()
        await until(lambda: one(inspector, "GET /waits").outcome)
        stop.set()
        await serving

    run(main)
    assert [(task.name, task.outcome) for task in inspector.snapshot().tasks] == [
        ("GET /ok", "completed"),
        ("POST /reads", "completed"),
        ("GET /ok", "completed"),
        ("GET /waits", "cancelled"),
    ]


def test_what_was_looked_at_is_received(listen: Any) -> None:
    """What waits in the server's queue when the response is complete is still there for the application to read."""
    inspector = listen()
    queue: asyncio.Queue[Any] = asyncio.Queue()
    sent = [{"type": "http.request", "body": b"%d" % n, "more_body": n < 2} for n in range(3)]
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})
        seen.extend([await receive() for _ in range(4)])

    async def main() -> None:
        for message in sent:
            queue.put_nowait(message)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                queue.put_nowait({"type": "http.disconnect"})

        await AsyncInspectMiddleware(app)(http_scope(), queue.get, send)

    run(main)
    assert seen == [*sent, {"type": "http.disconnect"}]
    assert one(inspector).outcome == "completed"


def test_client_disconnects_by_oserror(listen: Any) -> None:
    """A server of version 2.4 of the specification raises OSError from `send`."""
    inspector = listen()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("gone")

    async def body() -> AsyncIterator[str]:
        yield "x"

    async def stream(request: Any) -> StreamingResponse:
        return StreamingResponse(body())

    app = AsyncInspectMiddleware(Starlette(routes=[Route("/", stream)]))

    async def main() -> None:
        with contextlib.suppress(Exception):
            await app(http_scope(asgi={"spec_version": "2.4"}), _never, send)

    run(main)
    assert one(inspector, "GET /").outcome == "cancelled"


def test_cancelled_requests(listen: Any) -> None:
    """A request that is cancelled from outside, as by a timeout, is cancelled, and the cancellation passes."""
    inspector = listen()

    async def endpoint(request: Any) -> None:
        await asyncio.Event().wait()

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(AsyncInspectMiddleware)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await app(http_scope(), _never, _ignore)
        assert current_span() is None

    run(main)
    assert one(inspector, "GET /").outcome == "cancelled"


def test_remote_parents(listen: Any) -> None:
    """A traceparent header makes the request a part of that trace, unless it is not one, or not wanted."""
    inspector = listen()
    app = starlette_app()
    ask(AsyncInspectMiddleware(app), ("GET", "/slash/"), headers={"traceparent": REMOTE})
    request = one(inspector)
    assert (request.trace_id, request.parent_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    inspector.reset()
    ask(AsyncInspectMiddleware(app, remote_parent=False), ("GET", "/slash/"), headers={"traceparent": REMOTE})
    assert one(inspector).parent_id is None
    inspector.reset()
    ask(AsyncInspectMiddleware(app), ("GET", "/slash/"), headers={"traceparent": "00-0-0-00"})
    assert one(inspector).parent_id is None


@pytest.mark.parametrize(
    ("states", "expected"),
    [([], ""), ([b"a=1"], "a=1"), ([b"a=1,b=2", b"c=3"], "a=1,b=2,c=3"), ([b"no"], ""), ([b"a=1"] * 40, "")],
)
def test_tracestate(states: list[bytes], expected: str, listen: Any) -> None:
    """What other tracers add goes on with the trace, from any number of headers; what is malformed does not."""
    listen()
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with span("inner") as inner:
            seen.append((inner.traceparent()[3:35], inner.tracestate()))

    headers = [(b"tracestate", state) for state in states]
    middleware = AsyncInspectMiddleware(app)
    asyncio.run(middleware(http_scope(headers=[(b"traceparent", REMOTE.encode()), *headers]), _never, _ignore))
    assert seen == [(REMOTE[3:35], expected)]
    # Without a traceparent there is nothing that it goes with.
    asyncio.run(middleware(http_scope(headers=headers), _never, _ignore))
    assert seen[1][1] == ""


def test_opentelemetry_understands_it(listen: Any) -> None:
    """A request is a span of the kind "server", with or without a caller, and has the attributes of the semantic
    conventions.
    """
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind

    from asyncinspect_logging.exporters.opentelemetry import OtelExporter

    kept = InMemorySpanExporter()
    with OtelExporter("shop", listen(), span_exporter=kept) as exporter:
        app = AsyncInspectMiddleware(starlette_app())
        for headers in (None, {"traceparent": REMOTE}):
            ask(app, ("GET", "/files/a"), headers=headers)
        exporter.export_tasks()
    for exported in kept.get_finished_spans():
        assert (exported.name, exported.kind) == ("GET /files/{path}", SpanKind.SERVER)
        attributes = dict(exported.attributes or {})
        assert attributes["http.request.method"] == "GET"
        assert attributes["http.route"] == "/files/{path}"
        assert attributes["http.response.status_code"] == 200
        assert "otel.kind" not in attributes
    assert len(kept.get_finished_spans()) == 2


@pytest.mark.parametrize("remote", [False, True])
def test_parents_under_install(remote: bool, listen: Any) -> None:
    """Each request is a trace of its own, though `install` sees the server's tasks, unless a header says whose it is;
    an application's own span around it is its parent.
    """
    inspector = listen()
    app = starlette_app()
    inner = AsyncInspectMiddleware(app)

    async def edge(scope: Any, receive: Any, send: Any) -> None:
        with span("edge") if scope["path"] == "/slash/" else contextlib.nullcontext():
            await inner(scope, receive, send)

    async def main() -> None:
        with install():
            async with served(edge, lifespan="off") as (port, _), httpx.AsyncClient() as client:
                headers = {"traceparent": REMOTE} if remote else {}
                for path in ("/files/1", "/files/1", "/slash/"):
                    await client.get(f"http://127.0.0.1:{port}{path}", headers=headers)

    run(main)
    tasks = inspector.snapshot().tasks
    files = [task for task in tasks if task.name == "GET /files/{path}"]
    assert {task.parent_id for task in files} == ({"b7ad6b7169203331"} if remote else {None})
    assert len({task.trace_id for task in files}) == (1 if remote else 2)
    assert all(task.polls >= 1 and task.outcome == "completed" for task in files)
    inside = one(inspector, "GET /slash/")
    assert inside.parent_id == ("b7ad6b7169203331" if remote else one(inspector, "edge").id)


def test_metrics_in_the_same_application(listen: Any) -> None:
    """/metrics answers there, gives what has been counted, and is not counted."""
    inspector = listen()
    app = starlette_app()
    exporter = PrometheusExporter(inspector, update_interval=0)
    app.add_middleware(AsyncInspectMiddleware, metrics="/metrics", exporter=exporter)

    async def main() -> None:
        async with served(app) as (port, _), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await client.get("/files/x")
            for path in ("/metrics", "/metrics/"):
                page = await client.get(path)
                assert page.status_code == 200
                assert 'async_inspect_tasks_completed_total{name="GET /files/{path}"} 1.0' in page.text.splitlines()
                assert "/metrics" not in page.text
            assert (await client.post("/metrics")).status_code == 405

    run(main)


def test_excluded_paths(listen: Any) -> None:
    """No span, and everything else as ever."""
    inspector = listen()
    app = starlette_app()
    app.add_middleware(AsyncInspectMiddleware, exclude=["/slash/", "/files/*"])
    assert ask(app, ("GET", "/slash/"), ("GET", "/files/a"), ("GET", "/api/v1/users/1")) == [200, 200, 200]
    assert names(inspector) == ["GET /api/v1/users/{user_id}"]


def test_own_fields_and_routes(listen: Any) -> None:
    """`fields` and `route` are functions of the scope; one that raises is told of, and the request goes on."""
    inspector = listen()
    app = starlette_app()
    ask(
        AsyncInspectMiddleware(app, fields=lambda scope: {"url.path": scope["path"]}, route=lambda scope: "/mine"),
        ("GET", "/files/a"),
    )
    assert names(inspector) == ["GET /mine"]
    assert one(inspector).fields["url.path"] == "/files/a"
    inspector.reset()
    assert ask(AsyncInspectMiddleware(app, route=lambda scope: scope["no such key"]), ("GET", "/files/a")) == [200]
    assert names(inspector) == ["HTTP unmatched"]


def test_lifespan_passes_through(listen: Any) -> None:
    """Its messages and its state reach the application, and it has no span."""
    inspector = listen()
    seen = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, int]]:
        seen.append("up")
        yield {"n": 7}
        seen.append("down")

    async def endpoint(request: Any) -> PlainTextResponse:
        return PlainTextResponse(str(request.state.n))

    app = AsyncInspectMiddleware(Starlette(routes=[Route("/", endpoint)], lifespan=lifespan))

    async def main() -> None:
        async with served(app, lifespan="on") as (port, _), httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/")).text == "7"

    run(main)
    assert seen == ["up", "down"]
    assert names(inspector) == ["GET /"]


def test_without_a_listener() -> None:
    """Nothing is looked at where nobody listens."""
    app = AsyncInspectMiddleware(starlette_app(), route=lambda scope: pytest.fail("asked"))
    assert ask(app, ("GET", "/files/a")) == [200]


def test_many_at_once(listen: Any) -> None:
    """Concurrent requests over real connections: each is counted once, with its own status and trace."""
    inspector = listen()
    app = fastapi_app()
    app.add_middleware(AsyncInspectMiddleware)

    async def main() -> None:
        async with served(app) as (port, _):
            client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None)
            paths = ["/api/v1/users/1", "/nowhere", "/api/v1/users/x"] * 40
            async with client:
                await asyncio.gather(*(client.get(path) for path in paths))

    run(main)
    snapshot = inspector.snapshot()
    counts = {name: (view.completed, view.failed, view.cancelled) for name, view in snapshot.names.items()}
    assert counts == {"GET /api/v1/users/{user_id}": (80, 0, 0), "HTTP unmatched": (40, 0, 0)}
    assert len({task.trace_id for task in snapshot.tasks}) == 120
    statuses = [task.fields["http.response.status_code"] for task in snapshot.tasks]
    assert [statuses.count(status) for status in (200, 404, 422)] == [40, 40, 40]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"exclude": ["health"]}, "exclude='health' is no path; write for example exclude="),
        ({"exclude": [7]}, "exclude=7 is no path"),
        ({"metrics": "metrics"}, "metrics='metrics' is no path to serve the metrics at"),
        ({"metrics": "/"}, "metrics='/' is no path"),
        ({"metrics": "/metrics", "exporter": 7}, "exporter=7 has no metrics page"),
        ({"exporter": 7}, "exporter=7 has no path to be served at"),
        ({"route": "/x"}, "route='/x' cannot be called"),
        ({"fields": {}}, "fields={} cannot be called"),
    ],
)
def test_bad_options(options: dict[str, Any], told: str) -> None:
    """Each error names the option, its value and the fix."""
    with pytest.raises(ConfigError) as error:
        AsyncInspectMiddleware(starlette_app(), **options)
    assert str(error.value).startswith(told)


def test_no_application() -> None:
    """What is no application is told when it is wrapped, not at the first request."""
    with pytest.raises(ConfigError, match=r"app=None is no ASGI application"):
        AsyncInspectMiddleware(None)  # type: ignore[arg-type]


def test_paths_of_an_attack(listen: Any) -> None:
    """Thousands of paths, hosts, methods and headers make no more names than there are routes."""
    inspector = listen()
    app = fastapi_app()
    app.add_middleware(AsyncInspectMiddleware)

    async def main() -> None:
        for number in range(300):
            for path in (f"/{number}/x", f"/api/v1/users/{number}x", f"//{number}", f"/files/%2e%2e/{number}"):
                scope = http_scope(path, method=f"M{number}" if number % 2 else "GET", raw_path=path.encode())
                scope["headers"] = [(b"host", b"h%d" % number), (b"traceparent", b"%d" % number)]
                await app(scope, _never, _ignore)

    run(main)
    assert set(inspector.snapshot().names) == {
        "HTTP unmatched",
        "GET /api/v1/users/{user_id}",
        "HTTP /api/v1/users/{user_id}",
        "GET /files/{path}",
        "HTTP /files/{path}",
    }


def test_once_a_request(listen: Any) -> None:
    """A middleware that is there twice, and in an application that is mounted twice, makes one span."""
    inspector = listen()
    inner = FastAPI()
    inner.add_api_route("/in/{x}", lambda x: x)
    inner.add_middleware(AsyncInspectMiddleware)
    app = FastAPI()
    app.mount("/one", inner)
    app.mount("/two", inner)
    app.add_middleware(AsyncInspectMiddleware)
    app.add_middleware(AsyncInspectMiddleware)
    assert ask(AsyncInspectMiddleware(app), ("GET", "/one/in/1"), ("GET", "/two/in/1")) == [200, 200]
    assert names(inspector) == ["GET /one/in/{x}", "GET /two/in/{x}"]


def test_requests_on_one_connection_share_nothing(listen: Any) -> None:
    """What one request leaves in context variables, a span that is open among it, is not seen by the next."""
    inspector = listen()
    kept: contextvars.ContextVar[str] = contextvars.ContextVar("kept", default="nothing")
    seen = []

    async def endpoint(request: Any) -> PlainTextResponse:
        around = current_span()
        assert around is not None
        seen.append((kept.get(), around.parent_id))
        kept.set(request.url.path)
        span("left open").__enter__()
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/{x}", endpoint)])
    app.add_middleware(AsyncInspectMiddleware)

    async def main() -> None:
        async with served(app) as (port, _), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for path in ("/1", "/2", "/3"):
                await client.get(path)

    run(main)
    assert seen == [("nothing", None)] * 3
    assert len({task.trace_id for task in inspector.snapshot().tasks}) == 3
    assert inspector.snapshot().names["GET /{x}"].completed == 3


def test_what_comes_after_the_response(listen: Any) -> None:
    """An exception of a background task is the application's, and no outcome of the request, which had its answer."""
    inspector = listen()

    async def fails() -> None:
        raise KeyError("mine")

    async def endpoint(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok", background=BackgroundTask(fails))

    app = AsyncInspectMiddleware(Starlette(routes=[Route("/", endpoint)]))

    async def main() -> None:
        with pytest.raises(KeyError, match="mine"):
            await app(http_scope(), _never, _ignore)

    run(main)
    assert one(inspector).outcome == "completed"


def test_an_application_that_does_not_start(listen: Any) -> None:
    """The failure of its lifespan is the server's to know, as without a middleware, and has no span."""
    inspector = listen()

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    app = Starlette(lifespan=lifespan)
    app.add_middleware(AsyncInspectMiddleware)
    sent = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="no database"):
            await app({"type": "lifespan", "asgi": {}, "state": {}}, receive, send)

    run(main)
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert not inspector.snapshot().tasks


def test_the_page_of_metrics(listen: Any) -> None:
    """HEAD, compression, a middleware that asks who is there, and a root path, as of any other page."""
    inspector = listen()
    app = starlette_app()
    app.add_middleware(AsyncInspectMiddleware, metrics="/metrics", exporter=PrometheusExporter(inspector))

    class Guard:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            known = (b"authorization", b"secret") in scope["headers"]
            await (self.app if known else PlainTextResponse("", 401))(scope, receive, send)

    app.add_middleware(Guard)

    async def main() -> None:
        transport = httpx.ASGITransport(app, root_path="/behind")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/behind/metrics")).status_code == 401
            client.headers["authorization"] = "secret"
            page = await client.get("/behind/metrics")
            assert page.headers["content-encoding"] == "gzip"
            assert page.text.startswith("# HELP")
            head = await client.head("/behind/metrics")
            assert (head.status_code, head.content) == (200, b"")

    run(main)
    assert not inspector.snapshot().tasks
