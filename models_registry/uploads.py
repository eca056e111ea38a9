"""Uploads of any size go straight to a file beside the store, never into memory."""

from __future__ import annotations

import errno
import shutil
import tempfile
from typing import Any

from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.core.files.uploadhandler import TemporaryFileUploadHandler

from models_registry.errors import NoSpace
from models_registry.services import store
from models_registry.store import SPARE_BYTES


class _StoreUpload(TemporaryUploadedFile):
    def __init__(self, name: str, content_type: str, size: int, charset: str, extra: Any = None) -> None:
        file = tempfile.NamedTemporaryFile(suffix=".upload", dir=store().uploads_folder())  # noqa: SIM115
        UploadedFile.__init__(self, file, name, content_type, size, charset, extra)


class StoreUploadHandler(TemporaryFileUploadHandler):
    """Set it as the request's only upload handler before the body is read.

    Raises NoSpace when the body is, or proves to be, larger than the disk.
    """

    def handle_raw_input(self, input_data: Any, META: Any, content_length: int, *args: Any, **kwargs: Any) -> None:
        if content_length + SPARE_BYTES > shutil.disk_usage(store().uploads_folder()).free:
            raise _full(content_length)

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        try:
            super().receive_data_chunk(raw_data, start)
        except OSError as error:
            self.file.close()  # which removes it
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(start) from error
            raise

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super(TemporaryFileUploadHandler, self).new_file(*args, **kwargs)
        self.file = _StoreUpload(self.file_name, self.content_type, 0, self.charset, self.content_type_extra)


def _full(size_bytes: int) -> NoSpace:
    return NoSpace(
        f"The upload of {size_bytes / 1e9:.2f} GB does not fit on the disk of the model store.",
        remedy="Free disk space, or delete model versions that nothing uses.",
    )
