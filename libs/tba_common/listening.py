"""Where a process listens: one address, or as `::` every one that its machine has."""

from __future__ import annotations

import socket
from typing import Final

#: Every address of the machine: IPv6 and IPv4, or IPv4 alone where the kernel has no IPv6.
EVERYWHERE: Final = "::"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host`, an IPv6 address without its brackets; port 0 is any free one.

    Raises:
        OSError: the port is taken, or this machine has no such address.
    """
    host = known_here(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, dualstack_ipv6=host == EVERYWHERE)


def known_here(host: str) -> str:
    """Return `host`, but for every address all of IPv4 where the kernel has no IPv6."""
    return "0.0.0.0" if host == EVERYWHERE and not socket.has_dualstack_ipv6() else host  # noqa: S104
