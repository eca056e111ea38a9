"""Lists of http(s) URLs as a source: how they are written (`parse`), and how they are fetched (`imports`)."""
