"""Pages of REST lists."""

from django.core.paginator import Page, Paginator
from rest_framework.pagination import PageNumberPagination


class WholePages(Paginator):
    """A page holds what is there when it is read.

    Django's own cuts a page at the count taken before: a row that comes in between pushes the last one off the page,
    and a reader of the whole list takes it for gone.
    """

    def page(self, number: int | str) -> Page:
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        return self._get_page(self.object_list[start : start + self.per_page], number, self)


class Pages(PageNumberPagination):
    """`?page=N&page_size=M`, at most 500 a page."""

    django_paginator_class = WholePages
    page_size_query_param = "page_size"
    max_page_size = 500
