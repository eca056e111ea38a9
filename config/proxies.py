"""The client's address: of the connection, or as the last trusted proxy saw it. Nobody else is believed.

First in the chain, so that throttles, the audit log, lock-outs and networks of keys all see the same: afterwards
`REMOTE_ADDR` is the client's, and there are no `X-Forwarded-*` headers about it any more; `request.is_forwarded` tells
that there were: a request from loopback that a proxy brought is nobody of this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest

_HEADERS = ("HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP", "HTTP_X_FORWARDED_PORT", "HTTP_FORWARDED")
Networks = Sequence[IPv4Network | IPv6Network]


class ClientAddress:
    """Middleware; `settings.TRUSTED_PROXIES` are CIDRs."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._proxies = [ip_network(network) for network in settings.TRUSTED_PROXIES]
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        meta = request.META
        request.is_forwarded = any(header in meta for header in _HEADERS)
        if address := client_address(
            meta.get("REMOTE_ADDR") or "", meta.get("HTTP_X_FORWARDED_FOR", ""), self._proxies
        ):
            meta["REMOTE_ADDR"] = address
        for header in _HEADERS:
            meta.pop(header, None)
        return self._get_response(request)


def client_address(peer: str, forwarded: str, proxies: Networks) -> str:
    """`forwarded` is read from its end: what stands before the first address that is no proxy is anybody's words."""
    address, left = peer, forwarded.split(",")
    while left and _is_within(address, proxies):
        nearer = left.pop().strip()
        try:
            ip_address(nearer)
        except ValueError:
            break
        address = nearer
    return address


def _is_within(address: str, networks: Networks) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found.version == 6 and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in networks if network.version == found.version)
