"""REST: routes, providers and prices."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.routers import BaseRouter

from deployments.models import ModelPrice, Provider, Route
from deployments.routing import services
from deployments.routing.serializers import PriceSerializer, ProviderSerializer, RouteSerializer


@extend_schema_view(
    list=extend_schema(summary="List routes"),
    retrieve=extend_schema(summary="Show a route"),
    create=extend_schema(summary="Make a route"),
    partial_update=extend_schema(summary="Change a route; `targets` replaces all of them"),
    destroy=extend_schema(summary="Delete a route that no other uses"),
)
class RouteViewSet(viewsets.ModelViewSet):
    queryset = Route.objects.prefetch_related("targets__deployment", "targets__to", "targets__provider").order_by(
        "name"
    )
    serializer_class = RouteSerializer
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    filterset_fields = ["name", "listed"]
    search_fields = ["name", "description"]
    ordering_fields = ["name", "created_at", "updated_at"]

    def perform_update(self, serializer: RouteSerializer) -> None:
        serializer.instance = self.get_queryset().get(pk=serializer.save().pk)  # with its targets as they are now

    def perform_destroy(self, instance: Route) -> None:
        services.delete_route(instance, actor=self.request.user.get_username())


@extend_schema_view(
    list=extend_schema(summary="List providers"),
    retrieve=extend_schema(summary="Show a provider, without its key"),
    create=extend_schema(summary="Make a provider"),
    partial_update=extend_schema(summary="Change a provider's address, key or endpoints"),
    destroy=extend_schema(summary="Delete a provider that no route uses"),
)
class ProviderViewSet(viewsets.ModelViewSet):
    queryset = Provider.objects.order_by("name")
    serializer_class = ProviderSerializer
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    filterset_fields = ["name"]
    search_fields = ["name", "base_url"]
    ordering_fields = ["name", "created_at"]

    def perform_destroy(self, instance: Provider) -> None:
        services.delete_provider(instance, actor=self.request.user.get_username())


@extend_schema_view(
    list=extend_schema(summary="List prices"),
    retrieve=extend_schema(summary="Show a price"),
    create=extend_schema(summary="Set the price of a public name, in place of the one before"),
    destroy=extend_schema(summary="Remove a price: its tokens cost nothing from then on"),
)
class PriceViewSet(
    mixins.CreateModelMixin,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet,
):
    queryset = ModelPrice.objects.order_by("name")
    serializer_class = PriceSerializer
    filterset_fields = ["name"]
    search_fields = ["name"]
    ordering_fields = ["name", "updated_at"]

    def perform_destroy(self, instance: ModelPrice) -> None:
        services.remove_price(instance)


def register(router: BaseRouter) -> None:
    router.register("routes", RouteViewSet)
    router.register("providers", ProviderViewSet)
    router.register("prices", PriceViewSet)
