"""Celery glue of monitoring."""

from celery import shared_task
from django.utils import timezone

from monitoring import samples


@shared_task(ignore_result=True)
def take_load_samples() -> int:
    return samples.take_samples(timezone.now())


@shared_task(ignore_result=True)
def drop_old_samples() -> int:
    return samples.drop_old(timezone.now())


BEAT = {
    "monitoring.take_load_samples": {"task": "monitoring.tasks.take_load_samples", "schedule": 60.0},
    "monitoring.drop_old_samples": {"task": "monitoring.tasks.drop_old_samples", "schedule": 6 * 3600.0},
}
