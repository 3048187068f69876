"""Wrong settings end a process with one line for each, and never with a secret on it."""

from __future__ import annotations

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tba_common.settings import WRONG_SETTINGS, ServiceSettings


class Rate(ServiceSettings):
    rate: float = Field(default=1.0, gt=0)
    name: str


class Secret(ServiceSettings):
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    rate: float = 1.0


def test_each_fault_is_a_line_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TBA_RATE", "abc")
    with pytest.raises(SystemExit) as end:
        Rate.from_environment()
    assert end.value.code == WRONG_SETTINGS
    assert capsys.readouterr().err.splitlines() == [
        "TBA_RATE: Input should be a valid number, unable to parse string as a number, got 'abc'",
        "TBA_NAME: Field required",
    ]


def test_a_value_that_may_be_secret_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TBA_RATE", "sesame")
    with pytest.raises(SystemExit):
        Secret.from_environment()
    assert "sesame" not in capsys.readouterr().err


def test_settings_that_fit_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBA_NAME", "one")
    assert Rate.from_environment().name == "one"
