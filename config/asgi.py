"""ASGI entry of the master: Django over HTTP, links of agents and gateways, and live pages over websockets."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.embedded")
http_application = get_asgi_application()  # loads the apps, so the imports below come after it
