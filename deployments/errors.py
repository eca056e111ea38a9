"""Errors of the deployment services; the REST API turns each into a problem document."""

from __future__ import annotations

from wire.errors import Problem


class DeploymentError(Problem):
    """Something that was asked and is not done; nothing was changed."""

    code = "deployment_error"
    status = 400
    remedy = "Correct what the message names and try again."


class InvalidSpec(DeploymentError):
    """A field has a value that cannot be; `details["errors"]` maps fields to what is wrong."""

    code = "invalid_spec"

    def __init__(self, errors: dict[str, str], *, remedy: str | None = None) -> None:
        text = "; ".join(f"{field}: {problem}" for field, problem in errors.items())
        super().__init__(text, remedy=remedy, errors=errors)


class NameInUse(DeploymentError):
    code = "name_in_use"
    status = 409
    remedy = "Choose another name, or change what has it: deployments and routes share their names."


class ModelNotReady(DeploymentError):
    code = "model_not_ready"
    status = 409
    remedy = "Wait until its import is done, or import it again when it failed."


class LicenseNotAccepted(DeploymentError):
    code = "license_not_accepted"
    status = 409
    remedy = (
        "Read the licence, then accept it on the model version's page, or POST .../model-versions/ID/accept-license/."
    )


class PickleRefused(DeploymentError):
    code = "pickle_refused"
    status = 409
    remedy = (
        "Import the model as safetensors or GGUF. If you trust its maker, an administrator can allow the files of this "
        "version on its page."
    )


class NotRunning(DeploymentError):
    code = "not_running"
    status = 409
    remedy = "Start it."


class VersionConflict(DeploymentError):
    """Somebody changed the deployment since it was read."""

    code = "version_conflict"
    status = 412
    remedy = "Read it again, look at what changed, and repeat with the new ETag."


class BeingDeleted(DeploymentError):
    code = "being_deleted"
    status = 409
    remedy = "Wait until it is gone and create it again."


class UnknownRevision(DeploymentError):
    code = "unknown_revision"
    status = 404
    remedy = "GET /api/v1/revisions/?deployment=ID lists the revisions there are."


class DeploymentInUse(DeploymentError):
    code = "deployment_in_use"
    status = 409
    remedy = "Take it out of these routes first: GET /api/v1/routes/ shows them."


class InvalidRoute(DeploymentError):
    code = "invalid_route"
    remedy = "Correct what the message names; docs/routing.md says what a route may have."


class RouteInUse(DeploymentError):
    code = "route_in_use"
    status = 409
    remedy = "Take it out of these routes first."


class InvalidProvider(DeploymentError):
    code = "invalid_provider"
    remedy = "Give an address like https://api.example.com/v1 (http only on this machine), and the key it issued."


class ProviderInUse(DeploymentError):
    code = "provider_in_use"
    status = 409
    remedy = "Take it out of these routes first."


class InvalidPrice(DeploymentError):
    code = "invalid_price"
    remedy = "Give prices per million tokens, from 0 on, for a public model name."
