"""What headers and configuration say beyond sizes: experts, senses, tools, adapters, stretched context."""

import json

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from models_registry.inspect import inspect
from models_registry.models import ModelVersion
from tests.models_registry.factories import (
    CONFIG,
    VALUES,
    demo_model,
    make_version,
    safetensors_bytes,
    write_gguf,
    write_safetensors,
)


def gguf(folder, more, **fields):
    write_gguf(folder, values={**VALUES, **more}, **fields)
    return inspect(folder, ["tiny.gguf"])


def hf(folder, more, **files):
    write_safetensors(folder, config={**CONFIG, **more})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return inspect(folder, ["model.safetensors"])


def test_of_experts_only_the_share_that_is_used_is_active(tmp_path):
    tensors = (("blk.0.attn_q.weight", (64, 64), 1), ("blk.0.ffn_up_exps.weight", (64, 64, 8), 1))
    facts = gguf(tmp_path, {"llama.expert_count": 8, "llama.expert_used_count": 2}, tensors=tensors)
    assert (facts.parameter_count, facts.active_parameter_count) == (9 * 4096, 3 * 4096)
    assert facts.types == {"F16": {"tensors": 2, "bytes": 9 * 4096 * 2}}
    assert gguf(tmp_path, {}).active_parameter_count is None


def test_experts_of_transformers_count_but_not_the_shared_ones(tmp_path):
    write_safetensors(tmp_path, config={**CONFIG, "n_routed_experts": 4, "num_experts_per_tok": 1})
    names = [f"layers.0.mlp.experts.{number}.up.weight" for number in range(4)]
    names += ["layers.0.mlp.shared_experts.up.weight", "layers.0.attn.weight"]
    content = safetensors_bytes({name: ("BF16", [10, 10], 200) for name in names})
    (tmp_path / "model.safetensors").write_bytes(content)
    facts = inspect(tmp_path, ["model.safetensors"])
    assert (facts.parameter_count, facts.active_parameter_count) == (600, 300)
    assert facts.more["experts_used"] == 1


def test_weights_packed_two_in_a_byte_count_as_two(tmp_path):
    write_safetensors(tmp_path, config={**CONFIG, "quantization_config": {"quant_method": "mxfp4"}})
    tensors = {"experts.up_blocks": ("U8", [64], 64), "experts.up_scales": ("U8", [4], 4), "norm": ("BF16", [8], 16)}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    assert inspect(tmp_path, ["model.safetensors"]).parameter_count == 136


@pytest.mark.parametrize(
    ("values", "modality"),
    [
        ({}, "text"),
        ({"llama.pooling_type": 1}, "embedding"),
        ({"llama.pooling_type": 4}, "reranker"),
        ({"general.architecture": "bert"}, "embedding"),
    ],
)
def test_what_a_gguf_is_for(tmp_path, values, modality):
    assert gguf(tmp_path, values).modality == modality


def test_a_projector_gives_a_model_eyes_or_ears(tmp_path):
    write_gguf(tmp_path, "tiny.gguf")
    for more, modality in (({}, "text image"), ({"clip.has_audio_encoder": True}, "text audio")):
        write_gguf(tmp_path, "mmproj-tiny.gguf", values={**VALUES, "general.architecture": "clip", **more})
        assert inspect(tmp_path, ["tiny.gguf", "mmproj-tiny.gguf"]).modality == modality


@pytest.mark.parametrize(
    ("config", "modality"),
    [
        ({}, "text"),
        ({"vision_config": {"a": 1}, "audio_config": {"a": 1}}, "text image audio"),
        ({"architectures": ["Qwen2Model"]}, "embedding"),
        ({"architectures": ["GPT2LMHeadModel"]}, "text"),
        ({"architectures": ["BertForSequenceClassification"]}, "reranker"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}, "text"),
        ({"architectures": ["WhisperForConditionalGeneration"]}, "audio"),
    ],
)
def test_what_a_transformers_model_is_for(tmp_path, config, modality):
    assert hf(tmp_path, config).modality == modality


def test_sentence_transformers_are_for_embeddings(tmp_path):
    assert hf(tmp_path, {}, modules=[]).modality == "embedding"


def test_tools_are_seen_in_the_chat_template(tmp_path):
    assert gguf(tmp_path, {"tokenizer.chat_template": "{% if tools %}" + "x" * 9000}).more["tools"] is True
    assert gguf(tmp_path, {}).more["tools"] is False
    templates = [{"name": "rag", "template": "x"}, {"name": "default", "template": "{{ tool_calls }}"}]
    assert hf(tmp_path / "hf", {}, tokenizer_config={"chat_template": templates}).more["tools"] is True


def test_a_lora_names_its_base_model(tmp_path):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 16}
    more = hf(tmp_path / "hf", {}, adapter_config=adapter).more
    assert (more["adapter"], more["base_model"], more["adapter_rank"]) == ("lora", "org/base", 16)
    base = {"general.base_model.0.repo_url": "https://huggingface.co/org/base"}
    more = gguf(tmp_path, {"general.type": "adapter", "adapter.type": "lora", **base}).more
    assert (more["adapter"], more["base_model"]) == ("lora", "https://huggingface.co/org/base")


def test_a_stretched_context_is_told(tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    more = hf(tmp_path, {"rope_scaling": scaling}).more
    assert (more["rope_scaling"], more["rope_factor"], more["rope_context"]) == ("yarn", 4.0, 16384)
    assert "rope_scaling" not in hf(tmp_path, {"rope_scaling": {"rope_type": "default"}}).more


def test_the_demo_model_is_for_text_and_knows_no_tools(tmp_path):
    facts = inspect(demo_model().parent, [demo_model().name])
    assert (facts.modality, facts.more["tools"], facts.active_parameter_count) == ("text", False, None)
    assert sum(one["bytes"] for one in facts.types.values()) == facts.tensor_bytes


@pytest.mark.django_db
def test_versions_from_before_are_read_again(tmp_path, capsys):
    version = make_version(write_gguf(tmp_path / "a"))
    lost = make_version(write_gguf(tmp_path / "b", tensors=(("t", (32,), 0),)), name="lost")
    ModelVersion.objects.update(modality="", scan=None, flagged=None, metadata={}, license="")
    call_command("inspect_models", "tiny")
    version.refresh_from_db()
    assert (version.modality, version.scan, version.flagged) == ("text", {"files": [], "signatures": []}, False)
    assert version.metadata["types"]["F16"]["tensors"] == 2
    ModelVersion.objects.filter(pk=lost.pk).update(digest="0" * 64)
    with pytest.raises(CommandError, match="1 versions could not be read"):
        call_command("inspect_models")
    assert "tiny:1: text" in capsys.readouterr().out
