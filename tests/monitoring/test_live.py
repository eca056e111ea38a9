"""Live pages: who may follow what, and that only what changed is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, Group, User
from django.test import Client
from django.urls import path
from django.utils import timezone

from deployments import services
from fleet.models import ServerState
from models_registry.models import ModelVersion
from monitoring import consumers
from monitoring.consumers import FORBIDDEN, NO_LOGIN, NO_TOPIC, LiveConsumer
from tests.factories import make_deployment, make_key, make_model_version, make_project, make_server

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio]
APPLICATION = URLRouter([path("ws/live", LiveConsumer.as_asgi())])


async def follow(topic: str, user: Any) -> WebsocketCommunicator:
    link = WebsocketCommunicator(APPLICATION, f"/ws/live?topic={topic}")
    link.scope["user"] = user
    accepted, _ = await link.connect()
    assert accepted
    return link


async def close_code(topic: str, user: Any) -> int:
    link = await follow(topic, user)
    message = await link.receive_output(timeout=5)
    assert message["type"] == "websocket.close"
    return message["code"]


async def test_without_a_session_the_link_is_closed() -> None:
    assert await close_code("dashboard", AnonymousUser()) == NO_LOGIN


async def test_a_person_who_is_not_staff_is_closed_out() -> None:
    user = await sync_to_async(User.objects.create_user)("client", password="x")
    assert await close_code("dashboard", user) == NO_LOGIN


async def test_staff_without_the_permission_may_not_follow_servers() -> None:
    user = await sync_to_async(User.objects.create_user)("member", password="x", is_staff=True)
    assert await close_code("servers", user) == FORBIDDEN


@pytest.mark.parametrize("topic", ["", "nothing", "server", "dashboard:1"])
async def test_an_unknown_topic_is_refused(topic: str, admin: User) -> None:
    assert await close_code(topic, admin) == NO_TOPIC


async def test_only_fragments_that_changed_are_sent(admin: User) -> None:
    server = await sync_to_async(make_server)(name="atlas")
    link = await follow("servers", admin)
    slots = [f"server:{server.pk}:status", f"server:{server.pk}:availability"]
    await link.send_json_to({"slots": slots})
    first = await link.receive_json_from(timeout=5)
    assert set(first) == set(slots)
    assert "online" in first[slots[0]]
    await sync_to_async(ServerState.objects.filter(server=server).update)(connected_since=None)
    second = await link.receive_json_from(timeout=5)
    assert set(second) == {slots[0]}
    assert "offline" in second[slots[0]]
    await link.disconnect()


async def test_a_page_gets_no_fragment_it_does_not_show(admin: User) -> None:
    await sync_to_async(make_server)()
    link = await follow("dashboard", admin)
    await link.send_json_to({"slots": ["dashboard:cards"]})
    assert set(await link.receive_json_from(timeout=5)) == {"dashboard:cards"}
    await link.disconnect()


async def test_nonsense_from_a_page_is_ignored(admin: User) -> None:
    link = await follow("dashboard", admin)
    await link.send_to(text_data="not json")
    await link.send_json_to({"slots": [1, None, "dashboard:cards"]})
    assert set(await link.receive_json_from(timeout=5)) == {"dashboard:cards"}
    await link.disconnect()


async def test_pages_of_one_topic_share_one_poller(admin: User) -> None:
    first, second = await follow("events", admin), await follow("events", admin)
    from monitoring.consumers import Poller

    assert sum(key[0] == "events" for key in Poller._all) == 1
    await first.disconnect()
    await second.disconnect()
    assert not any(key[0] == "events" for key in Poller._all)


async def test_a_deployment_that_is_gone_says_so(admin: User) -> None:
    row = await sync_to_async(make_deployment)()
    await sync_to_async(services.delete)(row, now=timezone.now())
    link = await follow(f"deployment:{row.pk}", admin)
    await link.send_json_to({"slots": ["deployment:head"]})
    assert "deleted" in (await link.receive_json_from(timeout=5))["deployment:head"]
    await link.disconnect()


async def test_a_model_says_when_it_is_to_be_read_again_and_when_it_is_gone(admin: User) -> None:
    row = await sync_to_async(make_model_version)(state="importing")
    link = await follow(f"model:{row.pk}", admin)
    await link.send_json_to({"slots": ["model:head", "list:digest"]})
    assert (await link.receive_json_from(timeout=5))["list:digest"] == "importing"
    await sync_to_async(ModelVersion.objects.filter(pk=row.pk).update)(state="ready")
    assert (await link.receive_json_from(timeout=5))["list:digest"] == "ready"
    await sync_to_async(row.delete)()
    assert "This version was deleted" in (await link.receive_json_from(timeout=5))["model:head"]
    await link.disconnect()


async def test_a_member_follows_only_keys_of_their_own_projects() -> None:
    def prepare() -> tuple[User, str, str]:
        from apikeys.services import set_member

        user = User.objects.create_user("maria", password="x", is_staff=True)
        mine, other = make_project(), make_project()
        set_member(mine, user)
        return user, make_key(project=mine)[0].pk, make_key(project=other)[0].pk

    user, mine, other = await sync_to_async(prepare)()
    link = await follow("keys", user)
    await link.send_json_to({"slots": [f"key:{mine}:status", f"key:{other}:status"]})
    assert set(await link.receive_json_from(timeout=5)) == {f"key:{mine}:status"}
    await link.disconnect()


async def test_a_page_is_closed_when_its_person_may_no_longer_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "RECHECK_POLLS", 1)

    def prepare() -> User:
        user = User.objects.create_user("looks", password="x", is_staff=True)
        user.groups.add(Group.objects.get(name="viewer"))
        return user

    user = await sync_to_async(prepare)()
    link = await follow("servers", user)
    await sync_to_async(user.groups.clear)()
    assert (await link.receive_output(timeout=5))["code"] == FORBIDDEN


async def test_a_page_is_closed_when_its_person_signs_out(monkeypatch: pytest.MonkeyPatch, admin: User) -> None:
    monkeypatch.setattr(consumers, "RECHECK_POLLS", 1)
    browser = Client()
    await sync_to_async(browser.force_login)(admin)
    link = WebsocketCommunicator(APPLICATION, "/ws/live?topic=keys")
    link.scope["user"], link.scope["session"] = admin, browser.session
    assert (await link.connect())[0]
    assert await link.receive_nothing(timeout=1.5)
    await sync_to_async(browser.logout)()
    assert (await link.receive_output(timeout=5))["code"] == FORBIDDEN


async def test_a_page_is_closed_too_when_its_session_is_the_lazy_one_of_channels(
    monkeypatch: pytest.MonkeyPatch, admin: User
) -> None:
    monkeypatch.setattr(consumers, "RECHECK_POLLS", 1)
    browser = Client()
    await sync_to_async(browser.force_login)(admin)
    link = WebsocketCommunicator(
        AuthMiddlewareStack(APPLICATION),
        "/ws/live?topic=keys",
        headers=[(b"cookie", browser.cookies.output(attrs=[], header="", sep=";").strip().encode())],
    )
    assert (await link.connect())[0]
    assert await link.receive_nothing(timeout=1.5)
    await sync_to_async(browser.logout)()
    assert (await link.receive_output(timeout=5))["code"] == FORBIDDEN


async def test_a_live_page_narrows_with_the_rights_of_its_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "RECHECK_POLLS", 1)

    def prepare() -> tuple[User, str]:
        user = User.objects.create_user("op", password="x", is_staff=True)
        user.groups.add(Group.objects.get(name="operator"))
        return user, make_key(project=make_project())[0].pk

    user, key = await sync_to_async(prepare)()
    link = await follow("keys", user)
    await link.send_json_to({"slots": [f"key:{key}:status"]})
    assert set(await link.receive_json_from(timeout=5)) == {f"key:{key}:status"}
    await sync_to_async(user.groups.clear)()
    await asyncio.sleep(1.5)
    await link.send_json_to({"slots": []})  # what it had is forgotten
    await link.send_json_to({"slots": [f"key:{key}:status"]})
    assert await link.receive_nothing(timeout=1.5)
    await link.disconnect()
