"""Where the master keeps models: several locations, copies of versions in them, and their care."""

from models_registry.locations.find import find_blob, shared_dir

__all__ = ["find_blob", "shared_dir"]
