"""Forms of our own pages: fields in the order of the class, drawn by `stokehold/parts/form.html`."""

from __future__ import annotations

from django import forms


class PageForm(forms.Form):
    """A form whose fields show label, control, help and errors, tied together for screen readers."""

    required_css_class = "sk-required"
    use_required_attribute = True
