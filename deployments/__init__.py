"""Deployments, their revisions and instances, and the controller that places them."""
