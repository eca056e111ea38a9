"""The app's part of the API, mounted as the master mounts it."""

from django.urls import include, path
from rest_framework.routers import DefaultRouter

from apikeys import api

router = DefaultRouter()
api.register(router)
urlpatterns = [path("api/v1/", include([*api.urlpatterns, *router.urls]))]
