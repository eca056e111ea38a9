"""The page of a version: what people see there, and do there."""

import pickle

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import Group, User
from django.urls import reverse

from models_registry import aliases
from models_registry.models import ModelAlias, ModelVersion
from tests.factories import make_deployment, make_model_version, make_server
from tests.models_registry.factories import NOW, VALUES, make_version, write_gguf

pytestmark = pytest.mark.django_db


def url(verb: str, *args) -> str:
    return reverse(f"admin:models_registry_modelversion_{verb}", args=args)


@pytest.fixture
def version(tmp_path) -> ModelVersion:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.bin").write_bytes(pickle.dumps(write_gguf))
    return make_version(write_gguf(folder, values={**VALUES, "general.license": "mit"}).parent, by="ann")


def text(client, address: str) -> str:
    answer = client.get(address, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_page_tells_all_of_it(admin_client, version):
    make_server()
    page = text(admin_client, url("change", version.pk))
    for words in (
        "6.1 k, F16, 2 k context, 0.0 MB; fits on 1 of 1 server",
        "by ann",
        "mit",
        "Files of it can run code",
        "tests.models_registry.factories.write_gguf",
        "follows the newest",
        "2 of F16",
    ):
        assert words in page


def test_notes_and_tags_are_saved_and_looked_for(admin_client, version):
    said = {"notes": "Works well.", "tags": "prod, eu", "model_notes": "For chats.", "model_tags": "small"}
    admin_client.post(url("notes", version.pk), said)
    version = ModelVersion.objects.get()
    assert (version.notes, version.tags) == ("Works well.", " eu prod ")
    assert (version.model.notes, version.model.tags) == ("For chats.", " small ")
    make_model_version(name="untagged-one")
    listed = text(admin_client, f"{url('changelist')}?tag=eu")
    assert "tiny" in listed
    assert "untagged-one" not in listed
    assert "is not a tag" in admin_client.post(url("notes", version.pk), {"tags": "ä"}, follow=True).content.decode()


def test_aliases_are_pointed_moved_pinned_released_and_deleted(admin_client, version):
    other = make_model_version(name="tiny", version="9")
    admin_client.post(url("alias", other.pk), {"name": "prod"})
    admin_client.post(url("alias", version.pk), {"name": "prod"})
    alias = ModelAlias.objects.get(name="prod")
    assert (alias.version, alias.moved_by) == (version, "admin")
    assert "History" in text(admin_client, url("change", version.pk))
    admin_client.post(url("alias", version.pk), {"name": "latest"})
    latest = ModelAlias.objects.get(name="latest")
    assert latest.pinned
    admin_client.post(url("alias_release", version.pk, latest.pk))
    latest.refresh_from_db()
    assert (latest.pinned, latest.version) == (False, other)
    admin_client.post(url("alias_delete", version.pk, alias.pk))
    assert not ModelAlias.objects.filter(name="prod").exists()
    assert admin_client.get(url("alias_delete", version.pk, alias.pk)).status_code == 404


def test_an_alias_shows_who_follows_it(admin_client, version):
    alias = aliases.set_alias(version, "prod", by="", now=NOW)
    deployment = make_deployment(name="chat-that-follows", model_version=version, alias=alias)
    assert "chat-that-follows" in text(admin_client, url("change", version.pk))
    page = text(admin_client, reverse("admin:deployments_deployment_change", args=[deployment.pk]))
    assert "Follows tiny@prod" in page
    assert "follows prod" in text(admin_client, reverse("admin:deployments_deployment_changelist"))


def test_a_licence_is_accepted(admin_client, version):
    ModelVersion.objects.update(gated=True)
    assert "must be accepted" in text(admin_client, url("change", version.pk))
    assert "Licence: mit" in text(admin_client, url("accept", version.pk))
    admin_client.post(url("accept", version.pk))
    assert "Accepted by admin" in text(admin_client, url("change", version.pk))


def test_who_accepts_a_licence_can_read_it_first(admin_client, tmp_path):
    folder = write_gguf(tmp_path / "m").parent
    (folder / "LICENSE").write_bytes(b"You may not <b>shout</b>.\0\xff")
    (folder / "sub").mkdir()
    (folder / "sub" / "USE_POLICY.md").write_text("Be kind.")
    version = make_version(folder)
    ModelVersion.objects.update(gated=True, source="hf://org/name@0123abc")
    page = text(admin_client, url("accept", version.pk))
    assert "You may not &lt;b&gt;shout&lt;/b&gt;." in page
    assert "Be kind." in page
    assert 'href="http://127.0.0.1:9/org/name/tree/0123abc"' in page


def test_of_very_many_files_the_page_shows_the_first_and_those_that_matter(admin_client, tmp_path):
    folder = write_gguf(tmp_path / "m").parent
    for number in range(320):
        (folder / f"{number:03}.txt").write_text(str(number))
    (folder / "zzz.py").write_text("print()")
    version = make_version(folder)
    page = text(admin_client, url("change", version.pk))
    assert "zzz.py" in page
    assert "319.txt" not in page
    assert "and 22 more" in page


def test_files_that_run_code_are_allowed_and_forbidden(admin_client, version):
    assert "can then run any program" in text(admin_client, url("allow", version.pk))
    admin_client.post(url("allow", version.pk))
    assert "admin allowed it" in text(admin_client, url("change", version.pk))
    admin_client.post(url("forbid", version.pk))
    version.refresh_from_db()
    assert version.pickle_allowed_at is None


def test_versions_are_compared_on_a_page(admin_client, version, tmp_path):
    values = {**VALUES, "llama.context_length": 4096, "tokenizer.chat_template": "{{ new }}"}
    other = make_version(write_gguf(tmp_path / "2", values=values))
    assert f'value="{other.pk}"' in text(admin_client, url("change", version.pk))
    page = text(admin_client, f"{url('compare', version.pk)}?with={other.pk}")
    for words in ("llama.context_length", "evil.bin", "removed", "+{{ new }}"):
        assert words in page
    assert admin_client.get(url("compare", version.pk)).status_code == 404


def test_what_people_do_is_audited(admin_client, version):
    ModelVersion.objects.update(gated=True)
    for verb in ("accept", "allow"):
        admin_client.post(url(verb, version.pk))
    admin_client.post(url("alias", version.pk), {"name": "prod"})
    entries = LogEntry.objects.filter(actor__username="admin")
    changed = {name for entry in entries for name in entry.changes_dict}
    assert {"license_accepted_by", "pickle_allowed_by", "moved_by"} <= changed


def test_a_viewer_sees_and_changes_nothing(client, version):
    user = User.objects.create_user("viewer", is_staff=True)
    user.groups.add(Group.objects.get(name="viewer"))
    client.force_login(user)
    page = text(client, url("change", version.pk))
    for verb in ("notes", "alias", "accept", "allow", "forbid"):
        assert client.post(url(verb, version.pk), {"name": "prod"}).status_code == 403
        assert url(verb, version.pk) not in page


def test_who_deletes_what_is_being_imported_is_told_to_cancel(admin_client):
    version = make_model_version(state="importing")
    told = admin_client.post(url("delete_page", version.pk), follow=True).content.decode()
    assert "Cancel the import, or wait until it is done" in told
