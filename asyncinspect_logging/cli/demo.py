"""`demo`: a program to look at, which is gone again after some seconds, and its log, which stays."""

from __future__ import annotations

import asyncio
import logging.config
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import click

from .commands import UnusableError
from .reading import as_json
from .text import count

__all__ = ["demo"]


@click.command(
    epilog="""\b
Examples:
  asyncinspect demo
  asyncinspect demo --seconds 60 --address 127.0.0.1:9091
  asyncinspect demo --trace --log trace.jsonl    # each step goes into the log
"""
)
@click.option("--seconds", type=click.FloatRange(0.1, 86400), default=10.0, show_default=True, help="How long.")
@click.option("--address", metavar="HOST:PORT", default="127.0.0.1:0", help="Where /metrics is; port 0: any free one.")
@click.option("--log", "path", metavar="FILE", default="asyncinspect-demo.jsonl", show_default=True, help="Its log.")
@click.option("--trace", is_flag=True, help="Log each step, not only begin and end of spans.")
@as_json
def demo(seconds: float, address: str, path: str, trace: bool, machine: bool) -> None:
    """Run a small program under load, with /metrics and a log to try the other commands on."""
    from .. import Inspector, json_logging
    from ..exporters.prometheus import PrometheusExporter
    from .output import print_json, print_table, say, title

    if Path(path).exists():
        raise UnusableError(f"{path} is there already; move it away, or name another file with --log")
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"inspect": {"class": "asyncinspect_logging.AsyncInspectHandler"}},
        "root": {"level": "INFO", "handlers": ["inspect"]},
    }
    logging.config.dictConfig(json_logging(path, level="TRACE" if trace else "DEBUG", others=True, into=config))
    with PrometheusExporter(update_interval=0).start_server(address) as server:
        if not machine:
            say(f"A shop takes 100 orders a second, for {seconds:g} s. In another terminal:")
            say(f"  curl http://127.0.0.1:{server.port}/metrics")
            say(f"  asyncinspect stats http://127.0.0.1:{server.port}")
        asyncio.run(_shop().run_shop(seconds))
    names = Inspector.default().snapshot().names
    if machine:
        counted = {name: view._asdict() for name, view in names.items()}
        fields = ("spawned", "completed", "failed", "cancelled")
        found = {name: {field: view[field] for field in fields} for name, view in counted.items()}
        print_json("demo", {"log": path, "names": found})
        return
    title("What was counted")
    print_table(
        ("span", "#begun", "#completed", "#failed", "#cancelled"),
        [(n, *map(count, (v.spawned, v.completed, v.failed, v.cancelled))) for n, v in names.items()],
    )
    say(f"The same is in the log, {path}. Look at it with")
    for command, why in (
        (f"replay {path}", "what was on /metrics, and the spans that were open"),
        (f"stats --detailed {path}", "what took how long"),
        (f"graph {path}", "what began what, and waited for it"),
        (f"export {path} --format chrome -o trace.json", "a trace for ui.perfetto.dev"),
    ):
        say(f"  asyncinspect {command:<62} {why}")


def _shop() -> ModuleType:
    """The program, as a module of its own: what is part of this package counts as no place where a span is."""
    spec = spec_from_file_location("shop", Path(__file__).with_name("demo_program.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["shop"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
