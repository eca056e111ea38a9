"""The Celery app: imports, retention, notifications. Each app's `tasks.BEAT` says what runs when."""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.embedded")
app = Celery("stokehold")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

APPS_WITH_TASKS = ("fleet", "models_registry", "deployments", "apikeys", "monitoring")


def beat_schedule() -> dict[str, dict[str, Any]]:
    """All periodic tasks; the database scheduler keeps its rows in step with them at each start of beat."""
    schedule: dict[str, dict[str, Any]] = {}
    for name in APPS_WITH_TASKS:
        if find_spec(f"{name}.tasks") is not None:
            schedule |= getattr(import_module(f"{name}.tasks"), "BEAT", {})
    return schedule


@app.on_after_finalize.connect
def _schedule(sender: Celery, **_: Any) -> None:
    sender.conf.beat_schedule = beat_schedule()
