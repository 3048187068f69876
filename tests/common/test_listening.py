"""Who listens everywhere is reached over IPv6 and IPv4; who does not is reached where he listens."""

from __future__ import annotations

import socket

import pytest

from tba_common.listening import EVERYWHERE, known_here, listen
from tests.loopbacks import loopbacks, reached


def test_everywhere_is_every_address_there_is() -> None:
    with listen(EVERYWHERE, 0) as listener:
        assert reached(listener.getsockname()[1]) == loopbacks()


def test_everywhere_is_ipv4_where_the_kernel_has_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with listen(EVERYWHERE, 0) as listener:
        assert reached(listener.getsockname()[1]) == ["127.0.0.1"]


def test_loopback_is_loopback() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        assert reached(listener.getsockname()[1]) == ["127.0.0.1"]
    assert known_here("127.0.0.1") == "127.0.0.1"
