"""Notebooks: their cells run in this process, and become a page with what they show."""

from __future__ import annotations

import ast
import base64
import contextlib
import html
import io
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
#: name: what the navigation calls it.
NAMES = {"attention": "Attention", "metrics": "Metrics", "sampling": "Sampling"}


def cells(name: str) -> list[tuple[str, str]]:
    """Of a notebook: (kind, text), where the kind is "markdown" or "code"."""
    told = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return [(cell["cell_type"], "".join(cell["source"])) for cell in told["cells"]]


def run(name: str) -> list[tuple[str, str, str]]:
    """Runs the cells in order; adds to each what it shows, as Markdown.

    As in a notebook, the value of a cell's last line is shown, and so are figures.
    """
    import matplotlib

    matplotlib.use("Agg")
    space: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, (kind, text) in enumerate(cells(name)):
        found.append((kind, text, "" if kind == "markdown" else _run(text, f"{name}.ipynb, cell {number}", space)))
    return found


def page(name: str) -> str:
    """A notebook as a page: text, code, and what the code shows."""
    found = []
    for kind, text, shown in run(name):
        found += [text if kind == "markdown" else f"```python\n{text}\n```", shown]
    found.insert(2, f"This page is the notebook `docs/notebooks/{name}.ipynb`, run as the site was built.")
    return "\n\n".join(part for part in found if part) + "\n"


def _run(text: str, where: str, space: dict[str, Any]) -> str:
    from matplotlib import pyplot

    tree = ast.parse(text, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(tree, where, "exec"), space)
        value = None if last is None else eval(compile(ast.Expression(last.value), where, "eval"), space)
    shown = [f'<pre class="shown">{html.escape(out.getvalue().rstrip())}</pre>'] if out.getvalue().strip() else []
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    if value is not None and not figures:
        rich = getattr(value, "_repr_html_", None)
        shown.append(rich() if rich else f'<pre class="shown">{html.escape(repr(value))}</pre>')
    for figure in figures:
        file = io.BytesIO()
        figure.savefig(file, dpi=110, bbox_inches="tight")
        picture = base64.b64encode(file.getvalue()).decode()
        shown.append(f'<img class="shown" alt="figure" src="data:image/png;base64,{picture}">')
        pyplot.close(figure)
    return "\n\n".join(shown)
