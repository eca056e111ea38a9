"""Pages of REST lists, read while rows come and go."""

import pytest

from apikeys.models import Project
from config.pagination import WholePages
from tests.factories import make_project

pytestmark = pytest.mark.django_db


def test_a_row_that_comes_after_the_count_pushes_no_other_off_the_page() -> None:
    first = make_project(name="b")
    pages = WholePages(Project.objects.order_by("name"), 500)
    assert pages.count == 1
    make_project(name="a")
    assert first in pages.page(1).object_list


def test_a_page_is_no_longer_than_asked_for() -> None:
    for name in "abc":
        make_project(name=name)
    pages = WholePages(Project.objects.order_by("name"), 2)
    assert [project.name for project in pages.page(1)] == ["a", "b"]
    assert [project.name for project in pages.page("2")] == ["c"]
