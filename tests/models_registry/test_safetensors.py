"""Reading safetensors headers and the configuration beside them."""

import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_registry.errors import DamagedModel
from models_registry.inspect import inspect
from tests.models_registry.factories import CONFIG, safetensors_bytes, write_safetensors

WHOLE = safetensors_bytes({"w": ("F32", [8, 8], 256), "b": ("F32", [8], 32)})


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_all_shards_and_the_configuration_count(tmp_path):
    write_safetensors(tmp_path, shards=3)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    facts = inspect(tmp_path, names(tmp_path))
    assert (facts.format, facts.architecture, facts.quantization) == ("safetensors", "LlamaForCausalLM", "BF16")
    assert facts.parameter_count == 3 * 64 * 64
    assert facts.tensor_bytes == 2 * facts.parameter_count
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (2, 4, 2, 16)
    assert facts.context_tokens == 4096
    assert facts.chat_template
    assert facts.entry == ""


def test_a_missing_shard_is_named(tmp_path):
    write_safetensors(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DamagedModel, match=r"1 files of the model are missing, model-00002"):
        inspect(tmp_path, names(tmp_path))


def test_a_shard_that_only_the_index_names_is_missed_too(tmp_path):
    write_safetensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "other.safetensors"}}')
    with pytest.raises(DamagedModel, match=r"other\.safetensors"):
        inspect(tmp_path, names(tmp_path))


def test_packed_weights_are_counted_unpacked(tmp_path):
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    write_safetensors(tmp_path, config=config)
    tensors = {
        "q.qweight": ("I32", [8, 64], 8 * 64 * 4),
        "q.scales": ("F16", [64], 128),
        "embed.weight": ("F16", [64], 128),
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    facts = inspect(tmp_path, names(tmp_path))
    assert facts.parameter_count == 8 * 64 * 8 + 64
    assert facts.quantization == "gptq-4bit"


def test_a_multimodal_configuration_keeps_the_language_part_inside(tmp_path):
    write_safetensors(tmp_path, config={"architectures": ["Llava"], "text_config": CONFIG})
    facts = inspect(tmp_path, names(tmp_path))
    assert (facts.architecture, facts.layers) == ("Llava", 2)


def test_without_a_configuration_the_tensors_still_count(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(WHOLE)
    facts = inspect(tmp_path, ["w.safetensors"])
    assert (facts.parameter_count, facts.architecture, facts.layers) == (72, "", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends within its header"),
        (struct.pack("<Q", 2**62) + b"{}", "ends within its header"),
        (WHOLE[:-1], "ends before its tensor"),
        (WHOLE[:40], "ends within its header"),
        (struct.pack("<Q", 2) + b"[]", "cannot be read"),
        (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
        (safetensors_bytes({"w": ("F32", [8, 9], 256)}), "shape and size differ"),
        (safetensors_bytes({"w": ("F32", [2**60], 256)}), "impossible tensor"),
    ],
)
def test_a_damaged_file_gets_a_clear_error(tmp_path, content, words):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(DamagedModel, match=words):
        inspect(tmp_path, ["bad.safetensors"])


def test_a_configuration_that_is_no_json_is_damaged(tmp_path):
    write_safetensors(tmp_path)
    (tmp_path / "config.json").write_text("<html>")
    with pytest.raises(DamagedModel, match=r"config\.json cannot be read"):
        inspect(tmp_path, names(tmp_path))


def test_odd_values_in_the_configuration_are_left_out(tmp_path):
    odd = {"architectures": 5, "num_hidden_layers": "two", "num_attention_heads": True, "hidden_size": -4}
    write_safetensors(tmp_path, config=odd | {"quantization_config": "none", "text_config": []})
    facts = inspect(tmp_path, names(tmp_path))
    assert (facts.layers, facts.heads, facts.hidden_size) == (None, None, None)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=6),
    length=st.integers(0, len(WHOLE)),
)
def test_flipped_and_cut_bytes_end_in_facts_or_in_a_clear_error(tmp_path, flips, length):
    content = bytearray(WHOLE)
    for at, byte in flips:
        content[at] = byte
    (tmp_path / "fuzz.safetensors").write_bytes(bytes(content[:length]))
    try:
        facts = inspect(tmp_path, ["fuzz.safetensors"])
    except DamagedModel as error:
        assert error.message  # noqa: PT017 - either outcome is fine
    else:
        json.dumps(facts.more)
