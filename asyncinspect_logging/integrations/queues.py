"""Task queues: one span for each job, part of the trace of whoever put it into the queue. For arq, Celery and others
like them; none of them is imported.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from ..driver import qualname_of
from ..drivers import arguments_of, check_options, check_skipped
from ..routing import route_of
from ..spans import INHERIT, LOGGER, current_span, span
from .serving import KIND, ServedSpan, parent_of, serve

__all__ = ["KEY", "job", "trace_headers"]

#: The header, or the keyword argument, in which the trace context travels: https://www.w3.org/TR/trace-context/.
KEY: Final = "traceparent"
#: What may come with it.
_STATE: Final = "tracestate"
#: The parameter in which arq hands over its context.
_CONTEXT: Final = "ctx"

_F = TypeVar("_F", bound=Callable[..., Any])


def trace_headers(headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`headers` and the trace context of the current span, if there is one: what a job is to be sent with.

    add.apply_async((1, 2), headers=trace_headers())          # Celery
    await pool.enqueue_job("add", 1, 2, **trace_headers())    # arq
    """
    current = current_span()
    if current is None:
        return dict(headers or {})
    state = current.tracestate()
    return dict(headers or {}) | {KEY: current.traceparent()} | ({_STATE: state} if state else {})


def job(
    function: _F | None = None,
    /,
    *,
    name: str | None = None,
    skip: Iterable[str] = (_CONTEXT,),
    fields: Mapping[str, Any] | None = None,
    logger: Any = None,
) -> Any:
    """Decorate what a worker calls, `def` or `async def`: like `instrument`, or `span` of a function that is not async,
    and continues the trace that came with the job: in the keyword arguments `traceparent` and `tracestate`, which the
    function does not get unless it has a parameter of that name, or in the headers of the Celery task that is running.
    In OpenTelemetry's terms it is of the kind "consumer". Put it below the queue's own decorator.

    name: default the qualified name of the function. skip: arguments that do not become fields; default the context
    that arq hands over. fields: more fields. logger: as of `span`.
    Raises TypeError for what is no function, and for options that `instrument` raises it for.
    """
    skipped, more = check_options("job", name, skip, fields)
    if function is None:
        return functools.partial(job, name=name, skip=skipped, fields=more, logger=logger)
    if not callable(function) or inspect.isclass(function):
        fix = f"; write @job(name={function!r})" if isinstance(function, str) else ""
        raise TypeError(f"@job is for functions, not for {function!r}{fix}")
    named: Any = function
    while isinstance(named, functools.partial):
        named = named.func
    span_name = name or qualname_of(named)
    takes = inspect.signature(function).parameters.keys()
    check_skipped(function, skipped - {_CONTEXT})
    arguments = arguments_of(function, skipped | {KEY, _STATE})
    more = {KIND: "consumer", **more}
    route = route_of(LOGGER if logger is None else logger)

    def parent(kwargs: dict[str, Any]) -> Any:
        header, state = (kwargs.get(key) if key in takes else kwargs.pop(key, None) for key in (KEY, _STATE))
        if header is None:
            header, state = _celery_headers()
            around = current_span()
            if around is not None and isinstance(header, str) and around.trace_id in header:
                return INHERIT  # called by the task, or by who runs it at once
        if not isinstance(header, str):
            return INHERIT
        return parent_of((header,), (state,) if isinstance(state, str) else ())

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def async_job(*args: Any, **kwargs: Any) -> Any:
            found = parent(kwargs)
            served = ServedSpan.new(
                span_name, span_name, route, {**arguments(args, kwargs), **more}, found, lambda error: error
            )
            return await serve(function(*args, **kwargs), served)

        return async_job

    @functools.wraps(function)
    def sync_job(*args: Any, **kwargs: Any) -> Any:
        work = span(span_name, logger=logger, parent=parent(kwargs))
        work.record(**{**arguments(args, kwargs), **more})
        with work:
            return function(*args, **kwargs)

    return sync_job


def _celery_headers() -> tuple[object, object]:
    """The two headers of the Celery task that is running in this thread, if one is."""
    celery = sys.modules.get("celery")
    task = None if celery is None else getattr(celery, "current_task", None)
    if not task:
        return None, None
    request = task.request
    headers = getattr(request, "headers", None) or {}
    # Which protocol the message is of says where they are.
    context, state = (headers.get(key) or getattr(request, key, None) for key in (KEY, _STATE))
    return context, state
