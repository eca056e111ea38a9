"""The sidebar of the admin."""


def sidebar(request):
    return []
