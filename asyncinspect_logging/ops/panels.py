"""The panels of the Grafana dashboard, as data: what each shows, its PromQL, and what to do about what it shows.

Of the queries:

- All add up processes before anything else is done with them. Quantiles are of the summed buckets, never means of
  quantiles.
- Metrics by name take the three filters of the dashboard. The others count a whole process, and take job and instance.
- Rates are over `$__rate_interval`, which is never shorter than four scrapes.
- Series of findings begin with the finding, at 1, where `increase()` sees nothing: those panels show the counters.
- A share of nothing is NaN: denominators are filtered with `> 0`, quantiles with `>= 0`, and nothing is shown instead.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from ..catalogue import LAG_BOUNDS

__all__ = ["PROCESSES", "ROWS", "TASKS", "Column", "Panel", "Query", "Row"]

#: Filters, by the variables of the dashboard.
PROCESSES: Final = '{job=~"$job", instance=~"$instance"}'
TASKS: Final = '{job=~"$job", instance=~"$instance", name=~"$name"}'

#: How a query is asked: over the time range, now, as rows of a table, or as the buckets of a histogram.
Form = Literal["range", "instant", "table", "buckets"]
Kind = Literal["stat", "graph", "bars", "pie", "table"]

GREEN: Final = "green"
YELLOW: Final = "yellow"
ORANGE: Final = "orange"
RED: Final = "red"
BLUE: Final = "blue"
PURPLE: Final = "purple"
GREY: Final = "#8e8e8e"
STATES: Final = {"running": GREEN, "pending": BLUE, "blocked": YELLOW}
EVENTS: Final = {"spawn": BLUE, "poll": YELLOW, "wake": GREEN, "drop": PURPLE, "log": GREY}
LINTS: Final = {
    "deadlock": RED,
    "long_poll": ORANGE,
    "never_yielded": "dark-orange",
    "self_wakes": YELLOW,
    "leaked": PURPLE,
    "lost_waker": BLUE,
    "never_awaited": GREY,
}
REASONS: Final = {
    "max_tasks": BLUE,
    "max_events": GREEN,
    "max_names": YELLOW,
    "malformed": RED,
    "duplicate": PURPLE,
    "gap": ORANGE,
}
COMPONENTS: Final = {"tasks": BLUE, "events": GREEN, "metadata": YELLOW}
OUTCOMES: Final = {"completed": GREEN, "failed": RED, "cancelled": GREY}


class Query(NamedTuple):
    """PromQL, and the legend of its series (`{{label}}` stands for a label's value)."""

    expr: str
    legend: str
    form: Form = "range"


class Column(NamedTuple):
    """A column of a table: the label, or the query by its place (`#A`), that it shows, its heading and its unit."""

    of: str
    heading: str
    unit: str = ""
    width: int = 0


class Panel(NamedTuple):
    """A panel. `width` is in the 24 columns of a dashboard. `thresholds` are (value from which on, colour); `colours`
    are of series by their legend; `columns` are those of a table, which is sorted by the last whose name ends in `↓`.
    `empty` is shown where there is no data.
    """

    title: str
    kind: Kind
    width: int
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    decimals: int | None = None
    thresholds: tuple[tuple[float, str], ...] = ()
    colours: dict[str, str] = {}  # noqa: RUF012 - never changed
    stack: Literal["", "normal", "percent"] = ""
    steps: bool = False
    columns: tuple[Column, ...] = ()
    empty: str = ""


class Row(NamedTuple):
    title: str
    height: int
    panels: tuple[Panel, ...]


def _sum(metric: str, where: str = TASKS, by: str = "") -> str:
    return f"sum{_by(by)}(async_inspect_{metric}{where})"


def _rate(metric: str, where: str = TASKS, by: str = "", window: str = "$__rate_interval") -> str:
    return f"sum{_by(by)}(rate(async_inspect_{metric}{where}[{window}]))"


def _increase(metric: str, where: str = TASKS, by: str = "") -> str:
    """Over the time range."""
    return f"sum{_by(by)}(increase(async_inspect_{metric}{where}[$__range]))"


def _seen(metric: str, where: str, by: str = "") -> str:
    """A counter's value, also of processes that have ended since, if it was in the time range."""
    return f"sum{_by(by)}(max_over_time(async_inspect_{metric}{where}[$__range]))"


def _quantile(q: float, metric: str, where: str = TASKS, by: str = "", window: str = "$__rate_interval") -> str:
    buckets = _rate(f"{metric}_bucket", where, f"le, {by}" if by else "le", window)
    return f"histogram_quantile({q:g}, {buckets}) >= 0"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


def _also(where: str, more: str) -> str:
    return f"{where[:-1]}, {more}}}"


def _events(type: str) -> str:
    return _also(PROCESSES, f'type="{type}"')


def _zero(expr: str) -> str:
    """Where there is no series yet, none has been counted."""
    return f"{expr} or vector(0)"


def _live(by: str = "") -> str:
    """Tasks begun less tasks over."""
    over = "".join(f" - {_sum(f'tasks_{outcome}_total', by=by)}" for outcome in OUTCOMES)
    return f"{_sum('tasks_total', by=by)}{over}"


def _blocked(by: str) -> str:
    """Live tasks less how many of them, in the mean of the interval, ran or waited for their turn. The counter of idle
    seconds would not do: it gets a wait when that ends, and has nothing of a task that is stuck.
    """
    ran, queued = (_rate(metric, by=by) for metric in ("task_busy_seconds_total", "scheduled_seconds_sum"))
    return f"{_live(by)} - {ran} - {queued}"


_SLOW_POLL: Final = 0.1
assert _SLOW_POLL in LAG_BOUNDS
_LAG: Final = ((0.05, YELLOW), (_SLOW_POLL, RED))
#: Cancelled tasks say nothing of how long the work takes.
_DONE: Final = _also(TASKS, 'state=~"completed|failed"')
#: As in OpenMetrics and the older format alike.
_NOT_LONG: Final = _also(TASKS, f'le="{_SLOW_POLL}"')
_LIVE: Final = _also(PROCESSES, 'state=~"pending|running|blocked"')
_FINISHED: Final = " + ".join(_rate(f"tasks_{outcome}_total") for outcome in OUTCOMES)
_BY_NAME: Final = "{{name}}"

_OVERVIEW: Final = Row(
    "Overview",
    5,
    (
        Panel(
            "Processes",
            "stat",
            3,
            "Processes that were scraped last time. If one is missing, see the page Status, Targets of Prometheus.",
            (Query(_zero(f"count(async_inspect_build_info{PROCESSES})"), "processes"),),
            thresholds=((0, RED), (1, BLUE)),
        ),
        Panel(
            "Total tasks",
            "stat",
            3,
            "Tasks begun since the processes began; falls when one is restarted. At zero, no span has been entered: "
            "see the page on troubleshooting.",
            (Query(_zero(_sum("tasks_total")), "tasks"),),
            thresholds=((0, BLUE),),
        ),
        Panel(
            "Active tasks",
            "stat",
            3,
            "Tasks not yet over: pending, running or blocked, of all names. If it grows while the creation rate does "
            "not, tasks pile up: see Live tasks by name.",
            (Query(_sum("active_tasks", PROCESSES), "active"),),
            thresholds=((0, BLUE),),
        ),
        Panel(
            "Task creation rate",
            "stat",
            3,
            "Tasks begun per second. A sudden fall with requests still coming in: look at Loop lag and Blocked tasks.",
            (Query(_rate("tasks_total"), "begun"),),
            unit="suffix:/s",
            thresholds=((0, BLUE),),
        ),
        Panel(
            "Failed tasks",
            "stat",
            3,
            "Of the tasks that ended, the share that an exception ended. Failed tasks by name says which; the log has "
            "the exceptions.",
            (Query(f"{_rate('tasks_failed_total')} / ({_FINISHED} > 0)", "failed"),),
            unit="percentunit",
            decimals=2,
            thresholds=((0, GREEN), (0.01, YELLOW), (0.05, RED)),
            empty="none ended",
        ),
        Panel(
            "Deadlock count",
            "stat",
            3,
            "Deadlocks found by processes that ran in the time range. Tasks in a deadlock do not come out of it: the "
            "finding in the log (logger asyncinspect.findings) names them and what each holds. Then restart.",
            (Query(_zero(_seen("deadlocks_total", PROCESSES)), "deadlocks", "instant"),),
            thresholds=((0, GREEN), (1, RED)),
        ),
        Panel(
            "Findings",
            "stat",
            3,
            "What was found to be wrong with tasks of processes that ran in the time range. See Findings by name.",
            (Query(_zero(_seen("lints_total", TASKS)), "findings", "instant"),),
            thresholds=((0, GREEN), (1, YELLOW)),
        ),
        Panel(
            "Loop lag",
            "stat",
            3,
            "How late the event loop of the worst process is, 99th percentile: every task there waits as long. If it "
            "is red, look at Long polls.",
            (
                Query(
                    f"max({_quantile(0.99, 'event_loop_lag_seconds', PROCESSES, 'job, instance')})",
                    "worst process",
                ),
            ),
            unit="s",
            thresholds=((0, GREEN), *_LAG),
            empty="no loop under install()",
        ),
    ),
)

_PERFORMANCE: Final = Row(
    "Performance",
    11,
    (
        Panel(
            "Task duration",
            "graph",
            8,
            "From the beginning of a task to its end, of those that completed or failed. p99 alone rising: a few are "
            "held up, see Slowest tasks. All rising: the loop, or what all of them need, is slow, see Loop lag.",
            tuple(Query(_quantile(q / 100, "task_duration_seconds", _DONE), f"p{q}") for q in (50, 95, 99)),
            unit="s",
            colours={"p50": GREEN, "p95": YELLOW, "p99": ORANGE},
        ),
        Panel(
            "Slowest tasks",
            "table",
            10,
            "The ten names with the longest 99th percentile in the time range. Quantiles come from buckets, and are at "
            "most the largest bound, 30 s. `asyncinspect stats` on a log says what a name's time goes into.",
            (
                Query(
                    f"topk(10, {_quantile(0.99, 'task_duration_seconds', _DONE, 'name', '$__range')})", "p99", "table"
                ),
                Query(_quantile(0.5, "task_duration_seconds", _DONE, "name", "$__range"), "p50", "table"),
                Query(
                    f"{_increase('task_duration_seconds_sum', _DONE, 'name')}"
                    f" / ({_increase('task_duration_seconds_count', _DONE, 'name')} > 0)",
                    "mean",
                    "table",
                ),
                Query(f"{_increase('task_duration_seconds_count', _DONE, 'name')} > 0", "tasks", "table"),
            ),
            columns=(
                Column("name", "Name"),
                Column("#D", "Tasks", "short", 75),
                Column("#C", "Mean", "s", 90),
                Column("#B", "p50", "s", 90),
                Column("#A", "p99 ↓", "s", 90),
            ),
        ),
        Panel(
            "Poll count distribution",
            "bars",
            6,
            "Tasks that ended in the time range, by how often they were polled: at most so often, and more often than "
            "the bar before. Tasks far down are woken in vain: look for loops around sleep(0), and see the lint "
            "self_wakes.",
            (Query(_increase("poll_count_bucket", by="le"), "{{le}}", "buckets"),),
            decimals=0,
        ),
    ),
)

_STATES: Final = Row(
    "Task states",
    8,
    (
        Panel(
            "Running tasks",
            "graph",
            6,
            "Tasks that hold an event loop or wait for their turn, as scrapes saw them. A loop runs one at a time, so "
            "running is small. Pending that stays high: loops are busy, add processes or see Loop time by name.",
            tuple(
                Query(_sum("tasks_by_state", _also(PROCESSES, f'state="{state}"')), state)
                for state in ("running", "pending")
            ),
            colours=STATES,
        ),
        Panel(
            "Blocked tasks",
            "graph",
            6,
            "Tasks that wait for something, and all live ones. To wait is what tasks do; to rise only is not: "
            "see Blocked tasks by name, and the page Where is it stuck, which says what each waits for.",
            (
                Query(_sum("blocked_tasks", PROCESSES), "blocked"),
                Query(_sum("active_tasks", PROCESSES), "all live"),
            ),
            colours={"blocked": YELLOW, "all live": BLUE},
        ),
        Panel(
            "Completed and failed",
            "graph",
            6,
            "How tasks ended, in per cent. Failed rising: see Failed tasks by name. Cancelled rising: timeouts, "
            "clients that go away, or task groups in which one fails.",
            tuple(Query(_rate(f"tasks_{outcome}_total"), outcome) for outcome in OUTCOMES),
            unit="suffix:/s",
            colours=OUTCOMES,
            stack="percent",
        ),
        Panel(
            "Live tasks by state",
            "pie",
            6,
            "Live tasks at the last scrape. Nearly all blocked is the healthy picture; a large share of pending is a "
            "loop that does not keep up.",
            (Query(_sum("tasks_by_state", _LIVE, "state"), "{{state}}", "instant"),),
            colours=STATES,
        ),
        Panel(
            "Blocked tasks by name",
            "graph",
            8,
            "The ten names with the most tasks that wait for something: live less those that ran (busy) or waited for "
            "their turn (queueing) lately. A name that grows waits for what is slow or does not come: Where is it "
            "stuck says for what. One that holds the loop counts until it lets go; without a driver, all live ones do.",
            (Query(f"topk(10, {_blocked('name')} > 0)", _BY_NAME),),
        ),
        Panel(
            "Live tasks by name",
            "graph",
            8,
            "The ten names with the most live tasks, begun less ended. A name that grows here and not in Blocked tasks "
            "by name waits for its turn: the loop is short of time, or nobody limits how many there are.",
            (Query(f"topk(10, {_live('name')} > 0)", _BY_NAME),),
        ),
        Panel(
            "Failed tasks by name",
            "graph",
            8,
            "Tasks per second that an exception ended, by name. The log has each with its exception: search it for the "
            "name and outcome failed.",
            (Query(f"topk(10, {_rate('tasks_failed_total', by='name')} > 0)", _BY_NAME),),
            unit="suffix:/s",
            empty="none failed",
        ),
    ),
)

_EVENTS: Final = Row(
    "Events",
    8,
    (
        Panel(
            "Event rate by type",
            "graph",
            8,
            "What happens to tasks, per second: spawn is a beginning, drop an end, log a log line inside a span. "
            "Polls rising alone: tasks run in many small steps, see Poll count distribution.",
            (Query(_rate("events_total", PROCESSES, "type"), "{{type}}"),),
            unit="suffix:/s",
            colours=EVENTS,
        ),
        Panel(
            "Polls per wake",
            "graph",
            8,
            "About 1 where a driver sees all of it, more where spans are not driven. A change is what to look at: "
            "rising, tasks are polled without being woken.",
            (
                Query(
                    f"{_rate('events_total', _events('poll'))} / ({_rate('events_total', _events('wake'))} > 0)",
                    "polls per wake",
                ),
            ),
            decimals=2,
            empty="no wakes seen",
        ),
        Panel(
            "Spawn rate",
            "graph",
            8,
            "Tasks begun and ended per second. While begun is above ended, live tasks grow.",
            (
                Query(_rate("events_total", _events("spawn")), "begun"),
                Query(_rate("events_total", _events("drop")), "ended"),
            ),
            unit="suffix:/s",
            colours={"begun": BLUE, "ended": GREEN},
        ),
    ),
)

_LOOP: Final = Row(
    "Event loop",
    8,
    (
        Panel(
            "Loop lag and queueing",
            "graph",
            8,
            "How late the loop gets to what is due, and how long woken tasks wait for their turn. Above the line, "
            "something holds the loop: see Long polls, and the finding blocked_loop in the log, which has the stack.",
            (
                Query(_quantile(0.99, "event_loop_lag_seconds", PROCESSES, "instance"), "lag p99 {{instance}}"),
                Query(_quantile(0.5, "event_loop_lag_seconds", PROCESSES), "lag p50"),
                Query(_quantile(0.95, "scheduled_seconds"), "queueing p95"),
            ),
            unit="s",
            thresholds=((_SLOW_POLL, RED),),
        ),
        Panel(
            "Long polls",
            "graph",
            8,
            "Polls per minute that held the loop for more than 0.1 s (the default of slow_poll), by name: all other "
            "tasks stood still. Hand blocking calls to asyncio.to_thread, and long computations to a process.",
            (
                Query(
                    f"topk(10, 60 * ({_rate('poll_duration_seconds_count', by='name')} - "
                    f"{_rate('poll_duration_seconds_bucket', _NOT_LONG, 'name')}) > 0.001)",
                    _BY_NAME,
                ),
            ),
            unit="suffix:/min",
            empty="none",
        ),
        Panel(
            "Loop time by name",
            "graph",
            8,
            "What the loop's time goes into: a loop has one second per second. A nested span's time is also that of "
            "the span around it. The name at the top is the one to make faster, or to move out of the loop.",
            (Query(f"topk(10, {_rate('task_busy_seconds_total', by='name')} > 0)", _BY_NAME),),
            unit="percentunit",
            empty="no driver",
        ),
    ),
)

_HEALTH: Final = Row(
    "Findings and losses",
    8,
    (
        Panel(
            "Findings over time",
            "graph",
            6,
            "Findings since the processes began; each step is a new one. What each is, and what to do, is on the page "
            "on lints.",
            (
                Query(_sum("lints_total", by="lint"), "{{lint}}"),
                Query(_sum("deadlocks_total", PROCESSES), "deadlock"),
            ),
            colours=LINTS,
            steps=True,
        ),
        Panel(
            "Findings by name",
            "table",
            7,
            "What was found, of which name, by processes that ran in the time range. The log (logger "
            "asyncinspect.findings) has each with what to do.",
            (Query(_seen("lints_total", TASKS, "lint, name"), "findings", "table"),),
            columns=(
                Column("lint", "Finding", width=120),
                Column("name", "Name"),
                Column("#A", "Tasks ↓", "short", 75),
            ),
            empty="none",
        ),
        Panel(
            "Drops",
            "graph",
            6,
            "What was not kept, per minute. max_tasks and max_events make room for newer ones, and are normal. "
            "max_names: give spans names from a small set. malformed, duplicate, gap: counters may be short, see "
            "troubleshooting.",
            (Query(f"60 * {_rate('dropped_total', PROCESSES, 'reason')}", "{{reason}}"),),
            unit="suffix:/min",
            colours=REASONS,
        ),
        Panel(
            "Memory of the inspector",
            "graph",
            5,
            "An estimate, of all processes. tasks too large: lower Config.max_tasks; events: max_events; metadata: "
            "fewer names.",
            (Query(_sum("memory_bytes", PROCESSES, "component"), "{{component}}"),),
            unit="bytes",
            colours=COMPONENTS,
            stack="normal",
        ),
    ),
)

ROWS: Final = (_OVERVIEW, _PERFORMANCE, _STATES, _EVENTS, _LOOP, _HEALTH)
