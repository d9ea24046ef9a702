"""What MkDocs is told of the pages, so that they can be read where they lie and as a site.

Pages link to files outside docs/, to the changelog, to examples, to the files in ops/: as they stand there, relative.
Each such file becomes a page of the site, a Markdown file as it is and anything else as a listing, and the links lead
there. Called by MkDocs, which mkdocs.yml tells to.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
#: The pages of the navigation that lie outside docs/, and where they are on the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "SECURITY.md": "reporting.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "benchmarks/TRANSPARENCY.md": "transparency.md",
    # What the README says is said by the first page and those it leads to.
    "README.md": "index.md",
}
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".service": "ini"}
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
_CODE = re.compile(r"^(```.*?^```|~~~.*?^~~~)", re.MULTILINE | re.DOTALL)


def uri_of(path: str) -> str:
    """Where a file of the repository, given by its path there, is on the site."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith(".md") else f"files/{path}.md"


def links_of(text: str) -> set[str]:
    """The relative links of a page, without their anchors."""
    return {found[1] for found in _LINK.finditer(_CODE.sub("", text)) if "://" not in found[1]}


def at(page: str, link: str) -> str:
    """The path in the repository that a link of the page with that path leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def with_links(text: str, page: str) -> str:
    """The text of a page, whose path in the repository is given, with its links as they have to be on the site."""

    def replace(link: re.Match[str]) -> str:
        if "://" in link[1]:
            return link[0]
        here = posixpath.dirname(uri_of(page)) or "."
        return posixpath.relpath(uri_of(at(page, link[1])), here) + (link[2] or "")

    # Code stays as it is: every other part is a block of it.
    parts = _CODE.split(text)
    return "".join(part if number % 2 else _LINK.sub(replace, part) for number, part in enumerate(parts))


def listing_of(path: str) -> str:
    """A page that shows a file of the repository."""
    text = (ROOT / path).read_text("utf-8")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    language = _LANGUAGES.get(posixpath.splitext(path)[1], "text")
    return f"# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link outside docs/, and what that links in turn."""
    waiting = {path for path in ELSEWHERE if (ROOT / path).is_file()} - {"README.md"}
    for file in files.documentation_pages():
        page = f"docs/{file.src_uri}"
        waiting |= {at(page, link) for link in links_of((ROOT / page).read_text("utf-8"))}
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in done or path == "README.md" or path.startswith(("docs/", "..")) or not (ROOT / path).is_file():
            continue  # what is not there is for MkDocs to find
        done.add(path)
        if path.endswith(".md"):
            text = (ROOT / path).read_text("utf-8")
            waiting |= {at(path, link) for link in links_of(text)}
            content = with_links(text, path)
        else:
            content = listing_of(path)
        files.append(File.generated(config, uri_of(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the pages that were added for them."""
    return markdown if page.file.generated_by else with_links(markdown, f"docs/{page.file.src_uri}")
