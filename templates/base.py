"""Base class of our admin pages, and how an error of a service is shown to a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.admin import ModelAdmin

from wire.errors import Problem


def words_of(error: Exception) -> str | None:
    """What to tell a person about an error of a service, with its remedy; None when it is not one of ours."""
    if isinstance(error, ValidationError):
        return " ".join(error.messages)
    if not isinstance(error, Problem):
        return None
    first = error.message.split(" ", 1)[0]
    message = error.message[:1].upper() + error.message[1:] if first.isalpha() else error.message  # else a file's name
    return f"{message.rstrip('.')}. {error.remedy}".strip() if error.remedy else message


@contextmanager
def told(request: HttpRequest) -> Iterator[None]:
    """Shows an error of a service as a message instead of a failed page; anything else goes on up."""
    try:
        yield
    except Exception as error:
        text = words_of(error)
        if text is None:
            raise
        messages.error(request, text)


class PageAdmin(ModelAdmin):
    """Admin of rows that only services change: no bulk delete, own pages, own actions."""

    actions: Any = None
    list_per_page = 50
    list_fullwidth = True
    list_filter_sheet = False
    list_before_template = "stokehold/list_before.html"
    live_topic = ""
    add_label = "Add"
    intro = ""

    # ------------------------------------------------------------------------------------------------ pages

    def page(self, request: HttpRequest, template: str, title: str, **context: Any) -> TemplateResponse:
        """A page of our own in the admin's frame."""
        request.current_app = self.admin_site.name
        frame = {
            **self.admin_site.each_context(request),
            "opts": None,
            "meta": self.opts,
            "title": title,
            "content_title": title,
            "is_fullwidth": "1",
            "list_url": self.url("changelist"),
            "model_admin": self,
        }
        return TemplateResponse(request, template, {**frame, **context})

    def url(self, name: str, *args: Any) -> str:
        """Address of one of this admin's pages, e.g. `changelist`, `change`, or an action's name."""
        return reverse(f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{name}", args=args)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        shown = {"live_topic": self.live_topic, "intro": self.intro, "title": self.list_title()}
        return super().changelist_view(request, {**shown, **(extra_context or {})})

    def list_title(self) -> str:
        return str(self.opts.verbose_name_plural).capitalize()

    # ------------------------------------------------------------------------------------------------ actions

    def own_urls(self) -> list[URLPattern]:
        """Further addresses of a subclass, before Django's own."""
        return []

    def get_urls(self) -> list[URLPattern]:
        return self.own_urls() + super().get_urls()

    def route(self, address: str, view: Callable[..., HttpResponse], name: str) -> URLPattern:
        label = f"{self.opts.app_label}_{self.opts.model_name}_{name}"
        return path(address, self.admin_site.admin_view(view), name=label)

    def row_or_404(self, request: HttpRequest, object_id: str) -> Any:
        """The row, if this person may see it."""
        row = self.get_object(request, object_id)
        if row is None or not self.has_view_permission(request, row):
            raise Http404
        return row

    def must_change(self, request: HttpRequest, row: Model | None = None) -> None:
        if not self.has_change_permission(request, row):
            raise PermissionDenied

    def confirmed(
        self, request: HttpRequest, title: str, act: Callable[[], None], *, done: str, back: str, **context: Any
    ) -> HttpResponse:
        """Asks on GET, acts on POST, and tells how it went. `context`: `consequence`, `button`, `danger`, `fields`."""
        if request.method != "POST":
            return self.page(request, "stokehold/confirm.html", title, back=back, **context)
        with told(request):
            act()
            messages.success(request, done)
        return HttpResponseRedirect(back)
