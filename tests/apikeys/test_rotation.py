"""A key gets a new secret without a moment in which none is good."""

import datetime as dt
import io

import pytest
from django.core.management import CommandError, call_command

from apikeys import services
from apikeys.errors import InvalidExpiry, KeyRevoked
from apikeys.models import ApiKey
from tests.apikeys.factories import NOW, client_of, make_admin, make_key, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.apikeys.urls")]
HOUR = dt.timedelta(hours=1)


def test_both_secrets_are_fed_until_the_overlap_ends():
    key = make_key(tokens_per_day=5)
    old = key.secret_hash
    text = services.rotate_key(key, overlap=HOUR, now=NOW)
    (told,) = services.feed_keys(NOW)
    assert text.startswith(f"sk-stk-{key.pk}-")
    assert told.secret_hash == services.hash_key(text) != old
    assert (told.previous_hash, told.previous_until) == (old, (NOW + HOUR).timestamp())
    assert told.limits.tokens_per_day == 5


def test_a_second_rotation_ends_the_first_secret_at_once():
    key = make_key()
    first = key.secret_hash
    second = services.hash_key(services.rotate_key(key, overlap=HOUR, now=NOW))
    services.rotate_key(key, overlap=HOUR, now=NOW)
    (told,) = services.feed_keys(NOW)
    assert told.previous_hash == second != first


def test_without_an_overlap_only_the_new_one_is_good():
    key = make_key()
    services.rotate_key(key, overlap=dt.timedelta(), now=NOW)
    (told,) = services.feed_keys(NOW)
    assert (told.previous_hash, told.previous_until) == ("", 0.0)


def test_revoking_ends_both():
    key = make_key()
    services.rotate_key(key, overlap=HOUR, now=NOW)
    services.revoke_key(key, NOW)
    (told,) = services.feed_keys(NOW)
    assert (told.active, told.previous_hash) == (False, "")
    with pytest.raises(KeyRevoked):
        services.rotate_key(key, overlap=HOUR, now=NOW)


@pytest.mark.parametrize("overlap", [dt.timedelta(seconds=-1), dt.timedelta(days=31)])
def test_an_overlap_without_sense_is_refused(overlap):
    with pytest.raises(InvalidExpiry):
        services.rotate_key(make_key(), overlap=overlap, now=NOW)


def test_the_api_shows_the_new_secret_once_to_whoever_may_change_the_key():
    key, admin = make_key(), client_of(make_admin())
    url = f"/api/v1/keys/{key.pk}/"
    answer = admin.post(f"{url}rotate/", {"overlap_s": 60})
    assert answer.status_code == 200
    assert services.hash_key(answer.json()["key"]) == ApiKey.objects.get().secret_hash
    assert answer.headers["Cache-Control"] == "no-store"
    shown = admin.get(url).json()
    assert "key" not in shown
    assert shown["rotated_at"]
    assert shown["previous_until"]
    assert admin.post(f"{url}rotate/", {"overlap_s": -1}).status_code == 400
    member = make_user()
    services.set_member(key.project, member)
    assert client_of(member).post(f"{url}rotate/", {}).status_code == 403


def test_the_command_prints_the_new_secret():
    key, out = make_key(), io.StringIO()
    call_command("rotate_key", key.pk, "--overlap-s", "0", stdout=out)
    assert services.hash_key(out.getvalue().strip()) == ApiKey.objects.get().secret_hash
    with pytest.raises(CommandError, match="no key"):
        call_command("rotate_key", "nothere1", stdout=out)
