"""`/metrics` of the master: what it says, and who may read it."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from deployments.models import Leader
from tests.factories import make_deployment, make_instance, make_ready_gateway, make_server

pytestmark = pytest.mark.django_db


def test_it_tells_servers_deployments_instances_and_gateways(client: Client) -> None:
    server = make_server(name="atlas")
    make_server(online=False)
    deployment = make_deployment(name="chat", replicas=2)
    make_instance(deployment=deployment, server=server)
    make_ready_gateway(name="edge", state={"requests_per_minute": 12.0, "tokens_per_minute": 900.0})
    Leader.objects.create(name="controller", renewed_at=timezone.now(), ticked_at=timezone.now())
    text = client.get("/metrics").content.decode()
    assert 'stokehold_servers{status="online"} 1.0' in text
    assert 'stokehold_servers{status="never"} 1.0' in text
    assert 'stokehold_deployment_ready{deployment="chat"} 1.0' in text
    assert 'stokehold_deployment_desired{deployment="chat"} 2.0' in text
    assert 'stokehold_instances{state="ready"} 1.0' in text
    assert 'stokehold_server_load_ratio{resource="cpu",server="atlas"}' in text
    assert 'stokehold_gateway_requests_per_minute{gateway="edge"} 12.0' in text
    assert "stokehold_controller_pass_age_seconds" in text


def test_loopback_may_read_it_without_a_token(client: Client) -> None:
    assert client.get("/metrics").status_code == 200


def test_another_machine_may_not(client: Client) -> None:
    assert client.get("/metrics", REMOTE_ADDR="10.1.2.3").status_code == 403


def test_loopback_through_a_proxy_may_not(client: Client) -> None:
    assert client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 403


def test_a_token_is_wanted_once_it_is_set(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKEHOLD_METRICS_TOKEN", "s3cret")
    assert client.get("/metrics").status_code == 403
    assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 403
    assert client.get("/metrics", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_a_staff_session_may_read_it_from_anywhere(client: Client, admin: User) -> None:
    client.force_login(admin)
    assert client.get("/metrics", REMOTE_ADDR="10.1.2.3").status_code == 200


def test_it_takes_a_constant_number_of_queries(client: Client, django_assert_max_num_queries: object) -> None:
    for _ in range(12):
        make_instance()
    with django_assert_max_num_queries(12):  # type: ignore[operator]
        client.get("/metrics")
