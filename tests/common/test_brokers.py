"""How a process is let in by Kafka: from the environment to what the client library is told, never half of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tba_common.brokers import Brokers
from tba_common.kafka_client import security_options
from tba_common.settings import WRONG_SETTINGS, ServiceSettings


def test_servers_alone_are_plain_text() -> None:
    assert security_options(Brokers.of("kafka:9092")) == {"security_protocol": "PLAINTEXT"}


def test_user_and_password_go_with_a_sasl_protocol_only() -> None:
    brokers = Brokers("kafka:9093", security_protocol="SSL", username="tba", password="sesame", ca_file=Path("/ca.crt"))
    assert security_options(brokers) == {"security_protocol": "SSL", "ssl_cafile": "/ca.crt"}


def test_everything_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "SERVERS": "kafka:9093",
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISM": "SCRAM-SHA-256",
        "USERNAME": "tba",
        "PASSWORD": "sesame",
        "CA_FILE": "/etc/ca.crt",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"TBA_KAFKA_{name}", value)
    brokers = ServiceSettings.from_environment().brokers
    assert brokers.servers == "kafka:9093"
    assert security_options(brokers) == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "tba",
        "sasl_plain_password": "sesame",
        "ssl_cafile": "/etc/ca.crt",
    }


def test_a_password_is_never_shown() -> None:
    assert "sesame" not in repr(Brokers("kafka:9093", password="sesame"))
    assert "sesame" not in repr(ServiceSettings(kafka_password="sesame"))


def test_a_sasl_protocol_without_credentials_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TBA_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("TBA_KAFKA_PASSWORD", "sesame")
    with pytest.raises(SystemExit) as end:
        ServiceSettings.from_environment()
    assert end.value.code == WRONG_SETTINGS
    said = capsys.readouterr().err
    assert said == "TBA_KAFKA_SECURITY_PROTOCOL=SASL_SSL needs TBA_KAFKA_USERNAME and TBA_KAFKA_PASSWORD\n"
