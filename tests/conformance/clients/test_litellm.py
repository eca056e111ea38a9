"""LiteLLM as a client: an OpenAI-compatible provider."""

import os

import litellm
import pytest

URL, KEY = os.environ["STOKEHOLD_BASE_URL"], os.environ["STOKEHOLD_KEY"]


def complete(content="Say hi", **options):
    settings = {"model": "openai/chat", "api_key": KEY, "max_tokens": 12, "temperature": 0.0, "num_retries": 0}
    messages = [{"role": "user", "content": content}]
    return litellm.completion(api_base=URL, messages=messages, **{**settings, **options})


def test_an_answer_with_its_usage():
    answer = complete()
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_a_stream_with_its_usage():
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert any(getattr(chunk, "usage", None) and chunk.usage.completion_tokens > 0 for chunk in chunks)


def test_a_tool_is_called():
    function = {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    answer = complete(
        "What is the weather in Paris?",
        model="openai/caller",
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


def test_embeddings():
    answer = litellm.embedding(
        model="openai/embed", input=["a cat", "a dog"], api_base=URL, api_key=KEY, encoding_format="float"
    )
    assert len(answer.data) == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"api_key": "sk-stk-nothere1-x"}, litellm.AuthenticationError),
        ({"model": "openai/nothing"}, litellm.NotFoundError),
        ({"api_key": os.environ["STOKEHOLD_KEY_USED_UP"]}, litellm.RateLimitError),
        ({"content": "word " * 3000}, litellm.ContextWindowExceededError),
        ({"model": "openai/down"}, litellm.ServiceUnavailableError),
    ],
)
def test_errors_become_its_own(changes, error):
    with pytest.raises(error):
        complete(max_retries=0, **changes)
