"""Projects, keys, quotas and usage."""
