"""Free TCP ports for servers that tests start."""

from __future__ import annotations

import itertools
import os
import random
import socket

_FIRST, _LAST = 15_000, 32_000
"""Below the range that the kernel takes ports for outgoing connections from (Linux: 32768 to 60999)."""
_candidates = itertools.count(random.Random(os.getpid()).randrange(_LAST - _FIRST))


def free_port() -> int:
    """A port of loopback that nothing listens on now; no other call of this process got it lately.

    Asking the kernel for any port (bind to 0) may give one again that was given a moment ago, or that an outgoing
    connection takes before the server under test does.
    """
    for step in itertools.islice(_candidates, _LAST - _FIRST):
        port = _FIRST + step % (_LAST - _FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on loopback")
