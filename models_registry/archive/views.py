"""An export over HTTP: the tar is sent as it is read, and its size is told before."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from models_registry.archive.services import chunks_of, tar_of
from models_registry.models import ModelVersion


def tar_response(request: HttpRequest, version: ModelVersion) -> HttpResponseBase:
    """Raises NotReady."""
    plan = tar_of(version)
    name = f"{version.model.name.replace('/', '_')}-{version.version}.tar"
    headers = {"Content-Length": str(plan.size), "Content-Disposition": f'attachment; filename="{name}"'}
    if request.method == "HEAD":
        return HttpResponse(headers=headers, content_type="application/x-tar")
    return StreamingHttpResponse(chunks_of(plan), headers=headers, content_type="application/x-tar")
