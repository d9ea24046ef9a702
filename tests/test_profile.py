"""A profile adds up: times by name, by chain of names, and by what was waited for."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import NO_HISTOGRAM, T0, TaskList, by_end, forests, snapshot, task

from asyncinspect_logging import Config, Inspector, install, nesting, span
from asyncinspect_logging.analysis import quantiles as quantiles_module
from asyncinspect_logging.analysis.drawing import bar, columns, distribution, duration, ladder, shown
from asyncinspect_logging.analysis.pages import read_page
from asyncinspect_logging.analysis.profile import Profile, profile
from asyncinspect_logging.analysis.quantiles import MoreThan, quantile
from asyncinspect_logging.catalogue import OTHER
from asyncinspect_logging.detect.sync import Lock
from asyncinspect_logging.snapshot import Histogram, Snapshot, TaskView
from asyncinspect_logging.spans import LOGGER


def union(intervals: list[tuple[float, float]]) -> float:
    """Length of what they cover together, looked up 64th by 64th."""
    return len({at for low, high in intervals for at in range(round(low * 64), round(high * 64))}) / 64


@given(forests())
def test_self_time_is_what_no_child_covers(tasks: list[TaskView]) -> None:
    """By name, and added up over all chains, of a snapshot and of a stream."""
    expected: dict[str, float] = {}
    for one in tasks:
        children = [(each.started_at - T0, each.started_at - T0 + (each.duration or 0.0)) for each in tasks
                    if each.parent_id == one.id]  # fmt: skip
        expected[one.name] = expected.get(one.name, 0.0) + (one.duration or 0.0) - union(children)
    for source in (snapshot(*tasks), TaskList(lambda: iter(by_end(tasks)))):
        told = profile(source)
        assert {each.name: each.self_time for each in told.names} == pytest.approx(expected, abs=1e-5)
        assert sum(each.self_time for each in told.paths) == pytest.approx(sum(expected.values()), abs=1e-5)
        assert sum(each.tasks for each in told.paths) == len(tasks)


@given(forests(), st.randoms(use_true_random=False))
def test_chains_are_those_of_the_parents(tasks: list[TaskView], chance: random.Random) -> None:
    """Each task counts under the names of all that it was begun in, in whatever order a snapshot has them."""
    by_id = {each.id: each for each in tasks}
    expected: dict[tuple[str, ...], tuple[int, float]] = {}
    for each in tasks:
        names, up = [each.name], by_id.get(each.parent_id or "")
        while up is not None:
            names.insert(0, up.name)
            up = by_id.get(up.parent_id or "")
        count, total = expected.get(tuple(names), (0, 0.0))
        expected[tuple(names)] = count + 1, total + (each.duration or 0.0)
    chance.shuffle(tasks)
    told = profile(snapshot(*tasks))
    assert {each.names: (each.tasks, each.total) for each in told.paths} == {
        names: (count, pytest.approx(total)) for names, (count, total) in expected.items()
    }
    assert [each.self_time for each in told.hot_paths(100)] == sorted((p.self_time for p in told.paths), reverse=True)
    assert [each.total for each in told.hot_paths(100, by="total")] == sorted(
        (p.total for p in told.paths), reverse=True
    )
    with pytest.raises(ValueError, match="'self' or 'total', and not by 'name'"):
        told.hot_paths(by="name")


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=60))
def test_quantiles_by_name_are_those_of_the_tasks(lengths: list[int]) -> None:
    """With their basis."""
    tasks = [task(number, ended=length / 1024) for number, length in enumerate(lengths)]
    (told,) = profile(snapshot(*tasks)).names
    durations = sorted(length / 1024 for length in lengths)
    assert told.durations[2:6] == (*(quantile(durations, q) for q in (0.5, 0.95, 0.99)), durations[-1])
    assert (told.durations.finished, told.durations.basis) == (len(lengths), "samples")
    assert told.histogram.total == len(lengths)


def test_where_only_some_tasks_were_kept_the_counters_decide(listen: Callable[..., Inspector]) -> None:
    """Counts are exact, quantiles come from the histogram, and the profile says so."""
    inspector = listen(Config(max_tasks=5))
    for number in range(200):
        with span("job"):
            pass
        if number % 4 == 0:
            with pytest.raises(ZeroDivisionError), span("job"):
                _ = 1 / 0
    told = profile(inspector.snapshot())
    assert told.tasks == 5
    (job,) = told.names
    assert (job.spawned, job.live, job.outcomes) == (250, 0, {"completed": 200, "failed": 50})
    assert (job.durations.finished, job.durations.basis) == (250, "buckets")
    assert 0 < (job.durations.p50 or 0) <= (job.durations.p99 or 0)
    assert "not all finished tasks are at hand" in told.notes[0]
    assert told.notes[0] in told.render()


def test_outcomes_of_tasks_at_hand_are_told_apart() -> None:
    """Abandoned from cancelled, which counters do not."""
    ended = [task(1, outcome="failed"), task(2, outcome="abandoned"), task(3, outcome="cancelled"), task(4, ended=None)]
    (told,) = profile(snapshot(*ended)).names
    assert told.outcomes == {"abandoned": 1, "cancelled": 1, "failed": 1}
    assert (told.spawned, told.live) == (4, 1)


def test_rankings() -> None:
    """Each by its own measure, names deciding between equals."""
    told = profile(
        snapshot(
            task(1, "quick", ended=0.1, busy=0.09, idle=0.01),
            task(2, "slow", ended=9.0, busy=0.5, idle=8.5),
            task(3, "hot", ended=3.0, busy=2.0, idle=1.0),
            task(4, "unseen", ended=2.0),
            task(5, "also unseen", ended=2.0),
        )
    )
    assert [each.name for each in told.names] == ["slow", "hot", "also unseen", "unseen", "quick"]
    assert [each.name for each in told.busiest()] == ["hot", "slow", "quick"]
    assert [each.name for each in told.slowest(3)] == ["slow", "hot", "also unseen"]
    assert [(each.name, each.efficiency) for each in told.least_efficient()] == [
        ("slow", pytest.approx(0.5 / 9)),
        ("hot", pytest.approx(2 / 3)),
        ("quick", pytest.approx(0.9)),
    ]


# -- waiting ---------------------------------------------------------------------------------------------------------


ID = "00000000000000aa"


@pytest.mark.parametrize(
    ("detail", "resource"),
    [
        ("lock", "lock"),
        ("lock db", "lock db"),
        ("lock:db", "lock db"),
        (f"lock db #{ID}", "lock db"),
        (f"lock #{ID} held by {ID},{ID}", "lock 0000aa"),
        ("queue get", "queue get"),
        ("semaphore a b #c held by", "semaphore a b #c held by"),
        ("thread lock x", "thread lock x"),
        ("", ""),
        ("wormhole x", "wormhole x"),
    ],
)
def test_what_was_waited_for_is_read_off_the_timeline(detail: str, resource: str) -> None:
    """Kind and name; the id where it has no name."""
    waiting = ((0.1, "wait", detail), (0.4, "acquire", detail), (0.9, "release", detail))
    (told,) = profile(snapshot(task(1, told=waiting))).contention
    assert (told.resource, told.waits, told.given_up) == (resource, 1, 0)
    assert told.total == pytest.approx(0.3, abs=1e-6)


def test_contention_says_who_waited_and_who_held() -> None:
    """How often and how long, those who gave up and those who wait still among them."""
    told = profile(
        snapshot(
            task(1, "writer", told=((0.1, "acquire", "lock db"), (0.6, "release", "lock db"))),
            task(2, "reader", told=((0.2, "wait", "lock db"), (0.7, "acquire", "lock db"),
                                            (0.8, "release", "lock db"))),
            task(3, "reader", told=((0.3, "wait", "lock db"), (0.5, "release", "lock db"))),
            task(4, "reader", ended=None, told=((99, "wait", "lock db"),)),
        )
    )  # fmt: skip
    (db,) = told.contention
    assert (db.resource, db.waits, db.given_up, db.waiting) == ("lock db", 3, 1, 1)
    assert (db.total, db.max) == (pytest.approx(1.7, abs=1e-5), pytest.approx(1.0, abs=1e-5))
    assert db.waiters == {"reader": (3, pytest.approx(1.7, abs=1e-5))}
    assert db.holders == {"writer": (1, pytest.approx(0.5, abs=1e-5)), "reader": (1, pytest.approx(0.1, abs=1e-5))}
    assert {each.name: each.waited for each in told.names} == {"writer": 0, "reader": pytest.approx(1.7, abs=1e-5)}
    assert "3, 1 given up, 1 waiting" in told.render()


def test_without_primitives_that_report_suspends_say_it() -> None:
    """And where there is no timeline, what a live task waits for; a sleep or a task is no resource."""
    told = profile(
        snapshot(
            task(1, told=((0.1, "suspend", "lock:db"), (0.4, "resume", ""), (0.5, "suspend", "sleep"),
                                  (0.6, "resume", ""), (0.7, "suspend", "queue:q get"), (0.8, "resume", ""))),
            task(2, ended=None, waiting_on="lock:db held by job, job, timeout in 1.0 s", waiting_since=T0 + 98),
            task(3, ended=None, waiting_on="task:job", waiting_since=T0 + 98),
        )
    )  # fmt: skip
    assert {each.resource: round(each.total, 3) for each in told.contention} == {"lock db": 2.3, "queue get q": 0.1}


def test_contention_of_a_running_program(listen: Callable[..., Inspector]) -> None:
    """Five tasks through one lock: four waits, and as many holds as tasks."""
    LOGGER.setLevel(5)
    inspector = listen()

    async def work(lock: Lock) -> None:
        async with lock:
            await asyncio.sleep(0.002)

    async def main() -> None:
        lock = Lock(name="db")
        with install():
            await asyncio.gather(*(work(lock) for _ in range(5)))

    asyncio.run(main())
    (db,) = profile(inspector.snapshot()).contention
    (held,) = [(name.rpartition(".")[2], count) for name, (count, _) in db.holders.items()]
    assert (db.resource, db.waits, db.given_up, db.waiting, held) == ("lock db", 4, 0, 0, ("work", 5))
    assert db.max >= 0.002 * 3


@pytest.mark.parametrize("sync", [True, False])
def test_a_wait_counts_once_for_all_spans_around_it(listen: Callable[..., Inspector], sync: bool) -> None:
    """For the innermost one, whether primitives report or suspends say it, afterwards and while it goes on."""
    LOGGER.setLevel(5)
    logging.getLogger("asyncinspect").addHandler(logging.NullHandler(5))
    inspector = listen()
    meanwhile: list[Snapshot] = []

    async def work(lock: asyncio.Lock) -> None:
        with span("outer"), span("inner"):
            async with lock:
                await asyncio.sleep(0.005)
                meanwhile.append(inspector.snapshot())

    async def main() -> None:
        lock = asyncio.Lock()
        with install(sync=sync):
            await asyncio.gather(work(lock), work(lock))

    asyncio.run(main())
    for each, waiting in ((inspector.snapshot(), 0), (meanwhile[0], 1)):
        (told,) = profile(each).contention
        assert told.resource.startswith("lock")
        assert (told.waits, told.waiting, list(told.waiters)) == (1, waiting, ["inner"])
        assert told.total > 0


# -- bounds ----------------------------------------------------------------------------------------------------------


def many(count: int) -> Iterator[TaskView]:
    """Requests, each with a query of another length, in one run that ends last."""
    for number in range(1, count // 2 + 1):
        began = number / 1000
        yield task(2 * number, "query", 2 * number + 1, began, began + number % 97 / 1000)
        yield task(2 * number + 1, "request", 1, began, began + 0.1)
    yield task(1, "run", None, 0.0, count / 1000 + 1)


def test_a_long_stream_is_profiled_in_flat_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many tasks take no more memory, and not more than some millions of bytes; quantiles are to 1 %."""
    monkeypatch.setattr(quantiles_module, "EXACT", 200)
    monkeypatch.setattr(nesting, "_MAX_KNOWN", 500)
    peaks = []
    for count in (2_000, 4_000):
        tracemalloc.start()
        told = profile(TaskList(lambda count=count: many(count)))  # type: ignore[misc]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        names = {each.name: each for each in told.names}
        assert told.tasks == count + 1
        assert names["query"].durations.finished == count // 2
        assert names["query"].durations.basis == "sketch"
        assert names["query"].durations.p95 == pytest.approx(0.092, rel=0.02)
        assert [each.names for each in told.hot_paths()] == [
            ("run", "request"), ("run", "request", "query"), ("run",)
        ]  # fmt: skip
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 1e6


def test_names_chains_and_resources_are_bounded() -> None:
    """Past their limits they count together, nothing is lost from the sums, and the notes say so."""
    count = 3000
    tasks = [
        task(number, f"name {number}", number - 1 if number > 1 else None, 0.0, 1.0 + (count - number) / 1000,
             told=((0.1, "wait", f"lock {number}"), (0.2, "acquire", f"lock {number}")))
        for number in range(1, count + 1)
    ]  # fmt: skip
    for source in (snapshot(*tasks), TaskList(lambda: iter(by_end(tasks)))):
        told = profile(source)
        assert len(told.names) <= 1001
        assert sum(each.durations.finished for each in told.names) == count
        assert len(told.contention) <= 1001
        assert sum(each.waits for each in told.contention) == count
        assert max(len(each.names) for each in told.paths) <= 66
        assert sum(each.tasks for each in told.paths) == count
        assert OTHER in told.render(top=2000)
        assert len(told.notes) == 2


def test_too_many_chains_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is further in counts as one, and the sums stay."""
    monkeypatch.setattr(nesting, "_MAX_NODES", 20)
    tasks = [task(1000, "root", ended=50.0)]
    for number in range(100):
        tasks.append(task(2 * number, f"a{number}", 1000, 0.0, 2.0))
        tasks.append(task(2 * number + 1, f"b{number}", 2 * number, 0.0, 1.0))
    told = profile(snapshot(*tasks))
    assert sum(each.tasks for each in told.paths) == 201
    assert len(told.paths) < 201
    assert any("cut" in note for note in told.notes)


def test_children_of_nobody_are_kept_apart() -> None:
    """Those of a parent that is not in the log, and those that go round in circles: under an ellipsis."""
    told = profile(snapshot(task(1, "orphan", 99), task(2, "a", 3), task(3, "b", 2), task(4, "self", 4)))
    assert sorted(each.names for each in told.paths if len(each.names) == 2)[-2:] == [("…", "orphan"), ("…", "self")]
    assert sum(each.tasks for each in told.paths) == 4
    assert all(each.names[0] == "…" for each in told.paths)


def test_names_beyond_those_counted_are_counted_together(listen: Callable[..., Inspector]) -> None:
    """As the inspector does it, whose counters would say otherwise."""
    inspector = listen(Config(max_names=2))
    for name in ("a", "b", "c", "d"):
        with span(name):
            pass
    told = profile(inspector.snapshot())
    assert {each.name: each.durations.finished for each in told.names} == {"a": 1, "b": 1, OTHER: 2}


def test_what_is_no_source_is_refused() -> None:
    """With its type, and what to give."""
    with pytest.raises(TypeError, match="nothing to analyse in a list; give a Snapshot or a stream of tasks"):
        profile([])  # type: ignore[arg-type]


def a_page(**buckets: str) -> Snapshot:
    """Of tasks that lasted so long by their state: counts by bound."""
    lines = ['async_inspect_tasks_total{name="job"} 14']
    for state, text in buckets.items():
        lines.append(f'async_inspect_tasks_{state}_total{{name="job"}} 7')
        for pair in text.split():
            bound, _, count = pair.partition("=")
            labels = f'name="job",state="{state}",le="{bound}"'
            lines.append(f"async_inspect_task_duration_seconds_bucket{{{labels}}} {count}")
    return read_page("\n".join(lines).encode() + b"\n")


def test_pages_of_different_bounds() -> None:
    """What two states have in common is merged; where that is nothing, quantiles are unknown, and a note says so."""
    (job,) = profile(a_page(completed="1=5 2=6 +Inf=7", failed="2=4 3=4 +Inf=7")).names
    assert (job.histogram.bounds, job.histogram.counts) == ((2.0,), (10, 4))
    told = profile(a_page(completed="1=5 +Inf=7", failed="2=4 +Inf=7"))
    (job,) = told.names
    assert (job.durations.finished, job.durations.p50, job.durations.p99) == (14, None, None)
    assert "of names counted at bounds that have none in common, quantiles are unknown" in told.notes
    assert "14 " in told.render()
    json.dumps(told.to_dict(), allow_nan=False)


def test_processes_of_one_page_that_count_at_different_bounds() -> None:
    """Their counts at a bound that both have add up, and one without a bound is not taken for one with none there."""
    series = {"a": "1=5 2=6 +Inf=7", "b": "2=3 +Inf=4"}
    lines = [
        f'async_inspect_task_duration_seconds_bucket{{name="job",state="completed",pod="{pod}",le="{bound}"}} {count}'
        for pod, text in series.items()
        for bound, _, count in (pair.partition("=") for pair in text.split())
    ]
    page = read_page("\n".join(['async_inspect_tasks_total{name="job"} 11', *lines]).encode() + b"\n")
    assert page.names["job"].durations["completed"] == Histogram((2.0,), (9, 2), 0.0)


def test_a_quantile_in_the_last_bucket_is_more_than_its_bound() -> None:
    """And not the bound, which is what some panels show: in text as in JSON."""
    told = profile(a_page(completed="1=3 10=3 +Inf=7"))
    (job,) = told.names
    assert isinstance(job.durations.p99, MoreThan)
    assert "> 10.0 s" in told.render()
    plain = json.loads(json.dumps(told.to_dict()))["names"][0]["durations"]
    assert (plain["p99"], plain["more_than"]) == (10.0, ["p50", "p95", "p99"])


# -- as text ---------------------------------------------------------------------------------------------------------


def a_profile() -> Profile:
    return profile(
        snapshot(
            *(task(number, "fetch\x1b[31m\nuser", ended=number / 100, busy=0.001, idle=0.1) for number in range(1, 30)),
            task(50, "長い名前", ended=2.0, told=((0.1, "wait", "lock \x07"), (0.2, "acquire", "lock \x07"))),
        )
    )


@pytest.mark.parametrize("ascii", [False, True])
def test_a_profile_is_drawn_without_moving_the_cursor(ascii: bool) -> None:
    """Each section is there; no control character of a name gets through, and no Unicode where that is not wanted."""
    text = a_profile().render(72, ascii=ascii)
    for word in ("name ", "busiest", "slowest", "least efficient", "hot paths", "contention", "29 completed"):
        assert word in text
    assert all(line.isprintable() for line in text.splitlines())
    assert ("#" if ascii else "█") in text
    assert text.isascii() == ascii
    assert r"fetch\x1b[31m\n" in text
    bars = [line for line in text.splitlines() if set(line) & set("#█") and ("<=" in line or "≤" in line)]
    assert bars
    assert max(map(len, bars)) <= 72


def test_a_profile_of_nothing() -> None:
    """Is short."""
    assert profile(snapshot()).render() == "0 tasks at hand, 0 names\n"


def test_a_profile_as_plain_values() -> None:
    """JSON takes it as it is, and it has the rankings."""
    plain = json.loads(json.dumps(a_profile().to_dict(), allow_nan=False))
    assert plain["names"][0]["durations"]["basis"] == "samples"
    assert plain["busiest"] == ["fetch\x1b[31m\nuser"]
    assert plain["contention"][0]["waiters"] == {"長い名前": {"count": 1, "seconds": pytest.approx(0.1, abs=1e-6)}}


@given(st.floats(1e-9, 1e9), st.floats(1, 1e6))
def test_bounds_of_a_drawing_hold_what_is_drawn(low: float, factor: float) -> None:
    """From the least to the greatest, rising, and not many."""
    high = low * factor
    bounds = ladder(low, high)
    assert bounds[-1] >= high
    assert list(bounds) == sorted(set(bounds))
    assert len(bounds) <= 30
    assert len(bounds) < 2 or bounds[-2] < high


@given(st.floats(0, 1), st.integers(1, 60))
def test_bars_are_as_long_as_they_should_be(share: float, width: int) -> None:
    """To an eighth of a column, or to one; and never nothing for something."""
    drawn = bar(share, width)
    exact = drawn.count("█") + (" ▏▎▍▌▋▊▉".index(drawn[-1]) / 8 if drawn and drawn[-1] != "█" else 0)
    assert abs(exact - share * width) <= 1 / 8
    assert abs(len(bar(share, width, ascii=True)) - share * width) <= 1
    assert bool(drawn) == bool(bar(share, width, ascii=True)) == (share > 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (1e-12, "0 s"), (2.5e-8, "25.0 ns"), (9.996e-4, "1.00 ms"), (0.0123, "12.3 ms"), (0.9999, "1.00 s"),
     (61, "61.0 s"), (123456, "123456 s"), (None, "-"), (float("nan"), "-")],
)  # fmt: skip
def test_durations_have_three_digits_and_a_unit(seconds: float | None, text: str) -> None:
    """The unit in which they are not below one."""
    assert duration(seconds) == text


def test_names_are_cut_and_columns_line_up() -> None:
    """Also where characters are two columns wide, or none."""
    assert shown("x" * 100, 10) == "x" * 9 + "…"
    assert shown("\ud800\n\x00\u202e") == r"\ud800\n\x00\u202e"
    assert columns([("長", "1"), ("ab", "22"), ("e\u0301", "3")]) == ["長   1", "ab  22", "e\u0301    3"]
    assert columns([]) == []
    assert distribution(NO_HISTOGRAM, 40) == []
    assert distribution(Histogram((1.0,), (0, 3), 9.0), 40, ascii=True)[0].startswith("> 1.00 s  3  ###")
