"""Numbers of the dashboard."""


def dashboard_callback(request, context):
    return context
