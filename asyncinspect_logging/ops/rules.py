"""Alerting and recording rules for Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from textwrap import dedent, indent
from typing import Any, Final, NamedTuple

from ..errors import ConfigError

__all__ = ["ALERTS", "RECORDINGS", "RUNBOOKS", "SEVERITIES", "Alert", "Recording", "rule_groups", "rules_text"]

#: Where the page is that has a heading for each alert: in the project's repository.
RUNBOOKS: Final = "docs/alerts.md"
SEVERITIES: Final = ("critical", "warning")

_SERIES: Final = re.compile(r"\b(async_inspect_[a-z_]+|up)\b(?:\{([^{}]*)\})?")
_PREFIX: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Alert(NamedTuple):
    """An alerting rule. `pending`: the time for which it has to hold, as Prometheus writes times, "" for none."""

    name: str
    severity: str
    pending: str
    expr: str
    summary: str
    description: str


class Recording(NamedTuple):
    """A recording rule."""

    name: str
    comment: str
    expr: str


_HERE: Final = "{{ $labels.job }} at {{ $labels.instance }}"

ALERTS: Final = (
    Alert(
        "HighTaskCount",
        "warning",
        "5m",
        "async_inspect_active_tasks > 1000",
        "High number of concurrent tasks",
        f'{_HERE} has {{{{ $value | printf "%.0f" }}}} live tasks. See which name has most of them (tasks begun'
        " less tasks finished), and bound what makes them: a semaphore, a pool of workers, a queue with maxsize.",
    ),
    Alert(
        "DeadlockDetected",
        "critical",
        "",
        # Of a target whose first scrape has one already, there is no increase to be seen. After a scrape that failed
        # it is not the first one, so more than a moment is looked back at.
        """
        increase(async_inspect_deadlocks_total[5m]) > 0
          or (async_inspect_deadlocks_total > 0
            unless present_over_time(async_inspect_deadlocks_total[5m] offset 5m))
        """,
        "Deadlock detected in async tasks",
        '{{ $value | printf "%.0f" }} deadlock(s) in the last five minutes in '
        f"{_HERE}. The log of asyncinspect.findings names the tasks, the locks that each holds and waits for, and the"
        " lines of code. They stay blocked until one of them is cancelled: restart the process, then have all tasks"
        " take these locks in the same order.",
    ),
    Alert(
        "SlowTasksDetected",
        "warning",
        "5m",
        """
        histogram_quantile(0.99,
          sum by (job, le, name) (rate(async_inspect_task_duration_seconds_bucket[5m]))) > 10
        """,
        "Tasks taking longer than expected",
        "The slowest 1 in 100 of the tasks {{ $labels.name }} of {{ $labels.job }} take {{ $value | humanizeDuration }}"
        " or longer. `asyncinspect stats` of a log says what they wait for; give what is remote a timeout. Names that"
        ' are meant to run for long are left out of this alert by a matcher, name!~"…".',
    ),
    Alert(
        "HighBlockedTaskPercentage",
        "warning",
        "10m",
        """
        100 * sum without (state) (async_inspect_tasks_by_state{state="blocked"})
          / sum without (state) (async_inspect_tasks_by_state) > 50
          and async_inspect_blocked_tasks >= 50
        """,
        "More than 50% of tasks are blocked",
        '{{ $value | printf "%.0f" }}% of the tasks of '
        f"{_HERE}, live ones and those that finished lately, are waiting. Look at what they wait for (waiting_on in a"
        " snapshot, `asyncinspect replay --open` of a log): a pool that is too small, or something remote that does not"
        " answer.",
    ),
    Alert(
        "HighMemoryUsage",
        "warning",
        "5m",
        "sum without (component) (async_inspect_memory_bytes) > 1e9",
        "async-inspect using excessive memory",
        f"The inspector in {_HERE} keeps {{{{ $value | humanize1024 }}}}B. Lower Config.max_tasks and"
        " Config.max_events, or, if it is the component metadata, have fewer span names: they must not hold ids.",
    ),
    Alert(
        "EventLoopBlocked",
        "critical",
        "",
        # The loop has answered, late, so often or so late that nobody was served for a minute in all; or it has not
        # answered yet, and the same task is running at each scrape. The lag of a loop that is merely busy adds up, too,
        # so there has to be a stall.
        """
        increase(async_inspect_event_loop_lag_seconds_sum[5m]) > 60
            and increase(async_inspect_event_loop_lag_seconds_count[5m])
              - ignoring (le) increase(async_inspect_event_loop_lag_seconds_bucket{le="1.0"}[5m]) > 0
          or sum without (state) (min_over_time(async_inspect_tasks_by_state{state="running"}[2m])) > 0
            and on (job, instance) (
              increase(async_inspect_event_loop_lag_seconds_count[2m]) == 0
                and async_inspect_event_loop_lag_seconds_count > 0
            )
        """,
        "Event loop blocked",
        f"An event loop of {_HERE} was held for more than a minute of the last five, or has not come back for two."
        " Nothing there is answered meanwhile. The log of asyncinspect.findings has the Python stack of what held it"
        " (blocked_loop): hand blocking calls to asyncio.to_thread(), and long computations to a process.",
    ),
    Alert(
        "EventLoopStalled",
        "warning",
        "",
        """
        increase(async_inspect_event_loop_lag_seconds_count[5m])
          - ignoring (le) increase(async_inspect_event_loop_lag_seconds_bucket{le="1.0"}[5m]) > 0
        """,
        "Event loop held for more than a second",
        f'{{{{ $value | printf "%.0f" }}}} time(s) in the last five minutes an event loop of {_HERE} was held for more'
        " than a second. The log of asyncinspect.findings has the Python stack of what held it (blocked_loop): hand"
        " blocking calls to asyncio.to_thread(), and long computations to a process.",
    ),
    Alert(
        "EventLoopLagging",
        "warning",
        "5m",
        "histogram_quantile(0.99, rate(async_inspect_event_loop_lag_seconds_bucket[5m])) > 0.1",
        "Event loop short of time",
        f"1 in 100 times the event loop of {_HERE} is {{{{ $value | humanizeDuration }}}} late or later. See which"
        " names take most of its time (async_inspect_task_busy_seconds_total), make their steps shorter, or add"
        " processes.",
    ),
    Alert(
        "TasksLeaked",
        "warning",
        "",
        # A series of lints begins with its first finding, which is no increase; and not after a scrape that failed.
        """
        sum by (job, instance, lint, name) (
          (async_inspect_lints_total{lint=~"leaked|lost_waker|never_awaited"}
            unless present_over_time(
              async_inspect_lints_total{lint=~"leaked|lost_waker|never_awaited"}[5m] offset 15m))
          or increase(async_inspect_lints_total{lint=~"leaked|lost_waker|never_awaited"}[15m])
        ) > 0
        """,
        "Tasks leaked",
        '{{ $value | printf "%.0f" }} tasks {{ $labels.name }} in the last 15 minutes in '
        f"{_HERE}: {{{{ $labels.lint }}}}. Keep a reference to each task and await it, as in an asyncio.TaskGroup; the"
        " log of asyncinspect.findings says where each of them waits.",
    ),
    Alert(
        "RecordsDropped",
        "warning",
        "",
        'increase(async_inspect_dropped_total{reason!~"max_tasks|max_events"}[10m]) > 0',
        "Records of tasks dropped",
        f'{_HERE} could not count {{{{ $value | printf "%.0f" }}}} records in the last ten minutes, for the reason'
        " {{ $labels.reason }}: its counters may be short of something. max_names: take ids out of the span names."
        " malformed, duplicate, gap: see troubleshooting.",
    ),
    Alert(
        "TargetDown",
        "critical",
        "5m",
        "up == 0 and on (job, instance) present_over_time(async_inspect_build_info[1d])",
        "Target cannot be scraped",
        f"{_HERE} served metrics in the last day and cannot be scraped. Prometheus's page of targets has the error. See"
        " whether the process lives, and whether its port can be reached.",
    ),
    Alert(
        "TargetAbsent",
        "critical",
        "5m",
        # A job that was there in the last day, or no job at all, for as long as that lasts.
        """
        group by (job) (present_over_time(async_inspect_build_info[1d]))
          unless on (job) async_inspect_build_info
          or (absent(async_inspect_build_info) unless on () group (present_over_time(async_inspect_build_info[1d])))
        """,
        "No target with these metrics",
        "No process{{ with $labels.job }} of {{ . }}{{ end }} gives metrics of async-inspect. See whether it runs,"
        " whether it serves /metrics, and whether Prometheus is told of it: a scrape configuration or service discovery"
        " that matches nothing is no error to Prometheus.",
    ),
)

RECORDINGS: Final = (
    Recording(
        "async_inspect:task_creation_rate:5m",
        "Tasks begun per second.",
        "rate(async_inspect_tasks_total[5m])",
    ),
    Recording(
        "async_inspect:task_duration_avg:5m",
        "Mean duration of the tasks that finished, in seconds.",
        """
        sum by (job) (rate(async_inspect_task_duration_seconds_sum[5m]))
          / sum by (job) (rate(async_inspect_task_duration_seconds_count[5m]))
        """,
    ),
    Recording(
        "async_inspect:duration_p99:5m",
        "99th percentile of the durations, in seconds.",
        """
        histogram_quantile(0.99,
          sum by (job, le, name) (rate(async_inspect_task_duration_seconds_bucket[5m])))
        """,
    ),
    Recording(
        "async_inspect:blocked_percentage",
        "Percentage of the tasks, live ones and those that are kept, that wait.",
        """
        100 * sum without (state) (async_inspect_tasks_by_state{state="blocked"})
          / sum without (state) (async_inspect_tasks_by_state)
        """,
    ),
    Recording(
        "async_inspect:event_loop_lag_p99:5m",
        "99th percentile of how late event loops are, in seconds.",
        "histogram_quantile(0.99, rate(async_inspect_event_loop_lag_seconds_bucket[5m]))",
    ),
)


def rule_groups(
    *,
    alerts: bool = True,
    recordings: bool = True,
    job: str | None = None,
    prefix: str = "",
    severities: Mapping[str, str] | None = None,
    runbooks: str = RUNBOOKS,
) -> list[dict[str, Any]]:
    """A group of alerts, a group of recording rules, or both, as Prometheus has them in `groups`.

    job: only of targets with this label `job`; default: of all that have our metrics.
    prefix: what the alerts' names begin with.
    severities: what the label `severity` is to be in place of "critical" and "warning".
    runbooks: address of the page with the alerts' headings, docs/alerts.md of the project, where your people read it.

    Raises ConfigError for what cannot stand there.
    """
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"prefix={prefix!r} is not the beginning of a name; write letters, digits and _, such as Shop"
        )
    if job is not None and not (job.strip() and job.isprintable()):
        raise ConfigError(f"job={job!r} is no name of a job; write the job_name of the scrape configuration")
    if not runbooks.isprintable():
        raise ConfigError(f"runbooks={runbooks!r} is no address; write one such as https://wiki.example/alerts")
    shown = dict(zip(SEVERITIES, SEVERITIES, strict=True))
    for severity, value in (severities or {}).items():
        if severity not in shown or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(f"severity {severity}={value!r} cannot be used; write for example critical=page")
        shown[severity] = value
    groups: list[dict[str, Any]] = []
    if alerts:
        rules = [_alert(alert, job, prefix, shown[alert.severity], runbooks) for alert in ALERTS]
        groups.append({"name": "async_inspect_alerts", "rules": rules})
    if recordings:
        rules = [{"record": each.name, "expr": _expr(each.expr, job)} for each in RECORDINGS]
        groups.append({"name": "async_inspect_recording", "rules": rules})
    return groups


def rules_text(groups: Iterable[Mapping[str, Any]]) -> str:
    """A file of rules in YAML."""
    lines = ["groups:"]
    for group in groups:
        lines += [f"  - name: {group['name']}", "    rules:"]
        for rule in group["rules"]:
            comment = _COMMENTS.get(rule.get("record", ""))
            lines += [f"      # {comment}"] if comment else []
            entry = indent("\n".join(_entry(rule)), "        ")
            lines.append(f"      - {entry.lstrip()}")
    return "\n".join(lines) + "\n"


def _entry(rule: Mapping[str, Any]) -> Iterator[str]:
    for key, value in rule.items():
        if key == "expr":
            yield f"expr: |-\n{indent(value, '  ')}"
        elif isinstance(value, Mapping):
            yield f"{key}:"
            yield from (f"  {name}: {_quoted(text)}" for name, text in value.items())
        else:
            yield f"{key}: {value}"


def _alert(alert: Alert, job: str | None, prefix: str, severity: str, runbooks: str) -> dict[str, Any]:
    return {
        "alert": prefix + alert.name,
        "expr": _expr(alert.expr, job),
        **({"for": alert.pending} if alert.pending else {}),
        "labels": {"severity": severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{runbooks.partition('#')[0]}#{alert.name.lower()}",
        },
    }


def _expr(expr: str, job: str | None) -> str:
    """The expression, about the targets of one job if that is given."""
    text = dedent(expr).strip()
    if job is None:
        return text
    matcher = f"job={_quoted(job)}"

    def with_job(found: re.Match[str]) -> str:
        return f"{found[1]}{{{', '.join(filter(None, (matcher, found[2])))}}}"

    return _SERIES.sub(with_job, text)


def _quoted(text: str) -> str:
    """A string as YAML and PromQL both read it."""
    return json.dumps(text, ensure_ascii=False)


_COMMENTS: Final = {recording.name: recording.comment for recording in RECORDINGS}
