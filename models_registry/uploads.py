"""Uploads of any size go straight to a file beside the store, never into memory."""

from __future__ import annotations

import tempfile
from typing import Any

from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.core.files.uploadhandler import TemporaryFileUploadHandler

from models_registry.services import store


class _StoreUpload(TemporaryUploadedFile):
    def __init__(self, name: str, content_type: str, size: int, charset: str, extra: Any = None) -> None:
        file = tempfile.NamedTemporaryFile(suffix=".upload", dir=store().uploads_folder())  # noqa: SIM115
        UploadedFile.__init__(self, file, name, content_type, size, charset, extra)


class StoreUploadHandler(TemporaryFileUploadHandler):
    """Set it as the request's only upload handler before the body is read."""

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super(TemporaryFileUploadHandler, self).new_file(*args, **kwargs)
        self.file = _StoreUpload(self.file_name, self.content_type, 0, self.charset, self.content_type_extra)
