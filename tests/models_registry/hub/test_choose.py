"""What of a repository is taken, by the layouts that are on the Hub."""

from __future__ import annotations

import pytest

from models_registry.hub.choose import alternatives, chosen, variants

TOKENIZER = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "README.md", "LICENSE")


@pytest.mark.parametrize(
    ("there", "left_out", "reason"),
    [
        (
            (*TOKENIZER, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            ("pytorch_model.bin", "original/consolidated.00.pth", "onnx/model.onnx", ".gitattributes", "tf_model.h5"),
            "safetensors",
        ),
        ((*TOKENIZER, "model.safetensors"), ("consolidated.safetensors", "model-Q4_K_M.gguf"), "safetensors"),
        (("model-Q4_K_M.gguf",), ("model-Q8_0.gguf", "model-F16.gguf", "model-IQ2_XS.gguf"), "GGUF Q4_K_M, one of 4"),
        (
            ("Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "mmproj-F16.gguf"),
            ("Q8_0/m-Q8_0-00001-of-00001.gguf", "mmproj-Q8_0.gguf", "imatrix.gguf"),
            "GGUF Q4_K_M, one of 2",
        ),
        (("model.gguf",), (), "GGUF model.gguf"),
        (
            ("m-Q4_K_M.gguf", "m-Q4_K_M.gguf.sha256", "model.sig", "SHA256SUMS", "SHA256SUMS.asc"),
            ("m-Q8_0.gguf", "m-Q8_0.gguf.sha256", "original/model.sig", "train.tar.asc"),
            "GGUF Q4_K_M",
        ),
        (("config.json", "pytorch_model.bin"), (), "pickle"),
        (("config.json",), (), "no weights"),
    ],
)
def test_one_format_and_one_quantization_is_taken(
    there: tuple[str, ...], left_out: tuple[str, ...], reason: str
) -> None:
    choice = chosen([*left_out, *there])
    assert set(choice.paths) == set(there)
    assert reason in choice.reason


def test_patterns_say_it_otherwise() -> None:
    paths = ["a-Q8_0.gguf", "a-Q4_K_M.gguf", "sub/b-Q8_0.gguf", "config.json"]
    assert chosen(paths, ["*Q8_0.gguf", "config.json"]).paths == ("a-Q8_0.gguf", "sub/b-Q8_0.gguf", "config.json")
    assert chosen(paths, ["nothing*"]).paths == ()


def test_quantizations_are_told_apart_and_parts_kept_together() -> None:
    paths = ["m-UD-Q4_K_XL.gguf", "m.q5_k_m.gguf", "m-BF16-00001-of-00002.gguf", "m-BF16-00002-of-00002.gguf"]
    assert variants([*paths, "mmproj-F16.gguf", "config.json"]) == {
        "BF16": ("m-BF16-00001-of-00002.gguf", "m-BF16-00002-of-00002.gguf"),
        "Q5_K_M": ("m.q5_k_m.gguf",),
        "UD-Q4_K_XL": ("m-UD-Q4_K_XL.gguf",),
    }


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("m-Q4_K_M.gguf", "m-Q8_0.gguf", "config.json"), ("Q4_K_M", "Q8_0")),
        (("Q8_0/m-Q8_0.gguf", "UD-Q2_K_XL/m-UD-Q2_K_XL.gguf"), ("Q8_0", "UD-Q2_K_XL")),
        (("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-F16.gguf"), ()),
        (("m-Q8_0.gguf", "vision-tower-F16.gguf"), ()),
        (("a.gguf", "b.gguf"), ()),
    ],
)
def test_quantizations_of_one_model_are_told_from_its_parts(paths: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert alternatives(paths) == expected
