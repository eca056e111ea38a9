"""Pages of keys, projects and usage: glue around `apikeys.services` and `apikeys.usage`."""

from __future__ import annotations

from apikeys.admin import keys, projects, usage

__all__ = ["keys", "projects", "usage"]
