"""The learner's settings fail at the start, by name, and not in the middle of a run."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.learner.settings import LearnerSettings


def test_the_model_is_all_that_has_to_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBA_MODEL", "runs/tiny")
    assert LearnerSettings().model == "runs/tiny"
    monkeypatch.delenv("TBA_MODEL")
    with pytest.raises(ValidationError, match="model"):
        LearnerSettings()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate_schedule", "50/350"),
        ("learning_rate", 0),
        ("lora_rank", -1),
        ("publish_every", 0),
        ("checkpoint_every", 0),
        ("keep_versions", 1),
        ("max_steps", -1),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        LearnerSettings.model_validate({"model": "m", field: value})
