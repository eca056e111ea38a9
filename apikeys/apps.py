"""Registers what is audited."""

from django.apps import AppConfig


class ApiKeysConfig(AppConfig):
    name = "apikeys"
    verbose_name = "Projects and keys"

    def ready(self) -> None:
        from auditlog.registry import auditlog  # has models: not before the apps are loaded

        auditlog.register(self.get_model("Project"), exclude_fields=["updated_at"])
        auditlog.register(self.get_model("Membership"))
        auditlog.register(self.get_model("ApiKey"), exclude_fields=["secret_hash", "updated_at", "last_used_at"])
