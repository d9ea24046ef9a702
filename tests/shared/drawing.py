"""Draws a dashboard with Grafana's own components, in Chromium, from what a Prometheus answers."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from grafana import ALL, ask, ask_range, filled, queries

ROOT = Path(__file__).resolve().parents[2]
#: What tools/setup.py --drawing puts there.
MODULES = ROOT / ".cache" / "grafana" / "node_modules"
SOURCE = ROOT / "tests" / "real" / "grafana" / "draw.jsx"
ICONS = MODULES / "@grafana" / "ui" / "dist" / "public" / "img" / "icons"
CHROMIUM = "/usr/bin/chromium"
WIDTH = 1600

PAGE = """<!doctype html><meta charset="utf-8"><title>dashboard</title><link rel="stylesheet" href="draw.css">
<div id="root"></div><script>window.drawing = %s</script><script src="draw.js"></script>
"""


class Drawing(NamedTuple):
    """The picture, and of each panel by its title the text that it shows and how many of its pixels are drawn lines.
    `errors` are those of the page.
    """

    png: bytes
    texts: dict[str, str]
    inked: dict[str, int]
    errors: list[str]


def missing(*, browser: bool = True) -> str:
    """What there has to be and is not; empty if nothing."""
    if shutil.which("node") is None:
        return "Node.js is not installed"
    if not (MODULES / "@grafana" / "ui").is_dir():
        return "Grafana's components are not installed (tools/setup.py --drawing does that)"
    if browser and not os.path.exists(CHROMIUM):
        return "Chromium is not installed (tools/setup.py --drawing does that)"
    return ""


def bundle(folder: Path) -> None:
    """Put what draws into the folder: draw.js and draw.css."""
    fonts = [f"--loader:.{kind}=dataurl" for kind in ("woff", "woff2", "svg")]
    subprocess.run(
        [
            str(MODULES / ".bin" / "esbuild"),
            str(SOURCE),
            "--bundle",
            f"--outdir={folder}",
            "--jsx=automatic",
            '--define:process.env.NODE_ENV="production"',
            *fonts,
            # Left out of what is installed, and used for maps only.
            "--alias:ol/format/WKT=ol",
            "--log-level=error",
        ],
        cwd=MODULES.parent,
        env={**os.environ, "NODE_PATH": str(MODULES)},
        check=True,
        timeout=60,
    )


def schema(folder: Path) -> dict[str, Any]:
    """The JSON schema of what schema.ts exports, from the types that Grafana publishes."""
    (folder / "schema.ts").write_text((SOURCE.parent / "schema.ts").read_text("utf-8"), "utf-8")
    (folder / "node_modules").symlink_to(MODULES)
    compiler = {"moduleResolution": "node", "skipLibCheck": True, "target": "es2020", "module": "esnext", "types": []}
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": compiler, "files": ["schema.ts"]}), "utf-8")
    options = ["--path", "schema.ts", "--tsconfig", "tsconfig.json", "--type", "Checked", "--expose", "none"]
    done = subprocess.run(
        [str(MODULES / ".bin" / "ts-json-schema-generator"), *options, "--no-type-check"],
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
        timeout=100,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def answers(dashboard: dict[str, Any], address: str, start: float, end: float, step: float) -> dict[str, Any]:
    """Of each panel and query, what Prometheus answers."""
    found: dict[str, Any] = {}
    # Grafana's interval for rates: four scrapes (of a second), or a step and a scrape.
    rate = max(4.0, step + 1)
    for panel, target in queries(dashboard):
        promql = filled(target["expr"], ALL, span=end - start, rate=rate)
        instant = target["instant"]
        series = ask(address, promql, end) if instant else ask_range(address, promql, start, end, step)
        found.setdefault(str(panel["id"]), {})[target["refId"]] = series
    return found


def draw(
    dashboard: dict[str, Any], address: str, start: float, end: float, folder: Path, shown: dict[str, str]
) -> Drawing:
    """Draw what the dashboard shows of a time range; `shown` is what its variables are said to be."""
    from playwright.sync_api import sync_playwright

    step = max(1, math.ceil((end - start) / 300))
    start, end = math.ceil(start), math.floor(end)
    drawing = {
        "dashboard": dashboard,
        "variables": shown,
        "from": start,
        "to": end,
        "step": step,
        "answers": answers(dashboard, address, start, end, step),
    }
    bundle(folder)
    (folder / "index.html").write_text(PAGE % json.dumps(drawing).replace("</", "<\\/"), "utf-8")
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            # Tables leave out what is below the window's end.
            lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
            page = browser.new_page(viewport={"width": WIDTH, "height": 80 + 38 * lines})
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.route("**/*", lambda route: _serve(route, folder))
            page.goto("http://grafana.invalid/index.html")
            page.wait_for_selector("#drawn", state="attached", timeout=30_000)
            texts, inked = {}, {}
            for panel in dashboard["panels"]:
                section = page.locator(f"#panel-{panel['id']}")
                texts[panel["title"]] = section.inner_text()
                inked[panel["title"]] = section.evaluate(INK)
            png = page.screenshot(full_page=True)
        finally:
            browser.close()
    return Drawing(png, texts, inked, errors)


def _serve(route: Any, folder: Path) -> None:
    """Everything comes from disk: the page, and Grafana's icons."""
    path = urlsplit(route.request.url).path
    _, found, icon = path.partition("/img/icons/")
    file = ICONS / icon if found else folder / path.lstrip("/")
    if file.is_file():
        route.fulfill(path=file)
    else:
        route.fulfill(status=404)


#: Pixels of the panel's canvases that are not empty.
INK = """section => [...section.querySelectorAll('canvas')].reduce((count, canvas) => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) count++;
  return count;
}, 0)"""
