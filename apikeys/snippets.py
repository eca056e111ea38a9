"""Ready-made examples that show how a key is used."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from django.conf import settings

from apikeys.models import ApiKey

_ANY_MODEL = "MODEL"


@dataclass(frozen=True)
class Snippets:
    base_url: str
    curl: str
    python: str


def snippets(key: ApiKey, text: str, *, model: str = "") -> Snippets:
    """Examples with the whole key `text` in them; `model` defaults to the first one that the key may use."""
    name = model or (key.allowed_models or [_ANY_MODEL])[0]
    base_url = settings.GATEWAY_BASE_URL
    messages = [{"role": "user", "content": "Say hi"}]
    body = shlex.quote(json.dumps({"model": name, "messages": messages}, ensure_ascii=False))
    curl = f"""curl {base_url}/chat/completions \\
  -H "Authorization: Bearer {text}" \\
  -H "Content-Type: application/json" \\
  -d {body}"""
    python = f'''from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key="{text}")
answer = client.chat.completions.create(
    model={json.dumps(name, ensure_ascii=False)}, messages=[{{"role": "user", "content": "Say hi"}}]
)
print(answer.choices[0].message.content)'''
    return Snippets(base_url=base_url, curl=curl, python=python)
