"""The block that `up` ends with: where everything is, and two examples that work when pasted."""

from __future__ import annotations

from typing import Any

from config.launcher.installation import Installation


def block(credentials: dict[str, Any], installation: Installation, *, foreground: bool) -> str:
    """Text for the terminal. Examples stand at the left edge: pasted Python must not be indented."""
    password = credentials["admin_password"] or "(made elsewhere; `./stokehold changepassword` sets a new one)"
    rows = [
        ("Admin", credentials["admin_url"]),
        ("User", credentials["admin_user"]),
        ("Password", password),
        ("API docs", f"{credentials['api_base']}/docs"),
        ("Gateway", credentials["gateway_base"]),
    ]
    if credentials.get("api_key"):
        rows += [("Key", credentials["api_key"]), ("Model", credentials["model"])]
    rows += [("Files", f"{installation.home.path} (credentials.json holds the above)")]
    lines = ["", "─" * 78, " Stokehold is ready", ""]
    lines += [f"   {name:<10}{value}" for name, value in rows]
    if credentials.get("api_key"):
        lines += ["", *_examples(credentials)]
    end = (
        "Ctrl-C stops everything."
        if foreground
        else "It runs in the background: `./stokehold status`, `./stokehold down`."
    )
    return "\n".join([*lines, "", f" {end}", "─" * 78])


def _examples(credentials: dict[str, Any]) -> list[str]:
    base, key, model = credentials["gateway_base"], credentials["api_key"], credentials["model"]
    return [
        f"curl {base}/chat/completions -H 'Authorization: Bearer {key}' \\",
        "  -H 'Content-Type: application/json' \\",
        f'  -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Say hi"}}], "max_tokens": 60}}\'',
        "",
        "# Python, after: pip install openai",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{base}", api_key="{key}")',
        'messages = [{"role": "user", "content": "Say hi"}]',
        f'answer = client.chat.completions.create(model="{model}", messages=messages, max_tokens=60)',
        "print(answer.choices[0].message.content)",
    ]
