"""Whose word counts for a client's address."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from django.test import Client
from pytest_django import Settings

from config.proxies import client_address

PROXIES = [ip_network("127.0.0.0/8"), ip_network("10.0.0.0/24"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.7", "", "192.0.2.7"),
        ("192.0.2.7", "203.0.113.9", "192.0.2.7"),  # no proxy of ours: anybody's words
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.9, 10.0.0.4", "203.0.113.9"),
        ("127.0.0.1", "10.0.0.9, 10.0.0.4", "10.0.0.9"),
        ("127.0.0.1", "203.0.113.9, junk", "127.0.0.1"),
        ("127.0.0.1", "junk", "127.0.0.1"),
        ("::ffff:127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        ("", "203.0.113.9", ""),
    ],
)
def test_only_a_trusted_proxy_tells_the_address(peer: str, forwarded: str, address: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == address


@pytest.mark.django_db
def test_a_made_up_header_does_not_open_the_throttle_of_joins(client: Client, settings: Settings) -> None:
    statuses = [
        client.post(
            "/api/v1/join", b"{}", "application/json", headers={"X-Forwarded-For": f"203.0.113.{turn}"}
        ).status_code
        for turn in range(25)
    ]
    assert statuses[-1] == 429
