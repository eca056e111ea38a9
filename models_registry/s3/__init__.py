"""Buckets of S3 and of what speaks like it, as a source: `sign` (pure), `client` (what is there), `imports`."""
