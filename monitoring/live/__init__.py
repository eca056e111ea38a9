"""Live pages: a topic renders the fragments (slots) of one page, from the same templates as its first load."""
