"""Where a judge may be asked: which origin, and to which addresses its name may lead at the moment of asking.

A name can be pointed at the inside of the cluster after it was checked. So each request goes to an address that was
checked itself, and never to one that somebody looks up again.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}

#: Where a network without IPv4 puts all of it (RFC 6052), the private parts too.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

Lookup = Callable[[str, int], Sequence[str]]


class AddressRefused(Exception):
    """A host leads to an address that must not be asked."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what an allow-list compares."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def origin_of(url: str) -> Origin:
    """Read the origin of a base URL.

    Raises:
        ValueError: not http or https, no host, or with a user, a query or a fragment; the URL is not repeated.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("expected http(s)://host[:port][/path]")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("expected a URL without user, query and fragment")
    return Origin(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])


def look_up(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, IPv4 first: not every cluster routes IPv6.

    Raises:
        OSError: it has none, or nobody answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [_text(address) for _, _, _, _, address in sorted(found, key=lambda entry: entry[0] != socket.AF_INET)]


def checked_address(origin: Origin, private_hosts: Collection[str], lookup: Lookup = look_up) -> str:
    """Return an address of the origin's host that may be asked now.

    Raises:
        AddressRefused: any of its addresses is not public, and the host is not in `private_hosts`; or one is
            link-local, where clouds keep the credentials of machines.
        OSError: the name leads nowhere.
    """
    addresses = lookup(origin.host, origin.port)
    for text in addresses:
        if not _may_be_asked(text, is_private_allowed=origin.host in private_hosts):
            raise AddressRefused(f"host {origin.host}: expected public addresses, got {text}")
    return addresses[0]


def _may_be_asked(text: str, *, is_private_allowed: bool) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    if address in _NAT64:
        address = ipaddress.IPv4Address(address.packed[-4:])
    if address.is_link_local or address.is_unspecified or address.is_multicast:
        return False
    return address.is_global or is_private_allowed


def _text(address: tuple[Any, ...]) -> str:
    return str(address[0])
