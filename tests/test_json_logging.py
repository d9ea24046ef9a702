"""The log files that `json_logging` sets up: what stands in them, and that nothing of it is lost or cut."""

from __future__ import annotations

import copy
import json
import logging
import logging.config
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging import AsyncInspectHandler, Inspector, json_logging, span
from asyncinspect_logging.errors import ConfigError, MissingExtraError
from asyncinspect_logging.line_handlers import LineHandler, SizedLineHandler, TimedLineHandler
from asyncinspect_logging.snapshot import Snapshot

PROGRAM = """
import asyncio, glob, json, logging, logging.config, sys
from asyncinspect_logging import AsyncInspectHandler, Inspector, annotate, instrument, json_logging, span

async def job(number):
    with span("job", number=number, text="\\ud800 \\0 \\n é"):
        await asyncio.sleep(0.001)
        log.info("half of %d", number)
        if number % 3 == 0:
            raise ValueError(number)

async def main():
    await asyncio.gather(*(instrument(job(n), name="outer") for n in range(10)), return_exceptions=True)

def finish(inspector):
    # Whether the files say what the inspector does: the counters, the tasks, their timelines.
    again = Inspector()
    for path in glob.glob(sys.argv[3]):
        with open(path) as file:
            for line in file:
                again.apply(json.loads(line))
    live, again = inspector.snapshot(), again.snapshot()
    ends = {task.id: (task.fields, task.outcome, task.error, task.at) for task in live.tasks}
    lives = {task.id: [event for event in task.events if event.kind != "log"] for task in live.tasks}
    print(
        again.names == live.names and again.names["job"].failed == 4,
        {task.id: (task.fields, task.outcome, task.error, task.at) for task in again.tasks} == ends,
        {task.id: list(task.events) for task in again.tasks} == lives,
    )
"""
STDLIB = """
log = logging.getLogger("app")
inspector = Inspector()
logging.config.dictConfig(json_logging(sys.argv[1], level=sys.argv[2], others=True))
logging.getLogger().addHandler(AsyncInspectHandler(inspector))
asyncio.run(main())
finish(inspector)
"""
STRUCTLOG = """
import structlog
from asyncinspect_logging import AsyncInspectProcessor

inspector = Inspector()
structlog.configure(
    processors=[
        AsyncInspectProcessor(inspector, pass_lifecycle=True),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.JSONRenderer(),
    ],
    logger_factory=structlog.WriteLoggerFactory(file=open(sys.argv[1], "a", encoding="utf-8")),
    wrapper_class=structlog.make_filtering_bound_logger(int(sys.argv[2])),
)
log = structlog.get_logger()
structlogs = span

def span(name, **fields):
    return structlogs(name, logger=log, **fields)

asyncio.run(main())
finish(inspector)
"""
STRUCTLOG_STDLIB = """
import structlog
from asyncinspect_logging.line_handlers import LineHandler

structlog.configure(
    processors=[
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)
file = LineHandler(sys.argv[1])
file.setFormatter(
    structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
)
inspector = Inspector()
logging.basicConfig(level=int(sys.argv[2]), handlers=[file, AsyncInspectHandler(inspector)])
log = structlog.get_logger()
asyncio.run(main())
finish(inspector)
"""


def python(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def replayed(*paths: Path) -> Snapshot:
    inspector = Inspector()
    for path in paths:
        for line in lines_of(path):
            inspector.apply(line)
    return inspector.snapshot()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, whose handlers are closed."""
    logger = logging.getLogger("test_json_logging")
    logger.propagate = False
    logger.setLevel("INFO")
    yield logger
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()


# -- what stands in the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["DEBUG", "TRACE"])
def test_the_file_gives_what_the_process_counted(tmp_path: Path, level: str) -> None:
    """Counters, tasks and timelines, but for the lines of ordinary records there: no step was told at DEBUG."""
    path = tmp_path / "service.jsonl"
    done = python(PROGRAM + STDLIB, path, level, path)
    assert (done.stdout, done.stderr) == ("True True True\n", "")


@pytest.mark.parametrize(
    ("code", "level", "kinds"),
    [
        (STRUCTLOG, 10, {"enter", "exit"}),
        (STRUCTLOG_STDLIB, 10, {"enter", "exit"}),
        (STRUCTLOG_STDLIB, 5, {"spawn", "enter", "suspend", "wake", "resume", "exit"}),
    ],
    ids=["alone", "over stdlib", "over stdlib at TRACE"],
)
def test_the_file_through_structlog(tmp_path: Path, code: str, level: int, kinds: set[str]) -> None:
    """JSONRenderer writes the same key."""
    path = tmp_path / "service.jsonl"
    done = python(PROGRAM + code, path, level, path)
    assert (done.stdout, done.stderr) == ("True True True\n", "")
    assert {line["asyncinspect"]["kind"] for line in lines_of(path) if "asyncinspect" in line} == kinds
    assert sum(line["event"] == "half of 1" for line in lines_of(path)) == 1


def test_a_line_has_the_time_the_level_and_our_key(tmp_path: Path) -> None:
    """ISO 8601 in UTC, in the lines of spans and in the ordinary ones, which name their span."""
    path = tmp_path / "service.jsonl"
    python(PROGRAM + STDLIB, path, "DEBUG", path)
    lines = lines_of(path)
    spans = [line for line in lines if "asyncinspect" in line]
    ordinary = [line for line in lines if "asyncinspect" not in line]
    assert len(spans) == 40
    assert len(ordinary) == 10
    for line in lines:
        assert line["timestamp"].endswith("+00:00")
        assert line["levelname"] == ("DEBUG" if "asyncinspect" in line else "INFO")
    assert {line["span_id"] for line in ordinary} == {
        line["asyncinspect"]["id"] for line in spans if line["asyncinspect"]["name"] == "job"
    }


# -- whole lines ---------------------------------------------------------------------------------------------------

WRITER = """
import logging, logging.config, sys
from asyncinspect_logging import json_logging
logging.config.dictConfig(json_logging(sys.argv[1], others=True))
log = logging.getLogger("app")
input()
for number in range(100):
    log.info("x" * (number % 5) ** 3 * 5000, extra={"writer": sys.argv[2], "number": number})
"""


def test_processes_write_whole_lines_to_one_file(tmp_path: Path) -> None:
    """Of up to 320 kB, from three processes at once: each line is there once, and in one piece."""
    path = tmp_path / "service.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)], stdin=subprocess.PIPE) for n in range(3)
    ]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    lines = lines_of(path)
    assert sorted((line["writer"], line["number"]) for line in lines) == [
        (str(writer), number) for writer in range(3) for number in range(100)
    ]
    # The processes did take turns, or this would show nothing.
    assert [line["writer"] for line in lines] != sorted(line["writer"] for line in lines)


FORKING = """
import logging, logging.config, os, sys
from asyncinspect_logging import json_logging, span
logging.config.dictConfig(json_logging(sys.argv[1]))
with span("before"):
    pass
for _ in range(2):
    if os.fork() == 0:
        with span("child"):
            pass
        os._exit(0)
for _ in range(2):
    os.wait()
with span("after"):
    pass
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("pattern", "files"), [("service-{pid}.jsonl", 3), ("service.jsonl", 1)])
def test_a_fork_goes_on_in_a_file_of_its_own(tmp_path: Path, pattern: str, files: int) -> None:
    """Where the name has `{pid}`; else all write the one file."""
    python(FORKING, tmp_path / pattern)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == files
    if files > 1:
        for path in paths:
            assert {f"service-{line['asyncinspect']['pid']}.jsonl" for line in lines_of(path)} == {path.name}
    names = replayed(*paths).names
    assert {name: view.completed for name, view in names.items()} == {"before": 1, "child": 2, "after": 1}


@pytest.mark.parametrize(("before", "after"), [(b'{"cut', b'{"cut\n'), (b"whole\n", b"whole\n"), (b"", b"")])
def test_a_line_that_was_cut_takes_no_other_with_it(
    tmp_path: Path, logger: logging.Logger, before: bytes, after: bytes
) -> None:
    """A process that was killed in the middle of a line leaves one broken line, and not two in one."""
    path = tmp_path / "service.jsonl"
    path.write_bytes(before)
    logger.addHandler(LineHandler(path))
    logger.info("first")
    logger.info("second")
    assert path.read_bytes() == after + b"first\nsecond\n"


def test_nothing_is_opened_before_the_first_record(tmp_path: Path, logger: logging.Logger) -> None:
    """A process that logs nothing, such as the one that forks the workers, leaves no empty file."""
    logger.addHandler(LineHandler(tmp_path / "service-{pid}.jsonl"))
    assert not list(tmp_path.iterdir())
    logger.info("first")
    assert [path.name for path in tmp_path.iterdir()] == [f"service-{os.getpid()}.jsonl"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device")
def test_a_device_is_written_as_it_is(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """No newline is looked for in what is no file."""
    logger.addHandler(LineHandler("/dev/stderr"))
    logger.info("first")
    assert capfd.readouterr().err == "first\n"


# -- rotation ------------------------------------------------------------------------------------------------------


def test_a_file_that_is_moved_away_is_followed_by_a_new_one(tmp_path: Path, logger: logging.Logger) -> None:
    """As logrotate does it."""
    path = tmp_path / "service.jsonl"
    logger.addHandler(LineHandler(path))
    logger.info("first")
    logger.info("second")
    path.rename(tmp_path / "service.jsonl.1")
    logger.info("third")
    assert (tmp_path / "service.jsonl.1").read_text() == "first\nsecond\n"
    assert path.read_text() == "third\n"


class Counting(logging.Formatter):
    calls = 0

    def format(self, record: logging.LogRecord) -> str:
        self.calls += 1
        return super().format(record)


def test_rotation_by_size(tmp_path: Path, logger: logging.Logger) -> None:
    """A new file begins where the old one has the size; no line is lost, and each is formatted once."""
    handler = SizedLineHandler(tmp_path / "log", maxBytes=100, backupCount=9)
    formatter = Counting()
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    for number in range(50):
        logger.info("line %014d", number)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"log": 100} | {f"log.{number}": 100 for number in range(1, 10)}
    lines = [line for number in range(9, 0, -1) for line in (tmp_path / f"log.{number}").read_text().splitlines()]
    lines += (tmp_path / "log").read_text().splitlines()
    assert lines == [f"line {number:014d}" for number in range(50)]
    assert formatter.calls == 50


def test_rotation_by_time(tmp_path: Path, logger: logging.Logger) -> None:
    """The standard library's, with the lines before the moment in one file and those after it in another."""
    handler = TimedLineHandler(tmp_path / "log", when="H", utc=True, backupCount=3)
    logger.addHandler(handler)
    logger.info("first")
    handler.rolloverAt = 1
    logger.info("second")
    logger.info("third")
    old, new = sorted(tmp_path.iterdir(), key=lambda path: -len(path.name))
    assert (old.read_text(), new.name, new.read_text()) == ("first\n", "log", "second\nthird\n")


def test_rotated_files_replay_to_the_same(tmp_path: Path) -> None:
    """All of them together."""
    code = PROGRAM + STDLIB.replace("others=True", "others=True, max_bytes=2000, backups=100")
    done = python(code, tmp_path / "service-{pid}.jsonl", "DEBUG", tmp_path / "*")
    assert (done.stdout, done.stderr) == ("True True True\n", "")
    assert len(list(tmp_path.iterdir())) > 5


# -- the config ----------------------------------------------------------------------------------------------------

MINE: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(message)s"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "level": "INFO", "formatter": "line"},
        "inspect": {"class": "asyncinspect_logging.AsyncInspectHandler"},
    },
    "loggers": {"asyncinspect": {"level": "WARNING", "filters": []}, "app": {"level": "ERROR"}},
    "root": {"level": "WARNING", "handlers": ["console", "inspect"]},
}


def test_a_config_is_merged_into_a_copy() -> None:
    """What it had stays; the span logger gets the level and the handler."""
    before = copy.deepcopy(MINE)
    merged = json_logging("x.jsonl", into=MINE)
    assert before == MINE
    assert set(merged["handlers"]) == {"console", "inspect", "asyncinspect_json"}
    assert merged["root"] == MINE["root"]
    assert merged["loggers"]["app"] == {"level": "ERROR"}
    assert merged["loggers"]["asyncinspect"] == {
        "level": 10,
        "filters": [],
        "propagate": True,
        "handlers": ["asyncinspect_json"],
    }


@pytest.mark.parametrize("propagate", [True, False])
def test_each_record_reaches_the_file_once(propagate: bool) -> None:
    """With ordinary records, the handler is on the root logger, and on the span logger if it ends there."""
    merged = json_logging("x.jsonl", into=MINE, others=True, propagate=propagate)
    assert merged["root"] == {"level": "WARNING", "handlers": ["console", "inspect", "asyncinspect_json"]}
    assert ("handlers" in merged["loggers"]["asyncinspect"]) is not propagate


def test_a_merged_config_works_with_what_was_there(tmp_path: Path) -> None:
    """The console keeps its level, the inspector hears of the span, and the file has it."""
    code = """
        import json, logging.config, sys
        from asyncinspect_logging import Inspector, json_logging, span
        logging.config.dictConfig(json_logging(sys.argv[1], into=json.loads(sys.argv[2])))
        with span("job"):
            logging.getLogger().warning("ordinary")
        print(Inspector.default().snapshot().names["job"].completed)
    """
    done = python(code, tmp_path / "x.jsonl", json.dumps(MINE))
    assert (done.stdout, done.stderr) == ("1\n", "WARNING ordinary\n")
    assert [line["asyncinspect"]["kind"] for line in lines_of(tmp_path / "x.jsonl")] == ["enter", "exit"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path=''"),
        ({"path": b"x"}, "path=b'x'"),
        ({"level": "INFO"}, "level='INFO' lets no span"),
        ({"level": 20}, "level=20"),
        ({"level": True}, "level=True"),
        ({"max_bytes": 0}, "max_bytes=0"),
        ({"max_bytes": "1MB"}, "max_bytes='1MB'"),
        ({"every": "fortnight"}, "every='fortnight'"),
        ({"every": "W7"}, "every='W7'"),
        ({"every": "H", "max_bytes": 1}, "leave one out"),
        ({"max_bytes": 1, "backups": 0}, "backups=0"),
        ({"into": {}}, '"version": 1'),
        ({"into": []}, '"version": 1'),
        ({"into": {"version": 1, "incremental": True}}, "incremental"),
        ({"into": {"version": 1, "handlers": []}}, None),
        ({"into": {"version": 1, "handlers": [1]}}, r"into\['handlers'\]=\[1\]"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], message: str | None) -> None:
    """With its name, its value, and what to write."""
    options = {"path": "x.jsonl"} | options
    if message is None:
        assert json_logging(**options)
        return
    with pytest.raises(ConfigError, match=message):
        json_logging(**options)


def test_merging_twice_is_refused() -> None:
    """It would write each line twice."""
    with pytest.raises(ConfigError, match="once"):
        json_logging("x.jsonl", into=json_logging("y.jsonl"))


@pytest.mark.parametrize("options", [{}, {"max_bytes": 10**6}, {"every": "midnight"}, {"every": "w0", "backups": 3}])
def test_the_config_is_plain_data_that_dict_config_takes(tmp_path: Path, options: dict[str, Any]) -> None:
    """It can be written as JSON, and every handler in it can be made."""
    config = json_logging(tmp_path / "x.jsonl", **options)
    code = "import json, logging.config, sys; logging.config.dictConfig(json.loads(sys.argv[1]))"
    done = python(code, json.dumps(config))
    assert done.stderr == ""


def test_without_the_extra_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the pip command."""
    monkeypatch.setattr("importlib.util._find_spec", lambda *args: None)
    monkeypatch.delitem(sys.modules, "pythonjsonlogger", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'asyncinspect-logging\[json\]'"):
        json_logging("x.jsonl")


def test_a_span_logger_without_the_file_is_as_before(tmp_path: Path) -> None:
    """To make the config changes nothing yet."""
    inspector = Inspector()
    handler = AsyncInspectHandler(inspector)
    logger = logging.getLogger("asyncinspect")
    logger.addHandler(handler)
    json_logging(tmp_path / "x.jsonl")
    with span("job"):
        pass
    logger.removeHandler(handler)
    assert inspector.snapshot().names["job"].completed == 1
    assert not list(tmp_path.iterdir())
