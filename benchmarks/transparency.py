"""`make transparency`: the test suites of other packages, with and without `install(sync=True)`, or our middleware in
every application, compared test by test.

The packages come from the package index as source distributions, which hold their tests. Each suite is run twice by the
same Python: as it is, and with `transparency_plugin.py` calling `install(sync=True)` on every event loop. What a
test came to (passed, failed, skipped, …) has to be the same. Tests where it was not are run three times more each way,
one after the other, before it is called a difference. What the detectors found meanwhile, with default settings, is
listed too.

    python benchmarks/transparency.py [--suite aiojobs] [--select EXPRESSION]

With --suite, the rows of that suite are replaced and the others stay; with --select, nothing is written.

Everything it needs it puts into .venv-transparency-<version> and .cache; the table goes to TRANSPARENCY.md next to this
file. Exits with 1 where there is a difference.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VERSION = ".".join(platform.python_version_tuple()[:2])
CACHE = ROOT / ".cache" / "transparency"
ENVIRONMENT = ROOT / f".venv-transparency-{VERSION}"
KEPT = HERE / f"transparency-{VERSION}.json"
WAYS = ("plain", "install")
RERUNS = 3

Outcomes = dict[str, str]


class Suite(NamedTuple):
    """A package and how its tests are run. `requirements`: what they need besides; `arguments`: of pytest; `option`:
    of our plugin, and `how`: what it does.
    """

    package: str
    version: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...]
    option: str = "--install-everywhere"
    how: str = "with `install(sync=True)`"


_MIDDLEWARE = ("--middleware-everywhere", "with our middleware")


SUITES = (
    Suite(
        "aiojobs",
        "1.4.0",
        ("aiohttp", "pytest", "pytest-aiohttp", "pytest-asyncio"),
        (
            *("-p", "pytest_asyncio.plugin", "-p", "aiohttp.pytest_plugin", "-p", "pytest_aiohttp.plugin"),
            "--asyncio-mode=auto",
        ),
    ),
    Suite(
        "anyio",
        "4.16.0",
        (
            *("blockbuster", "coverage", "hypothesis", "psutil", "pytest>=9", "pytest-mock", "pytest-timeout", "trio"),
            *("trustme", "truststore", "uvloop"),
        ),
        (),
    ),
    Suite(
        "starlette",
        "1.10.0",
        (
            "starlette[full]",
            "httpx2[zstd]",
            "blockbuster",
            "importlib-metadata",
            "opentelemetry-sdk",
            "pytest>=9",
            "trio",
        ),
        # Left out is a test that counts how often a route is asked whether it matches: the middleware asks, too.
        (
            *("-p", "anyio.pytest_plugin", "tests", "--deselect"),
            "tests/middleware/test_opentelemetry.py::test_instrumentation_uses_actual_route_match_once",
        ),
        *_MIDDLEWARE,
    ),
    Suite(
        "aiohttp",
        "3.14.5",
        (
            *(
                "blockbuster",
                "freezegun",
                "isal",
                "pytest>=9",
                "pytest-mock",
                "pytest-xdist",
                "pytest-cov",
                "pytest-aiohttp",
            ),
            *("proxy.py", "python-on-whales", "re-assert", "trustme", "setuptools-git", "time-machine", "zlib_ng"),
        ),
        # Left out is a test that an application without middlewares has none.
        (
            *("--deselect", "tests/test_web_app.py::test_app_run_middlewares"),
            *("-p", "pytest_mock", "-o", "addopts=", "-p", "aiohttp.pytest_plugin"),
            *("tests/test_web_functional.py", "tests/test_web_app.py", "tests/test_web_middleware.py"),
            *("tests/test_web_websocket_functional.py", "tests/test_web_sendfile_functional.py"),
            *("tests/test_web_urldispatcher.py", "tests/test_web_cli.py", "tests/test_client_functional.py"),
        ),
        *_MIDDLEWARE,
    ),
)


def say(text: str) -> None:
    print(f"transparency: {text}", file=sys.stderr, flush=True)


def pip(*arguments: str | Path) -> None:
    subprocess.run([ENVIRONMENT / "bin" / "python", "-m", "pip", "-q", *arguments], check=True, stdout=sys.stderr)


def set_up(suites: Iterable[Suite]) -> None:
    """An environment with our wheel, the packages from their source distributions, and what their tests need."""
    subprocess.run([sys.executable, ROOT / "tools" / "setup.py", "--venv", ENVIRONMENT.name], check=True, cwd=ROOT)
    for suite in suites:
        stamp = ENVIRONMENT / f".stamp-{suite.package}"
        if stamp.exists() and stamp.read_text("utf-8") == repr(suite):
            continue
        say(f"fetching {suite.package} {suite.version}")
        wanted = f"{suite.package}=={suite.version}"
        pip("download", "--no-deps", "--no-binary", ":all:", "--dest", CACHE, wanted)
        archive = CACHE / f"{suite.package}-{suite.version}.tar.gz"
        with tarfile.open(archive) as tar:
            tar.extractall(CACHE, filter="data")
        pip("install", archive, *suite.requirements)
        stamp.write_text(repr(suite), "utf-8")


def start(suite: Suite, way: str, report: Path, tests: Sequence[str]) -> subprocess.Popen[bytes]:
    """A run of a suite, or of some of its tests, under way."""
    report.unlink(missing_ok=True)
    # Its own settings, and not those of this project, in whose folder the cache is.
    arguments = [*suite.arguments, "--outcomes", str(report), "--rootdir", ".", "-c", "pyproject.toml"]
    if way == "install":
        arguments.append(suite.option)
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(HERE),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.Popen(
        [
            *(ENVIRONMENT / "bin" / "python", "-m", "pytest", "-q", "-p", "transparency_plugin"),
            *("-p", "no:cacheprovider", *arguments, *tests),
        ],
        cwd=CACHE / f"{suite.package}-{suite.version}",
        env=environment,
        stdout=report.with_suffix(".log").open("wb"),
        stderr=subprocess.STDOUT,
    )


def finish(run: subprocess.Popen[bytes], report: Path) -> dict[str, Any]:
    """What a run came to. Raises SystemExit if it broke off."""
    status = run.wait()
    if not report.exists():
        log = report.with_suffix(".log")
        end = log.read_text("utf-8", "replace")[-2000:]
        say(f"pytest broke off with status {status}; the end of {log.relative_to(ROOT)}:\n{end}")
        sys.exit(2)
    found: dict[str, Any] = json.loads(report.read_text("utf-8"))
    if not found["outcomes"]:
        say(f"pytest ran no test; see {report.with_suffix('.log').relative_to(ROOT)}")
        sys.exit(2)
    return found


def compare(suite: Suite, tests: Sequence[str]) -> dict[str, Any]:
    """Both ways, one after the other, and again for the tests that differ."""
    reports = {way: CACHE / f"{suite.package}-{VERSION}-{way}.json" for way in WAYS}
    found = {way: finish(start(suite, way, reports[way], tests), reports[way]) for way in WAYS}
    outcomes = {way: {test: told[0] for test, told in found[way]["outcomes"].items()} for way in WAYS}
    suspects = differing(outcomes["plain"], outcomes["install"])
    seen: dict[str, dict[str, list[str]]] = {test: {way: [] for way in WAYS} for test in suspects}
    if suspects:
        say(f"{suite.package}: {len(suspects)} tests differ at first sight; running them again")
        for _ in range(RERUNS):
            for way in WAYS:
                report = CACHE / f"{suite.package}-{VERSION}-{way}-again.json"
                again = finish(start(suite, way, report, suspects), report)["outcomes"]
                for test in suspects:
                    seen[test][way].append(again[test][0] if test in again else "not run")
    return {
        "version": suite.version,
        "how": suite.how,
        "on": datetime.date.today().isoformat(),
        "counts": {way: dict(Counter(outcomes[way].values())) for way in WAYS},
        "spans": found["install"]["spans"],
        "findings": distinct(found["install"].get("findings", ())),
        "again": seen,
    }


_FOLDERS = re.compile(r"/\S*?/(?=site-packages/|\.cache/transparency/)|/\S*?/lib/python3\.\d+/(?!site-packages)")


def _from_anywhere(message: str) -> str:
    """Without the folders of the machine that it was found on."""
    return _FOLDERS.sub("", message)


def distinct(findings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One of each kind, name and test function, whatever its parameters, with how often it was found."""
    kept: dict[tuple[str, str, str], dict[str, Any]] = {}
    for finding in findings:
        test = finding["test"].partition("[")[0]
        key = (finding["kind"], test, finding["name"])
        if key not in kept:
            kept[key] = {
                "kind": key[0],
                "test": test,
                "name": key[2],
                "times": 0,
                "message": _from_anywhere(finding["message"]),
            }
        kept[key]["times"] += 1
    return [kept[key] for key in sorted(kept)]


def differing(plain: Outcomes, install: Outcomes) -> list[str]:
    """The tests whose outcomes are not the same, or that ran only one way."""
    return sorted(test for test in plain.keys() | install.keys() if plain.get(test) != install.get(test))


def is_different(again: Mapping[str, Sequence[str]]) -> bool:
    """Whether a test that was run again differs: no outcome that it had one way was had the other way too."""
    return not set(again["plain"]) & set(again["install"])


#: Why a finding is true, by its kind and the end of the test's name: what that test does. Others are told with their
#: message alone.
_TRUE = {
    ("self_wakes", "::test_ttl_sequential"): "calls checkpoint() a hundred times",
    ("self_wakes", "::test_concurrent_send"): "sends in an endless loop to a socket that takes it all",
    ("self_wakes", "::test_send_fds_large_message"): "receives 1 MiB in small parts, with a checkpoint() each",
    ("self_wakes", "_loop_closed_during_result_report"): "asks a flag again and again, with checkpoint()",
    ("long_poll", "::test_not_closed_warning"): "calls gc.collect()",
    ("long_poll", "::test_unretrieved_future_exception_server_crash"): "calls gc.collect()",
    ("long_poll", "::test_run_sync_worker_cyclic_references"): "calls gc.collect()",
    ("long_poll", "::test_fail_after_scope_cancelled_before_timeout"): "calls time.sleep(0.11)",
}
_TRUE |= {("blocked_loop", test): why for (kind, test), why in _TRUE.items() if kind == "long_poll"}


def findings(kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section on what was found, where that was asked."""
    rows, told = [], []
    for run in kept:
        for package, suite in run["suites"].items():
            if "findings" not in suite:
                continue
            counts: Counter[str] = Counter()
            for found in suite["findings"]:
                counts[found["kind"]] += found["times"]
                times = f", {found['times']} times" if found["times"] > 1 else ""
                why = next((w for (kind, end), w in _TRUE.items() if _is_of(found, kind, end)), "")
                message = found["message"].removeprefix(f"{found['name']}: ")
                told.append(
                    f"- {found['kind']} in `{found['test']}` ({package}, Python {run['python']}{times}), "
                    f"`{found['name']}`: {message[:160].rstrip()}{'…' if len(message) > 160 else '.'}"
                    + (f" True: the test {why}." if why else "")
                )
            by_kind = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
            rows.append(f"| {run['python']} | {package} | {suite['spans']:,} | {by_kind or 'none'} |")
    if not rows:
        return []
    return [
        "",
        "## Findings",
        "",
        "What the detectors found the second time, with default settings. Long polls and blocked loops are",
        "times that were measured, those of the garbage collector included: where it was most of one, the finding says",
        "so. Where no reason stands, none was traced.",
        "",
        "| Python | package | spans | findings |",
        "| --- | --- | ---: | --- |",
        *rows,
        "",
        *told,
    ]


def _is_of(found: Mapping[str, Any], kind: str, end: str) -> bool:
    return bool(found["kind"] == kind and found["test"].endswith(end))


_ORDER = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def markdown(kept: Sequence[Mapping[str, Any]]) -> str:
    """The whole of TRANSPARENCY.md, for the runs of one or more interpreters."""
    lines = [
        "# Transparency",
        "",
        "Written by `make transparency`: the test suites of packages that were not written with this one in",
        "mind, run from their source distributions, as they are and with `install(sync=True)` on every loop, or our",
        "middleware in every application: of aiohttp, the tests of server and client, but for one that an application",
        "without middlewares has none; of Starlette, all but one that counts how often a route is asked whether it",
        "matches, which is once more. anyio's runs on asyncio",
        "(in debug mode), uvloop, asyncio with eager tasks where there are such, and trio. Tests",
        "that fail both ways miss something on the machine, such as name resolution or IPv6. The two rows of a suite",
        "are of one run, both ways one after the other; the suites need not have been run on the same day.",
        "",
        f"| Python | package | run on | | {' | '.join(_ORDER)} |",
        f"| --- | --- | --- | --- | {' | '.join('---:' for _ in _ORDER)} |",
    ]
    different: list[str] = []
    unsteady: list[str] = []
    for run in kept:
        for package, found in run["suites"].items():
            for way in WAYS:
                counts = " | ".join(f"{found['counts'][way].get(outcome, 0):,}" for outcome in _ORDER)
                name = "as it is" if way == "plain" else found.get("how", "with `install(sync=True)`")
                day = found.get("on", "–")
                lines.append(f"| {run['python']} | {package} {found['version']} | {day} | {name} | {counts} |")
            for test, again in found["again"].items():
                told = ", ".join(f"{way}: {' '.join(again[way])}" for way in WAYS)
                line = f"- `{test}` ({package}, Python {run['python']}): {told}"
                (different if is_different(again) else unsteady).append(line)
    lines += ["", "## Differences", "", *(different or ["None: every test has the same outcome both ways."])]
    if unsteady:
        lines += [
            "",
            "## Unsteady tests",
            "",
            f"These differed at first sight, but not in {RERUNS} runs more each way:",
            "",
            *unsteady,
        ]
    return "\n".join([*lines, *findings(kept), ""])


def keep(measured: Mapping[str, Any]) -> None:
    """Write down what was measured, beside what this Python has of the suites that were not run now."""
    before = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    # Of another release of Python, nothing can stand beside it.
    suites = before["suites"] if before.get("python") == measured["python"] else {}
    found = {suite.package: {**suites, **measured["suites"]}.get(suite.package) for suite in SUITES}
    suites = {package: suite for package, suite in found.items() if suite is not None}
    KEPT.write_text(json.dumps({**measured, "suites": suites}, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare other packages' test suites with and without install().")
    parser.add_argument("--suite", choices=[suite.package for suite in SUITES], help="this one only")
    parser.add_argument("--select", help="only tests that match this expression of pytest's -k")
    options = parser.parse_args()
    suites = [suite for suite in SUITES if options.suite in (None, suite.package)]
    CACHE.mkdir(parents=True, exist_ok=True)
    set_up(suites)
    measured: dict[str, Any] = {"python": platform.python_version(), "suites": {}}
    for suite in suites:
        say(f"{suite.package} {suite.version}, both ways")
        measured["suites"][suite.package] = compare(suite, ["-k", options.select] if options.select else [])
    if options.select:
        print(markdown([measured]))
    else:
        keep(measured)
        kept = [json.loads(path.read_text("utf-8")) for path in sorted(HERE.glob("transparency-*.json"))]
        (HERE / "TRANSPARENCY.md").write_text(markdown(kept), "utf-8")
        print(markdown(kept))
    found = measured["suites"].values()
    sys.exit(any(is_different(again) for suite in found for again in suite["again"].values()))


if __name__ == "__main__":
    main()
