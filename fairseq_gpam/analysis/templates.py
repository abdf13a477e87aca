"""Templates of pages."""

from typing import Any

import jinja2

from fairseq_gpam.analysis import embed


def render(package: str, template: str, **values: Any) -> str:
    """Returns a template in a package's folder with `values`; text is escaped, and a missing value is an error.

    It extends page.html.j2, which takes `title` and has the pages' style.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in (package, "fairseq_gpam.analysis")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(css=embed.CSS, **values) + "\n"
