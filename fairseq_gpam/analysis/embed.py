"""Writes figures as SVG whose text stays text, and HTML pages with them; the same numbers give the same ids."""

import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fairseq_gpam.analysis.drawing import STYLE


def svg(figure: Figure, name: str, alt: str = "") -> str:
    """Returns a figure as SVG, with the weight of every cell of a map shown on hover.

    `name` makes ids differ between pictures of one page; `alt` describes the picture to who cannot see it.
    """
    buffer = io.BytesIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode("utf-8")
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    # Coordinates need no more than two digits; texts between tags keep theirs.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)
    hover = "".join(_cell_titles(axes, axes.format_coord) for axes in figure.axes if axes.images)
    text = text.replace("</svg>", f"{hover}</svg>")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1) if alt else text


def _cell_titles(axes: Axes, words_at: Callable[[float, float], str]) -> str:
    """Returns transparent cells over a map, each with a title, which browsers show on hover."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = 72 * figure.get_size_inches()
    place, weights = axes.get_position(), axes.images[0].get_array()
    assert weights is not None
    is_masked = np.ma.getmaskarray(weights)
    rows, columns = is_masked.shape
    cells = "".join(
        f'<path d="M{column} {row}h1v1h-1z"><title>{html.escape(words_at(column, row))}</title></path>'
        for row in range(rows)
        for column in range(columns)
        if not is_masked[row, column]
    )
    across, down = place.width * width / columns, place.height * height / rows
    moved = f"translate({place.x0 * width:.2f} {(1 - place.y1) * height:.2f}) scale({across:.4f} {down:.4f})"
    return f'<g fill="none" pointer-events="all" transform="{moved}">{cells}</g>\n'


def html_figure(figure: Figure, name: str, alt: str, caption: str = "", path: Path | None = None) -> str:
    """Returns a figure as a part of a page that extends page.html.j2, all texts escaped; also writes it to `path`."""
    natural = round(96 * figure.get_size_inches()[0])
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    drawn = svg(figure, name, alt)
    if path is not None:
        path.write_text(drawn, encoding="utf-8")
    return (
        f'<figure class="picture" style="--natural: {natural}px"><p class="hint">wider than the screen: scroll ↔</p>'
        f'<div class="scroll">{drawn}</div>{below}</figure>'
    )


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
    return environment.get_template(template).render(**values) + "\n"


def write(figure: Figure, path: Path) -> None:
    """Writes a figure atomically, in the format that the file's name ends with."""
    part = path.with_name(path.name + ".part")
    with rc_context(STYLE):
        if path.suffix == ".svg":
            part.write_text(svg(figure, path.stem), encoding="utf-8")
        else:
            figure.savefig(part, format=path.suffix.removeprefix(".") or "png", dpi=150)
    part.replace(path)
