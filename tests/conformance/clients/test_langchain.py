"""LangChain's chat model and embeddings, unchanged but for address and key."""

import os

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

URL, KEY = os.environ["STOKEHOLD_BASE_URL"], os.environ["STOKEHOLD_KEY"]


def model(**options):
    settings = {"model": "chat", "max_tokens": 24, "temperature": 0.0, "max_retries": 0, **options}
    return ChatOpenAI(base_url=URL, api_key=settings.pop("key", KEY), **settings)


def test_an_answer_with_its_usage():
    answer = model().invoke("Say hi")
    assert answer.content
    assert answer.response_metadata["model_name"] == "chat"
    assert answer.usage_metadata["output_tokens"] > 0


def test_a_stream_with_its_usage():
    chunks = list(model(stream_usage=True).stream("Count to five"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert len(chunks) > 3
    assert whole.content
    assert whole.usage_metadata["output_tokens"] > 0


def test_many_at_once():
    answers = model(max_tokens=4).batch([f"Say {number}" for number in range(8)])
    assert len(answers) == 8


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def test_a_tool_is_called():
    bound = model(model="caller").bind_tools([weather], tool_choice="required")
    answer = bound.invoke("What is the weather in Paris?")
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})
    whole = None
    for chunk in bound.stream("What is the weather in Paris?"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"] == {"city": "Paris"}
    told = [HumanMessage("What is the weather in Paris?"), answer, weather.invoke(call)]
    assert model().bind_tools([weather]).invoke(told).content is not None


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def test_structured_output():
    asked = model(max_tokens=80).with_structured_output(Person, method="json_schema")
    found = asked.invoke("Anna is 30 years old. Who is she?")
    assert isinstance(found, Person)


def test_embeddings():
    embeddings = OpenAIEmbeddings(
        model="embed", base_url=URL, api_key=KEY, check_embedding_ctx_length=False, max_retries=0
    )
    one, other = embeddings.embed_documents(["a cat", "a dog"])
    assert len(one) == len(other) > 100
    assert one != other


def test_errors_keep_their_classes():
    with pytest.raises(openai.AuthenticationError):
        model(key="sk-stk-nothere1-x").invoke("hi")
    with pytest.raises(openai.PermissionDeniedError):
        model(key=os.environ["STOKEHOLD_KEY_NARROW"]).invoke("hi")
    with pytest.raises(openai.RateLimitError):
        model(key=os.environ["STOKEHOLD_KEY_USED_UP"]).invoke("hi")
