"""Work of the model registry that takes long, or is done by the clock."""

from __future__ import annotations

from celery import shared_task
from celery.schedules import crontab
from django.utils import timezone

from models_registry import aliases, removal, services
from models_registry.locations.tasks import BEAT as LOCATIONS_BEAT


@shared_task(name="models_registry.import_version")
def import_version(version_id: int) -> str:
    """Safe to be delivered again: it starts over, and does nothing when the version is there."""
    state = services.work_on(version_id, timezone.now())
    return state.value if state else "gone"


@shared_task(name="models_registry.heal_imports", ignore_result=True)
def heal_imports() -> None:
    services.heal_imports(timezone.now())


@shared_task(name="models_registry.expire_imports", ignore_result=True)
def expire_imports() -> None:
    services.expire_imports(timezone.now())


@shared_task(name="models_registry.clean_store", ignore_result=True)
def clean_store() -> None:
    removal.clean_store()


@shared_task(name="models_registry.settle_aliases", ignore_result=True)
def settle_aliases() -> None:
    aliases.settle_all(timezone.now())


BEAT = {
    "models-settle-aliases": {
        "task": "models_registry.settle_aliases",
        "schedule": 30.0,
        "options": {"expire_seconds": 30},
    },
    "models-heal-imports": {
        "task": "models_registry.heal_imports",
        "schedule": 10.0,
        "options": {"expire_seconds": 10},  # looks that came too late do not pile up behind long imports
    },
    "models-expire-imports": {"task": "models_registry.expire_imports", "schedule": 900.0},
    "models-clean-store": {"task": "models_registry.clean_store", "schedule": crontab(hour=3, minute=40)},
    **LOCATIONS_BEAT,
}
"""Entries for CELERY_BEAT_SCHEDULE."""
