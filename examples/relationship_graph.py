"""What the tasks of a program have to do with each other: who began whom, who waited for whom, and the critical path.

python examples/relationship_graph.py             as text
python examples/relationship_graph.py --mermaid   for a Markdown page
python examples/relationship_graph.py --dot       for Graphviz
python examples/relationship_graph.py --json      for a program
"""

from __future__ import annotations

import asyncio
import logging
import sys

from asyncinspect_logging import AsyncInspectHandler, Inspector, install
from asyncinspect_logging.analysis.graph import graph
from asyncinspect_logging.detect.sync import Lock


async def load_user(cache: Lock) -> None:
    async with cache:
        await asyncio.sleep(0.01)


async def load_orders(cache: Lock) -> None:
    await asyncio.sleep(0.005)
    async with cache:
        await asyncio.sleep(0.02)


async def render() -> None:
    await asyncio.sleep(0.005)


async def page() -> None:
    cache = Lock(name="cache")
    async with asyncio.TaskGroup() as group:
        group.create_task(load_user(cache))
        group.create_task(load_orders(cache))
    await asyncio.create_task(render())


async def main() -> None:
    with install():
        await asyncio.create_task(page())


if __name__ == "__main__":
    inspector = Inspector()
    logging.basicConfig(handlers=[AsyncInspectHandler(inspector)])
    logging.getLogger("asyncinspect").setLevel("TRACE")  # with each step, which says who waited for what
    asyncio.run(main())
    found = graph(inspector.snapshot())
    forms = {"--mermaid": found.to_mermaid, "--dot": found.to_dot, "--json": found.to_json}
    form = next((forms[argument] for argument in sys.argv[1:] if argument in forms), found.to_text)
    print(form())
    if form == found.to_text:
        print("critical path:", " > ".join(step.name for step in found.critical))
        print("shared:", ", ".join(node.name for node in found.shared()))
