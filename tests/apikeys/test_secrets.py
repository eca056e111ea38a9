"""The secret of a key is shown once and is nowhere else."""

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from apikeys import services
from apikeys.models import ApiKey, Project
from apikeys.signals import keys_changed
from tests.apikeys.factories import NOW, client_of, make_admin, make_project

pytestmark = pytest.mark.django_db


def everything_kept() -> str:
    with connection.cursor() as cursor:
        rows = []
        for table in connection.introspection.table_names():
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            rows.append(repr(cursor.fetchall()))
    return "".join(rows)


def test_the_secret_is_in_no_table_and_in_no_log(capfd, caplog):
    key, text = services.create_key(project=make_project(), name="once", now=NOW)
    services.update_key(key, now=NOW, name="twice")
    services.revoke_key(key, NOW)
    kept, said = everything_kept(), caplog.text + "".join(capfd.readouterr())
    secret = text.rpartition("-")[2]
    assert key.pk in kept
    assert key.pk in said
    assert secret not in kept
    assert secret not in said
    assert key.secret_hash not in said


@pytest.mark.urls("tests.apikeys.urls")
def test_the_answer_with_a_new_key_is_kept_by_no_cache():
    body = {"project": str(make_project().pk), "name": "app"}
    answer = client_of(make_admin()).post("/api/v1/keys/", body)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json()["key"].rpartition("-")[2] not in everything_kept()


def test_nobody_is_told_of_a_key_that_was_rolled_back(transactional_db):
    told: list[object] = []

    def note(sender: object, **_: object) -> None:
        told.append(sender)

    def break_off() -> None:
        with transaction.atomic():
            services.create_key(project=project, name="x", now=NOW)
            raise RuntimeError

    project = make_project()
    keys_changed.connect(note)
    try:
        with pytest.raises(RuntimeError):
            break_off()
        assert told == []
        services.create_key(project=project, name="x", now=NOW)
        assert told == [None]
    finally:
        keys_changed.disconnect(note)
    assert ApiKey.objects.count() == 1


def test_a_refused_key_of_the_command_leaves_no_project_behind():
    with pytest.raises(CommandError, match="1 to 80"):
        call_command("create_key", "--project", "team", "--name", " ")
    assert not Project.objects.exists()
