"""Who sees and changes what: the whole table of `apikeys.access`, and that the admin keeps to it."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apikeys import access, services
from apikeys.models import Membership, Project, ProjectRole
from tests.apikeys.factories import NOW, make_batch, make_key, make_project, make_row, make_user

pytestmark = pytest.mark.django_db

QUESTIONS = {
    "see project": lambda user, project: project in access.visible_projects(user),
    "see keys": lambda user, project: access.visible_keys(user).filter(project=project).exists(),
    "see usage": lambda user, project: project in access.projects_with_visible_usage(user),
    "make keys": lambda user, project: (
        access.may_change_keys(user, project, "add_apikey") and project in access.projects_to_make_keys_in(user)
    ),
    "change keys": lambda user, project: access.may_change_keys(user, project),
    "choose members": lambda user, project: access.may_change_members(user, project),
}
SEEN = {"see project", "see keys", "see usage"}
PEOPLE = {
    "superuser": (lambda: User.objects.create_superuser("root"), set(QUESTIONS), set(QUESTIONS)),
    "owner": (lambda: make_user(), set(QUESTIONS), set()),
    "member": (lambda: make_user(), SEEN, set()),
    "stranger": (lambda: make_user(), set(), set()),
    "staff stranger": (lambda: make_user(staff=True), set(), set()),
    "viewer": (lambda: make_user("view_project", "view_apikey", "view_usagehour", staff=True), SEEN, SEEN),
    "no staff any more": (lambda: make_user("view_apikey", "change_apikey", "change_project"), set(), set()),
    "sees keys only": (lambda: make_user("view_apikey", staff=True), {"see keys"}, {"see keys"}),
    "sees usage only": (lambda: make_user("view_usagehour", staff=True), {"see usage"}, {"see usage"}),
    "makes keys only": (lambda: make_user("add_apikey", staff=True), {"make keys"}, {"make keys"}),
    "revokes keys only": (lambda: make_user("change_apikey", staff=True), {"change keys"}, {"change keys"}),
    "changes projects": (lambda: make_user("change_project", staff=True), {"choose members"}, {"choose members"}),
}


def join(user: User, project: Project, who: str) -> None:
    if who in (ProjectRole.OWNER, ProjectRole.MEMBER):
        services.set_member(project, user, who)


@pytest.mark.parametrize("who", PEOPLE)
def test_everybody_may_do_just_what_the_table_says(who):
    make, in_own, elsewhere = PEOPLE[who]
    user, project, other = make(), make_key().project, make_key().project
    join(user, project, who)
    assert {what for what, asked in QUESTIONS.items() if asked(user, project)} == in_own
    assert {what for what, asked in QUESTIONS.items() if asked(user, other)} == elsewhere


def test_owners_and_members_see_their_own_keys_among_others():
    key, _ = make_key(), make_key()
    user = make_user()
    services.set_member(key.project, user, ProjectRole.OWNER)
    assert list(access.visible_keys(user)) == [key]
    assert list(access.projects_to_make_keys_in(user)) == [key.project]


def test_tokens_of_today_are_those_of_the_utc_day():
    from apikeys.usage import record_batch

    key = make_key()
    record_batch(make_batch(make_row(key), make_row(key, at=NOW.replace(day=4))), NOW)
    assert access.tokens_today([key.pk, "nobodyxx"], NOW) == {key.pk: 15}


# ------------------------------------------------------------------------------------------------ in the admin


def browser_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def test_a_person_who_may_make_keys_cannot_become_an_owner_in_the_admin():
    project = make_project()
    user = make_user("add_apikey", "view_project", staff=True)
    answer = browser_of(user).post(
        f"/admin/apikeys/project/{project.pk}/members/", {"user": user.pk, "role": ProjectRole.OWNER}
    )
    assert answer.status_code == 403
    assert not Membership.objects.exists()


def test_a_member_who_may_make_keys_cannot_revoke_those_of_others_in_the_admin():
    mine, other = make_key(), make_key()
    user = make_user("add_apikey", "view_apikey", staff=True)
    services.set_member(mine.project, user, ProjectRole.OWNER)
    browser = browser_of(user)
    assert browser.post(f"/admin/apikeys/apikey/{other.pk}/revoke/").status_code == 403
    assert browser.post(f"/admin/apikeys/apikey/{mine.pk}/revoke/").status_code == 302
    mine.refresh_from_db()
    other.refresh_from_db()
    assert mine.revoked_at
    assert other.revoked_at is None


def test_a_person_who_sees_keys_does_not_see_everybodys_usage_in_the_admin():
    from django.utils import timezone

    from apikeys.usage import record_batch

    mine, other = make_key(make_project("mine")), make_key(make_project("foreign"))
    now = timezone.now()
    record_batch(make_batch(make_row(mine, at=now), make_row(other, at=now)), now)
    user = make_user("view_apikey", staff=True)
    services.set_member(mine.project, user, ProjectRole.MEMBER)
    page = browser_of(user).get("/admin/apikeys/usagehour/?days=7&by=project&format=csv")
    text = b"".join(page.streaming_content).decode()
    assert "mine" in text
    assert "foreign" not in text
