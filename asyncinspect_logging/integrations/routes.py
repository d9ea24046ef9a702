"""The route template of a request, found before the application is asked: a span has its name from its beginning.

The routes of Starlette and FastAPI are asked in their own order whether they match, as their router will ask them
again; those that begin with another word are passed over, so it does not get slower with their number. What is kept
is bounded by the number of routes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

__all__ = ["Resolver", "path_in_app"]

Scope = MutableMapping[str, Any]

#: Layers of middleware that are looked through, and of routers within routers.
_DEPTH: Final = 50
#: Outermost routers whose routes are known at a time: one middleware is in one application, or in a few.
_ROUTERS: Final = 20
_NONE: Final = 0
_FULL: Final = 2


def path_in_app(scope: Scope) -> str:
    """The path without the `root_path` that stands before it, as Starlette's routes see it."""
    path: str = scope["path"]
    root = scope.get("root_path") or ""
    if not root or not path.startswith(root):
        return path
    rest = path[len(root) :]
    return rest if not rest or rest[0] == "/" else path


class Resolver:
    """Finds templates for what an application serves."""

    def __init__(self, app: Any) -> None:
        self._app = app
        # By id, since routers have no hash.
        self._tables: dict[int, tuple[weakref.ref[Any], _Table]] = {}

    def template(self, scope: Scope) -> str | None:
        """The template of the route that the request is for, mounts included, or None where no route matches.

        Of a method that the route does not have, and of a path that is redirected to the one with (or without) the
        slash at its end, it is the template of that route; but Litestar finds none for such a method.
        Raises what a route of the application's own raises.
        """
        if "path_template" in scope and "litestar_app" in scope:
            app = scope["litestar_app"]  # inside of which the route has been found
            if not getattr(scope["route_handler"], "is_mount", False):
                return str(scope["path_template"]) or "/"
            scope = {**scope, "path": unquote(scope.get("raw_path", b"").decode("latin-1"))}
            return _of_litestar(app, scope)
        if "router" in scope:
            # Inside of a mounted app, or of a router: again from the outermost router on.
            router, root = scope["router"], scope.get("app_root_path")
            if root is not None and root != scope.get("root_path"):
                scope = {**scope, "root_path": root}
        else:
            app = _unwrapped(scope.get("app", self._app))
            if hasattr(app, "asgi_router"):
                return _of_litestar(app, scope)
            router = getattr(app, "router", app)
            root = getattr(app, "root_path", None)
            if root and isinstance(root, str):
                scope = {**scope, "root_path": root}  # which FastAPI is going to set
        if not _has_routes(router):
            return None
        return self._table(router).find(dict(scope))

    def _table(self, router: Any) -> _Table:
        known = self._tables.get(id(router))
        if known is not None and known[0]() is router and known[1].is_current():
            return known[1]
        if len(self._tables) >= _ROUTERS:
            self._tables.clear()
        table = _Table(router, [], 0)
        self._tables[id(router)] = weakref.ref(router), table
        return table


def _has_routes(router: Any) -> bool:
    return isinstance(getattr(router, "routes", None), list) and hasattr(router, "redirect_slashes")


def _unwrapped(app: Any) -> Any:
    """What is inside of layers of middleware, each of which has the next one as its `app`."""
    for _ in range(_DEPTH):
        if _has_routes(getattr(app, "router", app)) or hasattr(app, "asgi_router"):
            break
        inner = getattr(app, "app", None)
        if inner is None or not callable(inner):
            break
        app = inner
    return app


def _of_litestar(app: Any, scope: Scope) -> str | None:
    HTTPException: Any = import_module("litestar.exceptions").HTTPException
    normalize_path: Any = import_module("litestar.utils").normalize_path
    path = scope["path"]
    if root := scope.get("root_path"):
        path = path.split(root, maxsplit=1)[-1]
    path = normalize_path(path)
    try:
        _, handler, rest, _, template = app.asgi_router.handle_routing(path=path, method=scope.get("method"))
    except HTTPException:
        return None
    if getattr(handler, "is_mount", False):
        # Of what is mounted, Litestar tells the rest of the path. What stands before that has no parameters.
        mount = f"{path}/".removesuffix(rest)
        return f"{mount.rstrip('/')}/{{path}}" if any(route.path == mount for route in app.routes) else None
    return str(template) or "/"


class _Entry(NamedTuple):
    route: Any
    template: str
    #: Of a mount or a host, what is mounted: None of other routes, and of an app whose routes are not known.
    inside: _Table | None
    is_mount: bool


class _Table:
    """The routes of a router, and those of the routers mounted in it."""

    def __init__(self, router: Any, lists: list[tuple[list[Any], int]], depth: int) -> None:
        self._lists = lists
        self._redirects = bool(router.redirect_slashes)
        entries = [(self._entry(route, depth), _first_word(route)) for route in _flat(router.routes, lists, depth)]
        self._any = [entry for entry, word in entries if word is None]
        words = {word for _, word in entries if word is not None}
        self._by_word = {word: [entry for entry, own in entries if own in (None, word)] for word in words}

    def _entry(self, route: Any, depth: int) -> _Entry:
        template = str(getattr(route, "path_format", None) or getattr(route, "path", ""))
        app = getattr(route, "_base_app", None) or getattr(route, "app", None)
        is_mount = type(route).__name__ in ("Mount", "Host") or hasattr(route, "host_regex")
        if not is_mount:
            return _Entry(route, template, None, False)
        template = template.removesuffix("/{path}")
        app = _unwrapped(app)
        router = getattr(app, "router", app)
        inside = _Table(router, self._lists, depth + 1) if _has_routes(router) and depth < _DEPTH else None
        return _Entry(route, template, inside, True)

    def is_current(self) -> bool:
        """Whether no route has been added or taken away since."""
        return all(len(routes) == count for routes, count in self._lists)

    def find(self, scope: Scope) -> str | None:
        path = path_in_app(scope)
        first = None
        for entry in self._candidates(path):
            match, child = entry.route.matches(scope)
            value = match.value
            if value == _FULL:
                return _within(entry, scope, child)
            if value != _NONE and first is None:
                first = entry
        if first is not None:
            return first.template
        if not self._redirects or scope["type"] != "http" or path in ("", "/"):
            return None
        whole: str = scope["path"]
        other = {**scope, "path": whole.rstrip("/") if path.endswith("/") else whole + "/"}
        for entry in self._candidates(path_in_app(other)):
            match, child = entry.route.matches(other)
            if match.value != _NONE:
                return _within(entry, other, child)
        return None

    def _candidates(self, path: str) -> list[_Entry]:
        return self._by_word.get(path[1:].partition("/")[0], self._any)


def _within(entry: _Entry, scope: Scope, child: Any) -> str | None:
    if not entry.is_mount:
        return entry.template
    if entry.inside is None:
        return f"{entry.template}/{{path}}"
    found = entry.inside.find({**scope, **child})
    return None if found is None else entry.template + found


def _flat(routes: list[Any], lists: list[tuple[list[Any], int]], depth: int) -> Iterator[Any]:
    """The routes, with those of a router that FastAPI has included in the place of that router."""
    lists.append((routes, len(routes)))
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            if hasattr(route, "matches"):
                yield route
            continue
        included = getattr(route, "original_router", None)
        if included is not None and depth < _DEPTH:
            for _ in _flat(included.routes, lists, depth + 1):
                pass  # for the lists alone: the contexts know the prefixes
        for context in contexts():
            route_of_starlette = getattr(context, "starlette_route", None)
            yield context if route_of_starlette is None else route_of_starlette


def _first_word(route: Any) -> str | None:
    """The first segment of the paths that can match, or None where that may be any."""
    # A route of the application's own may match as it likes.
    if getattr(type(route).matches, "__module__", "") not in ("starlette.routing", "fastapi.routing"):
        return None
    path = getattr(route, "path", None)
    if not isinstance(path, str) or not path.startswith("/") or hasattr(route, "host_regex"):
        return None
    word = path[1:].partition("/")[0]
    return None if "{" in word else word
