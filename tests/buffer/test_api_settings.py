from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from services.buffer.api_settings import ApiSettings, is_loopback


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    settings = ApiSettings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.api_key is None


@pytest.mark.parametrize("address", ["0.0.0.0:8000", "[::]:8000", "10.0.0.7:80", "tba.example:443"])
def test_an_address_that_others_reach_is_refused_without_a_key(address: str) -> None:
    with pytest.raises(ValidationError, match=r"can be reached from other machines and TBA_API_KEY is not set"):
        ApiSettings(api_address=address)


def test_an_address_that_others_reach_is_fine_with_a_key() -> None:
    assert ApiSettings(api_address="0.0.0.0:8000", api_key=SecretStr("k")).host == "0.0.0.0"


def test_an_empty_key_is_a_mistake_and_not_an_open_door() -> None:
    with pytest.raises(ValidationError, match="TBA_API_KEY is empty"):
        ApiSettings(api_key=SecretStr(""))


def test_no_secret_shows_in_an_error_or_a_log() -> None:
    url = "postgresql+psycopg://tba:hunter2@db/tba"
    assert "hunter2" not in repr(ApiSettings(database_url=url, api_key=SecretStr("hunter2")))
    with pytest.raises(ValidationError) as refusal:
        ApiSettings(database_url=url, api_address="0.0.0.0:80", max_body_bytes=0)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("localhost.evil.example", False),
        ("0.0.0.0", False),
        ("", False),
        ("2130706433", False),
    ],
)
def test_loopback_is_what_can_only_mean_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_second_key_is_another_one_beside_a_first() -> None:
    first, second = SecretStr("first"), SecretStr("second")
    assert ApiSettings(api_key=first, api_redteam_key=second).api_redteam_key == second
    for wrong in ({"api_redteam_key": second}, {"api_key": first, "api_redteam_key": first}):
        with pytest.raises(ValidationError, match="TBA_API_REDTEAM_KEY"):
            ApiSettings.model_validate(wrong)


def test_the_setting_for_loopback_is_no_way_around_a_key() -> None:
    with pytest.raises(ValidationError, match="TBA_ALLOW_REDTEAM: expected where no TBA_API_KEY is set"):
        ApiSettings(api_key=SecretStr("first"), allow_redteam=True)
