"""Fetches files over HTTP: many ranges at once, straight to their place, hashed as they come, resumed after anything.

`spans` which bytes are there, `partial` one file on disk, `remote` one file at its source, `pace` speed limits and
meters, `downloader` the connections. No Django, no rows: bytes in, verified files out.
"""
