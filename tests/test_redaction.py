"""Secrets reach nothing that the library writes, shows or sends, whichever way they came in."""

from __future__ import annotations

import ast
import asyncio
import csv
import gzip
import json
import logging
import logging.config
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import structlog
from click.testing import CliRunner
from dogstatsd import Agent
from hypothesis import example, given, settings
from hypothesis import strategies as st
from otlp_receiver import Receiver
from prometheus_client import CollectorRegistry

import asyncinspect_logging
from asyncinspect_logging import (
    AsyncInspectHandler,
    AsyncInspectProcessor,
    Config,
    Inspector,
    Snapshot,
    annotate,
    diagnostics,
    install,
    instrument,
    span,
)
from asyncinspect_logging.analysis.replay import replay
from asyncinspect_logging.analysis.rules import parse_rules
from asyncinspect_logging.cli.commands import commands
from asyncinspect_logging.detect.sync import Lock, Queue
from asyncinspect_logging.exporters.chrome_trace import ChromeTraceExporter
from asyncinspect_logging.exporters.csv_file import CsvExporter
from asyncinspect_logging.exporters.flame import FlameExporter
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.exporters.opentelemetry import OtelExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.exporters.push import push, write_textfile
from asyncinspect_logging.exporters.statsd import StatsdExporter
from asyncinspect_logging.fields import FieldPolicy
from asyncinspect_logging.integrations.console import describe
from asyncinspect_logging.json_logging import json_logging
from asyncinspect_logging.redaction import REDACT, REDACTED
from asyncinspect_logging.sidecar import Sidecar
from asyncinspect_logging.socket_handler import AsyncInspectSocketHandler

PACKAGE = Path(asyncinspect_logging.__file__).parent
SECRET = "hunter2-XYZZY9"
POLICY = FieldPolicy()

NAMES = [
    "password", "passwd", "db_pwd", "passphrase", "passcode", "client_secret", "clientSecret", "CLIENT-SECRET",
    "token", "accessToken", "refresh token", "api_key", "apikey", "X-Api-Key", "apiKey", "Authorization",
    "proxy-authorization", "Cookie", "Set-Cookie", "session", "sessionId", "JSESSIONID", "credentials", "private_key",
    "privateKey", "aws_secret_access_key", "accessKey", "signing.key", "encryption_key", "csrfmiddlewaretoken",
    "X-XSRF", "jwt", "DATABASE_DSN", "bearer", "pass", "db_pass", "userPass", "SMTP-PASS", "pass2", "auth",
    "proxy_auth", "basicAuth", "pw", "otp", "sig", "X-Amz-Signature", "AccountKey",
]  # fmt: skip

#: Texts with a secret in them, as they are and as they are shown.
TEXTS = [
    (f"user[password]={SECRET}&x=1", f"user[password]={REDACTED}&x=1"),
    (f"user%5Bpassword%5D={SECRET}&x=1", f"user%5Bpassword%5D={REDACTED}&x=1"),
    (f"{{'password': ['{SECRET}', '{SECRET}'], 'x': 1}}", f"{{'password': {REDACTED}, 'x': 1}}"),
    (f'{{"credentials": {{"a": {{"b": "}}"}}, "c": "{SECRET}"}}, "x": 1}}', f'{{"credentials": {REDACTED}, "x": 1}}'),
    (f"{{'Set-Cookie': ['id={SECRET}']}}", f"{{'Set-Cookie': {REDACTED}}}"),
    (f"Conf(password=SecretStr('{SECRET}'), x=1)", f"Conf(password={REDACTED}, x=1)"),
    (f"Conf(token=Token(value=b'{SECRET}'), x=1)", f"Conf(token={REDACTED}, x=1)"),
    (f"password=[{SECRET}, never closed", f"password={REDACTED}"),
    (f"os.environ['API_KEY'] = '{SECRET}'", f"os.environ['API_KEY'] = {REDACTED}"),
    (f"password := {SECRET} x", f"password := {REDACTED} x"),
    (f"password=<{SECRET}>", f"password={REDACTED}>"),
    (f"API key: {SECRET} x", f"API key: {REDACTED} x"),
    (f"the private key = {SECRET}", f"the private key = {REDACTED}"),
    (f"psql --password {SECRET} -h db", f"psql --password {REDACTED} -h db"),
    (f"[('X-Api-Key', '{SECRET}'), ('a', 'b')]", f"[('X-Api-Key', {REDACTED}), ('a', 'b')]"),
    (f"[(b'x-api-key', b'{SECRET}')]", f"[(b'x-api-key', {REDACTED})]"),
    (f'["X-Api-Key","{SECRET}"]', f'["X-Api-Key",{REDACTED}]'),
    (f'[["X-Api-Key", "{SECRET}"]]', f'[["X-Api-Key", {REDACTED}]]'),
    (f'{{"name": "DB_PASSWORD", "value": "{SECRET}"}}', f'{{"name": "DB_PASSWORD", "value": {REDACTED}}}'),
    (f'Cookie: a="b c"; id="{SECRET}"\nHost: x', f"Cookie: {REDACTED}\nHost: x"),
    (f'Authorization: Digest username="a", response="{SECRET}"', f"Authorization: {REDACTED}"),
    (f"postgres://app:{SECRET}@db:5432/shop", f"postgres://{REDACTED}@db:5432/shop"),
    (f"connecting to redis://:{SECRET}@cache/0", f"connecting to redis://{REDACTED}@cache/0"),
    (f"https://{SECRET}@github.com/a.git", f"https://{REDACTED}@github.com/a.git"),
    (f"amqp://a:p@ss{SECRET}@one,amqp://b:{SECRET}@two", f"amqp://{REDACTED}@one,amqp://{REDACTED}@two"),
    (f"Bearer {SECRET}", f"Bearer {REDACTED}"),
    (f"sent BEARER  {SECRET}, and more", f"sent BEARER  {REDACTED}, and more"),
    ("Basic YXBwOmh1bnRlcjI=", f"Basic {REDACTED}"),
    (f"Authorization: Digest username=a, response={SECRET}", f"Authorization: {REDACTED}"),
    (f"Cookie: a=b; id={SECRET}\r\nHost: x", f"Cookie: {REDACTED}\r\nHost: x"),
    (f"/login?next=/&token={SECRET}&lang=en", f"/login?next=/&token={REDACTED}&lang=en"),
    (f"url=https://h/?access_token={SECRET}", f"url=https://h/?access_token={REDACTED}"),
    (f"host=db user=app password={SECRET} port=1", f"host=db user=app password={REDACTED} port=1"),
    (f"Server=db;Password={SECRET};Database=x", f"Server=db;Password={REDACTED};Database=x"),
    (f"{{'user': 'ada', 'password': '{SECRET} \\' x'}}", f"{{'user': 'ada', 'password': {REDACTED}}}"),
    (json.dumps({"apiKey": SECRET, "n": 1}), f'{{"apiKey": {REDACTED}, "n": 1}}'),
    (json.dumps(json.dumps({"apiKey": f"{SECRET} x"})), f'"{{\\"apiKey\\": {REDACTED}}}"'),
    (f"--client-secret={SECRET}", f"--client-secret={REDACTED}"),
    (f"X-Api-Key => {SECRET}", f"X-Api-Key => {REDACTED}"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", REDACTED),
    (f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----\n", f"{REDACTED}\n"),
    (f"-----BEGIN PRIVATE KEY-----\n{SECRET}", REDACTED),
    (f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n{SECRET}", REDACTED),
    (f"<password>{SECRET}</password>", f"<password>{REDACTED}</password>"),
    (f"<u><x:Password Type='#Text'>{SECRET} </x:Password>", f"<u><x:Password Type='#Text'>{REDACTED}</x:Password>"),
    (f"<token><![CDATA[{SECRET}<]]></token>", f"<token>{REDACTED}</token>"),
    (f'<a b="1" token="{SECRET}">text</a>', f'<a b="1" token={REDACTED}>text</a>'),
    (f'<add key="Password" value="{SECRET}"/>', f'<add key="Password" value={REDACTED}/>'),
    (f"password -> {SECRET}", f"password -> {REDACTED}"),
    (f"password->{SECRET}, x", f"password->{REDACTED}, x"),
    (f"password => {SECRET}", f"password => {REDACTED}"),
    (f"PASSWORD ?= {SECRET}", f"PASSWORD ?= {REDACTED}"),
    (f"password += '{SECRET}'", f"password += {REDACTED}"),
    (f"password          = {SECRET}", f"password          = {REDACTED}"),
    (f"password[]={SECRET}&a[0]=1", f"password[]={REDACTED}&a[0]=1"),
    (f"users[0][password][x]={SECRET}", f"users[0][password][x]={REDACTED}"),
    (f"user%5Bpass%5D%5B%5D={SECRET}", f"user%5Bpass%5D%5B%5D={REDACTED}"),
    (f"/go?next=%2Fin%3Ftoken%3D{SECRET}&x=1", f"/go?next=%2Fin%3Ftoken%3D{REDACTED}&x=1"),
    (f"q=%7B%22password%22%3A%22{SECRET}%22%7D", f"q=%7B%22password%22%3A{REDACTED}"),
    (f"password%20=%20{SECRET}", f"password%20=%20{REDACTED}"),
    (f"q%5Bpassword%5D%3D{SECRET}", f"q%5Bpassword%5D%3D{REDACTED}"),
    (f"{{&quot;password&quot;:&quot;{SECRET} x&quot;}}", f"{{&quot;password&quot;:{REDACTED}}}"),
    (f'{{"password": b"""a"{SECRET}"""}}', f'{{"password": {REDACTED}}}'),
    (f"password = f'{SECRET}'", f"password = {REDACTED}"),
    (f"password: |-\n  {SECRET}\nx: 1", f"password: {REDACTED}\nx: 1"),
    (f"secret key: {SECRET}", f"secret key: {REDACTED}"),
    (f"java -Dx=1 -password {SECRET} x", f"java -Dx=1 -password {REDACTED} x"),
    (f"mysqldump -u root -p{SECRET} shop", f"mysqldump -u root -p{REDACTED} shop"),
    (f"sshpass -p '{SECRET} x' ssh h", f"sshpass -p {REDACTED} ssh h"),
    (f"curl -s -u ada:{SECRET} https://h/", f"curl -s -u ada:{REDACTED} https://h/"),
    (f"to git: ghp_{'a1' * 18} x", f"to git: {REDACTED} x"),
    (f"glpat-{'a1' * 10} is in the configuration", f"{REDACTED} is in the configuration"),
    (f"xoxb-{'12' * 6}-{'a1' * 12}", REDACTED),
    (f"'sk_live_{'a1' * 15}'", f"'{REDACTED}'"),
    (f"sk-proj-{'a1' * 20}", REDACTED),
    (f"AIza{'a1' * 18}", REDACTED),
    (f"SG.{'a1' * 11}.{'b2' * 20}", REDACTED),
]
#: And some that only look so.
HARMLESS = [
    "password=None, token=True", '{"token": null, "secret": false}', "missing: ['token', 'user', 'id']",
    "https://medium.com/@user", "https://h:8080/@user", "https://h/p?to=bob@example.com", "git@github.com:a/b.git",
    "password reset: sent", "token expired: retry", "author=ada", "key: value", "my name: x, value: y",
    "http://localhost:8080/users/@me", "me@example.com", "Basic authentication failed", "bearer of bad news",
    "invalid token at position 5", "12:30:01 lock:db a=1", "GET /items?page=2", "https://example.com/a?b=c#d",
    "tokenizer=bert, tokenization: wordpiece", "secretary=ada", "secretaries: ada", "passenger=ada", "authority=x",
    "authors: a, b", "friends_name=ada", "records-number: five", "obsession=x", "compass=north", "bypass: on",
    "auth_method=basic", "pass_rate=high", "pass=3 fail=0", "pass: 12", "1 passed: ok", "get_token() -> str",
    "parse -> ok", "usage: copy <token> <file>", "expected <token>, got </a>", "<title>token</title>",
    "docker run -p8080:80 -u 1:1 mysql", "mysql; docker -p80", "mysql -u root -p shop", "tar -p x", "curl -u ada https://h/",
    "f47ac10b-58cc-4372-a567-0e02b2c3d479", "sk-learn and AIzawa, npm_config_cache_folder_of_the_user: x",
    "select id from items where id = 7", "SyntaxError: unexpected end", "C:\\users\\ada", "", "a", "://", "=", ":",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name: str) -> None:
    """However it is written, of a field, of a key at any depth, of a pair in a list, and in a text."""
    assert POLICY.apply({name: SECRET}) == {name: REDACTED}
    deep = POLICY.apply({"x": {"y": [{name: SECRET}, (name, SECRET)], name: {"z": SECRET}}})
    assert SECRET not in str(deep)
    if " " not in name:
        assert POLICY.hide(f"{name}={SECRET}") == f"{name}={REDACTED}"


@pytest.mark.parametrize(("text", "shown"), TEXTS)
def test_secrets_in_texts(text: str, shown: str) -> None:
    """As a field, inside of one, and in bytes; what was hidden once stays as it is."""
    assert POLICY.hide(text) == shown
    assert POLICY.hide(shown) == shown
    assert POLICY.apply({"x": text}) == {"x": shown}
    assert POLICY.apply({"x": {"y": [text]}}) == {"x": {"y": [shown]}}
    assert SECRET not in str(POLICY.apply({"x": text.encode()}))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_secret_is_shown(text: str) -> None:
    """Or else nobody could read anything."""
    assert POLICY.hide(text) == text
    assert POLICY.apply({"x": text}) == {"x": text}


@pytest.mark.parametrize(
    "text", ["postgres://app:{}@db", "Bearer {}", "password='{}'", "key: -----BEGIN PRIVATE KEY-----{}"]
)
@pytest.mark.parametrize("before", range(4, 40, 3))
def test_a_secret_where_the_text_is_cut(text: str, before: int) -> None:
    """Not even half of one is shown, wherever it is cut, and however long it is."""
    secret = "0Aq" * 1000
    shown = FieldPolicy(max_length=40).text("x" * before + " " + text.format(secret))
    assert "0Aq" not in shown
    assert len(shown) <= 40


def test_the_names_can_be_chosen() -> None:
    """They replace the usual ones; without any, values are shown as they are but for what has the shape of a secret."""
    own = Config(redact=("iban",)).field_policy()
    assert own.apply({"IBAN": 1, "password": "x", "t": "iban=DE1"}) == {
        "IBAN": REDACTED,
        "password": "x",
        "t": f"iban={REDACTED}",
    }
    none = Config(redact=()).field_policy()
    assert none.apply({"t": "token=abc", "u": "a://b:c@d"}) == {"t": "token=abc", "u": f"a://{REDACTED}@d"}
    more = Config(redact=(*REDACT, "iban")).field_policy()
    assert more.apply({"my-iban": 1, "password": 2}) == {"my-iban": REDACTED, "password": REDACTED}


def test_a_word_of_its_own() -> None:
    """A name of the list that begins with an underscore is the last word of a name, and no part of another."""
    policy = FieldPolicy(redact=("_pin", "id_card", "_id_no"))
    names = ("pin", "card_pin", "cardPin", "PIN", "pin2", "pin[]", "spin", "pin_count", "pinning", "iDCard", "x_id_no")
    assert [name for name in names if policy.apply({name: "x"})[name] == REDACTED] == [
        "pin", "card_pin", "cardPin", "PIN", "pin2", "pin[]", "iDCard", "x_id_no"
    ]  # fmt: skip
    assert policy.hide("my-pin=1234 spin=1") == f"my-pin={REDACTED} spin=1"
    assert FieldPolicy(redact=("tokenizer",)).apply({"tokenizer": "x"}) == {"tokenizer": REDACTED}
    assert POLICY.apply({"pass": 3, "token": 3, "n": {"pass": 1234}}) == {
        "pass": 3,
        "token": REDACTED,
        "n": {"pass": REDACTED},
    }


pieces = st.lists(
    st.sampled_from(
        ["password", "token", "a", "=", ":", " ", "://", "@", "'", '"', "\\", "Bearer ", "eyJ", "abcdefgh1", ".", "\n",
         "&", "cookie", REDACTED, "[", "]", "-----BEGIN PRIVATE KEY-----", "é", "12", "<", ">", "</", "->", "pass",
         "%3D", "%5B", "%5D", " -p", "mysql", "&quot;", "ghp_" + "a1" * 18, "-u a", "<![CDATA[", "|\n", "secret key"]
    ), max_size=20
).map("".join)  # fmt: skip


short_pieces = st.lists(
    st.sampled_from(
        ["password", "pwd", "jwt", "a", "=", ":", " ", "://", "@", "'", '"', "(", ")", ",", "eyJhbG.", ".x", "<", ">",
         "</", "->", "--", "%3D", "%3d", "%5B", "%5D", "[", "]", "x1", "&quot;"]
    ), min_size=2, max_size=7
).map("".join)  # fmt: skip


@settings(max_examples=800)
@given(short_pieces)
@example("a%5Bpwd%5D%3Dx1")
def test_at_a_glance(text: str) -> None:
    """Of a short text that is a field's value, one look has to tell whether it may hold a secret."""
    POLICY.apply({"x": ""})
    if len(text) <= 36:
        assert POLICY.apply({"x": text}) == {"x": POLICY.hide(text)}


@settings(max_examples=400)
@given(pieces | st.text(max_size=80))
def test_what_was_hidden_once_stays(text: str) -> None:
    """A record that is read back is as it was written."""
    once = POLICY.hide(text)
    assert POLICY.hide(once) == once


@pytest.mark.parametrize(
    "part",
    ["://a:", "://", "a=", "password=", "password='", "\\", "Bearer a", "eyJa.", "@", "-----BEGIN ", "eyJ-",
     "password=[", "password=f(", "a\\", "('token',", "['token', 'a", "--token ", "api key", "cookie:=\"", "token a",
     '"name": "token"', "<token>", "<token ", "<token a>x</", "</", "<![CDATA[", "<token><![CDATA[", "token->",
     "token -", "mysql -p", " -p", " -p'", "curl -u a:", "pass", "aA", "token[a]", "token%5B", "token ", "%3D",
     "tokenizer=", "&quot;", "token=&quot;", "gh", "sk-", "SG.aaaaaaaaaaaaaaaa", "a" * 40 + ".",
     "-----BEGIN PRIVATE KEY", '"""'],
)  # fmt: skip
@pytest.mark.parametrize("end", ["", " x", "@", "/", " password="])
def test_no_text_takes_long(part: str, end: str) -> None:
    """The time grows with the length and no faster."""

    def cost(times: int) -> float:
        text = part * times + end
        best = 9.0
        for _ in range(3):
            began = time.thread_time()
            POLICY.hide(text, cut=True)
            best = min(best, time.thread_time() - began)
        return best

    assert cost(2000) < 30 * cost(250) + 0.01


def test_texts_do_not_fill_the_memory() -> None:
    """What is remembered of texts is bounded, and holds no secret."""
    policy = FieldPolicy()
    for number in range(25_000):
        policy.apply({"text": f"number {number}", "url": f"a://b:{number}@c"})
    assert len(policy.clean) <= 10_000
    assert not any("@c" in text and REDACTED not in text for text in policy.clean)
    for number in range(3):
        policy.hide(f"name{number}=1 password=2")
    assert set(policy.redactor.known) == {"text", "url"}


def test_names_beside_their_values() -> None:
    """An entry with a name and a value, as of an environment or a form; and what follows the option of a command."""
    env = [{"name": "DB_PASSWORD", "value": SECRET}, {"key": "token", "value": SECRET}, {"name": "HOST", "value": "db"}]
    shown = POLICY.apply({"env": env, "argv": ["psql", "--password", SECRET, "-h", "db"]})
    assert [entry["value"] for entry in shown["env"]] == [REDACTED, REDACTED, "db"]
    assert shown["argv"] == ["psql", "--password", REDACTED, "-h", "db"]


# -- end to end ------------------------------------------------------------------------------------------------------


async def leak() -> None:
    """A program that puts secrets wherever it can."""
    with span(
        "login",
        password=SECRET,
        headers={"Authorization": f"Bearer {SECRET}", "Accept": "x", "cookies": [("Set-Cookie", f"id={SECRET}")]},
        pairs=[("X-Api-Key", SECRET)],
        url=f"https://ada:{SECRET}@example.com/?token={SECRET}",
        body=json.dumps({"user": "ada", "passwd": SECRET}).encode(),
        dsn=f"postgres://app:{SECRET}@db/shop",
    ) as login:
        login.record(apiKey=SECRET, note=f"password={SECRET}")
        annotate(f"trying with token={SECRET}", secret=SECRET)
        logging.getLogger("app").warning("connecting to %s", f"redis://:{SECRET}@cache")
        await asyncio.sleep(0)
    with span(f"GET https://ada:{SECRET}@example.com/?token={SECRET}"):
        pass

    @instrument
    async def query(dsn: str, password: str) -> None:
        await asyncio.sleep(0)
        raise ConnectionError(f"cannot connect to postgres://app:{password}@db with password={password!r}")

    with pytest.raises(ConnectionError):
        await query(f"postgres://app:{SECRET}@db", SECRET)
    with install(sync=True):
        lock, queue = Lock(name=f"password={SECRET}"), Queue[None](name=f"queue token={SECRET}")
        await asyncio.gather(
            *(asyncio.create_task(waits(lock, queue), name=f"task password={SECRET}") for _ in range(2))
        )
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(instrument(failing(), name=f"task password={SECRET}"))  # type: ignore[arg-type]


async def waits(lock: Lock, queue: Queue[None]) -> None:
    """For what has a secret for its name, in a span that has, for another."""
    with span(f"with password: {SECRET}", links=[f"token={SECRET}"]):
        async with lock:
            await asyncio.sleep(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await queue.get()


async def failing() -> None:
    await asyncio.sleep(0)
    raise ValueError(f"Authorization: Bearer {SECRET}")


def check(text: str, *, redacts: bool = True) -> None:
    assert SECRET not in text
    assert not redacts or REDACTED in text


@pytest.fixture
def loggers() -> Iterator[None]:
    """The loggers as they were."""
    root, spans = logging.getLogger(), logging.getLogger("asyncinspect")
    before = root.level, list(root.handlers), spans.level, list(spans.handlers), spans.propagate
    yield
    for handler in [*root.handlers, *spans.handlers]:
        if handler not in before[1] + before[3]:
            handler.close()
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    spans.setLevel(before[2])
    spans.handlers[:], spans.propagate = before[3], before[4]


@pytest.fixture
def leaked(loggers: None, tmp_path: Path) -> tuple[Inspector, Path]:
    """An inspector that saw it all, and the log beside it."""
    inspector, log = Inspector(), tmp_path / "log.jsonl"
    logging.config.dictConfig(json_logging(log, level="TRACE") | {"disable_existing_loggers": False})
    handler = AsyncInspectHandler(inspector)
    logging.getLogger().addHandler(handler)
    asyncio.run(leak())
    logging.getLogger().removeHandler(handler)
    handler.close()
    return inspector, log


def everything_of(snapshot: Snapshot) -> str:
    return f"{snapshot}"


def test_the_inspector_and_the_log(leaked: tuple[Inspector, Path]) -> None:
    """Tasks, timelines, names and findings, and every record that was written, at every level."""
    inspector, log = leaked
    snapshot = inspector.snapshot()
    assert len(snapshot.tasks) >= 4
    check(everything_of(snapshot))
    assert any("trying with token=" in event.detail for task in snapshot.tasks for event in task.events)
    assert any("connecting to redis://" in event.detail for task in snapshot.tasks for event in task.events)
    check(log.read_text("utf-8"))
    check(json.dumps(inspector.checkpoint()), redacts=False)


@pytest.mark.parametrize("from_log", [False, True], ids=["live", "replayed"])
def test_every_file_and_page(leaked: tuple[Inspector, Path], tmp_path: Path, from_log: bool) -> None:
    """Prometheus, OpenMetrics with exemplars, JSON, CSV, the trace for Perfetto, flame graphs."""
    inspector, log = leaked
    if from_log:
        inspector = replay(log)
    check(JsonExporter.export_to_string(inspector))
    for what in ("tasks", "events"):
        text = CsvExporter.export_to_string(inspector, what=what)  # type: ignore[arg-type]
        assert list(csv.reader(text.splitlines()))
        check(text, redacts=False)
    check(ChromeTraceExporter.export_to_string(inspector))
    for form in ("speedscope", "collapsed"):
        check(FlameExporter.export_to_string(inspector, form=form), redacts=False)  # type: ignore[arg-type]
    with PrometheusExporter(inspector, registry=CollectorRegistry(), exemplars=True, port=0) as exporter:
        check(exporter.gather())
        check(exporter.gather(openmetrics=True))


def test_a_log_that_somebody_else_wrote(tmp_path: Path) -> None:
    """Secrets that are in a log already are hidden as it is read, in both ways of reading, and by rules."""
    id, trace = "00000000000000a1", "0" * 31 + "1"
    common = {"v": 1, "id": id, "pid": 7}
    begin = {
        **common, "kind": "enter", "seq": 1, "t": 1, "wall": 10**18, "trace": trace, "name": f"a://u:{SECRET}@h",
        "fields": {"password": SECRET, "url": f"a://b:{SECRET}@c", "deep": {"x": {"token": SECRET}}},
    }  # fmt: skip
    end = {
        **common, "kind": "exit", "seq": 2, "t": 9, "wall": 10**18 + 8, "name": begin["name"], "outcome": "failed",
        "error": {"type": "E", "message": f"token={SECRET}"}, "duration": 8, "polls": 1, "busy": 0, "scheduled": 0,
        "max_poll": 0, "wakes": 0, "self_wakes": 0,
    }  # fmt: skip
    path = tmp_path / "foreign.jsonl"
    note = {"span_id": id, "levelname": "INFO", "message": f"password={SECRET}", "created": 1e9}
    lines = [{"asyncinspect": begin}, note, {"asyncinspect": end}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    quick = replay(path).snapshot()
    slowly = Inspector()
    for line in lines:
        slowly.apply(line)
    for snapshot in (quick, slowly.snapshot()):
        check(everything_of(snapshot))
        (task,) = snapshot.tasks
        assert task.name == f"a://{REDACTED}@h"
        assert list(snapshot.names) == [task.name]
        assert task.error == {"type": "E", "message": f"token={REDACTED}"}
    check(PrometheusExporter(replay(path), registry=CollectorRegistry()).gather())


def test_rules_for_the_lines_of_others(tmp_path: Path) -> None:
    """What a rule takes out of a line goes the same way: names, fields and errors."""
    rules = parse_rules(
        "[[rule]]\nname = 'job {url}'\n"
        "line = '^(?P<at>\\d+) (?P<url>\\S+) (?P<token>\\S+) (?P<how>\\w+) (?P<why>.*)$'\n"
        "time = 'at'\ntime_format = 'unix'\nfields = ['token', 'url']\nerror = 'why'\n"
        "outcome = { group = 'how', failed = 'broken' }\n"
    )
    log = tmp_path / "other.log"
    log.write_text(f"1700000000 http://u:{SECRET}@h/x {SECRET} broken password={SECRET}\n")
    snapshot = replay(log, rules=rules).snapshot()
    (task,) = snapshot.tasks
    check(everything_of(snapshot))
    assert dict(task.fields) == {"token": REDACTED, "url": f"http://{REDACTED}@h/x"}


def test_other_texts_of_a_log_that_somebody_else_wrote(tmp_path: Path) -> None:
    """Not only fields and names: of tasks, places, links, resources, exceptions in a group, and who has what."""
    leak, trace = f"password={SECRET}", "0" * 31 + "1"
    id, other = "00000000000000a1", "00000000000000a2"
    begin = {"kind": "enter", "trace": trace, "name": "job", "task": leak, "at": f"a://b:{SECRET}@c", "links": [leak]}
    held = {"owner": other, "task": leak, "at": leak, "id": other, "name": leak, "t": 1}
    wait = {
        "kind": "wait", "resource": {"kind": "lock", "id": "b1", "name": leak}, "owner": id, "task": leak, "at": leak,
        "holders": [held],
    }  # fmt: skip
    error = {"type": leak, "message": leak, "leaves": [leak]}
    tallies = dict.fromkeys(("duration", "polls", "busy", "scheduled", "max_poll", "wakes", "self_wakes"), 1)
    end = {"kind": "exit", "name": "job", "outcome": "failed", "error": error, **tallies}
    for payloads in ([begin, {"kind": "suspend", "on": leak}, wait], [begin, end]):
        lines = [
            {"asyncinspect": {"v": 1, "id": id, "pid": 7, "seq": seq, "t": seq, "wall": 10**18 + seq, **payload}}
            for seq, payload in enumerate(payloads, 1)
        ]
        path = tmp_path / "foreign.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        slowly = Inspector()
        for line in lines:
            slowly.apply(line)
        for inspector in (replay(path), slowly):
            snapshot = inspector.snapshot()
            (task,) = snapshot.tasks
            assert task.task == f"password={REDACTED}"
            assert task.links == (f"password={REDACTED}",)
            check(everything_of(snapshot))
            check(JsonExporter.export_to_string(inspector))
            check(ChromeTraceExporter.export_to_string(inspector))
            check(json.dumps(inspector.checkpoint()))


@pytest.mark.parametrize(
    "arguments",
    [["stats"], ["stats", "--json"], ["replay"], ["replay", "--json"], ["graph"], ["graph", "--format", "dot"],
     ["graph", "--format", "mermaid"], ["check"], ["check", "--json"],
     *(["export", "--format", form] for form in ("json", "csv", "chrome", "speedscope", "collapsed")),
     ["export", "--format", "csv", "--what", "events"]],
    ids=" ".join,
)  # fmt: skip
def test_the_command_line(leaked: tuple[Inspector, Path], arguments: list[str]) -> None:
    """Whatever a command prints of a log, and of findings in it."""
    _, log = leaked
    # So wide that nothing is cut off.
    result = CliRunner(env={"COLUMNS": "1000"}).invoke(commands, [arguments[0], str(log), *arguments[1:]])
    assert result.exit_code in (0, 1), result.output
    check(result.output, redacts=False)
    assert "query" in result.output or arguments[0] == "check"


def test_while_they_wait(loggers: None) -> None:
    """Live tasks: what they wait for and who has it, in pages, files, and by the command in aiomonitor."""
    inspector = Inspector()
    handler = AsyncInspectHandler(inspector)
    logging.getLogger().addHandler(handler)

    async def main() -> None:
        async def wait(lock: Lock) -> None:
            with span(f"with password: {SECRET}", token=SECRET):
                async with lock:
                    await asyncio.Event().wait()

        with install(sync=True):
            lock = Lock(name=f"password={SECRET}")
            tasks = [asyncio.create_task(wait(lock), name=f"task password={SECRET}") for _ in range(2)]
            for _ in range(5):
                await asyncio.sleep(0)
            snapshot = inspector.snapshot()
            assert f"lock:password={REDACTED}" in str([task.waiting_on for task in snapshot.tasks])
            check(everything_of(snapshot))
            check(describe(snapshot))
            for name in {task.name for task in snapshot.tasks} - {"main"}:
                check(describe(snapshot, name))
            check(JsonExporter.export_to_string(inspector))
            for what in ("tasks", "events"):
                check(CsvExporter.export_to_string(inspector, what=what))  # type: ignore[arg-type]
            check(ChromeTraceExporter.export_to_string(inspector))
            check(json.dumps(inspector.checkpoint()))
            with PrometheusExporter(inspector, registry=CollectorRegistry()) as page:
                check(page.gather())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    asyncio.run(main())
    handler.close()


def test_over_the_network(loggers: None, tmp_path: Path) -> None:
    """OTLP by both protocols, StatsD of both dialects, the textfile of the node exporter: every byte that is sent."""
    inspector = Inspector()
    handler = AsyncInspectHandler(inspector)
    logging.getLogger().addHandler(handler)
    with Receiver() as receiver, Agent("udp", tmp_path) as agent:
        exporters = [
            OtelExporter("shop", inspector, endpoint=f"http://{receiver.grpc}", protocol="grpc"),
            OtelExporter("shop", inspector, endpoint=f"http://{receiver.http}", protocol="http/protobuf"),
        ]
        metrics = [StatsdExporter(inspector, agent.address, dialect=dialect) for dialect in ("statsd", "dogstatsd")]
        asyncio.run(leak())
        for exporter in exporters:
            exporter.export_tasks()
        receiver.wait_for(8)
        for exporter in exporters:
            provider = exporter.meter_provider()
            assert provider.force_flush()
            provider.shutdown()
            exporter.shutdown(5)
        for each in metrics:
            each.export()
        agent.wait_for(lambda: len(agent.metrics) > 10)
        for each in metrics:
            each.close()
        check("".join(map(str, receiver.requests)))
        assert len(receiver.metric_requests) >= 2
        check("".join(map(str, receiver.metric_requests)))
        check("".join(map(str, agent.metrics)), redacts=False)
    with PrometheusExporter(inspector, registry=CollectorRegistry()) as page:
        write_textfile(tmp_path / "job.prom", exporter=page)
    check((tmp_path / "job.prom").read_text())


def test_to_a_gateway(leaked: tuple[Inspector, Path]) -> None:
    """What is pushed."""
    pushed: list[bytes] = []

    def keep(url: str, method: str, timeout: float | None, headers: Any, data: bytes) -> Any:
        return lambda: pushed.append(data)

    with PrometheusExporter(leaked[0], registry=CollectorRegistry()) as exporter:
        push("gateway:9091", "job", exporter=exporter, handler=keep)
    check(b"".join(pushed).decode())


@pytest.mark.parametrize("compress", [False, True])
def test_the_page_that_is_served(leaked: tuple[Inspector, Path], compress: bool) -> None:
    """Over HTTP, with exemplars that are there, in both formats, and a selection of it."""
    with (
        PrometheusExporter(leaked[0], registry=CollectorRegistry(), exemplars=True) as exporter,
        exporter.start_server(0) as server,
    ):
        for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
            for query in ("", "?name[]=async_inspect_task_duration_seconds_count"):
                headers = {"Accept": accept, "Accept-Encoding": "gzip" if compress else "identity"}
                with urlopen(Request(server.url + query, headers=headers)) as answer:
                    body = answer.read()
                page = (gzip.decompress(body) if compress else body).decode()
                check(page)
                assert query or (" # {" in page) is ("openmetrics" in accept)


def test_findings(loggers: None, caplog: pytest.LogCaptureFixture) -> None:
    """A blocked loop whose task has a secret for its name, and what a deadlock says: told, kept, and handed on."""
    inspector, told = Inspector(Config(slow_poll=0.05)), list[Any]()
    inspector.on_finding(told.append)
    handler = AsyncInspectHandler(inspector)
    logging.getLogger("asyncinspect").addHandler(handler)
    blocked = threading.Event()

    async def block() -> None:
        # In the loop's own thread, until that was found.
        with span(f"block token={SECRET}"):
            until = time.monotonic() + 10
            while time.monotonic() < until and not inspector.snapshot(tasks=False).findings:
                blocked.wait(0.01)

    async def both(first: asyncio.Lock, second: asyncio.Lock) -> None:
        with span(f"transfer password={SECRET}", token=SECRET):
            async with first:
                await asyncio.sleep(0)
                async with second:
                    pass

    async def main() -> None:
        with install(sync=True):
            await asyncio.sleep(0.2)  # the loop has a beat by then
            await asyncio.create_task(block(), name=f"fetch https://ada:{SECRET}@h/?token={SECRET}")
            one, other = asyncio.Lock(), asyncio.Lock()
            tasks = [
                asyncio.create_task(both(*locks), name=f"password={SECRET}") for locks in ((one, other), (other, one))
            ]
            for _ in range(10):
                await asyncio.sleep(0)
            for _ in range(3):
                inspector.snapshot()
            check(everything_of(inspector.snapshot()))
            check(JsonExporter.export_to_string(inspector))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    logging.getLogger("asyncinspect").removeHandler(handler)
    handler.close()
    assert {finding.kind for finding in told} >= {"blocked_loop", "deadlock"}
    check(str(told))
    records = [record for record in caplog.records if record.name == "asyncinspect.findings"]
    assert records
    check(str([vars(record) for record in records]))


def test_to_a_sidecar(loggers: None, tmp_path: Path) -> None:
    """What the socket handler sends, and what the sidecar makes of it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        handler = AsyncInspectSocketHandler(listening.getsockname()[1], timeout=0.5)
        logging.getLogger().addHandler(handler)
        asyncio.run(leak())
        sent = b""
        connected, _ = listening.accept()
        with connected:
            connected.settimeout(0.5)
            with suppress(TimeoutError):
                while chunk := connected.recv(1 << 16):
                    sent += chunk
                    # It waits for an answer to what it says first.
                    connected.sendall(b'{"have": 0}\n')
        handler.close()
    check(sent.decode())
    with Sidecar(listen=0) as sidecar:
        assert sidecar.address is not None
        handler = AsyncInspectSocketHandler(sidecar.address.port)
        logging.getLogger().addHandler(handler)
        asyncio.run(leak())
        handler.close()
        deadline = time.monotonic() + 10
        while len(sidecar.snapshot().tasks) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        check(everything_of(sidecar.snapshot()))
        with PrometheusExporter(sidecar, registry=CollectorRegistry(), exemplars=True) as page:
            check(page.gather())
            check(page.gather(openmetrics=True))


def test_structlog(loggers: None) -> None:
    """A chain that lets lifecycle events pass shows none either; the application's own events are its own."""
    inspector, lines = Inspector(), list[str]()

    def keep(logger: Any, name: str, event: Any) -> Any:
        lines.append(repr(dict(event)))
        raise structlog.DropEvent

    structlog.configure(processors=[AsyncInspectProcessor(inspector, pass_lifecycle=True), keep])
    try:
        log = structlog.get_logger()
        with suppress(ValueError), span("job", logger=log, token=SECRET, u=f"a://b:{SECRET}@c"):
            log.info("with token=%s", SECRET)
            raise ValueError(f"password={SECRET}")
    finally:
        structlog.reset_defaults()
    told = [line for line in lines if "'asyncinspect'" in line]
    assert len(told) == 2
    check("".join(told))
    check(everything_of(inspector.snapshot()))


def test_a_warning_of_ours(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed may have the secret that it failed with in its message."""
    monkeypatch.setattr(diagnostics, "_told", set())
    diagnostics.warn_once("k", "s", "the push to %s failed: %r", f"http://a:{SECRET}@b", OSError(f"Bearer {SECRET}"))
    assert caplog.messages == [f"the push to http://{REDACTED}@b failed: OSError('Bearer {REDACTED}')"]


# -- what is never used ----------------------------------------------------------------------------------------------

_NEVER = {
    "pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle", "yaml", "telnetlib", "xmlrpc", "jsonpickle",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_runs_what_it_reads(path: Path) -> None:
    """No pickle, no eval or exec, no yaml.load, no shell, no temporary names that can be guessed."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & (_NEVER - {"yaml"})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] not in _NEVER
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp")
            assert called.rpartition(".")[2] not in ("unsafe_load", "full_load")
            assert called != "yaml.load"
            for keyword in node.keywords:
                assert keyword.arg != "shell" or ast.literal_eval(keyword.value) is False
