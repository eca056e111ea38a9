"""Pages of the parts we build on, in the same look: people, audit log, tasks, sign-in attempts."""

from __future__ import annotations

from typing import Any

from auditlog.admin import LogEntryAdmin as AuditAdmin
from auditlog.models import LogEntry
from axes.admin import AccessAttemptAdmin as AttemptAdmin
from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Model
from django.http import HttpRequest
from django_celery_beat.admin import ClockedScheduleAdmin as BeatClockedAdmin
from django_celery_beat.admin import PeriodicTaskAdmin as BeatTaskAdmin
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from django_celery_results.admin import TaskResultAdmin as ResultAdmin
from django_celery_results.models import GroupResult, TaskResult
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

for model in (
    User,
    Group,
    LogEntry,
    PeriodicTask,
    IntervalSchedule,
    CrontabSchedule,
    SolarSchedule,
    ClockedSchedule,
    TaskResult,
    GroupResult,
    AccessAttempt,
    AccessLog,
    AccessFailureLog,
):
    if admin.site.is_registered(model):
        admin.site.unregister(model)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):
    """People. Nobody gives away, or takes over, more than they may themselves; only superusers touch superusers."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    add_label = "Add a person"
    list_fullwidth = True
    list_display = ("username", "email", "first_name", "last_name", "is_staff", "is_active", "last_login")

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return super().has_change_permission(request, obj) and self._may_touch(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return super().has_delete_permission(request, obj) and self._may_touch(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        """Nobody raises themselves above their own permissions."""
        if request.user.is_superuser:
            return super().get_readonly_fields(request, obj)
        return (*super().get_readonly_fields(request, obj), "is_superuser", "user_permissions")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "groups" and not request.user.is_superuser:
            kwargs["queryset"] = Group.objects.filter(pk__in=_groups_within(request.user))
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def _may_touch(self, request: HttpRequest, obj: Any) -> bool:
        """Whoever may do more than oneself is not to be changed: a password is enough to become them."""
        if request.user.is_superuser or obj is None or obj.pk == request.user.pk:
            return True
        return not obj.is_superuser and obj.get_all_permissions() <= request.user.get_all_permissions()


def _groups_within(user: Any) -> list[int]:
    """Groups that hold nothing that this person may not do anyway."""
    own = user.get_all_permissions()
    groups = Group.objects.prefetch_related("permissions__content_type")
    return [
        group.pk
        for group in groups
        if {f"{one.content_type.app_label}.{one.codename}" for one in group.permissions.all()} <= own
    ]


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    """Roles: viewer, operator, admin, and an installation's own."""

    add_label = "Add a group"
    list_fullwidth = True

    def has_add_permission(self, request: HttpRequest) -> bool:
        return super().has_add_permission(request) and request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return super().has_change_permission(request, obj) and request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return super().has_delete_permission(request, obj) and request.user.is_superuser


@admin.register(LogEntry)
class LogEntryAdmin(AuditAdmin, ModelAdmin):
    """Who changed what, append-only."""

    list_fullwidth = True
    list_select_related = ("content_type", "actor")

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(BeatTaskAdmin, ModelAdmin):
    """What beat starts, and when."""

    list_fullwidth = True


@admin.register(ClockedSchedule)
class ClockedScheduleAdmin(BeatClockedAdmin, ModelAdmin):
    """One moment."""


@admin.register(IntervalSchedule, CrontabSchedule, SolarSchedule)
class ScheduleAdmin(ModelAdmin):
    """When a periodic task runs."""


@admin.register(TaskResult)
class TaskResultAdmin(ResultAdmin, ModelAdmin):
    """What workers did."""

    list_fullwidth = True


@admin.register(AccessAttempt)
class AccessAttemptAdmin(AttemptAdmin, ModelAdmin):
    """Failed sign-ins that count towards a lock."""

    list_fullwidth = True
