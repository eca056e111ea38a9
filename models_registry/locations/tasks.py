"""Work on locations that takes long, or is done by the clock."""

from __future__ import annotations

from celery import shared_task
from celery.schedules import crontab
from django.utils import timezone

from models_registry.location_models import UNDER_WAY
from models_registry.locations import jobs, services
from models_registry.locations.repair import repair_all


@shared_task(name="models_registry.storage_job")
def storage_job(job_id: int) -> str:
    """Safe to be delivered again: it goes on where the last one was, and does nothing when it is done."""
    state = jobs.finish_job(job_id, timezone.now())
    if state not in UNDER_WAY:
        jobs.start_next()
    return state.value if state else "gone"


@shared_task(name="models_registry.heal_storage_jobs", ignore_result=True)
def heal_storage_jobs() -> None:
    jobs.heal_jobs(timezone.now())


@shared_task(name="models_registry.look_at_locations", ignore_result=True)
def look_at_locations() -> None:
    services.look_at_all(timezone.now())


@shared_task(name="models_registry.scrub", ignore_result=True)
def scrub() -> None:
    jobs.start_due_scrub(timezone.now())


@shared_task(name="models_registry.repair_copies", ignore_result=True)
def repair_copies() -> None:
    repair_all()


_SOON = {"expire_seconds": 60}  # looks that came too late do not pile up behind long work
BEAT = {
    "storage-heal-jobs": {
        "task": "models_registry.heal_storage_jobs",
        "schedule": 10.0,
        "options": {"expire_seconds": 10},
    },
    "storage-look": {"task": "models_registry.look_at_locations", "schedule": 60.0, "options": _SOON},
    "storage-scrub": {"task": "models_registry.scrub", "schedule": 60.0, "options": _SOON},
    "storage-repair": {"task": "models_registry.repair_copies", "schedule": crontab(hour=4, minute=20)},
}
