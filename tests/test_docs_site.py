"""The docs as a site: built without a warning, the same as where they lie, with the figures of the benchmarks."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import asyncinspect_logging
from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
#: What a page must have as often on the site as where it lies.
TAGS = ("h1", "h2", "h3", "h4", "li", "table", "tr", "pre", "blockquote")


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        # The makers of the theme warn of a version of MkDocs that this does not use.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_figures_are_those_of_the_benchmarks() -> None:
    """The tables of the pages are made from benchmarks/RESULTS.md as it is."""
    done = python("tools/figures.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    """What it says in words of a span and of a task is what was measured, rounded."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8")
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())

    def measured(line: str) -> list[float]:
        (row,) = re.findall(rf"^\| {re.escape(line)}.*? \| .*? \| ([\d.]+) . \| ([\d.]+) . \|", results, re.MULTILINE)
        return sorted(map(float, row))

    assert "about four times as long as a minimal context manager" in readme
    assert {round(figure) for figure in measured("span enter and exit, handler attached")} == {4}
    assert "or less than 0.4 of one `logger.info(" in readme
    assert max(measured("the same against one `logger.info")) < 0.4
    least, most = measured("a task under `install()`, all metrics")
    assert f"takes {least:.1f} to {most:.1f} times as long as a bare one" in readme


def test_other_figures_are_found(tmp_path: Path) -> None:
    """With another result, the pages are not right."""
    results = ROOT / "benchmarks" / "RESULTS.md"
    text = results.read_text("utf-8")
    (figure,) = re.findall(r"^\| span when nobody listens \| [^|]* \| ([^|]*) \|", text, re.MULTILINE)
    other = tmp_path / "RESULTS.md"
    other.write_text(text.replace(f"| {figure} |", "| 9.99 F |"), "utf-8")
    code = f"import figures, pathlib, sys; figures.RESULTS = pathlib.Path({str(other)!r}); sys.exit(figures.main())"
    done = python("-c", f"import sys; sys.path[:0] = ['tools']; sys.argv[1:] = ['--check']; {code}")
    assert (done.returncode, done.stderr) == (1, "")
    assert "docs/production.md has other figures than RESULTS.md" in done.stdout


def page_of(names: int) -> list[str]:
    """The samples of a page with so many names, whose spans each ran three times."""
    with recording() as inspector:
        for number in range(3 * names):
            with span(f"GET /orders/{{order}}/{number % names}"):
                pass
    page = PrometheusExporter(inspector).gather(openmetrics=True)
    return [line for line in page.splitlines() if not line.startswith("#")]


@contextmanager
def recording() -> Iterator[Inspector]:
    """An inspector that hears of the spans of the block."""
    inspector = Inspector(Config(max_names=None))
    handler = AsyncInspectHandler(inspector)
    logging.getLogger("asyncinspect").addHandler(handler)
    try:
        yield inspector
    finally:
        logging.getLogger("asyncinspect").removeHandler(handler)


def test_the_series_of_a_name_are_as_many_as_the_pages_say() -> None:
    """The table of docs/scaling.md by number of names, and what a process has without any, with and without buckets."""
    scaling = (DOCS / "scaling.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| [\d,]+ \| [\d.]+ \|$", scaling, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "10", "100", "1,000"]
    for row in rows[:3]:
        names, series, size = (int(cell.replace(",", "")) for cell in row)
        samples = page_of(names)
        assert len(samples) == series
        assert sum(len(line) + 1 for line in samples) == pytest.approx(size, rel=0.5 if names == 1 else 0.1)
    one, two = page_of(1), page_of(2)
    each = len(two) - len(one)
    assert f"Each name is {each} series" in scaling
    assert f"and {len(one) - each} series come with no name" in scaling
    assert f"Each name is {each} series" in (DOCS / "production.md").read_text("utf-8")
    assert f"about {each} series for each span name" in (DOCS / "deployment.md").read_text("utf-8")
    (dropped,) = re.findall(r"regex: (async_inspect_\S+_bucket)\n        action: drop\n    static_configs", scaling)
    left = sum(not re.fullmatch(dropped, re.split("[{ ]", line)[0]) for line in two) - sum(
        not re.fullmatch(dropped, re.split("[{ ]", line)[0]) for line in one
    )
    assert f"{left} series a name, for {each}." in scaling


class Tags(HTMLParser):
    """Counts the tags of a page's own text, which is in the element `article` if `inside`, and looks at its links."""

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.counts = dict.fromkeys(TAGS, 0)
        self.links: list[str] = []
        self._outside = inside

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self._outside = False
        elif not self._outside and tag in self.counts:
            self.counts[tag] += 1
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._outside = True

    @classmethod
    def of(cls, html: str, *, inside: bool) -> Tags:
        tags = cls(inside=inside)
        tags.feed(html)
        return tags


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error: of links, anchors, pages in no navigation, docstrings."""
    folder = tmp_path_factory.mktemp("site")
    done = python("-m", "mkdocs", "build", "--strict", "--site-dir", folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_a_page_is_the_same_on_the_site(site: Path) -> None:
    """Headings, lists, tables and code of each page come out of the site's Markdown as they do of CommonMark."""
    commonmark = MarkdownIt("commonmark").enable("table")
    pages = sorted(DOCS.glob("*.md"))
    assert len(pages) > 25
    for page in pages:
        built = site / ("index.html" if page.stem == "index" else f"{page.stem}/index.html")
        here = Tags.of(commonmark.render(page.read_text("utf-8")), inside=False).counts
        assert Tags.of(built.read_text("utf-8"), inside=True).counts == here, page.name


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """No page loads a script, a font or a picture from another host, and no link leads out of the site to a file."""
    for page in site.rglob("*.html"):
        html = page.read_text("utf-8")
        assert not re.findall(
            r"<(?:script|img|link)[^>]* (?:src|href)=\"?(?:https?:)?//(?!asyncinspect)[^>]*>", html
        ), page
        # The theme's own script would get what draws it from elsewhere.
        assert 'class="mermaid"' not in html, page
        assert not [link for link in Tags.of(html, inside=True).links if link.endswith(".md")], page.name


@pytest.mark.slow
def test_what_the_pages_promise_is_on_the_site(site: Path) -> None:
    """The API reference has what `__all__` has, parameter by parameter; each alert's runbook is a heading."""
    html = "".join(page.read_text("utf-8") for page in (site / "api").rglob("*.html"))
    anchors = set(re.findall(r'id="?([\w.]+)', html))
    assert {f"asyncinspect_logging.{name}" for name in asyncinspect_logging.__all__} <= anchors
    # What is said of a parameter is an item of its own.
    spans = (site / "api" / "spans" / "index.html").read_text("utf-8")
    assert len(re.findall(r"<li><code>(?:name|logger|parent|links|fields)</code>: ", spans)) >= 5
    groups = yaml.safe_load((ROOT / "ops" / "alerts.yml").read_text("utf-8"))["groups"]
    runbooks = [rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"]]
    assert runbooks
    for address in runbooks:
        page, _, anchor = address.removeprefix("docs/").partition("#")
        assert f'id="{anchor}"' in (site / page.removesuffix(".md") / "index.html").read_text("utf-8"), address
