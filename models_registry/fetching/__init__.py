"""Imports from elsewhere, whatever the source: what a worker does, who gets how much of the line, and the verbs.

`kinds` one entry a source, `work` the fetch itself, `shares` and `schedule` who may be how fast (pure), `services`
pause, go on, slow down, put first, cancel.
"""
