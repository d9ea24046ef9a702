"""`serve`: /metrics for processes that do not serve it themselves, out of what they log."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from .reading import as_json, log_options, no_records, read_rules, tell_report

if TYPE_CHECKING:
    from ..exporters.prometheus import Source

__all__ = ["serve"]


@click.command(
    epilog="""\b
Examples:
  asyncinspect serve service.jsonl                                   # a log that is complete
  asyncinspect serve 'logs/service-*.jsonl' --follow --state serve.state
  asyncinspect serve --listen unix:/run/asyncinspect.sock --address 0.0.0.0:9090
"""
)
@click.argument("logs", nargs=-1, metavar="[LOG...]")
@click.option("--follow", is_flag=True, help="Go on with what is written to the logs, across rotation and restarts.")
@click.option("--listen", metavar="ADDR", help="Take records on a socket: unix:PATH, or HOST:PORT.")
@click.option("--state", metavar="FILE", help="Keep counters and places in this file, and go on from it.")
@click.option(
    "--grace",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="How long after its process is gone a span is ended as interrupted.  [default: 10]",
)
@click.option(
    "--local/--not-local",
    default=None,
    help="Whether pids in the logs are of this machine.  [default: of processes seen to write them]",
)
@click.option(
    "--address", metavar="HOST:PORT", help="Where /metrics is.  [default: ASYNC_INSPECT_METRICS_PORT, or 9090]"
)
@click.option("--certfile", metavar="FILE", help="Serve over TLS, with this certificate.")
@click.option("--keyfile", metavar="FILE", help="Its key, where that is not in the same file.")
@click.option("--key-password-file", metavar="FILE", help="The password of the key.")
@click.option("--client-cafile", metavar="FILE", help="Serve to those with a certificate that one of these has signed.")
@click.option("--bearer-token-file", metavar="FILE", help="Serve to those who send a token in this file.")
@click.option("--basic-auth-file", metavar="FILE", help="Serve to those who send a USER:PASSWORD in this file.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", help="A name that the server goes by.")
@log_options
@as_json
def serve(
    logs: tuple[str, ...],
    follow: bool,
    listen: str | None,
    state: str | None,
    grace: float | None,
    local: bool | None,
    address: str | None,
    strict: bool,
    at: float | None,
    rules: str | None,
    machine: bool,
    **protection: Any,
) -> None:
    """Serve /metrics from logs, until Ctrl-C or SIGTERM.

    --follow and --listen make it a sidecar of running processes: one exact page for all of them. --json prints one
    object once it serves, with the addresses. Each option that protects /metrics has a variable as well:
    ASYNC_INSPECT_METRICS_CERTFILE and so on.
    """
    protection["allowed_hosts"] = protection["allowed_hosts"] or None
    if not logs and listen is None:
        raise click.UsageError("name a log, or an address with --listen")
    if follow or listen is not None or state is not None:
        if strict or at is not None:
            raise click.UsageError("--strict and --at are for logs that are complete; leave out --follow and --listen")
        from ..sidecar import Sidecar

        # What is not given is as the sidecar has it.
        options: dict[str, Any] = {} if grace is None else {"grace": grace}
        sidecar = Sidecar(
            logs, follow=follow, listen=listen, state=state, rules=read_rules(rules), local=local, **options
        )
        listening = None if sidecar.address is None else str(sidecar.address)
        # Not its inspector: what is scraped is saved first, so that no counter is lower after a restart.
        _page(sidecar, address, protection, listening, machine, sidecar.stop, sidecar.run)
        return
    if grace is not None or local is not None:
        raise click.UsageError("--grace and --local are for processes that go on: give --follow or --listen")
    from ..analysis.replay import Replay
    from .output import progress_bar, warn

    with progress_bar("reading") as progress:
        reading = Replay(list(logs), at=at, strict=strict, rules=read_rules(rules), progress=progress)
        inspector = reading.run()
    tell_report(reading)
    # With rules, lines of others become spans.
    if not reading.report.records and not inspector.snapshot(tasks=False).names:
        warn(str(no_records(reading.report, " ".join(logs))))
    done = threading.Event()
    _page(inspector, address, protection, None, machine, done.set, done.wait)


def _page(
    source: Source,
    address: str | None,
    protection: dict[str, Any],
    listening: str | None,
    machine: bool,
    stop: Callable[[], object],
    run: Callable[[], object],
) -> None:
    """Serve until SIGTERM, or Ctrl-C, whatever `run` does."""
    from ..exporters.prometheus import PrometheusExporter
    from .output import print_json, say

    def end(number: int, frame: FrameType | None) -> None:
        stop()

    before = signal.signal(signal.SIGTERM, end)
    try:
        with PrometheusExporter(source).start_server(address, **protection) as server:
            if machine:
                print_json("serve", {"metrics": server.url, "listen": listening})
            else:
                say(f"Metrics at {server.url}" + (f", records taken at {listening}" if listening else ""))
            run()
    finally:
        signal.signal(signal.SIGTERM, before)
