"""Loopback ports: choosing free ones, and asking whether somebody answers."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_ANSWER_SECONDS: Final = 2.0


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on now.

    On Linux nobody else is given one as a free port while this process lives: it keeps them bound, so that who means to
    listen there still may, with SO_REUSEADDR as servers have it. Elsewhere somebody may take one before you do.
    """
    with ExitStack() as held:
        listeners = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, 0))
        ports = [listener.getsockname()[1] for listener in listeners]
        if sys.platform == "linux":
            for listener in listeners:
                listener.detach()
        return ports


def answers(port: int) -> bool:
    """Whether a connection to the loopback port is accepted."""
    with socket.socket() as client:
        client.settimeout(_ANSWER_SECONDS)
        return client.connect_ex((LOOPBACK, port)) == 0


def is_ready(address: str) -> bool:
    """Whether `/readyz` at host:port answers 200."""
    connection = HTTPConnection(address, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
