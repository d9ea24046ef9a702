"""A service that logs with structlog: one processor, put first, makes its spans visible.

    pip install "asyncinspect-logging[structlog]"
    python examples/structlog_service.py

The log is JSON at level INFO. Events inside a span carry its ids, so that a log line leads to its task and back. The
spans themselves are heard whatever the level, and stay out of the log.
"""

from __future__ import annotations

import asyncio
import logging

import structlog

from asyncinspect_logging import AsyncInspectProcessor, Inspector, current_span, span

structlog.configure(
    processors=[
        AsyncInspectProcessor(),
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.JSONRenderer(),
    ],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    cache_logger_on_first_use=True,
)
log = structlog.get_logger()


class CardDeclinedError(Exception):
    """The bank said no."""


@span("charge_card", logger=log)
async def charge_card(amount: int) -> None:
    await asyncio.sleep(0.005)
    if amount > 100:
        raise CardDeclinedError(f"{amount} is above the limit")


async def checkout(order: int, amount: int) -> None:
    with span("checkout", logger=log, order=order) as s:
        try:
            await charge_card(amount)
        except CardDeclinedError as error:
            log.warning("declined", reason=str(error))
            s.record(declined=True)
        else:
            log.info("paid", amount=amount)


async def main() -> None:
    async with asyncio.TaskGroup() as group:
        for order in range(5):
            group.create_task(checkout(order, amount=40 * order))


def report(inspector: Inspector) -> None:
    """Print what happened, from the inspector's side: each task with the log lines that belong to it."""
    snapshot = inspector.snapshot()
    for task in snapshot.tasks:
        lines = [event.detail for event in task.events if event.kind == "log"]
        print(f"{task.name} {dict(task.fields)} {task.outcome} {lines}")
    for name in snapshot.names.values():
        print(f"{name.name}: {name.completed} completed, {name.failed} failed")


if __name__ == "__main__":
    asyncio.run(main())
    assert current_span() is None
    report(Inspector.default())
