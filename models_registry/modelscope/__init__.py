"""ModelScope, and what speaks like it, as a source: `client` (what is there), `imports`, `services`."""
