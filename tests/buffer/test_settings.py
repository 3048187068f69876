"""The buffer's settings say what is wrong, and do not give a password away."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.buffer.settings import BufferSettings


def test_by_default_two_different_answers_make_a_group() -> None:
    assert BufferSettings().min_trajectories_per_group == 2


@pytest.mark.parametrize(
    "wrong", [{"min_trajectories_per_group": 17}, {"trajectories_per_group": 101}, {"capacity_per_prompt": 8}]
)
def test_a_group_that_can_never_be_filled_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="TBA_TRAJECTORIES_PER_GROUP <= TBA_CAPACITY_PER_PROMPT"):
        BufferSettings.model_validate(wrong)


def test_no_error_and_no_log_line_holds_the_password() -> None:
    url = "postgresql+psycopg://user:secret@host/db"
    with pytest.raises(ValidationError) as error:
        BufferSettings(database_url=url, capacity_per_prompt=8)
    assert "secret" not in str(error.value)
    assert "secret" not in repr(BufferSettings(database_url=url))


@pytest.mark.parametrize(("said", "band"), [("8", (0, 8)), ("1:8", (1, 8)), (2.5, (0, 2.5)), ("0.5 : 0.5", (0.5, 0.5))])
def test_samples_per_insert_is_a_most_or_a_band(
    monkeypatch: pytest.MonkeyPatch, said: str | float, band: tuple[float, float]
) -> None:
    assert BufferSettings.model_validate({"samples_per_insert": said}).samples_per_insert == band
    monkeypatch.setenv("TBA_SAMPLES_PER_INSERT", str(said))
    assert BufferSettings().samples_per_insert == band


@pytest.mark.parametrize("said", ["8:1", "0", "-1", "-1:8", "often", "1:2:3", "nan"])
def test_a_band_that_would_stop_the_line_is_refused(said: str) -> None:
    with pytest.raises(ValidationError, match=r"(?i)samples_per_insert"):
        BufferSettings.model_validate({"samples_per_insert": said})


def test_the_numbers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBA_GROUPS_PER_BATCH", "3")
    assert BufferSettings().groups_per_batch == 3


def test_the_index_draws_unless_sql_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BufferSettings().sampler == "index"
    monkeypatch.setenv("TBA_SAMPLER", "sql")
    assert BufferSettings().sampler == "sql"
