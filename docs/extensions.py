"""What the pages need beside Sphinx's own extensions: formulas, notebooks, generated parts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import generate
from docutils import nodes
from latex2mathml.converter import convert
from myst_parser.sphinx_ import Parser
from sphinx.application import Sphinx

GENERATED = re.compile(r"^<!-- generated: (\w+) *(.*?) *-->$", re.MULTILINE)


def visit_math(translator: Any, node: nodes.math) -> None:
    """Write a formula in a line as MathML, which browsers draw without a script or a font."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own line as MathML."""
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


class NotebookParser(Parser):
    """Show a Jupyter notebook as a page: its Markdown, and its code without output."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse the notebook's cells as one Markdown page."""
        parts = []
        for cell in json.loads(inputstring)["cells"]:
            source = "".join(cell["source"])
            parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        super().parse("\n\n".join(parts), document)


def insert_generated(app: Sphinx, name: str, content: list[str]) -> None:
    """Replace each line `<!-- generated: NAME ARGUMENT -->` by what `generate.NAME` returns."""

    def made(match: re.Match[str]) -> str:
        function = getattr(generate, match[1])
        return str(function(match[2]) if match[2] else function())

    content[0] = GENERATED.sub(made, content[0])


def generated_pages(app: Sphinx, env: Any, *_: set[str]) -> list[str]:
    """Return the pages with generated parts, which are read again at every build."""
    pages = {name: Path(env.doc2path(name)).read_text(encoding="utf-8") for name in env.found_docs}
    return [name for name, text in pages.items() if GENERATED.search(text)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all of it."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("env-get-outdated", generated_pages)
    app.connect("source-read", insert_generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
