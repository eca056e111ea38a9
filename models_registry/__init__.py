"""Models, their versions, and the store of their files."""
