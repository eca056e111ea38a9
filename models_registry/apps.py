"""Registers what is audited."""

from django.apps import AppConfig


class ModelsRegistryConfig(AppConfig):
    name = "models_registry"
    verbose_name = "Models"

    def ready(self) -> None:
        from auditlog.registry import auditlog  # has models: not before the apps are loaded

        auditlog.register(self.get_model("Model"))
        auditlog.register(self.get_model("Pin"))
        auditlog.register(self.get_model("ModelVersion"), exclude_fields=["progress", "manifest", "metadata", "scan"])
        auditlog.register(self.get_model("ModelAlias"))
