"""Ready-made examples that show how a key is used. Each works when pasted, whatever the model is called."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from django.conf import settings

from apikeys.models import ApiKey

_ANY_MODEL = "MODEL"
_QUESTION = "Say hi"
_VARIABLE = "STOKEHOLD_KEY"
_IN_SHELL = f"${_VARIABLE}"


@dataclass(frozen=True)
class Snippets:
    """Text to paste, by what it is pasted into."""

    base_url: str
    curl: str
    python: str
    javascript: str
    langchain: str
    env: str

    def shown(self) -> tuple[tuple[str, str, str], ...]:
        """(name, label, text) of each, in the order of the page."""
        return (
            ("curl", "curl", self.curl),
            ("python", "Python", self.python),
            ("javascript", "JavaScript", self.javascript),
            ("langchain", "LangChain", self.langchain),
            ("env", "Environment", self.env),
        )


def snippets(key: ApiKey, text: str = "", *, model: str = "") -> Snippets:
    """Examples with the whole key `text` in them; without it they take it from $STOKEHOLD_KEY.

    `model` defaults to the first one that the key may use.
    """
    name = model or (key.allowed_models or [_ANY_MODEL])[0]
    base_url = settings.GATEWAY_BASE_URL
    return Snippets(
        base_url=base_url,
        curl=_curl(base_url, text, name),
        python=_python(base_url, text, name),
        javascript=_javascript(base_url, text, name),
        langchain=_langchain(base_url, text, name),
        env=_env(base_url, text),
    )


def _quoted(text: str) -> str:
    """As a literal that Python and JavaScript both read: JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _curl(base_url: str, text: str, model: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": _QUESTION}]}, ensure_ascii=False)
    return f"""curl {base_url}/chat/completions \\
  -H "Authorization: Bearer {text or _IN_SHELL}" \\
  -H "Content-Type: application/json" \\
  -d {shlex.quote(body)}"""


def _python_key(text: str) -> tuple[str, str]:
    """What to import first, and the expression of the key."""
    return ("", f'"{text}"') if text else ("import os\n\n", f'os.environ["{_VARIABLE}"]')


def _python(base_url: str, text: str, model: str) -> str:
    imports, api_key = _python_key(text)
    return f'''{imports}from openai import OpenAI  # pip install openai

client = OpenAI(base_url="{base_url}", api_key={api_key})
answer = client.chat.completions.create(
    model={_quoted(model)}, messages=[{{"role": "user", "content": "{_QUESTION}"}}]
)
print(answer.choices[0].message.content)'''


def _javascript(base_url: str, text: str, model: str) -> str:
    api_key = f'"{text}"' if text else f"process.env.{_VARIABLE}"
    return f'''import OpenAI from "openai"; // npm install openai

const client = new OpenAI({{ baseURL: "{base_url}", apiKey: {api_key} }});
const answer = await client.chat.completions.create({{
  model: {_quoted(model)},
  messages: [{{ role: "user", content: "{_QUESTION}" }}],
}});
console.log(answer.choices[0].message.content);'''


def _langchain(base_url: str, text: str, model: str) -> str:
    imports, api_key = _python_key(text)
    return f'''{imports}from langchain_openai import ChatOpenAI  # pip install langchain-openai

llm = ChatOpenAI(base_url="{base_url}", api_key={api_key}, model={_quoted(model)})
print(llm.invoke("{_QUESTION}").content)'''


def _env(base_url: str, text: str) -> str:
    """OpenAI's SDKs, and most programs that use them, look at these; Anthropic's adds /v1 itself."""
    return f"""export OPENAI_BASE_URL={base_url}
export OPENAI_API_KEY={text or _IN_SHELL}
export ANTHROPIC_BASE_URL={base_url.removesuffix("/v1")}
export ANTHROPIC_API_KEY={text or _IN_SHELL}"""
