"""Runs supervisord with one difference: a process that cannot stay up is tried again after 3 s at most.

Supervisor waits one second longer after each failed start, without end; after a minute of a stopped database the
next try would come minutes after it is back.
"""

from __future__ import annotations

import sys

from supervisor import supervisord
from supervisor.process import Subprocess
from supervisor.states import ProcessStates

LONGEST_PAUSE_S = 3

_change_state = Subprocess.change_state


def _change_state_with_short_pause(self: Subprocess, new_state: int, expected: bool = True) -> object:
    if new_state == ProcessStates.BACKOFF:
        self.backoff = min(self.backoff, LONGEST_PAUSE_S - 1)
    return _change_state(self, new_state, expected)


if __name__ == "__main__":
    Subprocess.change_state = _change_state_with_short_pause
    supervisord.main(sys.argv[1:])
