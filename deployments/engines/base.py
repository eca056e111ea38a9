"""What every engine adapter is made of: typed parameters, a memory estimate, and the way to an EngineSpec.

Adapters are pure: values in, values out. Adding an engine is one module here, its entry in `engines/__init__.py` and
its test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from wire.engine import EngineSpec, FailureHint
from wire.errors import Problem

GIB = 1 << 30
MIB = 1 << 20


class EngineError(Problem):
    """A spec that an engine cannot run. `code`, message for a person and remedy, as everywhere."""

    code = "engine_error"
    status = 400
    remedy = "Change the deployment's parameters or model version."


class UnknownEngine(EngineError):
    code = "unknown_engine"


class UnsuitableModel(EngineError):
    code = "unsuitable_model"
    remedy = "Choose another engine or another model version."


class BadParameters(EngineError):
    """`errors` maps a parameter's name to what is wrong with it."""

    code = "bad_parameters"
    remedy = "Correct the parameters named in `errors`; GET /api/v1/engines/ shows what each one takes."

    def __init__(self, errors: dict[str, str]) -> None:
        self.errors = errors
        text = "; ".join(f"{name}: {problem}" for name, problem in errors.items())
        super().__init__(f"wrong parameters: {text}", errors={"parameters": errors})


class ParameterType(StrEnum):
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    STRING = "string"
    LIST = "array"  # of strings


@dataclass(frozen=True)
class Parameter:
    """One setting of an engine. `default` None: left to the adapter, which says in `help` what it does then."""

    name: str
    title: str
    help: str
    type: ParameterType
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    group: str = "General"
    advanced: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with `value`; empty when nothing is."""
        wanted = _PYTHON_TYPES[self.type]
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.type is not ParameterType.BOOLEAN):
            return f"must be {_TYPE_WORDS[self.type]}, not {type(value).__name__}"
        if self.type is ParameterType.LIST and not all(isinstance(item, str) for item in value):
            return "must be a list of strings"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum:g}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum:g}"
        return ""

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of this one; `x-group` and `x-advanced` tell a form where it goes."""
        schema: dict[str, Any] = {"type": self.type.value, "title": self.title, "description": self.help}
        if self.type is ParameterType.LIST:
            schema["items"] = {"type": "string"}
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        if self.maximum is not None:
            schema["maximum"] = self.maximum
        if self.default is not None:
            schema["default"] = list(self.default) if self.type is ParameterType.LIST else self.default
        return schema | {"x-group": self.group, "x-advanced": self.advanced}


_PYTHON_TYPES: dict[ParameterType, Any] = {
    ParameterType.INTEGER: int,
    ParameterType.NUMBER: (int, float),
    ParameterType.BOOLEAN: bool,
    ParameterType.STRING: str,
    ParameterType.LIST: (list, tuple),
}
_TYPE_WORDS = {
    ParameterType.INTEGER: "a whole number",
    ParameterType.NUMBER: "a number",
    ParameterType.BOOLEAN: "true or false",
    ParameterType.STRING: "text",
    ParameterType.LIST: "a list of strings",
}


@dataclass(frozen=True)
class ParameterSchema:
    """The parameters of one engine, in the order of the form."""

    parameters: tuple[Parameter, ...]

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` without those left empty. Raises BadParameters with every error at once."""
        by_name = {parameter.name: parameter for parameter in self.parameters}
        errors: dict[str, str] = {}
        kept: dict[str, Any] = {}
        for name, value in values.items():
            if value is None:
                continue
            if name not in by_name:
                errors[name] = f"is not a parameter of this engine; known: {', '.join(sorted(by_name))}"
            elif problem := by_name[name].problem(value):
                errors[name] = problem
            else:
                kept[name] = list(value) if isinstance(value, tuple) else value
        if errors:
            raise BadParameters(errors)
        return kept

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values`, checked, with the defaults of all others."""
        return {parameter.name: parameter.default for parameter in self.parameters} | self.check(values)

    def parse(self, name: str, text: str) -> Any:
        """The value that `text` (from a command line or form) means for parameter `name`.

        Raises BadParameters when it means none.
        """
        kind = next((parameter.type for parameter in self.parameters if parameter.name == name), None)
        try:
            if kind is ParameterType.INTEGER:
                return int(text)
            if kind is ParameterType.NUMBER:
                return float(text)
        except ValueError:
            raise BadParameters({name: f"must be {_TYPE_WORDS[kind]}, not {text!r}"}) from None
        if kind is ParameterType.BOOLEAN:
            if text.lower() not in _BOOLEANS:
                raise BadParameters({name: f"must be true or false, not {text!r}"})
            return _BOOLEANS[text.lower()]
        return text.split() if kind is ParameterType.LIST else text

    def json_schema(self) -> dict[str, Any]:
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "additionalProperties": False,
            "properties": {parameter.name: parameter.json_schema() for parameter in self.parameters},
        }


_BOOLEANS = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}


@dataclass(frozen=True)
class ModelFile:
    path: str
    size_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """What an adapter may know of a model version. None: its headers do not say."""

    name: str
    format: str
    files: tuple[ModelFile, ...]
    architecture: str = ""
    context_tokens: int | None = None
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    tensor_bytes: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class EstimatePart:
    """Bytes of one thing, in host memory or summed over the GPUs, with a sentence that shows the arithmetic."""

    name: str
    host_bytes: int
    gpu_bytes: int
    text: str


@dataclass(frozen=True)
class Estimate:
    """Memory that one instance is expected to need."""

    parts: tuple[EstimatePart, ...] = field(default_factory=tuple)

    @property
    def host_bytes(self) -> int:
        return sum(part.host_bytes for part in self.parts)

    @property
    def gpu_bytes(self) -> int:
        """Of all its GPUs together."""
        return sum(part.gpu_bytes for part in self.parts)


@dataclass(frozen=True)
class Resources:
    """What an instance was given on its server."""

    memory_bytes: int = 0
    gpu_indexes: tuple[int, ...] = ()
    gpu_memory_bytes: int = 0  # on each GPU


class Adapter(Protocol):
    """One engine. Every method is pure and raises EngineError only."""

    name: str
    title: str
    program: str
    schema: ParameterSchema
    hints: tuple[FailureHint, ...]

    def check(self, model: ModelFacts, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters to keep in a revision. Raises BadParameters, UnsuitableModel."""

    def weights(self, model: ModelFacts) -> tuple[str, ...]:
        """Paths of the files that it will load; of others beside them it never looks at the content."""

    def image(self, gpus: int) -> str:
        """Image used when the revision names none."""

    def estimate(self, model: ModelFacts, parameters: Mapping[str, Any], gpus: int = 0) -> Estimate:
        """Memory of one instance that is spread over `gpus` GPUs; 0: on the CPU."""

    def build_spec(
        self,
        model: ModelFacts,
        parameters: Mapping[str, Any],
        resources: Resources,
        *,
        served_name: str,
        image: str = "",
    ) -> EngineSpec:
        """How to run it. `served_name` is the name that clients send."""

    def max_context_tokens(self, model: ModelFacts, parameters: Mapping[str, Any]) -> int | None:
        """Longest prompt and answer of one request."""

    def endpoints(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Of `wire.feed.ENDPOINT_GROUPS`: what an engine started with these parameters answers."""

    def slots(self, parameters: Mapping[str, Any]) -> int | None:
        """Requests that one instance works on at once; None: not known, so gateways let none wait."""


def gib(size_bytes: float) -> str:
    """`1.5 GiB`, or MiB below one: for sentences."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"
