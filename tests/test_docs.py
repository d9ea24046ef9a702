"""The documentation holds: its examples run and print what they show, its links resolve, its tables are the code's.

A block of Python runs by itself in a fresh process, and a block of text right after it is what it prints, `...`
standing for anything. A comment in the line above a block changes that: `<!-- run: pytest -->` has pytest run it,
`<!-- name: … -->` adds what `EPILOGUES` has under that name, and `<!-- not run: reason -->` leaves it out.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from asyncinspect_logging import AsyncInspectHandler, AsyncInspectProcessor, Config, Inspector
from asyncinspect_logging.catalogue import DROP_REASONS, EVENT_TYPES
from asyncinspect_logging.cli.commands import commands
from asyncinspect_logging.config import SERVER_VARIABLES
from asyncinspect_logging.exporters.families import FAMILIES
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.records import LEVELS, STEP_KINDS
from asyncinspect_logging.states import FINAL, LIVE, OUTCOMES, TRANSITIONS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: Links to what a make target writes, and a checkout may lack.
MADE_HERE = {"benchmarks/RESULTS.md"}
#: What is run after a block that only sets something up: a request or two, and what the spans must have counted then.
EPILOGUES = {
    "fastapi": """
import asyncio
logging.getLogger("httpx").setLevel("WARNING")
import httpx

async def requests() -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        assert (await client.get("/users/7")).json() == {"id": 7}
        assert (await client.get("/users/3")).status_code == 404
        assert (await client.get("/health")).status_code == 404
        return (await client.get("/metrics")).text

page = asyncio.run(requests())
assert 'async_inspect_tasks_completed_total{name="GET /users/{user_id}"} 2.0' in page, page
assert 'async_inspect_tasks_completed_total{name="query"} 2.0' in page, page
assert page.count("async_inspect_tasks_completed_total{") == 2, page
""",
    "aiohttp": """
import asyncio
logging.getLogger("aiohttp.access").setLevel("WARNING")
import aiohttp
from asyncinspect_logging import Inspector

async def requests() -> None:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = "http://127.0.0.1:%d" % runner.addresses[0][1]
    async with aiohttp.ClientSession() as client:
        for path in ("/items/1", "/items/2", "/nothing"):
            async with client.get(address + path) as response:
                await response.read()
        async with client.get(address + "/metrics") as response:
            page = await response.text()
    await runner.cleanup()
    assert 'async_inspect_tasks_completed_total{name="GET /items/{id}"} 2.0' in page, page

asyncio.run(requests())
names = Inspector.default().snapshot().names
assert {name: view.completed for name, view in names.items()} == {"GET /items/{id}": 2, "HTTP unmatched": 1}, names
""",
}


class Block(NamedTuple):
    """A fenced block: where it is, its language, the comment above it, its text, and the text block after it."""

    page: Path
    line: int
    language: str
    comment: str
    code: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


_FENCE = re.compile(
    r"(?:^<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(3)) + 1, found[2], found[1] or "", found[3], found[4])
        for found in _FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.comment.startswith("not run: ")]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("ASYNC_INSPECT_", "PYTEST"))}
    # The plugins of the test run would take longer to load than everything else does.
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_an_example_runs_and_prints_what_is_shown(block: Block, tmp_path: Path) -> None:
    """The block ends by itself, without a warning or a word on stderr, and its output is the one on the page."""
    kind, _, what = block.comment.partition(": ")
    code = block.code + (EPILOGUES[what] if kind == "name" else "")
    if kind == "run":
        assert what == "pytest"
        (tmp_path / "test_example.py").write_text(code, "utf-8")
        done = run(
            ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "asyncinspect_logging.pytest_plugin"], tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(rf"^{code.count('def test_')} passed", done.stdout, re.MULTILINE), done.stdout
        return
    (tmp_path / "example.py").write_text(code, "utf-8")
    done = run(["example.py"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = block.output or ""
    # On a machine that is busy, what took no time takes some.
    pattern = re.escape(shown).replace(r"\.\.\.", ".*?").replace(r"0\.0\ s", r"\d\.\d\ s")
    if not re.fullmatch(pattern, done.stdout):
        assert done.stdout == shown


def test_there_are_examples_of_each_kind() -> None:
    """The blocks are found at all, and every name of an epilogue is one on a page."""
    assert len(PYTHON) > 15
    assert {block.comment for block in PYTHON if block.comment.startswith("name: ")} == {
        f"name: {n}" for n in EPILOGUES
    }
    assert sum(block.output is not None for block in PYTHON) > 10
    assert all(block.language for block in BLOCKS)


def signature_of(known: dict[str, Any], call: ast.Call) -> inspect.Signature | None:
    """Of what is called, where that is something of the library's under one of the names, or a method of it."""
    match call.func:
        case ast.Name(name):
            called = known.get(name)
        case ast.Attribute(ast.Name(name), attribute) if name in known:
            called = getattr(known[name], attribute)
        case _:
            called = None
    return None if called is None else inspect.signature(called)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.comment.startswith("not run: ")], ids=str)
def test_an_example_that_is_not_run_could_be(block: Block) -> None:
    """It is Python, and what it names of the library is there and takes the arguments."""
    tree = ast.parse(block.code)
    known: dict[str, Any] = {}
    for page_block in BLOCKS:  # an example may go on where another one of its page ended
        if page_block.language == "python" and (page_block.page, page_block.line <= block.line) == (block.page, True):
            for node in ast.walk(ast.parse(page_block.code)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asyncinspect_logging"):
                    module = importlib.import_module(node.module or "")
                    known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        signature = signature_of(known, node) if isinstance(node, ast.Call) else None
        if signature is not None:
            given = {word.arg: None for word in node.keywords if word.arg}
            signature.bind_partial(*node.args, **given)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for text in texts:
        module, _, name = text.rpartition(".")
        if re.fullmatch(r"asyncinspect_logging(\.\w+)*", module):
            assert hasattr(importlib.import_module(module), name), text
    assert known or any("asyncinspect_logging" in text for text in texts)


COMMAND_LINES = [
    (block, line)
    for block in BLOCKS
    if block.language == "sh"
    for line in re.findall(r"^\s*(?:\$ )?asyncinspect .*$", block.code.replace("\\\n", " "), re.MULTILINE)
]


@pytest.mark.parametrize(("block", "line"), COMMAND_LINES, ids=str)
def test_a_command_line_can_be_read(block: Block, line: str) -> None:
    """Each command is one, and so are its options."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    name, *given = itertools.takewhile(lambda word: not set(word) <= set("|&;<>"), list(words)[1:])
    command = commands.get_command(click.Context(commands), name)
    assert command is not None, name
    command.make_parser(click.Context(command)).parse_args(given)


def test_there_are_command_lines() -> None:
    """Of every command."""
    assert {line.split()[1] for _, line in COMMAND_LINES} == set(commands.list_commands(click.Context(commands)))


# -- links -----------------------------------------------------------------------------------------------------------


def slugs_of(page: Path) -> set[str]:
    """The anchors that the headings of a page have on GitHub."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_internal_links_resolve(page: Path) -> None:
    """Each link to a file leads to one of this repository, and each anchor to a heading there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text("utf-8"))):
        if target.startswith("https://") or target in MADE_HERE:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in slugs_of(file), target


def test_every_page_is_listed() -> None:
    """The index links every page of the folder, and the README every one but the index; so for the API's pages."""
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    modules = {page.name for page in (ROOT / "docs" / "api").glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "api" / "index.md").read_text("utf-8"))) == modules
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text("utf-8"))) == pages
    assert set(re.findall(r"\]\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text("utf-8"))) == pages


# -- tables against code ---------------------------------------------------------------------------------------------


def table(page: str, first: str) -> list[list[str]]:
    """The rows below the head of a table, of which `first` is the first column's name, on a page of docs."""
    lines = (ROOT / "docs" / page).read_text("utf-8").splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    return rows_from(lines, start)


def tables_of(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading."""
    lines = (ROOT / "docs" / page).read_text("utf-8").splitlines()
    below = lines.index(heading)
    start = next(number for number in range(below, len(lines)) if lines[number].startswith("| "))
    return rows_from(lines, start)


def rows_from(lines: list[str], start: int) -> list[list[str]]:
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def plain(cell: str) -> str:
    """The text of a cell that is one piece of code."""
    found = re.fullmatch("`([^`]*)`", cell)
    assert found, cell
    return found[1]


def test_the_table_of_config_is_the_dataclass() -> None:
    """Every field is there in order, with its default and its environment variable, and None where it is allowed."""
    rows = table("configuration.md", "field")
    assert [plain(row[0]) for row in rows] == list(Config.__dataclass_fields__)
    for name, default, variable, meaning in rows:
        field = plain(name)
        assert ast.literal_eval(plain(default)) == getattr(Config(), field)
        assert plain(variable) == f"ASYNC_INSPECT_{field.upper()}"
        try:
            Config(**{field: None})
        except (TypeError, ValueError):
            assert "None allowed" not in meaning
        else:
            assert "None allowed" in meaning


def test_the_table_of_presets_is_what_they_are() -> None:
    """Sampling and limits of each preset."""
    rows = table("configuration.md", "preset")
    assert [plain(row[0]) for row in rows] == ["Config.production()", "Config.development()", "Config.debug()"]
    for row in rows:
        config: Config = getattr(Config, plain(row[0])[len("Config.") : -2])()
        rate = int(config.sampling_rate)
        limits = [str(limit or "no limit") for limit in (config.max_events, config.max_tasks)]
        assert row[1:] == ["all" if rate == 1 else f"1 in {rate}", *limits]


@pytest.mark.parametrize("documented", [AsyncInspectHandler, AsyncInspectProcessor, PrometheusExporter])
def test_the_table_of_options_is_the_signature(documented: type) -> None:
    """Every option is there in order, with its default."""
    parameters = list(inspect.signature(documented).parameters.values())
    rows = tables_of("configuration.md", f"## `{documented.__name__}`")
    found = [(plain(row[0]), ast.literal_eval(plain(row[1]))) for row in rows]
    assert found == [(parameter.name, parameter.default) for parameter in parameters]


def test_the_table_of_transitions_is_the_code() -> None:
    """Its rows are the transitions that change a state, no more and no fewer."""
    shown = set()
    for before, by, after in table("concepts.md", "from"):
        kind, _, outcomes = by.partition(" ") if by.startswith("exit ") else ("", "", "")
        labels = [f"{kind} {outcome}" for outcome in outcomes.split(", ")] if kind else by.split(", ")
        states: list[Any] = [*LIVE] if before == "any of these three" else [None if before == "none" else before]
        shown |= {(state, label, after) for state in states for label in labels}
    listed = {(before, kind, after) for (before, kind), after in TRANSITIONS.items() if before != after}
    listed |= {(before, f"exit {outcome}", after) for before in LIVE for outcome, after in OUTCOMES.items()}
    assert shown == listed


def test_the_table_of_outcomes_is_the_code() -> None:
    """Each outcome, and the final state that it counts as."""
    rows = table("concepts.md", "outcome")
    assert {plain(row[0]): row[2] for row in rows} == {name: state.value for name, state in OUTCOMES.items()}
    assert {row[2] for row in rows} == {state.value for state in FINAL}


def test_the_table_of_kinds_is_the_code() -> None:
    """Each kind of record, its level, and the state that it leads to."""
    rows = table("concepts.md", "kind")
    assert {plain(row[0]): {"TRACE": 5, "DEBUG": 10}[row[1]] for row in rows} == LEVELS
    for row in rows:
        kind, becomes = plain(row[0]), row[2]
        reached = {(before, after) for (before, k), after in TRANSITIONS.items() if k == kind}
        if kind == "exit":
            assert not reached
        elif becomes == "unchanged":
            assert all(before == after for before, after in reached)
        else:
            assert {after.value for _, after in reached} == {becomes}


def test_the_table_of_keys_is_what_records_have() -> None:
    """The records of each kind that the library writes have the keys that the table lists for it."""
    rows = table("concepts.md", "key")
    documented: dict[str, set[str]] = {kind: set() for kind in LEVELS}
    for row in rows:
        keys = re.findall("`([a-z_]+)`", row[0])
        named = set(re.findall("`([a-z]+)`", row[1]))
        kinds = {"all": set(LEVELS), "all but step records": set(LEVELS) - STEP_KINDS}.get(row[1], named)
        assert kinds <= set(LEVELS), row
        for kind in kinds:
            documented[kind] |= set(keys)
    # Only where a poll, or a wait for it, was longer than 10 µs, which cannot be had at will.
    documented["exit"] -= {"slow_polls", "slow_waits"}
    seen = seen_keys()
    seen["exit"] -= {"slow_polls", "slow_waits"}
    assert set(seen) == {"spawn", "enter", "suspend", "wake", "resume", "record", "exit"}
    for kind, found in seen.items():
        assert found == documented[kind], kind


def seen_keys() -> dict[str, set[str]]:
    """The keys of real records by kind, in a process of their own."""
    code = """
import asyncio, contextlib, contextvars, json, logging
from asyncinspect_logging import run, span

class Show(logging.Handler):
    def emit(self, record):
        said = record.__dict__.get("asyncinspect")
        if said is not None:
            keys.setdefault(said["kind"], set()).update(said)

async def main():
    with span("outer", links=["00f067aa0ba902b7"]) as outer:
        outer.record(more=1)
        context = contextvars.copy_context()
    # A child that begins after the end of its parent.
    await asyncio.create_task(asyncio.sleep(0.02), context=context)
    with contextlib.suppress(ValueError), span("failing"):
        raise ValueError

keys = {}
logging.basicConfig(handlers=[Show()], level=5)
run(main())
print(json.dumps({kind: sorted(found) for kind, found in keys.items()}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return {kind: set(found) for kind, found in ast.literal_eval(done.stdout).items()}


def families_on_page() -> dict[str, tuple[str, dict[str, str]]]:
    """Text and "Key: value." entries of each section of docs/metrics.md that is headed by a family."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    found = {}
    for section in re.split(r"^#{2,3} ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if heading.startswith("`async_inspect_"):
            found[heading.strip("`")] = (body, dict(re.findall(r"(Type|Labels|Group|Buckets): (.*?)\.(?:\s|$)", body)))
    return found


def test_every_family_is_documented() -> None:
    """Each family has its section, with its type, labels, group and buckets, and a query that names it."""
    page = families_on_page()
    assert set(page) == {family.sample for family in FAMILIES}
    for family in FAMILIES:
        body, entries = page[family.sample]
        labels = ", ".join(f"`{label}`" for label in family.labels) or "none"
        assert (entries["Type"], entries["Labels"], entries["Group"]) == (family.type, labels, f"`{family.group}`")
        if family.bounds:
            assert tuple(map(float, entries["Buckets"].strip("`").split(", "))) == family.bounds
        else:
            assert "Buckets" not in entries
        queries = "".join(re.findall(r"^```promql\n(.*?)^```", body, re.MULTILINE | re.DOTALL))
        assert family.name in queries


def test_every_value_of_a_label_is_documented() -> None:
    """The event types and the reasons for dropping."""
    assert tuple(plain(row[0]) for row in table("metrics.md", "type")) == EVENT_TYPES
    assert tuple(plain(row[0]) for row in table("metrics.md", "reason")) == DROP_REASONS
    body, _ = families_on_page()["async_inspect_tasks_by_state"]
    assert all(f"`{state.value}`" in body for state in (*LIVE, *FINAL))


def test_the_changelog_counts_the_families() -> None:
    """The number of families that it names is the number that there are."""
    found = re.search(r"(\d+) metric families", (ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert found
    assert int(found[1]) == len(FAMILIES)


def test_a_new_inspector_has_the_documented_label_values() -> None:
    """The page of an inspector that has seen nothing has every label value other than a name."""
    page = PrometheusExporter(Inspector()).gather()
    for label, values in (("type", EVENT_TYPES), ("reason", DROP_REASONS), ("state", [*LIVE, *FINAL])):
        assert all(f'{label}="{value}"' in page for value in values)


def test_every_variable_that_is_named_is_one() -> None:
    """In the pages and in ops/, each ASYNC_INSPECT_… is a setting or an option of the server."""
    files = [*PAGES, ROOT / "SECURITY.md", *(file for file in (ROOT / "ops").rglob("*") if file.is_file())]
    named = {name for file in files for name in re.findall(r"\bASYNC_INSPECT_[A-Z_]*[A-Z]\b", file.read_text("utf-8"))}
    settings = {field.name.upper() for field in fields(Config)}
    options = {f"METRICS_{name}" for name in SERVER_VARIABLES}
    known = {f"ASYNC_INSPECT_{name}" for name in {*settings, *options, "PRESET"}}
    assert named <= known
    assert len(named) > len(settings)


def test_the_pages_name_nothing_of_the_machine() -> None:
    """No path of a home directory or a checkout, and no address but loopback, any and the examples' names."""
    for page in PAGES:
        text = page.read_text("utf-8")
        assert not re.search(r"/(?:home|root|work|tmp|Users)/", text), page.name
        addresses = set(re.findall(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b", text))
        assert addresses <= {"127.0.0.1", "0.0.0.0"}, page.name
