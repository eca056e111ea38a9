"""Public names that lead to others: weighted shares, fallbacks, aliases; providers outside; prices."""
