"""What a task waits for, in words: recognised by the library frames at the inner end of its chain, and by its future.

A table says which function of which module means what. Other people's frames are read here, possibly while another
thread goes on with them, so whatever is not as expected is left unsaid.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from asyncio import tasks
from collections.abc import Callable, Iterable
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from ..driven import DrivenSpan
from ..driver import Driver
from ..opened import open_of
from ..spans import Span
from ..stacks import is_ours
from ..wakes import driven_by_hand
from .chains import Chain, Link, enclosed, is_future, local, walk

__all__ = [
    "NOTHING",
    "Wait",
    "coroutine_of",
    "future_of",
    "is_task",
    "outermost_span_of",
    "seconds_left",
    "span_of_task",
    "wait_of",
]

#: Packages whose frames, at the inner end of a chain, belong to what is waited for.
_LIBRARIES: Final = frozenset(
    {"asyncio", "uvloop", "aiohttp", "aiohappyeyeballs", "httpx", "httpcore", "anyio", "sniffio", "trio", "contextlib"}
)
_MAX_PATH: Final = 80
#: No future is known, which is something else than that there is none.
NOTHING: Final = object()


class Wait(NamedTuple):
    """What is waited for. `on` alone goes into records; `more` is added in snapshots, as is who holds `primitive`."""

    on: str
    more: str = ""
    #: Seconds since it began, where that is known.
    ago: float | None = None
    primitive: Any = None
    #: The futures that are waited for, where they are known.
    futures: tuple[Any, ...] = ()
    #: A task that does the waiting in this one's place.
    follow: Any = None

    def text(self, left: float | None) -> str:
        """In full. `left`: seconds until a timeout ends the wait, or None."""
        text = self.on + self.more
        holders = _holders_of(self.primitive)
        if holders:
            text += f" held by {', '.join(holders)}"
        return text if left is None else f"{text}, timeout in {left:.1f} s"


def wait_of(chain: Chain, waiter: Any = NOTHING) -> Wait | None:
    """What the coroutine waits for, or None where that cannot be told.

    waiter: the future that its task waits for, None for a bare yield, NOTHING where no task is known.
    """
    best: Wait | None = None
    best_rank = -1
    for link in reversed(chain.links):
        if is_ours(link.frame):
            continue
        rule = _RULES.get(link.key)
        if rule is not None and rule.rank > best_rank:
            try:
                found = rule.read(link)
            except Exception:
                found = None
            if found is not None:
                best, best_rank = found, rule.rank
        if not _is_of_library(link):
            break
    if best is not None:
        return best
    future = chain.end if is_future(chain.end) else waiter
    if future is None:
        return Wait("sleep")
    return _of_future(future) if is_future(future) else None


def _is_of_library(link: Link) -> bool:
    return link.module.partition(".")[0] in _LIBRARIES or link.module.startswith("uvloop/")


# -- tasks and futures -----------------------------------------------------------------------------------------------


def coroutine_of(task: Any) -> Any:
    """What a task of asyncio's (or trio's) is made of, or None."""
    if issubclass(type(task), asyncio.Task):
        return asyncio.Task.get_coro(task)
    if issubclass(type(task), tasks._PyTask):  # type: ignore[attr-defined]
        return tasks._PyTask.get_coro(task)  # type: ignore[attr-defined]
    return task.coro if type(task).__module__.startswith("trio.") else None


def future_of(task: Any) -> Any:
    """The future that a task of asyncio's waits for, or None; NOTHING for a task of somebody else's."""
    return _get(task, "_fut_waiter") if is_future(task) else NOTHING


def span_of_task(task: Any) -> DrivenSpan | None:
    """The span of a driven task, or None."""
    coro = coroutine_of(task)
    return coro.span if type(coro) is Driver else driven_by_hand.get(id(task))


def outermost_span_of(task: Any) -> Span | None:
    """The open span, heard by somebody, of all that a task does, or of as much of it as somebody sees; or None."""
    span: Span | None = span_of_task(task) or open_of.get(id(task))
    while span is not None and span._below is not None:
        span = span._below
    return None if span is None or span.number <= 0 or span.outcome is not None else span


def is_task(thing: Any) -> bool:
    """Whether it is a task of asyncio's, as its type says."""
    return issubclass(type(thing), asyncio.Task | tasks._PyTask)  # type: ignore[attr-defined]


def _get(future: Any, name: str) -> Any:
    """A future's own attribute."""
    return object.__getattribute__(future, name)


def _is_pending(future: Any) -> bool:
    return is_future(future) and _get(future, "_state") == "PENDING"


def _name_of_task(task: Any) -> str:
    span = span_of_task(task)
    if span is not None:
        return str(span.name)
    # A library may have put a coroutine of its own around the application's.
    links = [link for link in walk(coroutine_of(task)).links if not is_ours(link.frame)]
    own = next((link for link in links if not _is_of_library(link)), links[0] if links else None)
    return "task" if own is None else own.name


def _of_task(task: Any) -> Wait:
    return Wait(f"task:{_name_of_task(task)}", futures=(task,))


def _of_future(future: Any) -> Wait:
    if is_task(future):
        return _of_task(future)
    if type(future) is tasks._GatheringFuture:  # type: ignore[attr-defined]
        return _of_several("gather", future._children)
    for callback, _ in _get(future, "_callbacks") or ():
        if type(callback) is not FunctionType:
            continue
        module, name = callback.__module__, callback.__qualname__
        if module == "asyncio.tasks" and name.startswith("shield.<locals>."):
            inner = enclosed(callback, "inner")
            return _of_future(inner)._replace(more=", shielded") if is_future(inner) else Wait("shield")
        if module == "asyncio.futures" and name.startswith("_chain_future.<locals>."):
            return _of_thread(enclosed(callback, "source"))
    return Wait("future")


def _of_several(how: str, awaited: Iterable[Any]) -> Wait:
    all_of_them = tuple(awaited)
    left = tuple(future for future in all_of_them if _is_pending(future))
    return Wait(how, f" of {len(all_of_them)} ({len(all_of_them) - len(left)} done)", futures=left)


def _of_thread(source: Any) -> Wait:
    """A call in an executor, by its concurrent future; it may wait for a free thread."""
    state = source.__dict__.get("_state") if type(source).__module__ == "concurrent.futures._base" else None
    return Wait("thread pool", ", queued" if state == "PENDING" else "")


# -- time ------------------------------------------------------------------------------------------------------------


def _now(loop: Any) -> float | None:
    """The time of a loop in seconds, or None for a loop that has a clock of its own."""
    uvloop: Any = sys.modules.get("uvloop.loop")
    theirs = None if uvloop is None else uvloop.Loop.time
    # Both are the monotonic clock; uvloop's `time()` says when it was read last, which may be long ago.
    return time.monotonic() if type(loop).time in (asyncio.BaseEventLoop.time, theirs) else None


def _when(handle: Any) -> float | None:
    """When a timer goes off, in the loop's time."""
    module = type(handle).__module__
    if module.startswith("asyncio."):
        return float(handle._when)
    return float(handle.when()) if module.startswith("uvloop") else None


def seconds_left(chain: Chain, task: Any) -> float | None:
    """Seconds until the first of the timeouts that a task is in ends its wait, or None where it is in none.

    By the task's own frames, which are at hand: they do not show every timer that may end the wait; see `timers`.
    """
    ends = [when for link in chain.links for when in _timeouts_in(link, task)]
    now = _now(_get(task, "_loop")) if ends else None
    return None if now is None else max(0.0, min(ends) - now)


def _timeouts_in(link: Link, task: Any) -> Iterable[float]:
    """When the timeouts of a frame end, in the loop's time."""
    if link.key in _WITH_TIMER:
        (handle,) = local(link.frame, "timeout_handle")
        when = None if handle is None else _when(handle)
        if when is not None:
            yield when
    # What is to be called at the end of a `with` is on the frame's stack.
    for held in () if link.thing is None else gc.get_referents(link.thing):
        timeout: Any = held.__self__ if type(held) is MethodType else held
        kind: type = type(timeout)
        if kind is asyncio.Timeout and timeout._task is task and timeout._state.value == "active":
            when = timeout._when
            if type(when) in (int, float):
                yield when


# -- the table -------------------------------------------------------------------------------------------------------


class _Rule(NamedTuple):
    """How to read a frame. Of two frames, that of the higher rank says what is waited for, else the inner one."""

    read: Callable[[Link], Wait | None]
    rank: int = 0


def _sleep(link: Link) -> Wait:
    delay, handle, future = local(link.frame, "delay", "h", "future")
    loop_now = None if future is None else _now(_get(future, "_loop"))
    when = None if handle is None else _when(handle)
    if type(delay) not in (int, float) or loop_now is None or when is None:
        return Wait("sleep")
    ago = min(max(0.0, delay - (when - loop_now)), float(delay))
    return Wait("sleep", f" {ago:.1f} s of {delay:g}", ago=ago)


def _fixed(on: str) -> Callable[[Link], Wait]:
    return lambda link: Wait(on)


def _primitive(kind: str, doing: str = "") -> Callable[[Link], Wait | None]:
    def read(link: Link) -> Wait | None:
        (itself,) = local(link.frame, "self")
        if itself is None:
            return None
        return Wait(f"{kind}:{_name_of(itself)}{doing}", primitive=itself)

    return read


def _sync() -> Any:
    """What keeps track of who holds what, where the program has it loaded."""
    return sys.modules.get(f"{__package__}.sync")


def _name_of(primitive: Any) -> str:
    sync = _sync()
    name = None if sync is None else sync.name_of(primitive)
    if name is None:
        name = _plain(primitive, "name")
    return name if type(name) is str and name else f"{id(primitive) & 0xFFFFFF:06x}"


def _holders_of(primitive: Any) -> list[str]:
    try:
        if primitive is None:
            return []
        sync = _sync()
        holders = [] if sync is None else [str(holder) for holder in sync.holders_of(primitive)]
        if not holders and type(primitive).__module__.startswith("anyio."):
            # It knows its owner itself.
            owner = _plain(primitive, "_owner_task")
            holders = [] if owner is None else [_name_of_task(owner)]
        return holders
    except Exception:
        return []


def _plain(thing: Any, name: str) -> Any:
    """An attribute that is kept in the object itself, so that nothing is run to find it; None where there is none."""
    for cls in type.__getattribute__(type(thing), "__mro__"):
        found = type.__getattribute__(cls, "__dict__").get(name)
        if type(found) is MemberDescriptorType:
            return found.__get__(thing)
    try:
        kept = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None
    return kept.get(name) if type(kept) is dict else None


def _wait_for(link: Link) -> Wait | None:
    # Up to Python 3.11 it makes a task of what it waits for; later it awaits that itself.
    waiter, future = local(link.frame, "waiter", "fut")
    if waiter is None or not is_future(future):
        return None
    return _of_task(future)._replace(follow=future) if is_task(future) else _of_future(future)


def _wait(link: Link) -> Wait:
    return _of_several("wait", local(link.frame, "fs")[0])


def _as_completed(link: Link) -> Wait:
    (itself,) = local(link.frame, "self")
    if itself is None:
        return Wait("as_completed")  # Up to Python 3.12 its frame does not know of what.
    left = tuple(itself._todo)
    return Wait("as_completed", f", {len(left)} left", futures=left)


def _taskgroup(link: Link) -> Wait:
    left = tuple(local(link.frame, "self")[0]._tasks)
    return Wait("taskgroup", f", {len(left)} task{'s' * (len(left) != 1)} left", futures=left)


def _nursery(link: Link) -> Wait:
    left = tuple(local(link.frame, "self")[0].child_tasks)
    return Wait("nursery", f", {len(left)} task{'s' * (len(left) != 1)} left", futures=left)


def _address(peer: Any) -> str:
    """` host:port`, or nothing for what has no such thing."""
    if type(peer) is tuple and len(peer) >= 2 and type(peer[0]) is str and type(peer[1]) in (int, str):
        return f" [{peer[0]}]:{peer[1]}" if ":" in peer[0] else f" {peer[0]}:{peer[1]}"
    return f" {peer}" if type(peer) is str and peer else ""


def _socket(doing: str) -> Callable[[Link], Wait]:
    def read(link: Link) -> Wait:
        sock, address = local(link.frame, "sock", "address")
        if sock is None and link.thing is not None:
            # Of a compiled coroutine, whose variables have no names.
            held = (inner for scope in gc.get_referents(link.thing) for inner in gc.get_referents(scope))
            sock = next((inner for inner in held if issubclass(type(inner), socket.socket)), None)
        if address is None and sock is not None and doing != "accept":
            try:
                address = socket.socket.getpeername(sock)
            except OSError:
                pass
        return Wait(f"socket {doing}{_address(address)}")

    return read


def _transport(doing: str, path: tuple[str, ...]) -> Callable[[Link], Wait]:
    """By the transport that `path` leads to, from the frame's `self`."""

    def read(link: Link) -> Wait:
        (thing,) = local(link.frame, "self")
        for name in path:
            thing = _plain(thing, name)
        peer = None
        if type(thing).__module__.partition(".")[0] in ("asyncio", "uvloop"):
            peer = thing.get_extra_info("peername")
            if not peer and thing.get_extra_info("pipe") is not None:
                return Wait(f"pipe {doing}")
        return Wait(f"{'socket' if doing == 'recv' and peer else 'stream'} {doing}{_address(peer)}")

    return read


def _connect(link: Link) -> Wait:
    host, port = local(link.frame, "host", "port")
    return Wait(f"socket connect{_address((host, port))}")


def _lookup(link: Link) -> Wait:
    (host,) = local(link.frame, "host")
    return Wait(f"dns {host}" if type(host) is str else "dns")


def _subprocess(link: Link) -> Wait:
    (itself,) = local(link.frame, "self")
    pid = _plain(itself, "pid")
    return Wait(f"subprocess {pid}" if type(pid) is int else "subprocess")


def _http(method: Any, url: Any, what: str = "") -> Wait | None:
    """A request, without anything that may be secret: no user, no password, no query."""
    if type(url) is not str:
        if type(url).__module__.partition(".")[0] not in ("yarl", "httpx"):
            return None
        url = str(url)
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port is None else f":{parts.port}"
    return Wait(f"http {method if type(method) is str else ''} {host}{port}{parts.path[:_MAX_PATH]}{what}")


def _aiohttp_request(link: Link) -> Wait | None:
    method, url, given = local(link.frame, "method", "url", "str_or_url")
    return _http(method, given if url is None else url)


def _aiohttp_body(link: Link) -> Wait | None:
    (response,) = local(link.frame, "self")
    return _http(_plain(response, "method"), _plain(response, "_url"), " body")


def _httpx_request(link: Link) -> Wait | None:
    (request,) = local(link.frame, "request")
    return _http(request.method, request.url)


def _httpx_body(link: Link) -> Wait | None:
    request = _plain(local(link.frame, "self")[0], "_request")
    return _http(request.method, request.url, " body")


_SOCKET_CALLS: Final = {
    "recv": ("sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into"),
    "send": ("sock_sendall", "sock_sendto"),
    "connect": ("sock_connect",),
    "accept": ("sock_accept",),
}
_LOOPS: Final = (
    ("asyncio.selector_events", "BaseSelectorEventLoop"),
    ("asyncio.proactor_events", "BaseProactorEventLoop"),
    ("uvloop/loop.pyx", "Loop"),
)
#: Where a timer ends the wait, in a variable of the frame.
_WITH_TIMER: Final = frozenset({("asyncio.tasks", "wait_for"), ("asyncio.tasks", "_wait")})
_ANYIO: Final = "anyio._backends._asyncio"

#: What the frame of a function (module, qualified name) says of the wait.
_RULES: Final[dict[tuple[str, str], _Rule]] = {
    ("asyncio.tasks", "sleep"): _Rule(_sleep),
    ("asyncio.tasks", "__sleep0"): _Rule(_fixed("sleep")),
    ("asyncio.tasks", "wait_for"): _Rule(_wait_for),
    ("asyncio.tasks", "_wait"): _Rule(_wait),
    ("asyncio.tasks", "as_completed.<locals>._wait_for_one"): _Rule(_as_completed, 1),
    ("asyncio.tasks", "_AsCompletedIterator._wait_for_one"): _Rule(_as_completed, 1),
    ("asyncio.locks", "Lock.acquire"): _Rule(_primitive("lock")),
    ("asyncio.locks", "Semaphore.acquire"): _Rule(_primitive("semaphore")),
    ("asyncio.locks", "Event.wait"): _Rule(_primitive("event")),
    ("asyncio.locks", "Condition.wait"): _Rule(_primitive("condition")),
    ("asyncio.locks", "Barrier.wait"): _Rule(_primitive("barrier"), 1),
    ("asyncio.queues", "Queue.get"): _Rule(_primitive("queue", " get")),
    ("asyncio.queues", "Queue.put"): _Rule(_primitive("queue", " put")),
    ("asyncio.queues", "Queue.join"): _Rule(_primitive("queue", " join"), 1),
    ("asyncio.taskgroups", "TaskGroup.__aexit__"): _Rule(_taskgroup),
    ("asyncio.taskgroups", "TaskGroup._aexit"): _Rule(_taskgroup),
    ("asyncio.streams", "StreamReader._wait_for_data"): _Rule(_transport("recv", ("_transport",))),
    ("asyncio.streams", "StreamWriter.drain"): _Rule(_transport("drain", ("_transport",)), 1),
    ("asyncio.streams", "StreamWriter.wait_closed"): _Rule(_transport("close", ("_transport",)), 1),
    ("asyncio.streams", "open_connection"): _Rule(_connect, 1),
    ("asyncio.base_events", "BaseEventLoop.create_connection"): _Rule(_connect, 1),
    ("asyncio.base_events", "BaseEventLoop.getaddrinfo"): _Rule(_lookup, 1),
    ("asyncio.base_events", "Server.serve_forever"): _Rule(_fixed("connections")),
    **{
        (module, f"{loop}.{call}"): _Rule(_socket(doing), 1)
        for module, loop in _LOOPS
        for doing, calls in _SOCKET_CALLS.items()
        for call in calls
    },
    ("asyncio.subprocess", "Process.wait"): _Rule(_subprocess, 1),
    ("asyncio.subprocess", "Process.communicate"): _Rule(_subprocess, 1),
    ("asyncio.subprocess", "create_subprocess_exec"): _Rule(_fixed("subprocess"), 1),
    ("asyncio.subprocess", "create_subprocess_shell"): _Rule(_fixed("subprocess"), 1),
    (_ANYIO, "AsyncIOBackend.run_sync_in_worker_thread"): _Rule(_fixed("thread pool"), 1),
    (_ANYIO, "Lock.acquire"): _Rule(_primitive("lock"), 1),
    (_ANYIO, "Semaphore.acquire"): _Rule(_primitive("semaphore"), 1),
    (_ANYIO, "CapacityLimiter.acquire_on_behalf_of"): _Rule(_primitive("limiter"), 1),
    (_ANYIO, "TaskGroup.__aexit__"): _Rule(_taskgroup, 1),
    ("aiohttp.client", "ClientSession._request"): _Rule(_aiohttp_request, 2),
    ("aiohttp.client_reqrep", "ClientResponse.read"): _Rule(_aiohttp_body, 2),
    ("aiohttp.streams", "StreamReader._wait"): _Rule(_transport("recv", ("_protocol", "transport")), 1),
    ("httpx._client", "AsyncClient.send"): _Rule(_httpx_request, 2),
    ("httpx._models", "Response.aread"): _Rule(_httpx_body, 2),
    ("httpx._models", "Response.aiter_raw"): _Rule(_httpx_body, 2),
    ("trio._timeouts", "sleep_until"): _Rule(_fixed("sleep"), 1),
    ("trio._timeouts", "sleep_forever"): _Rule(_fixed("sleep"), 1),
    ("trio._threads", "to_thread_run_sync"): _Rule(_fixed("thread pool"), 1),
    ("trio._core._run", "Nursery._nested_child_finished"): _Rule(_nursery),
    ("trio._channel", "MemoryReceiveChannel.receive"): _Rule(_fixed("channel receive"), 1),
    ("trio._channel", "MemorySendChannel.send"): _Rule(_fixed("channel send"), 1),
    ("trio._sync", "_LockImpl.acquire"): _Rule(_primitive("lock"), 1),
    ("trio._sync", "Semaphore.acquire"): _Rule(_primitive("semaphore"), 1),
    ("trio._sync", "Event.wait"): _Rule(_primitive("event"), 1),
}
