"""Where a fetch may connect to: a person gives an address, and the master must not be made to ask its own neighbours.

It is decided by the address that a connection is about to be made to, so names that resolve to two things, and
redirects, are seen too (server-side request forgery; OWASP's cheat sheet of that name).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

AddressInfo = tuple[Any, ...]
"""As `socket.getaddrinfo` gives it."""

_METADATA = frozenset(
    ipaddress.ip_address(one) for one in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
)
"""Services of clouds that tell a machine its own secrets, outside the link-local range."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOOPBACK_OF_ALL = frozenset(ipaddress.ip_address(one) for one in ("0.0.0.0", "::"))


class ForbiddenAddress(OSError):
    """A connection that is not made. All have the same words, so that a name with several addresses has one error."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "it leads to an address that is never fetched from")


def is_allowed(address: str, *, loopback: bool) -> bool:
    """Whether files may be fetched from this IP address. Pure.

    Refused are link-local and metadata addresses, multicast, reserved ones, and, without `loopback`, this machine
    itself. Private networks are allowed: that is where an installation's own servers are.
    """
    found = _plain(ipaddress.ip_address(address.partition("%")[0]))
    if found.is_loopback or found in _LOOPBACK_OF_ALL:
        return loopback
    return not (found.is_link_local or found.is_multicast or found.is_reserved or found in _METADATA)


def guarded_sockets(*, loopback: bool) -> Callable[[AddressInfo], socket.socket]:
    """Makes the sockets of a connector. They raise ForbiddenAddress."""

    def make(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        if not is_allowed(str(address[0]), loopback=loopback) or not (loopback or _leads_away(info)):
            raise ForbiddenAddress
        return socket.socket(family=family, type=kind, proto=protocol)

    return make


def _leads_away(info: AddressInfo) -> bool:
    """Whether an address is of another machine: to one of its own the system would speak from that very address.

    Nothing is sent.
    """
    family, *_, address = info
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return True  # no way there: the connection will say so
        return bool(probe.getsockname()[0] != address[0])


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
