"""Projects and keys: what is kept, what is refused, what gateways are told."""

import datetime as dt
import hashlib
import hmac
import re

import pytest
from auditlog.models import LogEntry
from django.core.management import CommandError, call_command

from apikeys import services, usage
from apikeys.errors import (
    InvalidExpiry,
    InvalidLimits,
    InvalidModels,
    InvalidName,
    KeyRevoked,
    NameTaken,
    ProjectInUse,
    ProjectOff,
)
from apikeys.models import ApiKey, Project, ProjectRole
from apikeys.signals import keys_changed
from apikeys.snippets import snippets
from tests.apikeys.factories import HOUR, NOW, make_batch, make_key, make_project, make_row, make_user
from wire.feed import Limits

pytestmark = pytest.mark.django_db


@pytest.fixture
def hints():
    """Hints that were sent; each is one entry."""
    sent: list[bool] = []

    def note(**_: object) -> None:
        sent.append(True)

    keys_changed.connect(note)
    yield sent
    keys_changed.disconnect(note)


def test_a_key_is_shown_once_and_kept_as_a_keyed_hash(settings):
    key, text = services.create_key(project=make_project(), name="app", actor="ann", now=NOW)
    assert re.fullmatch(r"sk-stk-[a-z0-9]{8}-[A-Za-z0-9]{43}", text)
    assert text.startswith(f"{key.prefix}-")
    pepper = bytes.fromhex(settings.KEY_PEPPER)
    assert key.secret_hash == hmac.new(pepper, text.encode(), hashlib.sha256).hexdigest()
    secret = text.rpartition("-")[2]
    kept = ApiKey.objects.filter(pk=key.pk).values().get()
    assert not any(secret in str(value) for value in kept.values())
    assert not any(secret in str(entry.changes) for entry in LogEntry.objects.all())
    assert kept["created_by"] == "ann"


def test_keys_and_their_secrets_never_repeat():
    project = make_project()
    texts = {services.create_key(project=project, name="k", now=NOW)[1] for _ in range(50)}
    assert len(texts) == 50


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\nb"])
def test_a_name_must_be_readable(name):
    with pytest.raises(InvalidName):
        make_project(name or " ")
    with pytest.raises(InvalidName):
        make_key(name=name)


def test_a_project_name_is_given_once():
    make_project("team")
    with pytest.raises(NameTaken, match="'team' already") as caught:
        make_project("team")
    assert caught.value.status == 409
    other = make_project("other")
    with pytest.raises(NameTaken):
        services.update_project(other, name="team")


@pytest.mark.parametrize(
    "limits",
    [
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"parallel_requests": 2**31},
        {"tokens_per_day": 1.5},
        {"tokens_per_month": True},
        {"tokens_per_month": "many"},
    ],
)
def test_a_limit_is_a_whole_number_from_one(limits):
    with pytest.raises(InvalidLimits, match=next(iter(limits))):
        make_key(**limits)
    with pytest.raises(InvalidLimits):
        make_project(**limits)
    with pytest.raises(InvalidLimits):
        services.update_key(make_key(), now=NOW, **limits)


@pytest.mark.parametrize("expires_at", [NOW, NOW - dt.timedelta(days=1), dt.datetime(2030, 1, 1)])
def test_an_expiry_lies_ahead_and_has_a_time_zone(expires_at):
    with pytest.raises(InvalidExpiry):
        make_key(expires_at=expires_at)
    with pytest.raises(InvalidExpiry):
        services.update_key(make_key(), now=NOW, expires_at=expires_at)


@pytest.mark.parametrize("models", [[""], ["x" * 121], [5], "chat", ["a"] + [""] * 2])
def test_allowed_models_are_names(models):
    with pytest.raises(InvalidModels):
        make_key(allowed_models=models)


def test_an_empty_list_of_models_allows_all():
    assert make_key(allowed_models=[]).allowed_models is None
    assert make_key(allowed_models=["a", " a ", "b"]).allowed_models == ["a", "b"]


def test_a_project_that_is_off_gets_no_new_key():
    with pytest.raises(ProjectOff):
        make_key(make_project(active=False))


def test_a_key_can_be_changed_until_it_is_revoked():
    key = make_key(expires_at=NOW + dt.timedelta(hours=1))
    later = NOW + dt.timedelta(hours=2)
    services.update_key(key, now=later, name="renamed", expires_at=key.expires_at)  # passed, but unchanged
    services.update_key(key, now=later, allowed_models=["chat"], expires_at=None, tokens_per_day=5)
    key.refresh_from_db()
    assert (key.name, key.allowed_models, key.expires_at, key.tokens_per_day) == ("renamed", ["chat"], None, 5)
    services.revoke_key(key, later)
    with pytest.raises(KeyRevoked):
        services.update_key(key, now=later, name="again")


def test_revoking_twice_keeps_the_first_moment():
    key = make_key()
    services.revoke_key(key, NOW)
    services.revoke_key(key, NOW + dt.timedelta(days=1))
    assert ApiKey.objects.get().revoked_at == NOW


def test_every_change_sends_one_hint_after_commit(hints, django_capture_on_commit_callbacks):
    def hints_of(change):
        hints.clear()
        with django_capture_on_commit_callbacks(execute=True):
            result = change()
            assert hints == []
        return result, len(hints)

    project, count = hints_of(lambda: make_project("p"))
    assert count == 1
    key, count = hints_of(lambda: make_key(project))
    assert count == 1
    for change in (
        lambda: services.update_project(project, active=False),
        lambda: services.update_key(key, now=NOW, name="x"),
        lambda: services.revoke_key(key, NOW),
        lambda: services.delete_project(project),
    ):
        assert hints_of(change)[1] == 1


def test_a_project_with_usage_is_switched_off_not_deleted():
    key = make_key()
    usage.record_batch(make_batch(make_row(key)), NOW)
    with pytest.raises(ProjectInUse):
        services.delete_project(key.project)
    services.delete_project(make_project("unused"))
    assert Project.objects.get() == key.project


def test_a_person_has_one_role_in_a_project():
    project, user = make_project(), make_user()
    services.set_member(project, user)
    membership = services.set_member(project, user, ProjectRole.OWNER)
    assert [(row.user, row.role) for row in project.memberships.all()] == [(user, "owner")]
    services.remove_member(membership)
    assert not project.memberships.exists()


def test_gateways_are_told_of_every_project_and_key_with_what_was_used():
    project = make_project("team", tokens_per_day=1000)
    key = make_key(project, allowed_models=["chat"], expires_at=NOW + dt.timedelta(days=1), parallel_requests=2)
    revoked = services.revoke_key(make_key(project), NOW)
    usage.record_batch(
        make_batch(
            make_row(key),
            make_row(revoked, prompt_tokens=100),
            make_row(key, at=HOUR - dt.timedelta(days=2)),
            make_row(key, at=HOUR - dt.timedelta(days=40)),
        ),
        NOW,
    )
    (told_project,) = services.feed_projects(NOW)
    assert (told_project.id, told_project.name, told_project.active) == (str(project.pk), "team", True)
    assert told_project.limits == Limits(tokens_per_day=1000)
    assert (told_project.used.tokens_today, told_project.used.tokens_this_month) == (120, 135)
    told = {feed.id: feed for feed in services.feed_keys(NOW)}
    assert told[key.id].models == ("chat",)
    assert told[key.id].secret_hash == key.secret_hash
    assert told[key.id].expires_at == (NOW + dt.timedelta(days=1)).timestamp()
    assert told[key.id].limits == Limits(parallel_requests=2)
    assert (told[key.id].used.tokens_today, told[key.id].used.tokens_this_month) == (15, 30)
    assert (told[key.id].active, told[revoked.id].active) == (True, False)
    assert told[revoked.id].models is None


def test_the_feed_costs_a_constant_number_of_queries(django_assert_num_queries):
    for _ in range(5):
        make_key()
    with django_assert_num_queries(2):
        services.feed_keys(NOW)
    services.set_model_quota(make_project(), "chat", tokens_per_day=1)
    with django_assert_num_queries(3):
        services.feed_projects(NOW)


def test_snippets_hold_the_key_and_a_model_it_may_use(settings):
    key, text = services.create_key(project=make_project(), name="k", allowed_models=["chat"], now=NOW)
    shown = snippets(key, text)
    for part in (shown.curl, shown.python):
        assert text in part
        assert settings.GATEWAY_BASE_URL in part
        assert '"chat"' in part
    compile(shown.python, "snippet", "exec")


def test_the_command_prints_a_key_of_a_new_project(capsys):
    call_command("create_key", "--project", "demo", "--name", "first", "--model", "chat")
    text = capsys.readouterr().out.strip()
    key = ApiKey.objects.get()
    assert services.hash_key(text) == key.secret_hash
    assert (key.project.name, key.allowed_models) == ("demo", ["chat"])
    call_command("create_key", "--project", "demo", "--name", "second")
    assert Project.objects.count() == 1
    with pytest.raises(CommandError, match="1 to 80"):
        call_command("create_key", "--project", "demo", "--name", " ")


@pytest.mark.django_db
def test_a_change_of_a_project_takes_nothing_back_that_another_made_meanwhile() -> None:
    project = services.create_project("support")
    stale = type(project).objects.get(pk=project.pk)
    services.update_project(project, active=False, tokens_per_day=100)
    services.update_project(stale, description="Answers.")
    project.refresh_from_db()
    assert (project.active, project.tokens_per_day, project.description) == (False, 100, "Answers.")
