"""Templates of pages and pictures."""

from __future__ import annotations

from typing import Any


def render(name: str, **values: Any) -> str:
    """Returns a template of this folder, rendered with `values`; text is escaped, and a missing value is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fairseq_gpam.lab.experiments", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values) + "\n"
