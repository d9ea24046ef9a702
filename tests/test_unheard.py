"""Whoever asks for a page and sees no span on it is told in the log why none comes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult
from prometheus_client import generate_latest

from asyncinspect_logging import AsyncInspectHandler, Inspector, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.opentelemetry import OtelExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.exporters.statsd import StatsdExporter

#: Runs each setup of argv, and what goes before the page, in a child of its own: the imports take most of the time.
PROGRAM = """
import gc, json, logging, logging.config, logging.handlers, os, queue, structlog, sys, urllib.request
from asyncinspect_logging import AsyncInspectHandler, AsyncInspectProcessor, Inspector, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

HANDLER = {"inspect": {"class": "asyncinspect_logging.AsyncInspectHandler"}}

def service(setup, spans):
    exec(setup, globals())
    gc.collect()  # a handler that nobody has any more is gone at once, and not when it happens
    if spans:
        with span("job"):
            pass
    with PrometheusExporter(update_interval=0).start_server(0) as server:
        for _ in range(2):
            page = urllib.request.urlopen(server.url).read().decode()
    print("seen" if 'name="job"' in page else "not seen", file=sys.stderr)

for case in map(json.loads, sys.argv[1:]):
    child = os.fork()
    if not child:
        service(*case)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("next", file=sys.stderr)
"""

BASIC = "logging.basicConfig(handlers=[AsyncInspectHandler()])\n"
OWN = "logging.getLogger('asyncinspect').addHandler(AsyncInspectHandler())\n"
SHOP = "logging.getLogger('shop').addHandler(AsyncInspectHandler())\n"
QUEUE = """
logging.basicConfig()
queued = logging.handlers.QueueHandler(queue.SimpleQueue())
logging.getLogger().addHandler(queued)
listener = logging.handlers.QueueListener(queued.queue, AsyncInspectHandler())
queued.accepts_spans = %r
"""

#: Setups in which no span is seen, and a part of what is said.
WHY = {
    "": "no AsyncInspectHandler is in the logging config; write",
    "pass": ", or AsyncInspectProcessor() first in structlog's processors",
    "logging.basicConfig(level='INFO')\n" + BASIC: "or a basicConfig did nothing, because the root logger had handlers",
    BASIC + "logging.basicConfig(force=True)": "another dictConfig or basicConfig(force=True) has taken it off",
    "logging.config.dictConfig({'version': 1, 'handlers': HANDLER, 'root': {'level': 'INFO'}})": "is on no logger now",
    "logging.basicConfig(handlers=[AsyncInspectHandler(Inspector())])": "feeds another inspector",
    BASIC + "logging.getLogger('asyncinspect').propagate = False": "'asyncinspect' does not propagate to it",
    OWN + "logging.config.dictConfig({'version': 1, 'loggers': {'shop': {}}})\n" + OWN: "'asyncinspect' is disabled",
    SHOP: "is on the logger 'shop'",
    QUEUE % False: "set accepts_spans = True on the QueueHandler",
    "structlog.configure(processors=[AsyncInspectProcessor()])": "spans without logger= are told through stdlib",
}
#: Setups that may be as they are meant, and whether there is a span. Before there was one, nobody knows which loggers
#: they will name.
WELL: list[tuple[str, bool]] = [
    (BASIC, True),
    (BASIC, False),
    (SHOP, False),
    (QUEUE % True, True),
    (QUEUE % False, False),
    ("structlog.configure(processors=[AsyncInspectProcessor()])", False),
]


def run(cases: Iterable[tuple[str, bool]]) -> list[list[str]]:
    """What each case writes to standard error."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *map(json.dumps, cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [said.splitlines() for said in done.stderr.split("next\n")[:-1]]


@pytest.mark.slow
def test_why_no_span_is_seen() -> None:
    """Once, with what to write; on standard error where no handler writes it."""
    for (setup, why), said in zip(WHY.items(), run((setup, True) for setup in WHY), strict=True):
        assert [why in line for line in said] == [True, False], (setup, said)
        assert said[1] == "not seen"


@pytest.mark.slow
def test_no_alarm_where_spans_may_come() -> None:
    """A service that has had no request yet, or whose queue is not worked off, is well."""
    for case, said in zip(WELL, run(WELL), strict=True):
        assert said == ["seen" if case == WELL[0] else "not seen"], case


@pytest.mark.slow
@pytest.mark.parametrize(("setup", "why"), [(BASIC, None), ("logging.basicConfig()\n" + BASIC, "is on no logger now")])
def test_the_command_says_it_of_a_logging_config(tmp_path: Path, setup: str, why: str | None) -> None:
    """Before the service is started."""
    (tmp_path / "settings.py").write_text(
        "import logging\nfrom asyncinspect_logging import AsyncInspectHandler\n" + setup
    )
    command = [sys.executable, "-m", "asyncinspect_logging", "info", "--import", "settings"]
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, cwd=tmp_path, check=True).stdout)
    assert told["unheard"] is None if why is None else why in told["unheard"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert ("Spans are not heard: " in shown) == (why is not None)


def test_other_scrapes_of_the_registry_are_told_too(caplog: pytest.LogCaptureFixture) -> None:
    """By prometheus_client's own server, say, or a push at the end of a job; `gather` is for whoever looks himself."""
    exporter = PrometheusExporter(Inspector())
    exporter.gather()
    assert caplog.messages == []
    generate_latest(exporter.registry)
    generate_latest(exporter.registry)
    assert ["no AsyncInspectHandler is in the logging config" in message for message in caplog.messages] == [True]


class Kept:
    """A SpanExporter of the SDK's."""

    def export(self, spans: Sequence[object]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def statsd(inspector: Inspector) -> tuple[StatsdExporter, Callable[[], object]]:
    exporter = StatsdExporter(inspector, "127.0.0.1:9")
    return exporter, exporter.export


def otlp(inspector: Inspector) -> tuple[OtelExporter, Callable[[], object]]:
    exporter = OtelExporter("shop", inspector, span_exporter=Kept())  # type: ignore[arg-type]
    return exporter, exporter.flush


@pytest.mark.parametrize(
    ("make", "what"),
    [(statsd, "metrics without any span were sent to 127.0.0.1:9"), (otlp, "there was no span to be exported to Kept")],
)
def test_exporters_that_have_nothing_to_send_say_why(
    make: Callable[[Inspector], tuple[Any, Callable[[], object]]], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and not where a handler feeds them."""
    exporter, export = make(Inspector())
    with exporter:
        assert caplog.messages == []
        export()
        export()
        told = [message for message in caplog.messages if message.startswith(f"{what}: ")]
        assert ["no AsyncInspectHandler is in the logging config" in message for message in told] == [True]
    caplog.clear()
    handler = AsyncInspectHandler(inspector := Inspector())
    logging.getLogger().addHandler(handler)
    try:
        exporter, export = make(inspector)
        with exporter:
            export()
            with span("job"):
                pass
            export()
    finally:
        logging.getLogger().removeHandler(handler)
    assert [message for message in caplog.messages if what in message] == []


@pytest.mark.parametrize("wrong", [AsyncInspectHandler, {}, "default"])
def test_what_is_no_inspector_is_refused(wrong: object) -> None:
    """When the exporter is made, and not by pages with status 500."""
    with pytest.raises(ConfigError, match=r"gives no snapshots; write PrometheusExporter\(inspector\)"):
        PrometheusExporter(wrong)  # type: ignore[arg-type]
