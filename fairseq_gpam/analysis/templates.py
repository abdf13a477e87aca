"""Templates of pages."""

from __future__ import annotations

from typing import Any

import jinja2


def render(package: str, name: str, **values: Any) -> str:
    """Returns a template in a package's folder with `values`; text is escaped, and a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values) + "\n"
