"""Samples for charts; the live values are in the rows of the other apps."""

from __future__ import annotations

from django.db import models

from fleet.models import Server


class LoadSample(models.Model):
    """Load of a server, averaged over one minute. Deleted after two weeks."""

    server = models.ForeignKey(Server, on_delete=models.CASCADE, related_name="samples")
    at = models.DateTimeField(db_index=True)  # start of the minute
    cpu_percent = models.FloatField()
    memory_percent = models.FloatField()
    disk_percent = models.FloatField()
    gpu_percent = models.FloatField(null=True)
    gpu_memory_percent = models.FloatField(null=True)

    class Meta:
        ordering = ["-at"]
        constraints = [models.UniqueConstraint(fields=["server", "at"], name="one_sample_a_minute")]

    def __str__(self) -> str:
        return f"{self.server} {self.at:%H:%M}"
