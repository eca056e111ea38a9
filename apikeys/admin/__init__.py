"""Pages of keys, projects and usage: glue around `apikeys.services` and `apikeys.usage`."""

from __future__ import annotations

from apikeys.admin import keys, management, projects, usage

__all__ = ["keys", "management", "projects", "usage"]
