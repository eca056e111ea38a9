"""`manage.py deploy`: makes or updates a deployment, and waits for it."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from deployments import services
from deployments.models import Deployment
from models_registry.models import Model, ModelVersion, VersionState
from tests.factories import make_instance, make_model_version, make_server

pytestmark = pytest.mark.django_db
NOW = timezone.now()


@pytest.fixture
def version() -> ModelVersion:
    return make_model_version(name="smol", version="v1")


def deploy(*arguments: str) -> str:
    out = StringIO()
    call_command("deploy", *arguments, stdout=out)
    return out.getvalue()


def test_it_deploys_the_newest_ready_version(version: ModelVersion) -> None:
    make_model_version(name="smol", version="v2", state=VersionState.IMPORTING)
    told = deploy("chat", "smol", "--replicas", "2", "--param", "parallel=2", "--param", "jinja=no")
    assert told == "chat: revision 1, 2 replicas\n"
    revision = Deployment.objects.get(name="chat").revision
    assert revision.model_version == version
    assert revision.parameters == {"parallel": 2, "jinja": False}
    assert revision.created_by == "command line"


def test_the_same_name_again_updates_it_and_the_same_fields_change_nothing(version: ModelVersion) -> None:
    deploy("chat", "smol:v1")
    assert deploy("chat", "smol:v1") == "chat: revision 1, 1 replica\n"
    assert deploy("chat", "smol:v1", "--param", "parallel=2") == "chat: revision 2, 1 replica\n"


def test_a_stopped_deployment_runs_again(version: ModelVersion) -> None:
    deploy("chat", "smol")
    services.stop(Deployment.objects.get(), now=NOW)
    deploy("chat", "smol")
    assert Deployment.objects.get().running


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("chat", "none"), "There is no model version 'none'"),
        (("chat", "smol:v9"), "There is no model version 'smol:v9'"),
        (("chat", "smol:late"), "not ready Wait until its import is done"),
        (("no name", "smol"), "name: Letters, digits"),
        (("chat", "smol", "--replicas", "-1"), "replicas: must be a whole number"),
        (("chat", "smol", "--engine", "vlm"), "there is no engine 'vlm'"),
        (("chat", "smol", "--param", "parallel"), "--param wants NAME=VALUE"),
        (("chat", "smol", "--param", "parallel=two"), "parallel: must be a whole number, not 'two'"),
        (("chat", "smol", "--param", "heat=1"), "heat: is not a parameter of llamacpp"),
        (("chat", "smol", "--param", "parallel=0"), "parallel: must be at least 1"),
    ],
)
def test_a_mistake_gets_one_sentence_and_changes_nothing(
    version: ModelVersion, arguments: tuple[str, ...], told: str
) -> None:
    late = make_model_version(name="smol", version="late", state=VersionState.IMPORTING)
    assert late.model == Model.objects.get()
    with pytest.raises(CommandError) as caught:
        deploy(*arguments)
    assert told in str(caught.value)
    assert not Deployment.objects.exists()


def test_waiting_ends_when_it_is_ready(version: ModelVersion) -> None:
    deployment = services.create_deployment(name="chat", model_version=version, now=NOW)
    make_instance(deployment=deployment, server=make_server(now=NOW), now=NOW)
    assert deploy("chat", "smol", "--wait", "5").endswith("chat: ready\n")


def test_waiting_in_vain_says_how_far_it_came(version: ModelVersion) -> None:
    with pytest.raises(CommandError, match=r"chat is starting after 0\.1 s: waiting for the controller to place it"):
        deploy("chat", "smol", "--wait", "0.1")
