"""A hook of mkdocs that shows examples/look-inside.ipynb, with its outputs, as a page of the site."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOK = Path(__file__).parents[2] / "examples/look-inside.ipynb"


def on_files(files: Files, config: Any) -> Files:
    """Adds the page look-inside.md to the site's files."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    files.append(File.generated(config, "look-inside.md", content="\n\n".join(map(markdown, cells))))
    return files


def markdown(cell: dict[str, Any]) -> str:
    """Returns a cell of a notebook, and what it printed and drew, as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    shown = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        if "image/png" in output.get("data", {}):
            shown.append(f"![output of the code above](data:image/png;base64,{output['data']['image/png'].strip()})")
        elif "text" in output:
            shown.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
    return "\n\n".join(shown)
