"""Loopback ports: choosing free ones, and asking whether somebody answers."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Final

LOOPBACK: Final = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on now. Somebody may take one before you do."""
    with ExitStack() as held:
        listeners = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind((LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in listeners]


def answers(port: int) -> bool:
    """Whether a connection to the loopback port is accepted."""
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex((LOOPBACK, port)) == 0


def is_ready(address: str) -> bool:
    """Whether `/readyz` at host:port answers 200."""
    import httpx

    try:
        return httpx.get(f"http://{address}/readyz", timeout=2.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
