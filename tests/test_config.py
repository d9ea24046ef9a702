from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest

from asyncinspect_logging import Config
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.redaction import REDACT


def test_presets_have_the_figures_of_the_reference() -> None:
    """Traces kept, events and tasks."""
    figures = {
        preset.__name__: (preset().sampling_rate, preset().max_events, preset().max_tasks)
        for preset in (Config.production, Config.development, Config.debug)
    }
    assert figures == {"production": (100, 1000, 500), "development": (1, 10_000, 1000), "debug": (1, None, None)}


def test_defaults() -> None:
    """Everything is kept, within limits."""
    config = Config()
    assert (config.sampling_rate, config.max_tasks, config.max_events, config.max_names) == (1, 1000, 10_000, 1000)
    assert config.track_polls
    assert config.track_wakes
    assert config.capture_fields
    assert config.redact == REDACT


def test_is_frozen_and_compares() -> None:
    """It is a value."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().max_tasks = 5  # type: ignore[misc]
    assert Config(max_tasks=5) == Config(max_tasks=5) != Config()
    assert hash(Config()) == hash(Config())


@pytest.mark.parametrize(("given", "kept"), [(1, 1), (1.0, 1), (100, 100), (0.01, 100), (0.5, 2), (1e-9, 10**9)])
def test_sampling_rate(given: float, kept: int) -> None:
    """1 in N, or the fraction."""
    assert Config(sampling_rate=given).sampling_rate == kept


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("sampling_rate", [0, -1, 1.5, NAN, INF, True, "1", None, 10**400, 1e-300]),
        ("max_tasks", [0, -1, 1.5, NAN, True, "10"]),
        ("max_events", [0, -1, 2.0]),
        ("max_names", [0, -5, "all"]),
        ("max_field_length", [0, -1, None, 1.0]),
        ("slow_poll", [0, -0.1, NAN, INF, "1", True, None]),
        ("slow_task", [0, -1, INF, 10**400]),
        ("never_yielded", [0, -1, INF, "1", True]),
        ("many_self_wakes", [0, -1, 1.5, True]),
        ("leaked_after", [0, NAN]),
        ("lost_waker_after", [0, False]),
        ("track_polls", [1, "yes", None]),
        ("track_wakes", [0]),
        ("capture_fields", [None]),
        ("redact", ["password", [1], [""], None, 7]),
        ("metrics_port", [-1, 65536, "host", "host:", "host:65536", 1.0, True, None]),
    ],
)
def test_bad_values(setting: str, values: list[Any]) -> None:
    """The message names the setting, the value and the fix."""
    for value in values:
        with pytest.raises(ConfigError) as caught:
            Config(**{setting: value})
        message = str(caught.value)
        assert message.startswith(f"{setting}={value!r}")
        assert "write" in message


@pytest.mark.parametrize(
    "redact", [("a", "b"), ["a", "b"], iter(["a", "b"]), (part for part in "ab"), {"a": 1, "b": 2}]
)
def test_redact_takes_any_iterable(redact: Any) -> None:
    """Also one that can be read only once."""
    config = Config(redact=redact)
    assert config.redact == ("a", "b")
    assert config.field_policy().apply({"A": 1}) == {"A": "[redacted]"}
    assert Config(redact=[]).redact == ()  # type: ignore[arg-type]


def test_every_variable() -> None:
    """Each setting can be given by the environment."""
    given: dict[str, tuple[str, Any]] = {
        "sampling_rate": ("0.1", 10),
        "max_tasks": ("5", 5),
        "max_events": (" None ", None),
        "max_names": ("7", 7),
        "track_polls": ("no", False),
        "track_wakes": ("0", False),
        "capture_fields": ("OFF", False),
        "max_field_length": ("64", 64),
        "redact": ("ssn, card ,", ("ssn", "card")),
        "slow_poll": ("1e-2", 0.01),
        "slow_task": ("3", 3),
        "never_yielded": ("none", None),
        "many_self_wakes": ("7", 7),
        "leaked_after": ("2.5", 2.5),
        "lost_waker_after": ("None", None),
        "metrics_port": ("0", 0),
    }
    assert set(given) == {field.name for field in dataclasses.fields(Config)}
    environ = {f"ASYNC_INSPECT_{name.upper()}": text for name, (text, _) in given.items()}
    config = Config.from_env(environ)
    assert {name: getattr(config, name) for name in given} == {name: value for name, (_, value) in given.items()}


@pytest.mark.parametrize(
    ("text", "port"), [("9091", 9091), ("0.0.0.0:9091", "0.0.0.0:9091"), (" [::1]:0 ", "[::1]:0"), (":1", ":1")]
)
def test_metrics_port_may_have_a_host(text: str, port: int | str) -> None:
    """The variable takes what `start_server` takes."""
    assert Config.from_env({"ASYNC_INSPECT_METRICS_PORT": text}).metrics_port == port


@pytest.mark.parametrize("text", ["1", "true", "YES", "on"])
def test_truth(text: str) -> None:
    """As people write it."""
    assert Config.from_env({"ASYNC_INSPECT_TRACK_POLLS": text}).track_polls


def test_preset_from_the_environment() -> None:
    """With further settings on top of it."""
    assert Config.from_env({"ASYNC_INSPECT_PRESET": "Production"}) == Config.production()
    config = Config.from_env({"ASYNC_INSPECT_PRESET": "production", "ASYNC_INSPECT_MAX_TASKS": "7"})
    assert config == dataclasses.replace(Config.production(), max_tasks=7)


def test_nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the defaults, as do empty variables; the process's environment is what is read."""
    monkeypatch.setenv("ASYNC_INSPECT_MAX_TASKS", "3")
    assert Config.from_env() == Config(max_tasks=3)
    assert Config.from_env({}) == Config()
    assert (
        Config.from_env({"ASYNC_INSPECT_MAX_TASKS": "", "ASYNC_INSPECT_REDACT": " ", "ASYNC_INSPECT_PRESET": ""})
        == Config()
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PRESET", "fast"), ("MAX_TASKS", "many"), ("MAX_TASKS", "0"), ("MAX_TASKS", "-1"), ("MAX_TASKS", "1.5"),
        ("MAX_FIELD_LENGTH", "none"), ("SAMPLING_RATE", "nan"), ("SAMPLING_RATE", "0"), ("TRACK_POLLS", "maybe"),
        ("METRICS_PORT", "http"), ("METRICS_PORT", "99999"), ("SLOW_POLL", "-1"), ("SLOW_TASK", "1e999"),
    ],
)  # fmt: skip
def test_bad_variables(name: str, text: str) -> None:
    """The message says that it is the environment, and which variable or setting."""
    with pytest.raises(ConfigError, match=f"(?i)ASYNC_INSPECT_.*({name}|{name.lower()})"):
        Config.from_env({f"ASYNC_INSPECT_{name}": text})


def test_misspelt_variable(caplog: pytest.LogCaptureFixture) -> None:
    """Is told of, with what was probably meant, and breaks nothing."""
    with caplog.at_level(logging.WARNING):
        assert Config.from_env({"ASYNC_INSPECT_MAX_TASK": "5", "ASYNC_INSPECT_QQ": "1", "OTHER": "x"}) == Config()
    assert "ASYNC_INSPECT_MAX_TASK names no setting; did you mean ASYNC_INSPECT_MAX_TASKS?" in caplog.text
    assert "ASYNC_INSPECT_QQ names no setting; the settings are" in caplog.text
    assert "OTHER" not in caplog.text
