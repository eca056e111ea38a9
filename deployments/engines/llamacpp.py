"""llama.cpp's `llama-server`. Flags as in its `--help`; memory as in its loader and KV cache (`llama-kv-cache.cpp`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deployments.engines.base import (
    MIB,
    BadParameters,
    Estimate,
    EstimatePart,
    ModelFacts,
    ModelFile,
    Parameter,
    ParameterSchema,
    ParameterType,
    Resources,
    UnsuitableModel,
    gib,
)
from deployments.engines.llamacpp_flags import check_extra_args
from deployments.engines.llamacpp_hints import HINTS
from wire.engine import EngineSpec, Readiness

DEFAULT_CONTEXT_TOKENS = 4096
_RUNTIME_BYTES = 128 * MIB  # code, backend, HTTP threads, tokenizer
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
# Bytes of one value in ggml's types: block bytes / block length (ggml-common.h).
_CACHE_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32}
_CACHE_BYTES |= {"q4_0": 18 / 32, "iq4_nl": 18 / 32}
_PLAIN_CACHES = ("f32", "f16", "bf16")

_PARAMETERS = (
    Parameter(
        "context_tokens",
        "Context per request",
        "Longest prompt and answer of one request, in tokens. Empty: 4096, or what the model was trained for when "
        "that is less. The engine gets this times the parallel requests as its whole context.",
        ParameterType.INTEGER,
        minimum=128,
        maximum=4_194_304,
        group="Capacity",
    ),
    Parameter(
        "parallel",
        "Parallel requests",
        "Requests worked on at once by one instance; each has its own context.",
        ParameterType.INTEGER,
        default=4,
        minimum=1,
        maximum=256,
        group="Capacity",
    ),
    Parameter(
        "gpu_layers",
        "Layers on the GPU",
        "Layers kept in GPU memory. Empty: all of them when the instance has a GPU.",
        ParameterType.INTEGER,
        minimum=0,
        maximum=1000,
        group="Capacity",
    ),
    Parameter(
        "threads",
        "Threads",
        "CPU threads for generation. Empty: the engine takes one a physical core.",
        ParameterType.INTEGER,
        minimum=1,
        maximum=1024,
        group="Performance",
    ),
    Parameter(
        "batch_tokens",
        "Logical batch",
        "Most tokens handed to the engine in one step (-b).",
        ParameterType.INTEGER,
        default=2048,
        minimum=32,
        maximum=65536,
        group="Performance",
        advanced=True,
    ),
    Parameter(
        "micro_batch_tokens",
        "Physical batch",
        "Most tokens computed at once (-ub); the compute buffer grows with it. An embedding request must fit in it.",
        ParameterType.INTEGER,
        default=512,
        minimum=32,
        maximum=65536,
        group="Performance",
        advanced=True,
    ),
    Parameter(
        "cache_type_k",
        "K cache type",
        "Type of the keys in the KV cache; q8_0 halves its memory.",
        ParameterType.STRING,
        default="f16",
        choices=tuple(_CACHE_BYTES),
        group="Memory",
        advanced=True,
    ),
    Parameter(
        "cache_type_v",
        "V cache type",
        "Type of the values in the KV cache. A quantized one wants flash attention.",
        ParameterType.STRING,
        default="f16",
        choices=tuple(_CACHE_BYTES),
        group="Memory",
        advanced=True,
    ),
    Parameter(
        "prompt_cache_mib",
        "Prompt cache",
        "Host memory for prompts of earlier requests, in MiB; 0 turns it off.",
        ParameterType.INTEGER,
        default=256,
        minimum=0,
        maximum=1_048_576,
        group="Memory",
        advanced=True,
    ),
    Parameter(
        "flash_attention",
        "Flash attention",
        "auto lets the engine decide by model and device.",
        ParameterType.STRING,
        default="auto",
        choices=("auto", "on", "off"),
        group="Performance",
        advanced=True,
    ),
    Parameter(
        "embeddings",
        "Embeddings only",
        "Serve /v1/embeddings and nothing else.",
        ParameterType.BOOLEAN,
        default=False,
        group="Serving",
    ),
    Parameter(
        "rerank",
        "Reranking only",
        "Serve /v1/rerank and nothing else. The model must be a reranker: others give scores without a meaning.",
        ParameterType.BOOLEAN,
        default=False,
        group="Serving",
    ),
    Parameter(
        "jinja",
        "Chat template engine",
        "Use the model's own Jinja template; tools need it.",
        ParameterType.BOOLEAN,
        default=True,
        group="Serving",
    ),
    Parameter(
        "reasoning_format",
        "Reasoning format",
        "Where a reasoning model's thoughts go: none leaves them in the text, deepseek puts them in "
        "`reasoning_content`.",
        ParameterType.STRING,
        default="auto",
        choices=("auto", "none", "deepseek", "deepseek-legacy"),
        group="Serving",
        advanced=True,
    ),
    Parameter(
        "extra_args",
        "Further arguments",
        "Arguments of llama-server that have no field here, one a line, e.g. --rope-scaling, linear. Only sampling, "
        "rope, tuning and logging flags are taken.",
        ParameterType.LIST,
        default=(),
        group="Serving",
        advanced=True,
    ),
)


class LlamaCpp:
    """Adapter for GGUF models on CPUs and GPUs."""

    name = "llamacpp"
    title = "llama.cpp"
    program = "llama-server"
    schema = ParameterSchema(_PARAMETERS)
    hints = HINTS

    def check(self, model: ModelFacts, parameters: Mapping[str, Any]) -> dict[str, Any]:
        kept = self.schema.check(parameters)
        values = self.schema.resolve(kept)
        errors: dict[str, str] = {}
        if problem := check_extra_args(values["extra_args"]):
            errors["extra_args"] = problem
        if values["cache_type_v"] not in _PLAIN_CACHES and values["flash_attention"] == "off":
            errors["cache_type_v"] = "a quantized V cache wants flash attention: choose auto or on"
        if values["rerank"] and values["embeddings"]:
            errors["rerank"] = "an engine serves embeddings or reranks: deploy the model twice for both"
        if values["micro_batch_tokens"] > values["batch_tokens"]:
            errors["micro_batch_tokens"] = "must not be larger than the logical batch"
        if errors:
            raise BadParameters(errors)
        model_file(model)
        return kept

    def weights(self, model: ModelFacts) -> tuple[str, ...]:
        projector = _projector(model)
        return tuple(file.path for file in (*_parts(model), *((projector,) if projector else ())))

    def image(self, gpus: int) -> str:
        return "ghcr.io/ggml-org/llama.cpp:server-cuda" if gpus else "ghcr.io/ggml-org/llama.cpp:server"

    def max_context_tokens(self, model: ModelFacts, parameters: Mapping[str, Any]) -> int:
        asked = parameters.get("context_tokens")
        return int(asked or min(DEFAULT_CONTEXT_TOKENS, model.context_tokens or DEFAULT_CONTEXT_TOKENS))

    def endpoints(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        if parameters.get("embeddings"):
            return ("embeddings", "tokenize")
        if parameters.get("rerank"):
            return ("rerank", "tokenize")
        return ("chat", "completions", "responses", "messages", "tokenize")

    def slots(self, parameters: Mapping[str, Any]) -> int | None:
        return int(self.schema.resolve(parameters)["parallel"])

    def estimate(self, model: ModelFacts, parameters: Mapping[str, Any], gpus: int = 0) -> Estimate:
        values = self.schema.resolve(parameters)
        share = _gpu_share(model, values, gpus)
        total_context = self.max_context_tokens(model, values) * values["parallel"]
        weights = model.tensor_bytes or sum(file.size_bytes for file in _parts(model))
        per_token, how = _kv_bytes_per_token(model, values)
        cache = int(per_token * total_context)
        compute = _compute_bytes(model, values, total_context)
        prompt_cache = values["prompt_cache_mib"] * MIB
        parts = [
            _part("weights", weights, share, f"{gib(weights)} of tensors in {model_file(model).path}"),
            _part("kv cache", cache, share, f"{total_context:,} tokens (context x parallel) of {how}"),
            _part(
                "compute buffer", compute, 1.0 if gpus else 0.0, f"for batches of {values['micro_batch_tokens']} tokens"
            ),
            EstimatePart("runtime", _RUNTIME_BYTES, _RUNTIME_BYTES * 3 * gpus, "program, backend and tokenizer"),
        ]
        if projector := _projector(model):
            size = projector.size_bytes
            parts.append(_part("projector", size, 1.0 if gpus else 0.0, f"{gib(size)} of {projector.path}"))
        if prompt_cache:
            parts.append(EstimatePart("prompt cache", prompt_cache, 0, f"up to {gib(prompt_cache)} of earlier prompts"))
        return Estimate(tuple(parts))

    def build_spec(
        self,
        model: ModelFacts,
        parameters: Mapping[str, Any],
        resources: Resources,
        *,
        served_name: str,
        image: str = "",
    ) -> EngineSpec:
        values = self.schema.resolve(parameters)
        gpus = len(resources.gpu_indexes)
        return EngineSpec(
            engine=self.name,
            image=image or self.image(gpus),
            program=self.program,
            argv=_argv(self, model, values, gpus, served_name),
            env={"LLAMA_ARG_OFFLINE": "1"},
            container_port=8080,
            memory_bytes=resources.memory_bytes,
            gpu_indexes=resources.gpu_indexes,
            readiness=Readiness(path="/health", status=200),
            metrics_path="/metrics",
            failure_hints=self.hints,
        )


def model_file(model: ModelFacts) -> ModelFile:
    """The file to pass as -m: the first part of a split, never a projector. Raises UnsuitableModel."""
    return _parts(model)[0]


def _parts(model: ModelFacts) -> list[ModelFile]:
    ggufs = [file for file in model.files if file.path.lower().endswith(".gguf")]
    if model.format != "gguf" or not ggufs:
        raise UnsuitableModel(f"{model.name} is not a GGUF model (it is {model.format}); llama.cpp runs GGUF only")
    models = [file for file in ggufs if "mmproj" not in file.path.rsplit("/", 1)[-1].lower()]
    if not models:
        raise UnsuitableModel(f"{model.name} holds a projector (mmproj) only, and no model")
    first = min(models, key=lambda file: file.path)
    split = _SPLIT.search(first.path)
    if split is None:
        return [max(models, key=lambda file: file.size_bytes)]
    stem, count = first.path[: split.start()], int(split.group(2))
    parts = sorted((file for file in models if file.path.startswith(f"{stem}-")), key=lambda file: file.path)
    if int(split.group(1)) != 1 or len(parts) != count:
        raise UnsuitableModel(
            f"{model.name} has {len(parts)} of {count} parts of {stem.rsplit('/', 1)[-1]}",
            remedy="Import the version again with all of its parts.",
        )
    return parts


def _projector(model: ModelFacts) -> ModelFile | None:
    names = [file for file in model.files if re.search(r"mmproj[^/]*\.gguf$", file.path, re.IGNORECASE)]
    return min(names, key=lambda file: file.path) if names else None


def _argv(adapter: LlamaCpp, model: ModelFacts, values: dict[str, Any], gpus: int, served_name: str) -> tuple[str, ...]:
    context = adapter.max_context_tokens(model, values) * values["parallel"]
    argv = ["--host", "{host}", "--port", "{port}", "-m", "{model_dir}/" + model_file(model).path]
    argv += ["--alias", served_name, "--metrics", "--no-webui", "--no-slots", "-fit", "off"]
    argv += ["-c", str(context), "-np", str(values["parallel"])]
    argv += ["-b", str(values["batch_tokens"]), "-ub", str(values["micro_batch_tokens"])]
    argv += ["-ctk", values["cache_type_k"], "-ctv", values["cache_type_v"], "-fa", values["flash_attention"]]
    argv += ["--cache-ram", str(values["prompt_cache_mib"]), "--reasoning-format", values["reasoning_format"]]
    if gpus:
        argv += ["-ngl", str(999 if values["gpu_layers"] is None else values["gpu_layers"])]
    else:
        argv += ["-ngl", "0", "--device", "none"]
    if values["threads"]:
        argv += ["-t", str(values["threads"])]
    if values["embeddings"]:
        argv.append("--embeddings")
    if values["rerank"]:
        argv.append("--rerank")
    argv.append("--jinja" if values["jinja"] else "--no-jinja")
    if projector := _projector(model):
        argv += ["--mmproj", "{model_dir}/" + projector.path]
    return tuple(argv + [_braced(argument) for argument in values["extra_args"]])


def _braced(argument: str) -> str:
    """Placeholders are ours to use: what a person typed must not be taken for one."""
    return re.sub(r"\{(host|port|model_dir)\}", r"{ \1 }", argument)


def _gpu_share(model: ModelFacts, values: dict[str, Any], gpus: int) -> float:
    if not gpus:
        return 0.0
    if values["gpu_layers"] is None or not model.layers:
        return 1.0
    return min(1.0, values["gpu_layers"] / model.layers)


def _part(name: str, size_bytes: int, gpu_share: float, text: str) -> EstimatePart:
    on_gpu = int(size_bytes * gpu_share)
    return EstimatePart(name, size_bytes - on_gpu, on_gpu, text)


def _kv_bytes_per_token(model: ModelFacts, values: dict[str, Any]) -> tuple[float, str]:
    """2 x layers x kv_heads x head_dim x bytes, K and V each with its type. Unknown shapes: a cautious guess."""
    head_dim = model.head_dim or ((model.hidden_size or 0) // model.heads if model.heads else 0)
    kv_heads = model.kv_heads or model.heads or 0
    if not (model.layers and kv_heads and head_dim):
        return 256 * 1024, "256 KiB each (a guess: the file does not say its layers and heads)"
    values_bytes = _CACHE_BYTES[values["cache_type_k"]] + _CACHE_BYTES[values["cache_type_v"]]
    per_token = model.layers * kv_heads * head_dim * values_bytes
    text = (
        f"{per_token / 1024:.1f} KiB each ({model.layers} layers x {kv_heads} KV heads x {head_dim} x "
        f"{values['cache_type_k']}/{values['cache_type_v']})"
    )
    return per_token, text


def _compute_bytes(model: ModelFacts, values: dict[str, Any], total_context: int) -> int:
    """The graph's largest live tensors: logits of a batch, a few activations, and attention scores without flash."""
    batch = values["micro_batch_tokens"]
    hidden = model.hidden_size or 4096
    logits = batch * (model.vocabulary or 128_000) * 4
    activations = batch * hidden * 4 * 12
    scores = batch * (model.heads or 32) * min(total_context, 32_768) * 4 if values["flash_attention"] == "off" else 0
    mask = batch * total_context * 4
    return int(64 * MIB + logits + activations + scores + mask)
