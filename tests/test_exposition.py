"""The families as metric objects and as text."""

import shutil
import subprocess
import tracemalloc
from io import StringIO
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_fd_to_metric_families

from asyncinspect_logging.catalogue import (
    DROP_REASONS,
    DURATION_BOUNDS,
    EVENT_TYPES,
    LAG_BOUNDS,
    MEMORY_COMPONENTS,
    POLL_COUNT_BOUNDS,
    STEP_BOUNDS,
)
from asyncinspect_logging.exporters.combine import combine
from asyncinspect_logging.exporters.exposition import Renderer
from asyncinspect_logging.histograms import added, cumulative
from asyncinspect_logging.snapshot import Histogram, NameView, Snapshot

NASTY = [
    "plain",
    'quo"ted',
    "new\nline",
    "back\\slash\\",
    "nul\0byte",
    "per%cent %s %d.0 %%",
    "bra{0}ces}",
    "ünïcode ☃ 𝄞",
    "",
    "x" * 10_000,
    "lone\ud800surrogate",
    "\r\x85\u2028",
]


def histogram(bounds, seed=0, sum=None):
    counts = tuple((seed * 7 + i * 3) % 11 for i in range(len(bounds) + 1))
    return Histogram(bounds, counts, seed * 0.1 if sum is None else sum)


def view(name, seed=1, *, states=("completed", "failed", "cancelled"), bounds=DURATION_BOUNDS):
    return NameView(
        name, seed, seed, seed, seed, seed, seed, seed, seed * 1.5, seed / 3, seed / 7,
        {state: histogram(bounds, seed + i) for i, state in enumerate(states)},
        histogram(POLL_COUNT_BOUNDS, seed, sum=seed), histogram(STEP_BOUNDS, seed), histogram(STEP_BOUNDS, seed + 1),
    )  # fmt: skip


def snapshot(*views, **changes):
    lag = Histogram(LAG_BOUNDS, (0,) * (len(LAG_BOUNDS) + 1), 0.0)
    names = {view.name: view for view in views}
    return Snapshot(0.0, (), names, {}, {}, {}, {}, (), 0, {}, lag)._replace(**changes)


class Collected:
    """A registry of one collector, fixed."""

    def __init__(self, metrics):
        self.collect = lambda: metrics


def both(renderer, shot):
    """(ours, prometheus_client's) in 0.0.4, then in OpenMetrics."""
    theirs = Collected(renderer.metrics(shot))
    blocks = renderer.blocks(shot)
    yield renderer.page(blocks), generate_latest(theirs)
    yield renderer.page(blocks, openmetrics=True) + b"# EOF\n", openmetrics_exposition.generate_latest(theirs)


def assert_same(renderer, shot):
    for ours, theirs in both(renderer, shot):
        assert ours.decode() == theirs.decode()


def page(shot, **options):
    renderer = Renderer(**options)
    return renderer.page(renderer.blocks(shot)).decode()


def value(shot, name, labels=None, **options):
    registry = CollectorRegistry()
    registry.register(Collected(Renderer(**options).metrics(shot)))
    return registry.get_sample_value(name, labels or {})


FAMILIES = {
    "async_inspect_tasks_total": "counter",
    "async_inspect_tasks_completed_total": "counter",
    "async_inspect_tasks_failed_total": "counter",
    "async_inspect_tasks_cancelled_total": "counter",
    "async_inspect_tasks_by_state": "gauge",
    "async_inspect_active_tasks": "gauge",
    "async_inspect_blocked_tasks": "gauge",
    "async_inspect_task_duration_seconds": "histogram",
    "async_inspect_task_polls_total": "counter",
    "async_inspect_poll_count": "histogram",
    "async_inspect_poll_duration_seconds": "histogram",
    "async_inspect_scheduled_seconds": "histogram",
    "async_inspect_task_busy_seconds_total": "counter",
    "async_inspect_task_idle_seconds_total": "counter",
    "async_inspect_events_total": "counter",
    "async_inspect_deadlocks_total": "counter",
    "async_inspect_deadlocks_detected": "untyped",
    "async_inspect_lints_total": "counter",
    "async_inspect_event_loop_lag_seconds": "histogram",
    "async_inspect_dropped_total": "counter",
    "async_inspect_memory_bytes": "gauge",
    "async_inspect_build_info": "gauge",
}


def types(text):
    return dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))


def test_every_family_is_there_before_anything_happened():
    """An empty inspector's page has the HELP and TYPE lines of the whole catalogue, in both formats."""
    text = page(snapshot())
    assert types(text) == FAMILIES
    assert text.count("# HELP") == len(FAMILIES)
    renderer = Renderer()
    openmetrics = types(renderer.page(renderer.blocks(snapshot()), openmetrics=True).decode())
    assert openmetrics["async_inspect_tasks"] == openmetrics["async_inspect_deadlocks"] == "counter"
    assert openmetrics["async_inspect_deadlocks_detected"] == "unknown"
    assert_same(renderer, snapshot())


def test_fixed_label_values_are_there_at_zero():
    """States, event types, drop reasons and memory components appear before they count anything."""
    lines = page(snapshot()).splitlines()
    for state in ("pending", "running", "blocked", "completed", "failed", "cancelled"):
        assert f'async_inspect_tasks_by_state{{state="{state}"}} 0.0' in lines
    for name, label, values in (
        ("events_total", "type", EVENT_TYPES),
        ("dropped_total", "reason", DROP_REASONS),
        ("memory_bytes", "component", MEMORY_COMPONENTS),
    ):
        assert [line for line in lines if line.startswith(f"async_inspect_{name}{{")] == [
            f'async_inspect_{name}{{{label}="{value}"}} 0.0' for value in values
        ]
    assert "async_inspect_deadlocks_total 0.0" in lines
    assert "async_inspect_deadlocks_detected 0.0" in lines
    assert "async_inspect_event_loop_lag_seconds_count 0.0" in lines
    assert not [line for line in lines if line.startswith("async_inspect_lints_total")]


def test_values_come_from_their_fields():
    """Each counter and gauge shows its own field of the snapshot."""
    failed = view("a").durations["failed"]
    one = view("a")._replace(spawned=1, completed=2, failed=3, cancelled=4, polls=5, busy=6.5, idle=7.5)
    one = one._replace(durations={"failed": failed})
    shot = snapshot(
        one,
        states={"pending": 1, "running": 2, "blocked": 4, "completed": 8},
        events={"poll": 9},
        dropped={"gap": 10},
        memory={"tasks": 11},
        deadlocks=12,
        lints={("leaked", "a"): 13},
    )
    name = {"name": "a"}
    for metric, labels, expected in (
        ("tasks_total", name, 1),
        ("tasks_completed_total", name, 2),
        ("tasks_failed_total", name, 3),
        ("tasks_cancelled_total", name, 4),
        ("task_polls_total", name, 5),
        ("task_busy_seconds_total", name, 6.5),
        ("task_idle_seconds_total", name, 7.5),
        ("task_duration_seconds_count", {**name, "state": "failed"}, failed.total),
        ("task_duration_seconds_count", {**name, "state": "completed"}, None),
        ("poll_count_sum", name, one.poll_counts.sum),
        ("poll_duration_seconds_sum", name, one.poll_durations.sum),
        ("scheduled_seconds_sum", name, one.scheduled_delays.sum),
        ("tasks_by_state", {"state": "completed"}, 8),
        ("active_tasks", {}, 7),
        ("blocked_tasks", {}, 4),
        ("events_total", {"type": "poll"}, 9),
        ("dropped_total", {"reason": "gap"}, 10),
        ("memory_bytes", {"component": "tasks"}, 11),
        ("deadlocks_total", {}, 12),
        ("deadlocks_detected", {}, 12),
        ("lints_total", {"lint": "leaked", "name": "a"}, 13),
    ):
        assert value(shot, f"async_inspect_{metric}", labels) == expected, metric


@pytest.mark.parametrize("name_label", ["name", "task_name", "a", "Z", "zzz"])
def test_text_is_what_prometheus_client_gives(name_label):
    """Both formats agree byte for byte with prometheus_client, for nasty names and any place of the name label."""
    shot = snapshot(
        *(view(name, seed) for seed, name in enumerate(NASTY)),
        lints={("leaked", name): seed for seed, name in enumerate(NASTY)},
        events={"poll": 10**6, "other": 3},
    )
    renderer = Renderer(name_label=name_label)
    assert_same(renderer, shot)
    assert_same(renderer, shot)  # again, now that the renderer remembers a page


@pytest.mark.parametrize("number", [0, 1, 999_999, 1_000_000, 1_000_001, 123_456_789, 2**53 + 1, 10**16, 10**22])
def test_large_numbers_are_written_as_prometheus_client_does(number):
    """From a million on a value has an exponent, in counters, buckets, sums and counts."""
    counts = (number,) + (0,) * len(DURATION_BOUNDS)
    big = view("a", number)._replace(durations={"completed": Histogram(DURATION_BOUNDS, counts, float(number))})
    assert_same(Renderer(), snapshot(big))


@pytest.mark.parametrize(
    "number", [0.0, -0.0, 1e-9, 0.1 + 0.2, 999_999.999, 1e6, 1e17, float("inf"), float("nan"), -1.5]
)
def test_fractions_are_written_as_prometheus_client_does(number):
    """Floats of every size, in counters and in sums."""
    odd = view("a")._replace(busy=number, durations={"failed": histogram(DURATION_BOUNDS, 1, sum=number)})
    assert_same(Renderer(), snapshot(odd))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(), max_size=12), st.integers(0, 10**8), max_size=6),
    st.dictionaries(st.text(st.characters(), max_size=12), st.integers(0, 10**8), max_size=6),
)
def test_any_two_pages_agree_with_prometheus_client(first, second):
    """Whatever the names and counts, and whatever page came before, the text agrees."""
    renderer = Renderer()
    for names in (first, second):
        assert_same(renderer, snapshot(*(view(name, seed) for name, seed in names.items())))


def test_remembered_text_follows_the_values():
    """A histogram that changed is rendered anew, one that did not keeps its text, and a name that went is gone."""
    renderer = Renderer()
    renderer.blocks(snapshot(view("a", 1), view("b", 2)))
    assert_same(renderer, snapshot(view("a", 3), view("b", 2)))
    assert_same(renderer, snapshot(view("b", 2)))
    assert b'name="a"' not in renderer.page(renderer.blocks(snapshot(view("b", 2))))


def test_old_and_new_text_of_all_names_are_not_there_at_a_time():
    """With ten thousand names the text of histograms is most of what a process holds."""
    renderer = Renderer()
    first, second = ([view(f"name {number}", seed) for number in range(200)] for seed in (1, 2))
    remembered = sum(len(line) for lines in renderer.blocks(snapshot(*first)) for line in lines if "_bucket" in line)
    tracemalloc.start()
    try:
        renderer = Renderer()
        renderer.blocks(snapshot(*first))
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        renderer.blocks(snapshot(*second))
        more = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert remembered > 1_000_000
    assert more < remembered / 2


def test_ten_pages_of_a_quiet_process_are_equal():
    """Nothing on a page depends on time or on how often it was read."""
    renderer = Renderer()
    shot = snapshot(view("a"), view("b"))
    assert len({renderer.page(renderer.blocks(shot._replace(taken_at=float(i)))) for i in range(10)}) == 1


@pytest.mark.parametrize("group", ["task", "event", "memory", "health"])
def test_a_group_switched_off_is_left_out_whole(group):
    """The families of a group, and no others, go with its switch."""
    groups = {"task", "event", "memory", "health"} - {group}
    left_out = set(FAMILIES) - set(types(page(snapshot(), groups=groups)))
    expected = {
        "event": {"async_inspect_events_total"},
        "memory": {"async_inspect_memory_bytes"},
        "health": {
            "async_inspect_deadlocks_total",
            "async_inspect_deadlocks_detected",
            "async_inspect_lints_total",
            "async_inspect_event_loop_lag_seconds",
            "async_inspect_dropped_total",
            "async_inspect_build_info",
        },
    }
    expected["task"] = set(FAMILIES) - set().union(*expected.values())
    assert left_out == expected[group]
    assert_same(Renderer(groups=groups), snapshot(view("a")))


def test_names_that_utf8_cannot_carry_add_up():
    """A lone surrogate becomes its escape, and meets a name that is spelled so in one series."""
    shot = snapshot(view("\ud800", 2), view("\\ud800", 3), lints={("leaked", "\ud800"): 1, ("leaked", "\\ud800"): 4})
    assert value(shot, "async_inspect_tasks_total", {"name": "\\ud800"}) == 5
    assert value(shot, "async_inspect_lints_total", {"lint": "leaked", "name": "\\ud800"}) == 5
    assert page(shot).count("async_inspect_tasks_total{") == 1
    assert_same(Renderer(), shot)


def test_both_parsers_read_the_page_and_histograms_add_up():
    """prometheus_client's parsers accept both formats; buckets never fall and end at the count."""
    shot = snapshot(*(view(name, seed) for seed, name in enumerate(NASTY) if name.isprintable()))
    renderer = Renderer()
    blocks = renderer.blocks(shot)
    text = renderer.page(blocks).decode()
    openmetrics = renderer.page(blocks, openmetrics=True).decode() + "# EOF\n"
    for families in (
        list(text_fd_to_metric_families(StringIO(text))),
        list(openmetrics_parser.text_fd_to_metric_families(StringIO(openmetrics))),
    ):
        assert len(families) == len(FAMILIES)
        for family in families:
            if family.type != "histogram":
                continue
            buckets, totals = {}, {}
            for sample in family.samples:
                key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
                if sample.name.endswith("_bucket"):
                    buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
                elif sample.name == family.name + "_count":
                    totals[key] = sample.value
            assert buckets.keys() == totals.keys()
            for key, pairs in buckets.items():
                assert all(a < b and m <= n for (a, m), (b, n) in pairwise(pairs))
                assert pairs[-1] == (float("inf"), totals[key])


def test_openmetrics_names_the_units():
    """Families in seconds and bytes say so in OpenMetrics."""
    renderer = Renderer()
    text = renderer.page(renderer.blocks(snapshot()), openmetrics=True).decode()
    assert "# UNIT async_inspect_task_duration_seconds seconds\n" in text
    assert "# UNIT async_inspect_memory_bytes bytes\n" in text


def test_custom_bounds_are_read_out_of_finer_counts():
    """With counts at the union of bounds, the exporter's own bounds come out exact, +Inf and sum unchanged."""
    union = tuple(sorted({*DURATION_BOUNDS, 0.02, 7.0}))
    shot = snapshot(view("a", bounds=union))
    text = page(shot, duration_bounds=(0.02, 7.0))
    lines = [line for line in text.splitlines() if "task_duration_seconds" in line and 'state="failed"' in line]
    counted = shot.names["a"].durations["failed"]
    assert lines == [
        f'async_inspect_task_duration_seconds_bucket{{le="{le}",name="a",state="failed"}} {count}.0'
        for le, count in (
            ("0.02", sum(counted.counts[: union.index(0.02) + 1])),
            ("7.0", sum(counted.counts[: union.index(7.0) + 1])),
            ("+Inf", counted.total),
        )
    ] + [
        f'async_inspect_task_duration_seconds_count{{name="a",state="failed"}} {counted.total}.0',
        f'async_inspect_task_duration_seconds_sum{{name="a",state="failed"}} {counted.sum}',
    ]
    assert_same(Renderer(duration_bounds=(0.02, 7.0)), shot)


def test_a_bound_that_was_not_counted_shows_what_is_known():
    """Between two counted bounds the lower one's count stands, so buckets stay cumulative."""
    counted = Histogram((1.0, 2.0), (3, 4, 5), 9.0)
    assert cumulative(counted, (0.5, 1.0, 1.5, 2.0, 9.0)) == (0, 3, 3, 7, 7, 12)


def test_snapshots_combine_to_their_sum():
    """Names, labels and histograms add up; with unlike bounds, those in common stay exact."""
    first = snapshot(view("a", 1), states={"running": 1}, deadlocks=1, lints={("leaked", "a"): 1})
    more = view("a", 2, states=("failed",), bounds=tuple(sorted({*DURATION_BOUNDS, 0.7})))
    second = snapshot(more, view("b", 5), states={"running": 2, "blocked": 1}, deadlocks=2, lints={("leaked", "a"): 2})
    total = combine([first, second])
    assert total.names["a"].spawned == 3
    assert total.names["b"] == second.names["b"]
    assert (total.states, total.deadlocks, total.lints) == ({"running": 3, "blocked": 1}, 3, {("leaked", "a"): 3})
    parts = first.names["a"].durations["failed"], more.durations["failed"]
    failed = total.names["a"].durations["failed"]
    assert failed.bounds == DURATION_BOUNDS
    assert failed.cumulative() == tuple(
        a + b for a, b in zip(*(cumulative(part, DURATION_BOUNDS) for part in parts), strict=True)
    )
    assert total.names["a"].durations["completed"] == first.names["a"].durations["completed"]


@pytest.mark.real
def test_promtool_has_no_complaint():
    """Prometheus's own checker parses the page, nasty names included, and its linter finds nothing."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    shot = snapshot(*(view(name, seed) for seed, name in enumerate(NASTY)), lints={("leaked", "a\nb"): 2})
    done = subprocess.run([promtool, "check", "metrics"], input=page(shot).encode(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_histograms_without_a_bound_in_common_keep_number_and_sum() -> None:
    """All that is known of both together."""
    assert added(Histogram((1.0,), (2, 1), 4.0), Histogram((2.0,), (3, 0), 5.0)) == Histogram((), (6,), 9.0)
