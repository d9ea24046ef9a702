"""Retrofit rules: lines of other programs become spans, each counted once, and no line breaks anything."""

from __future__ import annotations

import http.client
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging import Inspector
from asyncinspect_logging.analysis import rules as rules_module
from asyncinspect_logging.analysis.rules import Rules, load_rules, parse_rules
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.records import flaw_of
from asyncinspect_logging.snapshot import NameView, Snapshot

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "retrofit"
SECOND = 1_000_000_000

JOBS = """
[[rule]]
name = "job"
start = '^(?P<at>\\d+) start (?P<id>\\w+)(?: (?P<what>\\w+))?$'
end = '^(?P<at>\\d+) end (?P<id>\\w+) (?P<how>\\w+)(?:: (?P<why>.*))?$'
key = "id"
time = "at"
time_format = "unix"
outcome = { group = "how", failed = ["failed", "broken"], cancelled = "stopped" }
error = "why"
fields = ["what", "how"]
"""
LINES = """
[[rule]]
name = "{verb}"
line = '^(?P<at>\\d+) (?P<verb>[A-Z]+) (?P<status>\\d+) (?P<took>\\S+)$'
time = "at"
time_format = "unix"
duration = "took"
duration_unit = "ms"
outcome = { group = "status", failed = ">= 500", cancelled = ["499", "444"] }
"""


def read(rules: Rules, lines: Iterable[str | bytes], file: str = "a.log", into: Inspector | None = None) -> Inspector:
    inspector = Inspector() if into is None else into
    for number, line in enumerate(lines, 1):
        for payload in rules.payloads(line, file, number):
            assert flaw_of(payload) is None, payload
            inspector.apply(payload)
    return inspector


def only_task(inspector: Inspector) -> Any:
    (task,) = inspector.snapshot().tasks
    return task


def tally(view: NameView) -> tuple[int, int, int, int]:
    return view.spawned, view.completed, view.failed, view.cancelled


def test_start_and_end_are_a_span() -> None:
    """Name, times, outcome, the error's message, fields of both lines, and where the line stands."""
    task = only_task(read(parse_rules(JOBS), ["100 start a import", "annotation", "103 end a broken: no such file"]))
    assert (task.name, task.outcome, task.started_at, task.duration) == ("job", "failed", 100.0, 3.0)
    assert dict(task.fields) == {"what": "import", "how": "broken"}
    assert task.error == {"type": "broken", "message": "no such file"}
    assert task.at == "a.log:1"


def test_spans_overlap_by_key() -> None:
    """An end belongs to the start of its key; one without a start is counted, and is no span."""
    rules = parse_rules(JOBS)
    lines = ["1 start a", "2 start b", "3 end a done", "4 end c done", "7 end b stopped"]
    snapshot = read(rules, lines).snapshot()
    assert tally(snapshot.names["job"]) == (2, 1, 0, 1)
    assert sorted(task.duration for task in snapshot.tasks if task.duration) == [2.0, 5.0]
    assert (rules.unmatched, rules.matched) == (1, 5)


def test_without_an_end_a_span_stays_open() -> None:
    """Also when the log is over."""
    rules = parse_rules(JOBS)
    inspector = read(rules, ["1 start a"])
    assert list(rules.finish()) == []
    assert tally(inspector.snapshot().names["job"]) == (1, 0, 0, 0)
    assert only_task(inspector).outcome is None


def test_a_key_that_starts_again_ends_the_span_before() -> None:
    """Its end was not logged: it was interrupted."""
    rules = parse_rules(JOBS)
    tasks = read(rules, ["1 start a", "5 start a", "6 end a done"]).snapshot().tasks
    assert [(task.outcome, task.duration) for task in tasks] == [("interrupted", 4.0), ("completed", 1.0)]
    assert rules.given_up == 1


def test_open_starts_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are given up, and nothing live is left of them."""
    monkeypatch.setattr(rules_module, "MAX_OPEN", 10)
    rules = parse_rules(JOBS)
    view = read(rules, [f"{number} start k{number}" for number in range(1, 101)]).snapshot().names["job"]
    assert tally(view) == (100, 0, 0, 90)
    assert rules.given_up == 90


@given(st.permutations(range(4)))
def test_files_read_twice_count_once(order: list[int]) -> None:
    """Whatever the order, under whatever name, and even if one is a part of the other."""
    lines = [["1 start a", "2 start b", "3 end b failed"], ["4 start c", "5 end c done"]]
    files = [lines[0], lines[1], lines[0][:2], lines[1]]
    rules, inspector = parse_rules(JOBS), Inspector()
    for index in order:
        read(rules, files[index], f"{index}.log", inspector)
    view = inspector.snapshot().names["job"]
    assert (view.spawned, view.completed) == (3, 1)
    assert rules.duplicates > 0


def test_one_line_is_a_span() -> None:
    """Its time is that of its end, unless the rule says otherwise."""
    for time_of, started in (("", 99.75), ('time_of = "start"', 100.0)):
        task = only_task(read(parse_rules(LINES + time_of), ["100 GET 200 250"]))
        assert (task.name, task.outcome, task.started_at, task.duration) == ("GET", "completed", started, 0.25)


def test_outcomes_by_comparison_and_by_text() -> None:
    """`>= 500` compares numbers; a text is compared as it is."""
    lines = [f"{at} GET {status} 1" for at, status in enumerate((200, 404, 499, 444, 500, 503, 499), 1)]
    assert tally(read(parse_rules(LINES), lines).snapshot().names["GET"]) == (7, 2, 2, 3)


def test_identical_lines_of_a_file_are_so_many_spans() -> None:
    """Two requests of the same second look alike; the same file read again does not count again."""
    rules = parse_rules(LINES)
    lines = ["100 GET 200 1"] * 5 + ["101 GET 200 1"]
    inspector = read(rules, lines)
    for name in ("a.log", "copy.log"):
        read(rules, lines, name, inspector)
    assert inspector.snapshot().names["GET"].completed == 6
    assert rules.duplicates == 12


def test_without_a_time_the_place_in_the_file_counts() -> None:
    """Lines of two workers that look the same are two requests; those of one file read twice are not."""
    rules = parse_rules("[[rule]]\nname='r'\nline='^GET'")
    inspector = read(rules, ["GET", "GET"], "1.log")
    read(rules, ["GET"], "2.log", inspector)
    read(rules, ["GET", "GET"], "1.log", inspector)
    assert inspector.snapshot().names["r"].completed == 3


@pytest.mark.parametrize(
    ("form", "zone", "text", "expected"),
    [
        ("iso", "", "2026-03-01 12:00:00,250", 1772366400.25),
        ("iso", "+01:00", "2026-03-01T12:00:00.25", 1772362800.25),
        ("iso", "+01:00", "2026-03-01T12:00:00Z", 1772366400.0),
        ("iso", "Europe/Berlin", "2026-07-01T14:00:00", 1782907200.0),
        ("unix", "", "1772366400.000000001", 1772366400.000000001),
        ("unix_ms", "", "1772366400250", 1772366400.25),
        ("%d/%b/%Y:%H:%M:%S %z", "", "01/Mar/2026:13:00:00 +0100", 1772366400.0),
        ("%d.%m.%Y %H:%M", "-05:30", "01.03.2026 06:30", 1772366400.0),
    ],
)
def test_times(form: str, zone: str, text: str, expected: float) -> None:
    """Times without a zone are in the rule's, or else UTC."""
    rules = parse_rules(
        f"[[rule]]\nname='r'\nline='^(?P<at>.*)$'\ntime='at'\ntime_format='{form}'\n"
        + (f"timezone='{zone}'" if zone else "")
    )
    (enter, _) = rules.payloads(text, "a.log", 1)
    assert enter["t"] == enter["wall"] == pytest.approx(expected * SECOND, abs=200)
    assert enter["t"] % SECOND == 1 or not text.endswith("000000001")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("9999999999999999999 GET 200 1", "'9999999999999999999' is not a time in the format 'unix'"),
        ("1 GET 200 -", "took='-' is not a duration"),
        ("1 GET 200 1e400", "took='1e400' is not a duration"),
        ("1 GET 200 99999999999999999", "is not a duration"),
    ],
)
def test_what_cannot_be_read_is_counted(line: str, why: str) -> None:
    """With file, line and reason; no span comes of it."""
    rules = parse_rules(LINES)
    assert list(rules.payloads(line, "a.log", 7)) == []
    assert rules.unreadable == 1
    ((file, number, said),) = rules.problems
    assert (file, number) == ("a.log", 7)
    assert why in said


def test_long_lines_are_passed_over_and_problems_bounded() -> None:
    """A hundred problems are kept, and lines longer than the limit are not looked at."""
    rules = parse_rules(LINES)
    read(rules, [f"{number} GET 200 -" for number in range(300)])
    assert (rules.unreadable, len(rules.problems)) == (300, rules_module.MAX_PROBLEMS)
    assert list(rules.payloads(b"1 GET 200 " + b"1" * rules_module.MAX_LINE, "a.log", 301)) == []
    assert rules.too_long == 1


def test_what_is_remembered_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of spans, of lines, of files and of times."""
    for bound in ("MAX_KNOWN", "MAX_LINES", "MAX_FILES"):
        monkeypatch.setattr(rules_module, bound, 50)
    rules = parse_rules(LINES)
    for number in range(500):
        rules.payloads(f"{number} GET 200 1", f"{number % 200}.log", number)
    assert len(rules._known) == len(rules._files) == 50
    read(rules, [f"{number} PUT 200 1" for number in range(500)])
    assert len(rules._files["a.log"].times) == 50


def test_rules_can_be_sent_to_another_process() -> None:
    """As they are made, before the first line."""
    rules = pickle.loads(pickle.dumps(parse_rules(JOBS + LINES)))
    assert read(rules, ["1 start a", "2 end a done", "3 GET 200 5"]).snapshot().names.keys() == {"job", "GET"}


@given(st.binary(max_size=200), st.text(max_size=200))
def test_no_line_breaks_a_rule(data: bytes, text: str) -> None:
    """Whatever bytes, and whatever text a pattern lets through."""
    rules = parse_rules(JOBS + LINES + "[[rule]]\nname='{x}'\nline='(?s)^(?P<x>.*)$'\nfields=['x']\nerror='x'")
    inspector = read(rules, [data, text, b"1 start " + data, f"2 end a {text}", f"{text} GET {text} {text}"])
    assert inspector.snapshot().dropped["malformed"] == 0


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    """It gives rules or a ConfigError."""
    for given_text in (text, f"[[rule]]\nname='a'\nline='''{text}'''", f"[[rule]]\n{text}"):
        try:
            parse_rules(given_text)
        except ConfigError as error:
            assert "rule" in str(error)


ONE = "[[rule]]\nname='r'\nline='(?P<at>x)(?P<b>y)?'\n"
TWO = "[[rule]]\nname='r'\nstart='(?P<id>x)'\nend='(?P<id>y)(?P<how>z)'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rules: there is no rule; begin one with a line [[rule]]"),
        ("rule = 3", "rules: there is no rule"),
        ("[rules]", "rules: 'rules' is not known here"),
        ("[[rule]]\nname='r'\nline=\"\\d\"", "rules: not TOML: "),
        ("a = " + "[" * 10_000, "rules: not TOML: "),
        ("[[rule]]\nline='x'", "rules, rule 1: name is missing; write name = "),
        (
            ONE + "[[rule]]\nname='q'\nlines='x'",
            "rules, rule 2 (q): lines='x' is not a key of a rule; there are: name,",
        ),
        ("[[rule]]\nname='r'", "rule 1 (r): start is missing; write start = "),
        ("[[rule]]\nname='r'\nstart='x'", "rule 1 (r): end is missing"),
        ("[[rule]]\nname='r'\nline='('", "rule 1 (r): line='(' is not a regular expression: missing ), unterminated"),
        ("[[rule]]\nname='r'\nline='a{99999999999}'", "is not a regular expression: "),
        ("[[rule]]\nname='r'\nline='[[]'", "is not a regular expression: Possible nested set"),
        ("[[rule]]\nname='r'\nline=3", "rule 1 (r): line=3 must be a pattern"),
        (ONE + "key='at'", "rule 1 (r): key='at' does not go with line"),
        (
            ONE + "fields=['nope']",
            "fields=['nope'] names the group 'nope', which is not in its pattern; write (?P<nope>…)",
        ),
        (ONE + "fields='at'", "fields='at' must be a list of groups"),
        (TWO + "key=['how']", "names the group 'how', which is not in each of its patterns"),
        (TWO + "end=[]", "not TOML"),
        ("[[rule]]\nname='r'\nstart='x'\nend=[]", "end=[] must be a pattern, or a list"),
        ("[[rule]]\nname='{how}'\n" + TWO.partition("name='r'\n")[2], "name='{how}' names the group 'how'"),
        (ONE + "time='at'", 'time_format is missing; write time_format = "iso"'),
        (ONE + "time='at'\ntime_format='noon'", "time_format='noon' must be"),
        (ONE + "time='at'\ntime_format='%Q'", "time_format='%Q' must be"),
        (ONE + "time_format='iso'", "time_format='iso' goes with time"),
        (ONE + "time='at'\ntime_format='iso'\ntimezone='Nowhere/Land'", "timezone='Nowhere/Land' must be an offset"),
        (ONE + "time='at'\ntime_format='iso'\ntimezone='../etc'", "timezone='../etc' must be an offset"),
        (ONE + "time_of='start'", "time_of='start' says which end"),
        (ONE + "time='at'\ntime_format='iso'\ntime_of='middle'", 'time_of=\'middle\' must be "start" or "end"'),
        (ONE + "duration='b'", 'duration_unit is missing; write duration_unit = "ms"'),
        (ONE + "duration='b'\nduration_unit='h'", "duration_unit='h' must be"),
        (ONE + "outcome='b'", "outcome='b' must be a table such as { group"),
        (ONE + "outcome={group='b', lost='x'}", "has 'lost'; there are group, failed and cancelled"),
        (ONE + "outcome={group='b', failed=500}", 'needs texts for failed, such as "error"'),
        (ONE + "outcome={group='b', failed='>= many'}", "has '>= many', which compares with no number"),
        (TWO + "error='nope'", "error='nope' names the group 'nope'"),
    ],
)
def test_errors_say_where_and_what_to_write(text: str, message: str) -> None:
    """File, rule, key, value and the fix."""
    with pytest.raises(ConfigError) as caught:
        parse_rules(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 800


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8, too long."""
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    (tmp_path / "long.toml").write_bytes(b"#" * (1 << 19))
    for name, message in (
        ("none.toml", "cannot be read"),
        (".", "cannot be read"),
        ("latin.toml", "are not UTF-8"),
        ("long.toml", "are longer than"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_rules(tmp_path / name)


# -- the rules that come with the package ------------------------------------------------------------------------------

_COMBINED = '127.0.0.1 - - [01/Mar/2026:13:00:00 +0100] "GET /a%20b?c HTTP/1.1" {} 17 "-" "curl/8"'


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("access_combined", [_COMBINED.format(s) for s in (200, 404, 500, 499)], (4, 2, 1, 1)),
        ("access_combined", ['::1 - me [01/Mar/2026:13:00:00 +0100] "GET / HTTP/1.0" 200 17'], None),
        ("access_timed", [_COMBINED.format(s) + " 0.250" for s in (200, 503)], (2, 1, 1, 0)),
        ("access_aiohttp", ['::1 [01/Mar/2026:13:00:00 +0100] "GET / HTTP/1.1" 200 17 0.250000'], (1, 1, 0, 0)),
        ("access_uvicorn", ['INFO:     127.0.0.1:5 - "GET / HTTP/1.1" 500 Internal Server Error'], (1, 0, 1, 0)),
    ],
)
def test_access_logs(name: str, lines: list[str], expected: tuple[int, ...] | None) -> None:
    """Lines of each format that the rules are for; the host and user fields vary."""
    snapshot = read(load_rules(EXAMPLES / f"{name}.toml"), lines).snapshot()
    assert tally(snapshot.names["GET"]) == (expected or (1, 1, 0, 0))
    if name in ("access_timed", "access_aiohttp"):
        assert {task.duration for task in snapshot.tasks} == {0.25}


def test_job_log() -> None:
    """The lines that the file shows, and what becomes of them."""
    shown = re.findall(r"^#   (\d.*)$", (EXAMPLES / "jobs.toml").read_text("utf-8"), re.MULTILINE)
    assert len(shown) == 3
    for end, outcome in ((shown[1], "completed"), (shown[2], "failed")):
        task = only_task(read(load_rules(EXAMPLES / "jobs.toml"), [shown[0], end]))
        assert (task.name, task.outcome, task.duration) == ("import", outcome, 4.5)
        assert dict(task.fields) == {"job": "17", "file": "users.csv"}
        assert (task.error or {}).get("message") == (None if outcome == "completed" else "line 3 is empty")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("piece", ["[", '"', "a", "1 ", " ", '- [x] "', 'GET / "', "127.0.0.1 - - [", '" 200 1'])
def test_no_line_holds_up_the_rules(path: Path, piece: str) -> None:
    """Lines of the greatest length that are made to be tried in many ways take no longer than others do."""
    rules = load_rules(path)
    line = (piece * rules_module.MAX_LINE)[: rules_module.MAX_LINE]
    before = time.process_time()
    rules.payloads(line, "a.log", 1)
    rules.payloads(f'127.0.0.1 - - [01/Mar/2026:13:00:00 +0100] "GET / {line}'[: rules_module.MAX_LINE], "a.log", 2)
    assert time.process_time() - before < 0.5


AIOHTTP = """
import sys
from aiohttp import web
import logging

async def answer(request):
    return web.Response(status=int(request.match_info["status"]))

logging.basicConfig(filename=sys.argv[2], level="INFO", format="%(message)s")
app = web.Application()
app.router.add_route("*", "/{status}", answer)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log_format='%a %t "%r" %s %b %Tf', print=None)
"""
WSGI = """
def app(environ, start_response):
    start_response(environ["PATH_INFO"][1:] + " Said", [("Content-Length", "0")])
    return [b""]
"""
ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": int(scope["path"][1:]), "headers": headers})
    await send({"type": "http.response.body", "body": b""})
"""
LOG_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(L)s'


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(command: list[str | Path], port: int, folder: Path) -> Iterator[None]:
    """A server in a process of its own, from when it answers until it has ended in good order."""
    with (
        open(folder / "out.log", "wb") as out,
        subprocess.Popen([sys.executable, *command], cwd=folder, stdout=out, stderr=subprocess.STDOUT) as server,
    ):
        try:
            end = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert server.poll() is None, (folder / "out.log").read_text()
                    assert time.monotonic() < end, "the server does not answer"
                    time.sleep(0.05)
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def ask(port: int) -> Counter[tuple[str, int]]:
    """Several hundred requests, most of which look the same; how many of each method and status were answered."""
    said: Counter[tuple[str, int]] = Counter()
    for method, status, times in (("GET", 200, 250), ("GET", 404, 20), ("POST", 500, 30), ("GET", 503, 40)):
        for _ in range(times):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, f"/{status}")
            said[method, connection.getresponse().status] += 1
            connection.close()
    return said


def statuses(snapshot: Snapshot) -> Counter[tuple[str, int]]:
    return Counter((task.name, int(task.fields["status"])) for task in snapshot.tasks)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["aiohttp", "gunicorn", "uvicorn"])
def test_access_log_of_a_real_server(server: str, tmp_path: Path) -> None:
    """As many spans of each method and outcome as there were answers, from the log alone."""
    pytest.importorskip(server)
    port = free_port()
    for name, code in (("serve.py", AIOHTTP), ("wsgi.py", WSGI), ("asgi.py", ASGI)):
        (tmp_path / name).write_text(code)
    log = tmp_path / ("out.log" if server == "uvicorn" else "access.log")
    address = f"127.0.0.1:{port}"
    command, rules = {
        "aiohttp": (["serve.py", str(port), log], "access_aiohttp"),
        "gunicorn": (
            ["-m", "gunicorn", "wsgi:app", "-b", address, "--access-logfile", log, "--access-logformat", LOG_FORMAT],
            "access_timed",
        ),
        "uvicorn": (["-m", "uvicorn", "--port", str(port), "--no-use-colors", "asgi:app"], "access_uvicorn"),
    }[server]
    with serving(command, port, tmp_path):
        said = ask(port)
    snapshot = read(load_rules(EXAMPLES / f"{rules}.toml"), log.read_bytes().splitlines(keepends=True)).snapshot()
    assert statuses(snapshot) == said
    assert sum(said.values()) == 340
    assert tally(snapshot.names["GET"]) == (310, 270, 40, 0)
    assert tally(snapshot.names["POST"]) == (30, 0, 30, 0)
    assert sum(snapshot.dropped.values()) == 0
    if server != "uvicorn":
        durations = [histogram for view in snapshot.names.values() for histogram in view.durations.values()]
        assert sum(histogram.sum for histogram in durations) > 0
