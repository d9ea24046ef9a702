"""Logging through a queue: the application only puts records into it, and a thread does the rest.

    python examples/queue_logging.py

The inspector stands behind the queue too. What a record says of its span was stamped where it was made, so the thread
that handles it need know nothing of the task it came from; the same works between processes.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
from logging.handlers import QueueHandler, QueueListener

from asyncinspect_logging import AsyncInspectHandler, Inspector, span

log = logging.getLogger("jobs")


async def job(number: int) -> None:
    with span("job", number=number):
        await asyncio.sleep(0.001 * number)
        log.info("job %d is done", number)


async def main() -> None:
    await asyncio.gather(*(job(number) for number in range(5)))


if __name__ == "__main__":
    inspector = Inspector()
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(levelname)s %(message)s [%(span)s %(span_id)s]"))
    # Behind a queue a handler's level counts only where the listener is told so.
    console.setLevel(logging.INFO)
    handler = QueueHandler(queue.SimpleQueue())
    # The listener has a handler that accepts spans, so the way there has to let them through, whatever the levels.
    # Listeners made by dictConfig say so themselves since Python 3.12, if all their handlers accept spans.
    handler.accepts_spans = True  # type: ignore[attr-defined]
    # Not by basicConfig, which would have the queue handler format the records.
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)

    listener = QueueListener(handler.queue, console, AsyncInspectHandler(inspector), respect_handler_level=True)
    listener.start()
    asyncio.run(main())
    listener.stop()

    snapshot = inspector.snapshot()
    print(f"{snapshot.names['job'].completed} completed, {snapshot.events['log']} log lines in them")
    for task in snapshot.tasks:
        print(task.id, dict(task.fields), [event.detail for event in task.events if event.kind == "log"])
