"""Where a judge may be asked: the allow-list, and the addresses behind a name."""

from __future__ import annotations

from typing import Any

import pytest

from services.reward.judge_address import AddressRefused, Origin, checked_address, origin_of
from services.reward.judge_settings import JudgeSettings
from tba_common.settings import WRONG_SETTINGS

PUBLIC = Origin("https", "api.example.com", 443)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://api.example.com/v1", PUBLIC),
        ("https://API.example.com:443", PUBLIC),
        ("http://127.0.0.1:8000/v1", Origin("http", "127.0.0.1", 8000)),
        ("http://[::1]:8000/v1", Origin("http", "::1", 8000)),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: Origin) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "api.example.com",
        "file:///etc/passwd",
        "https://",
        "https://a:b@api.example.com",
        "https://h/?q=1",
        "https://h/#f",
    ],
)
def test_a_url_that_can_mean_two_things_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        origin_of(url)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_a_public_address_may_be_asked(address: str) -> None:
    assert checked_address(PUBLIC, (), lambda host, port: [address]) == address


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "127.0.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"),
    ],
)
def test_a_public_name_that_leads_inside_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused, match=f"host api.example.com: expected public addresses, got {address}"):
        checked_address(PUBLIC, (), lambda host, port: ["93.184.216.34", address])


@pytest.mark.parametrize("address", ["10.0.0.1", "100.64.0.1", "127.0.0.1", "fd00::1"])
def test_a_host_that_is_listed_as_private_may_lead_inside(address: str) -> None:
    assert checked_address(PUBLIC, ("api.example.com",), lambda host, port: [address]) == address


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1%eth0", "::ffff:169.254.169.254", "0.0.0.0", "::"])
def test_the_credentials_of_machines_are_never_asked(address: str) -> None:
    with pytest.raises(AddressRefused, match="expected public addresses"):
        checked_address(PUBLIC, ("api.example.com",), lambda host, port: [address])


def settings(**changes: Any) -> JudgeSettings:
    fields = {
        "judge_url": "https://api.example.com/v1",
        "judge_model": "m",
        "judge_allowed_origins": "https://api.example.com, https://other.example.com",
    }
    return JudgeSettings(**(fields | changes))


def test_a_url_on_the_list_is_taken() -> None:
    assert settings().judge_allowed_origins == ("https://api.example.com", "https://other.example.com")


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example.com/v1",
        "https://api.example.com.evil.com",
        "https://api.example.com:8443/v1",
        "http://api.example.com:443/v1",
    ],
)
def test_a_url_that_is_not_on_the_list_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected an origin of TBA_JUDGE_ALLOWED_ORIGINS"):
        settings(judge_url=url)


def test_plain_http_is_for_private_hosts_only() -> None:
    with pytest.raises(ValueError, match="expected https, or judge in TBA_JUDGE_PRIVATE_HOSTS, got http"):
        settings(judge_url="http://judge:8000/v1", judge_allowed_origins="http://judge:8000")
    settings(judge_url="http://judge:8000/v1", judge_allowed_origins="http://judge:8000", judge_private_hosts="judge")


def test_a_wrong_url_is_told_without_what_it_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TBA_JUDGE_URL", "https://user:password@api.example.com/v1")
    monkeypatch.setenv("TBA_JUDGE_MODEL", "m")
    monkeypatch.setenv("TBA_JUDGE_ALLOWED_ORIGINS", "https://api.example.com")
    with pytest.raises(SystemExit) as end:
        JudgeSettings.from_environment()
    assert end.value.code == WRONG_SETTINGS
    assert capsys.readouterr().err == "expected a URL without user, query and fragment\n"


def test_without_an_allow_list_there_is_no_judge(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TBA_JUDGE_URL", "https://api.example.com/v1")
    monkeypatch.setenv("TBA_JUDGE_MODEL", "m")
    with pytest.raises(SystemExit):
        JudgeSettings.from_environment()
    assert capsys.readouterr().err == "TBA_JUDGE_ALLOWED_ORIGINS: Field required\n"
