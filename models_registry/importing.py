"""One way in for imports from elsewhere: pages, API and commands ask for a source here, and each gets what is its."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

from models_registry.fetching.services import MOST_PRIORITY
from models_registry.hub.services import start_hub_import
from models_registry.models import ModelVersion
from models_registry.modelscope.services import start_modelscope_import
from models_registry.s3.services import start_s3_import
from models_registry.urls.services import start_url_import

Asked = Mapping[str, Any]
_Common = dict[str, Any]

FETCHED = ("repo", "urls", "s3", "modelscope")
"""Names of sources, as the API has them."""


def start_fetch(asked: Asked, now: dt.datetime, by: str = "") -> ModelVersion:
    """Start the import of the one source of FETCHED that is in `asked`, with what else of it concerns that source.

    `asked` as `serializers.ImportSerializer` has it; `by`: who asks. Raises RegistryError.
    """
    common = {"version": asked.get("version"), "by": by, "now": now}
    common |= {name: asked.get(name) for name in ("limit_bytes_per_second", "location")}
    common |= {"priority": max(-MOST_PRIORITY, min(MOST_PRIORITY, asked.get("priority") or 0))}
    source = next(name for name in FETCHED if asked.get(name))
    return _STARTS[source](asked, asked.get("model") or "", common)


def _hub(asked: Asked, name: str, common: _Common) -> ModelVersion:
    return start_hub_import(
        asked["repo"],
        revision=asked.get("revision") or "main",
        patterns=asked.get("patterns") or (),
        name=name,
        token=asked.get("token"),
        **common,
    )


def _urls(asked: Asked, name: str, common: _Common) -> ModelVersion:
    secrets = {"headers": asked.get("headers"), "bearer_token": asked.get("bearer_token") or ""}
    return start_url_import(name, asked["urls"], **secrets, **common)


def _s3(asked: Asked, name: str, common: _Common) -> ModelVersion:
    return start_s3_import(name=name, patterns=asked.get("patterns") or (), **asked["s3"], **common)


def _modelscope(asked: Asked, name: str, common: _Common) -> ModelVersion:
    chosen = {"patterns": asked.get("patterns") or (), "token": asked.get("bearer_token") or ""}
    return start_modelscope_import(asked["modelscope"], name=name, **chosen, **common)


_STARTS: dict[str, Callable[[Asked, str, _Common], ModelVersion]] = {
    "repo": _hub,
    "urls": _urls,
    "s3": _s3,
    "modelscope": _modelscope,
}
