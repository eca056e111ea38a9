"""The model files of this server: what is here (`store`, `cache`), and how it comes (`swarm`)."""

from agent.store.store import Store

__all__ = ["Store"]
