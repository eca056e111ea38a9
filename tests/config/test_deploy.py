"""Django's own checks, with the production settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from config.home import SOURCE_DIR


def test_the_production_settings_pass_the_deployment_check(tmp_path: Path) -> None:
    environment = os.environ | {
        "STOKEHOLD_HOME": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "config.settings.production",
        "STOKEHOLD_ALLOWED_HOSTS": "stokehold.example.org",
    }
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    done = subprocess.run(command, cwd=SOURCE_DIR, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
