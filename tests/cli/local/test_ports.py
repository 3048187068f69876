"""A free port stays free for whoever asked for it."""

from __future__ import annotations

import socket

from tba_cli.local.ports import LOOPBACK, answers, free_ports


def test_a_server_may_listen_on_a_free_port_again_and_again() -> None:
    (port,) = free_ports(1)
    for _ in range(2):
        assert not answers(port)
        with socket.create_server((LOOPBACK, port)):
            assert answers(port)


def test_a_free_port_is_given_to_nobody_else() -> None:
    asked_for = set(free_ports(200))
    assert len(asked_for) == 200
    for _ in range(5_000):
        with socket.socket() as other:
            other.bind((LOOPBACK, 0))
            assert other.getsockname()[1] not in asked_for
