"""Behind a TLS-terminating proxy, with PostgreSQL and Redis from the environment. `check --deploy` is clean."""

import os
from urllib.parse import urlsplit

from config.settings.base import *  # noqa: F403

_PEOPLE_USE = os.environ.get("STOKEHOLD_ALLOWED_HOSTS", "localhost").split(",")
_NODES_USE = [urlsplit(LINK_BASE_URL).hostname or "", "localhost", "127.0.0.1", "[::1]"]  # noqa: F405  links, probes
ALLOWED_HOSTS = [*_PEOPLE_USE, *_NODES_USE]
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in _PEOPLE_USE]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = True
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^api/v1/(join|blobs/|manifests/)"]  # own TLS on the link port
SECURE_HSTS_SECONDS = 31536000
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
SESSION_COOKIE_SECURE = True
CSRF_COOKIE_SECURE = True
LINK_BEHIND_PROXY = True
TRUSTED_PROXIES = os.environ.get("STOKEHOLD_TRUSTED_PROXIES", "127.0.0.0/8,::1/128").split(",")
