"""Settings common to every way of running the master. Values come from the home folder and the environment."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import dj_database_url
import structlog

from config.home import SOURCE_DIR, Home
from wire.feed import ENDPOINT_GROUPS
from wire.versions import RELEASE

HOME = Home.current()
OPTIONS = HOME.options()
SECRETS = HOME.secrets()
BASE_DIR = SOURCE_DIR

SECRET_KEY = os.environ.get("STOKEHOLD_SECRET_KEY") or SECRETS["secret_key"]
KEY_PEPPER = os.environ.get("STOKEHOLD_KEY_PEPPER") or SECRETS["key_pepper"]
# Keys that seal secrets in the database (`fleet.sealed`): the first seals, all open.
FIELD_KEYS = (os.environ.get("STOKEHOLD_FIELD_KEYS") or SECRETS["field_key"]).replace(",", " ").split()
DEBUG = False
ALLOWED_HOSTS = ["*"]
CA_DIR = HOME.ca
MODEL_STORE_DIR = HOME.models
HUB_ENDPOINT = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
HUB_TOKEN = os.environ.get("HF_TOKEN", "")
HUB_CONNECTIONS = 16  # of all fetches together
MODELSCOPE_ENDPOINT = os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn"
MODELSCOPE_TOKEN = os.environ.get("MODELSCOPE_API_TOKEN", "")
IMPORT_ROOTS = [one for one in os.environ.get("STOKEHOLD_IMPORT_ROOTS", "").split(":") if one]
"""Folders on this machine below which models may be taken in; none: anywhere but what is the machine's own."""
FETCH_FROM_LOOPBACK = os.environ.get("STOKEHOLD_FETCH_FROM_LOOPBACK", "") == "1"  # URLs and buckets on this machine
BLOB_ACCEL_PREFIX = os.environ.get("STOKEHOLD_BLOB_ACCEL_PREFIX", "").rstrip("/")
"""Internal location of an nginx in front (`X-Accel-Redirect`) that hands out files; empty: Python sends them."""
LICENSES_TO_ACCEPT = [
    one for one in os.environ.get("STOKEHOLD_LICENSES_TO_ACCEPT", "").replace(",", " ").split() if one
]
"""Patterns of licences, as sources name them, that somebody must accept before a model is deployed: `llama* gemma`."""
SCRUB_EVERY_DAYS = float(os.environ.get("STOKEHOLD_SCRUB_DAYS") or 30)  # each copy of a model is read again; 0: never
SCRUB_BYTES_PER_SECOND = int(os.environ.get("STOKEHOLD_SCRUB_BYTES_PER_SECOND") or 100_000_000)  # at most; 0: no limit
SPREAD_BYTES_PER_SECOND = int(os.environ.get("STOKEHOLD_SPREAD_BYTES_PER_SECOND") or 0)  # to all servers; 0: any
PIECES_DIR = HOME.path / "pieces"  # hashes of pieces of files, for servers

MASTER_PORT = int(OPTIONS.get("port", 8000))
GATEWAY_PORT = int(OPTIONS.get("gateway_port", 8080))
LINK_PORT = int(OPTIONS.get("link_port", 8443))
MASTER_BASE_URL = os.environ.get("STOKEHOLD_MASTER_URL") or f"http://127.0.0.1:{MASTER_PORT}"
GATEWAY_BASE_URL = os.environ.get("STOKEHOLD_GATEWAY_URL") or f"http://127.0.0.1:{GATEWAY_PORT}/v1"
LINK_BEHIND_PROXY = False  # True: nodes come through a TLS proxy to the plain port, which says X-Forwarded-Proto: https
MAX_BODY_BYTES = 16 * 1024 * 1024
LINK_BASE_URL = os.environ.get("STOKEHOLD_LINK_URL") or f"https://127.0.0.1:{LINK_PORT}"

# How the control loop waits. Seconds.
LEASE_S = 15.0  # three heartbeats: then a server is lost
EVICT_AFTER_S = 30.0  # after being lost: then its instances are placed elsewhere
MASS_LOSS_WINDOW_S = 60.0
MASS_LOSS_SHARE = 0.34  # of the servers, and at least two: then nothing is evicted
DRAIN_TIMEOUT_S = 600.0
LEADER_LEASE_S = 5.0

INSTALLED_APPS = [
    *(["daphne"] if "runserver" in sys.argv else []),  # only gives `runserver` websockets; 0.5 s of imports elsewhere
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_celery_beat",
    "django_celery_results",
    "django_structlog",
    "auditlog",
    "axes",
    "config",
    "fleet",
    "models_registry",
    "deployments",
    "apikeys",
    "monitoring",
    "templates",
]
TRUSTED_PROXIES: list[str] = []  # CIDRs whose X-Forwarded-For tells a client's address
MIDDLEWARE = [
    "config.proxies.ClientAddress",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_structlog.middlewares.RequestMiddleware",
    "auditlog.middleware.AuditlogMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASE_URL = os.environ.get("DATABASE_URL") or OPTIONS.get("database_url") or f"sqlite:///{HOME.database}"
DATABASES = {"default": dj_database_url.parse(DATABASE_URL)}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # WAL with IMMEDIATE transactions: deferred ones meet 'database is locked' as soon as two processes write.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
    }
else:
    DATABASES["default"].setdefault("OPTIONS", {})["connect_timeout"] = 5
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
DATABASES["default"]["CONN_MAX_AGE"] = 60
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS_URL = os.environ.get("REDIS_URL", "")
if REDIS_URL:
    CELERY_BROKER_URL = CHANNEL_URL = REDIS_URL
else:
    # One socket, three spellings: each library has its own scheme for it.
    CELERY_BROKER_URL = f"redis+socket://{HOME.valkey_socket}"
    CHANNEL_URL = f"unix://{HOME.valkey_socket}"
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [CHANNEL_URL], "prefix": "stokehold"},
    }
}
CELERY_RESULT_BACKEND = "django-db"
CELERY_TASK_TRACK_STARTED = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 12 * 3600}  # longer than the longest import
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_TIMEZONE = "UTC"

AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=5)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
SESSION_COOKIE_NAME = "stokehold_session"
CSRF_COOKIE_NAME = "stokehold_csrf"
SESSION_COOKIE_HTTPONLY = True
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = HOME.path / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True  # no collectstatic needed to start

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "apikeys.authentication.ManagementKeyAuthentication",
        "apikeys.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["config.permissions.StaffModelPermissions"],
    "DEFAULT_FILTER_BACKENDS": [
        "django_filters.rest_framework.DjangoFilterBackend",
        "rest_framework.filters.OrderingFilter",
        "rest_framework.filters.SearchFilter",
    ],
    "DEFAULT_PAGINATION_CLASS": "config.pagination.Pages",
    "PAGE_SIZE": 50,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "config.problems.exception_handler",
    "URL_FORMAT_OVERRIDE": None,  # `format` is a filter of ours: the file format of a model
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SIMPLE_JWT = {
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=30),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=7),
    "SIGNING_KEY": SECRETS["jwt_key"],
    "UPDATE_LAST_LOGIN": True,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Stokehold",
    "DESCRIPTION": "Servers, models, deployments, keys and usage of one LM service. "
    "Errors are RFC 9457 problem documents with a `remedy`.",
    "VERSION": RELEASE,
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    "ENUM_NAME_OVERRIDES": {
        "NodeRoleEnum": "fleet.models.Role",
        "ModelVersionStateEnum": "models_registry.models.VersionState",
        "CopyStateEnum": "models_registry.location_models.CopyState",
        "LocationKindEnum": "models_registry.location_models.LocationKind",
        "StorageJobKindEnum": "models_registry.location_models.JobKind",
        "StorageJobStateEnum": "models_registry.location_models.JobState",
        "EndpointGroupEnum": [(group, group) for group in ENDPOINT_GROUPS],
    },
}
AUDITLOG_INCLUDE_ALL_MODELS = False

UNFOLD = {
    "SITE_TITLE": "Stokehold",
    "SITE_HEADER": "Stokehold",
    "SITE_SUBHEADER": "One LM service from many servers",
    "SITE_ICON": "/static/stokehold/logo.svg",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "/static/stokehold/logo.svg"}],
    "SITE_URL": None,
    "BORDER_RADIUS": "6px",
    "COLORS": {
        "primary": {
            "50": "oklch(98% .016 73.684)",
            "100": "oklch(95.4% .038 75.164)",
            "200": "oklch(90.1% .076 70.697)",
            "300": "oklch(83.7% .128 66.29)",
            "400": "oklch(75% .183 55.934)",
            "500": "oklch(66% .2 47.604)",
            "600": "oklch(56.5% .182 41.116)",
            "700": "oklch(51% .17 39.5)",
            "800": "oklch(44% .145 38.172)",
            "900": "oklch(38% .115 38.172)",
            "950": "oklch(26.6% .079 36.259)",
        },
    },
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "DASHBOARD_CALLBACK": "monitoring.dashboard.dashboard_callback",
    "STYLES": ["/static/stokehold/stokehold.css"],
    "SCRIPTS": ["/static/stokehold/live.js", "/static/stokehold/charts.js"],
    "SIDEBAR": {
        "show_search": True,
        "navigation": "monitoring.navigation.sidebar",
    },
}

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.filter_by_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processor": structlog.processors.JSONRenderer(),
            "foreign_pre_chain": [
                structlog.contextvars.merge_contextvars,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
            ],
        },
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("STOKEHOLD_LOG_LEVEL", "INFO")},
    "loggers": {
        "django_structlog": {"level": "WARNING"},
        "axes": {"level": "WARNING"},
        "daphne": {"level": "WARNING"},
        "django.channels.server": {"level": "WARNING"},
    },
}
SILENCED_SYSTEM_CHECKS: list[str] = []
