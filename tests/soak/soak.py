"""One soak: an application at work while everything around it goes wrong, and then the account of it."""

from __future__ import annotations

import faulthandler
import gc
import io
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from checks import counted, differences, gained, of_one_mind, one_arena, page_is_valid, polled, rss, slope, sums_of
from faults import ClosedPort, Disk, Lines, Log, Silent, Statsd, configure
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample
from work import FILED, INSTALLED, STEPPED, Tally, Worker, in_loop, in_thread

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, diagnostics, span
from asyncinspect_logging.analysis.replay import Replay
from asyncinspect_logging.exporters.opentelemetry import OtelExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.exporters.statsd import StatsdExporter

__all__ = ["INJECTIONS", "Options", "Soak"]

#: What can be broken on purpose, to see it noticed.
INJECTIONS = (
    "miscount", "polls", "histogram", "busy", "drops", "leak", "exception", "stderr", "thread", "descriptor", "page",
    "child",
)  # fmt: skip
#: Spans of each kind of worker in a child.
IN_CHILD = 400
#: Seconds that a child, and whatever ends by itself, may take.
PATIENCE = 60.0
#: Seconds after which the watcher has nothing to watch any more, and has gone.
LEAVING = 10.0
#: MB that the memory may gain after the warm-up, by its slope: what CPython's allocator may do by itself.
ALLOWED = 16.0
#: The part of the spans after which memory is looked at, and samples taken of it in all. What takes so long to settle
#: are the counts of ten thousand names, which CPython has in common up to 256 and which are objects of their own from
#: there on, among what some ten large pages have left of the heap.
WARM, SAMPLES = 0.5, 200
#: Small queues, which are full before memory is looked at.
OTLP: Any = {"protocol": "http/protobuf", "timeout": 1.0, "queue_size": 2_000, "batch_size": 500}
#: What the library says of dead collectors, and may.
EXPECTED = (
    "does not take what is exported",
    "found no room and are dropped",
    "could not be sent to",
    "until the exporter was shut down",
)


class Options(NamedTuple):
    spans: int = 10_000_000
    names: int = 10_000
    threads: int = 4
    loops: int = 2
    seconds: float = 0.0
    seed: int = 1
    inject: frozenset[str] = frozenset()


class Gate:
    """Where workers wait while all of them are to stand still."""

    def __init__(self, workers: int) -> None:
        self._condition = threading.Condition()
        self._closed = False
        self._working, self._waiting = workers, 0

    def passes(self) -> None:
        if self._closed:
            with self._condition:
                self._waiting += 1
                self._condition.notify_all()
                self._condition.wait_for(lambda: not self._closed)
                self._waiting -= 1

    def leave(self) -> None:
        with self._condition:
            self._working -= 1
            self._condition.notify_all()

    def __enter__(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: self._waiting == self._working)

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._closed = False
            self._condition.notify_all()


class Troubles(io.TextIOBase):
    """What must not happen, as lines. As a stream it is stderr, on which nothing must come."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def add(self, line: str) -> None:
        self.count += 1
        if len(self.lines) < 500:
            self.lines.append(line)

    def write(self, text: str) -> int:
        if text.strip():
            self.add(f"on stderr: {text.strip()[:500]}")
        return len(text)


class Soak:
    """`run` returns the lines of the table, the figures, and the troubles."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.troubles = Troubles()
        self.names = [f"soak.{number}" for number in range(options.names)]
        self.kept: list[Any] = []
        self._forks = self._reloads = self._scrapes = 0
        self._largest_page = 0
        self._scraping = 0.0
        self._children: dict[int, tuple[int, float]] = {}
        self._in_children = 0
        self._lines_read = 0
        self._samples: list[tuple[int, float]] = []
        self._stopped = False
        self._done = threading.Event()

    # -- the application ---------------------------------------------------------------------------------------------

    def _work(self, number: int, work: Callable[[Worker, Callable[[], bool]], None], quota: int) -> None:
        tally = self._tallies[number]
        worker = Worker(tally, self.options.names, f"{self.options.seed} {number}")

        def go_on() -> bool:
            self._gate.passes()
            if "leak" in self.options.inject:
                self.kept.append(b"x" * 2_000_000)
            return tally.total < quota and not self._stopped

        try:
            if number == 0 and self.options.inject:
                self._break_something(worker)
            work(worker, go_on)
        except BaseException:
            self.troubles.add(f"worker {number} ended: {traceback.format_exc()}")
        finally:
            self._gate.leave()

    def _break_something(self, worker: Worker) -> None:
        what = self.options.inject
        if "miscount" in what:
            worker.tally.add(0, "completed")
        if "polls" in what:
            worker.tally.polls[1] += 1
        if "stderr" in what:
            print("a traceback", file=sys.stderr)
        if "thread" in what:
            threading.Thread(target=threading.Event().wait, daemon=True, name="left behind").start()
        if "descriptor" in what:
            self.kept.append(open(os.devnull))  # noqa: SIM115 left open on purpose
        if "exception" in what:
            raise ZeroDivisionError("out of a span")

    # -- around it ---------------------------------------------------------------------------------------------------

    def _scrape(self, port: int) -> None:
        """Scrape again and again, and rest so long that scrapes take about a tenth of the time."""
        before = (0.0, 0.0)
        while True:
            began = time.monotonic()
            least = self._total()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2 * PATIENCE) as answer:
                    page = answer.read().decode()
                most = self._total()
                sums = sums_of(page)
                # What a worker adds to its tally a moment after the span is over, and what is open.
                room = 20 * len(self._tallies)
                if sums[0] < before[0] or sums[1] < before[1] or not least - room <= sums[0] <= most + room:
                    self.troubles.add(
                        f"a page has {sums} begun and finished spans after {before}, of {least} to {most}"
                    )
                before = sums
                self._largest_page = max(self._largest_page, len(page))
                # Not to be held while it rests: it is as large as what the library keeps.
                del page
            except Exception as error:
                self.troubles.add(f"scrape failed: {error!r}")
            self._scrapes += 1
            took = time.monotonic() - began
            self._scraping = max(self._scraping, took)
            if self._done.wait(max(0.25, 10 * took)):
                return

    def _total(self) -> int:
        return sum(tally.total for tally in self._tallies)

    def _fork(self) -> None:
        self._forks += 1
        reader, writer = os.pipe()
        # Said on purpose: the child has what it takes, and shows it.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            try:
                where = open(self._disk.folder / f"child-{os.getpid()}", "w")  # noqa: SIM115 for as long as it lives
                faulthandler.dump_traceback_later(PATIENCE * 0.9, file=where)
                os.write(writer, json.dumps(self._in_child()).encode()[:60_000])
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        self._children[child] = reader, time.monotonic() + PATIENCE
        self._in_children += 2 * IN_CHILD

    def _in_child(self) -> list[str]:
        """The troubles of a child, in which all counts begin at zero."""
        troubles = sys.stderr = Troubles()
        try:
            names = self.names[:20]
            tally = Tally(names)
            worker = Worker(tally, len(names), f"{self.options.seed} child {self._forks}")
            in_thread(worker, lambda: tally.total < IN_CHILD)
            in_loop(worker, lambda: tally.total < 2 * IN_CHILD)
            if "child" in self.options.inject:
                tally.add(0, "completed")
            self._inspector.settle()
            expected = tally.by_name()
            snapshot = self._inspector.snapshot()
            for line in differences("in a child", expected, counted(snapshot.names)):
                troubles.add(line)
            for line in self._account(tally, snapshot, "in a child: "):
                troubles.add(line)
            for line in page_is_valid("in a child", expected, self._exporter.gather()):
                troubles.add(line)
        except BaseException:
            troubles.add(f"in a child: {traceback.format_exc()}")
        return troubles.lines

    def _hear_of_children(self, *, all_of_them: bool = False) -> None:
        """Take what children that are over have said; those that take too long are ended."""
        while self._children:
            for child, (reader, until) in list(self._children.items()):
                if select.select([reader], [], [], 0)[0]:
                    with open(reader, "rb", closefd=False) as file:
                        said = file.read()
                    status = os.waitpid(child, 0)[1]
                    for line in json.loads(said) if said else [f"a child ended with status {status} and said nothing"]:
                        self.troubles.add(line)
                elif time.monotonic() > until:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    where = (self._disk.folder / f"child-{child}").read_text()
                    self.troubles.add(f"a child was not done after {PATIENCE:.0f} s: {where}")
                else:
                    continue
                os.close(reader)
                del self._children[child]
            if not all_of_them:
                return
            time.sleep(0.01)

    def _reload(self) -> None:
        self._reloads += 1
        if self._reloads % 2:
            with self._gate:
                configure(self._disk.log, self._reloads, handler_too=True)
        else:
            configure(self._disk.log, self._reloads, handler_too=False)

    # -- the account -------------------------------------------------------------------------------------------------

    def _account(self, tally: Tally, snapshot: Any, where: str = "") -> list[str]:
        """Whether what is kept and what was dropped is all there was. `snapshot`: with its tasks."""
        dropped, begun = snapshot.dropped, tally.total
        live = [task for task in snapshot.tasks if task.outcome is None]
        kept = len(snapshot.tasks) - len(live)
        troubles = differences(
            f"{where}polls", tally.polls_by_name(), polled(snapshot.names), "polls, those seen, wakes"
        )
        troubles += of_one_mind(f"{where}polls", snapshot.names, (INSTALLED, STEPPED))
        if live:
            troubles.append(f"{where}{len(live)} spans are still open, such as {live[0].name}")
        if kept + dropped["max_tasks"] != begun:
            troubles.append(f"{where}{kept} tasks kept and {dropped['max_tasks']} dropped, of {begun} begun")
        if (snapshot.events["spawn"], snapshot.events["drop"]) != (begun, begun):
            troubles.append(f"{where}{snapshot.events} events, of {begun} spans")
        if snapshot.events["log"] != tally.lines:
            troubles.append(f"{where}{snapshot.events['log']} log lines in spans, of {tally.lines}")
        for reason in ("malformed", "duplicate", "gap", "max_names"):
            if dropped[reason]:
                troubles.append(f"{where}{dropped[reason]} dropped for the reason {reason}")
        return troubles

    def run(self) -> tuple[list[tuple[str, str]], dict[str, Any], list[str]]:
        options = self.options
        one_arena()
        self._disk = Disk()
        self._disk.before = self._read_log
        stderr, sys.stderr = sys.stderr, self.troubles  # type: ignore[assignment]
        sys.unraisablehook = lambda told: self.troubles.add(f"unraisable: {told.exc_value!r} in {told.object!r}")
        threading.excepthook = lambda told: self.troubles.add(f"in {told.thread}: {told.exc_value!r}")
        warnings.simplefilter("error")
        # Of what is imported, and no trouble of ours.
        warnings.filterwarnings("ignore", "SOCKS support")
        os.environ["ASYNC_INSPECT_MAX_NAMES"] = str(options.names + 2)
        # Full before memory is looked at, in the short form too.
        os.environ["ASYNC_INSPECT_MAX_EVENTS"] = "500"
        threads_before, files_before = _threads(), _files()
        try:
            return self._run(threads_before, files_before)
        finally:
            sys.stderr = stderr
            self._disk.close()

    def _run(self, threads: set[int], files: set[str]) -> tuple[list[tuple[str, str]], dict[str, Any], list[str]]:
        options, add = self.options, self.troubles.add
        inspector = self._inspector = Inspector.default()
        configure(self._disk.log, 1, handler_too=True)
        closed, silent = ClosedPort(), Silent()
        dead = self._disk.folder / "statsd"
        closed_udp = ClosedPort()
        otlp = [
            OtelExporter(
                "soak",
                inspector,
                f"http://127.0.0.1:{port}",
                protocol="http/protobuf",
                timeout=1.0,
                queue_size=2_000,
                batch_size=500,
            )
            for port in (closed.port, silent.port)
        ]
        statsd = [
            StatsdExporter(inspector, address, max_waiting=5_000)
            for address in (f"unixgram://{dead}", f"127.0.0.1:{closed_udp.port}")
        ]
        for exporter in otlp:
            exporter.start_continuous_export(1.0)
        for sender in statsd:
            sender.start(max(4.0, options.names / 250))
        self._exporter = PrometheusExporter(inspector, update_interval=0.0, scrape_timeout=2 * PATIENCE)
        if "page" in options.inject:
            self._exporter.registry.register(_Wrong())
        server = self._exporter.start_server("127.0.0.1:0")

        kinds = [in_thread] * options.threads + [in_loop] * options.loops
        self._tallies = [Tally(self.names) for _ in kinds]
        self._gate = Gate(len(kinds))
        quota = options.spans // len(kinds)
        workers = [
            threading.Thread(target=self._work, args=(number, work, quota), name=f"worker {number}")
            for number, work in enumerate(kinds)
        ]
        scraper = threading.Thread(target=self._scrape, args=(server.port,), name="scraper")
        began, used = time.monotonic(), time.process_time()
        for thread in [*workers, scraper]:
            thread.start()
        self._make_trouble(workers, began)
        seconds, processor = time.monotonic() - began, time.process_time() - used
        self._done.set()
        scraper.join()
        self._hear_of_children(all_of_them=True)
        peak = max(memory for _, memory in self._samples)

        tally = Tally(self.names)
        for one in self._tallies:
            tally.merge(one)
        inspector.settle()
        if "drops" in options.inject:
            inspector._books.retention.dropped_tasks -= 1
        if "busy" in options.inject:
            inspector._books.totals[STEPPED].busy *= 3
        if "histogram" in options.inject:
            inspector._books.totals["soak.2"].poll_counts.sum += 1
        snapshot = inspector.snapshot()
        expected = tally.by_name()
        lines = differences("at the end", expected, counted(snapshot.names)) + self._account(tally, snapshot)
        lines += page_is_valid("the page", expected, self._exporter.gather(), self._exporter.gather(openmetrics=True))
        for line in lines:
            add(line)
        for handler in FILED.handlers:
            handler.close()
        self._read_log(self._disk.log)
        for line in _default_limit(self.names):
            add(line)

        # One of the dead comes back.
        with Statsd(dead) as back:
            statsd[0].export()
        for line in _came_back(back, statsd[0].dropped, expected):
            add(line)
        for exporter in otlp:
            exporter.shutdown(0.5)
            if (exporter.exported, exporter.exported + exporter.dropped + exporter.unsampled) != (0, tally.total):
                add(f"{exporter.endpoint}: {exporter.exported} exported, {exporter.dropped} dropped, of {tally.total}")
        for sender in statsd:
            sender.close()
        self._exporter.close()
        logging.shutdown()
        for resource in (closed, closed_udp, silent):
            resource.close()
        if not silent.taken:
            add("nobody has come to the silent collector")
        self._none_missing(snapshot)
        left_threads, left_files = self._left(threads, files)
        warm = [sample for sample in self._samples if sample[0] >= WARM * tally.total]
        more = gained(warm) if len(warm) > 1 else 0.0
        if more > ALLOWED:
            add(f"memory is not flat: {more:.0f} MB gained after the first {WARM:.0%}, {slope(warm):.1f} B a span")
        figures = {
            "spans": tally.total,
            "names": len(expected),
            "workers": f"{options.threads} threads, {options.loops} event loops",
            "seconds": round(seconds, 1),
            "processor_seconds": round(processor, 1),
            **{outcome: sum(counts) for outcome, counts in tally.counts.items()},
            "kept": len(snapshot.tasks),
            "dropped": snapshot.dropped["max_tasks"],
            "scrapes": self._scrapes,
            "slowest_scrape": round(self._scraping, 2),
            "largest_page_mb": round(self._largest_page / 1e6, 2),
            "forks": self._forks,
            "spans_in_children": self._in_children,
            "reloads": self._reloads,
            "disk": self._disk.kind,
            "log_errors": sum(Log.errors.values()),
            "log_freed": self._disk.freed,
            "log_lines_read": self._lines_read,
            "otlp_dropped": sum(exporter.dropped for exporter in otlp),
            "statsd_errors": sum(sender.errors for sender in statsd),
            "memory_warm_mb": round(warm[0][1], 1) if warm else 0.0,
            "memory_end_mb": round(warm[-1][1], 1) if warm else 0.0,
            "memory_peak_mb": round(peak, 1),
            "memory_gained_mb": round(more, 2),
            "bytes_a_span": round(slope(warm), 3),
            "memory_mb": [[spans, round(memory, 1)] for spans, memory in self._samples[:: SAMPLES // 20]],
            "threads_left": left_threads,
            "descriptors_left": left_files,
            "troubles": self.troubles.count,
        }
        return _table(figures), figures, self.troubles.lines

    def _make_trouble(self, workers: list[threading.Thread], began: float) -> None:
        """Fork, reload, free the disk and sample the memory as the work gets on, until it is done."""
        times = min(100, max(6, self.options.spans // 50_000))
        troubled = sampled = 0
        while any(worker.is_alive() for worker in workers):
            total = self._total()
            if total * SAMPLES >= sampled * self.options.spans:
                sampled = total * SAMPLES // self.options.spans + 1
                self._samples.append((total, rss()))
            if total * times >= troubled * self.options.spans:
                troubled += 1
                self._fork()
                self._reload()
                if troubled % 2:
                    self._disk.free()
            self._hear_of_children()
            if self.options.seconds and time.monotonic() - began > self.options.seconds:
                self._stopped = True
            workers[0].join(0.01)
        self._samples.append((self._total(), rss()))

    def _read_log(self, log: str) -> None:
        """Count the lines of the log, each of which has to be whole: before it goes, and what is left of it."""
        if not self._disk.is_mounted or not os.path.exists(log):
            return
        reading = Replay(log)
        reading.run()
        report = reading.report
        # The first, of a file that was emptied in the middle of a line, and the last, that found no room.
        if report.broken > 2:
            self.troubles.add(f"{report.broken} lines of the log are broken, of {report.lines}: {report.problems[:3]}")
        self._lines_read += report.lines - report.broken

    def _none_missing(self, snapshot: Any) -> None:
        """A fault that did not happen shows nothing."""
        full = "ENOSPC" in Log.errors
        others = [name for name in Log.errors if name != "ENOSPC"]
        if others:
            self.troubles.add(f"errors of the log file: {dict(Log.errors)}")
        happened = {
            "forks": self._forks,
            "reloads": self._reloads,
            "scrapes": self._scrapes,
            "log lines that found no room": full,
            **{outcome: any(counts) for outcome, counts in self._tallies[0].counts.items()},
        }
        for what, often in happened.items():
            if not often:
                self.troubles.add(f"there were no {what}")
        for said in Lines.internal:
            if not any(part in said for part in EXPECTED):
                self.troubles.add(f"the library complained: {said}")
        for kind, often in diagnostics.troubles.items():
            if not kind.startswith(("otlp", "statsd")):
                self.troubles.add(f"the library had trouble: {kind}, {often} times")

    def _left(self, threads: set[int], files: set[str]) -> tuple[int, int]:
        """Threads and file descriptors that are left, after the time that whatever ends by itself may take."""
        until = time.monotonic() + (0.5 if self.options.inject else LEAVING)
        while (_threads() - threads or _files() - files) and time.monotonic() < until:
            gc.collect()
            time.sleep(0.05)
        left = [thread.name for thread in threading.enumerate() if thread.native_id not in threads]
        if left:
            self.troubles.add(f"threads are left: {', '.join(left)}")
        open_still = _files() - files
        if open_still:
            self.troubles.add(f"file descriptors are left: {', '.join(sorted(open_still))}")
        return len(left), len(open_still)


class _Wrong:
    """A collector with a counter below zero, which no page may have."""

    def collect(self) -> list[Any]:
        wrong = Metric("wrong", "on purpose", "counter")
        wrong.samples.append(Sample("wrong_total", {}, -1.0))
        return [wrong]


def _threads() -> set[int]:
    return {int(task) for task in os.listdir("/proc/self/task")}


def _files() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            pass  # that of the folder itself
    return found


def _default_limit(names: list[str]) -> list[str]:
    """With the default `max_names`, the names beyond it count together, and no span is lost."""
    limit = Config().max_names or 0
    names = [*names, *(f"more.{number}" for number in range(max(0, 2 * limit - len(names))))]
    inspector = Inspector()
    logger = logging.getLogger("soak.default")
    logger.propagate = False
    handler = AsyncInspectHandler(inspector)
    logger.addHandler(handler)
    for _ in range(2):
        for name in names:
            with span(name, logger=logger):
                pass
    logger.removeHandler(handler)
    handler.close()
    snapshot = inspector.snapshot()
    beyond = 2 * (len(names) - limit)
    expected = {**dict.fromkeys(names[:limit], (2, 0, 0)), "_other_": (beyond, 0, 0)}
    troubles = differences("with the default max_names", expected, counted(snapshot.names))
    if snapshot.dropped["max_names"] != beyond:
        troubles.append(f"{snapshot.dropped['max_names']} spans beyond max_names, of {beyond}")
    return troubles


def _came_back(server: Statsd, dropped: int, expected: dict[str, tuple[int, int, int]]) -> list[str]:
    """What a StatsD server was told that came only at the end."""
    prefix = "async_inspect.tasks_{}."
    found = {}
    for name in expected:
        plain = name.replace(".", "_")
        got = [server.counters[prefix.format(o) + plain] for o in ("completed", "failed", "cancelled")]
        found[name] = (int(got[0]), int(got[1]), int(got[2]))
    troubles = differences("at the StatsD server that came back", expected, found)
    total = sum(map(sum, expected.values()))
    if server.durations + dropped != total:
        troubles.append(f"StatsD: {server.durations} durations came and {dropped} were dropped, of {total} spans")
    return troubles


def _table(figures: dict[str, Any]) -> list[tuple[str, str]]:
    f = figures
    return [
        ("spans", f"{f['spans']:,} over {f['names']:,} names, from {f['workers']}"),
        ("completed, failed, cancelled", f"{f['completed']:,}, {f['failed']:,}, {f['cancelled']:,}"),
        ("time", f"{f['seconds']:,.0f} s, {f['processor_seconds']:,.0f} s of processor time"),
        ("details kept, dropped", f"{f['kept']:,}, {f['dropped']:,}"),
        ("scrapes", f"{f['scrapes']:,}, the slowest {f['slowest_scrape']} s, pages up to {f['largest_page_mb']} MB"),
        ("forks", f"{f['forks']:,}, with {f['spans_in_children']:,} spans in the children"),
        ("logging set up anew", f"{f['reloads']:,} times"),
        ("log lines that found no room", f"{f['log_errors']:,}, on {f['disk']}, freed {f['log_freed']} times"),
        ("lines of the log", f"{f['log_lines_read']:,} read each time before it was freed, and at the end: all whole"),
        ("dead OTLP collectors", f"2, {f['otlp_dropped']:,} tasks dropped and counted"),
        ("dead StatsD servers", f"2, {f['statsd_errors']:,} packets refused"),
        (
            "memory",
            f"{f['memory_warm_mb']} MB after half, {f['memory_end_mb']} MB at the end, at most "
            f"{f['memory_peak_mb']} MB",
        ),
        ("gained after that half", f"{f['memory_gained_mb']} MB, {f['bytes_a_span']} B a span"),
        ("threads, descriptors left", f"{f['threads_left']}, {f['descriptors_left']}"),
        ("troubles", f"{f['troubles']}"),
    ]
