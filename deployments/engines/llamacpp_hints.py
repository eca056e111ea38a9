"""Deaths of `llama-server` that we know the cause of. Searched in its last lines, first match wins."""

from __future__ import annotations

from wire.engine import FailureHint

HINTS = (
    FailureHint(
        pattern=r"unknown model architecture",
        cause="This engine release does not know the model's architecture.",
        remedy="Use a newer llama.cpp image or program, or another engine.",
    ),
    FailureHint(
        pattern=r"failed to open GGUF file",
        cause="The model's file is not where it should be on the server.",
        remedy="Look at the server's disk; stop and start the deployment to have the file fetched again.",
    ),
    FailureHint(
        pattern=r"not within the file bounds|invalid magic|failed to read (magic|tensor)|gguf_init_from_file",
        cause="The GGUF file is cut short or damaged.",
        remedy="Import the model version again, and compare its sha256 with the source's.",
    ),
    FailureHint(
        pattern=r"CUDA out of memory|cudaMalloc failed|ErrorOutOfDeviceMemory|unable to allocate .*(CUDA|Vulkan|ROCm)",
        cause="The GPU has too little free memory for weights, KV cache and buffers.",
        remedy="Lower context_tokens, parallel or gpu_layers, choose a q8_0 KV cache, or give it more GPUs.",
    ),
    FailureHint(
        pattern=r"std::bad_alloc|failed to allocate (buffer|compute|.*kv)|Cannot allocate memory|unable to allocate",
        cause="The server has too little free memory.",
        remedy="Lower context_tokens or parallel, choose a q8_0 KV cache or a smaller quantization.",
    ),
    FailureHint(
        pattern=r"CUDA driver version is insufficient|no CUDA-capable device",
        cause="The server's NVIDIA driver is missing or older than the engine wants.",
        remedy="Update the driver, or use an image for an older CUDA.",
    ),
    FailureHint(
        pattern=r"could not select device driver|nvidia-container-cli",
        cause="Docker on this server cannot hand out GPUs.",
        remedy="Install the NVIDIA container toolkit there and restart Docker, or place it without GPUs.",
    ),
    FailureHint(
        pattern=r"address already in use|couldn't bind",
        cause="Another process took the port.",
        remedy="It is started again on another port; look for a second agent if it comes back.",
    ),
    FailureHint(
        pattern=r"V cache quantization requires flash_attn",
        cause="A quantized V cache wants flash attention, and this model or device has none.",
        remedy="Set cache_type_v to f16.",
    ),
    FailureHint(
        pattern=r"error while (parsing|handling) argument|invalid argument|unknown argument|error: argument",
        cause="This engine release does not take one of the arguments.",
        remedy="Look at the command in the details; correct extra_args or pin another image.",
    ),
    FailureHint(
        pattern=r"error while loading shared libraries|GLIBC_|Illegal instruction",
        cause="The program does not fit this machine: a library is missing or the CPU is too old.",
        remedy="Set the program's environment in the agent's config.json, or use the docker runtime.",
    ),
    FailureHint(
        pattern=r"failed to load model|error loading model",
        cause="The model could not be loaded.",
        remedy="Read the lines before it: they name the tensor, key or file that is wrong.",
    ),
)
