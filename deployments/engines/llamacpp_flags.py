"""Which further arguments of `llama-server` a deployment may carry.

A list of what is allowed, not of what is not: new releases add flags that read or write files, fetch from the network
or start tools, and none of them may become usable unseen.
"""

from __future__ import annotations

from collections.abc import Sequence

_OURS = {
    "--host": "the agent chooses the address",
    "--port": "the agent chooses the port",
    "-m": "it follows from the model version",
    "--model": "it follows from the model version",
    "-a": "it is the deployment's name",
    "--alias": "it is the deployment's name",
    "--api-key": "the gateway checks keys",
    "--api-key-file": "the gateway checks keys",
    "-c": "set context_tokens and parallel",
    "--ctx-size": "set context_tokens and parallel",
    "-np": "set parallel",
    "--parallel": "set parallel",
    "-ngl": "set gpu_layers",
    "--gpu-layers": "set gpu_layers",
    "--n-gpu-layers": "set gpu_layers",
    "-b": "set batch_tokens",
    "--batch-size": "set batch_tokens",
    "-ub": "set micro_batch_tokens",
    "--ubatch-size": "set micro_batch_tokens",
    "-ctk": "set cache_type_k",
    "--cache-type-k": "set cache_type_k",
    "-ctv": "set cache_type_v",
    "--cache-type-v": "set cache_type_v",
    "-fa": "set flash_attention",
    "--flash-attn": "set flash_attention",
    "-t": "set threads",
    "--threads": "set threads",
    "--embedding": "set embeddings",
    "--embeddings": "set embeddings",
    "--rerank": "set rerank",
    "--reranking": "set rerank",
    "--jinja": "set jinja",
    "--no-jinja": "set jinja",
    "--reasoning-format": "set reasoning_format",
    "--cache-ram": "set prompt_cache_mib",
    "-cram": "set prompt_cache_mib",
    "-fit": "memory is planned by the scheduler",
    "--fit": "memory is planned by the scheduler",
    "--device": "devices are planned by the scheduler",
    "-dev": "devices are planned by the scheduler",
    "--metrics": "it is always on",
    "--mmproj": "it follows from the model version",
}

_WITH_VALUE_TEXT = """
    -tb --threads-batch --prio --prio-batch --poll --poll-batch --cpu-strict --numa
    -n --predict --n-predict --keep
    --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale
    --yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast
    -sm --split-mode -ts --tensor-split -mg --main-gpu -ncmoe --n-cpu-moe -ot --override-tensor --override-kv
    --samplers -s --seed --sampler-seq --temp --temperature --top-k --top-p --min-p --top-nsigma --top-n-sigma
    --xtc-probability --xtc-threshold --typical --typical-p --repeat-last-n --repeat-penalty --presence-penalty
    --frequency-penalty --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n --dry-sequence-breaker
    --adaptive-target --adaptive-decay --dynatemp-range --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent
    -l --logit-bias -r --reverse-prompt
    --spec-type --spec-draft-n-max --spec-draft-n-min --spec-draft-p-min
    -ctxcp --ctx-checkpoints -cms --checkpoint-min-step --cache-reuse -sps --slot-prompt-similarity
    --pooling --embd-normalize --image-min-tokens --image-max-tokens
    -to --timeout --sse-ping-interval --threads-http --sleep-idle-seconds
    --chat-template --chat-template-kwargs
    -rea --reasoning --reasoning-effort --reasoning-budget --reasoning-budget-message
    -lv --verbosity --log-verbosity --log-colors -lm --load-mode
"""
_ALONE_TEXT = """
    --swa-full --perf --no-perf -kvo --kv-offload -nkvo --no-kv-offload --repack -nr --no-repack --no-host
    --mlock --mmap --no-mmap -cmoe --cpu-moe --check-tensors --op-offload --no-op-offload
    --ignore-eos -sp --special --warmup --no-warmup --spm-infill
    -cb --cont-batching -nocb --no-cont-batching -kvu --kv-unified -no-kvu --no-kv-unified
    --context-shift --no-context-shift --cache-prompt --no-cache-prompt --cache-idle-slots --no-cache-idle-slots
    --no-mmproj --mmproj-offload --no-mmproj-offload
    --reasoning-preserve --no-reasoning-preserve --prefill-assistant --no-prefill-assistant
    --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps
"""
_WITH_VALUE = frozenset(_WITH_VALUE_TEXT.split())
_ALONE = frozenset(_ALONE_TEXT.split())


def check_extra_args(arguments: Sequence[str]) -> str:
    """What is wrong with these arguments of llama-server; empty when they may be passed on."""
    expects_value_of = ""
    for argument in arguments:
        if "\0" in argument or "\n" in argument:
            return "an argument holds a NUL or a line break"
        if expects_value_of:
            expects_value_of = ""
            continue
        flag, given, _ = argument.partition("=")
        if flag in _OURS:
            return f"{flag} may not be given here: {_OURS[flag]}"
        if given:
            return f"write {flag} and its value as two arguments"
        if not flag.startswith("-"):
            return f"{argument!r} is no flag, and follows none that takes a value"
        if flag in _WITH_VALUE:
            expects_value_of = flag
        elif flag not in _ALONE:
            return (
                f"{flag} is not among the flags that may be passed on (those that touch files or the network are not)"
            )
    return f"{expects_value_of} wants a value" if expects_value_of else ""
