"""Behind a TLS-terminating proxy, with PostgreSQL and Redis from the environment. `check --deploy` is clean."""

import os

from config.settings.base import *  # noqa: F403

ALLOWED_HOSTS = os.environ.get("STOKEHOLD_ALLOWED_HOSTS", "localhost").split(",")
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in ALLOWED_HOSTS]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = True
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^api/v1/join", r"^api/v1/blobs/"]  # own TLS on the link port
SECURE_HSTS_SECONDS = 31536000
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
SESSION_COOKIE_SECURE = True
CSRF_COOKIE_SECURE = True
LINK_BEHIND_PROXY = True
