"""A graph has the edges that there were, a critical path that adds up, and text that no name can break."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import T0, TaskList, id_of, snapshot, task

from asyncinspect_logging import Inspector, install, span
from asyncinspect_logging.analysis import relations
from asyncinspect_logging.analysis.graph import Edge, Graph, Node, graph
from asyncinspect_logging.catalogue import OTHER
from asyncinspect_logging.detect.sync import Lock, Queue
from asyncinspect_logging.snapshot import TaskView
from asyncinspect_logging.spans import LOGGER


def edges(told: Graph) -> set[tuple[str, str, str, int]]:
    """By the names of the nodes, with how many times."""
    names = {node.id: node.name for node in told.nodes}
    return {(names[edge.source], edge.kind, names[edge.target], edge.times) for edge in told.edges}


# -- edges -----------------------------------------------------------------------------------------------------------


def a_program() -> list[TaskView]:
    """A run that spawns a producer and a consumer, which share a lock and a queue."""
    queue = "0" * 15 + "a"
    return [
        task(1, "run", None, 0, 10, told=((1, "suspend", "task:produce"), (6, "resume", ""),
                                          (6.5, "suspend", "task:consume"), (9, "resume", ""))),
        task(2, "produce", 1, 1, 6, told=((2, "acquire", "lock db"), (4, "release", "lock db"))),
        task(3, "consume", 1, 1, 9, told=((2, "wait", "lock db"), (4, "acquire", "lock db"), (5, "release", "lock db"),
                                          (5, "wait", f"queue get #{queue} held by {id_of(2)}"),
                                          (8, "acquire", f"queue get #{queue}"))),
    ]  # fmt: skip


EDGES = {
    ("run", "spawned", "produce", 1),
    ("run", "spawned", "consume", 1),
    ("run", "awaited", "produce", 1),
    ("run", "awaited", "consume", 1),
    ("produce", "held", "lock db", 1),
    ("consume", "held", "lock db", 1),
    ("consume", "waited", "lock db", 1),
    ("consume", "waited", "queue 00000a", 1),
    ("produce", "sent", "queue 00000a", 1),
    ("queue 00000a", "sent", "consume", 1),
}


@pytest.mark.parametrize("max_nodes", [200, 5])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_kind_of_edge(max_nodes: int, streamed: bool) -> None:
    """The same by task and by name, of a snapshot and of a stream; with times."""
    tasks = a_program()
    tasks = [tasks[1], tasks[2], tasks[0], *(task(number, "run") for number in range(10, 20))]
    told = graph(TaskList(lambda: iter(tasks)) if streamed else snapshot(*tasks), max_nodes=max_nodes)
    assert edges(told) == EDGES
    assert told.by_name == (max_nodes == 5)
    assert bool(told.notes) == told.by_name
    seconds = {(edge.kind, edge.target.rpartition(":")[2]): edge.seconds for edge in told.edges}
    assert seconds["waited", "db"] == pytest.approx(2, abs=1e-5)
    assert {node.name for node in told.shared()} == {"lock db"}
    db = told.node("lock db")
    assert (db.kind, db.tasks, db.seconds) == ("resource", 2, pytest.approx(3, abs=1e-5))


def test_dependencies_go_through_resources() -> None:
    """Who waits for a lock depends on who holds it, who gets from a queue on who puts; who only holds, on nobody."""
    told = graph(snapshot(*a_program()))
    names = {name: {node.name for node in told.dependencies(name)} for name in ("run", "produce", "consume")}
    assert names == {
        "run": {"produce", "consume", "lock db", "queue 00000a"},
        "produce": set(),
        "consume": {"lock db", "produce", "queue 00000a"},
    }
    assert told.dependencies(id_of(2)) == ()
    assert told.dependencies("run")[0].name in ("produce", "consume")
    with pytest.raises(KeyError, match=r"no node 'x' in this graph; there is consume, lock db, produce, queue 00000a"):
        told.dependencies("x")


def test_of_live_tasks_it_is_known_which_one_they_await() -> None:
    """With how long they have by now; also in a circle, and of tasks that are not there."""
    told = graph(
        snapshot(
            task(1, "a", None, 0, None, awaiting=(id_of(2),), waiting_since=T0 + 90),
            task(2, "b", None, 0, None, awaiting=(id_of(1), id_of(77)), waiting_since=T0 + 80),
        )
    )
    assert {(edge.source[-1], edge.target[-1], edge.kind, round(edge.seconds)) for edge in told.edges} == {
        ("1", "2", "awaited", 10), ("2", "1", "awaited", 20)
    }  # fmt: skip
    assert [node.name for node in told.dependencies("a")] == ["b"]


def test_a_task_awaited_is_the_last_of_its_name_to_end_in_that_time() -> None:
    """Of several of one name; none where none ended then."""
    told = graph(
        snapshot(
            task(1, "run", None, 0, 10, told=((1, "suspend", "task:job"), (4, "resume", ""),
                                              (7, "suspend", "task:job"), (8, "resume", ""))),
            *(task(number, "job", None, 0.5, number) for number in (2, 3, 4, 6)),
        )
    )  # fmt: skip
    assert [(edge.target, edge.kind) for edge in told.edges] == [(f"task:{id_of(4)}", "awaited")]


def test_the_graph_of_a_running_program(listen: Callable[..., Inspector]) -> None:
    """Spawned, held and waited for as the program did it; the critical path ends where the run ends."""
    LOGGER.setLevel(5)
    inspector = listen()

    async def produce(lock: Lock, queue: Queue[int]) -> None:
        async with lock:
            await asyncio.sleep(0.002)
            queue.put_nowait(1)

    async def consume(queue: Queue[int]) -> None:
        await queue.get()
        await queue.get()

    async def main() -> None:
        lock, queue = Lock(name="db"), Queue[int](name="jobs")
        with install(), span("run"):
            await asyncio.gather(consume(queue), produce(lock, queue), produce(lock, queue))

    asyncio.run(main())
    told = graph(inspector.snapshot(), max_nodes=5)
    plain = {tuple(each.rpartition(".")[2] if isinstance(each, str) else each for each in edge) for edge in edges(told)}
    assert plain >= {
        ("run", "spawned", "produce", 2), ("run", "spawned", "consume", 1), ("produce", "held", "lock db", 2),
        ("produce", "waited", "lock db", 1), ("queue jobs", "sent", "consume", 2),
    }  # fmt: skip
    run = inspector.snapshot().tasks[-1]
    assert sum(step.seconds for step in told.critical) == pytest.approx(run.duration, abs=1e-5)
    assert {step.name.rpartition(".")[2] for step in told.critical} >= {"run"}


# -- critical path ---------------------------------------------------------------------------------------------------


def test_the_critical_path_is_what_the_end_hung_on() -> None:
    """The child that ended last, before its beginning the one that had by then; not what outlives its parent."""
    told = graph(
        snapshot(
            task(1, "run", None, 0, 10),
            task(2, "first", 1, 1, 4),
            task(3, "short", 1, 1, 3),
            task(4, "second", 1, 5, 9),
            task(5, "inner", 4, 6, 8),
            task(6, "outlives", 1, 2, 12),
        )
    )
    assert [(step.name, round(step.start - T0, 3), round(step.end - T0, 3)) for step in told.critical] == [
        ("run", 0, 1), ("first", 1, 4), ("run", 4, 5), ("second", 5, 6), ("inner", 6, 8), ("second", 8, 9),
        ("run", 9, 10),
    ]  # fmt: skip


def test_the_critical_path_goes_into_what_is_awaited() -> None:
    """Though somebody else began it."""
    told = graph(
        snapshot(
            task(1, "run", None, 0, 10, told=((2, "suspend", "task:other"), (8, "resume", ""))),
            task(2, "other", None, 1, 8),
        )
    )
    assert [(step.name, round(step.seconds, 3)) for step in told.critical] == [("run", 1), ("other", 7), ("run", 2)]


@st.composite
def any_tasks(draw: st.DrawFn) -> list[TaskView]:
    """Tasks of which nothing is as it should be: parents in circles, children before and after their parents."""
    tasks = []
    for number in range(1, draw(st.integers(1, 10)) + 1):
        one, other = sorted(draw(st.tuples(st.integers(0, 99), st.integers(0, 99))))
        told = tuple(
            (
                at,
                kind,
                draw(st.sampled_from(["lock a", "lock b", "queue get q", "queue put q", "task:a", "task:b", ""])),
            )
            for at, kind in draw(
                st.lists(
                    st.tuples(st.integers(0, 99), st.sampled_from(["wait", "acquire", "release", "suspend", "resume"])),
                    max_size=5,
                )
            )
        )
        parent = draw(st.none() | st.integers(1, 12))
        ended = draw(st.sampled_from([other, other, None]))
        awaiting = tuple(draw(st.lists(st.integers(1, 12), max_size=2))) if ended is None else ()
        more = {"awaiting": tuple(map(id_of, awaiting)), "waiting_since": T0 + 1.0}
        tasks.append(task(number, draw(st.sampled_from("abc")), parent, one, ended, told=told, **more))
    return tasks


@given(any_tasks(), st.integers(2, 20), st.integers(0, 9))
def test_a_critical_path_never_exceeds_its_root(tasks: list[TaskView], max_nodes: int, seed: int) -> None:
    """Its stretches follow each other without a gap and add up to the root's time; each task's part is within its time.
    The order of the tasks makes no difference, and neither do circles.
    """
    told = graph(snapshot(*tasks), max_nodes=max_nodes)
    assert len(told.nodes) <= max_nodes
    there = {node.id for node in told.nodes}
    assert len(there) == len(told.nodes)
    assert all(edge.source in there and edge.target in there and edge.times > 0 <= edge.seconds for edge in told.edges)
    path = told.critical
    assert all(step.end == after.start for step, after in itertools.pairwise(path))
    ended = {each.id: each.started_at + (each.age if each.duration is None else each.duration) for each in tasks}
    started = {each.id: each.started_at for each in tasks}
    for step in path:
        assert started[step.span_id] <= step.start < step.end <= ended[step.span_id] + 1e-5
    if path:
        total = path[-1].end - path[0].start
        assert sum(step.seconds for step in path) == pytest.approx(total, abs=1e-5)
        assert any(total == pytest.approx(ended[id] - started[id], abs=1e-5) for id in ended)
        assert path[-1].span_id == path[0].span_id or len(path) > 1
    for node in told.nodes:
        assert node not in told.dependencies(node.id)
    random.Random(seed).shuffle(tasks)
    again = graph(snapshot(*tasks), max_nodes=max_nodes)
    assert (again.nodes, again.critical) == (told.nodes, told.critical)
    assert [edge[:4] for edge in again.edges] == [edge[:4] for edge in told.edges]


# -- bounds ----------------------------------------------------------------------------------------------------------


def many(count: int) -> Iterator[TaskView]:
    for number in range(1, count // 2 + 1):
        began = number / 1000
        waits = ((began + 0.01, "wait", "lock db"), (began + 0.02, "acquire", "lock db"),
                 (began + 0.03, "release", "lock db"))  # fmt: skip
        yield task(2 * number, "query", 2 * number + 1, began, began + 0.05, told=waits)
        yield task(2 * number + 1, "request", 1, began, began + 0.1)
    yield task(1, "run", None, 0.0, count / 1000 + 1)


def test_a_long_stream_is_taken_together_in_flat_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, with exact counts; the critical path is of the last tasks, and the graph says so."""
    monkeypatch.setattr(relations, "_MAX_KEPT", 300)
    monkeypatch.setattr(relations, "_MAX_KNOWN", 300)
    peaks = []
    for count in (1_500, 3_000):
        tracemalloc.start()
        told = graph(TaskList(lambda count=count: many(count)))  # type: ignore[misc]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert edges(told) >= {
            ("request", "spawned", "query", count // 2),
            ("query", "waited", "lock db", count // 2),
            ("run", "spawned", "request", count // 2),
        }
        assert told.tasks == count + 1
        assert any("last 300 tasks" in note for note in told.notes)
        assert sum(step.seconds for step in told.critical) == pytest.approx(count / 1000 + 1, abs=1e-4)
    assert peaks[1] < 1.2 * peaks[0]


def test_many_names_and_resources_are_taken_together() -> None:
    """No more nodes than are wanted; all tasks are in them."""
    tasks = [task(number, f"name {number}", number - 1 if number > 1 else None, 0, 1 + number / 1000,
                  told=((0.1, "acquire", f"lock {number}"),)) for number in range(1, 2500)]  # fmt: skip
    told = graph(snapshot(*tasks), max_nodes=50)
    assert len(told.nodes) == 50
    assert sum(node.tasks for node in told.nodes if node.kind == "name") == 2499
    assert OTHER in {node.name for node in told.nodes}
    assert len(told.notes) >= 2
    with pytest.raises(ValueError, match="at most 1 nodes shows nothing: give max_nodes=2 or more"):
        graph(snapshot(), max_nodes=1)


# -- in the languages of others --------------------------------------------------------------------------------------

NASTY = [
    'a "quoted" name', "back\\slash\\N\\l", "line\nbreak\r\n", "<b>&lt;&amp;", "a --> b", 'x"]; n0 --> n1["y',
    "%%{init: {}}%%", "end", "subgraph", "#quot;#35;", "`md` **bold**", "{}[]()|;", "\x00\x1b[0m", "\ud800", "é長🙂",
    "click n0 call x()", "---", "style n0 fill:red", "", "x" * 300, "\\", '"', "</br>", "$$x$$", "\u2028",
]  # fmt: skip


def nasty() -> Graph:
    return graph(snapshot(*(
        task(number, name, number - 1 or None, 0, 100 - number, told=((0.5, "acquire", f"lock {name}"),))
        for number, name in enumerate(NASTY, 1)
    )))  # fmt: skip


def test_json_gives_back_what_there_is() -> None:
    """Nodes and edges, names as they are."""
    told = nasty()
    plain = json.loads(told.to_json())
    assert [Node(**node) for node in plain["nodes"]] == list(told.nodes)
    assert [Edge(**edge) for edge in plain["edges"]] == list(told.edges)
    assert {node["name"] for node in plain["nodes"]} >= set(NASTY)
    assert sum(step["seconds"] for step in plain["critical"]) == pytest.approx(99, abs=1e-4)


@pytest.mark.parametrize("ascii", [False, True])
def test_text_moves_no_cursor(ascii: bool) -> None:
    """Every line is printable, and the critical path, the shared resources and each edge are there."""
    text = graph(snapshot(*a_program())).to_text(ascii=ascii) + nasty().to_text(ascii=ascii)
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.isascii() == ascii
    for words in (
        "critical path: 10.0 s",
        "shared resources\n  lock db  2 tasks",
        "received by consume",
        "awaited produce",
    ):
        assert words in text


_STRING = r'"(?:[^"\\]|\\.)*"'
_DOT = re.compile(
    rf"digraph tasks \{{\n(?:  rankdir=LR;\n|  (?:node|edge) \[[a-z=, ]+\];\n|  // [^\n]*\n"
    rf"|  n\d+(?: -> n\d+)? \[label={_STRING}(?:, [a-z]+=[a-z0-9]+)*\];\n)*\}}\n"
)
_LABEL = r'"(?:[\w _.:,/()-]|#\d+;|<br/>)*"'
_MERMAID = re.compile(
    rf"flowchart LR\n(?:  %% [^\n{{}}]*\n)*(?:  n\d+(?:\[{_LABEL}\]|\[\({_LABEL}\)\])\n)*"
    rf"(?:  n\d+ (?:-->|-\.->|==>)\|{_LABEL}\| n\d+\n)*"
    r"(?:  classDef critical stroke-width:4px\n  class n\d+(?:,n\d+)* critical\n)?"
)


@given(st.lists(st.text(max_size=20) | st.sampled_from(NASTY), min_size=1, max_size=6))
def test_dot_and_mermaid_keep_to_their_grammar(names: list[str]) -> None:
    """Whatever the names are, nothing but the strings of the labels changes."""
    told = graph(snapshot(*(task(number, name, None, told=((0.5, "acquire", f"lock {name}"),))
                            for number, name in enumerate(names, 1))))  # fmt: skip
    assert _DOT.fullmatch(told.to_dot())
    assert _MERMAID.fullmatch(told.to_mermaid())
    assert not re.search("--", "".join(re.findall(_LABEL, told.to_mermaid())))


def labels_of(told: Graph) -> list[str]:
    from asyncinspect_logging.analysis.drawing import shown

    return [shown(node.name, 60) for node in told.nodes]


def test_graphviz_reads_every_name_as_it_is(tmp_path: Path) -> None:
    """The labels that it draws are the names, with nothing of them taken for an escape, an entity or DOT."""
    dot = shutil.which("dot")
    if dot is None:
        pytest.skip("Graphviz is not installed")
    told = nasty()
    (tmp_path / "graph.dot").write_text(told.to_dot(), "utf-8")
    done = subprocess.run([dot, "-Tsvg", str(tmp_path / "graph.dot")], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    from xml.etree import ElementTree

    space = "{http://www.w3.org/2000/svg}"
    groups = [each for each in ElementTree.fromstring(done.stdout).iter(f"{space}g") if each.get("class") == "node"]
    drawn = {group.find(f"{space}title").text: [each.text for each in group.iter(f"{space}text")] for group in groups}  # type: ignore[union-attr]
    for number, label in enumerate(labels_of(told)):
        text = drawn[f"n{number}"]
        # An empty line is not drawn; Graphviz draws spaces as those that do not break.
        assert (text[0] or "").replace("\xa0", " ") == label if len(text) > 1 else not label


@pytest.mark.real
def test_mermaid_reads_every_name_as_it_is(tmp_path: Path) -> None:
    """The same with Mermaid's own parser, where npm's `mermaid` and `jsdom` are in a folder of NODE_PATH."""
    node = shutil.which("node")
    folders = [Path(each) for each in os.environ.get("NODE_PATH", "").split(os.pathsep) if each]
    folder = next((each for each in folders if (each / "mermaid").exists() and (each / "jsdom").exists()), None)
    if node is None or folder is None:
        pytest.skip("node, or mermaid and jsdom in a folder of NODE_PATH, is missing")
    told = nasty()
    (tmp_path / "graph.mmd").write_text(told.to_mermaid(), "utf-8")
    (tmp_path / "node_modules").symlink_to(folder)
    (tmp_path / "parse.mjs").write_text(
        """
        import { readFileSync } from "node:fs";
        import { JSDOM } from "jsdom";
        const { window } = new JSDOM("<!DOCTYPE html><body></body>");
        globalThis.window = window;
        globalThis.document = window.document;
        const mermaid = (await import("mermaid")).default;
        const text = readFileSync("graph.mmd", "utf8");
        await mermaid.parse(text);
        const { db, type } = await mermaid.mermaidAPI.getDiagramFromText(text);
        const nodes = Object.fromEntries([...db.getVertices().values()].map((node) => [node.id, node.text]));
        console.log(JSON.stringify({ type, nodes, edges: db.getEdges().map((edge) => [edge.start, edge.end]) }));
        """
    )
    done = subprocess.run([node, "parse.mjs"], cwd=tmp_path, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    assert read["type"].startswith("flowchart")
    numbers = {each.id: f"n{number}" for number, each in enumerate(told.nodes)}
    assert read["edges"] == [[numbers[edge.source], numbers[edge.target]] for edge in told.edges]
    for number, label in enumerate(labels_of(told)):
        # What stood as `#35;` is kept so until it is drawn, as a browser's `&#35;`.
        text = re.sub("ﬂ°°(\\d+)¶ß", lambda found: chr(int(found[1])), read["nodes"][f"n{number}"])
        assert re.split("<br ?/?>", text)[0] == label
