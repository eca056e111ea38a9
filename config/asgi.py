"""ASGI entry of the master: Django over HTTP, links of agents and gateways, and live pages over websockets."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.embedded")
http_application = get_asgi_application()  # loads the apps, so the imports below come after it

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

from config.gateway_link import GatewayLink  # noqa: E402
from config.node_files import NodeFiles  # noqa: E402
from config.ports import BodyLimit, PortSplit, SameOrigin, refuse_unknown_path  # noqa: E402
from config.threads import KeptThreads  # noqa: E402
from fleet.link import AgentLink  # noqa: E402
from monitoring.consumers import LiveConsumer  # noqa: E402

websockets = URLRouter(
    [
        path("link/agent", AgentLink.as_asgi()),
        path("link/gateway", GatewayLink.as_asgi()),
        path("ws/live", SameOrigin(AuthMiddlewareStack(LiveConsumer.as_asgi()))),
        path("<path:unknown>", refuse_unknown_path),
    ]
)
http = BodyLimit(NodeFiles(otherwise=KeptThreads(http_application)))
application = PortSplit(ProtocolTypeRouter({"http": http, "websocket": websockets}))
