"""Errors of the launcher: one sentence that says what happened and what to do."""


class LauncherError(Exception):
    """Its text is shown as it is; `lines` (a process's last output) below it."""

    def __init__(self, message: str, lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.lines = lines
