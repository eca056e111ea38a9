"""Pages of deployments and events: glue around `deployments.services`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.loader import render_to_string
from django.urls import URLPattern
from django.utils import timezone
from django.views.decorators.http import require_POST

from deployments import services
from deployments.errors import VersionConflict
from deployments.forms import DeployForm, UpdateForm, initial_of
from deployments.models import Deployment, Event, Instance, Phase
from deployments.routing import admin as routing_admin
from fleet.errors import FleetError
from fleet.orders import tail_logs_sync
from templates.base import PageAdmin, told, words_of
from templates.cells import cell
from wire.errors import Problem

__all__ = ["routing_admin"]  # its pages register themselves

LOG_LINES = 300
CONFLICT = "Somebody changed {name} since you opened the page. Nothing was done; look at what it is now and try again."


@admin.register(Deployment)
class DeploymentAdmin(PageAdmin):
    """Deployments: what should serve under a public model name, and how it does."""

    live_topic = "deployments"
    add_label = "Deploy"
    intro = "Public model names, what serves them, and how they do. State is derived from what servers report."
    list_display = ("name", "state", "ready", "served_model", "engine", "changed")
    search_fields = ("name", "description", "revision__model_version__model__name")
    list_filter = ("running",)
    list_select_related = ("revision", "revision__model_version", "revision__model_version__model", "alias")

    def get_queryset(self, request: HttpRequest) -> Any:
        return (
            super()
            .get_queryset(request)
            .filter(deleted_at__isnull=True)
            .defer("revision__model_version__manifest", "revision__model_version__metadata")
        )

    def list_title(self) -> str:
        return "Deployments"

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        found = (getattr(response, "context_data", None) or {}).get("cl")
        if found is not None:
            statuses = services.statuses(found.result_list)
            for row in found.result_list:
                row.status = statuses[row.pk]
        return response

    @admin.display(description="State")
    def state(self, row: Deployment) -> str:
        return cell("deployment", "state", row, status=row.status)

    @admin.display(description="Ready")
    def ready(self, row: Deployment) -> str:
        return cell("deployment", "ready", row, status=row.status)

    @admin.display(description="Model", ordering="revision__model_version__model__name")
    def served_model(self, row: Deployment) -> str:
        return cell("deployment", "model", row)

    @admin.display(description="Changed", ordering="updated_at")
    def changed(self, row: Deployment) -> str:
        return cell("deployment", "changed", row)

    @admin.display(description="Engine", ordering="revision__engine")
    def engine(self, row: Deployment) -> str:
        return cell("deployment", "engine", row)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # Django's own delete; ours is `delete_page`

    # ------------------------------------------------------------------------------------------------ pages

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = DeployForm(request.POST or None, initial={"model_version": request.GET.get("model_version")})
        if request.method == "POST" and form.is_valid():
            asked = form.cleaned_data
            row = self._save(
                request,
                form,
                lambda: services.create_deployment(
                    name=asked["name"],
                    description=asked["description"],
                    actor=request.user.get_username(),
                    now=timezone.now(),
                    **form.spec(),
                ),
            )
            if row is not None:
                messages.success(request, f"{row.name} is on its way. This page follows it.")
                return HttpResponseRedirect(self.url("change", row.pk))
        return self._form_page(request, form, "Deploy", button="Deploy")

    def edit(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        self.must_change(request, row)
        form = UpdateForm(request.POST or None, initial=initial_of(row))
        if request.method == "POST" and form.is_valid():
            asked = form.cleaned_data
            saved = self._save(
                request,
                form,
                lambda: services.update_deployment(
                    row,
                    if_version=asked["version"],
                    description=asked["description"],
                    actor=request.user.get_username(),
                    now=timezone.now(),
                    **form.spec(),
                ),
            )
            if saved is not None:
                messages.success(request, f"{row.name} is updated; a changed spec rolls out without losing requests.")
                return HttpResponseRedirect(self.url("change", row.pk))
        return self._form_page(request, form, f"Update {row.name}", button="Update", row=row)

    def _save(self, request: HttpRequest, form: DeployForm, act: Callable[[], Deployment]) -> Deployment | None:
        try:
            return act()
        except VersionConflict:
            form.add_error(None, CONFLICT.format(name="this deployment"))
        except Exception as error:
            text = words_of(error)
            if text is None:
                raise
            if not form.tell(error):
                form.add_error(None, text)
        return None

    def _form_page(self, request: HttpRequest, form: DeployForm, title: str, **context: Any) -> HttpResponse:
        return self.page(
            request,
            "stokehold/deploy.html",
            title,
            form=form,
            preview_url=self.url("preview"),
            has_models=form.fields["model_version"].queryset.exists(),
            **context,
        )

    def preview(self, request: HttpRequest) -> HttpResponse:
        """Fragments for the deploy form: what would happen, and the fields of the chosen engine."""
        if not (self.has_add_permission(request) or self.has_change_permission(request)):
            raise PermissionDenied
        form = (UpdateForm if "version" in request.POST else DeployForm)(request.POST)
        answer = {"preview": render_to_string("stokehold/live/preview.html", _preview(form))}
        if request.headers.get("X-Part") == "fields":
            fresh = DeployForm(initial={"engine": form.engine_name})
            answer["fields"] = render_to_string("stokehold/parts/parameters.html", {"form": fresh})
        return JsonResponse(answer)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        may_change = self.has_change_permission(request, row)
        may_delete = request.user.has_perm("deployments.delete_deployment")
        log_url = self.url("log", row.pk, "INSTANCE")
        return self.page(
            request,
            "stokehold/deployment.html",
            row.name,
            row=row,
            may_change=may_change,
            may_delete=may_delete,
            log_url=log_url,
        )

    # ------------------------------------------------------------------------------------------------ actions

    def own_urls(self) -> list[URLPattern]:
        return [
            self.route("preview/", require_POST(self.preview), "preview"),
            self.route("<int:object_id>/edit/", self.edit, "edit"),
            self.route("<int:object_id>/start/", self.start, "start"),
            self.route("<int:object_id>/stop/", self.stop, "stop"),
            self.route("<int:object_id>/restart/", self.restart, "restart"),
            self.route("<int:object_id>/scale/", require_POST(self.scale), "scale"),
            self.route("<int:object_id>/delete/", self.delete_page, "delete_page"),
            self.route("<int:object_id>/rollback/<int:number>/", self.rollback, "rollback"),
            self.route("<int:object_id>/log/<str:instance_id>/", self.log, "log"),
        ]

    def start(self, request: HttpRequest, object_id: int) -> HttpResponse:
        words = "Its instances are placed and started again."
        return self._act(request, object_id, "Start", services.start, words, "is starting.")

    def stop(self, request: HttpRequest, object_id: int) -> HttpResponse:
        words = "Clients get a clear error from then on. Requests in flight are finished first; replicas are kept."
        return self._act(request, object_id, "Stop", services.stop, words, "is stopping.", danger=True)

    def restart(self, request: HttpRequest, object_id: int) -> HttpResponse:
        words = (
            "Each instance is replaced by a new one, as a new revision with the same settings, without losing requests."
        )
        return self._act(request, object_id, "Restart", services.restart, words, "is restarting.")

    def rollback(self, request: HttpRequest, object_id: int, number: int) -> HttpResponse:
        def act(row: Deployment, **kwargs: Any) -> None:
            services.rollback(row, number, **kwargs)

        words = f"The spec of revision {number} rolls out as a new revision, without losing requests."
        return self._act(request, object_id, "Roll back", act, words, f"is rolling back to revision {number}.")

    def delete_page(self, request: HttpRequest, object_id: int) -> HttpResponse:
        if not request.user.has_perm("deployments.delete_deployment"):
            raise PermissionDenied
        words = "Clients get an error from then on; its instances end once their requests are done. Usage stays."
        return self._act(
            request, object_id, "Delete", services.delete, words, "is being deleted.", danger=True, away=True
        )

    def _act(
        self,
        request: HttpRequest,
        object_id: int,
        verb: str,
        act: Callable[..., Any],
        words: str,
        done: str,
        *,
        danger: bool = False,
        away: bool = False,
    ) -> HttpResponse:
        """A confirmed change of the version that the person looked at."""
        row = self.row_or_404(request, str(object_id))
        if not away:
            self.must_change(request, row)
        seen = request.POST.get("version", "")

        def run() -> None:
            version = int(seen) if seen.isdigit() else None
            try:
                act(row, if_version=version, now=timezone.now(), actor=request.user.get_username())
            except VersionConflict as error:
                raise _Told(CONFLICT.format(name=row.name)) from error

        return self.confirmed(
            request,
            f"{verb} {row.name}?",
            run,
            done=f"{row.name} {done}",
            back=self.url("changelist") if away and request.method == "POST" else self.url("change", row.pk),
            consequence=words,
            button=f"{verb} it",
            danger=danger,
            fields={"version": row.version},
        )

    def scale(self, request: HttpRequest, object_id: int) -> HttpResponse:
        row = self.row_or_404(request, str(object_id))
        self.must_change(request, row)
        replicas, seen = request.POST.get("replicas", ""), request.POST.get("version", "")
        if not replicas.isdigit() or not seen.isdigit():
            messages.error(request, "Give a whole number of instances.")
            return HttpResponseRedirect(self.url("change", row.pk))
        with told(request):
            try:
                services.scale(
                    row,
                    int(replicas),
                    if_version=int(seen),
                    now=timezone.now(),
                    actor=request.user.get_username(),
                )
                messages.success(request, f"{row.name} is scaling to {replicas}.")
            except VersionConflict:
                messages.error(request, CONFLICT.format(name=row.name))
        return HttpResponseRedirect(self.url("change", row.pk))

    def log(self, request: HttpRequest, object_id: int, instance_id: str) -> HttpResponse:
        """Last lines of an instance's output, asked of its agent now."""
        row = self.row_or_404(request, str(object_id))
        instance = Instance.objects.filter(deployment=row, pk=instance_id).exclude(phase=Phase.ENDED).first()
        if instance is None or not instance.server_id:
            raise Http404
        try:
            tail = tail_logs_sync(instance.server_id, instance.pk, lines=LOG_LINES)
        except FleetError as error:
            return JsonResponse({"lines": [], "error": words_of(error)})
        return JsonResponse({"lines": list(tail.lines), "error": tail.error})


class _Told(Problem):
    """An error that is shown as it is."""

    code = "version_conflict"


def _preview(form: DeployForm) -> dict[str, Any]:
    """What the preview shows; while a field is missing or wrong, it says which."""
    form.fields.get("name") and form.fields.pop("name")  # a preview needs none
    if not form.is_valid():
        missing = not (form.data.get("model_version") or form.data.get("alias"))
        wrong = [
            f"{form.fields[name].label or name}: {errors[0]}"
            for name, errors in form.errors.items()
            if name in form.fields
        ]
        return {"missing": missing, "wrong": [] if missing else wrong}
    try:
        return {"preview": services.preview(now=timezone.now(), **form.spec())}
    except Exception as error:
        text = words_of(error)
        if text is None:
            raise
        return {"wrong": [text]}


@admin.register(Event)
class EventAdmin(PageAdmin):
    """What happened, newest first."""

    live_topic = "events"
    intro = "What happened, in sentences, with what to do about it."
    list_display = ("moment", "severity_badge", "what", "deployment", "server")
    list_filter = ("severity", "kind")
    search_fields = ("message", "kind", "deployment__name", "server__name")
    list_select_related = ("deployment", "server")
    list_display_links = None
    list_per_page = 100

    @admin.display(description="When", ordering="at")
    def moment(self, row: Event) -> str:
        return cell("event", "at", row)

    @admin.display(description="Severity", ordering="severity")
    def severity_badge(self, row: Event) -> str:
        return cell("event", "severity", row)

    @admin.display(description="What")
    def what(self, row: Event) -> str:
        return cell("event", "what", row)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
