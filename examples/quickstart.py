"""The whole library in a handler, a span and an exporter.   python examples/quickstart.py"""

import asyncio
import logging

from asyncinspect_logging import AsyncInspectHandler, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

logging.basicConfig(handlers=[AsyncInspectHandler()])


async def fetch_user(user_id: int) -> None:
    with span("fetch_user", user_id=user_id):
        await asyncio.sleep(0.01)
        if user_id == 3:
            raise LookupError(f"no user {user_id}")


async def main() -> None:
    await asyncio.gather(*(fetch_user(user_id) for user_id in range(10)), return_exceptions=True)


asyncio.run(main())
print("\n".join(line for line in PrometheusExporter().gather().splitlines() if "_total{name=" in line))
