"""Connects what agents report to this app's rows."""

from typing import Any

from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    name = "deployments"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from fleet.signals import server_observed
        from models_registry.signals import store_damaged
        from models_registry.words import tell_fits_with

        tell_fits_with(_fits_of)
        server_observed.connect(_take_over, dispatch_uid="deployments.record_observed")
        store_damaged.connect(_tell_damage, dispatch_uid="deployments.tell_damage")


def _take_over(sender: Any, *, server_id: str, observed: Any, now: Any, **kwargs: Any) -> None:
    from deployments.observe import record_observed

    record_observed(server_id, observed, now)


def _fits_of(versions: Any, now: Any) -> Any:
    from deployments.fit import fits_of

    return fits_of(versions, now)


def _tell_damage(sender: Any, *, copy: Any, now: Any, **kwargs: Any) -> None:
    from deployments.events import log_event
    from deployments.models import Severity

    log_event(
        "store.damaged",
        f"{copy} is {copy.state}: {copy.problem}.",
        now=now,
        severity=Severity.ERROR,
        remedy="Import the version again, or copy it from elsewhere: nothing was found to repair it from.",
    )
