"""Reading GGUF headers: right about whole files, clear and frugal about damaged ones."""

import random
import resource
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_registry.errors import BadSource, DamagedModel
from models_registry.inspect import inspect
from models_registry.inspect.gguf import read_header
from tests.models_registry.factories import VALUES, demo_model, gguf_bytes, write_gguf

WHOLE = gguf_bytes()


def test_the_demo_model_is_a_llama_of_135_million_parameters():
    path = demo_model()
    facts = inspect(path.parent, [path.name])
    assert (facts.architecture, facts.quantization, facts.format) == ("llama", "Q4_1", "gguf")
    assert facts.parameter_count == 134_515_008
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim, facts.hidden_size) == (30, 9, 3, 64, 576)
    assert facts.context_tokens == 8192
    assert 96_000_000 < facts.tensor_bytes < path.stat().st_size
    assert facts.chat_template
    assert facts.more["vocabulary"] == 49152


@pytest.mark.parametrize("version", [2, 3])
def test_a_small_file_tells_its_facts(tmp_path, version):
    write_gguf(tmp_path, version=version)
    facts = inspect(tmp_path, ["tiny.gguf"])
    assert facts.parameter_count == 64 * 32 + 64 * 64
    assert facts.tensor_bytes == 2 * facts.parameter_count
    assert (facts.context_tokens, facts.layers, facts.kv_heads, facts.head_dim) == (2048, 2, 2, 16)
    assert (facts.quantization, facts.entry) == ("F16", "tiny.gguf")


def test_without_a_file_type_the_quantization_is_the_type_of_most_values(tmp_path):
    values = {key: value for key, value in VALUES.items() if key != "general.file_type"}
    write_gguf(tmp_path, values=values, tensors=(("a", (64, 64), 0), ("b", (32,), 1)))
    assert inspect(tmp_path, ["tiny.gguf"]).quantization == "F32"


def test_heads_that_differ_by_layer_count_as_the_largest(tmp_path):
    write_gguf(tmp_path, values={**VALUES, "llama.attention.head_count_kv": [1, 4]})
    assert inspect(tmp_path, ["tiny.gguf"]).kv_heads == 4


def test_parts_of_a_split_are_one_model(tmp_path):
    for number in (1, 2):
        values = VALUES if number == 1 else {"split.no": 1}
        write_gguf(tmp_path, f"big-{number:05}-of-00002.gguf", values=values, tensors=((f"t{number}", (32, 32), 1),))
    facts = inspect(tmp_path, ["big-00002-of-00002.gguf", "big-00001-of-00002.gguf"])
    assert facts.entry == "big-00001-of-00002.gguf"
    assert facts.parameter_count == 2 * 32 * 32
    assert facts.more["parts"] == 2


def test_a_missing_part_of_a_split_is_named(tmp_path):
    write_gguf(tmp_path, "big-00001-of-00003.gguf")
    with pytest.raises(DamagedModel, match="one of 3 parts, but only 1"):
        inspect(tmp_path, ["big-00001-of-00003.gguf"])


def test_several_models_in_one_folder_are_refused(tmp_path):
    write_gguf(tmp_path, "a.gguf")
    write_gguf(tmp_path, "b.gguf")
    with pytest.raises(BadSource, match=r"2 models: a\.gguf, b\.gguf"):
        inspect(tmp_path, ["a.gguf", "b.gguf"])


def test_a_projector_goes_with_its_model(tmp_path):
    write_gguf(tmp_path, "mmproj-tiny.gguf", values={**VALUES, "general.architecture": "clip"})
    write_gguf(tmp_path, "tiny.gguf")
    facts = inspect(tmp_path, ["mmproj-tiny.gguf", "tiny.gguf"])
    assert (facts.entry, facts.more["projector"]) == ("tiny.gguf", "mmproj-tiny.gguf")


def _patched(at: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    return WHOLE[:at] + struct.pack(form, value) + WHOLE[at + size :]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"GG", "ends within its header"),
        (b"not a model at all", "does not start like a GGUF file"),
        (_patched(4, "<I", 1), "version 1"),
        (_patched(4, ">I", 3), "big-endian"),
        (_patched(8, "<Q", 2**63), "more than it can hold"),
        (_patched(16, "<Q", 2**63), "more than it can hold"),
        (_patched(24, "<Q", 2**62), "has a name of"),
        (WHOLE[:200], "ends within its header"),
        (WHOLE[:-4096], "ends before its tensor"),
        (gguf_bytes({**VALUES, "general.alignment": 33}), "alignment"),
        (gguf_bytes(tensors=(("t", (8,), 1), ("t", (8,), 1))), "names a tensor twice"),
        (gguf_bytes(tensors=()), "not a whole model"),
        (gguf_bytes({"general.name": "nameless"}), "not a whole model"),
    ],
)
def test_a_damaged_file_gets_one_sentence_and_a_remedy(tmp_path, content, words):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(DamagedModel, match=words) as caught:
        inspect(tmp_path, ["bad.gguf"])
    assert caught.value.message.startswith("bad.gguf")
    assert caught.value.message.count(". ") == 0
    assert caught.value.remedy


def test_a_hostile_list_length_allocates_nothing(tmp_path):
    for kind in (4, 8, 9, 10):
        body = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, 2**60)
        (tmp_path / "bad.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + body + b"\0" * 64)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DamagedModel, match="more than it can hold"):
            read_header(tmp_path / "bad.gguf")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_demo_model_cut_anywhere_is_damaged(tmp_path):
    with demo_model().open("rb") as file:
        head = file.read(2_500_000)
    for length in random.Random(7).sample(range(len(head)), 12):
        (tmp_path / "cut.gguf").write_bytes(head[:length])
        with pytest.raises(DamagedModel):
            inspect(tmp_path, ["cut.gguf"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8),
    length=st.integers(0, len(WHOLE)),
)
def test_flipped_and_cut_bytes_end_in_facts_or_in_a_clear_error(tmp_path, flips, length):
    content = bytearray(WHOLE)
    for at, byte in flips:
        content[at] = byte
    (tmp_path / "fuzz.gguf").write_bytes(bytes(content[:length]))
    try:
        facts = inspect(tmp_path, ["fuzz.gguf"])
    except DamagedModel as error:
        assert error.message  # noqa: PT017 - either outcome is fine
    else:
        assert facts.parameter_count is not None
        assert facts.parameter_count < 2**63


WORDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 3, 8, 9, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=WORDS, values=WORDS, words=st.lists(WORDS, max_size=24), tail=st.binary(max_size=64))
def test_a_header_of_hostile_numbers_ends_in_a_clear_error(tmp_path, tensors, values, words, tail):
    body = struct.pack("<QQ", tensors, values) + b"".join(struct.pack("<Q", word) for word in words) + tail
    (tmp_path / "fuzz.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + body)
    with pytest.raises(DamagedModel) as caught:
        inspect(tmp_path, ["fuzz.gguf"])
    assert len(caught.value.message) < 1000


TEXTS = st.one_of(st.text(max_size=40), st.binary(max_size=40), st.integers(0, 2**32 - 1), st.booleans())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(st.sampled_from([*VALUES, "general.alignment", "llama.attention.key_length"]), TEXTS),
    dimensions=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    type_id=st.integers(0, 1001),
)
def test_hostile_values_end_in_facts_or_in_a_clear_error(tmp_path, values, dimensions, type_id):
    tensors = (("t", (8,), 1),)
    whole = gguf_bytes({**VALUES, **values}, tensors)
    at = whole.index(struct.pack("<Q", 1) + b"t" + struct.pack("<I", 1)) if not values else None
    if at is not None:
        info = struct.pack("<I", len(dimensions)) + b"".join(struct.pack("<Q", size) for size in dimensions)
        whole = whole[: at + 9] + info + struct.pack("<IQ", type_id, 0) + whole[at + 33 :]
    (tmp_path / "fuzz.gguf").write_bytes(whole)
    try:
        facts = inspect(tmp_path, ["fuzz.gguf"])
    except DamagedModel as error:
        assert error.remedy  # noqa: PT017 - either outcome is fine
    else:
        assert 0 <= facts.parameter_count < 2**63
        assert 0 <= facts.tensor_bytes <= len(whole)
