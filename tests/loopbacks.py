"""The loopback addresses of this machine, and at which of them a port is reached."""

from __future__ import annotations

import socket


def loopbacks() -> list[str]:
    """127.0.0.1, and ::1 where there is IPv6."""
    return [host for host in ("127.0.0.1", "::1") if _is_here(host)]


def reached(port: int) -> list[str]:
    """Those at which a connection to the port is accepted."""
    found = []
    for host in loopbacks():
        try:
            socket.create_connection((host, port), timeout=20).close()
        except ConnectionRefusedError:
            continue
        found.append(host)
    return found


def _is_here(host: str) -> bool:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return False
    return True
