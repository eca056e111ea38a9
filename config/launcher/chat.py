"""`chat`: a question to the demo model (or another) through the gateway, the answer as it comes."""

from __future__ import annotations

import urllib.error

from config.launcher import http_calls
from config.launcher.errors import LauncherError
from config.launcher.installation import Installation


def chat(installation: Installation, prompt: str, model: str | None, max_tokens: int) -> int:
    """Stream one answer to standard output."""
    credentials = installation.credentials()
    key, chosen = credentials.get("api_key"), model or credentials.get("model")
    if not key or not chosen:
        raise LauncherError(
            "there is no demo model and key in this home: run `./stokehold up` first (without --no-demo)."
        )
    body = {"model": chosen, "max_tokens": max_tokens, "messages": [{"role": "user", "content": prompt}]}
    try:
        for text in http_calls.stream(credentials["gateway_base"], key, body):
            print(text, end="", flush=True)
    except urllib.error.HTTPError as error:
        raise LauncherError(f"the gateway refused it: {http_calls.problem_of(error)}") from error
    except (OSError, ValueError) as error:
        raise LauncherError(
            f"no answer from {credentials['gateway_base']} ({error}): look at `./stokehold status`."
        ) from error
    print()
    return 0
