"""HTML pages from templates. Every value is escaped."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

ENVIRONMENT = Environment(
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_page(package: str, template: str, **values: Any) -> str:
    """A page of a template that lies in a package, such as `failures.html.jinja`.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    text = files(package).joinpath(template).read_text(encoding="utf-8")
    return ENVIRONMENT.from_string(text).render(values)
