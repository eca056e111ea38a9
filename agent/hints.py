"""Why did an engine die? From the spec's patterns first, then from its last words and its exit code."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wire.engine import FailureHint

_COMMON = (
    FailureHint(
        pattern=r"address already in use|couldn't bind.*(port|socket)",
        cause="The port it was given is used by another program.",
        remedy="Nothing to do: another port is tried at the next start.",
    ),
    FailureHint(
        pattern=r"could not select device driver .*gpu",
        cause="Docker on this server cannot give GPUs to containers.",
        remedy="Install the NVIDIA container toolkit and restart Docker.",
    ),
    FailureHint(
        pattern=r"out of memory|cannot allocate memory|std::bad_alloc",
        cause="It ran out of memory.",
        remedy="Lower the context or the parallel sequences, or place it on a larger server.",
    ),
    FailureHint(
        pattern=r"error while loading shared libraries",
        cause="A library that the engine needs is not on this server.",
        remedy="Install it, or set LD_LIBRARY_PATH for the program in the agent's config.json.",
    ),
    FailureHint(
        pattern=r"permission denied",
        cause="The engine may not read or run something it needs.",
        remedy="Check the owner and mode of the files named in its output.",
    ),
)
_BY_CODE = {
    125: ("The container could not be created.", "Read the runtime's message."),
    126: ("The program is there but cannot be executed.", "Check its mode and its platform."),
    127: ("The program was not found.", "Install it, or name its path in the agent's config.json."),
    132: ("It used a processor instruction that this CPU lacks.", "Use a build for this processor."),
    134: ("It aborted itself.", "Read its last lines."),
    137: (
        "It was killed (SIGKILL): by the kernel for want of memory, or by someone.",
        "Look for 'oom' in the kernel's log; lower the context, or give it more memory.",
    ),
    139: ("It crashed (segmentation fault).", "Try another version of the engine, and check the model's files."),
}


def explain(exit_code: int | None, lines: Sequence[str], hints: Sequence[FailureHint]) -> tuple[str, str]:
    """(cause, remedy) of an end; both empty when nothing is known.

    The spec's hints win over the common ones, those over the exit code. A pattern that is no regular expression is
    passed over.
    """
    text = "\n".join(lines)
    for hint in (*hints, *_COMMON):
        if _matches(hint.pattern, text):
            return hint.cause, hint.remedy
    if exit_code is None:
        return "", ""
    return _BY_CODE.get(128 - exit_code if exit_code < 0 else exit_code, ("", ""))


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text, re.IGNORECASE) is not None
    except re.error:
        return False
