"""For pytest: a throw-away home, fast password hashing, tasks run at once, channels in memory."""

import os
import tempfile

os.environ.setdefault("STOKEHOLD_HOME", tempfile.mkdtemp(prefix="stokehold-test-"))

from config.settings.base import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
CELERY_TASK_ALWAYS_EAGER = True
CELERY_TASK_EAGER_PROPAGATES = False
CELERY_RESULT_BACKEND = "cache+memory://"
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
AXES_ENABLED = False
MODELSCOPE_ENDPOINT = "http://127.0.0.1:9"
HUB_ENDPOINT = "http://127.0.0.1:9"  # nobody is there: a test that looks at a Hub brings its own
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":  # noqa: F405
    # A file, so that threads of one test see one database, with the locks that it has in earnest.
    DATABASES["default"]["TEST"] = {"NAME": str(HOME.path / "test.sqlite3")}  # noqa: F405
