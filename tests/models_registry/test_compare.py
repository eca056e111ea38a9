"""Two versions side by side."""

import json

import pytest

from models_registry.compare import Change, Difference, compare
from models_registry.errors import NotReady
from models_registry.models import VersionState
from tests.factories import make_model_version
from tests.models_registry.factories import CONFIG, VALUES, make_version, write_gguf, write_safetensors

pytestmark = pytest.mark.django_db


def test_files_facts_configuration_and_template(tmp_path):
    one = write_safetensors(tmp_path / "1")
    (one / "notes.txt").write_text("old")
    (one / "chat_template.jinja").write_text("a\nb\n")
    rope = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    two = write_safetensors(tmp_path / "2", config={**CONFIG, "max_position_embeddings": 8192, **rope})
    (two / "extra.txt").write_text("new")
    (two / "chat_template.jinja").write_text("a\nc\n")
    found = compare(make_version(one), make_version(two))
    changes = {file.path: file.change for file in found.files}
    assert changes == {
        "chat_template.jinja": Change.CHANGED,
        "config.json": Change.CHANGED,
        "extra.txt": Change.ADDED,
        "model.safetensors": Change.SAME,
        "notes.txt": Change.REMOVED,
    }
    assert Difference("context_tokens", "4096", "8192") in found.facts
    assert [one.key for one in found.config] == [
        "max_position_embeddings",
        "rope_scaling.factor",
        "rope_scaling.rope_type",
    ]
    assert found.template == ("--- tiny:1", "+++ tiny:2", "@@ -1,2 +1,2 @@", " a", "-b", "+c")


def test_gguf_files_are_compared_by_their_own_values(tmp_path):
    more = {"llama.context_length": 4096, "tokenizer.chat_template": "new", "tokenizer.ggml.tokens": ["a", "b"]}
    one, two = write_gguf(tmp_path / "1"), write_gguf(tmp_path / "2", values={**VALUES, **more})
    found = compare(make_version(one), make_version(two))
    assert [(one.key, one.before, one.after) for one in found.config] == [
        ("llama.context_length", "2048", "4096"),
        ("tokenizer.ggml.tokens", '"3 long"', '"2 long"'),
    ]
    assert found.template[-2:] == ("-{{ messages }}", "+new")


def test_the_same_version_has_no_difference(tmp_path):
    version = make_version(write_gguf(tmp_path))
    found = compare(version, version)
    assert (found.facts, found.config, found.template) == ((), (), ())
    assert {file.change for file in found.files} == {Change.SAME}


def test_huge_values_and_templates_are_cut(tmp_path):
    one = write_safetensors(tmp_path / "1", config={**CONFIG, "many": list(range(10_000))})
    two = write_safetensors(tmp_path / "2", config={**CONFIG, **{f"k{n}": n for n in range(2000)}})
    (two / "chat_template.jinja").write_text("x\n" * 100_000)
    found = compare(make_version(one), make_version(two))
    assert len(found.config) == 500
    assert max(len(one.before) for one in found.config) <= 201
    assert "too long" in found.template[0]


def test_files_that_are_not_in_the_store_any_more_still_compare_by_their_rows():
    found = compare(make_model_version(), make_model_version(layers=12))
    assert Difference("layers", "30", "12") in found.facts


def test_only_what_is_ready_is_compared():
    with pytest.raises(NotReady):
        compare(make_model_version(), make_model_version(state=VersionState.IMPORTING))


def test_over_rest(admin_client, tmp_path):
    one, two = make_version(write_gguf(tmp_path)), make_version(write_safetensors(tmp_path / "2"))
    url = f"/api/v1/model-versions/{one.pk}/compare/"
    found = admin_client.get(f"{url}?with={two.pk}").json()
    assert {"key": "format", "before": "gguf", "after": "safetensors"} in found["facts"]
    assert found["files"][0]["change"] == "added"
    assert json.dumps(found)
    assert admin_client.get(url).status_code == 400
    assert admin_client.get(f"{url}?with=0").status_code == 400
