"""Start of monitoring: audit and roles."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class MonitoringConfig(AppConfig):
    name = "monitoring"

    def ready(self) -> None:
        from monitoring import audit, roles, tenants

        audit.register_all()
        tenants.start()
        post_migrate.connect(roles.ensure_roles, sender=self, dispatch_uid="monitoring.roles")
