"""A version in one line, with the servers that have room for it."""

from __future__ import annotations

import pytest
from django.utils import timezone

from models_registry import words
from models_registry.models import ModelVersion, VersionState
from tests.factories import GIB, make_facts, make_load, make_model_version, make_server

pytestmark = pytest.mark.django_db


def line(version: ModelVersion) -> str:
    return words.sentences([version], timezone.now())[version.pk]


def test_a_model_in_words_with_the_servers_it_fits_on() -> None:
    make_server(), make_server()
    make_server(facts=make_facts(memory_bytes=GIB), load=make_load(memory_available_bytes=GIB // 4))
    make_server(online=False)
    version = make_model_version(
        size_bytes=4_900_000_000, parameter_count=8_030_000_000, quantization="Q4_K_M", context_tokens=131072
    )
    assert line(version) == "8.0 B, Q4_K_M, 128 k context, 4.9 GB; fits on 2 of 4 servers"


def test_experts_and_senses_are_told() -> None:
    version = make_model_version(
        parameter_count=30_500_000_000, active_parameter_count=3_300_000_000, modality="text image", size_bytes=10**7
    )
    assert line(version) == "30.5 B (3.3 B active), Q4_1, 8 k context, 10.0 MB, text + image; no server yet"


def test_what_no_engine_runs_says_so() -> None:
    make_server()
    assert line(make_model_version(format="other", quantization="")).endswith("no engine here runs it")


def test_what_is_not_ready_has_no_words() -> None:
    assert line(make_model_version(state=VersionState.IMPORTING)) == ""


def test_many_versions_cost_as_many_queries_as_one(django_assert_max_num_queries) -> None:
    make_server()
    for _ in range(5):
        make_model_version()
    rows = list(ModelVersion.objects.select_related("model").defer("manifest", "metadata"))
    with django_assert_max_num_queries(3):
        assert len(words.sentences(rows, timezone.now())) == 5


def test_rest_tells_it(admin_client) -> None:
    make_server()
    version = make_model_version()
    listed = admin_client.get("/api/v1/model-versions/").json()["results"][0]["words"]
    assert listed.endswith("fits on 1 of 1 server")
    assert admin_client.get(f"/api/v1/model-versions/{version.pk}/").json()["words"] == listed
