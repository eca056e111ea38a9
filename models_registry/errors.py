"""Errors of the model registry: each has a stable `code`, an HTTP `status`, a message for a person, and a remedy."""

from __future__ import annotations

from wire.errors import Problem


class RegistryError(Problem):
    """A model could not be taken in, found or removed."""

    code = "registry_error"
    status = 400
    remedy = "Correct the request and send it again."


class BadSource(RegistryError):
    """The file or folder to import cannot be taken as it is."""

    code = "bad_source"
    remedy = "Give a readable file, or a folder with the model's files, on the master's machine."


class DamagedModel(RegistryError):
    """A model file's header contradicts the file."""

    code = "damaged_model"
    status = 422
    remedy = "Download the file again and compare its size and sha256 with the publisher's, then import it again."


class NoSpace(RegistryError):
    code = "no_space"
    status = 507
    remedy = "Free disk space, delete model versions that nothing uses, or import with --link on the same file system."


class InvalidName(RegistryError):
    code = "invalid_name"
    remedy = "Letters, digits, '.', '_' and '-' (in a model's name '/' too), first a letter or digit."


class VersionTaken(RegistryError):
    code = "version_taken"
    status = 409
    remedy = "Give another version, or none to have the next free number."


class VersionInUse(RegistryError):
    code = "version_in_use"
    status = 409
    remedy = "Delete these deployments, or move them to another model version first."


class NotReady(RegistryError):
    code = "version_not_ready"
    status = 409
    remedy = "Wait until the import is done, or import it again if it failed."
