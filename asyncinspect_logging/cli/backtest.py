"""`backtest`: when alerts would have fired, by a log."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from . import FAILED
from .reading import as_json, moment_of, report_json, tell_report
from .text import clean, count, moment, seconds

if TYPE_CHECKING:
    from ..analysis.backtest.alerts import Episode
    from ..analysis.backtest.run import Result

__all__ = ["backtest"]

#: Rows that are shown; --json has all.
_MANY = 200


@click.command(
    epilog="""\b
Examples:
  asyncinspect backtest alerts.yml service.jsonl
  asyncinspect backtest alerts.yml 'logs/*.jsonl*' --from 2030-01-31T00:00Z --to 2030-02-01T00:00Z
  asyncinspect rules --alerts > alerts.yml && asyncinspect backtest alerts.yml service.jsonl --json

\b
Exit status: 1 with --fail, where an alert would have fired.
"""
)
@click.argument("rules", metavar="RULES", type=click.Path())
@click.argument("logs", nargs=-1, required=True, metavar="LOG...")
@click.option(
    "--interval",
    type=click.IntRange(1, 3600),
    default=15,
    metavar="SECONDS",
    help="From scrape to scrape.  [default: 15]",
)
@click.option(
    "--from", "start", callback=moment_of, metavar="TIME", help="Evaluate from then: ISO 8601, or Unix seconds."
)
@click.option("--to", "end", callback=moment_of, metavar="TIME", help="And until then.  [default: the end of the log]")
@click.option("--job", metavar="NAME", help="The label job of the targets.  [default: as the rules ask for]")
@click.option("--fail", is_flag=True, help="Exit status 1 if an alert would have fired.")
@click.option("--strict", is_flag=True, help="A broken line is an error: exit status 1.")
@as_json
@click.pass_context
def backtest(
    ctx: click.Context,
    rules: str,
    logs: tuple[str, ...],
    interval: int,
    start: float | None,
    end: float | None,
    job: str | None,
    fail: bool,
    strict: bool,
    machine: bool,
) -> None:
    """Say when the alerts in RULES would have fired, had Prometheus scraped what wrote the logs.

    Needs promtool and prometheus on PATH.
    """
    from ..analysis.backtest.run import Backtest
    from .output import print_json, progress_bar

    test = Backtest(rules, list(logs), interval=interval, job=job, start=start, end=end, strict=strict)
    with _ended(), progress_bar("back-testing") as progress:
        found = test.run(progress)
    tell_report(test)
    fired = [episode for episode in found.episodes if episode.start is not None]
    if machine:
        print_json("backtest", {**found._asdict(), "report": report_json(test.report)})
    else:
        _show(found, fired)
    if fail and fired:
        ctx.exit(FAILED)


class _Ended(SystemExit):
    code: int


@contextmanager
def _ended() -> Iterator[None]:
    """What is stopped from outside takes its folder and its Prometheus along, as with Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        # Like KeyboardInterrupt, this is no Exception, which what reads logs might take for a broken line.
        raise _Ended(128 + number)

    def lost(told: Any) -> None:
        # In a finaliser or a weak reference's callback, where Python drops what is raised and goes on: the signal comes
        # again, a moment later.
        if isinstance(told.exc_value, _Ended):
            main, number = threading.main_thread().ident, told.exc_value.code - 128
            threading.Timer(0.01, signal.pthread_kill, (main, number)).start()
        else:
            hook(told)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # One that is ignored, as by nohup, stays so.
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL}
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(found: Result, fired: list[Episode]) -> None:
    from .output import print_table, say, title

    say(
        f"{moment(found.start)} to {moment(found.end)}, each {seconds(found.interval)}: {count(found.samples)} scrapes"
        f" of {count(len(found.instances))} targets of the job {found.job}"
    )
    title(f"Fired: {count(len(fired))}")
    if fired:
        print_table(
            ("alert", "from", "to", "#for", "#value", "labels"),
            [
                (
                    episode.alert,
                    moment(episode.start or 0),
                    "–" if episode.end is None else moment(episode.end),
                    seconds((found.end if episode.end is None else episode.end) - (episode.start or 0)),
                    f"{episode.value:.6g}",
                    _labels(episode),
                )
                for episode in fired[:_MANY]
            ],
        )
        if len(fired) > _MANY:
            say(f"and {count(len(fired) - _MANY)} more; --json has all")
    short, waiting = Counter[str](), Counter[str]()
    for episode in found.episodes:
        if episode.start is None:
            (waiting if episode.end is None else short)[episode.alert] += 1
    for name, times in short.items():
        say(f"Pending, and over before it fired: {name}, {count(times)} times")
    for name, times in waiting.items():
        say(f"Pending at the end: {name}, {count(times)} times; --to lets the log's last state go on for longer")
    quiet = [name for name, times in found.alerts.items() if not times and name not in short and name not in waiting]
    if quiet:
        say(f"Never: {', '.join(quiet)}")
    for note in found.notes:
        say(f"Note: {note}")


def _labels(episode: Episode) -> str:
    return " ".join(f"{key}={clean(value, limit=80)}" for key, value in sorted(episode.labels.items()))
