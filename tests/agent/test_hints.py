"""From an engine's last words and exit code to a cause and a remedy."""

from __future__ import annotations

import pytest

from agent.hints import explain
from wire.engine import FailureHint

OWN = FailureHint(pattern="CUDA out of memory", cause="The GPU is full.", remedy="Use a larger one.")


def test_the_hints_of_the_engine_win_over_the_common_ones_and_those_over_the_exit_code() -> None:
    lines = ("loading", "torch: cuda OUT OF MEMORY")
    assert explain(137, lines, (OWN,)) == ("The GPU is full.", "Use a larger one.")
    assert explain(137, lines, ())[0] == "It ran out of memory."
    assert explain(137, ("loading",), (OWN,))[0].startswith("It was killed (SIGKILL)")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("bind: Address already in use", "The port it was given is used by another program."),
        ("error while loading shared libraries: libcuda.so.1", "A library that the engine needs is not on this server"),
        ("/models/x: Permission denied", "The engine may not read or run something it needs."),
        ("terminate called: std::bad_alloc", "It ran out of memory."),
    ],
)
def test_what_any_engine_may_say_is_known(line: str, cause: str) -> None:
    assert explain(1, (line,), ())[0].startswith(cause)


def test_a_signal_is_known_in_both_ways_of_writing_it() -> None:
    assert explain(-11, (), ()) == explain(139, (), ())
    assert explain(139, (), ())[0] == "It crashed (segmentation fault)."


def test_an_end_that_nobody_saw_has_no_cause_and_a_broken_pattern_is_passed_over() -> None:
    broken = FailureHint(pattern="(", cause="never", remedy="never")
    assert explain(None, ("hello",), (broken,)) == ("", "")
    assert explain(1, (), ()) == ("", "")
