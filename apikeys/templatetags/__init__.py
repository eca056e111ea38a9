"""Template tags of keys."""
