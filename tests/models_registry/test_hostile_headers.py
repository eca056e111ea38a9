"""Headers made to hurt end in DamagedModel, quickly and with little memory."""

import json
import resource
import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_registry.errors import BadSource, DamagedModel
from models_registry.inspect import inspect
from models_registry.inspect.gguf import read_header
from tests.models_registry.factories import CONFIG, gguf_bytes, write_safetensors

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LITTLE = 120 << 20


def safetensors(header: bytes, data: int = 0) -> bytes:
    return struct.pack("<Q", len(header)) + header + b"\0" * data


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def refused(folder, content: bytes, name: str = "bad.safetensors") -> DamagedModel:
    (folder / name).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedModel) as caught:
            inspect(folder, [name])
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) < 1000
    return caught.value


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlaps another"),
        ({"a": entry(0, 4), "b": entry(8, 16)}, "leaves a hole"),
        ({"a": entry(0, 8)}, "belong to no tensor"),
        ({"a": entry(-8, 0)}, "ends before its tensor"),
        ({"a": entry(8, 0, [0])}, "ends before its tensor"),
        ({"a": entry(0, 10**18)}, "impossible tensor"),
        ({"a": entry(0, 16, [10**18])}, "impossible tensor"),
        ({"a": entry(0, 16, [-4, -4])}, "impossible tensor"),
        ({"a": entry(0, 16, [1] * 40 + [16])}, "impossible tensor"),
        ({"a": entry(0, 16, [10**30])}, "cannot be read|impossible tensor"),
    ],
)
def test_offsets_and_shapes_that_cannot_be_are_refused(tmp_path, tensors, words):
    assert (error := refused(tmp_path, safetensors(json.dumps(tensors).encode(), 16)))
    assert any(word in error.message for word in words.split("|"))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' + b"[" * 5_000_000,
        b'{"a":' * 1_000_000,
        b'{"a":{"dtype":"U8","shape":' + b"[" * 100_000 + b"]" * 100_000 + b',"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 6000 + b'],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[1e400],"data_offsets":[0,0]}}',
        b'{"' + b"a" * 5_000_000 + b'":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}',
        b'{"a":"\\ud800"}',
        b'{"a":{"dtype":"\xff","shape":[],"data_offsets":[0,0]}}',
    ],
    ids=["deep list", "deep object", "deep shape", "long number", "infinite", "long name", "surrogate", "no utf-8"],
)
def test_deep_and_huge_json_is_refused(tmp_path, header):
    refused(tmp_path, safetensors(header))


def test_a_million_tensors_are_refused_before_they_are_held(tmp_path):
    one = b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(one % number for number in range(400_000)) + b"}"
    assert "tensors" in refused(tmp_path, safetensors(header)).message


def test_a_huge_configuration_is_refused(tmp_path):
    write_safetensors(tmp_path)
    (tmp_path / "config.json").write_bytes(b"[" * (5 << 20))
    with pytest.raises(DamagedModel, match="far too large"):
        inspect(tmp_path, ["model.safetensors"])
    (tmp_path / "config.json").write_bytes(b"[" * (3 << 20))
    with pytest.raises(DamagedModel, match="cannot be read"):
        inspect(tmp_path, ["model.safetensors"])


def test_odd_shapes_of_what_lies_beside_are_passed_over(tmp_path):
    write_safetensors(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": {"a": [1]}}')
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": [1, 2]}')
    assert not inspect(tmp_path, ["model.safetensors"]).chat_template


def test_gguf_tensors_that_overlap_are_refused(tmp_path):
    content = bytearray(gguf_bytes(tensors=(("a", (64, 64), 0), ("b", (64, 64), 0))))
    at = content.rindex(struct.pack("<Q", 1) + b"b") + 9 + 4 + 16 + 4
    content[at : at + 8] = struct.pack("<Q", 32)
    assert "overlap" in refused(tmp_path, bytes(content), "bad.gguf").message


def test_a_gguf_key_that_comes_twice_is_refused(tmp_path):
    content = bytearray(gguf_bytes({"general.aaaa": 1, "general.bbbb": 2}))
    at = content.index(b"general.bbbb")
    content[at : at + 12] = b"general.aaaa"
    assert "twice" in refused(tmp_path, bytes(content), "bad.gguf").message


def test_many_long_gguf_values_are_not_all_kept(tmp_path):
    values = [b"%04d" % number + struct.pack("<IQ", 8, 4000) + b"x" * 4000 for number in range(8000)]
    body = b"".join(struct.pack("<Q", 4) + value for value in values)
    (tmp_path / "big.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 8000) + body)
    tracemalloc.start()
    read_header(tmp_path / "big.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 << 20


def test_deep_gguf_lists_are_refused(tmp_path):
    nested = struct.pack("<IQ", 9, 1) * 1000
    body = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + nested
    refused(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + body, "bad.gguf")


def test_a_list_of_empty_gguf_lists_costs_no_memory(tmp_path):
    body = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1_500_000) + struct.pack("<IQ", 8, 0) * 1_500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + body, "bad.gguf")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.integers(0, 64), st.just(10**18))


@FUZZ
@given(
    tensors=st.dictionaries(
        st.text(max_size=8),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "odd"]),
                "shape": st.lists(NUMBERS, max_size=5),
                "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
            }
        ),
        max_size=4,
    ),
    size=st.integers(0, 64),
)
def test_any_header_ends_in_facts_or_in_a_clear_error(tmp_path, tensors, size):
    (tmp_path / "fuzz.safetensors").write_bytes(safetensors(json.dumps(tensors).encode(), size))
    try:
        facts = inspect(tmp_path, ["fuzz.safetensors"])
    except DamagedModel as error:
        assert error.message  # noqa: PT017 - either outcome is fine
    else:
        assert facts.tensor_bytes == size


KEYS = [*CONFIG, "rope_scaling", "text_config", "id2label", "quantization_config", "num_experts"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*CONFIG, "factor", "r"]), inner),
    max_leaves=8,
)


@FUZZ
@given(
    config=st.dictionaries(
        st.sampled_from([*CONFIG, "rope_scaling", "text_config", "id2label", "quantization_config", "num_experts"]),
        JSON,
    ),
    adapter=st.dictionaries(st.sampled_from(["peft_type", "base_model_name_or_path", "r"]), JSON),
)
def test_any_configuration_ends_in_facts_or_in_a_clear_error(tmp_path, config, adapter):
    write_safetensors(tmp_path, config=config)
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    try:
        facts = inspect(tmp_path, ["model.safetensors"])
    except DamagedModel as error:
        assert error.remedy  # noqa: PT017 - either outcome is fine
    else:
        json.dumps(facts.more)


def test_many_gguf_files_are_not_more_than_one(tmp_path):
    """Each within its bounds; together they would fill the memory."""
    infos = b"".join(struct.pack("<Q7sIQIQ", 7, b"%07d" % number, 1, 1, 999, 0) for number in range(90_000))
    key = b"general.architecture"
    value = struct.pack("<Q", len(key)) + key + struct.pack("<IQ5s", 8, 5, b"llama")
    content = b"GGUF" + struct.pack("<IQQ", 3, 90_000, 1) + value + infos
    names = [f"m-{number:05}-of-00006.gguf" for number in range(1, 7)]
    for name in names:
        (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedModel, match="tensors together"):
            inspect(tmp_path, names)
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()


def test_a_folder_of_many_gguf_models_is_refused_before_they_are_read(tmp_path):
    with pytest.raises(BadSource, match="holds 1000 GGUF files"):
        inspect(tmp_path, [f"{number}.gguf" for number in range(1000)])
